//! The handle to a running engine.

use std::sync::{Arc, mpsc as commands};
use std::thread;

use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use crate::admission::Admissions;
use crate::kernels::Pool;
use crate::local::{Local, Served};
use crate::room::{Room, room};
use crate::runner::{self, Backend, Command, Outlets, STEPS_WAITING};
use crate::scheduler::{Limits, Recording, Scheduler, Stats};
use crate::{KvMemory, Model, Profile, Request, SequenceId, Step, fake, kv, threads};

/// What an engine serves, and with what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// The model's public name.
    pub model: String,
    /// Tokens of a prompt and its answer together.
    pub context: u32,
    /// Whether the model has a chat template of its own.
    pub chat: bool,
    /// `cpu`, `cuda:0`, or `fake`.
    pub device: String,
    /// Of the weights.
    pub dtype: String,
    /// Sequences that run at once.
    pub batch_max: u32,
    /// What decides the bits of the results: equal fingerprints give equal answers.
    pub fingerprint: String,
    /// Number of weights.
    pub parameters: u64,
    /// Unix seconds at which the model's files were written.
    pub created: u64,
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
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    info: Info,
    /// Unbounded, so that `submit` never blocks: the node bounds what it submits, and a command is small.
    commands: commands::Sender<Command>,
    stop: watch::Sender<bool>,
    stats: watch::Receiver<Stats>,
    /// Closed when the engine's threads have ended.
    ended: watch::Receiver<()>,
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
        let info = Info { context, ..model.info(batch_max) };
        let kv_bytes = u64::from(pages) * page_bytes;
        info!(model = info.model, dtype = info.dtype, device = info.device, threads, pages, kv_bytes, "the engine starts");
        if context < whole {
            warn!(context, of = whole, "the KV memory holds no whole context, so a shorter one is served");
        }
        let backend = Local::new(Arc::clone(&model), cache, pool, options.profile);
        spawn(info, backend, Arc::new(Served { model, context }), scheduler, watch::channel(false).0).map_err(StartError::Thread)
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
        let (command, commands) = commands::channel();
        let shared = Shared {
            info,
            commands: command,
            stop: watch::channel(false).0,
            stats: watch::channel(Stats::default()).1,
            ended: watch::channel(()).1,
        };
        (Engine { shared: Arc::new(shared) }, Orders(commands))
    }

    /// What it serves.
    pub fn info(&self) -> &Info {
        &self.shared.info
    }

    /// How its memory is used, and what was reused and given up since its start.
    pub fn stats(&self) -> Stats {
        *self.shared.stats.borrow()
    }

    /// Adds a sequence. Never blocks: prompts are read on a thread of the engine's. The caller bounds how many it submits. After
    /// `stop`, nothing comes of it.
    pub fn submit(&self, request: Request) {
        // A stopped engine says nothing more about anything: its channel of steps is closed, which the caller sees.
        let _ = self.shared.commands.send(Command::Submit(Box::new(request)));
    }

    /// Ends a sequence with `Cancelled` within one step, unless it has ended already. Unknown ids are ignored.
    pub fn cancel(&self, id: SequenceId) {
        let _ = self.shared.commands.send(Command::Cancel(id));
    }

    /// Ends all sequences with `Cancelled`, and returns when the engine's threads have ended.
    pub async fn stop(&self) {
        self.shared.stop.send_replace(true);
        let _ = self.shared.commands.send(Command::Stop);
        let mut ended = self.shared.ended.clone();
        // An error means that the thread has dropped its end: what we wait for.
        while ended.changed().await.is_ok() {}
    }
}

/// What an engine was told that nobody runs.
#[derive(Debug)]
pub struct Orders(commands::Receiver<Command>);

/// One thing that it was told.
#[derive(Debug)]
pub enum Order {
    /// A sequence is to be added.
    Submit(Box<Request>),
    /// A sequence is to end.
    Cancel(SequenceId),
}

impl Orders {
    /// The next order, if there is one.
    pub fn next_order(&self) -> Option<Order> {
        loop {
            match self.0.try_recv().ok()? {
                Command::Submit(request) => return Some(Order::Submit(request)),
                Command::Cancel(id) => return Some(Order::Cancel(id)),
                Command::Admitted | Command::Stop => {}
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
            Outlets { steps: step, stats: stats_now, stop: stopping },
        );
        drop(language);
        drop(alive);
    })?;
    Ok((Engine { shared: Arc::new(Shared { info, commands: command, stop, stats, ended }) }, steps))
}

#[cfg(test)]
mod tests;
