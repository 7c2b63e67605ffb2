//! The handle to a running engine.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
    mpsc as commands,
};
use std::{fmt, thread};

use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use crate::admission::Admissions;
use crate::kernels::Pool;
use crate::local::{self, Local};
use crate::room::{Room, room};
use crate::runner::{self, Backend, Command, Outlets, STEPS_WAITING};
use crate::scheduler::{Limits, Recording, Scheduler, Stats};
use crate::several::{self, Several};
use crate::{Account, KvMemory, Model, Profile, Request, SequenceId, Step, fake, kv, threads};

/// What an engine serves, and with what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// Its models, at least one; the first is for those who do not name theirs.
    pub models: Vec<Served>,
    /// `cpu`, `cuda:0`, `fake` or `provider`.
    pub device: String,
    /// Sequences that run at once, of all models together.
    pub batch_max: u32,
    /// Whether a batch may wait in front of it. In front of a service that counts requests nobody gains by waiting.
    pub queues: bool,
}

/// One model that an engine serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// Its public name.
    pub model: String,
    /// Tokens of a prompt and its answer together.
    pub context: u32,
    /// Whether it has a chat template of its own.
    pub chat: bool,
    /// Of the weights.
    pub dtype: String,
    /// What decides the bits of the results: equal fingerprints give equal answers.
    pub fingerprint: String,
    /// Number of weights.
    pub parameters: u64,
    /// Unix seconds at which the model's files were written.
    pub created: u64,
}

impl Info {
    /// The model of that name; of no name: the first.
    pub fn served(&self, model: &str) -> Option<&Served> {
        self.models.iter().find(|served| model.is_empty() || served.model == model)
    }

    /// The first model.
    ///
    /// # Panics
    ///
    /// When somebody made one without any.
    pub fn first(&self) -> &Served {
        self.models.first().expect("an engine serves at least one model")
    }

    /// Of all its models.
    pub fn fingerprint(&self) -> String {
        let all: Vec<&str> = self.models.iter().map(|served| served.fingerprint.as_str()).collect();
        all.join("+")
    }
}

/// How to run a model.
#[derive(Clone, Debug)]
pub struct Options {
    /// Sequences that run at once.
    pub batch_max: u32,
    /// CPU threads at most; `None`: as many as cores, and never more. The engines of a process share its cores: those that are
    /// busy divide them.
    pub threads: Option<usize>,
    /// Tokens that go through the model in one step: what a long prompt may delay the other sequences by.
    pub step_tokens: u32,
    /// Bytes for KV; `None`: whole contexts for the whole batch, as far as a quarter of the available memory goes. Where a whole
    /// context does not fit, a shorter one is served.
    pub kv_memory: Option<u64>,
    /// Engines of this process, which divide that quarter.
    pub engines: usize,
    /// Whether to guess at the tokens that follow where a step has time to check the guesses. Changes no text.
    pub speculate: bool,
    /// Keeps what the scheduler was told and what it planned.
    pub recording: Option<Recording>,
    /// Notes where the steps' time goes.
    pub profile: Option<Profile>,
}

impl Default for Options {
    fn default() -> Options {
        // 64 rows are where the arithmetic of a step, not the weights' bytes, takes the time; 256 tokens take some tens of
        // milliseconds on two cores.
        Options {
            batch_max: 64,
            threads: None,
            step_tokens: 256,
            kv_memory: None,
            engines: 1,
            speculate: true,
            recording: None,
            profile: None,
        }
    }
}

/// Why an engine does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An option makes no sense.
    #[error("{0}")]
    Option(String),
    /// Not even one sequence would fit.
    #[error(transparent)]
    KvMemory(#[from] KvMemory),
    /// The device has no room.
    #[error("failed to set the KV memory up on the device")]
    Device(#[source] candle_core::Error),
    /// The operating system has no thread to give.
    #[error("failed to start the engine's threads")]
    Thread(#[source] std::io::Error),
}

/// A running engine. A cheap handle: clones reach the same engine, and it stops when the last one is gone.
#[derive(Clone, Debug)]
pub struct Engine {
    works: Works,
}

#[derive(Clone, Debug)]
enum Works {
    One(Arc<Shared>),
    Several(Arc<Several>),
}

struct Shared {
    info: Info,
    /// Unbounded, so that `submit` never blocks: the node bounds what it submits, and a command is small.
    commands: commands::Sender<Command>,
    stop: watch::Sender<bool>,
    stats: watch::Receiver<Stats>,
    /// Closed when the engine's threads have ended.
    ended: watch::Receiver<()>,
    /// Requests that the caller would submit if there were slots.
    outside: Arc<AtomicU32>,
    /// The keys that it spends from elsewhere, as they stand.
    accounts: Option<Accounts>,
}

/// Reads the keys of an engine that others compute for.
type Accounts = Box<dyn Fn() -> Vec<Account> + Send + Sync>;

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("info", &self.info).finish_non_exhaustive()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // The admission thread can reach the engine's too, which therefore does not see by itself that nobody else can.
        let _ = self.commands.send(Command::Stop);
    }
}

impl Engine {
    /// Starts a model's engine on threads of its own. News comes from the receiver, one [`Step`] for each of the engine's
    /// steps; the engine waits where it is not read.
    pub fn start(model: Arc<Model>, options: Options) -> Result<(Engine, mpsc::Receiver<Step>), StartError> {
        let batch_max = options.batch_max;
        if batch_max == 0 {
            return Err(StartError::Option("an engine needs room for at least one sequence: set batch_max to 1 or more".into()));
        }
        let threads = options.threads.unwrap_or_else(threads::available);
        let (whole, page_bytes) = (model.kv_shape().context, model.page_bytes());
        let Room { pages, context } =
            room(whole, page_bytes, batch_max, options.kv_memory, options.engines, model.memory_available())?;
        let cache = model.cache(pages).map_err(StartError::Device)?;
        let pool = Pool::shared(threads).map_err(StartError::Thread)?;
        // Every decoding sequence gets its token in every step, and prompts still progress.
        let step_tokens = options.step_tokens.max(batch_max.saturating_add(1));
        // Elsewhere a row's bits depend on how many are computed together, and a guess could change the text.
        let speculate = options.speculate && model.is_exact();
        let limits = Limits { batch_max, step_tokens, pages, page_tokens: kv::PAGE_TOKENS, speculate };
        let scheduler = Scheduler::new(limits, options.recording);
        let mut info = model.info(batch_max);
        info.models.iter_mut().for_each(|served| served.context = context);
        let (kv_bytes, first) = (u64::from(pages) * page_bytes, info.first());
        info!(model = first.model, dtype = first.dtype, device = info.device, threads, pages, kv_bytes, "the engine starts");
        if context < whole {
            warn!(context, of = whole, "the KV memory holds no whole context, so a shorter one is served");
        }
        let backend = Local::new(Arc::clone(&model), cache, pool, options.profile);
        spawn(info, backend, Arc::new(local::Served { model, context }), scheduler, watch::channel(false).0)
            .map_err(StartError::Thread)
    }

    /// Starts an engine without weights: the same handle, channel, scheduler and batching, and a text from nowhere.
    ///
    /// # Panics
    ///
    /// When the operating system has no thread to give.
    pub fn fake(options: fake::Options) -> (Engine, mpsc::Receiver<Step>) {
        let limits = options.limits();
        let scheduler = Scheduler::new(limits, options.recording.clone());
        let info = options.info();
        let (stop, stopping) = watch::channel(false);
        let language = Arc::new(fake::Words::new(&options));
        let backend = fake::Fake::new(&options, stopping);
        spawn(info, backend, language, scheduler, stop).expect("the operating system gives a thread for a test's engine")
    }

    /// A handle to an engine that nobody runs: its orders are for whoever computes the steps, under a time of their own.
    pub fn unmanned(info: Info) -> (Engine, Orders) {
        Engine::manned_elsewhere(info, None)
    }

    /// The same for steps that others compute, with keys that are spent: `accounts` says how these stand.
    pub fn spending(info: Info, accounts: impl Fn() -> Vec<Account> + Send + Sync + 'static) -> (Engine, Orders) {
        Engine::manned_elsewhere(info, Some(Box::new(accounts)))
    }

    fn manned_elsewhere(info: Info, accounts: Option<Accounts>) -> (Engine, Orders) {
        let (command, commands) = commands::channel();
        let (alive, ended) = watch::channel(());
        let (stop, stats) = (watch::channel(false).0, watch::channel(Stats::default()).1);
        let outside = Arc::<AtomicU32>::default();
        let shared = Shared { info, commands: command, stop, stats, ended, outside: Arc::clone(&outside), accounts };
        (Engine { works: Works::One(Arc::new(shared)) }, Orders { commands, outside, _alive: alive })
    }

    /// Puts engines with a model each behind one handle: what one of them says goes the same way, and their sequences count
    /// together. Must be called in a Tokio runtime.
    pub fn several(engines: Vec<(Engine, mpsc::Receiver<Step>)>) -> Result<(Engine, mpsc::Receiver<Step>), StartError> {
        let (several, steps) = several::gather(engines)?;
        Ok((Engine { works: Works::Several(Arc::new(several)) }, steps))
    }

    /// What it serves.
    pub fn info(&self) -> &Info {
        match &self.works {
            Works::One(shared) => &shared.info,
            Works::Several(several) => several.info(),
        }
    }

    /// How its memory is used, and what was reused and given up since its start.
    pub fn stats(&self) -> Stats {
        match &self.works {
            Works::One(shared) => *shared.stats.borrow(),
            Works::Several(several) => several.stats(),
        }
    }

    /// The keys that it spends from, where others compute for it.
    pub fn accounts(&self) -> Vec<Account> {
        match &self.works {
            Works::One(shared) => shared.accounts.as_ref().map(|accounts| accounts()).unwrap_or_default(),
            Works::Several(several) => several.accounts(),
        }
    }

    /// Adds a sequence. Never blocks: prompts are read on a thread of the engine's. The caller bounds how many it submits. After
    /// `stop`, nothing comes of it.
    pub fn submit(&self, request: Request) {
        match &self.works {
            // A stopped engine says nothing more about anything: its channel of steps is closed, which the caller sees.
            Works::One(shared) => drop(shared.commands.send(Command::Submit(Box::new(request)))),
            Works::Several(several) => several.submit(request),
        }
    }

    /// Says how many requests the caller holds back until sequences end. When some do, the engine waits a moment for as many, at most an
    /// eighth of a step, so that their slots are not empty for a whole one. An engine of several models does not: whose slot the next
    /// request takes is not known there.
    pub fn expect(&self, outside: u32) {
        if let Works::One(shared) = &self.works {
            shared.outside.store(outside, Ordering::Relaxed);
        }
    }

    /// Ends a sequence with `Cancelled` within one step, unless it has ended already. Unknown ids are ignored.
    pub fn cancel(&self, id: SequenceId) {
        match &self.works {
            Works::One(shared) => drop(shared.commands.send(Command::Cancel(id))),
            Works::Several(several) => several.cancel(id),
        }
    }

    /// Ends all sequences with `Cancelled`, and returns when the engine's threads have ended.
    pub async fn stop(&self) {
        match &self.works {
            Works::One(shared) => {
                shared.stop.send_replace(true);
                let _ = shared.commands.send(Command::Stop);
                let mut ended = shared.ended.clone();
                // An error means that the thread has dropped its end: what we wait for.
                while ended.changed().await.is_ok() {}
            }
            Works::Several(several) => Box::pin(several.stop()).await,
        }
    }
}

/// What an engine was told that nobody runs. It has ended when this is dropped.
#[derive(Debug)]
pub struct Orders {
    commands: commands::Receiver<Command>,
    outside: Arc<AtomicU32>,
    _alive: watch::Sender<()>,
}

/// One thing that it was told.
#[derive(Debug)]
pub enum Order {
    /// A sequence is to be added.
    Submit(Box<Request>),
    /// A sequence is to end.
    Cancel(SequenceId),
}

impl Orders {
    /// How many requests stand outside: see [`Engine::expect`].
    pub fn expected(&self) -> u32 {
        self.outside.load(Ordering::Relaxed)
    }

    /// The next order, if there is one.
    pub fn next_order(&self) -> Option<Order> {
        loop {
            match self.commands.try_recv().ok()? {
                Command::Submit(request) => return Some(Order::Submit(request)),
                Command::Cancel(id) => return Some(Order::Cancel(id)),
                Command::Admitted | Command::Stop => {}
            }
        }
    }

    /// Waits for the next order, on a thread of its own; `None` when the engine is to stop, or nobody can reach it any more.
    pub fn wait(&self) -> Option<Order> {
        loop {
            match self.commands.recv().ok()? {
                Command::Submit(request) => return Some(Order::Submit(request)),
                Command::Cancel(id) => return Some(Order::Cancel(id)),
                Command::Stop => return None,
                Command::Admitted => {}
            }
        }
    }
}

fn spawn<B: Backend + Send + 'static>(
    info: Info,
    backend: B,
    language: Arc<B::Language>,
    scheduler: Scheduler,
    stop: watch::Sender<bool>,
) -> Result<(Engine, mpsc::Receiver<Step>), std::io::Error> {
    let (command, commands) = commands::channel();
    let (step, steps) = mpsc::channel(STEPS_WAITING);
    let (alive, ended) = watch::channel(());
    let stopping = stop.subscribe();
    let outside = Arc::<AtomicU32>::default();
    let expected = Arc::clone(&outside);
    let (stats_now, stats) = watch::channel(scheduler.stats());
    let bell = command.clone();
    let admissions = Admissions::start(Arc::clone(&language), move || {
        // An engine that has ended hears no more of it.
        let _ = bell.send(Command::Admitted);
    })?;
    thread::Builder::new().name("engine".into()).spawn(move || {
        runner::run(
            backend,
            &*language,
            admissions,
            scheduler,
            &commands,
            Outlets { steps: step, stats: stats_now, stop: stopping, outside: expected },
        );
        drop(language);
        drop(alive);
    })?;
    let shared = Shared { info, commands: command, stop, stats, ended, outside, accounts: None };
    Ok((Engine { works: Works::One(Arc::new(shared)) }, steps))
}

#[cfg(test)]
mod tests;
