//! Asks for the newest manifest, for as long as the appliance runs: pointer -> signatures -> manifest -> [`Control::offer`].
//!
//! Every box at its own moment, the pointer only if it has changed, and the manifest only if it is another and signed.

use std::{
    fs::File,
    io::{self, Read as _},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use reqwest::{
    Client, Response, StatusCode,
    header::{ETAG, HeaderValue, IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED},
};
use url::Url;

use super::{
    Config, Control, Incoming, Reason, Refused, SIGNATURES_SIZE_MAX,
    pointer::{POINTER_SIZE_MAX, Pointer},
};
use crate::{
    asset::{AssetKey, Sha256},
    net::{
        bucket::{Bucket, BucketError},
        client::{ClientError, ClientLimits, client},
    },
};

/// Where a pointer is published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Publication {
    /// By HTTP.
    Http(Url),
    /// In a bucket of `control.store`.
    Bucket {
        /// Its name.
        bucket: String,
        /// Name of the pointer in it.
        name: String,
    },
    /// On a disk of this machine.
    File(PathBuf),
}

impl std::fmt::Display for Publication {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Http(url) => url.fmt(f),
            Self::Bucket { bucket, name } => write!(f, "s3://{bucket}/{name}"),
            Self::File(path) => write!(f, "file://{}", path.display()),
        }
    }
}

/// What is remembered of a publication.
struct Publisher {
    place: Publication,
    shelf: Shelf,
    /// Validators of the pointer that was followed last.
    unless: Vec<(reqwest::header::HeaderName, HeaderValue)>,
    /// The manifest that was refused for what it says, which it will say again.
    refused: Option<Sha256>,
}

/// How a pointer, and what lies beside it, is read.
#[derive(Debug)]
enum Shelf {
    Http(Client, Url),
    /// Signed for each request; the name of the pointer in its folder.
    Bucket(Client, Bucket, String),
    File(PathBuf),
}

impl Shelf {
    fn new(place: &Publication, config: &Config) -> Result<Self, PullError> {
        let limits = |secure| ClientLimits { connect_timeout: config.connect_timeout, idle_max: 1, secure };
        Ok(match place {
            Publication::Http(url) => Self::Http(client(limits(url.scheme() == "https"), &config.files)?, url.clone()),
            Publication::Bucket { bucket, name } => {
                let (folder, name) = name.rsplit_once('/').unwrap_or(("", name));
                let made = Bucket::new(bucket, folder, &config.store)?;
                Self::Bucket(client(limits(config.store.is_secure()), &config.files)?, made, name.into())
            }
            Publication::File(path) => Self::File(path.clone()),
        })
    }

    /// Where the pointer lies (`None`), or a file beside it.
    async fn place(&self, beside: Option<&AssetKey>) -> Result<Place<'_>, Refused> {
        Ok(match (self, beside) {
            (Self::Http(client, pointer), None) => Place::Http(client, pointer.clone()),
            (Self::Http(client, pointer), Some(path)) => Place::Http(client, below(pointer, path)),
            (Self::Bucket(client, bucket, pointer), beside) => {
                let name = beside.map_or(pointer.as_str(), AssetKey::path);
                let address = bucket.address(name).await;
                Place::Http(client, address.map_err(|err| fetch_fault(format!("{name}: {err}")))?)
            }
            (Self::File(pointer), None) => Place::File(pointer.clone()),
            // A key has no segment that could lead out of the folder.
            (Self::File(pointer), Some(path)) => Place::File(pointer.with_file_name(path.path())),
        })
    }
}

/// Where a file of a publication lies.
enum Place<'c> {
    Http(&'c Client, Url),
    File(PathBuf),
}

/// Why nobody can be asked for manifests.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The client cannot be set up.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The bucket cannot be.
    #[error(transparent)]
    Bucket(#[from] BucketError),
}

/// Asks until the runtime ends. Blocks while files of credentials are read.
///
/// # Errors
/// See [`PullError`].
pub fn start(control: &Arc<Control>) -> Result<(), PullError> {
    let mut publishers = Vec::new();
    for place in &control.config.pull {
        let shelf = Shelf::new(place, &control.config)?;
        publishers.push(Publisher { place: place.clone(), shelf, unless: Vec::new(), refused: None });
    }
    if !publishers.is_empty() {
        tokio::spawn(ask_for_ever(Arc::clone(control), publishers));
    }
    Ok(())
}

async fn ask_for_ever(control: Arc<Control>, mut publishers: Vec<Publisher>) {
    let (interval, mut delay) = (control.config.interval, control.config.retry_delay);
    loop {
        let mut heard = false;
        // The next address is for when one does not answer or is not good.
        for publisher in &mut publishers {
            match publisher.ask(&control).await {
                Ok(()) => heard = true,
                Err(Some(refused)) => control.refuse(&publisher.place.to_string(), &refused),
                // It was told when it was offered.
                Err(None) => {}
            }
            if heard {
                break;
            }
        }
        if heard {
            control.heard();
            delay = control.config.retry_delay;
            tokio::time::sleep(jittered(interval)).await;
        } else {
            tokio::time::sleep(jittered(delay)).await;
            delay = (delay * 2).min(interval);
        }
    }
}

/// Three to five quarters of a time, so that boxes that begin together drift apart.
fn jittered(time: Duration) -> Duration {
    let mut random = [0; 2];
    // Without randomness all ask at one time, which is no reason not to ask.
    if rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).is_err() {
        return time;
    }
    time * 3 / 4 + time / 2 * u32::from(u16::from_le_bytes(random)) / u32::from(u16::MAX)
}

fn fetch_fault(what: impl Into<String>) -> Refused {
    Refused::new(Reason::Fetch, what)
}

impl Publisher {
    /// `Err(None)`: refused, and told.
    async fn ask(&mut self, control: &Arc<Control>) -> Result<(), Option<Refused>> {
        let Some((text, unless)) = self.pointer(control).await? else { return Ok(()) };
        let pointer = Pointer::parse(&text)?;
        let in_force = control.in_force().now().is_some_and(|now| now.digest == pointer.sha256);
        let is_here = in_force || control.is_waiting(&pointer.sha256);
        if is_here || self.refused == Some(pointer.sha256) {
            self.unless = unless;
            return if is_here { Ok(()) } else { Err(None) };
        }
        if pointer.length > control.size_max() {
            let what = format!("{} bytes, and control.size_max allows {}", pointer.length, control.size_max());
            return Err(Some(Refused::new(Reason::TooLarge, what)));
        }
        let signatures = self.whole(control, &pointer.signatures, SIGNATURES_SIZE_MAX as u64).await?;
        // Nothing is fetched that nobody we trust has signed.
        control.check_signatures(&pointer.sha256, &signatures)?;
        let arrived = self.manifest(control, &pointer).await?.finish();
        if arrived.digest != pointer.sha256 {
            return Err(Some(Refused::new(Reason::Pointer, "the manifest is not the one that the pointer names")));
        }
        let (offered, from) = (Arc::clone(control), self.place.to_string());
        let taken = tokio::task::spawn_blocking(move || offered.offer(arrived, &signatures, &from)).await;
        match taken.map_err(|_| fetch_fault("reading it panicked"))? {
            Ok(_) => {
                self.unless = unless;
                Ok(())
            }
            Err(refused) => {
                // Time, keys and disks may change; what it says does not.
                self.refused = (!refused.reason.may_pass()).then_some(pointer.sha256);
                Err(None)
            }
        }
    }

    /// `None`: it is as it was.
    async fn pointer(
        &self,
        control: &Control,
    ) -> Result<Option<(Vec<u8>, Vec<(reqwest::header::HeaderName, HeaderValue)>)>, Refused> {
        let (client, url) = match self.shelf.place(None).await? {
            Place::Http(client, url) => (client, url),
            Place::File(path) => return Ok(Some((read(path, POINTER_SIZE_MAX).await?, Vec::new()))),
        };
        let mut request = client.get(url);
        for (name, value) in &self.unless {
            request = request.header(name, value);
        }
        let response = send(control, request).await?;
        if response.status() == StatusCode::NOT_MODIFIED {
            return Ok(None);
        }
        let validators = [(ETAG, IF_NONE_MATCH), (LAST_MODIFIED, IF_MODIFIED_SINCE)];
        let unless = validators.into_iter().filter_map(|(of, with)| Some((with, response.headers().get(of)?.clone())));
        let unless = unless.collect();
        Ok(Some((body(control, response, POINTER_SIZE_MAX).await?, unless)))
    }

    /// A small file beside the pointer.
    async fn whole(&self, control: &Control, path: &AssetKey, size_max: u64) -> Result<Vec<u8>, Refused> {
        match self.shelf.place(Some(path)).await? {
            Place::File(path) => read(path, size_max).await,
            Place::Http(client, url) => body(control, send(control, client.get(url)).await?, size_max).await,
        }
    }

    async fn manifest(&self, control: &Arc<Control>, pointer: &Pointer) -> Result<Incoming, Refused> {
        let mut incoming = control.incoming()?;
        let (client, url) = match self.shelf.place(Some(&pointer.manifest)).await? {
            Place::Http(client, url) => (client, url),
            Place::File(path) => {
                let length = pointer.length;
                let copy = move || {
                    let mut file = File::open(&path)?.take(length + 1);
                    let mut buffer = vec![0; 256 << 10];
                    loop {
                        match file.read(&mut buffer)? {
                            0 => return Ok(incoming),
                            count => incoming.write(&buffer[..count])?,
                        };
                    }
                };
                return blocking(copy).await;
            }
        };
        let mut response = send(control, client.get(url)).await?;
        while let Some(piece) = piece(control, &mut response).await? {
            let written = incoming.write(&piece).map_err(|err| Refused::new(Reason::State, err.to_string()))?;
            if written > pointer.length {
                return Err(Refused::new(Reason::Pointer, "the manifest is longer than the pointer says"));
            }
        }
        Ok(incoming)
    }
}

/// A key has no segment that could lead out of the folder.
fn below(pointer: &Url, path: &AssetKey) -> Url {
    let folder = pointer.path().rsplit_once('/').map_or("", |(folder, _)| folder);
    let mut url = pointer.clone();
    url.set_path(&format!("{folder}/{}", path.to_url_path()));
    url
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T, Refused> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| fetch_fault("reading it panicked"))?.map_err(|err| fetch_fault(err.to_string()))
}

async fn read(path: PathBuf, size_max: u64) -> Result<Vec<u8>, Refused> {
    blocking(move || {
        let mut bytes = Vec::new();
        File::open(&path)
            .and_then(|file| file.take(size_max + 1).read_to_end(&mut bytes))
            .map_err(|err| io::Error::new(err.kind(), format!("{}: {err}", path.display())))?;
        if bytes.len() as u64 > size_max {
            return Err(io::Error::other(format!("{} has more than {size_max} bytes", path.display())));
        }
        Ok(bytes)
    })
    .await
}

async fn send(control: &Control, request: reqwest::RequestBuilder) -> Result<Response, Refused> {
    let sent = tokio::time::timeout(control.config.response_timeout, request.send()).await;
    let response = match sent {
        Err(_) => return Err(fetch_fault("no answer within control.response_timeout")),
        Ok(Err(err)) => return Err(fetch_fault(reason_of(&err))),
        Ok(Ok(response)) => response,
    };
    match response.status() {
        StatusCode::OK | StatusCode::NOT_MODIFIED => Ok(response),
        status => Err(fetch_fault(format!("{} answers {status}", response.url().path()))),
    }
}

/// What went wrong in the end; the address, which the error repeats, is told beside it.
fn reason_of(err: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = err;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

async fn piece(control: &Control, response: &mut Response) -> Result<Option<bytes::Bytes>, Refused> {
    match tokio::time::timeout(control.config.stall_timeout, response.chunk()).await {
        Err(_) => Err(fetch_fault("nothing came within control.stall_timeout")),
        Ok(Err(err)) => Err(fetch_fault(reason_of(&err))),
        Ok(Ok(piece)) => Ok(piece),
    }
}

async fn body(control: &Control, mut response: Response, size_max: u64) -> Result<Vec<u8>, Refused> {
    let mut bytes = Vec::new();
    while let Some(piece) = piece(control, &mut response).await? {
        bytes.extend_from_slice(&piece);
        if bytes.len() as u64 > size_max {
            return Err(fetch_fault(format!("{} has more than {size_max} bytes", response.url().path())));
        }
    }
    Ok(bytes)
}
