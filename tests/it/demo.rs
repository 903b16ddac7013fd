//! `oca demo`, as a person meets it: starts, says where it is, plays in a browser, stops, leaves nothing behind.

use std::{
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Browser, Client, missing_tool, wait_until};

/// A running demo; killed when dropped.
struct Demo {
    child: Child,
    output: BufReader<ChildStdout>,
    scratch: tempfile::TempDir,
    page: String,
}

fn demo(arguments: &[&str]) -> Demo {
    let scratch = tempfile::Builder::new().prefix("oca-test-demo-").tempdir().expect("a folder");
    let mut child = Command::new(env!("CARGO_BIN_EXE_oca"))
        .arg("demo")
        .args(arguments)
        .env("TMPDIR", scratch.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the demo starts");
    let mut output = BufReader::new(child.stdout.take().expect("it is piped"));
    let mut page = None;
    let mut line = String::new();
    while page.is_none() {
        line.clear();
        assert!(output.read_line(&mut line).expect("text") > 0, "the demo ended without naming its page");
        page = line.split_whitespace().find(|word| word.ends_with("/index.html")).map(str::to_owned);
    }
    Demo { child, output, scratch, page: page.expect("the loop ends with it") }
}

impl Demo {
    fn client(&self) -> Client {
        let rest = self.page.strip_prefix("http://").expect("plain HTTP");
        Client::connect(rest.trim_end_matches("/index.html").parse().expect("an address"))
    }

    /// Ends it by a signal; what it still said.
    fn end(&mut self, signal: Signal) -> String {
        kill_process(Pid::from_child(&self.child), signal).expect("it runs");
        let mut status = None;
        wait_until("the demo ends", Duration::from_secs(15), || {
            status = self.child.try_wait().expect("it is our child");
            status.is_some()
        });
        assert!(status.is_some_and(|status| status.success()), "{status:?}");
        let mut said = String::new();
        self.output.read_to_string(&mut said).expect("text");
        said
    }

    /// What lies in the folder for temporary files.
    fn scratch(&self) -> Vec<PathBuf> {
        walkdir::WalkDir::new(self.scratch.path())
            .min_depth(1)
            .into_iter()
            .filter_map(Result::ok)
            .map(walkdir::DirEntry::into_path)
            .collect()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn the_demo_serves_its_page_and_its_videos_and_leaves_nothing_behind() {
    for signal in [Signal::INT, Signal::TERM] {
        let mut demo = demo(&["--listen", "127.0.0.1:0"]);
        let mut client = demo.client();
        assert_eq!(client.get("/index.html").field("content-type"), Some("text/html"));
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/media/progressive.mp4");
        let expected = std::fs::read(file).expect("a fixture");
        assert_eq!(client.get("/progressive.mp4").body, expected);
        let part = client.range("/progressive.mp4", "bytes=1000-1999");
        assert_eq!((part.status(), &part.body[..]), (206, &expected[1000..2000]));
        assert!(part.head.cache_status().contains("hit"));
        assert!(!demo.scratch().is_empty(), "the scratch volume lies there");
        eprintln!("{}", demo.end(signal));
        assert_eq!(demo.scratch(), Vec::<PathBuf>::new());
    }
}

#[test]
fn the_demo_takes_another_port_when_its_own_is_taken() {
    // Whoever holds 8080, this or somebody else, the second demo cannot have it.
    drop(std::net::TcpListener::bind("127.0.0.1:8080").map(Box::new).map(Box::leak));
    let demo = demo(&[]);
    assert!(!demo.page.contains(":8080/"), "{}", demo.page);
    assert_eq!(demo.client().get("/index.html").status(), 200);
}

/// Plays until two seconds have passed, then seeks to 15 and plays on from there.
const PLAY_AND_SEEK: &str = r#"
    const video = document.getElementById("video");
    const reach = (what, from) => new Promise((yes, no) => {
        const look = () => {
            if (video.error) no(new Error(what + ": " + video.error.message));
            if (!video.seeking && video.currentTime >= from && video.readyState >= 3) {
                video.removeEventListener("timeupdate", look);
                yes();
            }
        };
        video.addEventListener("timeupdate", look);
        video.addEventListener("error", look);
        look();
    });
    (async () => {
        await video.play();
        await reach("begin", 1);
        video.currentTime = 15;
        await reach("seek", 16);
        const quality = video.getVideoPlaybackQuality();
        done({ at: video.currentTime, frames: quality.totalVideoFrames, width: video.videoWidth,
               duration: video.duration, rows: document.getElementById("log").rows.length,
               hits: Number(document.getElementById("hits").textContent),
               misses: Number(document.getElementById("misses").textContent) });
    })().catch(error => done({ failed: String(error) }));
"#;

#[test]
fn a_browser_plays_the_demo_and_seeks() {
    if missing_tool("chromedriver") || missing_tool("chromium") {
        return;
    }
    let demo = demo(&["--listen", "127.0.0.1:0"]);
    let browser = Browser::start();
    browser.open(&demo.page);
    for clip in ["mp4", "webm", "cmaf", "mp4"] {
        browser.script(&format!(
            "document.querySelector('[data-clip={clip}]').click();
             const video = document.getElementById('video');
             if (video.readyState >= 1) done(1); else video.addEventListener('loadedmetadata', () => done(1), {{ once: true }});"
        ));
        let played = browser.script(PLAY_AND_SEEK);
        eprintln!("{clip}: {played}");
        assert!(played["failed"].is_null(), "{clip}: {played}");
        assert!(played["at"].as_f64().is_some_and(|at| (16.0..24.5).contains(&at)), "{clip}: {played}");
        assert!(played["frames"].as_f64().is_some_and(|frames| frames >= 25.0), "{clip}: {played}");
        assert_eq!(played["width"], 640, "{clip}: {played}");
        assert!(played["duration"].as_f64().is_some_and(|seconds| (23.9..24.2).contains(&seconds)), "{clip}: {played}");
    }
    save(&browser);
    let counted = browser.script("done([Number(hits.textContent), Number(misses.textContent), log.rows.length])");
    assert!(counted[0].as_u64() > Some(0), "the second time is a hit: {counted}");
    assert!(counted[1].as_u64() > Some(0), "the first time is a miss: {counted}");
}

/// Into `target/`, for people to look at.
fn save(browser: &Browser) {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("demo.png.base64");
    std::fs::write(&file, browser.screenshot()).expect("target is writable");
    let picture = crate::support::run("base64", &["-d", file.to_str().expect("text")]);
    std::fs::write(file.with_file_name("demo.png"), picture).expect("target is writable");
}
