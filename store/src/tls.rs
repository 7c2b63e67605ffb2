//! TLS to a PostgreSQL server: what `sslmode` and `sslrootcert` of its URL ask for, as libpq reads them.
//!
//! Without `sslmode`, or with `disable`, `allow` or `prefer`, there is none. `require` encrypts, and believes whoever answers: against
//! those who listen and not against those who stand between. `verify-full` believes those only whom the authorities of `sslrootcert`
//! vouch for, by the name that was dialled.

use std::{
    fs, io,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures::{FutureExt as _, TryFutureExt as _, future::BoxFuture};
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, InvalidDnsNameError, ServerName, UnixTime, pem::PemObject as _},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::{
    Socket,
    tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream},
};
use tokio_rustls::TlsConnector;

/// How a server is to be reached.
#[derive(Debug, PartialEq)]
pub(crate) enum Mode {
    Plain,
    /// Whoever answers.
    Encrypted,
    /// Whom these vouch for.
    Verified(PathBuf),
}

/// The URL makes no sense.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    #[error("sslmode={0} is not offered: there are disable, require, and verify-full with sslrootcert=FILE")]
    Mode(String),
    #[error("sslmode=verify-full needs sslrootcert=FILE: the certificates, in PEM, of who vouches for the server")]
    NoRoots,
    #[error("failed to read the certificates in {}", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} has no certificate in PEM", .0.display())]
    Empty(PathBuf),
    #[error("the certificates in {} are of no use", .path.display())]
    Roots { path: PathBuf, source: rustls::Error },
    #[error("TLS can't be set up")]
    SetUp(#[source] rustls::Error),
}

/// Takes what is about TLS out of a URL, and leaves the rest.
pub(crate) fn split(url: &str) -> Result<(String, Mode), TlsError> {
    let Some((address, query)) = url.split_once('?') else { return Ok((url.to_owned(), Mode::Plain)) };
    let (mut mode, mut roots, mut rest) = (None, None, Vec::new());
    for pair in query.split('&') {
        match pair.split_once('=') {
            Some(("sslmode", value)) => mode = Some(value),
            Some(("sslrootcert", value)) => roots = Some(PathBuf::from(decoded(value))),
            _ => rest.push(pair),
        }
    }
    let mode = match (mode, roots) {
        (None | Some("disable" | "allow" | "prefer"), _) => Mode::Plain,
        // As libpq has it: who names authorities means them.
        (Some("require"), None) => Mode::Encrypted,
        (Some("require" | "verify-full"), Some(roots)) => Mode::Verified(roots),
        (Some("verify-full"), None) => return Err(TlsError::NoRoots),
        (Some(other), _) => return Err(TlsError::Mode(other.to_owned())),
    };
    let url = if rest.is_empty() { address.to_owned() } else { format!("{address}?{}", rest.join("&")) };
    Ok((url, mode))
}

/// `%2F` and the like.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, behind @ ..] = rest {
        let code = behind.get(..2).and_then(|two| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok());
        match code.filter(|_| *first == b'%') {
            Some(code) => {
                bytes.push(code);
                rest = &behind[2..];
            }
            None => {
                bytes.push(*first);
                rest = behind;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Makes connections that are encrypted.
#[derive(Clone)]
pub(crate) struct Tls(Arc<ClientConfig>);

impl Tls {
    /// None where the server is reached without.
    pub(crate) fn new(mode: &Mode) -> Result<Option<Tls>, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_safe_default_protocol_versions().map_err(TlsError::SetUp)?;
        let config = match mode {
            Mode::Plain => return Ok(None),
            Mode::Encrypted => {
                builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider))).with_no_client_auth()
            }
            Mode::Verified(path) => builder.with_root_certificates(roots(path)?).with_no_client_auth(),
        };
        Ok(Some(Tls(Arc::new(config))))
    }
}

fn roots(path: &PathBuf) -> Result<RootCertStore, TlsError> {
    let bytes = fs::read(path).map_err(|source| TlsError::Read { path: path.clone(), source })?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&bytes).flatten() {
        roots.add(certificate).map_err(|source| TlsError::Roots { path: path.clone(), source })?;
    }
    if roots.is_empty() { Err(TlsError::Empty(path.clone())) } else { Ok(roots) }
}

/// Believes any certificate, if only the server has its key.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// One connection's way to TLS.
pub(crate) struct Connect {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl MakeTlsConnect<Socket> for Tls {
    type Stream = Stream;
    type TlsConnect = Connect;
    type Error = InvalidDnsNameError;

    fn make_tls_connect(&mut self, domain: &str) -> Result<Connect, InvalidDnsNameError> {
        Ok(Connect { config: Arc::clone(&self.0), name: ServerName::try_from(domain.to_owned())? })
    }
}

impl TlsConnect<Socket> for Connect {
    type Stream = Stream;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Stream>>;

    fn connect(self, socket: Socket) -> Self::Future {
        TlsConnector::from(self.config).connect(self.name, socket).map_ok(|stream| Stream(Box::new(stream))).boxed()
    }
}

/// A connection.
pub(crate) struct Stream(Box<tokio_rustls::client::TlsStream<Socket>>);

impl TlsStream for Stream {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, into)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_about_tls_is_taken_out_of_the_url() {
        let is = |url: &str, rest: &str, mode| assert_eq!(split(url).unwrap(), (rest.to_owned(), mode), "{url}");
        is("postgres://a@h/d", "postgres://a@h/d", Mode::Plain);
        is("postgres://a@h/d?sslmode=prefer", "postgres://a@h/d", Mode::Plain);
        is("postgres://a@h/d?sslmode=require&connect_timeout=3", "postgres://a@h/d?connect_timeout=3", Mode::Encrypted);
        let roots = Mode::Verified("/etc/my ca.pem".into());
        is("postgres://a@h/d?x=1&sslrootcert=%2Fetc%2Fmy%20ca.pem&sslmode=verify-full", "postgres://a@h/d?x=1", roots);
        is("postgres://a@h/d?sslmode=require&sslrootcert=ca.pem", "postgres://a@h/d", Mode::Verified("ca.pem".into()));
        assert!(matches!(split("postgres://a@h/d?sslmode=verify-full"), Err(TlsError::NoRoots)));
        assert!(matches!(split("postgres://a@h/d?sslmode=verify-ca"), Err(TlsError::Mode(_))));
        assert_eq!(decoded("100%"), "100%");
    }
}
