//! The handle on one cluster's registry: connecting, reading, and where registering and watching begin.
//!
//! What is kept: the client, the cluster's keys, and which leases of this process were given up, so that a key which one of
//! them still holds is known for our own. The transaction is in `enrol`, keeping a registration in `keeper`, the view in
//! `watcher`.

use std::{
    collections::VecDeque,
    fmt,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock},
    time::Duration,
};

use banyan_proto::NodeName;
use etcd_client::{Certificate, Client, ConnectOptions, GetOptions, Identity, KvClient, LeaseClient, TlsOptions};
use tokio::{runtime::Handle, sync::watch, time::Instant};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    CallError, ConnectError, Member, ReadError, RegisterError, Registration, Root, View,
    backoff::Backoff,
    enrol::{self, Occasion},
    keys::Keys,
    lease::Lease,
    watcher::{self, Listing},
};

/// The deepest place in a tree, counted in ancestors: etcd takes 128 compares in one transaction, and a query pays for every
/// hop.
pub(crate) const DEPTH_MAX: usize = 32;

/// How many given-up leases are remembered. Each is gone from the registry within its time to live, so more than a few mean
/// that the registry has been away for long, and then the oldest are dead.
const ABANDONED_MAX: usize = 256;

/// How often HTTP/2 pings go out, so that a connection which a firewall forgot is noticed. etcd cuts off whoever pings more
/// often than every 5 s.
const PING_EVERY: Duration = Duration::from_secs(10);

/// The shortest time that one endpoint of several gets before the call goes to another.
const TRY_LEAST: Duration = Duration::from_millis(300);

/// Where the registry is, and how patient to be with it.
#[derive(Debug, Clone)]
pub struct Config {
    /// URLs such as `http://127.0.0.1:2379`: one, or every member of the etcd cluster.
    pub endpoints: Vec<String>,
    /// Whose keys these are; several clusters may share one etcd.
    pub cluster: NodeName,
    /// How long a node that fell silent keeps its name. Whole seconds, and at least 2 (what etcd grants at least).
    pub lease_ttl: Duration,
    /// How long one operation waits for answers.
    pub timeout: Duration,
    /// Whom to trust at `https://` endpoints, and as whom to come.
    pub tls: Option<Tls>,
}

/// TLS towards the registry. Everything is PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Tls {
    /// Who signed the registry's certificate.
    pub authority: Vec<u8>,
    /// Our certificate and its key, where the registry wants to know who comes.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
    /// The name that the registry's certificate has, where that is not the endpoint's.
    pub name: Option<String>,
}

impl Tls {
    fn options(&self) -> TlsOptions {
        let mut options = TlsOptions::new().ca_certificate(Certificate::from_pem(&self.authority));
        if let Some((certificate, key)) = &self.identity {
            options = options.identity(Identity::from_pem(certificate, key));
        }
        match &self.name {
            Some(name) => options.domain_name(name),
            None => options,
        }
    }
}

/// No key is ever shown.
impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The client of now: certificates end, and it is made again with the next.
pub(crate) type SharedClient = Arc<RwLock<Client>>;

pub(crate) fn now(client: &SharedClient) -> Client {
    // Each change is one assignment, so a panic elsewhere can't have left it half done.
    client.read().unwrap_or_else(PoisonError::into_inner).clone()
}

impl Config {
    /// The usual lease of 10 s (a restarting machine keeps nobody waiting for long, a short stall loses nothing) and
    /// time-out of 3 s.
    pub fn new(endpoints: Vec<String>, cluster: NodeName) -> Self {
        Config { endpoints, cluster, lease_ttl: Duration::from_secs(10), timeout: Duration::from_secs(3), tls: None }
    }
}

/// A cheap handle on one cluster's registry.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    client: SharedClient,
    keys: Keys,
    abandoned: Mutex<VecDeque<i64>>,
    view: OnceLock<watch::Receiver<Arc<View>>>,
    runtime: Handle,
    ended: CancellationToken,
    _end: DropGuard,
}

impl Registry {
    /// Connects, and waits for a first answer for at most the time-out.
    pub async fn connect(config: Config) -> Result<Registry, ConnectError> {
        if config.endpoints.is_empty() {
            return Err(ConnectError::NoEndpoints);
        }
        let options = options(config.timeout, config.tls.as_ref());
        for endpoint in &config.endpoints {
            let made = Client::connect([endpoint], Some(options.clone())).await;
            made.map_err(|error| ConnectError::Endpoint { endpoint: endpoint.clone(), source: error.into() })?;
        }
        let endpoints = config.endpoints.join(",");
        let client = Client::connect(&config.endpoints, Some(options))
            .await
            .map_err(|error| ConnectError::Endpoint { endpoint: endpoints.clone(), source: error.into() })?;
        let ended = CancellationToken::new();
        let registry = Registry {
            inner: Arc::new(Inner {
                keys: Keys::new(&config.cluster),
                client: Arc::new(RwLock::new(client)),
                abandoned: Mutex::default(),
                view: OnceLock::new(),
                runtime: Handle::current(),
                _end: ended.clone().drop_guard(),
                ended,
                config,
            }),
        };
        let probe = || async {
            let options = GetOptions::new().with_prefix().with_count_only();
            registry.call(registry.kv().get(registry.keys().all(), Some(options))).await
        };
        match registry.patiently(probe).await {
            Ok(_) => Ok(registry),
            Err(source) => Err(ConnectError::Unavailable { endpoints, source }),
        }
    }

    /// Comes with another certificate from now on. What is under way goes on.
    pub async fn renew(&self, tls: Tls) -> Result<(), ConnectError> {
        let options = options(self.timeout(), Some(&tls));
        let made = Client::connect(self.endpoints(), Some(options)).await;
        let endpoint = || self.endpoints().join(",");
        let client = made.map_err(|error| ConnectError::Endpoint { endpoint: endpoint(), source: error.into() })?;
        *self.inner.client.write().unwrap_or_else(PoisonError::into_inner) = client;
        Ok(())
    }

    /// The endpoints that it was connected with.
    pub fn endpoints(&self) -> &[String] {
        &self.inner.config.endpoints
    }

    /// The cluster whose registry this is.
    pub fn cluster(&self) -> &NodeName {
        &self.inner.config.cluster
    }

    /// Takes the member's name, and for a root its tree's place, in one transaction, and keeps them by a lease until the
    /// registration is left or dropped. The incarnation is the registry's to choose; what is given is ignored.
    pub async fn register(&self, member: Member) -> Result<Registration, RegisterError> {
        if let Err(source) = member.to_value() {
            return Err(RegisterError::Invalid { name: member.name, source });
        }
        let lease = self.patiently(|| Lease::grant(self)).await;
        let lease = lease.map_err(|source| self.unavailable(source))?;
        let enrolled = enrol::enrol(self, &member, &[], lease.id(), Occasion::Arrival).await?;
        Ok(Registration::start(self.clone(), lease, enrolled))
    }

    /// Takes the place of a tree's root away from one that is dead, if nothing of it has changed since it was seen. With
    /// `lapsed`, only if it has let a renewal of its lease pass as well. False when nothing was taken.
    pub async fn evict_root(&self, tree: &NodeName, root: &Root, lapsed: bool) -> Result<bool, ReadError> {
        enrol::evict(self, tree, root, lapsed).await.map_err(|source| self.unreadable(source))
    }

    /// Takes a name away from a life that has let a renewal of its lease pass. False when it has not.
    pub async fn evict_lapsed(&self, member: &Member) -> Result<bool, ReadError> {
        enrol::evict_member(self, member).await.map_err(|source| self.unreadable(source))
    }

    /// Everyone registered, by name.
    pub async fn members(&self) -> Result<Vec<Member>, ReadError> {
        let listing = self.listing();
        let listed = self.patiently(|| listing.read()).await;
        let view = listed.map_err(|source| self.unreadable(source))?;
        Ok(view.members.into_values().collect())
    }

    /// The member of this name.
    pub async fn member(&self, name: &NodeName) -> Result<Option<Member>, ReadError> {
        let key = self.keys().node(name);
        let got = self.patiently(|| async { self.call(self.kv().get(key.as_str(), None)).await }).await;
        let response = got.map_err(|source| self.unreadable(source))?;
        let member = response.kvs().first().map(|kv| Member::parse(name, kv.value()));
        member.transpose().map_err(|source| ReadError::Foreign { key, source })
    }

    /// The view of the cluster. It heals itself, and holds what was known last when the registry is gone. It ends when the
    /// last handle and the last registration are dropped.
    pub fn watch(&self) -> watch::Receiver<Arc<View>> {
        self.inner.view.get_or_init(|| watcher::spawn(&self.inner.runtime, self.listing(), self.inner.ended.clone())).clone()
    }

    pub(crate) fn keys(&self) -> &Keys {
        &self.inner.keys
    }

    pub(crate) fn kv(&self) -> KvClient {
        now(&self.inner.client).kv_client()
    }

    pub(crate) fn leases(&self) -> LeaseClient {
        now(&self.inner.client).lease_client()
    }

    pub(crate) fn lease_ttl(&self) -> Duration {
        self.inner.config.lease_ttl
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.inner.config.timeout
    }

    pub(crate) fn runtime(&self) -> &Handle {
        &self.inner.runtime
    }

    /// Reading everything; holds no handle on the registry.
    pub(crate) fn listing(&self) -> Listing {
        Listing::new(self.inner.client.clone(), self.keys().clone(), self.timeout())
    }

    /// One call, one try.
    pub(crate) async fn call<T>(&self, call: impl Future<Output = Result<T, etcd_client::Error>>) -> Result<T, CallError> {
        // With several endpoints, one that hangs must leave time for the others.
        let endpoints = u32::try_from(self.endpoints().len()).unwrap_or(u32::MAX);
        let limit = (self.timeout() / endpoints).max(TRY_LEAST).min(self.timeout());
        match tokio::time::timeout(limit, call).await {
            Ok(result) => result.map_err(CallError::from),
            Err(_) => Err(CallError::TimedOut(limit)),
        }
    }

    /// Tries again while failures look passing, within the time-out.
    pub(crate) async fn patiently<T, F>(&self, call: impl Fn() -> F) -> Result<T, CallError>
    where
        F: Future<Output = Result<T, CallError>>,
    {
        let deadline = Instant::now() + self.timeout();
        let mut backoff = Backoff::while_unavailable();
        loop {
            let error = match tokio::time::timeout_at(deadline, call()).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => error,
                Err(_) => return Err(CallError::TimedOut(self.timeout())),
            };
            let wait = backoff.next();
            if !error.is_passing() || Instant::now() + wait >= deadline {
                return Err(error);
            }
            tokio::time::sleep(wait).await;
        }
    }

    pub(crate) fn unavailable(&self, source: CallError) -> RegisterError {
        let endpoints = self.endpoints().join(",");
        if source.is_forbidden() {
            return RegisterError::Forbidden { endpoints, source };
        }
        RegisterError::Unavailable { endpoints, source }
    }

    pub(crate) fn unreadable(&self, source: CallError) -> ReadError {
        ReadError::Unavailable { endpoints: self.endpoints().join(","), source }
    }

    /// Remembers that a lease of ours is given up: what it still holds is not somebody else's.
    pub(crate) fn abandon(&self, lease: i64) {
        let mut abandoned = self.abandoned();
        if abandoned.len() == ABANDONED_MAX {
            abandoned.pop_front();
        }
        abandoned.push_back(lease);
    }

    /// Forgets a given-up lease that the registry has none of any more.
    pub(crate) fn forget(&self, lease: i64) {
        self.abandoned().retain(|known| *known != lease);
    }

    pub(crate) fn has_abandoned(&self, lease: i64) -> bool {
        self.abandoned().contains(&lease)
    }

    fn abandoned(&self) -> MutexGuard<'_, VecDeque<i64>> {
        // Every change to the list is one call, so a panic elsewhere can't have left it half done.
        self.inner.abandoned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn options(timeout: Duration, tls: Option<&Tls>) -> ConnectOptions {
    let options = ConnectOptions::new().with_connect_timeout(timeout).with_keep_alive(PING_EVERY, timeout);
    match tls {
        Some(tls) => options.with_tls(tls.options()),
        None => options,
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("config", &self.inner.config).finish_non_exhaustive()
    }
}
