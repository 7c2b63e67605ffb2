//! A single-process registry: the part of etcd's v3 gRPC API that Banyan and `etcdctl` use, so that a laptop needs no etcd.
//!
//! [`Server`] is a thin gRPC layer over a task that owns the pure store. Of its file, keys, revision and leases survive a
//! crash; without one nothing does, and its revision begins at the Unix time in milliseconds, so epochs and incarnations
//! never run backwards. The rest of etcd's API answers UNIMPLEMENTED.

mod identity;
mod keyspace;
mod kv;
mod lease;
mod leases;
mod log;
mod maintenance;
mod owner;
mod range;
mod record;
mod refusal;
mod rights;
mod span;
mod store;
#[cfg(test)]
mod store_model;
mod txn;
mod watch;
mod watching;

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use banyan_proto::{Transport, transport::Clients};
use etcd_client::proto::{PbClusterServer, PbKvServer, PbLeaseServer, PbMaintenanceServer, PbWatchServer};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use self::log::FileError;
use self::{
    identity::Identity, kv::Kv, lease::Lease, log::Log, maintenance::Cluster, maintenance::Maintenance, owner::Owner,
    store::Store, watch::Watch,
};

/// The largest message that is read, in bytes: etcd's request limit and its allowance for the envelope.
const MESSAGE_BYTES_MAX: usize = 2 << 20;

/// How many requests and streams one connection may have open: a process that carries a hundred nodes needs some two hundred.
const STREAMS_MAX: u32 = 4096;

/// How many cancelled streams a connection may have waiting: h2's 20 would cut off a client that gives up many calls at once.
const RESETS_MAX: usize = 1024;

/// How often a silent connection is probed, and how long for an answer: clients that vanished leave within 15 s.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// How long stopping waits for open calls. They all end at once; only a client that does not read takes longer.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// A running server.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    ended: CancellationToken,
    serving: JoinHandle<()>,
    owning: JoinHandle<()>,
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The listener has no address.
    #[error("the registry's listener can't be used")]
    Listener(#[source] io::Error),
    /// The file can't be used.
    #[error(transparent)]
    File(#[from] FileError),
}

impl Server {
    /// Serves on `listener`, keeping what it holds in `file` if one is given.
    pub async fn start(listener: TcpListener, file: Option<PathBuf>) -> Result<Server, StartError> {
        Self::over(Transport::default(), listener, file).await
    }

    /// The same, for whoever the transport lets in.
    pub async fn over(transport: Transport, listener: TcpListener, file: Option<PathBuf>) -> Result<Server, StartError> {
        let address = listener.local_addr().map_err(StartError::Listener)?;
        let first_revision = unix_ms();
        let (log, store) = match file {
            None => (None, Store::new(first_revision)),
            Some(path) => {
                let opened = path.clone();
                let opening = tokio::task::spawn_blocking(move || Log::open(&opened, first_revision)).await;
                let failed = |error| Err(FileError::Io { path, source: io::Error::other(error) });
                let (log, store) = opening.unwrap_or_else(failed)?;
                (Some(log), store)
            }
        };
        let revision = store.revision();
        let ended = CancellationToken::new();
        let (owner, owning) = Owner::start(store, log, ended.clone());
        let serving = tokio::spawn(serve(transport, listener, owner, Identity::new(address), ended.clone()));
        info!(%address, revision, "the registry is serving");
        Ok(Server { address, ended, serving, owning })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends every stream, stops listening and closes the file. Leases are not revoked: their holders may outlive a restart.
    pub async fn stop(mut self) {
        self.ended.cancel();
        if tokio::time::timeout(STOP_TIMEOUT, &mut self.serving).await.is_err() {
            self.serving.abort();
        }
        // It was told to end, and does nothing that could hang.
        let _ = (&mut self.owning).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ended.cancel();
    }
}

async fn serve(transport: Transport, listener: TcpListener, owner: Owner, identity: Identity, ended: CancellationToken) {
    let kv = PbKvServer::new(Kv { owner: owner.clone(), identity });
    let lease = PbLeaseServer::new(Lease { owner: owner.clone(), identity });
    let watch = PbWatchServer::new(Watch { owner: owner.clone(), identity });
    let maintenance = PbMaintenanceServer::new(Maintenance { owner: owner.clone(), identity });
    let cluster = PbClusterServer::new(Cluster { owner, identity });
    let served = tonic::transport::Server::builder()
        .max_concurrent_streams(STREAMS_MAX)
        .http2_max_pending_accept_reset_streams(Some(RESETS_MAX))
        .http2_keepalive_interval(Some(PING_EVERY))
        .http2_keepalive_timeout(Some(PING_TIMEOUT))
        .add_service(kv.max_decoding_message_size(MESSAGE_BYTES_MAX))
        .add_service(lease.max_decoding_message_size(MESSAGE_BYTES_MAX))
        .add_service(watch.max_decoding_message_size(MESSAGE_BYTES_MAX))
        .add_service(maintenance.max_decoding_message_size(MESSAGE_BYTES_MAX))
        .add_service(cluster.max_decoding_message_size(MESSAGE_BYTES_MAX))
        .serve_with_incoming_shutdown(transport.incoming(listener, Clients::OfCluster), ended.cancelled())
        .await;
    if let Err(error) = served {
        warn!(%error, "the registry stopped serving");
    }
}

fn unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX).max(1)
}
