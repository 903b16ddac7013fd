//! The programs people use: ffprobe, ffmpeg, curl, wget, aria2c, wrk. What comes through the appliance is what lies in
//! `fixtures/`, frame by frame.

use std::{fs, path::PathBuf};

use crate::support::{Appliance, Authority, Browser, Content, KeyKind, Origin, Published, Setup, missing_tool, run};

const CLIPS: [&str; 5] = ["progressive.mp4", "index-last.mp4", "clip.webm", "cmaf/master.m3u8", "cmaf/manifest.mpd"];

fn media() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/media")
}

fn local(clip: &str) -> String {
    media().join(clip).to_str().expect("text").to_owned()
}

fn box_with_media() -> (Origin, Appliance) {
    let origin = Origin::start();
    origin.publish_folder(&media());
    let appliance = Setup::new(&origin).start();
    (origin, appliance)
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).expect("text")
}

/// Checksums of every decoded frame of every stream, from `seek` seconds on.
fn frames(input: &str, seek: &str) -> String {
    let (from, output) = (["-ss", seek], ["-map", "0", "-t", "6", "-f", "framemd5", "-"]);
    let mut arguments = vec!["-v", "error", "-nostdin"];
    if input.ends_with(".m3u8") {
        // ffmpeg 5.1 loses the initialization segment when it seeks in HLS of fragmented MP4, from a local file too: there it
        // must skip what comes before.
        arguments.extend(["-i", input]);
        arguments.extend(from);
    } else {
        arguments.extend(from);
        arguments.extend(["-i", input]);
    }
    arguments.extend(output);
    text(run("ffmpeg", &arguments))
}

#[test]
fn ffprobe_finds_the_same_streams() {
    if missing_tool("ffprobe") {
        return;
    }
    let (_origin, appliance) = box_with_media();
    for clip in CLIPS {
        let streams = |input: &str| text(run("ffprobe", &["-v", "error", "-show_streams", "-of", "json", input]));
        let expected = streams(&local(clip));
        assert!(expected.contains("codec_name"));
        assert_eq!(streams(&appliance.url(&format!("/{clip}"))), expected, "{clip}");
    }
}

#[test]
fn ffmpeg_decodes_the_same_frames_cold_and_hot_with_seeks() {
    if missing_tool("ffmpeg") {
        return;
    }
    let (_origin, appliance) = box_with_media();
    for clip in CLIPS {
        let url = appliance.url(&format!("/{clip}"));
        for seek in ["15.1", "0", "7.3"] {
            let expected = frames(&local(clip), seek);
            assert!(expected.lines().filter(|line| !line.starts_with('#')).count() > 400, "{clip} has frames");
            assert!(frames(&url, seek) == expected, "{clip} from {seek} s, as it comes in: other frames");
        }
        assert!(frames(&url, "0") == frames(&local(clip), "0"), "{clip}, held: other frames");
    }
}

#[test]
fn ffmpeg_seeks_by_range_and_does_not_fetch_what_it_skips() {
    if missing_tool("ffmpeg") {
        return;
    }
    let (origin, appliance) = box_with_media();
    // The index lies at the end: a player that could not seek would have to read everything first.
    assert!(!frames(&appliance.url("/index-last.mp4"), "20").is_empty());
    let seen = origin.seen("/index-last.mp4");
    assert!(seen.iter().all(|seen| seen.field("range").is_some()), "{seen:?}");
}

/// Twenty MiB that can be computed, and a folder to download into.
fn download() -> (Origin, Appliance, Content, tempfile::TempDir) {
    let origin = Origin::start();
    let content = origin.publish_new("/film.mp4", 9, 20 << 20);
    let appliance = Setup::new(&origin).start();
    (origin, appliance, content, tempfile::tempdir().expect("a folder"))
}

fn assert_file(path: &std::path::Path, content: &Content) {
    let bytes = fs::read(path).expect("it was downloaded");
    assert_eq!(bytes.len() as u64, content.length);
    content.assert_is(0, &bytes);
}

#[test]
fn curl_takes_ranges_and_resumes() {
    if missing_tool("curl") {
        return;
    }
    let (_origin, appliance, content, folder) = download();
    let url = appliance.url("/film.mp4");
    content.assert_is(5_000_000, &run("curl", &["-sSf", "-r", "5000000-6000000", &url]));
    assert_eq!(run("curl", &["-sSf", "-r", "-100", &url]), content.bytes(content.length - 100, content.length));
    let file = folder.path().join("film.mp4");
    fs::write(&file, content.bytes(0, 7_654_321)).expect("a begun download");
    run("curl", &["-sSf", "-C", "-", "-o", file.to_str().expect("text"), &url]);
    assert_file(&file, &content);
}

#[test]
fn wget_resumes() {
    if missing_tool("wget") {
        return;
    }
    let (_origin, appliance, content, folder) = download();
    let file = folder.path().join("film.mp4");
    fs::write(&file, content.bytes(0, 7_654_321)).expect("a begun download");
    run("wget", &["-q", "-c", "-O", file.to_str().expect("text"), &appliance.url("/film.mp4")]);
    assert_file(&file, &content);
}

#[test]
fn aria2c_downloads_in_eight_segments_at_once() {
    if missing_tool("aria2c") {
        return;
    }
    let (origin, appliance, content, folder) = download();
    let into = format!("--dir={}", folder.path().display());
    run("aria2c", &["-q", "-x8", "-s8", "-k1M", "--file-allocation=none", &into, &appliance.url("/film.mp4")]);
    assert_file(&folder.path().join("film.mp4"), &content);
    assert!(origin.sent("/film.mp4") <= content.length * 5 / 4, "{} bytes fetched", origin.sent("/film.mp4"));
}

#[test]
fn wrk_finds_no_errors() {
    if missing_tool("wrk") {
        return;
    }
    let (_origin, appliance, content, _folder) = download();
    content.assert_is(0, &appliance.get("/film.mp4").body);
    let said = text(run("wrk", &["-t1", "-c16", "-d1s", "-H", "Range: bytes=0-65535", &appliance.url("/film.mp4")]));
    assert!(said.contains("Requests/sec"), "{said}");
    assert!(!said.contains("Non-2xx") && !said.contains("Socket errors"), "{said}");
}

/// An appliance with the videos behind TLS, as `localhost`.
fn box_with_tls(protocols: &str) -> (Origin, Authority, Appliance) {
    let (origin, authority) = (Origin::start(), Authority::new());
    origin.publish_folder(&media());
    let issued = authority.issue("localhost", &["localhost"], (KeyKind::Ecdsa, 2040));
    let appliance = Setup::new(&origin).tls(&issued, &[], &format!("protocols = {protocols}")).start();
    (origin, authority, appliance)
}

#[test]
fn ffmpeg_decodes_the_same_frames_by_tls() {
    if missing_tool("ffmpeg") {
        return;
    }
    let (_origin, authority, appliance) = box_with_tls("[\"http/1.1\", \"h2\"]");
    let root = authority.root();
    let root = root.to_str().expect("text");
    for clip in ["progressive.mp4", "index-last.mp4", "clip.webm", "cmaf/master.m3u8"] {
        let url = format!("https://localhost:{}/{clip}", appliance.https().port());
        let decode = |before: &[&str], input: &str| {
            let after = ["-i", input, "-map", "0", "-t", "6", "-f", "framemd5", "-"];
            text(run("ffmpeg", &[&["-v", "error", "-nostdin"], before, &after[..]].concat()))
        };
        let expected = decode(&[], &local(clip));
        assert!(expected.lines().filter(|line| !line.starts_with('#')).count() > 400, "{clip} has frames");
        let got = decode(&["-tls_verify", "1", "-ca_file", root], &url);
        assert!(got == expected, "{clip}: other frames");
    }
}

#[test]
fn a_browser_plays_by_tls_and_by_each_protocol() {
    if missing_tool("chromedriver") || missing_tool("chromium") {
        return;
    }
    for (protocols, expected) in [("[\"http/1.1\", \"h2\"]", "http/1.1"), ("[\"h2\", \"http/1.1\"]", "h2")] {
        let (origin, _authority, appliance) = box_with_tls(protocols);
        let page = Published::bytes(b"<!doctype html><video id=video muted src=/progressive.mp4></video>".to_vec());
        origin.publish("/page.html", page.field("Content-Type", "text/html"));
        let browser = Browser::start();
        browser.open(&format!("https://localhost:{}/page.html", appliance.https().port()));
        let played = browser.script(
            r#"
            const reach = from => new Promise((yes, no) => {
                const look = () => {
                    if (video.error) no(new Error(video.error.message));
                    if (!video.seeking && video.currentTime >= from && video.readyState >= 3) yes();
                };
                ["timeupdate", "seeked", "error"].forEach(event => video.addEventListener(event, look));
            });
            (async () => {
                await video.play();
                await reach(1);
                video.currentTime = 15;
                await reach(16);
                const got = performance.getEntriesByName(location.href)[0].nextHopProtocol;
                done({ at: video.currentTime, width: video.videoWidth, protocol: got });
            })().catch(error => done({ failed: String(error) }));
            "#,
        );
        assert!(played["failed"].is_null(), "{played}");
        assert!(played["at"].as_f64().is_some_and(|at| at >= 16.0), "{played}");
        assert_eq!((&played["width"], &played["protocol"]), (&640.into(), &expected.into()), "{played}");
        assert!(appliance.metric("oca_sent_bytes_total", "path=\"encrypted\"") > 100_000.0);
    }
}
