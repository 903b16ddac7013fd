//! Networks, and whether an address lies in one of them.

use std::{
    fs,
    io::{self, Read},
    net::{IpAddr, Ipv6Addr},
    path::Path,
    str::FromStr,
};

use ipnet::{IpNet, Ipv4Net};

/// Longest file of networks that is read, in bytes.
const FILE_MAX: u64 = 4 << 20;

/// A block of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network(IpNet);

impl FromStr for Network {
    type Err = String;

    /// `192.0.2.0/24`, `2001:db8::/32`, or an address, which stands for itself alone.
    fn from_str(text: &str) -> Result<Self, String> {
        let net = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
        let net =
            net.ok_or_else(|| format!("'{text}' is no network; write for example 192.0.2.0/24 or 2001:db8::/32"))?;
        if net.trunc() != net {
            return Err(format!("'{text}' has bits set behind its prefix; did you mean {}?", net.trunc()));
        }
        Ok(Self(unmapped(net)))
    }
}

/// Addresses of IPv4 that are written as those of IPv6 are what they are.
fn unmapped(net: IpNet) -> IpNet {
    let IpNet::V6(v6) = net else { return net };
    let as_v4 = v6.addr().to_ipv4_mapped().zip(v6.prefix_len().checked_sub(96));
    as_v4.and_then(|(address, bits)| Ipv4Net::new(address, bits).ok()).map_or(net, IpNet::V4)
}

/// Many networks. Looking up takes as many steps as their number has bits.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Networks {
    /// First and last address of each block, in order, without overlaps.
    v4: Box<[(u128, u128)]>,
    v6: Box<[(u128, u128)]>,
}

impl Networks {
    pub(super) fn new(networks: impl IntoIterator<Item = Network>) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for Network(net) in networks {
            match net {
                IpNet::V4(net) => {
                    let [first, last] = [net.network(), net.broadcast()].map(|address| u128::from(u32::from(address)));
                    v4.push((first, last));
                }
                IpNet::V6(net) => v6.push((u128::from(net.network()), u128::from(net.broadcast()))),
            }
        }
        Self { v4: merged(v4), v6: merged(v6) }
    }

    /// Reads further ones from a file, one per line; `#` begins a comment. Blocks.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub(super) fn read(path: &Path) -> Result<Vec<Network>, String> {
        let unreadable = |err: io::Error| format!("read {}: {err}", path.display());
        let mut text = String::new();
        let file = fs::File::open(path).map_err(unreadable)?;
        file.take(FILE_MAX + 1).read_to_string(&mut text).map_err(unreadable)?;
        if text.len() as u64 > FILE_MAX {
            return Err(format!("{} is longer than {FILE_MAX} bytes", path.display()));
        }
        let lines = text.lines().zip(1..).map(|(line, number)| (line.split('#').next().unwrap_or("").trim(), number));
        let networks = lines.filter(|(line, _)| !line.is_empty()).map(|(line, number)| {
            line.parse().map_err(|why: String| format!("{}, line {number}: {why}", path.display()))
        });
        let networks: Vec<Network> = networks.collect::<Result<_, _>>()?;
        // An empty file is rather one that somebody is writing than the wish to serve nobody.
        if networks.is_empty() { Err(format!("{} names no network", path.display())) } else { Ok(networks) }
    }

    pub(super) fn contains(&self, address: IpAddr) -> bool {
        let (blocks, address) = match address.to_canonical() {
            IpAddr::V4(address) => (&self.v4, u128::from(u32::from(address))),
            IpAddr::V6(address) => (&self.v6, u128::from(address)),
        };
        let after = blocks.partition_point(|(first, _)| *first <= address);
        after.checked_sub(1).is_some_and(|at| blocks[at].1 >= address)
    }

    /// Blocks left after merging.
    pub(super) fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }
}

fn merged(mut blocks: Vec<(u128, u128)>) -> Box<[(u128, u128)]> {
    blocks.sort_unstable();
    let mut apart: Vec<(u128, u128)> = Vec::with_capacity(blocks.len());
    for (first, last) in blocks {
        match apart.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ => apart.push((first, last)),
        }
    }
    apart.into()
}

/// What of an address tells one client from another: its first bits.
pub(in crate::serve) fn prefix(address: IpAddr, (v4_bits, v6_bits): (u8, u8)) -> u128 {
    let (address, bits) = match address.to_canonical() {
        IpAddr::V4(address) => (address.to_ipv6_mapped(), 96 + u32::from(v4_bits.min(32))),
        IpAddr::V6(address) => (address, u32::from(v6_bits.min(128))),
    };
    let mask = u128::MAX.checked_shl(Ipv6Addr::BITS - bits).unwrap_or(0);
    u128::from(address) & mask
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(text: &[&str]) -> Networks {
        Networks::new(text.iter().map(|text| text.parse().expect("a network")))
    }

    #[test]
    fn an_address_is_found_in_its_network_and_in_no_other() {
        let all = networks(&[
            "10.1.0.0/16",
            "10.1.2.0/24",
            "10.2.0.0/16",
            "192.0.2.7",
            "2001:db8::/32",
            "::ffff:198.51.100.0/120",
            "fe80::1",
        ]);
        assert_eq!(all.len(), 5, "neighbours and inner ones are merged");
        let contains = |text: &str| all.contains(text.parse().expect("an address"));
        for inside in [
            "10.1.0.0",
            "10.1.2.3",
            "10.2.255.255",
            "192.0.2.7",
            "2001:db8:ffff::1",
            "::ffff:10.1.2.3",
            "198.51.100.255",
            "fe80::1",
        ] {
            assert!(contains(inside), "{inside}");
        }
        for outside in [
            "10.0.255.255",
            "10.3.0.0",
            "192.0.2.6",
            "192.0.2.8",
            "2001:db7:ffff::",
            "2001:db9::",
            "::10.1.2.3",
            "198.51.101.0",
            "fe80::",
            "fe80::2",
            "::",
        ] {
            assert!(!contains(outside), "{outside}");
        }
        assert!(!networks(&[]).contains(IpAddr::from([127, 0, 0, 1])));
        let (v4, v6) = (networks(&["0.0.0.0/0"]), networks(&["::/0"]));
        let (one, other) = (IpAddr::from([203, 0, 113, 1]), "2001:db8::1".parse().expect("valid"));
        assert!(
            v4.contains(one) && !v4.contains(other) && v6.contains(other) && !v6.contains(one),
            "families are apart"
        );
    }

    #[test]
    fn what_is_no_network_is_refused_with_what_was_meant() {
        for (text, expected) in [
            ("10.0.0.1/8", "did you mean 10.0.0.0/8?"),
            ("2001:db8::1/32", "did you mean 2001:db8::/32?"),
            ("10.0.0.0/33", "is no network"),
            ("10.0.0", "is no network"),
            ("example.com", "is no network"),
            ("", "is no network"),
        ] {
            let told = text.parse::<Network>().expect_err("none");
            assert!(told.contains(expected), "{text}: {told}");
        }
    }

    #[test]
    fn a_file_names_networks_line_by_line() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("networks");
        fs::write(&path, "# ours\r\n10.0.0.0/8\n\n 2001:db8::/32 # theirs\n").expect("written");
        assert_eq!(Networks::read(&path).expect("valid").len(), 2);
        for (text, expected) in [("", "names no network"), ("10.0.0.0/8\nx\n", "line 2: 'x' is no network")] {
            fs::write(&path, text).expect("written");
            assert!(Networks::read(&path).expect_err("no good").contains(expected));
        }
        assert!(Networks::read(&folder.path().join("none")).expect_err("none").contains("read "));
    }

    #[test]
    fn clients_are_told_apart_by_their_first_bits() {
        let of = |text: &str, bits| prefix(text.parse().expect("an address"), bits);
        assert_ne!(of("192.0.2.1", (32, 64)), of("192.0.2.2", (32, 64)));
        assert_eq!(of("192.0.2.1", (24, 64)), of("192.0.2.2", (24, 64)));
        assert_eq!(of("192.0.2.1", (32, 64)), of("::ffff:192.0.2.1", (32, 64)));
        assert_eq!(of("2001:db8::1", (32, 64)), of("2001:db8::ffff:ffff:ffff:ffff", (32, 64)));
        assert_ne!(of("2001:db8::1", (32, 64)), of("2001:db8:0:1::1", (32, 64)));
        assert_ne!(of("2001:db8::1", (32, 128)), of("2001:db8::2", (32, 128)));
        assert_eq!(of("1.2.3.4", (0, 0)), of("5.6.7.8", (0, 0)));
    }
}
