//! The plain form: an expiry and an HMAC over path and expiry, for who signs with a line of shell.
//!
//! signature = hex(HMAC-SHA256(secret, path LF expires LF client LF))

use std::{borrow::Cow, fmt::Write as _, net::IpAddr};

use super::{
    Form,
    container::push_normalized,
    keys::{Algorithm, Key, Keys},
    package::Plain,
    token::addresses,
};
use crate::{asset::UnixTime, telemetry::metrics::Denial};

/// What is signed: `target` is the path, with the query where that is part of the asset's key.
fn message(target: &str, expires: &str, client: &str) -> String {
    let mut message = String::with_capacity(target.len() + expires.len() + client.len() + 3);
    push_normalized(&mut message, target);
    for line in [expires, client] {
        message.push('\n');
        message.push_str(line);
    }
    message.push('\n');
    message
}

impl Plain<'_> {
    /// Whether it allows this: this target, at this time, for this client.
    pub(super) fn allows(
        &self,
        keys: &Keys,
        target: &str,
        (now, leeway): (UnixTime, u64),
        client: IpAddr,
    ) -> Result<(), Denial> {
        let is_number = !self.expires.is_empty() && self.expires.bytes().all(|digit| digit.is_ascii_digit());
        let expires: u64 = self.expires.parse().ok().filter(|_| is_number).ok_or(Denial::Malformed)?;
        let signature = unhex(&self.signature).ok_or(Denial::Malformed)?;
        let key = keys.key(&self.key, Form::Hmac).ok_or(Denial::UnknownKey)?;
        if key.algorithm() != Some(Algorithm::Hs256) {
            return Err(Denial::Algorithm);
        }
        if !key.verify(message(target, &self.expires, &self.client).as_bytes(), &signature) {
            return Err(Denial::Signature);
        }
        if expires.saturating_add(leeway) <= now.0 {
            return Err(Denial::Expired);
        }
        if !self.client.is_empty() {
            let clients = addresses(&self.client).ok_or(Denial::Client)?;
            if !clients.contains(&client.to_canonical()) {
                return Err(Denial::Client);
            }
        }
        Ok(())
    }
}

/// The query parameters that sign a target; `None` where the key cannot.
pub fn sign(key: &Key, target: &str, expires: UnixTime, client: Option<&str>) -> Option<String> {
    let expires = expires.0.to_string();
    let signature = key.sign(message(target, &expires, client.unwrap_or("")).as_bytes())?;
    let escaped = |text| percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC);
    let client = client.map_or(Cow::Borrowed(""), |client| format!("&client={}", escaped(client)).into());
    let mut out = format!("expires={expires}&key={}{client}&signature=", escaped(&key.kid));
    for byte in signature {
        // Writing to a string cannot fail.
        let written = write!(out, "{byte:02x}");
        debug_assert!(written.is_ok());
    }
    Some(out)
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    let mut bytes = [0; 32];
    if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::keys::tests::keys, *};

    fn secrets() -> Keys {
        // The secrets are 32 bytes of 'a' and of 'b'.
        let secret = |kid: &str, k: &str| json!({"kty": "oct", "alg": "HS256", "kid": kid, "k": k});
        keys(
            &[
                secret("2026-11", "YWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWE"),
                secret("2026-12", "YmJiYmJiYmJiYmJiYmJiYmJiYmJiYmJiYmJiYmJiYmI"),
            ],
            Form::Hmac,
        )
    }

    fn plain<'t>(expires: &'t str, key: &'t str, client: &'t str, signature: &'t str) -> Plain<'t> {
        Plain { expires: expires.into(), key: key.into(), client: client.into(), signature: signature.into() }
    }

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 7));
    /// By OpenSSL: `printf '/films/1.mp4\n2000000000\n\n' | openssl dgst -sha256 -hmac aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa`.
    const BY_OPENSSL: &str = "107dfb22fe08dfae091b04caa993d013298bff11949313c46078ac254b6f6ad1";

    #[test]
    fn what_openssl_signs_is_good_until_it_expires() {
        let keys = secrets();
        let allows = |now: u64, leeway| {
            let plain = plain("2000000000", "2026-11", "", BY_OPENSSL);
            plain.allows(&keys, "/films/1.mp4", (UnixTime(now), leeway), HERE)
        };
        assert_eq!(allows(1_999_999_999, 0), Ok(()));
        assert_eq!(allows(2_000_000_000, 0), Err(Denial::Expired), "in the second in which it expires it is over");
        assert_eq!(allows(2_000_000_000, 1), Ok(()));
        assert_eq!(allows(2_000_000_001, 1), Err(Denial::Expired));
    }

    #[test]
    fn nothing_of_it_can_be_changed() {
        let keys = secrets();
        let good = |expires: &str, key: &str, signature: &str, path: &str| {
            plain(expires, key, "", signature).allows(&keys, path, (UnixTime(5), 0), HERE)
        };
        assert_eq!(good("2000000000", "2026-11", BY_OPENSSL, "/films/1.mp4"), Ok(()));
        assert_eq!(good("2000000000", "2026-11", BY_OPENSSL, "/films/%31.mp4"), Ok(()), "the same resource");
        assert_eq!(good("2000000000", "2026-11", &BY_OPENSSL.to_uppercase(), "/films/1.mp4"), Ok(()));
        for (expires, key, signature, path, why) in [
            ("2000000001", "2026-11", BY_OPENSSL, "/films/1.mp4", Denial::Signature),
            ("02000000000", "2026-11", BY_OPENSSL, "/films/1.mp4", Denial::Signature),
            ("2000000000", "2026-12", BY_OPENSSL, "/films/1.mp4", Denial::Signature),
            ("2000000000", "2026-10", BY_OPENSSL, "/films/1.mp4", Denial::UnknownKey),
            ("2000000000", "2026-11", BY_OPENSSL, "/films/2.mp4", Denial::Signature),
            ("2000000000", "2026-11", BY_OPENSSL, "/films/1.mp4?a=1", Denial::Signature),
            ("2000000000", "2026-11", &BY_OPENSSL[1..], "/films/1.mp4", Denial::Malformed),
            ("2000000000", "2026-11", "", "/films/1.mp4", Denial::Malformed),
            ("+2000000000", "2026-11", BY_OPENSSL, "/films/1.mp4", Denial::Malformed),
            ("", "2026-11", BY_OPENSSL, "/films/1.mp4", Denial::Malformed),
            ("99999999999999999999", "2026-11", BY_OPENSSL, "/films/1.mp4", Denial::Malformed),
        ] {
            assert_eq!(good(expires, key, signature, path), Err(why), "{expires} {key} {path}");
        }
    }

    #[test]
    fn it_is_for_the_clients_it_names() {
        let keys = secrets();
        let key = keys.key("2026-12", Form::Hmac).expect("there");
        for (client, from, expected) in [
            ("192.0.2.0/24", "192.0.2.7", Ok(())),
            ("192.0.2.0/24", "::ffff:192.0.2.7", Ok(())),
            ("192.0.2.0/24", "192.0.3.7", Err(Denial::Client)),
            ("192.0.2.7", "192.0.2.8", Err(Denial::Client)),
            ("2001:db8::/32", "2001:db8:5::1", Ok(())),
            ("2001:db8::/32", "192.0.2.7", Err(Denial::Client)),
            ("somebody", "192.0.2.7", Err(Denial::Client)),
        ] {
            let query = format!("/a?{}", sign(key, "/a", UnixTime(10), Some(client)).expect("signed"));
            let presented = super::super::package::Presented::of(&query, true).expect("one");
            let super::super::package::Credential::Plain(plain) = presented.credential else { panic!("{query}") };
            assert_eq!(presented.target, "/a");
            assert_eq!(plain.client, client);
            let from = from.parse().expect("an address");
            assert_eq!(plain.allows(&keys, "/a", (UnixTime(9), 0), from), expected, "{client} {from}");
            let other = Plain { client: "".into(), ..plain };
            assert_eq!(other.allows(&keys, "/a", (UnixTime(9), 0), from), Err(Denial::Signature));
        }
    }
}
