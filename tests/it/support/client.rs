//! An HTTP/1.1 client over a bare socket: sends exactly the bytes it is given, reads exactly what comes back.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use super::tls::server_name;

/// Longest silence that a test waits for.
const PATIENCE: Duration = Duration::from_secs(40);

/// One connection.
pub(crate) struct Client {
    stream: Stream,
    /// Read from the socket and not yet taken.
    ahead: Vec<u8>,
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<rustls::StreamOwned<rustls::ClientConnection, TcpStream>>),
}

impl Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(into),
            Self::Tls(stream) => stream.read(into),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write(bytes),
            Self::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}

/// Status line and header fields as received.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) status: u16,
    /// Names in lower case, in the order of the wire.
    pub(crate) fields: Vec<(String, String)>,
}

/// A whole response.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) head: Head,
    pub(crate) body: Vec<u8>,
}

/// The connection ended before the message did.
pub(crate) struct Cut {
    /// What had come of the part being read.
    pub(crate) received: Vec<u8>,
    /// Whether the peer reset the connection rather than closed it.
    pub(crate) reset: bool,
}

impl std::fmt::Debug for Cut {
    /// Megabytes of content would bury what a failed test has to say.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cut").field("received", &self.received.len()).field("reset", &self.reset).finish()
    }
}

fn open(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The bytes of a request without a body.
pub(crate) fn request(method: &str, path: &str, fields: &[(&str, &str)]) -> Vec<u8> {
    let mut text = format!("{method} {path} HTTP/1.1\r\nHost: test\r\n");
    for (name, value) in fields {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    text.into_bytes()
}

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        Self::try_connect(address).expect("the server accepts connections")
    }

    pub(crate) fn try_connect(address: SocketAddr) -> io::Result<Self> {
        Ok(Self { stream: Stream::Plain(open(address)?), ahead: Vec::new() })
    }

    /// On a socket that was connected in a way of its own.
    pub(crate) fn over(stream: TcpStream) -> Self {
        Self { stream: Stream::Plain(stream), ahead: Vec::new() }
    }

    /// Connects by TLS, to the end of the handshake.
    pub(crate) fn connect_tls(address: SocketAddr, host: &str, config: &Arc<rustls::ClientConfig>) -> io::Result<Self> {
        Self::over_tls(open(address)?, host, config)
    }

    /// As `connect_tls`, on a socket that was connected in a way of its own.
    pub(crate) fn over_tls(socket: TcpStream, host: &str, config: &Arc<rustls::ClientConfig>) -> io::Result<Self> {
        let session = rustls::ClientConnection::new(Arc::clone(config), server_name(host)).map_err(io::Error::other)?;
        let mut stream = rustls::StreamOwned::new(session, socket);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(Self { stream: Stream::Tls(Box::new(stream)), ahead: Vec::new() })
    }

    /// What its TLS has agreed on.
    pub(crate) fn session(&self) -> &rustls::ClientConnection {
        match &self.stream {
            Stream::Plain(_) => panic!("there is no TLS"),
            Stream::Tls(stream) => &stream.conn,
        }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).expect("the request is taken");
    }

    pub(crate) fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Sends a request without a body and reads the response.
    pub(crate) fn ask(&mut self, method: &str, path: &str, fields: &[(&str, &str)]) -> Response {
        self.try_ask(method, path, fields).expect("the response is whole")
    }

    pub(crate) fn try_ask(&mut self, method: &str, path: &str, fields: &[(&str, &str)]) -> Result<Response, Cut> {
        if self.try_send(&request(method, path, fields)).is_err() {
            return Err(Cut { received: Vec::new(), reset: true });
        }
        self.read_response(method)
    }

    pub(crate) fn get(&mut self, path: &str) -> Response {
        self.ask("GET", path, &[])
    }

    pub(crate) fn range(&mut self, path: &str, range: &str) -> Response {
        self.ask("GET", path, &[("Range", range)])
    }

    pub(crate) fn read_response(&mut self, method: &str) -> Result<Response, Cut> {
        let head = self.read_head()?;
        let body = self.read_body(&head, method)?;
        Ok(Response { head, body })
    }

    /// Reads one response's head.
    pub(crate) fn read_head(&mut self) -> Result<Head, Cut> {
        let end = loop {
            if let Some(at) = self.ahead.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            assert!(self.ahead.len() < 1 << 20, "a head without an end: {:?}", String::from_utf8_lossy(&self.ahead));
            self.more()?;
        };
        let text: Vec<u8> = self.ahead.drain(..end).collect();
        let text = String::from_utf8(text).expect("the head is text");
        let mut lines = text.split("\r\n");
        let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.")).expect("a status line");
        let status = status[2..5].parse().expect("a status code");
        let fields = lines
            .take_while(|line| !line.is_empty())
            .map(|line| {
                let (name, value) = line.split_once(':').expect("a header field");
                (name.to_ascii_lowercase(), value.trim().to_owned())
            })
            .collect();
        Ok(Head { status, fields })
    }

    /// Reads the body that belongs to `head`, framed as RFC 9112 6.3 says.
    pub(crate) fn read_body(&mut self, head: &Head, method: &str) -> Result<Vec<u8>, Cut> {
        if method == "HEAD" || head.status == 304 || head.status == 204 {
            return Ok(Vec::new());
        }
        if head.is("transfer-encoding", "chunked") {
            return self.read_chunks();
        }
        if let Some(length) = head.field("content-length") {
            return self.take(length.parse().expect("a length"));
        }
        let mut received = std::mem::take(&mut self.ahead);
        let ended = self.stream.read_to_end(&mut received);
        if ended.is_err() { Err(Cut { received, reset: true }) } else { Ok(received) }
    }

    fn read_chunks(&mut self) -> Result<Vec<u8>, Cut> {
        let mut body = Vec::new();
        let outcome = loop {
            let length = match self.read_line() {
                Ok(line) => {
                    usize::from_str_radix(line.split(';').next().unwrap_or(&line), 16).expect("a chunk's length")
                }
                Err(cut) => break Err(cut),
            };
            match self.take(length + 2) {
                Ok(chunk) => body.extend_from_slice(&chunk[..length]),
                Err(cut) => {
                    body.extend_from_slice(&cut.received[..cut.received.len().min(length)]);
                    break Err(cut);
                }
            }
            if length == 0 {
                break Ok(());
            }
        };
        match outcome {
            Ok(()) => Ok(body),
            Err(cut) => Err(Cut { received: body, reset: cut.reset }),
        }
    }

    fn read_line(&mut self) -> Result<String, Cut> {
        loop {
            if let Some(at) = self.ahead.windows(2).position(|two| two == b"\r\n") {
                let line: Vec<u8> = self.ahead.drain(..at + 2).collect();
                return Ok(String::from_utf8_lossy(&line[..at]).into_owned());
            }
            self.more()?;
        }
    }

    /// Takes `length` bytes.
    pub(crate) fn take(&mut self, length: usize) -> Result<Vec<u8>, Cut> {
        let already = self.ahead.len().min(length);
        let mut bytes: Vec<u8> = self.ahead.drain(..already).collect();
        bytes.resize(length, 0);
        let mut filled = already;
        while filled < length {
            match self.stream.read(&mut bytes[filled..]) {
                Ok(0) => {
                    bytes.truncate(filled);
                    return Err(Cut { received: bytes, reset: false });
                }
                Ok(count) => filled += count,
                Err(error) => {
                    bytes.truncate(filled);
                    return Err(Cut { received: bytes, reset: is_reset(&error) });
                }
            }
        }
        Ok(bytes)
    }

    /// Reads until the server closes; what came.
    pub(crate) fn until_closed(&mut self) -> Vec<u8> {
        let mut received = std::mem::take(&mut self.ahead);
        if let Err(error) = self.stream.read_to_end(&mut received) {
            assert!(is_reset(&error), "the connection is still open: {error}");
        }
        received
    }

    fn more(&mut self) -> Result<(), Cut> {
        let mut chunk = [0; 16 << 10];
        // With a timeout of its own, a read does not go on by itself after the machine was stopped for a moment (`signal(7)`).
        let read = loop {
            match self.stream.read(&mut chunk) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        match read {
            Ok(0) => Err(Cut { received: std::mem::take(&mut self.ahead), reset: false }),
            Ok(count) => {
                self.ahead.extend_from_slice(&chunk[..count]);
                Ok(())
            }
            Err(error) => Err(Cut { received: std::mem::take(&mut self.ahead), reset: is_reset(&error) }),
        }
    }

    /// Goes on with other keys, and asks the server to (RFC 8446, 4.6.3).
    pub(crate) fn refresh_keys(&mut self) {
        let Stream::Tls(stream) = &mut self.stream else { panic!("there is no TLS") };
        stream.conn.refresh_traffic_keys().expect("the handshake is over");
        stream.flush().expect("it is taken");
    }

    /// Says that nothing more will be sent.
    pub(crate) fn finish(&mut self) {
        let socket = match &mut self.stream {
            Stream::Plain(socket) => socket,
            Stream::Tls(stream) => {
                stream.conn.send_close_notify();
                stream.flush().expect("it is taken");
                &mut stream.sock
            }
        };
        // It may be closed already.
        drop(socket.shutdown(Shutdown::Write));
    }
}

/// Panics on a timeout: no test may take silence for an answer.
fn is_reset(error: &io::Error) -> bool {
    assert!(
        !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
        "nothing came for {PATIENCE:?}"
    );
    true
}

impl Head {
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn is(&self, name: &str, value: &str) -> bool {
        self.field(name).is_some_and(|found| found.eq_ignore_ascii_case(value))
    }

    /// `Cache-Status` (RFC 9211), or nothing.
    pub(crate) fn cache_status(&self) -> &str {
        self.field("cache-status").unwrap_or("")
    }
}

/// One part of a `multipart/byteranges` body.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) content_range: String,
    pub(crate) content_type: Option<String>,
    pub(crate) body: Vec<u8>,
}

impl Response {
    pub(crate) fn status(&self) -> u16 {
        self.head.status
    }

    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.head.field(name)
    }

    /// Takes a `multipart/byteranges` body apart (RFC 9110, 14.6).
    pub(crate) fn parts(&self) -> Vec<Part> {
        let boundary = self
            .field("content-type")
            .and_then(|value| value.strip_prefix("multipart/byteranges; boundary="))
            .expect("a multipart media type")
            .trim_matches('"');
        let (open, close) = (format!("--{boundary}\r\n"), format!("--{boundary}--"));
        let mut parts = Vec::new();
        let mut rest = &self.body[..];
        loop {
            rest = rest.strip_prefix(b"\r\n").unwrap_or(rest);
            if rest.starts_with(close.as_bytes()) {
                return parts;
            }
            rest = rest.strip_prefix(open.as_bytes()).expect("a delimiter");
            let head_end = rest.windows(4).position(|four| four == b"\r\n\r\n").expect("a part's head") + 4;
            let head = std::str::from_utf8(&rest[..head_end]).expect("text");
            let field = |wanted: &str| {
                head.lines()
                    .filter_map(|line| line.split_once(':'))
                    .find_map(|(name, value)| name.eq_ignore_ascii_case(wanted).then(|| value.trim().to_owned()))
            };
            let content_range = field("content-range").expect("a Content-Range");
            let (start, end) = content_range
                .strip_prefix("bytes ")
                .and_then(|range| range.split('/').next())
                .and_then(|range| range.split_once('-'))
                .expect("a range");
            let (start, end): (usize, usize) = (start.parse().expect("a number"), end.parse().expect("a number"));
            let length = end - start + 1;
            let body = rest[head_end..head_end + length].to_vec();
            parts.push(Part { content_range, content_type: field("content-type"), body });
            rest = &rest[head_end + length..];
        }
    }
}
