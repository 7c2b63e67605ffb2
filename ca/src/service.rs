//! Where new members come for their first certificate, and old ones for their next.
//!
//! A process of its own: who has the authority's key is the cluster, so it lies on no machine that serves. When it is away nobody
//! joins and nothing else happens, until the first certificates end.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use banyan_etcd::{ReadError, Redeemed, Registry};
use banyan_proto::{
    Identity, NodeName, Role, Transport, dial,
    transport::{Clients, Peer},
    v1::{
        self,
        authority_server::{Authority as Asked, AuthorityServer},
    },
};
use tokio::{net::TcpListener, task::JoinHandle, time::timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Response, Status};

use crate::{Authority, AuthorityError, Grant, token};

/// A request with its key is some hundred bytes.
const MESSAGE_BYTES_MAX: usize = 16 << 10;
/// Who joins asks once.
const STREAMS_MAX: u32 = 8;
/// The registry is asked twice for each.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// What is said to everybody whose token is not good: which of the reasons it is helps nobody who should come in.
const NOT_GOOD: &str = "the token is not good: it was used, its ten minutes are over, or it is another cluster's; `banyan token create` makes another";

/// An authority that signs for who has a token or a certificate.
pub struct Service {
    address: SocketAddr,
    cancel: CancellationToken,
    serving: JoinHandle<Result<(), tonic::transport::Error>>,
    _renewing: DropGuard,
}

/// Why it does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The listener is unusable.
    #[error("failed to use the listening socket")]
    Listen(#[source] io::Error),
    /// It can't sign for itself.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

impl Service {
    /// Serves on `listener`; what it signs is good for `valid`.
    ///
    /// # Errors
    /// When the listener is of no use, or it can't sign for itself.
    pub async fn start(
        authority: Authority,
        registry: Registry,
        listener: TcpListener,
        valid: Duration,
    ) -> Result<Service, StartError> {
        let address = listener.local_addr().map_err(StartError::Listen)?;
        let authority = Arc::new(authority);
        let transport = Transport::mutual(authority.credentials(Role::Authority, "ca", valid)?);
        let cancel = CancellationToken::new();
        let ended = cancel.child_token();
        tokio::spawn(ended.clone().run_until_cancelled_owned(renew(authority.clone(), transport.clone(), valid)));
        let desk = AuthorityServer::new(Desk { authority, registry, valid }).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let router = dial::server().max_concurrent_streams(STREAMS_MAX).timeout(ANSWER_TIMEOUT).add_service(desk);
        let incoming = transport.incoming(listener, Clients::Anybody);
        let serving = tokio::spawn(router.serve_with_incoming_shutdown(incoming, cancel.clone().cancelled_owned()));
        Ok(Service { address, cancel, serving, _renewing: ended.drop_guard() })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers what was asked, and ends.
    pub async fn stop(mut self) {
        self.cancel.cancel();
        if timeout(STOP_TIMEOUT, &mut self.serving).await.is_err() {
            self.serving.abort();
        }
    }
}

/// Its own certificate ends like everybody's.
async fn renew(authority: Arc<Authority>, transport: Transport, valid: Duration) {
    loop {
        tokio::time::sleep(valid / 2).await;
        match authority.credentials(Role::Authority, "ca", valid) {
            Ok(credentials) => transport.renew(credentials),
            Err(error) => tracing::warn!(%error, "failed to renew the authority's own certificate"),
        }
    }
}

struct Desk {
    authority: Arc<Authority>,
    registry: Registry,
    valid: Duration,
}

impl Desk {
    fn sign(&self, request: &[u8], identity: &Identity) -> Result<v1::Certificate, Status> {
        let signed = self.authority.sign(request, identity, self.valid);
        let certificate = signed.map_err(|error| match error {
            AuthorityError::Request(_) => Status::invalid_argument(error.to_string()),
            error => Status::internal(error.to_string()),
        })?;
        Ok(v1::Certificate { certificate, authority: self.authority.pem().to_owned() })
    }
}

#[tonic::async_trait]
impl Asked for Desk {
    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::Certificate>, Status> {
        let v1::JoinRequest { secret, name, request } = request.into_inner();
        let name: NodeName =
            name.parse().map_err(|error: banyan_proto::NameError| Status::invalid_argument(error.to_string()))?;
        let not_good = || Status::permission_denied(NOT_GOOD);
        let hash = token::hash(&secret);
        let record = self.registry.token(&hash).await.map_err(|error| away(&error))?.ok_or_else(not_good)?;
        let grant = Grant::read(&self.authority, &hash, &record).filter(|grant| !grant.is_over()).ok_or_else(not_good)?;
        if let Some(granted) = grant.name.as_ref().filter(|granted| **granted != name) {
            return Err(Status::permission_denied(format!("the token is for {granted}, not for {name}")));
        }
        let identity = Identity { cluster: self.authority.cluster().clone(), role: grant.role, name };
        // Signed first: a request that is none does not cost the token.
        let certificate = self.sign(&request, &identity)?;
        let claim = grant.name.is_none().then_some((grant.role.as_str(), &identity.name));
        match self.registry.redeem(&hash, claim).await.map_err(|error| away(&error))? {
            Redeemed::Taken => {}
            Redeemed::Gone => return Err(not_good()),
            Redeemed::NameTaken => {
                return Err(Status::already_exists(format!(
                    "a certificate was made for the {} {} before: choose another name, or come with a token for that one \
                     (`banyan token create --name {}`)",
                    identity.role, identity.name, identity.name
                )));
            }
        }
        if grant.name.is_some()
            && let Err(error) = self.registry.claim_name(grant.role.as_str(), &identity.name).await
        {
            tracing::warn!(%error, member = %identity, "could not write down that the name was given out");
        }
        tracing::info!(member = %identity, "joined");
        Ok(Response::new(certificate))
    }

    async fn renew(&self, request: Request<v1::RenewRequest>) -> Result<Response<v1::Certificate>, Status> {
        let Peer(Some(identity)) = Peer::of(&request) else {
            return Err(Status::unauthenticated(
                "a certificate is renewed for who shows it: to get a first one, join with a token",
            ));
        };
        if identity.role == Role::Authority {
            return Err(Status::permission_denied("an authority signs for itself"));
        }
        if self.registry.is_revoked(identity.role.as_str(), &identity.name).await.map_err(|error| away(&error))? {
            tracing::warn!(member = %identity, "refused to renew a certificate that was revoked");
            return Err(Status::permission_denied(format!(
                "certificates of the {} {} were revoked: join again, with a token for that name",
                identity.role, identity.name
            )));
        }
        let certificate = self.sign(&request.into_inner().request, &identity)?;
        tracing::info!(member = %identity, "renewed");
        Ok(Response::new(certificate))
    }
}

fn away(error: &ReadError) -> Status {
    tracing::warn!(%error, "the registry can't be asked");
    Status::unavailable("the authority can't reach the registry: try again")
}

#[cfg(test)]
mod tests;
