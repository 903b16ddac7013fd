//! An address that leads to another one, which may be told later, change or be closed: how boxes know each other before they run.

use std::{
    io,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread,
};

use parking_lot::Mutex;

/// A door; it stays until the test's process ends.
pub(crate) struct Door {
    address: SocketAddr,
    inside: Arc<Mutex<Inside>>,
}

#[derive(Default)]
struct Inside {
    /// Where it leads; nowhere while it is closed.
    to: Option<SocketAddr>,
    passing: Vec<TcpStream>,
}

impl Door {
    /// A closed one.
    pub(crate) fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let inside = Arc::<Mutex<Inside>>::default();
        let state = Arc::clone(&inside);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // Closed: whoever comes sees the connection end at once.
                let Some(to) = state.lock().to else { continue };
                let Ok(server) = TcpStream::connect(to) else { continue };
                drop(join(&client, &server, &state));
            }
        });
        Self { address, inside }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    pub(crate) fn open(&self, to: SocketAddr) {
        self.inside.lock().to = Some(to);
    }

    /// Lets nobody through any more, and ends what is going on.
    pub(crate) fn close(&self) {
        let mut inside = self.inside.lock();
        inside.to = None;
        for stream in inside.passing.drain(..) {
            // It may have ended already.
            drop(stream.shutdown(Shutdown::Both));
        }
    }
}

fn join(client: &TcpStream, server: &TcpStream, state: &Mutex<Inside>) -> io::Result<()> {
    for stream in [client, server] {
        stream.set_nodelay(true)?;
    }
    for (mut from, mut to) in [(client.try_clone()?, server.try_clone()?), (server.try_clone()?, client.try_clone()?)] {
        thread::spawn(move || {
            // Whoever hangs up ends both ways.
            drop(io::copy(&mut from, &mut to));
            drop(to.shutdown(Shutdown::Both));
        });
    }
    state.lock().passing.extend([client.try_clone()?, server.try_clone()?]);
    Ok(())
}
