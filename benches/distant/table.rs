//! What stands in docs/performance.md.

use super::{Distance, Pace, Plan, report};

/// All rounds of one server at one distance.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) control: String,
    pub(crate) distance: Distance,
    pub(crate) server: String,
    pub(crate) paces: Vec<Pace>,
}

impl Row {
    fn median(&self, of: impl Fn(&Pace) -> f64) -> f64 {
        let mut all: Vec<f64> = self.paces.iter().map(of).collect();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

impl std::fmt::Display for Distance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ms", self.round_trip.as_secs_f64() * 1e3)?;
        if self.lost_per_million > 0 {
            write!(f, ", {} % lost", self.lost_per_million as f64 / 1e4)?;
        }
        Ok(())
    }
}

/// The tables in Markdown.
pub(crate) fn render(plan: &Plan, rows: &[Row], kept: &str) -> String {
    let build = if plan.binary.is_none() && cfg!(debug_assertions) { " oca is a debug build." } else { "" };
    let limit = |name| std::fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap_or_default();
    let limits =
        [limit("tcp_wmem"), limit("tcp_rmem")].map(|limit| limit.split_whitespace().collect::<Vec<_>>().join(" "));
    let mut text = format!(
        "{}. The line: {} Mb/s, packets of {} bytes; {kept}. tcp_wmem {}, tcp_rmem {}. Each figure: {} s, {} round(s).{build}\n",
        report::machine(),
        plan.rate,
        plan.mtu,
        limits[0],
        limits[1],
        plan.time.as_secs_f64(),
        plan.rounds,
    );
    let mut controls: Vec<&str> = rows.iter().map(|row| row.control.as_str()).collect();
    controls.dedup();
    for control in controls {
        let rows: Vec<&Row> = rows.iter().filter(|row| row.control == control).collect();
        let pace = |row: &Row| format!("{:.0} / {:.0}", row.median(|pace| pace.whole), row.median(|pace| pace.ranges));
        section(&mut text, &format!("{control}: Mb/s of the whole film / of 4 MiB ranges:"), plan, &rows, pace);
        let kib = |bytes: f64| (bytes / 1024.0).round();
        let held = |row: &Row| {
            format!("{} / {}", kib(row.median(|pace| pace.held as f64)), kib(row.median(|pace| pace.unsent as f64)))
        };
        let title = format!("{control}: KiB that the kernel held for the connection at most / of these not sent yet:");
        section(&mut text, &title, plan, &rows, held);
    }
    text
}

fn section(text: &mut String, title: &str, plan: &Plan, rows: &[&Row], cell: impl Fn(&Row) -> String) {
    let heads: String = plan.far.iter().map(|distance| format!(" {distance} |")).collect();
    let mut lines = format!("\n{title}\n\n| |{heads}\n|---|{}\n", "---|".repeat(plan.far.len()));
    let mut servers: Vec<&str> = Vec::new();
    for row in rows {
        if !servers.contains(&row.server.as_str()) {
            servers.push(&row.server);
        }
    }
    for server in servers {
        let cells = plan.far.iter().map(|distance| {
            let row = rows.iter().find(|row| row.server == server && row.distance == *distance);
            format!(" {} |", row.map(|row| cell(row)).unwrap_or_default())
        });
        let cells: String = cells.collect();
        lines.push_str(&format!("| {server} |{cells}\n"));
    }
    text.push_str(&lines);
}
