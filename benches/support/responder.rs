//! The ceiling: the least that can answer a range request. One thread, epoll, open files, `sendfile`; no catalog, no log, no
//! checks, no deadlines. What a server needs beyond this is its own work; what this needs is the kernel's.

use std::{
    fs::File,
    io::{self, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use rustix::{
    event::epoll,
    io::Errno,
    net::{RecvFlags, SendFlags, recv, send},
};

use super::{Fallible, cores};

struct Connection {
    stream: TcpStream,
    file: usize,
    at: u64,
    left: u64,
}

/// What it answers with: parts of one file whatever is asked for, or the files `0.mp4`, `1.mp4` ... of a folder, which stay open.
struct Files {
    folder: Option<PathBuf>,
    opened: Vec<Option<(File, u64)>>,
}

impl Files {
    fn of(path: &Path) -> io::Result<Self> {
        if path.is_dir() {
            return Ok(Self { folder: Some(path.into()), opened: Vec::new() });
        }
        Ok(Self { folder: None, opened: vec![Some(opened(path)?)] })
    }

    /// The number and the length of what a request is for.
    fn find(&mut self, request: &str) -> io::Result<(usize, u64)> {
        let mut number = 0;
        if let Some(folder) = &self.folder {
            let name = request.split_once('/').and_then(|(_, rest)| Some(rest.split_once(".mp4")?.0));
            number = name.and_then(|name| name.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
            if self.opened.len() <= number {
                self.opened.resize_with(number + 1, || None);
            }
            if self.opened[number].is_none() {
                self.opened[number] = Some(opened(&folder.join(format!("{number}.mp4")))?);
            }
        }
        self.opened[number].as_ref().map(|(_, length)| (number, *length)).ok_or(io::ErrorKind::NotFound.into())
    }
}

fn opened(path: &Path) -> io::Result<(File, u64)> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    Ok((file, length))
}

/// A running responder; ended when dropped.
pub(crate) struct Responder {
    child: Child,
    pub(crate) http: SocketAddr,
}

impl Responder {
    /// Starts this very program again, to answer with parts of a file, or of the files of a folder. `send_buffer` bounds what is in the kernel for one connection:
    /// with large ranges that keeps it in the processor's cache.
    pub(crate) fn start(file: &Path, send_buffer: Option<usize>) -> Fallible<Self> {
        let http = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(format!("--respond-at={http}")).arg(format!("--respond-with={}", file.display()));
        command.args(send_buffer.map(|bytes| format!("--respond-send-buffer={bytes}"))).stdout(Stdio::null());
        let child = cores::spawn_server(&mut command)?;
        for _ in 0..500 {
            if TcpStream::connect(http).is_ok() {
                return Ok(Self { child, http });
            }
            std::thread::park_timeout(std::time::Duration::from_millis(10));
        }
        Err("the responder does not start".into())
    }

    /// Its process.
    pub(crate) fn ids(&self) -> Vec<u32> {
        vec![self.child.id()]
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Answers until it is killed.
///
/// # Errors
/// Whatever goes wrong ends it.
pub(crate) fn respond(address: SocketAddr, path: &Path, send_buffer: Option<usize>) -> io::Result<()> {
    // A folder may have more files than a shell lets a program open.
    rlimit::increase_nofile_limit(u64::MAX)?;
    let mut files = Files::of(path)?;
    let listener = TcpListener::bind(address)?;
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&poll, &listener, epoll::EventData::new_u64(u64::MAX), epoll::EventFlags::IN)?;
    let mut connections: Vec<Option<Connection>> = Vec::new();
    let mut events = Vec::with_capacity(1024);
    loop {
        events.clear();
        epoll::wait(&poll, rustix::buffer::spare_capacity(&mut events), None)?;
        for event in &events {
            let number = event.data.u64();
            if number == u64::MAX {
                let stream = listener.accept()?.0;
                stream.set_nonblocking(true)?;
                stream.set_nodelay(true)?;
                if let Some(bytes) = send_buffer {
                    rustix::net::sockopt::set_socket_send_buffer_size(&stream, bytes)?;
                }
                let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
                epoll::add(&poll, &stream, epoll::EventData::new_u64(connections.len() as u64), flags)?;
                connections.push(Some(Connection { stream, file: 0, at: 0, left: 0 }));
                continue;
            }
            let place = &mut connections[number as usize];
            if place.as_mut().is_some_and(|connection| connection.go_on(&mut files).is_err()) {
                *place = None;
            }
        }
    }
}

impl Connection {
    fn go_on(&mut self, files: &mut Files) -> io::Result<()> {
        loop {
            while self.left > 0 {
                let Some((file, _)) = &files.opened[self.file] else { return Err(io::ErrorKind::NotFound.into()) };
                let sent =
                    rustix::fs::sendfile(&self.stream, file, Some(&mut self.at), self.left.min(1 << 20) as usize);
                match sent {
                    Err(Errno::AGAIN) => return Ok(()),
                    sent => self.left -= sent? as u64,
                }
            }
            let mut request = [0_u8; 1024];
            let count = match recv(&self.stream, &mut request[..], RecvFlags::empty()) {
                Err(Errno::AGAIN) => return Ok(()),
                count => count?.0,
            };
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let text = std::str::from_utf8(&request[..count]).map_err(io::Error::other)?;
            let range = text.split_once("bytes=").and_then(|(_, rest)| rest.split_once("\r\n")?.0.split_once('-'));
            let range = range.and_then(|(first, last)| Some((first.parse().ok()?, last.parse::<u64>().ok()?)));
            let (file, length) = files.find(text)?;
            let (first, last) = range.unwrap_or((0, length - 1));
            (self.file, self.at, self.left) = (file, first, last + 1 - first);
            let mut head = [0_u8; 256];
            let mut rest = &mut head[..];
            match range {
                Some(_) => {
                    write!(rest, "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {first}-{last}/{length}\r\n")
                }
                None => write!(rest, "HTTP/1.1 200 OK\r\n"),
            }?;
            write!(rest, "Content-Length: {}\r\n\r\n", self.left)?;
            let unused = rest.len();
            send(&self.stream, &head[..head.len() - unused], SendFlags::NOSIGNAL | SendFlags::MORE)?;
        }
    }
}
