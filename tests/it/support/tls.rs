//! An authority that issues certificates for tests, and clients that trust it.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::{
    ClientConfig, RootCertStore, SupportedProtocolVersion,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName},
};

use super::{Client, Setup};

/// An authority, and a folder for what it issues.
pub(crate) struct Authority {
    folder: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
}

/// The files of a certificate and its key.
#[derive(Clone)]
pub(crate) struct Issued {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyKind {
    Ecdsa,
    Rsa,
}

impl Authority {
    pub(crate) fn new() -> Self {
        // Somebody else of this process may have been faster.
        drop(aws_lc_rs::default_provider().install_default());
        let folder = tempfile::Builder::new().prefix("oca-tls-").tempdir().expect("a folder");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "the tests' authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let root = params.self_signed(&key).expect("signed");
        fs::write(folder.path().join("root.pem"), root.pem()).expect("written");
        Self { folder, root: root.der().clone(), issuer: Issuer::new(params, key) }
    }

    /// A file that holds the authority's own certificate.
    pub(crate) fn root(&self) -> PathBuf {
        self.folder.path().join("root.pem")
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Issues a certificate, good from 2020 to the beginning of `until`, or another one in the same files.
    pub(crate) fn issue(&self, name: &str, hosts: &[&str], (kind, until): (KeyKind, i32)) -> Issued {
        let mut params =
            CertificateParams::new(hosts.iter().map(ToString::to_string).collect::<Vec<_>>()).expect("hosts");
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(until, 1, 1);
        self.sign(name, params, kind)
    }

    /// Issues a certificate for `days` from yesterday on, as public authorities do.
    pub(crate) fn issue_for(&self, name: &str, hosts: &[&str], (kind, days): (KeyKind, u64)) -> Issued {
        const DAY: Duration = Duration::from_secs(86_400);
        let mut params =
            CertificateParams::new(hosts.iter().map(ToString::to_string).collect::<Vec<_>>()).expect("hosts");
        params.distinguished_name.push(DnType::CommonName, name);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("it is after 1970");
        params.not_before = date_time_ymd(1970, 1, 1) + now - DAY;
        params.not_after = params.not_before + DAY * u32::try_from(days).expect("it fits");
        self.sign(name, params, kind)
    }

    fn sign(&self, name: &str, params: CertificateParams, kind: KeyKind) -> Issued {
        let key = match kind {
            KeyKind::Ecdsa => KeyPair::generate(),
            KeyKind::Rsa => KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256),
        };
        let key = key.expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        let files = Issued {
            certificate: self.folder.path().join(format!("{name}.pem")),
            key: self.folder.path().join(format!("{name}.key")),
        };
        replace(&files.certificate, &certificate.pem());
        replace(&files.key, &key.serialize_pem());
        files
    }

    /// How clients that trust this authority connect.
    pub(crate) fn client(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        protocols: &[&str],
    ) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).expect("a root");
        let config = ClientConfig::builder_with_protocol_versions(versions);
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| (*name).into()).collect();
        Arc::new(config)
    }

    /// A connection as a player makes it: TLS 1.3, HTTP/1.1.
    pub(crate) fn connect(&self, address: SocketAddr, host: &str) -> Client {
        Client::connect_tls(address, host, &self.client(&[&rustls::version::TLS13], &["http/1.1"])).expect("a session")
    }
}

/// Written aside and renamed, as those who renew certificates do.
pub(crate) fn replace(path: &Path, text: &str) {
    let aside = path.with_extension("new");
    fs::write(&aside, text).expect("written");
    fs::rename(aside, path).expect("renamed");
}

impl Issued {
    /// The lines that name them in a table.
    pub(crate) fn lines(&self) -> String {
        format!("certificate = {:?}\nkey = {:?}\n", self.certificate, self.key)
    }
}

impl Setup {
    /// HTTPS with `first` and `further` certificates; `lines` go into `[serve.tls]`.
    pub(crate) fn tls(self, first: &Issued, further: &[&Issued], lines: &str) -> Self {
        let mut tables = format!("[serve.tls]\n{}check_interval = \"50 ms\"\n{lines}\n", first.lines());
        for pair in further {
            tables.push_str(&format!("[[serve.tls.pair]]\n{}", pair.lines()));
        }
        self.serve("https = [\"127.0.0.1:0\"]").tables(&tables)
    }
}

pub(crate) fn server_name(host: &str) -> ServerName<'static> {
    ServerName::try_from(host.to_owned()).expect("a name")
}
