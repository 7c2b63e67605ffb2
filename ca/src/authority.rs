//! Who signs: a certificate of its own, its key, and nothing else. What it signs carries a member's name, role and cluster.

use std::{
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use banyan_proto::{AUTHORITY_FILE, Credentials, CredentialsError, Identity, NodeName, Role};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, pem::PemObject as _};
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;

use crate::files::{self, WriteError};

pub use rcgen::KeyPair;

/// How long a certificate is good: it is renewed after two thirds, so an authority may be away for eight hours.
pub const VALID: Duration = Duration::from_secs(24 * 3600);

/// What certificates of the cluster's registries are called beside, wherever they run: etcd's clients look for a DNS name.
pub const REGISTRY_NAME: &str = "registry.banyan.internal";

/// The authority's own.
const OWN_VALID: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Clocks may be that far behind.
pub(crate) const SKEW: Duration = Duration::from_secs(300);
/// The authority's key; whoever has it is the cluster.
const KEY: &str = "ca.key";

/// Signs a cluster's certificates.
pub struct Authority {
    pem: String,
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    cluster: NodeName,
    /// Known to who has the key: what the authority wrote into the registry is known again by it.
    mac: ring::hmac::Key,
}

/// Why there is no authority, or no certificate.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// One is there.
    #[error("{} holds an authority already: whoever trusts it would not trust another", .0.display())]
    Exists(PathBuf),
    /// Its files can't be read.
    #[error("failed to read the authority's {}: `banyan ca init --dir {}` makes one", path.display(), path.parent().unwrap_or(path).display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its files can't be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// They hold something else.
    #[error("{} holds no authority of Banyan's", .0.display())]
    Foreign(PathBuf),
    /// What was asked to be signed is no request, or has a bad signature.
    #[error("this is no certificate signing request")]
    Request(#[source] rcgen::Error),
    /// Signing failed.
    #[error("failed to make a certificate")]
    Sign(#[source] rcgen::Error),
    /// What was made can't be used.
    #[error("the certificate that was made can't be used")]
    Unusable(#[source] CredentialsError),
}

impl Authority {
    /// Makes the authority of a new cluster, in a folder that has none.
    ///
    /// # Errors
    /// When it has one, or can't be written.
    pub fn init(folder: &Path, cluster: NodeName) -> Result<Authority, AuthorityError> {
        let (certificate, key) = (folder.join(AUTHORITY_FILE), folder.join(KEY));
        if certificate.exists() || key.exists() {
            return Err(AuthorityError::Exists(folder.to_owned()));
        }
        let pair = KeyPair::generate().map_err(AuthorityError::Sign)?;
        let identity = Identity { cluster, role: Role::Authority, name: "ca".parse().expect("a valid name") };
        let mut own = params(&identity, OWN_VALID, &[]);
        own.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        own.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        own.extended_key_usages = Vec::new();
        let signed = own.self_signed(&pair).map_err(AuthorityError::Sign)?;
        files::folder(folder)?;
        // The key first: a certificate without one would be taken for an authority.
        files::write(&key, &pair.serialize_pem(), true)?;
        files::write(&certificate, &signed.pem(), false)?;
        Self::open(folder)
    }

    /// Reads the authority in a folder.
    ///
    /// # Errors
    /// When there is none.
    pub fn open(folder: &Path) -> Result<Authority, AuthorityError> {
        let read =
            |path: &Path| fs::read_to_string(path).map_err(|source| AuthorityError::Read { path: path.to_owned(), source });
        let foreign = || AuthorityError::Foreign(folder.to_owned());
        let (pem, key) = (read(&folder.join(AUTHORITY_FILE))?, read(&folder.join(KEY))?);
        let pair = KeyPair::from_pem(&key).map_err(|_| foreign())?;
        let mac = Sha256::new().chain_update(b"banyan join tokens").chain_update(pair.serialized_der()).finalize();
        let mac = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &mac);
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| foreign())?;
        let identity = Identity::of_certificate(&der).map_err(|_| foreign())?;
        if identity.role != Role::Authority {
            return Err(foreign());
        }
        let issuer = Issuer::from_ca_cert_der(&der, pair).map_err(|_| foreign())?;
        Ok(Authority { pem, der, issuer, cluster: identity.cluster, mac })
    }

    /// The cluster.
    pub fn cluster(&self) -> &NodeName {
        &self.cluster
    }

    /// Its certificate, PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The SHA-256 of its certificate, by which who joins knows it.
    pub fn pin(&self) -> [u8; 32] {
        Sha256::digest(&self.der).into()
    }

    pub(crate) fn mac(&self) -> &ring::hmac::Key {
        &self.mac
    }

    /// Signs a certificate for whoever made a request. Nothing of the request counts but its public key, and that who sent it
    /// has the private one.
    ///
    /// # Errors
    /// When it is no request, or was signed by another key.
    pub fn sign(&self, request: &[u8], identity: &Identity, valid: Duration) -> Result<String, AuthorityError> {
        let request = CertificateSigningRequestDer::from(request);
        let request = CertificateSigningRequestParams::from_der(&request).map_err(AuthorityError::Request)?;
        Ok(self.certificate(&request.public_key, identity, valid, &[])?.pem())
    }

    /// Makes a key and a certificate at once, for who sits beside the authority: both PEM. `names` are DNS names and addresses by
    /// which browsers and etcd may know it.
    ///
    /// # Errors
    /// When signing fails.
    pub fn issue(&self, identity: &Identity, valid: Duration, names: &[String]) -> Result<(String, String), AuthorityError> {
        let pair = KeyPair::generate().map_err(AuthorityError::Sign)?;
        Ok((self.certificate(&pair, identity, valid, names)?.pem(), pair.serialize_pem()))
    }

    /// Credentials of this process's own, with the authority's certificate in their chain, so that those who know its hash find it.
    ///
    /// # Errors
    /// When signing fails.
    pub fn credentials(&self, role: Role, name: &str, valid: Duration) -> Result<Credentials, AuthorityError> {
        let identity = Identity { cluster: self.cluster.clone(), role, name: name.parse().expect("a valid name") };
        let pair = KeyPair::generate().map_err(AuthorityError::Sign)?;
        let own = self.certificate(&pair, &identity, valid, &[])?;
        let key = PrivateKeyDer::try_from(pair.serialize_der()).expect("a key that was made in the line above");
        let chain = vec![own.der().clone(), self.der.clone()];
        Credentials::new(vec![self.der.clone()], chain, key).map_err(AuthorityError::Unusable)
    }

    fn certificate(
        &self,
        key: &impl PublicKeyData,
        identity: &Identity,
        valid: Duration,
        names: &[String],
    ) -> Result<Certificate, AuthorityError> {
        params(identity, valid, names).signed_by(key, &self.issuer).map_err(AuthorityError::Sign)
    }
}

/// What a certificate says: who it is, in words for people and as the URI that Banyan reads, and from when to when.
fn params(identity: &Identity, valid: Duration, names: &[String]) -> CertificateParams {
    let now = OffsetDateTime::now_utc();
    let mut params = CertificateParams::default();
    params.not_before = now - SKEW;
    params.not_after = now + valid;
    let mut subject = DistinguishedName::new();
    // etcd takes the common name for the user.
    subject.push(DnType::CommonName, identity.name.as_str());
    subject.push(DnType::OrganizationalUnitName, identity.role.as_str());
    subject.push(DnType::OrganizationName, identity.cluster.as_str());
    params.distinguished_name = subject;
    let uri = identity.to_string().try_into().expect("names are ASCII");
    params.subject_alt_names = vec![SanType::URI(uri)];
    let registry = (identity.role == Role::Registry).then_some(REGISTRY_NAME);
    for name in names.iter().map(String::as_str).chain(registry) {
        params.subject_alt_names.push(match name.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => match name.try_into() {
                Ok(name) => SanType::DnsName(name),
                // No DNS name has such letters.
                Err(_) => continue,
            },
        });
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn who(text: &str) -> Identity {
        text.parse().unwrap()
    }

    /// What somebody sends who wants to be that.
    fn request(uri: &str, pair: &KeyPair) -> rcgen::CertificateSigningRequest {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        params.serialize_request(pair).unwrap()
    }

    #[test]
    fn an_authority_is_made_once_and_its_key_is_its_owners_only() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("ca");
        let made = Authority::init(&dir, "prod".parse().unwrap()).unwrap();
        assert_eq!(made.cluster().as_str(), "prod");
        assert_eq!(fs::metadata(dir.join(KEY)).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(matches!(Authority::init(&dir, "prod".parse().unwrap()), Err(AuthorityError::Exists(_))));
        assert_eq!(Authority::open(&dir).unwrap().pin(), made.pin());
    }

    #[test]
    fn a_certificate_carries_the_name_that_was_granted_and_not_the_one_in_the_request() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::init(folder.path(), "prod".parse().unwrap()).unwrap();
        let pair = KeyPair::generate().unwrap();
        let request = request("banyan://prod/root/root", &pair);
        let granted = who("banyan://prod/node/a");
        let pem = authority.sign(request.der(), &granted, VALID).unwrap();
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        assert_eq!(Identity::of_certificate(&der).unwrap(), granted);
        let key = PrivateKeyDer::try_from(pair.serialize_der()).unwrap();
        let credentials = Credentials::new(vec![authority.der.clone()], vec![der], key).unwrap();
        assert_eq!(*credentials.identity(), granted);
    }

    #[test]
    fn a_request_whose_sender_has_not_its_key_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::init(folder.path(), "prod".parse().unwrap()).unwrap();
        let pair = KeyPair::generate().unwrap();
        let request = request("banyan://prod/node/a", &pair);
        let mut forged = request.der().to_vec();
        *forged.last_mut().unwrap() ^= 1;
        for request in [&forged[..], b"", b"nothing"] {
            assert!(authority.sign(request, &who("banyan://prod/node/a"), VALID).is_err());
        }
    }

    #[test]
    fn credentials_of_another_authority_of_another_key_or_that_have_ended_are_none() {
        let folder = tempfile::tempdir().unwrap();
        let ours = Authority::init(&folder.path().join("ours"), "prod".parse().unwrap()).unwrap();
        let theirs = Authority::init(&folder.path().join("theirs"), "prod".parse().unwrap()).unwrap();
        let made = |valid| {
            let (certificate, key) = ours.issue(&who("banyan://prod/node/a"), valid, &[]).unwrap();
            let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
            (vec![certificate], PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap())
        };
        let ((chain, key), (_, other_key)) = (made(VALID), made(VALID));
        assert!(Credentials::new(vec![ours.der.clone()], chain.clone(), key.clone_key()).is_ok());
        assert!(Credentials::new(vec![theirs.der.clone()], chain.clone(), key).is_err());
        assert!(Credentials::new(vec![ours.der.clone()], chain, other_key).is_err());
        let (ended, key) = made(Duration::ZERO);
        let error = Credentials::new(vec![ours.der.clone()], ended, key);
        // Its last second may be this one.
        assert!(error.is_ok() || matches!(error, Err(CredentialsError::Certificate(_))));
    }
}
