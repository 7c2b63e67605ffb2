//! Words that others pass on: signed by who says them, so that those in between can't put words into its mouth.

use rustls::{
    SignatureScheme,
    pki_types::{CertificateDer, UnixTime},
};
use webpki::EndEntityCert;

use crate::{Identity, Transport, credentials::provider};

/// What nobody else signs begins with: never a handshake's, never another use's.
const CONTEXT: &[u8] = b"banyan signed words 1\0";

/// Who says it, by the key of its certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// TLS's number of the scheme.
    pub scheme: u32,
    /// The signature.
    pub bytes: Vec<u8>,
}

/// Why words are not who's they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignedError {
    /// The certificate is none, has ended, or is another cluster's.
    #[error("the certificate is not good")]
    Certificate,
    /// The signature is not the certificate's.
    #[error("the signature is not good")]
    Signature,
}

impl Transport {
    /// Our certificate, for those who look at what we sign; none over plain TCP.
    pub fn certificate(&self) -> Option<Vec<u8>> {
        Some(self.credentials()?.key.cert.first()?.to_vec())
    }

    /// Signs the parts, each with its length, so that none can be taken for another.
    pub fn sign(&self, parts: &[&[u8]]) -> Option<Signature> {
        let credentials = self.credentials()?;
        let schemes = [SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::ED25519, SignatureScheme::RSA_PSS_SHA256];
        let signer = credentials.key.key.choose_scheme(&schemes)?;
        let bytes = signer.sign(&words(parts)).ok()?;
        Some(Signature { scheme: u16::from(signer.scheme()).into(), bytes })
    }

    /// Who has signed the parts, as the certificate says, if that is good here.
    ///
    /// # Errors
    /// When it is not, or has not signed them.
    pub fn signer(&self, certificate: &[u8], parts: &[&[u8]], signature: &Signature) -> Result<Identity, SignedError> {
        let credentials = self.credentials().ok_or(SignedError::Certificate)?;
        let certificate = CertificateDer::from(certificate);
        let usage = webpki::KeyUsage::client_auth();
        let identity = credentials.verify(&certificate, &[], UnixTime::now(), usage).map_err(|_| SignedError::Certificate)?;
        let parsed = EndEntityCert::try_from(&certificate).map_err(|_| SignedError::Certificate)?;
        let scheme = u16::try_from(signature.scheme).map_err(|_| SignedError::Signature)?;
        let provider = provider();
        let mapping = provider.signature_verification_algorithms.mapping;
        let algorithms =
            mapping.iter().find(|(known, _)| *known == SignatureScheme::from(scheme)).map_or(&[][..], |(_, all)| *all);
        let words = words(parts);
        let good = algorithms.iter().any(|algorithm| parsed.verify_signature(*algorithm, &words, &signature.bytes).is_ok());
        if good { Ok(identity) } else { Err(SignedError::Signature) }
    }
}

fn words(parts: &[&[u8]]) -> Vec<u8> {
    let mut words = CONTEXT.to_vec();
    for part in parts {
        words.extend_from_slice(&(part.len() as u64).to_be_bytes());
        words.extend_from_slice(part);
    }
    words
}
