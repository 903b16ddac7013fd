//! The listener for operators and their monitoring: `/live`, `/ready`, `/status`, `/metrics`, a page for browsers, and commands below
//! `/v1/`.
//!
//! accept -> `places` (bounded; who does nothing gives way) -> TLS (where it is configured) -> hyper -> `guard` (who may ask for what)
//!     -> routes -> what the appliance says of itself ([`Subject`])
//!               -> `command` (bounded body, JSON) -> what it does ([`Subject`] again)
//!
//! A page is a line in `routes`; a command is that and a method of [`Subject`] that takes a checked order, and answers JSON or why not
//! ([`Refused`]).
//!
//! On the small runtime, so that nobody who looks can slow a viewer. On loopback unless the operator says otherwise, and then only
//! for who proves to be one. A route needs no check of its own: the guard stands over all of them.

mod command;
mod config;
mod guard;
mod history;
mod manifest;
pub mod page;
mod places;
mod purge;
mod report;
mod routes;
mod tokens;

use std::{
    future::Future,
    io,
    net::{SocketAddr, TcpListener as StdListener},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes, HttpBody},
    extract::{Request, State},
    middleware::{Next, from_fn_with_state},
    response::Response,
};
pub use command::{Refused, Why};
pub use config::Config;
use guard::Peer;
pub use guard::{Caller, Guard, GuardError, KnownBy, Prepared as PreparedGuard};
pub use history::{History, SAMPLED_EVERY, Sample};
use http_body::{Frame, SizeHint};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
pub use purge::PurgeOrder;
pub use report::ReportWanted;
use serde_json::Value;
pub use tokens::{Tokens, TokensError};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
};

use self::places::{Busy, Place, Places};
use crate::{
    control::Control,
    net::listener::{self, Inherited},
};

/// How long clients may take.
#[derive(Clone, Copy)]
struct Patience {
    /// Longest wait for the head of a request, and between two of a connection.
    head: Duration,
    /// After this a connection takes no further request.
    connection: Duration,
    /// Longest that its last answer may then take to be read.
    last_answer: Duration,
}

const PATIENCE: Patience = Patience {
    head: Duration::from_secs(10),
    connection: Duration::from_secs(60),
    last_answer: Duration::from_secs(10),
};
/// Rest after the system has run out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What can be asked of an appliance.
pub trait Subject: Send + Sync + 'static {
    /// Whether a viewer who comes now would be served, and how it is, as JSON.
    fn ready(&self) -> (bool, Value);

    /// Everything of note, as JSON.
    fn status(&self) -> Value;

    /// Metrics in Prometheus' text format.
    fn metrics(&self) -> String;

    /// The last minutes in numbers, and what comes next.
    fn history(&self) -> Arc<History>;

    /// Where manifests are taken in; `None`: nowhere.
    fn control(&self) -> Option<Arc<Control>> {
        None
    }

    /// A report as steering services get it. Blocks.
    fn report(&self, wanted: &ReportWanted) -> Vec<u8>;

    /// Has viewers sent elsewhere, and serves on; tells how that stands.
    ///
    /// # Errors
    /// It does not serve yet.
    fn drain(&self) -> Result<Value, Refused>;

    /// Takes a drain back; tells how that stands.
    ///
    /// # Errors
    /// It is about to stop.
    fn undrain(&self) -> Result<Value, Refused>;

    /// Takes assets out of service for ever; tells how many, once that is durable.
    fn purge(&self, order: PurgeOrder) -> Answering;

    /// Fills what the manifest lists now, whatever the window; tells how that stands.
    ///
    /// # Errors
    /// There is no manifest.
    fn fill_now(&self) -> Result<Value, Refused>;

    /// Why an asset is here or not. Blocks.
    ///
    /// # Errors
    /// The path is none.
    fn why(&self, path: &str) -> Result<Value, Refused>;
}

/// An answer that takes time.
pub type Answering = Pin<Box<dyn Future<Output = Result<Value, Refused>> + Send>>;

/// Binds the operators' address.
///
/// # Errors
/// The address cannot be had.
pub fn bind(config: &Config, inherited: &mut Inherited) -> io::Result<StdListener> {
    listener::only(config.listen, 128, inherited)
        .map_err(|err| io::Error::new(err.kind(), format!("admin.listen {}: {err}", config.listen)))
}

/// Answers operators until `stop`.
///
/// # Errors
/// The listener cannot be taken over by the runtime.
pub async fn serve(
    listener: StdListener,
    guard: Arc<Guard>,
    subject: Arc<dyn Subject>,
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    serve_with(PATIENCE, listener, (guard, subject), stop).await
}

async fn serve_with(
    patience: Patience,
    listener: StdListener,
    (guard, subject): (Arc<Guard>, Arc<dyn Subject>),
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let config = guard.config();
    let places = Places::new(config.connections_max);
    // Who watches does not keep out who acts.
    let watching_max = config.streams_max.min(config.connections_max / 2).max(1);
    let routes = routes::routes(subject, watching_max);
    let mut stop = std::pin::pin!(stop);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stop => return Ok(()),
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(err) => {
                tracing::warn!(error = %err, "operators' connections cannot be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Where all are at work, this one waits here, and those behind it in the listener's backlog.
        let place = tokio::select! {
            place = places.take() => place,
            () = &mut stop => return Ok(()),
        };
        let (routes, guard) = (routes.clone(), Arc::clone(&guard));
        tokio::spawn(async move {
            let place = Arc::new(place);
            tokio::select! {
                () = greet(stream, (address, &place), (routes, guard), patience) => {}
                () = place.given_away() => tracing::debug!(client = %address, "an idle connection gives way to another"),
            }
        });
    }
}

/// Finds out who has connected, as far as the connection tells, and serves it behind the guard.
async fn greet(
    stream: TcpStream,
    (address, place): (SocketAddr, &Arc<Place>),
    (routes, guard): (Router, Arc<Guard>),
    patience: Patience,
) {
    let guarded = |certificate: Option<String>, guard: Arc<Guard>| {
        let peer = Peer { address, certificate: certificate.map(Into::into) };
        let routes = routes.layer(from_fn_with_state((guard, peer), guard::layer));
        // The outermost: whatever is asked, and whoever asks, it is a request under way until its answer begins.
        routes.layer(from_fn_with_state(Arc::clone(place), keep_place))
    };
    let Some(tls) = guard.tls() else { return serve_connection(stream, guarded(None, guard), patience).await };
    match tls.accept(stream, patience.head).await {
        Ok((stream, certificate)) => serve_connection(stream, guarded(certificate, guard), patience).await,
        Err(err) => {
            tracing::debug!(client = %address, error = %err, "operator's handshake failed");
            guard.handshake_failed();
        }
    }
}

async fn keep_place(State(place): State<Arc<Place>>, request: Request, next: Next) -> Response {
    let busy = place.busy();
    next.run(request).await.map(|body| Body::new(Kept { body, rest: Bytes::new(), _busy: busy }))
}

/// Bytes of an answer that are handed on at once, so that what is not read stays here and not in a buffer behind it.
const PIECE_MAX: usize = 16 << 10;

/// The body of an answer, for as long as which its connection keeps its place.
struct Kept {
    body: Body,
    rest: Bytes,
    _busy: Busy,
}

impl HttpBody for Kept {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)).map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => self.rest = data,
                Some(Ok(Err(frame))) => return Poll::Ready(Some(Ok(frame))),
                Some(Err(err)) => return Poll::Ready(Some(Err(err))),
                None => return Poll::Ready(None),
            }
        }
        let count = self.rest.len().min(PIECE_MAX);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(count)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (here, hint) = (self.rest.len() as u64, self.body.size_hint());
        hint.exact().map_or_else(SizeHint::default, |left| SizeHint::with_exact(left + here))
    }
}

async fn serve_connection(stream: impl AsyncRead + AsyncWrite + Unpin, routes: Router, patience: Patience) {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(patience.head).max_headers(64).max_buf_size(16 << 10);
    let serving = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
    let mut serving = std::pin::pin!(serving);
    let served = match tokio::time::timeout(patience.connection, serving.as_mut()).await {
        Ok(served) => Ok(served),
        Err(_) => {
            // A monitor that keeps its connection loses it between two answers, not in the middle of one.
            serving.as_mut().graceful_shutdown();
            tokio::time::timeout(patience.last_answer, serving).await
        }
    };
    match served {
        Ok(Ok(())) => {}
        Ok(Err(err)) => tracing::debug!(error = %err, "operator's connection ended"),
        Err(_) => tracing::debug!("operator's connection was cut: its answer was not read"),
    }
}

#[cfg(test)]
mod tests;
