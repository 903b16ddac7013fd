//! Where a redirect may lead.
//!
//! Location -> its host is one that the operator names -> it is no address of this machine or network, and no name that resolves to one
//!     -> connected to the very addresses that were looked at
//!
//! A server that is asked for bytes could otherwise have them fetched from wherever this machine reaches: its admin listener, the metadata of
//! a cloud (169.254.169.254), the routers of the operator.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use url::{Host, Url};

/// A host to which redirects may lead: `cdn.example`, `*.cdn.example` (each of its subdomains), an address; with `:port` where it is not that
/// of the scheme.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedirectHost {
    host: Host,
    subdomains: bool,
    port: Option<u16>,
}

/// Where the redirects of one server may lead.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Redirects {
    /// The hosts; none: redirects stay with the server.
    pub hosts: Vec<RedirectHost>,
    /// Whether they may be addresses of private networks, links and this machine.
    pub allow_private: bool,
}

/// Why a redirect is not followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RedirectRefused {
    /// `http` and `https` only.
    #[error("it leads to neither http nor https")]
    Scheme,
    /// What was asked for by TLS is not fetched without.
    #[error("it leads from https to http")]
    Downgrade,
    /// The operator does not name it.
    #[error("allow_redirects_to does not name its host")]
    Host,
    /// It is within.
    #[error("it leads to an address of a private network, a link or this machine")]
    Private,
}

impl FromStr for RedirectHost {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is no host; write for example cdn.example, *.cdn.example or cdn.example:8443");
        let (subdomains, rest) = text.strip_prefix("*.").map_or((false, text), |rest| (true, rest));
        // What a URL makes of it is what a redirect's host is compared with.
        let url: Url = format!("https://{rest}/").parse().map_err(|_| wrong())?;
        let plain = url.path() == "/" && url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
        let host = url.host().filter(|_| plain && url.password().is_none()).ok_or_else(wrong)?.to_owned();
        if rest.contains(['/', '@', '?', '#', '*', '\\']) || (subdomains && !matches!(host, Host::Domain(_))) {
            return Err(wrong());
        }
        let port = rest.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        Ok(Self { host, subdomains, port })
    }
}

impl RedirectHost {
    fn covers(&self, url: &Url) -> bool {
        let default = if url.scheme() == "https" { 443 } else { 80 };
        let port_fits = url.port_or_known_default() == Some(self.port.unwrap_or(default));
        let host_fits = match (&self.host, url.host()) {
            (Host::Domain(own), Some(Host::Domain(asked))) if self.subdomains => {
                asked.strip_suffix(own.as_str()).is_some_and(|below| below.len() > 1 && below.ends_with('.'))
            }
            (Host::Domain(own), Some(Host::Domain(asked))) => own == asked,
            (Host::Ipv4(own), Some(Host::Ipv4(asked))) => *own == asked,
            (Host::Ipv6(own), Some(Host::Ipv6(asked))) => *own == asked,
            _ => false,
        };
        port_fits && host_fits
    }
}

impl Redirects {
    /// Whether a redirect from one address to another may be followed, as far as they tell; names are looked at again when they are resolved.
    ///
    /// # Errors
    /// Why not.
    pub fn judge(&self, from: &Url, to: &Url) -> Result<(), RedirectRefused> {
        match (from.scheme(), to.scheme()) {
            (_, "https") | ("http", "http") => {}
            (_, "http") => return Err(RedirectRefused::Downgrade),
            _ => return Err(RedirectRefused::Scheme),
        }
        if !self.hosts.iter().any(|host| host.covers(to)) {
            return Err(RedirectRefused::Host);
        }
        // Names of this machine resolve to what they do; an address is what it is, however it was written.
        let literal = match to.host() {
            Some(Host::Ipv4(ip)) => Some(IpAddr::V4(ip)),
            Some(Host::Ipv6(ip)) => Some(IpAddr::V6(ip)),
            _ => None,
        };
        if !self.allow_private && literal.is_some_and(is_within) {
            return Err(RedirectRefused::Private);
        }
        Ok(())
    }

    /// Whether `url` names a private address itself, so that whoever wrote it means that network.
    pub fn names_private(url: &Url) -> bool {
        match url.host() {
            Some(Host::Ipv4(ip)) => is_within(ip.into()),
            Some(Host::Ipv6(ip)) => is_within(ip.into()),
            _ => false,
        }
    }

    /// Whether a connection to an address, which a name has resolved to, may be made for a redirect.
    pub fn admits(&self, address: IpAddr) -> bool {
        self.allow_private || !is_within(address)
    }
}

/// Whether an address is one of this machine, a link, or a network that is nobody else's business: what the registries of special-purpose
/// addresses (RFC 6890) call not globally reachable, as far as anything answers there. An address of IPv4 inside of one of IPv6 counts as what it is.
fn is_within(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_within_v4(ip),
        IpAddr::V6(ip) => is_within_v6(ip),
    }
}

fn is_within_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    ip.is_loopback()
        || ip.is_private()
        || ip.is_link_local()
        || ip.is_multicast()
        // "This network" (RFC 791), shared by a carrier's customers (RFC 6598), protocols' own (RFC 6890), benchmarks (RFC 2544), reserved
        // (RFC 1112) with the broadcast address.
        || a == 0
        || (a == 100 && (64..128).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        || (a == 198 && (18..20).contains(&b))
        || a >= 240
}

fn is_within_v6(ip: Ipv6Addr) -> bool {
    let segments = ip.segments();
    let [.., high, low] = segments;
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        is_within_v4(Ipv4Addr::new(a, b, c, d))
    };
    match segments {
        // Unspecified, loopback, and IPv4 as compatible addresses (deprecated, RFC 4291, 2.5.5.1).
        [0, 0, 0, 0, 0, 0, ..] => true,
        // Mapped (RFC 4291, 2.5.5.2), translated (RFC 2765).
        [0, 0, 0, 0, 0, 0xffff, ..] | [0, 0, 0, 0, 0xffff, 0, ..] => v4(high, low),
        // NAT64 (RFC 6052), and that of an operator's own network (RFC 8215).
        [0x64, 0xff9b, 0, 0, 0, 0, ..] => v4(high, low),
        [0x64, 0xff9b, 1, ..] => true,
        // Teredo (RFC 4380): its IPv4 is disguised, and nobody serves from there.
        [0x2001, 0, ..] => true,
        // 6to4 (RFC 3056).
        [0x2002, high, low, ..] => v4(high, low),
        // Unique local (RFC 4193), link-local, site-local (deprecated), multicast.
        [first, ..] => first & 0xfe00 == 0xfc00 || first & 0xff80 == 0xfe80 || first >= 0xff00,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redirects(hosts: &[&str]) -> Redirects {
        let hosts = hosts.iter().map(|host| host.parse().expect("a host")).collect();
        Redirects { hosts, allow_private: false }
    }

    fn judge(hosts: &[&str], to: &str) -> Result<(), RedirectRefused> {
        let from = "http://origin.example/a.mp4".parse().expect("valid");
        redirects(hosts).judge(&from, &to.parse().expect(to))
    }

    #[test]
    fn only_named_hosts_are_gone_to() {
        let hosts = ["cdn.example", "*.edge.example", "other.example:8443", "BÜCHER.example"];
        for good in [
            "http://cdn.example/x",
            "https://CDN.example:443/x?token=1",
            "https://a.edge.example/",
            "https://a.b.edge.example/",
            "http://other.example:8443/",
            "https://b\u{fc}cher.example/",
        ] {
            assert_eq!(judge(&hosts, good), Ok(()), "{good}");
        }
        for bad in [
            "http://origin.example/x",
            "https://cdn.example:8443/",
            "https://cdn.example.evil.example/",
            "https://evilcdn.example/",
            "https://edge.example/",
            "https://evil-edge.example/",
            "https://other.example/",
            "https://cdn.example@evil.example/",
            "http://203.0.113.5/",
        ] {
            assert_eq!(judge(&hosts, bad), Err(RedirectRefused::Host), "{bad}");
        }
        assert_eq!(judge(&hosts, "ftp://cdn.example/"), Err(RedirectRefused::Scheme));
        assert_eq!(judge(&hosts, "file:///etc/passwd"), Err(RedirectRefused::Scheme));
        let from = "https://origin.example/".parse().expect("valid");
        let down = redirects(&hosts).judge(&from, &"http://cdn.example/".parse().expect("valid"));
        assert_eq!(down, Err(RedirectRefused::Downgrade));
    }

    #[test]
    fn what_is_no_host_is_refused_with_what_was_meant() {
        for bad in
            ["", "http://cdn.example", "cdn.example/x", "a@b", "*", "*.", "*.192.0.2.1", "a b", "x:y", "a.*.example"]
        {
            let why = bad.parse::<RedirectHost>().expect_err(bad);
            assert!(why.contains("cdn.example"), "{why}");
        }
    }

    /// Each of them is named by the operator, and not one is gone to unless that is allowed.
    #[test]
    fn addresses_within_are_not_gone_to_however_they_are_written() {
        for within in [
            "127.0.0.1",
            "127.1",
            "2130706433",
            "0x7f000001",
            "0177.0.0.1",
            "0x7f.1",
            "10.0.0.1",
            "012.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "3232235777",
            "169.254.169.254",
            "0xa9fea9fe",
            "0251.0376.0251.0376",
            "0.0.0.0",
            "0",
            "100.64.0.1",
            "192.0.0.8",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "[::]",
            "[::1]",
            "[::ffff:127.0.0.1]",
            "[::ffff:a9fe:a9fe]",
            "[::ffff:10.1.2.3]",
            "[::127.0.0.1]",
            "[64:ff9b::7f00:1]",
            "[64:ff9b::a9fe:a9fe]",
            "[64:ff9b:1::1]",
            "[2002:7f00:1::]",
            "[2002:c0a8:101::1]",
            "[2001:0:1::1]",
            "[fc00::1]",
            "[fd12:3456::1]",
            "[fe80::1]",
            "[fec0::1]",
            "[ff02::1]",
        ] {
            let target = format!("http://{within}/latest/meta-data");
            assert_eq!(judge(&[within], &target), Err(RedirectRefused::Private), "{within}");
            let url: Url = target.parse().expect("valid");
            assert!(Redirects::names_private(&url), "{within}");
            let allowed = Redirects { allow_private: true, ..redirects(&[within]) };
            assert_eq!(allowed.judge(&"http://o.example/".parse().expect("valid"), &url), Ok(()), "{within}");
        }
        for outside in
            ["203.0.113.7", "172.32.0.1", "100.128.0.1", "[2001:db8::1]", "[::ffff:203.0.113.7]", "[2a00::1]"]
        {
            assert_eq!(judge(&[outside], &format!("http://{outside}/")), Ok(()), "{outside}");
        }
    }
}
