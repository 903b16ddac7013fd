//! Headless Chromium, driven by WebDriver (W3C) over a bare socket.

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::{Value, json};

use super::{Client, wait_until};

/// One browser window; closed when dropped.
pub(crate) struct Browser {
    driver: Child,
    address: SocketAddr,
    session: String,
    _profile: tempfile::TempDir,
}

impl Browser {
    pub(crate) fn start() -> Self {
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver starts");
        let output = BufReader::new(driver.stdout.take().expect("it is piped"));
        let port = output
            .lines()
            .map_while(Result::ok)
            .find_map(|line| line.strip_suffix('.')?.rsplit_once("successfully on port ")?.1.parse::<u16>().ok())
            .expect("chromedriver says its port");
        let profile = tempfile::Builder::new().prefix("oca-browser-").tempdir().expect("a folder");
        let mut browser =
            Self { driver, address: ([127, 0, 0, 1], port).into(), session: String::new(), _profile: profile };
        let arguments = [
            "--headless=new".to_owned(),
            // Tests run as root in containers, where Chromium's sandbox cannot.
            "--no-sandbox".to_owned(),
            "--disable-gpu".to_owned(),
            "--disable-dev-shm-usage".to_owned(),
            // It keeps to what the test shows it: no look-ups of its maker's services.
            "--no-first-run".to_owned(),
            "--disable-background-networking".to_owned(),
            "--disable-component-update".to_owned(),
            "--disable-sync".to_owned(),
            "--autoplay-policy=no-user-gesture-required".to_owned(),
            "--window-size=1000,1100".to_owned(),
            format!("--user-data-dir={}", browser._profile.path().display()),
        ];
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "goog:chromeOptions": {"args": arguments},
            // Certificates of tests are of an authority that nobody knows.
            "acceptInsecureCerts": true,
        }}});
        let session = browser.command("POST", "/session", &wanted);
        browser.session = session["sessionId"].as_str().expect("a session").to_owned();
        browser.in_session("timeouts", &json!({"script": 30_000, "pageLoad": 30_000}));
        browser
    }

    pub(crate) fn open(&self, url: &str) {
        self.in_session("url", &json!({"url": url}));
    }

    /// Runs a script in the page. It answers by calling `done(value)`.
    pub(crate) fn script(&self, script: &str) -> Value {
        let script = format!("const done = arguments[arguments.length - 1];\n{script}");
        self.in_session("execute/async", &json!({"script": script, "args": []}))
    }

    /// Has it look as on another device (Chrome DevTools Protocol).
    pub(crate) fn emulate(&self, command: &str, parameters: &Value) {
        self.in_session("goog/cdp/execute", &json!({"cmd": command, "params": parameters}));
    }

    /// Runs a script again and again until what it answers is true.
    pub(crate) fn wait_for(&self, what: &str, script: &str) {
        wait_until(what, Duration::from_secs(30), || self.script(script) == true);
    }

    /// A picture of the page into `target/`, for people to look at.
    pub(crate) fn save(&self, name: &str) {
        use base64::Engine as _;
        let picture = base64::engine::general_purpose::STANDARD.decode(self.screenshot()).expect("base64");
        std::fs::write(Path::new(env!("CARGO_TARGET_TMPDIR")).join(name), picture).expect("target is writable");
    }

    /// The page as it looks, as PNG in base64.
    pub(crate) fn screenshot(&self) -> String {
        let shot = self.command("GET", &format!("/session/{}/screenshot", self.session), &Value::Null);
        shot.as_str().expect("a picture").to_owned()
    }

    fn in_session(&self, what: &str, body: &Value) -> Value {
        self.command("POST", &format!("/session/{}/{what}", self.session), body)
    }

    fn command(&self, method: &str, path: &str, body: &Value) -> Value {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let mut client = Client::connect(self.address);
        client.send(
            format!(
                "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
                 Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            )
            .as_bytes(),
        );
        let response = client.read_response(method).expect("chromedriver answers");
        let mut answer: Value = serde_json::from_slice(&response.body).expect("JSON");
        assert_eq!(response.status(), 200, "{method} {path}: {answer}");
        answer["value"].take()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if !self.session.is_empty() && !std::thread::panicking() {
            self.command("DELETE", &format!("/session/{}", self.session), &Value::Null);
        }
        // It may have ended already.
        drop(self.driver.kill());
        drop(self.driver.wait());
    }
}
