//! The status document as lines of a terminal, the worst first.

use serde_json::Value;

use crate::admin::page::{bits, bytes, duration, number};

/// What the lines are written for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Screen {
    columns: usize,
    colours: bool,
}

/// Columns of a bar, where there is room for that.
const BAR: usize = 24;
/// The same where there is little.
const SHORT_BAR: usize = 10;
/// Columns below which there is little.
const NARROW: usize = 72;
/// Columns below which lines are not cut any more.
const LEAST: usize = 20;
/// Columns of the names before bars.
const NAMES: usize = 12;
/// Reasons that are shown.
const REASONS_MAX: usize = 8;

#[derive(Clone, Copy)]
enum Ink {
    Plain,
    Bold,
    Quiet,
    Good,
    Poor,
    Bad,
}

fn real(value: &Value) -> f64 {
    value.as_f64().unwrap_or(0.0)
}

fn count(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn percent_of(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part * 100.0 / whole } else { 0.0 }
}

/// What a box says ends up on a terminal: nothing of it moves the cursor.
fn text(value: &Value) -> String {
    value.as_str().unwrap_or("").chars().map(|one| if one.is_control() { '?' } else { one }).collect()
}

fn ink_of(state: &str) -> Ink {
    match state {
        "serving" => Ink::Good,
        "degraded" | "starting" | "draining" => Ink::Poor,
        _ => Ink::Bad,
    }
}

impl Screen {
    pub(super) fn new(columns: usize, colours: bool) -> Self {
        Self { columns, colours }
    }

    pub(super) fn lines(self, status: &Value) -> Vec<String> {
        let mut lines = self.head(status);
        lines.extend(self.load(status));
        lines.extend(self.cache(status));
        lines.extend(self.fill(status));
        lines.extend(self.reports(status));
        lines
    }

    /// In one ink, and no longer than the terminal is wide.
    fn line(self, ink: Ink, words: &str) -> String {
        let most = self.columns.max(LEAST);
        let shown: String = if words.chars().count() > most {
            words.chars().take(most - 1).chain(['…']).collect()
        } else {
            words.into()
        };
        let code = match ink {
            Ink::Plain => return shown,
            Ink::Bold => "1",
            Ink::Quiet => "2",
            Ink::Good => "1;32",
            Ink::Poor => "1;33",
            Ink::Bad => "1;31",
        };
        if self.colours { format!("\x1b[{code}m{shown}\x1b[0m") } else { shown }
    }

    fn heading(self, words: &str) -> [String; 2] {
        [String::new(), self.line(Ink::Bold, words)]
    }

    /// Of something that is used up: the more, the worse.
    fn used(self, name: &str, percent: f64, words: &str) -> String {
        self.bar(if percent >= 90.0 { Ink::Poor } else { Ink::Plain }, (name, percent), words)
    }

    fn bar(self, ink: Ink, (name, percent): (&str, f64), words: &str) -> String {
        let width = if self.columns < NARROW { SHORT_BAR } else { BAR };
        // Of a whole: never longer than the bar.
        let part = (percent.clamp(0.0, 100.0) / 100.0 * width as f64).round();
        let used = (0..width).filter(|at| (*at as f64) < part).count();
        let bar: String = "█".repeat(used) + &"·".repeat(width - used);
        let name: String = if name.chars().count() > NAMES {
            // Of a path, the end tells more.
            let skipped = name.chars().count() + 1 - NAMES;
            ['…'].into_iter().chain(name.chars().skip(skipped)).collect()
        } else {
            name.into()
        };
        self.line(ink, &format!("  {name:<NAMES$} {bar} {words}"))
    }

    fn named(self, name: &str, words: &str) -> String {
        self.line(Ink::Plain, &format!("  {name:<NAMES$} {words}"))
    }

    fn head(self, status: &Value) -> Vec<String> {
        let health = &status["health"];
        let state = text(&health["state"]);
        let (id, site) = (text(&status["appliance"]["id"]), text(&status["appliance"]["site"]));
        let mut about = vec![id, site];
        about.push(format!("oca {}", text(&status["version"])));
        about.push(format!("up {}", duration(count(&status["uptime_seconds"]))));
        about.retain(|part| !part.is_empty());
        let mut lines = vec![self.line(ink_of(&state), &state), self.line(Ink::Quiet, &about.join(" · "))];
        let reasons = list(&health["reasons"]);
        for reason in reasons.iter().take(REASONS_MAX) {
            let words = format!("  {} ({})", text(&reason["words"]), text(&reason["code"]));
            lines.push(self.line(ink_of(&text(&reason["severity"])), &words));
        }
        if reasons.len() > REASONS_MAX {
            lines.push(self.line(Ink::Poor, &format!("  and {} more", reasons.len() - REASONS_MAX)));
        }
        lines
    }

    fn load(self, status: &Value) -> Vec<String> {
        let (load, traffic) = (&status["load"], &status["traffic"]);
        let mut lines = self.heading("load").to_vec();
        let egress = &load["egress"];
        let (now, long) = (real(&egress["bits_per_second"]["short"]), real(&egress["bits_per_second"]["long"]));
        let capacity = real(&egress["capacity"]["bits_per_second"]);
        let of = if capacity > 0.0 { format!(" of {}", bits(capacity)) } else { String::new() };
        lines.push(self.used(
            "egress",
            percent_of(now, capacity),
            &format!("{}{of}, {} over 5 min", bits(now), bits(long)),
        ));
        let workers = list(&load["cpu"]["workers"]);
        let busiest = workers.iter().map(|worker| real(&worker["short"])).fold(0.0, f64::max) * 100.0;
        lines.push(self.used("cpu", busiest, &format!("{busiest:.0} % of the busiest of {} workers", workers.len())));
        let (open, most) = (count(&load["connections"]["open"]), count(&load["connections"]["max"]));
        let words = format!("{} of {}", number(open), number(most));
        lines.push(self.used("connections", percent_of(open as f64, most as f64), &words));
        for disk in list(&load["disks"]) {
            let busy = real(&disk["busy"]["short"]) * 100.0;
            let words = format!("{busy:.0} % busy, queue {:.1}", real(&disk["queue"]["short"]));
            lines.push(self.used(&text(&disk["volume"]), busy, &words));
        }
        let headroom = &load["headroom"];
        let room = match (headroom["bits_per_second"].as_f64(), headroom["limited_by"].as_str()) {
            (Some(room), Some(limit)) => format!("{} more, then {limit} ends first", bits(room)),
            _ => "not known yet".into(),
        };
        lines.push(self.named("headroom", &room));
        let hits = traffic["hit_percent"].as_f64().map_or(String::new(), |percent| format!(", {percent:.1} % hits"));
        let first = traffic["first_byte_seconds"].as_f64();
        let first = first.map_or(String::new(), |first| format!(", first byte {:.1} ms", first * 1000.0));
        let requests = real(&load["requests"]["short"]);
        lines.push(self.named("requests", &format!("{requests:.1}/s{hits}{first}")));
        lines
    }

    fn cache(self, status: &Value) -> Vec<String> {
        let assets = number(count(&status["catalog"]["assets"]));
        let mut lines = self.heading(&format!("cache: {assets} assets")).to_vec();
        for volume in list(&status["volumes"]) {
            let (used, capacity) = (count(&volume["used_bytes"]), count(&volume["capacity_bytes"]));
            let path = text(&volume["path"]);
            if volume["state"] == "failed" {
                lines.push(self.line(Ink::Bad, &format!("  {path} was taken out: {}", text(&volume["failure"]))));
                continue;
            }
            // A full cache is a good one: eviction keeps it below its brim.
            let percent = percent_of(used as f64, capacity as f64);
            lines.push(self.bar(Ink::Plain, (&path, percent), &format!("{} of {}", bytes(used), bytes(capacity))));
        }
        lines
    }

    fn fill(self, status: &Value) -> Vec<String> {
        let (fill, manifest) = (&status["fill"], &status["manifest"]);
        let window = match fill["window"]["state"].as_str() {
            Some("open") if fill["rate_bits_per_second"] == 0 => "window open, nothing to fetch".into(),
            Some("open") => format!("window open, at most {}", bits(real(&fill["rate_bits_per_second"]))),
            _ => "window closed".into(),
        };
        let mut lines = self.heading(&format!("fill: {window}")).to_vec();
        if let Some(sequence) = manifest["sequence"].as_u64() {
            let (held, wanted) = (count(&fill["held"]["assets"]), count(&fill["wanted"]["assets"]));
            let speed = bits(real(&fill["bytes_per_second"]) * 8.0);
            let left = fill["seconds_left"].as_u64().filter(|_| held < wanted);
            let left = left.map_or(String::new(), |left| format!(", {} left", duration(left)));
            let words = format!("{} of {} assets, {speed}{left}", number(held), number(wanted));
            let percent = percent_of(real(&fill["here_bytes"]), real(&fill["wanted"]["bytes"]));
            lines.push(self.bar(Ink::Plain, (&format!("manifest {sequence}"), percent), &words));
        }
        for source in list(&status["sources"]) {
            let errors: u64 = source["errors"].as_object().into_iter().flat_map(|all| all.values()).map(count).sum();
            let (fetches, came) = (number(count(&source["fetches"])), bytes(count(&source["bytes"])));
            let words = format!("{fetches} fetches, {came}, {} errors", number(errors));
            let name = text(&source["name"]);
            lines.push(if source["set_aside"] == true {
                self.line(Ink::Poor, &format!("  {name:<NAMES$} set aside for its failures; {words}"))
            } else {
                self.named(&name, &words)
            });
        }
        lines
    }

    fn reports(self, status: &Value) -> Vec<String> {
        let services = list(&status["steering"]);
        if services.is_empty() {
            return Vec::new();
        }
        let mut lines = self.heading("reports").to_vec();
        for service in services {
            let reports = &service["reports"];
            let taken = count(&reports["delivered"]);
            let all: u64 = reports.as_object().into_iter().flat_map(|all| all.values()).map(count).sum();
            let last = service["delivered_seconds_ago"].as_u64();
            let last = last.map_or("never taken".into(), |ago| format!("last taken {} ago", duration(ago)));
            let words = format!("{last}, {} taken, {} not", number(taken), number(all - taken));
            let name = text(&service["name"]);
            lines.push(match service["trouble"].as_str() {
                Some(_) => self.line(Ink::Poor, &format!("  {name:<NAMES$} {words}: {}", text(&service["trouble"]))),
                None => self.named(&name, &words),
            });
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn document() -> Value {
        json!({
            "appliance": { "id": "edge1", "site": "fra" }, "version": "0.1.0", "uptime_seconds": 90_061, "ready": true,
            "health": { "state": "degraded", "reasons": [
                { "code": "disk_slow", "severity": "degraded", "words": "/disk0 takes 3 s\u{1b}[2J for a probe" },
            ]},
            "load": {
                "egress": { "bits_per_second": { "short": 9.5e9, "long": 1e9 }, "capacity": { "bits_per_second": 10_000_000_000_u64 } },
                "cpu": { "workers": [{ "short": 0.25 }, { "short": 0.5 }] },
                "connections": { "open": 12, "max": 16384 },
                "disks": [{ "volume": "/var/lib/oca/disk0", "busy": { "short": 0.1 }, "queue": { "short": 0.2 } }],
                "headroom": { "bits_per_second": 5e8, "limited_by": "cpu" }, "requests": { "short": 812.0 },
            },
            "traffic": { "hit_percent": 97.25, "first_byte_seconds": 0.0004 },
            "catalog": { "assets": 12034 },
            "volumes": [
                { "path": "/var/lib/oca/disk0", "state": "serving", "used_bytes": 3_u64 << 30, "capacity_bytes": 10_u64 << 30 },
                { "path": "/var/lib/oca/disk1", "state": "failed", "failure": "it is gone" },
            ],
            "manifest": { "sequence": 7 },
            "fill": { "window": { "state": "open" }, "rate_bits_per_second": 1_200_000_000, "held": { "assets": 30 },
                      "wanted": { "assets": 40, "bytes": 100 }, "here_bytes": 75, "bytes_per_second": 1_000_000, "seconds_left": 61 },
            "sources": [{ "name": "origin-0", "fetches": 5, "bytes": 1024, "errors": { "timeout": 2 }, "set_aside": true }],
            "steering": [{ "name": "steering-0", "delivered_seconds_ago": 2, "trouble": null,
                           "reports": { "delivered": 10, "failed": 3 } }],
        })
    }

    #[test]
    fn all_of_it_is_there_and_the_worst_first() {
        let lines = Screen::new(100, false).lines(&document());
        let all = lines.join("\n");
        assert!(lines[0] == "degraded" && lines[1] == "edge1 · fra · oca 0.1.0 · up 1 d 1 h", "{all}");
        for expected in [
            "/disk0 takes 3 s?[2J for a probe (disk_slow)",
            "███████████████████████· 9.5 Gb/s of 10.0 Gb/s, 1.0 Gb/s over 5 min",
            "50 % of the busiest of 2 workers",
            "12 of 16,384",
            "10 % busy, queue 0.2",
            "500 Mb/s more, then cpu ends first",
            "812.0/s, 97.2 % hits, first byte 0.4 ms",
            "cache: 12,034 assets",
            "3.0 GiB of 10.0 GiB",
            "/var/lib/oca/disk1 was taken out: it is gone",
            "window open, at most 1.2 Gb/s",
            "30 of 40 assets, 8.0 Mb/s, 1 min 1 s left",
            "set aside for its failures; 5 fetches, 1.0 KiB, 2 errors",
            "last taken 2 s ago, 10 taken, 3 not",
        ] {
            assert!(all.contains(expected), "'{expected}' is not in\n{all}");
        }
        assert!(!all.contains('\u{1b}') && lines.len() <= 24, "{} lines\n{all}", lines.len());
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        for columns in [20, 40, 72, 80] {
            for line in Screen::new(columns, false).lines(&document()) {
                assert!(line.chars().count() <= columns, "{columns}: {line}");
            }
        }
        let coloured = Screen::new(80, true).lines(&document());
        assert!(coloured[0].starts_with("\u{1b}[1;33m") && coloured[0].ends_with("\u{1b}[0m"), "{coloured:?}");
    }

    #[test]
    fn a_window_in_which_there_is_nothing_to_do_says_so() {
        let mut idle = document();
        idle["fill"]["rate_bits_per_second"] = 0.into();
        let all = Screen::new(100, false).lines(&idle).join("\n");
        assert!(all.contains("window open, nothing to fetch") && !all.contains("at most"), "{all}");
    }

    #[test]
    fn a_document_of_another_version_is_shown_as_far_as_it_goes() {
        assert!(!Screen::new(80, false).lines(&json!({})).is_empty());
    }
}
