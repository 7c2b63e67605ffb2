//! The server: accepts connections, bounds them in number and time, and ends them gracefully.
//!
//! hyper's own server rather than `axum::serve`, which installs no timer, so that slow headers would hold connections for
//! ever. What is answered is in `routes.rs`.

use std::{
    io,
    net::SocketAddr,
    pin::pin,
    sync::{Arc, atomic::Ordering},
    task::Poll,
    time::Duration,
};

use axum::Router;
use banyan_etcd::{Registry, View};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::{JoinHandle, JoinSet},
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use tracing::{debug, info, warn};

use crate::{
    Config, Https, batches, body,
    hosts::Hosts,
    keyring::Keyring,
    meters::{self, Meters},
    recorder::Recorder,
    root::Roots,
    routes::{self, Shared},
    stall::Stalling,
    under_way::UnderWay,
};

/// How long connections may take to close after their answers were ended.
const CLOSING: Duration = Duration::from_secs(1);

/// How long a connection that came too late may take to ask and to be told so.
const LATE: Duration = Duration::from_secs(5);

/// How long to wait before accepting again when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A running HTTP API. Dropping it ends it at once; [`stop`](Api::stop) lets answers finish.
pub struct Api {
    address: SocketAddr,
    stopping: CancellationToken,
    ending: CancellationToken,
    task: JoinHandle<()>,
    /// Writes down what has ended.
    recording: Option<JoinHandle<()>>,
    /// Ends what looks after the store.
    _caring: DropGuard,
    /// Keeps the registry's watch alive.
    _registry: Option<Registry>,
}

/// Why an API did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The listener is of no use.
    #[error("failed to read the address that the API listens on")]
    Address(#[source] io::Error),
    /// The store can't be asked for its keys.
    #[error("failed to read the keys")]
    Store(#[source] banyan_store::Error),
    /// It would serve whoever reaches it.
    #[error("the API would serve anybody who reaches {address}, as there are no keys")]
    Open {
        /// Where it would listen.
        address: SocketAddr,
    },
}

impl Api {
    /// Serves on `listener`, asking the roots that `registry` names.
    ///
    /// # Errors
    /// When the listener has no address, the store can't be read, or nothing would keep strangers out.
    pub async fn start(config: Config, registry: Registry, listener: TcpListener) -> Result<Api, StartError> {
        let mut api = Self::over(config, registry.watch(), listener).await?;
        api._registry = Some(registry);
        Ok(api)
    }

    /// Serves on `listener`, asking the roots in a view that comes from elsewhere than a registry.
    ///
    /// # Errors
    /// As [`Api::start`].
    pub async fn over(config: Config, view: watch::Receiver<Arc<View>>, listener: TcpListener) -> Result<Api, StartError> {
        let address = listener.local_addr().map_err(StartError::Address)?;
        let https = config.https;
        let (stopping, ending) = (CancellationToken::new(), CancellationToken::new());
        let caring = CancellationToken::new();
        let (mut keyring, mut recorder, mut recording) = (Arc::new(Keyring::none()), Recorder::none(), None);
        if let Some(store) = &config.store {
            let beyond = !address.ip().to_canonical().is_loopback();
            keyring = Arc::new(Keyring::load(store, beyond && !config.open).await.map_err(StartError::Store)?);
            if keyring.is_empty() && beyond && !config.open {
                return Err(StartError::Open { address });
            }
            let (started, task) = Recorder::start(store.clone());
            (recorder, recording) = (started, Some(task));
            tokio::spawn(caring.clone().run_until_cancelled_owned(Arc::clone(&keyring).follow(store.clone())));
        }
        let meters = Arc::new(Meters::new(&config.metrics));
        let shared = Arc::new(Shared {
            hosts: Hosts::new(address, config.hosts),
            store: config.store,
            keyring,
            recorder,
            log_texts: config.log_texts,
            replica: config.replica.unwrap_or_else(|| address.to_string()),
            roots: Arc::new(Roots::new(
                view,
                config.aliases,
                config.transport,
                config.limits.root_retry,
                config.limits.failover,
                Arc::clone(&meters),
                config.tracer,
            )),
            metrics: config.metrics.clone(),
            meters,
            returns: Default::default(),
            bodies: Arc::new(Semaphore::new(body::permits(config.limits.bodies_bytes))),
            stopping: stopping.clone(),
            ending: ending.clone(),
            sockets: Arc::new(Semaphore::new(config.limits.sockets)),
            trees: Default::default(),
            batches: Default::default(),
            legacy_count: Default::default(),
            limits: config.limits,
        });
        meters::read_when_asked(&config.metrics, &shared);
        if let Some(store) = &shared.store {
            let working = batches::work(Arc::clone(&shared), routes::router(Arc::clone(&shared)), store.clone());
            tokio::spawn(caring.clone().run_until_cancelled_owned(working));
        }
        info!(%address, "API listens");
        if let Some(https) = &https {
            tokio::spawn(caring.clone().run_until_cancelled_owned(https.clone().follow()));
        }
        let task = tokio::spawn(serve(listener, https, shared));
        Ok(Api { address, stopping, ending, task, recording, _caring: caring.drop_guard(), _registry: None })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes no more queries, which `/readyz` tells meanwhile, lets answers go on for [`Limits::drain`](crate::Limits::drain), ends
    /// the rest with an error, and closes all connections.
    pub async fn stop(mut self) {
        self.stopping.cancel();
        if let Err(error) = (&mut self.task).await {
            warn!(%error, "API's task failed");
        }
        // What it served is gone, and so nothing more comes to be written.
        if let Some(recording) = self.recording.take()
            && tokio::time::timeout(CLOSING, recording).await.is_err()
        {
            warn!("some usage was not written");
        }
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.ending.cancel();
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, https: Option<Https>, shared: Arc<Shared>) {
    let limits = shared.limits.clone();
    let permits = Arc::new(Semaphore::new(limits.connections));
    let service = TowerToHyperService::new(routes::router(shared.clone()));
    let connections = TaskTracker::new();
    // Ends with this task, however that ends, and takes the connections along.
    let cut = CancellationToken::new();
    let _cut = cut.clone().drop_guard();
    // A client that closes its sending half counts as gone: TCP shows no difference between the two before something is
    // written, and whoever has gone must not keep a node busy with an answer that is written at the end only.
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limits.header_read).max_buf_size(limits.buffer_bytes);

    loop {
        let accept = async {
            let permit = permits.clone().acquire_owned().await.expect("the semaphore is never closed");
            (listener.accept().await, permit)
        };
        let (accepted, permit) = tokio::select! {
            () = shared.stopping.cancelled() => break,
            accepted = accept => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // A client that is gone already costs nothing; a lack of file descriptors would spin.
                warn!(%error, "failed to accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        without_delay(&stream);
        let (http, https, service, shared) = (http.clone(), https.clone(), service.clone(), Arc::clone(&shared));
        let connection = async move {
            match https {
                None => connection(&http, stream, service, &shared).await,
                Some(https) => match https.greet(stream, shared.limits.header_read).await {
                    Ok(stream) => connection(&http, stream, service, &shared).await,
                    Err(error) => {
                        debug!(%error, "no TLS");
                        Ok(())
                    }
                },
            }
        };
        let cut = cut.clone();
        connections.spawn(async move {
            tokio::select! {
                () = cut.cancelled() => {}
                ended = connection => if let Err(error) = ended {
                    debug!(error = &error as &dyn std::error::Error, "connection ended");
                },
            }
            drop(permit);
        });
    }

    connections.close();
    let sockets = u32::try_from(limits.sockets).unwrap_or(u32::MAX);
    let all_closed = || async {
        connections.wait().await;
        // Those that became WebSockets are no connections any more.
        drop(shared.sockets.acquire_many(sockets).await);
    };
    let ended = async {
        if tokio::time::timeout(limits.drain, all_closed()).await.is_err() {
            // Whoever still reads an answer is told why it ends.
            shared.ending.cancel();
            if tokio::time::timeout(CLOSING, all_closed()).await.is_err() {
                debug!("connections cut");
            }
        }
    };
    tokio::select! {
        () = ended => {}
        () = turn_away(&listener, &mut http, &https, &service, &permits) => {}
    }
}

/// Goes on accepting, so that whoever sends traffic here is told to send it elsewhere rather than refused without a word.
async fn turn_away(
    listener: &TcpListener,
    http: &mut http1::Builder,
    https: &Option<Https>,
    service: &TowerToHyperService<Router>,
    permits: &Arc<Semaphore>,
) {
    http.keep_alive(false);
    // Dropped with this, they are cut: nobody waits for those who came too late.
    let mut late = JoinSet::new();
    loop {
        while late.try_join_next().is_some() {}
        let permit = permits.clone().acquire_owned().await.expect("the semaphore is never closed");
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        without_delay(&stream);
        let (http, https, service) = (http.clone(), https.clone(), service.clone());
        let answering = async move {
            match https {
                None => http.serve_connection(TokioIo::new(stream), service).await,
                Some(https) => match https.greet(stream, LATE).await {
                    Ok(stream) => http.serve_connection(TokioIo::new(stream), service).await,
                    Err(_) => Ok(()),
                },
            }
        };
        late.spawn(async move {
            if let Ok(Err(error)) = tokio::time::timeout(LATE, answering).await {
                debug!(error = &error as &dyn std::error::Error, "connection ended");
            }
            drop(permit);
        });
    }
}

/// Serves one connection to its end. Once the API stops, that is the end of the answer that is under way; without one it is
/// now, whatever part of a request has arrived.
fn connection<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    http: &http1::Builder,
    stream: S,
    service: TowerToHyperService<Router>,
    shared: &Arc<Shared>,
) -> impl Future<Output = Result<(), hyper::Error>> + Send + use<S> {
    let stream = Stalling::new(stream, shared.limits.write_stall);
    let (requests, writing) = (UnderWay::default(), stream.waits());
    let serving = http.serve_connection(TokioIo::new(stream), requests.counted(service)).with_upgrades();
    let shared = Arc::clone(shared);
    async move {
        let mut serving = pin!(serving);
        tokio::select! {
            // First, so that what has arrived already is seen.
            biased;
            ended = &mut serving => return ended,
            () = shared.stopping.cancelled() => serving.as_mut().graceful_shutdown(),
        }
        // Polled once, it has sent what the client takes now; hyper itself would wait for the rest of a request's head.
        match futures::poll!(&mut serving) {
            Poll::Ready(ended) => ended,
            Poll::Pending if requests.is_empty() && !writing.load(Ordering::Relaxed) => Ok(()),
            Poll::Pending => serving.await,
        }
    }
}

/// Tokens are small and wanted at once.
fn without_delay(stream: &TcpStream) {
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "failed to switch Nagle's algorithm off");
    }
}
