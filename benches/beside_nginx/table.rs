//! Rows as Markdown.

use std::fmt::Write as _;

use super::{
    measure::Measured,
    support::{Fallible, report},
    workloads::Row,
};

/// How to make the figures again. Where another build lies is of no use to anybody else.
fn command() -> String {
    let options = std::env::args().skip(1).filter(|option| option != "--bench" && !option.starts_with("--oca="));
    format!("cargo bench --bench beside_nginx -- {}", options.collect::<Vec<_>>().join(" "))
}

/// A size as people say it.
pub(crate) fn size(bytes: u64) -> String {
    if bytes >= 1 << 20 { format!("{} MiB", bytes >> 20) } else { format!("{} KiB", bytes >> 10) }
}

impl Row {
    /// The better of nginx in throughput.
    pub(crate) fn fastest(&self) -> Option<&Measured> {
        self.nginx.iter().max_by(|a, b| a.gigabytes_per_second.total_cmp(&b.gigabytes_per_second))
    }

    /// The better of nginx in CPU time.
    pub(crate) fn cheapest(&self) -> Option<&Measured> {
        self.nginx.iter().min_by(|a, b| a.cpu_per_gigabyte.total_cmp(&b.cpu_per_gigabyte))
    }

    /// How a build of oca does beside the better of nginx: throughput, CPU time per gigabyte.
    pub(crate) fn ratios_of(&self, oca: &Measured) -> Option<(f64, f64)> {
        let throughput = oca.gigabytes_per_second / self.fastest()?.gigabytes_per_second;
        Some((throughput, oca.cpu_per_gigabyte / self.cheapest()?.cpu_per_gigabyte))
    }

    /// How oca does beside what fio reads from the disk, the faster of its two ways, where that was measured.
    pub(crate) fn of_fio(&self) -> Option<f64> {
        let fio = self.others.iter().filter(|other| other.name.starts_with("fio"));
        let fastest = fio.map(|fio| fio.gigabytes_per_second).max_by(f64::total_cmp)?;
        Some(self.oca.last()?.gigabytes_per_second / fastest)
    }

    /// Whether it belongs to the few that a first look needs.
    fn is_short(&self) -> bool {
        // One connection says what one viewer gets, and not what a core serves.
        !self.workload.ends_with(" x 1")
    }

    /// The same of the last build, which is the one in question.
    pub(crate) fn ratios(&self) -> Option<(f64, f64)> {
        self.ratios_of(self.oca.last()?)
    }
}

/// Says a row on the terminal.
pub(crate) fn print(row: &Row) {
    println!("{}", row.workload);
    for measured in row.oca.iter().chain(&row.nginx).chain(&row.others) {
        println!("  {}", line(measured));
        if measured.read_per_byte > 0.01 {
            println!("  {:<44} {:>7.2} bytes read from the disk for each one sent", "", measured.read_per_byte);
        }
    }
    for oca in &row.oca {
        let Some((throughput, cpu)) = row.ratios_of(oca) else { continue };
        println!("  {} beside the best of nginx: {throughput:.2} x the throughput, {cpu:.2} x the CPU time", oca.name);
    }
    if let [before, .., last] = &row.oca[..] {
        let throughput = last.gigabytes_per_second / before.gigabytes_per_second;
        let cpu = last.cpu_per_gigabyte / before.cpu_per_gigabyte;
        println!("  {} beside {}: {throughput:.2} x the throughput, {cpu:.2} x the CPU time", last.name, before.name);
    }
    if let Some(part) = row.of_fio() {
        println!("  oca beside fio: {part:.2} x what the disk gives");
    }
    println!();
}

fn line(of: &Measured) -> String {
    format!(
        "{:<44} {:>7.2} GB/s {:>8.0} req/s {:>6.3} CPU-s/GB  p50 {} p99 {} p99.9 {} us  busy {:.0} %, load {:.0} %  spread {:.0} %  fastest {:.2} GB/s",
        of.name,
        of.gigabytes_per_second,
        of.requests_per_second,
        of.cpu_per_gigabyte,
        of.p50,
        of.p99,
        of.p999,
        of.server_busy * 100.0,
        of.load_busy * 100.0,
        of.spread * 100.0,
        of.fastest
    )
}

/// The table of one section, with every server that was measured.
fn full(rows: &[&Row]) -> String {
    let mut text = String::from(
        "| workload | server | GB/s | requests/s | CPU-s/GB | p50 us | p99 us | p99.9 us | busy | load busy | read/sent | spread |\n|---|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for row in rows {
        for of in row.oca.iter().chain(&row.nginx).chain(&row.others) {
            // Writing to a string cannot fail.
            let written = writeln!(
                text,
                "| {} | {} | {:.2} | {:.0} | {:.3} | {} | {} | {} | {:.0} % | {:.0} % | {:.2} | {:.0} % |",
                row.workload,
                of.name,
                of.gigabytes_per_second,
                of.requests_per_second,
                of.cpu_per_gigabyte,
                of.p50,
                of.p99,
                of.p999,
                of.server_busy * 100.0,
                of.load_busy * 100.0,
                of.read_per_byte,
                of.spread * 100.0
            );
            debug_assert!(written.is_ok());
        }
    }
    text
}

/// The table of ratios.
fn short(rows: &[&Row]) -> String {
    let has_fio = rows.iter().any(|row| row.of_fio().is_some());
    let mut text = String::from(
        "| workload | oca GB/s | nginx GB/s | throughput | oca CPU-s/GB | nginx CPU-s/GB | CPU time | oca p99 us | nginx p99 us |",
    );
    text.push_str(if has_fio {
        " of fio |\n|---|---|---|---|---|---|---|---|---|---|\n"
    } else {
        "\n|---|---|---|---|---|---|---|---|---|\n"
    });
    for row in rows {
        let (Some((throughput, cpu)), Some(oca)) = (row.ratios(), row.oca.last()) else { continue };
        let (Some(fastest), Some(cheapest)) = (row.fastest(), row.cheapest()) else { continue };
        let written = write!(
            text,
            "| {} | {:.2} | {:.2} | {throughput:.2} x | {:.3} | {:.3} | {cpu:.2} x | {} | {} |",
            row.workload,
            oca.gigabytes_per_second,
            fastest.gigabytes_per_second,
            oca.cpu_per_gigabyte,
            cheapest.cpu_per_gigabyte,
            oca.p99,
            fastest.p99
        );
        debug_assert!(written.is_ok());
        if has_fio {
            text.push_str(&row.of_fio().map_or_else(|| "  |".to_owned(), |part| format!(" {:.0} % |", part * 100.0)));
        }
        text.push('\n');
    }
    text
}

/// Puts the tables of the sections that were run into the documents.
pub(crate) fn write(rows: &[Row]) -> Fallible<()> {
    let mut sections: Vec<&str> = rows.iter().map(|row| row.section).collect();
    sections.dedup();
    for section in sections {
        let of: Vec<&Row> = rows.iter().filter(|row| row.section == section).collect();
        let machine = report::machine();
        let text = format!(
            "`{}` on {machine}\n\n{}\n![{section}](plots/{section}.svg)\n\n{}",
            command(),
            short(&of),
            full(&of)
        );
        report::update("docs/performance.md", section, &text)?;
    }
    let of: Vec<&Row> = rows.iter().filter(|row| row.is_short()).collect();
    if rows.iter().any(|row| row.section == "hot") {
        report::update("README.md", "figures", &format!("{}\n`{}` on {}", short(&of), command(), report::machine()))?;
    }
    Ok(())
}
