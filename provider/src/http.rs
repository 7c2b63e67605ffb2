//! Connections to upstreams: HTTP/1.1, kept for the next call, over TLS where the address says so. A response that is dropped
//! before its end closes its connection, which is how an upstream learns that nobody wants the rest.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response, body::Incoming};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, Error, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use rustls::{ClientConfig, RootCertStore, crypto::ring, pki_types::CertificateDer};

/// A service that is further away than that serves nobody.
const CONNECT: Duration = Duration::from_secs(10);
/// Idle connections are closed before most services close them.
const IDLE: Duration = Duration::from_secs(50);

/// The way to an upstream. A cheap handle.
#[derive(Clone)]
pub(crate) struct Http(Client<HttpsConnector<HttpConnector>, Full<Bytes>>);

impl Http {
    /// Believes those that one of these vouches for; without them, whom browsers believe.
    pub(crate) fn new(authorities: Option<&[CertificateDer<'static>]>) -> Result<Http, rustls::Error> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(CONNECT));
        tcp.set_nodelay(true);
        let provider = Arc::new(ring::default_provider());
        let tls = match authorities {
            None => HttpsConnectorBuilder::new().with_provider_and_webpki_roots(provider)?,
            Some(authorities) => {
                let mut roots = RootCertStore::empty();
                authorities.iter().try_for_each(|one| roots.add(one.clone()))?;
                let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
                HttpsConnectorBuilder::new().with_tls_config(config.with_root_certificates(roots).with_no_client_auth())
            }
        };
        let connector = tls.https_or_http().enable_http1().wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).pool_idle_timeout(IDLE).build(connector);
        Ok(Http(client))
    }

    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Error> {
        self.0.request(request).await
    }
}
