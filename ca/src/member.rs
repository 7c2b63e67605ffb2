//! A member's folder: how it gets its first certificate, and how it keeps a good one while the member runs.
//!
//! `tls.key` is made here and never leaves. `tls.crt` and `ca.crt` come from the authority, or from whoever else puts them there:
//! what changes in the folder is shown from then on.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use banyan_proto::{
    AUTHORITY_FILE, CERTIFICATE_FILE, Credentials, CredentialsError, Expected, Identity, KEY_FILE, NodeName, Role, Transport,
    dial,
    v1::{self, authority_client::AuthorityClient},
};
use rand::Rng as _;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    Authority, AuthorityError, Token,
    files::{self, WriteError},
};

/// Where the authority is that renews; without it somebody else does.
const ADDRESS_FILE: &str = "authority";
/// How long an authority has to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// How often the folder is looked at, at most.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// Between two tries to renew, at most.
const TRY_INTERVAL: Duration = Duration::from_secs(60);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// There is one.
    #[error("{} holds a certificate already: remove it to join again", .0.display())]
    Exists(PathBuf),
    /// A file can't be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// A key can't be made or read.
    #[error("failed to make a request of the key in {}", folder.display())]
    Key {
        /// Where.
        folder: PathBuf,
        /// Why.
        source: rcgen::Error,
    },
    /// Nobody answers, or not who was expected.
    #[error("failed to reach the authority at {address}")]
    Dial {
        /// Where.
        address: String,
        /// Why.
        source: tonic::transport::Error,
    },
    /// It says no.
    #[error("the authority at {address} refused")]
    Refused {
        /// Where.
        address: String,
        /// Why.
        source: tonic::Status,
    },
    /// It takes too long.
    #[error("the authority at {0} did not answer in time")]
    Silent(String),
    /// What came is of no use.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// Signing failed.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

/// Whether a folder holds a certificate.
pub fn is_joined(folder: &Path) -> bool {
    folder.join(CERTIFICATE_FILE).exists()
}

/// Gets the first certificate, with a token.
///
/// # Errors
/// When there is one, or the authority does not give one.
pub async fn join(folder: &Path, token: &Token, name: &NodeName) -> Result<Identity, JoinError> {
    if is_joined(folder) {
        return Err(JoinError::Exists(folder.to_owned()));
    }
    files::folder(folder)?;
    let pair = KeyPair::generate().map_err(|source| JoinError::Key { folder: folder.to_owned(), source })?;
    let request = request(folder, &pair)?;
    let address = token.authority.clone();
    let dialling = |source| JoinError::Dial { address: address.clone(), source };
    let endpoint = dial::endpoint(&address).map_err(dialling)?;
    let channel = Transport::pinned(&endpoint, token.pin).await.map_err(dialling)?;
    let asked = v1::JoinRequest { secret: token.secret.0.to_vec().into(), name: name.to_string(), request: request.into() };
    let certificate = answered(&address, AuthorityClient::new(channel).join(asked)).await?;
    let authority = CertificateDer::from_pem_slice(certificate.authority.as_bytes());
    if authority.map_or(true, |der| Sha256::digest(&der)[..] != token.pin[..]) {
        let what = "certificate of the authority that made the token";
        return Err(CredentialsError::Pem { path: AUTHORITY_FILE.into(), what }.into());
    }
    files::write(&folder.join(KEY_FILE), &pair.serialize_pem(), true)?;
    files::write(&folder.join(AUTHORITY_FILE), &certificate.authority, false)?;
    files::write(&folder.join(ADDRESS_FILE), &address, false)?;
    // Last: with it the folder counts as joined.
    files::write(&folder.join(CERTIFICATE_FILE), &certificate.certificate, false)?;
    Ok(Credentials::read(folder)?.identity().clone())
}

/// Writes a folder for a member beside the authority, which nobody renews but who does this again.
///
/// # Errors
/// When signing fails, or the folder can't be written.
pub fn issue(
    authority: &Authority,
    folder: &Path,
    identity: &Identity,
    valid: Duration,
    names: &[String],
) -> Result<(), JoinError> {
    let (certificate, key) = authority.issue(identity, valid, names)?;
    files::folder(folder)?;
    files::write(&folder.join(KEY_FILE), &key, true)?;
    files::write(&folder.join(AUTHORITY_FILE), authority.pem(), false)?;
    files::write(&folder.join(CERTIFICATE_FILE), &certificate, false)?;
    Ok(())
}

/// Shows what the folder holds whenever it changes, and gets the next certificate when a third of the present one's time is
/// left. Ends never.
pub async fn keep(folder: PathBuf, transport: Transport) {
    let mut seen = snapshot(&folder);
    let (mut told, mut tried) = (false, None::<Instant>);
    loop {
        let life = Life::of(&folder);
        sleep(LOOK_INTERVAL.min(life.whole / 16).max(Duration::from_millis(100))).await;
        let pause = TRY_INTERVAL.min(life.whole / 16).mul_f64(rand::rng().random_range(0.5..1.0));
        if life.is_due() && tried.is_none_or(|tried| tried.elapsed() >= pause) {
            tried = Some(Instant::now());
            match renew(&folder, &transport).await {
                Ok(true) => {}
                Ok(false) if std::mem::replace(&mut told, true) => {}
                Ok(false) => tracing::warn!(
                    folder = %folder.display(), left_s = life.left().as_secs(),
                    "the certificate ends soon, and nobody is known who would renew it: put the next one into the folder"
                ),
                Err(error) => tracing::warn!(
                    folder = %folder.display(), left_s = life.left().as_secs(), error = &error as &dyn std::error::Error,
                    "failed to renew the certificate, trying on"
                ),
            }
        }
        let now = snapshot(&folder);
        if now == seen {
            continue;
        }
        match Credentials::read(&folder) {
            Ok(credentials) => {
                tracing::info!(member = %credentials.identity(), "shows another certificate from now on");
                transport.renew(credentials);
                (seen, told, tried) = (now, false, None);
            }
            // Somebody may be in the middle of writing.
            Err(error) => tracing::debug!(folder = %folder.display(), %error, "the folder's files do not go together"),
        }
    }
}

/// False when nobody is known who would.
pub(crate) async fn renew(folder: &Path, transport: &Transport) -> Result<bool, JoinError> {
    let Ok(address) = fs::read_to_string(folder.join(ADDRESS_FILE)) else { return Ok(false) };
    let address = address.trim().to_owned();
    let key = fs::read_to_string(folder.join(KEY_FILE)).unwrap_or_default();
    let pair = KeyPair::from_pem(&key).map_err(|source| JoinError::Key { folder: folder.to_owned(), source })?;
    let request = request(folder, &pair)?;
    let dialling = |source| JoinError::Dial { address: address.clone(), source };
    let endpoint = dial::endpoint(&address).map_err(dialling)?;
    let channel = transport.connect(&endpoint, Expected::any(&[Role::Authority])).await.map_err(dialling)?;
    let asked = v1::RenewRequest { request: request.into() };
    let certificate = answered(&address, AuthorityClient::new(channel).renew(asked)).await?;
    files::write(&folder.join(CERTIFICATE_FILE), &certificate.certificate, false)?;
    Ok(true)
}

async fn answered(
    address: &str,
    answer: impl Future<Output = Result<tonic::Response<v1::Certificate>, tonic::Status>>,
) -> Result<v1::Certificate, JoinError> {
    match timeout(ANSWER_TIMEOUT, answer).await {
        Ok(Ok(certificate)) => Ok(certificate.into_inner()),
        Ok(Err(source)) => Err(JoinError::Refused { address: address.to_owned(), source }),
        Err(_) => Err(JoinError::Silent(address.to_owned())),
    }
}

fn request(folder: &Path, pair: &KeyPair) -> Result<Vec<u8>, JoinError> {
    let request = CertificateParams::default().serialize_request(pair);
    let request = request.map_err(|source| JoinError::Key { folder: folder.to_owned(), source })?;
    Ok(request.der().to_vec())
}

fn snapshot(folder: &Path) -> [Option<Vec<u8>>; 3] {
    [AUTHORITY_FILE, CERTIFICATE_FILE, KEY_FILE].map(|name| fs::read(folder.join(name)).ok())
}

/// From when to when a certificate is good.
struct Life {
    whole: Duration,
    until: Duration,
}

impl Life {
    /// Of a folder's certificate; one that can't be read has ended.
    fn of(folder: &Path) -> Life {
        let read = fs::read(folder.join(CERTIFICATE_FILE)).ok();
        let read = read.and_then(|pem| CertificateDer::from_pem_slice(&pem).ok());
        let parsed = read.as_ref().and_then(|der| x509_parser::parse_x509_certificate(der).ok());
        let Some((_, certificate)) = parsed else { return Life { whole: TRY_INTERVAL, until: Duration::ZERO } };
        let seconds = |time: x509_parser::time::ASN1Time| Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or(0));
        let validity = certificate.validity();
        let (from, until) = (seconds(validity.not_before), seconds(validity.not_after));
        // What lies before it was made is for clocks that are behind.
        let whole = until.saturating_sub(from).saturating_sub(crate::authority::SKEW);
        Life { whole, until }
    }

    fn left(&self) -> Duration {
        self.until.saturating_sub(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
    }

    fn is_due(&self) -> bool {
        self.left() <= self.whole / 3
    }
}
