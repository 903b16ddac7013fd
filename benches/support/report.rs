//! Sections of documents that a bench writes, so that no figure stands there that no command makes.

use std::{fs, io, path::Path, process::Command, sync::OnceLock};

use super::cores;

/// Puts `markdown` into section `name` of `document` (a path below the project's folder), in place of what stands there. A section
/// lies between the lines `<!-- begin NAME: made by COMMAND -->` and `<!-- end NAME -->`.
///
/// # Errors
/// The document cannot be read or written, or has no such section.
pub(crate) fn update(document: &str, name: &str, markdown: &str) -> io::Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(document);
    let text = fs::read_to_string(&path)?;
    let made = replaced(&text, name, markdown).ok_or_else(|| {
        io::Error::other(format!("{document} has no section <!-- begin {name}: ... --> ... <!-- end {name} -->"))
    })?;
    fs::write(path, made)
}

fn replaced(text: &str, name: &str, markdown: &str) -> Option<String> {
    let begin = text.find(&format!("<!-- begin {name}:"))?;
    let start = begin + text[begin..].find("-->")? + 3;
    let end = start + text[start..].find(&format!("<!-- end {name} -->"))?;
    Some(format!("{}\n\n{}\n\n{}", &text[..start], markdown.trim(), &text[end..]))
}

/// What the figures were measured on: processor, cores, kernel, time.
pub(crate) fn machine() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map_or("?", |pair| pair.1);
    let cores = cpu.lines().filter(|line| line.starts_with("processor")).count();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let control = fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").unwrap_or_default();
    // As it was when this was first asked for: before anything was measured.
    static LOAD: OnceLock<String> = OnceLock::new();
    let load = LOAD.get_or_init(|| {
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        load.split(' ').nth(1).unwrap_or("?").to_owned()
    });
    let shared = if cores::share_a_core() { ", the load on the server's own core" } else { "" };
    let virtual_machine = if cpu.contains("hypervisor") { ", virtual" } else { "" };
    let now = httpdate::fmt_http_date(std::time::SystemTime::now());
    format!(
        "{model} ({cores} cores{virtual_machine}{shared}), Linux {}, {} congestion control, load {load} over the five minutes before{}; {now}",
        kernel.trim(),
        control.trim(),
        commit()
    )
}

/// What was measured: the commit, and whether the code is another by now; nothing where this is no checkout.
fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(["-C", env!("CARGO_MANIFEST_DIR")]).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short", "HEAD"]) else { return String::new() };
    let changed = git(&["status", "--porcelain", "--", "src", "benches", "Cargo.toml", "Cargo.lock"]);
    let changed = if changed.is_none_or(|list| list.is_empty()) { "" } else { " and changes" };
    format!(", commit {commit}{changed}")
}
