//! The engine thread: takes commands, asks the scheduler, computes steps, tells the news.
//!
//! Owns every sequence between its submission and its end. What a token means is the language's, how it is computed the
//! backend's: the model's or the fake's. Requests of any length are read on a thread beside this one.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
    mpsc::{Receiver, RecvTimeoutError, TryRecvError},
};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tracing::{debug, error, warn};

use crate::admission::{self, Admissions, Admitted};
use crate::language::Language;
use crate::scheduler::{Event, Plan, Scheduler, Stats, Work};
use crate::sequence::{End, Sequence};
use crate::{FinishReason, Output, Refusal, Request, SequenceId, Step, TokenLogprob};

/// Steps that may wait for their reader. A reader that the operating system delays by some milliseconds costs nothing,
/// and one that stopped reading stops the engine before much is computed for nobody.
pub(crate) const STEPS_WAITING: usize = 64;

/// Bytes of requests that the engine thread reads itself between two steps; what is more goes to the admission thread. A
/// tokenizer takes some hundred microseconds for them, about what waking another thread costs on a busy machine, and a small
/// part of a step: a batch hardly waits, and a short question that comes alone gets its first token without a detour.
const READ_HERE_MAX: usize = 1024;

/// What fraction of its last step an engine waits at most between two steps for those who stand outside to take the slots
/// that have become free. Handing over takes some 50 microseconds; a slot that stays empty for a step is lost for all of it.
const REFILL_SHARE: u32 = 8;
/// Who hasn't handed over by then is busy with something else.
const REFILL_MAX: Duration = Duration::from_millis(1);

/// What a handle says to its engine thread.
#[derive(Debug)]
pub(crate) enum Command {
    Submit(Box<Request>),
    /// From the admission thread: it has read a request.
    Admitted,
    Cancel(SequenceId),
    /// Also from the last handle, when it is dropped.
    Stop,
}

/// Computes what the runner decides: the model, or the fake.
pub(crate) trait Backend {
    /// What its tokens mean.
    type Language: Language;

    /// One forward pass: what came of each item. After an error or a panic the items are as before, and may be tried again.
    fn compute(&mut self, items: &mut [Item<'_, State<Self>>]) -> Result<Vec<Outcome>, String>;

    /// Nothing will be computed until somebody else does something.
    fn rest(&mut self) {}
}

type State<B> = <<B as Backend>::Language as Language>::State;

/// A sequence's part in a forward pass.
pub(crate) struct Item<'a, S> {
    /// All tokens so far, prompt and answer.
    pub(crate) tokens: &'a [u32],
    /// Position `p` of its KV is in number `p / PAGE_TOKENS`.
    pub(crate) pages: &'a [u32],
    /// How many of the tokens went through the model before.
    pub(crate) computed: usize,
    /// How many go through it now.
    pub(crate) count: usize,
    /// Whether the last of them is the last that there is: then the next token is drawn, where one is wanted.
    pub(crate) samples: bool,
    /// Guesses that go through the model behind them. As long as they are what is drawn, the token behind each is drawn too.
    pub(crate) draft: &'a [u32],
    pub(crate) state: &'a mut S,
}

/// A token, freshly drawn.
pub(crate) struct Drawn {
    pub(crate) token: u32,
    pub(crate) logprob: Option<TokenLogprob>,
}

/// What a step did for one of its items.
pub(crate) enum Outcome {
    /// A chunk of its prompt is computed.
    Computed,
    /// It has a token more, and another one for each guess that was right.
    Drawn(Vec<Drawn>),
    /// Its prompt is computed, and that is all that was wanted.
    Read,
    /// It can't go on, and the others can.
    Failed(String),
}

/// Where a runner's news goes, and who ends its waiting for a reader.
pub(crate) struct Outlets {
    pub(crate) steps: mpsc::Sender<Step>,
    pub(crate) stats: watch::Sender<Stats>,
    pub(crate) stop: watch::Receiver<bool>,
    /// Requests that its node would submit if there were slots.
    pub(crate) outside: Arc<AtomicU32>,
}

/// Runs until it is told to stop, or until nobody can hear it any more.
pub(crate) fn run<B: Backend>(
    mut backend: B,
    language: &B::Language,
    admissions: Admissions<B::Language>,
    scheduler: Scheduler,
    commands: &Receiver<Command>,
    outlets: Outlets,
) {
    let Outlets { steps, stats, stop, outside } = outlets;
    let mut runner = Runner {
        backend: &mut backend,
        language,
        admissions,
        scheduler,
        sequences: HashMap::new(),
        outputs: Vec::new(),
        read_here: 0,
        outside,
        freed: 0,
        step_time: Duration::ZERO,
    };
    while runner.listen(commands) {
        let plan = runner.plan();
        // Said before the step: whoever ends the process with it must be known to have been in it.
        if !runner.tell(&steps, &stop) {
            break;
        }
        runner.step(plan);
        stats.send_if_modified(|known| std::mem::replace(known, runner.scheduler.stats()) != *known);
        if !runner.tell(&steps, &stop) {
            break;
        }
    }
    runner.cancel_all();
    let outputs = std::mem::take(&mut runner.outputs);
    if !outputs.is_empty() {
        // A reader that is still there learns what became of its sequences; nobody waits for one that is not.
        let _ = steps.try_send(Step::from(outputs));
    }
}

/// Calls `waits` where nobody has read the steps before. False: nobody listens any more, or the engine is to stop.
fn send(steps: &mpsc::Sender<Step>, step: Step, stop: &watch::Receiver<bool>, waits: impl FnOnce()) -> bool {
    let step = match steps.try_send(step) {
        Ok(()) => return true,
        Err(mpsc::error::TrySendError::Closed(_)) => return false,
        Err(mpsc::error::TrySendError::Full(step)) => step,
    };
    waits();
    let runtime = match tokio::runtime::Builder::new_current_thread().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            error!(%error, "no runtime to wait for the reader of steps");
            return false;
        }
    };
    let mut stop = stop.clone();
    runtime.block_on(async {
        tokio::select! {
            sent = steps.send(step) => sent.is_ok(),
            // Also when the handle is gone: then nobody can want the step.
            _ = stop.wait_for(|stop| *stop) => false,
        }
    })
}

struct Runner<'a, B: Backend> {
    backend: &'a mut B,
    language: &'a B::Language,
    admissions: Admissions<B::Language>,
    scheduler: Scheduler,
    sequences: HashMap<SequenceId, Sequence<B::Language>>,
    /// News that no step has carried away yet.
    outputs: Vec<Output>,
    /// Bytes of requests that were read on this thread since the last step.
    read_here: usize,
    outside: Arc<AtomicU32>,
    /// Slots that the last step has freed.
    freed: u32,
    /// What the last step took.
    step_time: Duration,
}

impl<B: Backend> Runner<'_, B> {
    /// Takes all commands; waits for one where there is nothing to do, and a moment for those who may take slots that have just
    /// become free. False: it is over.
    fn listen(&mut self, commands: &Receiver<Command>) -> bool {
        self.read_here = 0;
        let mut expected = std::mem::take(&mut self.freed).min(self.outside.load(Ordering::Relaxed));
        let patience_ends = Instant::now() + (self.step_time / REFILL_SHARE).min(REFILL_MAX);
        if self.scheduler.is_idle() && self.outputs.is_empty() {
            self.backend.rest();
            let Ok(command) = commands.recv() else { return false };
            expected = expected.saturating_sub(u32::from(matches!(command, Command::Submit(_))));
            if !self.obey(command) {
                return false;
            }
        }
        loop {
            let command = match expected {
                0 => commands.try_recv(),
                _ => {
                    commands.recv_timeout(patience_ends.saturating_duration_since(Instant::now())).map_err(|error| match error {
                        RecvTimeoutError::Timeout => TryRecvError::Empty,
                        RecvTimeoutError::Disconnected => TryRecvError::Disconnected,
                    })
                }
            };
            match command {
                Ok(command) => {
                    expected = expected.saturating_sub(u32::from(matches!(command, Command::Submit(_))));
                    if !self.obey(command) {
                        return false;
                    }
                }
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn obey(&mut self, command: Command) -> bool {
        match command {
            Command::Submit(request) => self.submit(request),
            Command::Admitted => {
                if let Some((id, admitted)) = self.admissions.next() {
                    self.enter(id, admitted);
                }
            }
            Command::Cancel(id) => {
                if self.admissions.cancel(id) {
                    self.outputs.push(Output::Cancelled { id });
                } else if self.scheduler.feed(Event::Cancelled { id }) {
                    self.sequences.remove(&id);
                    self.outputs.push(Output::Cancelled { id });
                }
            }
            Command::Stop => return false,
        }
        true
    }

    fn submit(&mut self, request: Box<Request>) {
        let id = request.id;
        if self.sequences.contains_key(&id) || self.admissions.knows(id) {
            warn!(sequence = id.0, "an id came twice, and the second request is dropped");
            return;
        }
        let bytes = admission::bytes(&request);
        // Nobody overtakes those who are being admitted.
        if self.admissions.is_empty() && self.read_here + bytes <= READ_HERE_MAX {
            self.read_here += bytes;
            let admitted = admission::admit(self.language, &request);
            self.enter(id, admitted);
        } else if let Err(admission::Full) = self.admissions.push(request) {
            self.refuse(id, Refusal::Engine("too many requests wait to be read; submit them as others end".to_owned()));
        }
    }

    /// A request was read: it waits for its slot, or has ended already.
    fn enter(&mut self, id: SequenceId, admitted: Result<Admitted<B::Language>, Refusal>) {
        let Admitted { sequence, tokens, end } = match admitted {
            Ok(admitted) => admitted,
            Err(refusal) => return self.refuse(id, refusal),
        };
        if let Some(end) = end {
            return self.finish(id, sequence, end, 0);
        }
        let tokens_max = sequence.prompt_tokens.saturating_add(sequence.tokens_max);
        let event = Event::Submitted { id, tokens, tokens_max, whole: self.language.tells(&sequence.state) };
        if self.scheduler.feed(event) {
            self.sequences.insert(id, sequence);
        } else {
            // `start` sees to it that the context fits, so only a wrong bound gets here.
            self.refuse(id, Refusal::Engine("the sequence needs more KV memory than the engine has".to_owned()));
        }
    }

    fn refuse(&mut self, id: SequenceId, refusal: Refusal) {
        debug!(sequence = id.0, %refusal, "refused");
        self.outputs.push(Output::Refused { id, refusal });
    }

    fn finish(&mut self, id: SequenceId, mut sequence: Sequence<B::Language>, end: End, cached: u32) {
        let (usage, reason) = (sequence.usage(cached), end.reason());
        let told = self.language.told(&mut sequence.state);
        let held_back = self.language.finish(sequence.state);
        let text = if end == End::Stopped { String::new() } else { held_back };
        debug!(sequence = id.0, ?reason, completion_tokens = usage.completion_tokens, "finished");
        self.outputs.push(Output::Finished { id, reason, text, usage, told });
    }

    /// Sends the news. False: nobody listens any more, or the engine is to stop.
    fn tell(&mut self, steps: &mpsc::Sender<Step>, stop: &watch::Receiver<bool>) -> bool {
        let outputs = std::mem::take(&mut self.outputs);
        outputs.is_empty() || send(steps, Step::from(outputs), stop, || self.backend.rest())
    }

    /// Who is in the next step; newcomers are news.
    fn plan(&mut self) -> Plan {
        let plan = self.scheduler.plan();
        for id in &plan.preempted {
            debug!(sequence = id.0, running = self.scheduler.running(), "preempted");
        }
        for id in &plan.joined {
            let sequence = self.sequences.get_mut(id).expect("the scheduler plans only submitted sequences");
            debug!(sequence = id.0, running = self.scheduler.running(), again = sequence.started, "started");
            if !std::mem::replace(&mut sequence.started, true) {
                self.outputs.push(Output::Started { id: *id });
            }
        }
        plan
    }

    /// One forward pass, where there is something to do.
    fn step(&mut self, plan: Plan) {
        if plan.work.is_empty() {
            return;
        }
        let mut batch: Vec<(Work, Sequence<B::Language>)> = plan
            .work
            .into_iter()
            .map(|work| {
                let sequence = self.sequences.remove(&work.id).expect("the scheduler plans only submitted sequences");
                (work, sequence)
            })
            .collect();
        let prompts = batch.iter().any(|(work, _)| work.tokens > 1);
        let start = Instant::now();
        let outcomes = self.compute(&mut batch);
        self.step_time = start.elapsed();
        if prompts {
            let micros = u64::try_from(self.step_time.as_micros()).unwrap_or(u64::MAX);
            self.scheduler.feed(Event::Took { micros });
        }
        let before = self.sequences.len() + batch.len();
        for ((work, sequence), outcome) in batch.into_iter().zip(outcomes) {
            self.advance(work, sequence, outcome);
        }
        self.freed = (before - self.sequences.len()) as u32;
    }

    /// One forward pass for all of them, or, where that fails, one for each: who is at fault pays for it alone.
    fn compute(&mut self, batch: &mut [(Work, Sequence<B::Language>)]) -> Vec<Outcome> {
        let mut items: Vec<Item<'_, State<B>>> = batch
            .iter_mut()
            .map(|(work, sequence)| Item {
                tokens: self.scheduler.tokens(work.id),
                pages: self.scheduler.pages(work.id),
                computed: work.from as usize,
                count: work.tokens as usize,
                samples: work.samples,
                draft: &work.draft,
                state: &mut sequence.state,
            })
            .collect();
        let computed = catch_unwind(AssertUnwindSafe(|| self.backend.compute(&mut items)))
            .unwrap_or_else(|panic| Err(admission::panic_text(panic.as_ref())));
        match computed {
            Ok(outcomes) => outcomes,
            Err(error) if batch.len() == 1 => vec![Outcome::Failed(error)],
            Err(error) => {
                warn!(sequences = batch.len(), error, "a step failed, and is tried again for each sequence by itself");
                batch.iter_mut().flat_map(|one| self.compute(std::slice::from_mut(one))).collect()
            }
        }
    }

    fn fail(&mut self, id: SequenceId, text: String) {
        self.scheduler.feed(Event::Failed { id });
        self.outputs.push(Output::Refused { id, refusal: Refusal::Engine(text) });
    }

    /// What a step means for one of its sequences.
    fn advance(&mut self, work: Work, mut sequence: Sequence<B::Language>, outcome: Outcome) {
        let id = work.id;
        let drawn = match outcome {
            Outcome::Computed => {
                self.sequences.insert(id, sequence);
                self.outputs.push(Output::Progress { id });
                return;
            }
            Outcome::Failed(text) => {
                error!(sequence = id.0, error = %text, "a sequence failed");
                return self.fail(id, text);
            }
            Outcome::Read => {
                self.scheduler.feed(Event::Ended { id });
                return self.finish(id, sequence, End::Whole(FinishReason::Length), 0);
            }
            Outcome::Drawn(drawn) => drawn,
        };
        let told = self.language.told(&mut sequence.state);
        let position = sequence.count;
        let (mut tokens, mut text, mut logprobs, mut end) = (Vec::new(), String::new(), Vec::new(), None);
        for Drawn { token, logprob } in drawn {
            let (added, ends) = sequence.take(self.language, token);
            tokens.push(token);
            text.push_str(&added);
            logprobs.extend(logprob);
            end = ends;
            // What was drawn behind the end is no part of the answer.
            if end.is_some() {
                break;
            }
        }
        self.scheduler.feed(Event::Drawn { id, tokens: tokens.clone() });
        self.outputs.push(Output::Tokens { id, position, tokens, text, logprobs, told });
        match end {
            None => {
                self.sequences.insert(id, sequence);
            }
            Some(end) => {
                let cached = self.scheduler.cached_tokens(id);
                self.scheduler.feed(Event::Ended { id });
                self.finish(id, sequence, end, cached);
            }
        }
    }

    fn cancel_all(&mut self) {
        let mut ids: Vec<_> = self.sequences.drain().map(|(id, _)| id).collect();
        ids.sort_unstable();
        self.outputs.extend(ids.into_iter().map(|id| Output::Cancelled { id }));
        self.outputs.extend(self.admissions.cancel_all().map(|id| Output::Cancelled { id }));
    }
}
