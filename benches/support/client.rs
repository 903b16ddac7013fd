//! One connection, one request at a time.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

/// A client that drops bodies in the kernel (`MSG_TRUNC`, `tcp(7)`), so that it does not become what is measured.
#[derive(Debug)]
pub(crate) struct Client {
    stream: TcpStream,
    nowhere: Vec<u8>,
}

impl Client {
    /// Connects.
    pub(crate) fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(Self { stream, nowhere: vec![0; 1 << 16] })
    }

    /// Asks for a range, or for everything, and takes the response; gives the body's length.
    pub(crate) fn fetch(&mut self, path: &str, range: Option<(u64, u64)>) -> io::Result<u64> {
        let length = self.ask(path, range)?;
        let mut left = length;
        while left > 0 {
            left -= self.take(left)?;
        }
        Ok(length)
    }

    /// Asks for a range, or for everything; gives the length of the body, which is yet to be taken.
    pub(crate) fn ask(&mut self, path: &str, range: Option<(u64, u64)>) -> io::Result<u64> {
        let range = range.map(|(start, end)| format!("Range: bytes={start}-{}\r\n", end - 1)).unwrap_or_default();
        self.stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: bench\r\n{range}\r\n").as_bytes())?;
        let mut head = Vec::with_capacity(2048);
        let end = loop {
            let mut piece = [0_u8; 1024];
            // Looked at without taking, so that no byte of the body is taken with the head.
            let seen = rustix::net::recv(&self.stream, &mut piece[..], rustix::net::RecvFlags::PEEK)?.0;
            if seen == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let before = head.len();
            head.extend_from_slice(&piece[..seen]);
            let end = head.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4);
            let take = end.unwrap_or(head.len()) - before;
            self.stream.read_exact(&mut piece[..take])?;
            head.truncate(before + take);
            if let Some(end) = end {
                break end;
            }
        };
        let text = String::from_utf8_lossy(&head[..end]).to_ascii_lowercase();
        if !text.starts_with("http/1.1 20") {
            return Err(io::Error::other(text.lines().next().unwrap_or_default().to_owned()));
        }
        let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok());
        length.ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Takes the next bytes of a body of which there are `left`; gives how many.
    pub(crate) fn take(&mut self, left: u64) -> io::Result<u64> {
        let room = usize::try_from(left).unwrap_or(usize::MAX).min(self.nowhere.len());
        let (_, dropped) = rustix::net::recv(&self.stream, &mut self.nowhere[..room], rustix::net::RecvFlags::TRUNC)?;
        if dropped == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(dropped as u64)
    }
}
