//! Buckets of an S3-compatible store, to read from.
//!
//! path -> name in the bucket -> address with a signature in it (SigV4) -> a request by `client`, as to any other server
//!
//! Credentials and signatures are the library's; the request, its ranges and conditions, and what is made of the answer are those
//! of whoever asks. The library's own reader goes on by itself where a body breaks off; fill does that, and counts.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use object_store::{
    aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey},
    signer::Signer,
};
use url::Url;

/// How long a signature is good: a request is sent when its address is made.
const SIGNATURE_LIFETIME: Duration = Duration::from_secs(300);
/// Bytes of a file of credentials.
const CREDENTIALS_BYTES_MAX: u64 = 64 << 10;

/// An S3-compatible store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreConfig {
    /// Its address; `None`: that of AWS in the region.
    pub endpoint: Option<Url>,
    /// Its region; empty: as the environment says, or the one that AWS has as its first.
    pub region: String,
    /// File of credentials; `None`: as the environment says.
    pub credentials: Option<PathBuf>,
    /// The bucket is part of the host's name, not of the path.
    pub bucket_in_host: bool,
}

impl StoreConfig {
    /// Whether it is asked by `https://`.
    pub fn is_secure(&self) -> bool {
        self.endpoint.as_ref().is_none_or(|store| store.scheme() == "https")
    }
}

/// Why a bucket cannot be read from. Never shows what a file of credentials says.
#[derive(Debug, thiserror::Error)]
pub enum BucketError {
    /// The store, or how to get credentials, is not described rightly.
    #[error("set up the bucket")]
    Store(#[from] object_store::Error),
    /// The credentials cannot be read.
    #[error("read the credentials in {0}")]
    Unreadable(PathBuf, #[source] std::io::Error),
    /// The file names no key, or no secret.
    #[error("{0} does not say both aws_access_key_id and aws_secret_access_key")]
    NoKey(PathBuf),
}

/// Why there is no address to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// There are no credentials to sign it with.
    #[error("there are no credentials to ask it with")]
    Credentials,
    /// No object can have that name.
    #[error("nothing can have that name there")]
    Name,
}

/// A bucket, and what all names in it begin with that are asked for.
#[derive(Debug)]
pub struct Bucket {
    store: AmazonS3,
    prefix: String,
}

impl Bucket {
    /// What lies in `bucket` below `prefix`, which may be empty. Blocks while a file of credentials is read.
    ///
    /// # Errors
    /// The store is not described rightly, or the credentials cannot be read.
    pub fn new(bucket: &str, prefix: &str, config: &StoreConfig) -> Result<Self, BucketError> {
        // Without a file: AWS_ACCESS_KEY_ID and so on, or what the machine or its orchestrator gives.
        let mut builder = match &config.credentials {
            Some(file) => with_credentials(file)?,
            None => AmazonS3Builder::from_env(),
        };
        builder = builder.with_bucket_name(bucket).with_virtual_hosted_style_request(config.bucket_in_host);
        if !config.region.is_empty() {
            builder = builder.with_region(&config.region);
        }
        if let Some(endpoint) = &config.endpoint {
            builder = builder
                .with_endpoint(endpoint.as_str().trim_end_matches('/'))
                .with_allow_http(endpoint.scheme() == "http");
        }
        Ok(Self { store: builder.build()?, prefix: prefix.trim_matches('/').to_owned() })
    }

    /// Where `path` lies, without leading slash and as it is called, with the right to read it for a while.
    ///
    /// # Errors
    /// Nothing can have that name, or there are no credentials now.
    pub async fn address(&self, path: &str) -> Result<Url, AddressError> {
        let name = match self.prefix.as_str() {
            "" => path.to_owned(),
            prefix => format!("{prefix}/{path}"),
        };
        // A name as it is: the library's other way would escape it, and ask for another object.
        let path = object_store::path::Path::parse(&name).ok().filter(|path| path.as_ref() == name);
        let path = path.ok_or(AddressError::Name)?;
        let signed = self.store.signed_url(http::Method::GET, &path, SIGNATURE_LIFETIME).await;
        signed.map_err(|err| {
            tracing::debug!(error = %err, "no credentials for a bucket");
            AddressError::Credentials
        })
    }
}

/// The form of `~/.aws/credentials`, of which the names of profiles are passed over.
fn with_credentials(file: &Path) -> Result<AmazonS3Builder, BucketError> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(file)
        .and_then(|opened| opened.take(CREDENTIALS_BYTES_MAX).read_to_string(&mut text))
        .map_err(|err| BucketError::Unreadable(file.into(), err))?;
    let mut builder = AmazonS3Builder::new();
    let (mut id, mut secret) = (false, false);
    for (name, value) in text.lines().filter_map(|line| line.split_once('=')) {
        let value = value.trim().trim_matches('"');
        let key = match name.trim().to_ascii_lowercase().as_str() {
            "aws_access_key_id" => {
                id = true;
                AmazonS3ConfigKey::AccessKeyId
            }
            "aws_secret_access_key" => {
                secret = true;
                AmazonS3ConfigKey::SecretAccessKey
            }
            "aws_session_token" => AmazonS3ConfigKey::Token,
            _ => continue,
        };
        builder = builder.with_config(key, value);
    }
    if id && secret { Ok(builder) } else { Err(BucketError::NoKey(file.into())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(prefix: &str, config: StoreConfig) -> Bucket {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("credentials");
        std::fs::write(&file, "[default]\n# of a test\naws_access_key_id = AKID\naws_secret_access_key=\"s3cret\"\n")
            .expect("written");
        Bucket::new("films", prefix, &StoreConfig { credentials: Some(file), ..config }).expect("described rightly")
    }

    async fn address(bucket: &Bucket, path: &str) -> String {
        bucket.address(path).await.expect("signed").to_string()
    }

    #[tokio::test]
    async fn an_address_names_the_object_as_it_is_called_and_is_signed() {
        let endpoint = Some("http://127.0.0.1:9/".parse().expect("valid"));
        let config = StoreConfig { endpoint, region: "eu-north-1".into(), ..StoreConfig::default() };
        let signed = address(&bucket("/tonight/", config.clone()), "a b/100%~é.mp4").await;
        assert!(signed.starts_with("http://127.0.0.1:9/films/tonight/a%20b/100%25~%C3%A9.mp4?"), "{signed}");
        assert!(signed.contains("AKID%2F") && signed.contains("eu-north-1") && signed.contains("X-Amz-Signature="));
        assert!(!signed.contains("s3cret"));
        assert!(address(&bucket("", config.clone()), "a").await.starts_with("http://127.0.0.1:9/films/a?"));
        let no_endpoint = StoreConfig { endpoint: None, bucket_in_host: true, ..config.clone() };
        let signed = address(&bucket("", no_endpoint), "a").await;
        assert!(signed.starts_with("https://films.s3.eu-north-1.amazonaws.com/a?"), "{signed}");
        assert_eq!(bucket("", config).address("a/").await, Err(AddressError::Name), "not the object a");
    }

    #[test]
    fn credentials_that_are_not_whole_are_refused_unseen() {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("credentials");
        std::fs::write(&file, "aws_access_key_id = AKID\nsecret = s3cret\n").expect("written");
        let config = StoreConfig { credentials: Some(file), ..StoreConfig::default() };
        let told = format!("{:?}", Bucket::new("films", "", &config).expect_err("no secret"));
        assert!(told.contains("NoKey") && !told.contains("s3cret"), "{told}");
        let none = StoreConfig { credentials: Some(dir.path().join("none")), ..StoreConfig::default() };
        assert!(matches!(Bucket::new("films", "", &none), Err(BucketError::Unreadable(..))));
    }
}
