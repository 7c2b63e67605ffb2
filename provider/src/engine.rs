//! The engine that a node is given: its orders become calls, and what these say becomes steps.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use banyan_engine::{Account, Engine, Info, Order, Orders, Output, Refusal, SequenceId, Served, Step};
use bytes::Bytes;
use http_body_util::Full;
use hyper::http;
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{
    call,
    config::{Config, Upstream},
    dialect::{self, Ask},
    http::Http,
    keys::{Broke, Fault, Keys, Limits, Reservation, masked},
};

/// Outputs that wait for the step that they leave with; beyond, calls read no further, and so their upstreams wait.
const OUTPUTS_WAITING: usize = 1024;
/// Outputs in one step.
const OUTPUTS_MAX: usize = 256;
/// As many as one node's frames to its root may be behind.
const STEPS_WAITING: usize = 64;
/// While a query found no key that has as much as it may need, others wait as long as it, at most: the root sends again whatever
/// it is handed back.
const CLOSED_MAX_MS: u64 = 1000;
/// What has changed is looked at no more often.
const LOOK_MIN: Duration = Duration::from_millis(20);
const LOOK_MAX: Duration = Duration::from_secs(60);
/// What a call reserves, until the first ones have shown it.
const TOKENS_TYPICAL: u64 = 512;
/// Calls over which a typical one is measured, about.
const TYPICAL_OF: u64 = 8;

/// Why a provider does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The operating system has no thread to give.
    #[error("failed to start the provider's thread")]
    Thread(#[source] std::io::Error),
    /// TLS can't be set up.
    #[error("failed to set TLS up")]
    Tls(#[source] rustls::Error),
}

/// A model at an upstream.
#[derive(Debug)]
pub(crate) struct Offer {
    pub(crate) upstream: usize,
    /// As it is called there.
    pub(crate) there: String,
}

/// What all calls share.
pub(crate) struct Shared {
    upstreams: Vec<Upstream>,
    /// By the name that it is asked for.
    offers: BTreeMap<String, Vec<Offer>>,
    /// The way to each.
    https: Vec<Http>,
    keys: Mutex<Keys>,
    secrets: Vec<String>,
    concurrent: u32,
    started: Instant,
    /// What the keys have left may be another now.
    changed: Notify,
    typical: AtomicU64,
    closed_until: AtomicU64,
}

/// Starts a provider, whose models are named with `prefix` before the names in its file. Must be called in a Tokio runtime.
///
/// # Errors
/// When the system lacks what it needs.
pub fn start(config: Config, prefix: &str) -> Result<(Engine, mpsc::Receiver<Step>), StartError> {
    let info = info(&config, prefix);
    let https = config.upstreams.iter().map(|upstream| Http::new(upstream.authorities.as_deref()));
    let https = https.collect::<Result<_, _>>().map_err(StartError::Tls)?;
    let shared = Arc::new(Shared::new(config, prefix, https));
    let spends = Arc::clone(&shared);
    let (engine, orders) = Engine::spending(info, move || spends.accounts());
    let (to, steps) = mpsc::channel(STEPS_WAITING);
    // Bounded by what the node submits.
    let (order, taken) = mpsc::unbounded_channel();
    let (done, ended) = oneshot::channel();
    thread::Builder::new().name("provider".into()).spawn(move || pass_on(&orders, order, ended)).map_err(StartError::Thread)?;
    tokio::spawn(async move {
        drive(shared, taken, to).await;
        // Nobody may wait for it.
        let _ = done.send(());
    });
    Ok((engine, steps))
}

/// Brings orders from where nothing can be awaited. The engine has ended when this has.
fn pass_on(orders: &Orders, to: mpsc::UnboundedSender<Order>, ended: oneshot::Receiver<()>) {
    while let Some(order) = orders.wait() {
        if to.send(order).is_err() {
            return;
        }
    }
    drop(to);
    let _ = ended.blocking_recv();
}

fn info(config: &Config, prefix: &str) -> Info {
    let mut contexts: BTreeMap<&str, u32> = BTreeMap::new();
    for model in config.upstreams.iter().flat_map(|upstream| &upstream.models) {
        let known = contexts.entry(model.name()).or_insert(u32::MAX);
        *known = model.context().min(*known);
    }
    let served = |(name, context): (&str, u32)| Served {
        model: format!("{prefix}{name}"),
        context,
        chat: true,
        dtype: "unknown".to_owned(),
        // Nobody knows what decides their bits.
        fingerprint: "provider".to_owned(),
        parameters: 0,
        created: 0,
    };
    Info {
        models: contexts.into_iter().map(served).collect(),
        device: "provider".to_owned(),
        batch_max: config.concurrent,
        queues: false,
    }
}

/// Runs until the engine is told to stop, or nobody reads what it says.
async fn drive(shared: Arc<Shared>, mut orders: mpsc::UnboundedReceiver<Order>, steps: mpsc::Sender<Step>) {
    let (to, mut outputs) = mpsc::channel(OUTPUTS_WAITING);
    let mut calls: HashMap<SequenceId, CancellationToken> = HashMap::new();
    // Calls end with this task.
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let (mut batch, mut slots) = (Vec::new(), shared.concurrent);
    loop {
        let slots_now = shared.slots(calls.len());
        let changed = (slots_now != slots).then_some(slots_now);
        slots = slots_now;
        if !batch.is_empty() || changed.is_some() {
            let step = Step { outputs: std::mem::take(&mut batch), slots: changed };
            if steps.send(step).await.is_err() {
                return;
            }
        }
        tokio::select! {
            order = orders.recv() => match order {
                Some(Order::Submit(request)) => {
                    let cancelled = stop.child_token();
                    calls.insert(request.id, cancelled.clone());
                    let (shared, to) = (Arc::clone(&shared), to.clone());
                    tokio::spawn(run(shared, *request, to, cancelled));
                }
                Some(Order::Cancel(id)) => if let Some(call) = calls.get(&id) {
                    call.cancel();
                },
                None => return,
            },
            _ = outputs.recv_many(&mut batch, OUTPUTS_MAX) => {
                batch.iter().filter(|output| output.is_last()).for_each(|output| drop(calls.remove(&output.id())));
            }
            () = shared.changed.notified() => {}
            () = sleep(shared.next_look()) => {}
        }
    }
}

/// Sends exactly one last output, whatever happens.
async fn run(shared: Arc<Shared>, request: banyan_engine::Request, to: mpsc::Sender<Output>, cancelled: CancellationToken) {
    let (id, outlet) = (request.id, to.clone());
    let answer = tokio::spawn(async move {
        tokio::select! {
            biased;
            () = cancelled.cancelled() => Output::Cancelled { id },
            last = call::answer(&shared, &request, &outlet) => last,
        }
    });
    let last = answer.await.unwrap_or_else(|_| {
        let refusal = Refusal::Engine("the provider's call panicked".to_owned());
        Output::Refused { id, refusal }
    });
    // Fails when the engine has stopped.
    let _ = to.send(last).await;
}

impl Shared {
    fn new(config: Config, prefix: &str, https: Vec<Http>) -> Shared {
        let (mut keys, mut secrets) = (Keys::default(), Vec::new());
        let mut offers: BTreeMap<String, Vec<Offer>> = BTreeMap::new();
        for (index, upstream) in config.upstreams.iter().enumerate() {
            for key in &upstream.keys {
                let limits = Limits {
                    requests_max: key.requests_per_minute.unwrap_or(u64::MAX),
                    tokens_max: key.tokens_per_minute.unwrap_or(u64::MAX),
                    budget: key.budget_tokens.unwrap_or(u64::MAX),
                    budget_every_ms: u64::try_from(key.budget_every.as_millis()).unwrap_or(u64::MAX),
                };
                keys.add(index, &upstream.name, masked(&key.secret), limits);
                secrets.push(key.secret.clone());
            }
            for model in &upstream.models {
                let offer = Offer { upstream: index, there: model.there().to_owned() };
                offers.entry(format!("{prefix}{}", model.name())).or_default().push(offer);
            }
        }
        Shared {
            upstreams: config.upstreams,
            offers,
            https,
            keys: Mutex::new(keys),
            secrets,
            concurrent: config.concurrent,
            started: Instant::now(),
            changed: Notify::new(),
            typical: AtomicU64::new(TOKENS_TYPICAL),
            closed_until: AtomicU64::new(0),
        }
    }

    pub(crate) fn upstream(&self, index: usize) -> &Upstream {
        &self.upstreams[index]
    }

    pub(crate) fn http(&self, upstream: usize) -> &Http {
        &self.https[upstream]
    }

    pub(crate) fn upstream_of(&self, key: usize) -> usize {
        self.keys().upstream(key)
    }

    /// Who has a model; of no name: the first one.
    pub(crate) fn offers(&self, model: &str) -> &[Offer] {
        let offers = if model.is_empty() { self.offers.values().next() } else { self.offers.get(model) };
        offers.map_or(&[], Vec::as_slice)
    }

    pub(crate) fn call(
        &self,
        upstream: usize,
        key: usize,
        traceparent: &str,
        ask: &Ask,
    ) -> http::Result<hyper::Request<Full<Bytes>>> {
        let upstream = &self.upstreams[upstream];
        let mut headers = dialect::headers(upstream.dialect, &self.secrets[key]);
        if !traceparent.is_empty() {
            headers.push(("traceparent", traceparent.to_owned()));
        }
        call::request(&upstream.url.to_string(), headers, ask)
    }

    pub(crate) fn reserve(&self, upstreams: &[usize], tried: &[usize], tokens: u64) -> Result<Reservation, Broke> {
        let typical = self.typical.load(Ordering::Relaxed);
        self.typical.store((typical * (TYPICAL_OF - 1) + tokens) / TYPICAL_OF, Ordering::Relaxed);
        let reserved = self.keys().reserve(self.now(), upstreams, tried, tokens);
        self.changed.notify_one();
        reserved
    }

    pub(crate) fn settle(&self, reservation: Reservation, tokens: u64) {
        self.keys().settle(reservation, tokens);
        self.changed.notify_one();
    }

    pub(crate) fn give_back(&self, reservation: Reservation) {
        self.keys().give_back(reservation);
        self.changed.notify_one();
    }

    pub(crate) fn succeeded(&self, reservation: Option<&Reservation>) {
        if let Some(reservation) = reservation {
            self.keys().succeeded(reservation);
        }
    }

    pub(crate) fn failed(&self, reservation: &Reservation, fault: Fault) {
        self.keys().failed(self.now(), reservation, fault, rand::random());
        self.changed.notify_one();
    }

    /// A query found no key of these upstreams: nothing more is taken for a while. But where others have something left, their models
    /// are still served, and the root tries again with what these are asked for.
    pub(crate) fn close_for(&self, wait_ms: u64, upstreams: &[usize]) {
        if self.keys().free(self.now(), self.typical.load(Ordering::Relaxed), upstreams) > 0 {
            return;
        }
        self.closed_until.store(self.now() + wait_ms.min(CLOSED_MAX_MS), Ordering::Relaxed);
        self.changed.notify_one();
    }

    fn accounts(&self) -> Vec<Account> {
        self.keys().accounts(self.now())
    }

    /// Calls that may be under way together, those that are included.
    fn slots(&self, running: usize) -> u32 {
        let closed = self.closed_until.load(Ordering::Relaxed) > self.now();
        let free = if closed { 0 } else { self.keys().free(self.now(), self.typical.load(Ordering::Relaxed), &[]) };
        u32::try_from(free.saturating_add(running as u64)).unwrap_or(u32::MAX).min(self.concurrent)
    }

    fn next_look(&self) -> Duration {
        let now = self.now();
        let closed = self.closed_until.load(Ordering::Relaxed).checked_sub(now).filter(|left| *left > 0);
        let next = [closed, self.keys().next_change_ms(now)].into_iter().flatten().min();
        next.map_or(LOOK_MAX, Duration::from_millis).clamp(LOOK_MIN, LOOK_MAX)
    }

    fn keys(&self) -> MutexGuard<'_, Keys> {
        // Whoever panicked in there left numbers, which are numbers still.
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Milliseconds since the start.
    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}
