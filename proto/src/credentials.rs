//! What one member of a cluster shows of itself and whom it trusts: its certificate and key, and the cluster's authority.
//!
//! Read from a folder of PEM files named as Kubernetes and cert-manager name them, and shown again whenever they change.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, LazyLock, PoisonError, RwLock},
};

use rustls::{
    CertificateError, OtherError, RootCertStore,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject as _},
    sign::CertifiedKey,
};
use webpki::{EndEntityCert, ExtendedKeyUsageValidator};

use crate::{Identity, IdentityError};

/// The authority's certificate; several where one authority follows another.
pub const AUTHORITY_FILE: &str = "ca.crt";
/// The certificate, and those between it and the authority.
pub const CERTIFICATE_FILE: &str = "tls.crt";
/// Its private key.
pub const KEY_FILE: &str = "tls.key";
/// More than any chain takes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A certificate with its key, and whose certificates are trusted.
#[derive(Clone)]
pub struct Credentials {
    identity: Identity,
    pub(crate) key: Arc<CertifiedKey>,
    authorities: Arc<RootCertStore>,
}

/// Why a folder holds no credentials.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// A file can't be read.
    #[error("failed to read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file holds something else.
    #[error("{} holds no {what} in PEM", path.display())]
    Pem {
        /// Which.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },
    /// The key is not the certificate's, or of a kind that is not known.
    #[error("the key does not go with the certificate")]
    Key(#[source] rustls::Error),
    /// The certificate names nobody.
    #[error("the certificate names nobody of Banyan's")]
    Identity(#[source] IdentityError),
    /// Nobody would accept it.
    #[error("the certificate is not good")]
    Certificate(#[source] rustls::Error),
}

impl Credentials {
    /// Reads `ca.crt`, `tls.crt` and `tls.key` in a folder, and checks that they go together and that the certificate is good now.
    ///
    /// # Errors
    /// When one is missing, they do not go together, or the certificate has ended.
    pub fn read(folder: &Path) -> Result<Credentials, CredentialsError> {
        let [authorities, chain, key] = [AUTHORITY_FILE, CERTIFICATE_FILE, KEY_FILE].map(|name| folder.join(name));
        let certificates = |path: &Path| {
            let read = CertificateDer::pem_slice_iter(&read(path)?).collect::<Result<Vec<_>, _>>();
            let what = "certificate";
            read.ok().filter(|read| !read.is_empty()).ok_or_else(|| CredentialsError::Pem { path: path.to_owned(), what })
        };
        let authorities = certificates(&authorities)?;
        let chain = certificates(&chain)?;
        let pem = read(&key)?;
        let what = "private key";
        let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| CredentialsError::Pem { path: key, what })?;
        Self::new(authorities, chain, key)
    }

    /// Of what is at hand.
    ///
    /// # Errors
    /// When the parts do not go together, or the certificate is not good now.
    pub fn new(
        authorities: Vec<CertificateDer<'static>>,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Credentials, CredentialsError> {
        let mut trusted = RootCertStore::empty();
        for authority in authorities {
            trusted.add(authority).map_err(CredentialsError::Certificate)?;
        }
        let identity = chain.first().map_or(Err(IdentityError::Nameless), |first| Identity::of_certificate(first));
        let identity = identity.map_err(CredentialsError::Identity)?;
        let key = CertifiedKey::from_der(chain, key, &provider()).map_err(CredentialsError::Key)?;
        let credentials = Credentials { identity, key: Arc::new(key), authorities: Arc::new(trusted) };
        let (own, rest) = credentials.key.cert.split_first().expect("its first certificate was looked at");
        credentials.verify(own, rest, UnixTime::now(), webpki::KeyUsage::server_auth()).map_err(CredentialsError::Certificate)?;
        Ok(credentials)
    }

    /// Who shows them.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Who shows a certificate, if the authority has signed it for that use, it is good now, and of our cluster.
    pub(crate) fn verify(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
        usage: impl ExtendedKeyUsageValidator,
    ) -> Result<Identity, rustls::Error> {
        let identity = verified(certificate, &self.authorities, between, now, usage)?;
        if identity.cluster != self.identity.cluster {
            return Err(other(Foreign(identity, self.identity.cluster.to_string())));
        }
        Ok(identity)
    }
}

/// It shows who it is, never its key.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// The credentials of now; whoever has a handle sees the next ones as well.
#[derive(Clone, Debug)]
pub(crate) struct Current(Arc<RwLock<Credentials>>);

impl Current {
    pub(crate) fn new(credentials: Credentials) -> Self {
        Current(Arc::new(RwLock::new(credentials)))
    }

    pub(crate) fn get(&self) -> Credentials {
        // Each change is one assignment, so a panic elsewhere can't have left it half done.
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set(&self, credentials: Credentials) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = credentials;
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{0} is not of the cluster {1}")]
struct Foreign(Identity, String);

/// The one crypto provider.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(rustls::crypto::ring::default_provider()));
    Arc::clone(&PROVIDER)
}

/// Who shows a certificate that one of the authorities has signed for that use, and that is good now.
pub(crate) fn verified(
    certificate: &CertificateDer<'_>,
    authorities: &RootCertStore,
    between: &[CertificateDer<'_>],
    now: UnixTime,
    usage: impl ExtendedKeyUsageValidator,
) -> Result<Identity, rustls::Error> {
    let parsed = EndEntityCert::try_from(certificate).map_err(refused)?;
    let algorithms = provider();
    let algorithms = algorithms.signature_verification_algorithms.all;
    parsed.verify_for_usage(algorithms, &authorities.roots, between, now, usage, None, None).map_err(refused)?;
    Identity::of_certificate(certificate).map_err(other)
}

/// A refusal that says why in our own words.
pub(crate) fn other(error: impl std::error::Error + Send + Sync + 'static) -> rustls::Error {
    rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

fn refused(error: webpki::Error) -> rustls::Error {
    use webpki::Error;
    let error = match error {
        Error::CertExpired { .. } => CertificateError::Expired,
        Error::CertNotValidYet { .. } => CertificateError::NotValidYet,
        Error::UnknownIssuer => CertificateError::UnknownIssuer,
        Error::InvalidSignatureForPublicKey => CertificateError::BadSignature,
        error => return other(error),
    };
    rustls::Error::InvalidCertificate(error)
}

fn read(path: &Path) -> Result<Vec<u8>, CredentialsError> {
    let failed = |source| CredentialsError::Read { path: path.to_owned(), source };
    let size = std::fs::metadata(path).map_err(failed)?.len();
    if size > FILE_BYTES_MAX {
        return Err(failed(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{size} bytes are more than a certificate takes"),
        )));
    }
    std::fs::read(path).map_err(failed)
}
