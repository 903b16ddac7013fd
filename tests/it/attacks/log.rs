//! Requests that are written to be read by whoever reads the log.

use std::fs;

use super::PATIENCE;
use crate::support::{Origin, Setup, wait_until};

/// Log injection (CWE-117), and terminal escapes in logs (CVE-2003-0020, CVE-2009-4487 in nginx): a line break forges a line, an escape
/// takes over the terminal of who looks, a quote ends a field. One request must be one line of printable text, whatever it says, and
/// a reader of JSON must get back what was sent.
#[test]
fn line_breaks_escapes_and_quotes_in_the_access_log() {
    let origin = Origin::start();
    origin.publish_new("/film.mp4", 1, 100);
    let agents = [
        "\x1b]0;owned\x07\x1b[2J",
        "\",\"status\":200,\"x\":\"",
        "\u{9b}31m \u{202e}gpj.exe",
        "\\\" \\n \\u0000",
        "${jndi:ldap://x/a} %n%n%s",
    ];
    for format in ["json", "combined"] {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("access.log");
        let tables = format!("[log.access]\npath = {path:?}\nformat = \"{format}\"");
        let appliance = Setup::new(&origin).tables(&tables).start();
        let mut asked = 0;
        for agent in agents {
            let fields = [("User-Agent", agent), ("Referer", agent), ("Range", agent)];
            if appliance.connect().try_ask("GET", "/film.mp4?%0d%0aforged%1b", &fields).is_ok() {
                asked += 1;
            }
        }
        // Breaks that are not escaped end the field, or the request.
        let mut client = appliance.connect();
        client.send(b"GET /film.mp4 HTTP/1.1\r\nHost: t\r\nUser-Agent: a\nforged b\rforged\r\n\r\n");
        client.finish();
        client.until_closed();
        assert_eq!(appliance.get("/film.mp4?the-last").status(), 200);
        let mut text = Vec::new();
        wait_until("all is written", PATIENCE, || {
            text = fs::read(&path).unwrap_or_default();
            String::from_utf8_lossy(&text).contains("the-last") && text.ends_with(b"\n")
        });
        let control = |byte: &&u8| (**byte < 0x20 && **byte != b'\n') || **byte == 0x7f;
        assert_eq!(text.iter().find(control), None, "{}", String::from_utf8_lossy(&text).escape_debug());
        let text = String::from_utf8(text).expect("text");
        assert!(!text.chars().any(|one| ('\u{80}'..='\u{9f}').contains(&one)), "{}", text.escape_debug());
        assert!(!text.lines().any(|line| line.starts_with("forged")), "{text}");
        assert!((asked + 1..=asked + 2).contains(&text.lines().count()), "{asked}: {text}");
        if format == "json" {
            for line in text.lines() {
                let told: serde_json::Value = serde_json::from_str(line).expect("an object a line");
                assert!(told["status"].is_u64() && told.get("x").is_none(), "{line}");
            }
        }
    }
}
