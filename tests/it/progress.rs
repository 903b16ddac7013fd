//! `oca fill` on a terminal: a pseudo-terminal of util-linux' `script`, read as a person sees it.

use std::{
    io::Read as _,
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::Duration,
};

use parking_lot::Mutex;

use crate::{
    manifests::Plane,
    nightly::sha256,
    support::{Fault, Origin, Setup, missing_tool, wait_until},
};

const PATIENCE: Duration = Duration::from_secs(60);

/// A command on a terminal of 80 columns.
struct Terminal {
    child: Child,
    seen: Arc<Mutex<String>>,
}

impl Terminal {
    fn run(arguments: &str) -> Self {
        let command = format!("stty cols 80 rows 24; exec '{}' {arguments}", env!("CARGO_BIN_EXE_oca"));
        let mut child = Command::new("script")
            .args(["-q", "-e", "-f", "-c", &command, "/dev/null"])
            .env("TERM", "xterm")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it runs");
        let (mut output, seen) = (child.stdout.take().expect("piped"), Arc::<Mutex<String>>::default());
        let into = Arc::clone(&seen);
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = output.read(&mut buffer) {
                into.lock().push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
        });
        Self { child, seen }
    }

    /// What was drawn so far, without the codes that move the cursor.
    fn lines(&self) -> Vec<String> {
        let plain = regex::Regex::new("\x1b\\[[0-9;?]*[A-Za-z]")
            .expect("valid")
            .replace_all(&self.seen.lock(), "\n")
            .into_owned();
        // The bar fills its line, so that nothing else ends it.
        let plain = plain.replace('[', "\n[").replace("manifest ", "\nmanifest ");
        plain.split(['\r', '\n']).map(str::trim_end).filter(|line| !line.is_empty()).map(Into::into).collect()
    }

    fn until(&self, what: &str, is_there: impl Fn(&str) -> bool) {
        wait_until(what, PATIENCE, || self.lines().iter().any(|line| is_there(line)));
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended.
        drop(self.child.kill());
        drop(self.child.wait());
        if thread::panicking() {
            let lines = self.lines();
            eprintln!("--- the terminal\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
        }
    }
}

#[test]
fn bars_show_bytes_rate_time_left_and_failures() {
    if missing_tool("script") {
        return;
    }
    let (plane, origin) = (Plane::new(), Origin::start());
    let content = origin.publish_new("/long.mp4", 3, 64 << 20);
    // A few hundred KiB in a second, on any machine.
    origin.fail("/long.mp4", Fault::Trickle(2048), 1000);
    let assets = format!(
        "{{\"key\": \"long.mp4\", \"length\": {}, \"sha256\": \"{}\"}}, {{\"key\": \"gone.mp4\", \"length\": 9, \"sha256\": \"{}\"}}",
        content.length,
        sha256(&content.whole()),
        sha256(b"gone")
    );
    let file = plane.write(1, &assets);
    plane.publish(&file);
    let appliance = Setup::new(&origin).tables(&plane.control(&plane.by_file(), "")).start();
    wait_until("manifest in force", PATIENCE, || appliance.metric("oca_fill_wanted_assets", "") == 2.0);
    let terminal = Terminal::run(&format!("fill --now --admin {}", appliance.admin_url()));
    terminal.until("a failure", |line| line.contains("failed: gone.mp4: not_found"));
    let bar = r"^\[[=> ]+\] [0-9.]+ (B|KiB|MiB)/64\.00 MiB \([0-9]+ %\), [1-9][0-9.]* (B|KiB|MiB)/s, .+ left";
    let bar = regex::Regex::new(bar).expect("valid");
    terminal.until("the bar", |line| bar.is_match(line));
    terminal.until("its outline", |line| line.starts_with("manifest 1: 0/2 assets, 1 in work, 1 failed, "));
    assert!(
        terminal.lines().iter().all(|line| line.chars().count() <= 80),
        "no line is broken: {:#?}",
        terminal.lines()
    );

    drop(terminal);
    let told = Command::new(env!("CARGO_BIN_EXE_oca")).args(["fill", "--admin", &appliance.admin_url()]).output();
    let told = String::from_utf8(told.expect("it runs").stdout).expect("text");
    assert!(told.starts_with("manifest 1: 0/2 assets, ") && told.contains("failed: gone.mp4: not_found"), "{told}");
}

#[test]
fn when_all_is_there_the_bar_goes_and_one_line_stays() {
    if missing_tool("script") {
        return;
    }
    let (plane, origin) = (Plane::new(), Origin::start());
    let content = origin.publish_new("/a.mp4", 3, 1 << 20);
    let digest = sha256(&content.whole());
    let file =
        plane.write(4, &format!("{{\"key\": \"a.mp4\", \"length\": {}, \"sha256\": \"{digest}\"}}", content.length));
    plane.publish(&file);
    let appliance = Setup::new(&origin).tables(&plane.control(&plane.by_file(), "")).start();
    wait_until("manifest in force", PATIENCE, || appliance.metric("oca_fill_wanted_assets", "") == 1.0);
    let mut terminal = Terminal::run(&format!("fill --now --admin {}", appliance.admin_url()));
    let mut ended = None;
    wait_until("its end", PATIENCE, || {
        ended = terminal.child.try_wait().expect("it is our child");
        ended.is_some()
    });
    assert_eq!(ended.and_then(|status| status.code()), Some(0));
    terminal.until("the last line", |line| line.starts_with("manifest 4: 1/1 assets, 1.00 MiB/1.00 MiB (100 %), "));
    assert_eq!(terminal.lines().last().map(|line| line.starts_with("manifest 4: 1/1 assets, 1.00")), Some(true));
}
