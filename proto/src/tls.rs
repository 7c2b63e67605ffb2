//! The two ends of a TLS 1.3 connection: what each shows, and whom it takes.

use std::{io, sync::Arc};

use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
    client::{
        ResolvesClientCert, Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        ClientHello, NoServerSessionStorage, ResolvesServerCert,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
};
use sha2::{Digest as _, Sha256};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;
use tonic::transport::Uri;

use crate::{
    Expected, Identity, Role,
    credentials::{Current, other, provider, verified},
    transport::{Clients, HANDSHAKE_TIMEOUT},
};

/// The server's name in the handshake; who answers is checked by the identity, not by this.
const SERVER_NAME: &str = "banyan.internal";

pub(crate) type Dialled = TokioIo<tokio_rustls::client::TlsStream<TcpStream>>;

/// Dials with what is shown at that time, and takes nobody but the expected.
pub(crate) fn known(current: &Current, expected: Expected) -> ClientConfig {
    client(Who::Known { current: current.clone(), expected }, Some(Shown(current.clone())))
}

/// Dials the authority whose certificate has this hash, showing nothing.
pub(crate) fn pinned(pin: [u8; 32]) -> ClientConfig {
    client(Who::Pinned(pin), None)
}

/// Dials by TCP, and greets.
pub(crate) fn connector(
    config: ClientConfig,
) -> impl tower::Service<Uri, Response = Dialled, Error = io::Error, Future = impl Future<Output = io::Result<Dialled>> + Send>
+ Send
+ 'static {
    let connector = TlsConnector::from(Arc::new(config));
    tower::service_fn(move |uri: Uri| {
        let connector = connector.clone();
        async move {
            let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
            let stream = TcpStream::connect((host, uri.port_u16().unwrap_or(80))).await?;
            stream.set_nodelay(true)?;
            let name = ServerName::try_from(SERVER_NAME).expect("a valid DNS name");
            let greeted = timeout(HANDSHAKE_TIMEOUT, connector.connect(name, stream)).await;
            Ok(TokioIo::new(greeted.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??))
        }
    })
}

fn client(who: Who, shown: Option<Shown>) -> ClientConfig {
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider knows TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Answering(who)));
    let mut config = match shown {
        Some(shown) => config.with_client_cert_resolver(Arc::new(shown)),
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A resumed session would not look at the certificates again.
    config.resumption = Resumption::disabled();
    config
}

pub(crate) fn server(current: &Current, clients: Clients) -> ServerConfig {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider knows TLS 1.3")
        .with_client_cert_verifier(Arc::new(Calling { current: current.clone(), clients }))
        .with_cert_resolver(Arc::new(Shown(current.clone())));
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config
}

/// Shows the certificate of now.
#[derive(Debug)]
struct Shown(Current);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.get().key)
    }
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.get().key)
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Looks at who answers.
#[derive(Debug)]
struct Answering(Who);

#[derive(Debug)]
enum Who {
    Known {
        current: Current,
        expected: Expected,
    },
    /// The authority whose certificate has this SHA-256, and who shows it.
    Pinned([u8; 32]),
}

#[derive(Debug, thiserror::Error)]
#[error("who answers is not the authority that made the token: the token is another cluster's, or somebody is in between")]
struct Unpinned;

#[derive(Debug, thiserror::Error)]
#[error("{0} answers, not {1}")]
struct Another(Identity, Expected);

impl ServerCertVerifier for Answering {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let usage = webpki::KeyUsage::server_auth();
        match &self.0 {
            Who::Known { current, expected } => {
                let identity = current.get().verify(end_entity, intermediates, now, usage)?;
                if !expected.is(&identity) {
                    return Err(other(Another(identity, expected.clone())));
                }
            }
            Who::Pinned(pin) => {
                let authority = intermediates.iter().find(|shown| Sha256::digest(shown)[..] == pin[..]);
                let authority = authority.ok_or_else(|| other(Unpinned))?;
                let mut trusted = RootCertStore::empty();
                trusted.add(authority.clone().into_owned())?;
                let identity = verified(end_entity, &trusted, &[], now, usage)?;
                let expected = Expected::any(&[Role::Authority]);
                if !expected.is(&identity) {
                    return Err(other(Another(identity, expected)));
                }
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(too_old())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Looks at who calls.
#[derive(Debug)]
struct Calling {
    current: Current,
    clients: Clients,
}

impl ClientCertVerifier for Calling {
    fn client_auth_mandatory(&self) -> bool {
        self.clients == Clients::OfCluster
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.current.get().verify(end_entity, intermediates, now, webpki::KeyUsage::client_auth())?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(too_old())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

fn too_old() -> rustls::Error {
    rustls::Error::General("TLS 1.2 is not spoken here".to_owned())
}
