//! HTTPS, where the API serves it itself: a certificate and its key in files, which may be replaced while it runs.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// How often the files are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// How long a client has to greet.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves HTTPS with what the files hold.
#[derive(Clone, Debug)]
pub struct Https {
    acceptor: Acceptor,
    shown: Arc<Shown>,
    certificate: PathBuf,
    key: PathBuf,
}

/// Why the files can't be used.
#[derive(Debug, thiserror::Error)]
pub enum HttpsError {
    /// One can't be read.
    #[error("failed to read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// One holds something else.
    #[error("{} holds no {what} in PEM", path.display())]
    Pem {
        /// Which.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },
    /// They do not go together.
    #[error("the key does not go with the certificate")]
    Key(#[source] rustls::Error),
}

impl Https {
    /// Reads a certificate, with those between it and its authority, and its key; both PEM.
    ///
    /// # Errors
    /// When one can't be read, or they do not go together.
    pub fn read(certificate: &Path, key: &Path) -> Result<Https, HttpsError> {
        let shown = Arc::new(Shown(RwLock::new(read(certificate, key)?)));
        // For browsers and clients of all kinds, so with TLS 1.2 beside 1.3.
        let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider knows both versions")
            .with_no_client_auth()
            .with_cert_resolver(shown.clone());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let acceptor = Acceptor(TlsAcceptor::from(Arc::new(config)));
        Ok(Https { acceptor, shown, certificate: certificate.to_owned(), key: key.to_owned() })
    }

    /// Greets a client, who has no longer for that than for a request's head.
    pub(crate) async fn greet(&self, stream: TcpStream, patience: Duration) -> io::Result<TlsStream<TcpStream>> {
        let greeted = timeout(patience.min(HANDSHAKE_TIMEOUT), self.acceptor.0.accept(stream)).await;
        greeted.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Shows what the files hold whenever they change. Ends never.
    pub(crate) async fn follow(self) {
        let snapshot = || [&self.certificate, &self.key].map(|path| fs::read(path).ok());
        let mut seen = snapshot();
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            let now = snapshot();
            if now == seen {
                continue;
            }
            match read(&self.certificate, &self.key) {
                Ok(key) => {
                    *self.shown.0.write().unwrap_or_else(PoisonError::into_inner) = key;
                    seen = now;
                    tracing::info!("HTTPS shows another certificate from now on");
                }
                // Somebody may be in the middle of writing.
                Err(error) => tracing::debug!(%error, "the certificate's files do not go together"),
            }
        }
    }
}

fn read(certificate: &Path, key: &Path) -> Result<Arc<CertifiedKey>, HttpsError> {
    let read = |path: &Path| fs::read(path).map_err(|source| HttpsError::Read { path: path.to_owned(), source });
    let chain = CertificateDer::pem_slice_iter(&read(certificate)?).collect::<Result<Vec<_>, _>>().unwrap_or_default();
    if chain.is_empty() {
        return Err(HttpsError::Pem { path: certificate.to_owned(), what: "certificate" });
    }
    let pem = PrivateKeyDer::from_pem_slice(&read(key)?);
    let private = pem.map_err(|_| HttpsError::Pem { path: key.to_owned(), what: "private key" })?;
    let provider = rustls::crypto::ring::default_provider();
    CertifiedKey::from_der(chain, private, &provider).map(Arc::new).map_err(HttpsError::Key)
}

#[derive(Clone)]
struct Acceptor(TlsAcceptor);

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Acceptor")
    }
}

/// The certificate of now.
#[derive(Debug)]
struct Shown(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}
