//! The engine thread: takes commands, asks the scheduler, computes steps, tells the news.
//!
//! Owns every sequence between its submission and its end. What a token means is the language's, how it is computed the
//! backend's: the model's or the fake's. Requests of any length are read on a thread beside this one.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, TryRecvError};

use tokio::sync::{mpsc, watch};
use tracing::{debug, error, warn};

use crate::admission::{self, Admissions, Admitted};
use crate::language::Language;
use crate::scheduler::{Event, Scheduler, Work};
use crate::sequence::{End, Sequence};
use crate::{Output, Refusal, Request, SequenceId, Step, TokenLogprob};

/// Steps that may wait for their reader. A reader that the operating system delays by some milliseconds costs nothing,
/// and one that stopped reading stops the engine before much is computed for nobody.
pub(crate) const STEPS_WAITING: usize = 64;

/// Bytes of requests that the engine thread reads itself between two steps; what is more goes to the admission thread. A
/// tokenizer takes some hundred microseconds for them, about what waking another thread costs on a busy machine, and a small
/// part of a step: a batch hardly waits, and a short question that comes alone gets its first token without a detour.
const READ_HERE_MAX: usize = 1024;

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

    /// One forward pass: what came of each item. An error fails all of them.
    fn compute(&mut self, items: &mut [Item<'_, State<Self>>]) -> Result<Vec<Outcome>, String>;

    /// The sequence has ended: frees the KV pages that it holds.
    fn release(&mut self, state: &mut State<Self>);
}

type State<B> = <<B as Backend>::Language as Language>::State;

/// A sequence's part in a forward pass.
pub(crate) struct Item<'a, S> {
    /// All tokens so far, prompt and answer.
    pub(crate) tokens: &'a [u32],
    /// How many of them went through the model before.
    pub(crate) computed: usize,
    /// How many go through it now.
    pub(crate) count: usize,
    /// Whether the next token is to be drawn.
    pub(crate) samples: bool,
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
    /// It has a token more.
    Drawn(Drawn),
    /// It can't go on, and the others can.
    Failed(String),
}

/// Runs until it is told to stop, or until nobody can hear it any more.
pub(crate) fn run<B: Backend>(
    mut backend: B,
    language: &B::Language,
    admissions: Admissions<B::Language>,
    scheduler: Scheduler,
    commands: &Receiver<Command>,
    steps: mpsc::Sender<Step>,
    stop: watch::Receiver<bool>,
) {
    let mut runner = Runner {
        backend: &mut backend,
        language,
        admissions,
        scheduler,
        sequences: HashMap::new(),
        outputs: Vec::new(),
        read_here: 0,
    };
    while runner.listen(commands) {
        runner.step();
        let outputs = std::mem::take(&mut runner.outputs);
        if !outputs.is_empty() && !send(&steps, Step { outputs }, &stop) {
            break;
        }
    }
    runner.cancel_all();
    let outputs = std::mem::take(&mut runner.outputs);
    if !outputs.is_empty() {
        // A reader that is still there learns what became of its sequences; nobody waits for one that is not.
        let _ = steps.try_send(Step { outputs });
    }
}

/// False: nobody listens any more, or the engine is to stop.
fn send(steps: &mpsc::Sender<Step>, step: Step, stop: &watch::Receiver<bool>) -> bool {
    let step = match steps.try_send(step) {
        Ok(()) => return true,
        Err(mpsc::error::TrySendError::Closed(_)) => return false,
        Err(mpsc::error::TrySendError::Full(step)) => step,
    };
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
}

impl<B: Backend> Runner<'_, B> {
    /// Takes all commands; waits for one where there is nothing to do. False: it is over.
    fn listen(&mut self, commands: &Receiver<Command>) -> bool {
        self.read_here = 0;
        if self.scheduler.is_idle() && self.outputs.is_empty() {
            match commands.recv() {
                Ok(command) => {
                    if !self.obey(command) {
                        return false;
                    }
                }
                Err(_) => return false,
            }
        }
        loop {
            match commands.try_recv() {
                Ok(command) => {
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
                    self.forget(id);
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
        let Admitted { sequence, end } = match admitted {
            Ok(admitted) => admitted,
            Err(refusal) => return self.refuse(id, refusal),
        };
        if let Some(end) = end {
            return self.finish(id, sequence, end);
        }
        let event = Event::Submitted {
            id,
            prompt_tokens: u32::try_from(sequence.tokens.len()).unwrap_or(u32::MAX),
            tokens_max: u32::try_from(sequence.prompt_tokens + sequence.tokens_max).unwrap_or(u32::MAX),
        };
        if self.scheduler.feed(event) {
            self.sequences.insert(id, sequence);
        } else {
            // `start` sees to it that a whole context fits, so only a wrong bound gets here.
            self.refuse(id, Refusal::Engine("the sequence needs more KV memory than the engine has".to_owned()));
        }
    }

    fn refuse(&mut self, id: SequenceId, refusal: Refusal) {
        debug!(sequence = id.0, %refusal, "refused");
        self.outputs.push(Output::Refused { id, refusal });
    }

    fn finish(&mut self, id: SequenceId, mut sequence: Sequence<B::Language>, end: End) {
        let (usage, reason) = (sequence.usage(), end.reason());
        self.backend.release(&mut sequence.state);
        let held_back = self.language.finish(sequence.state);
        let text = if end == End::Stopped { String::new() } else { held_back };
        debug!(sequence = id.0, ?reason, completion_tokens = usage.completion_tokens, "finished");
        self.outputs.push(Output::Finished { id, reason, text, usage });
    }

    /// One forward pass, where there is something to do.
    fn step(&mut self) {
        let plan = self.scheduler.plan();
        for id in &plan.joined {
            debug!(sequence = id.0, running = self.scheduler.running(), "started");
            self.outputs.push(Output::Started { id: *id });
        }
        if plan.work.is_empty() {
            return;
        }
        let mut batch: Vec<(Work, Sequence<B::Language>)> = plan
            .work
            .iter()
            .map(|work| (*work, self.sequences.remove(&work.id).expect("the scheduler plans only submitted sequences")))
            .collect();
        let mut items: Vec<Item<'_, State<B>>> = batch
            .iter_mut()
            .map(|(work, sequence)| Item {
                tokens: &sequence.tokens,
                computed: sequence.computed,
                count: work.tokens as usize,
                samples: work.samples,
                state: &mut sequence.state,
            })
            .collect();
        let computed = catch_unwind(AssertUnwindSafe(|| self.backend.compute(&mut items)))
            .unwrap_or_else(|panic| Err(admission::panic_text(panic.as_ref())));
        match computed {
            Ok(outcomes) => {
                for ((work, sequence), outcome) in batch.into_iter().zip(outcomes) {
                    self.advance(work, sequence, outcome);
                }
            }
            Err(text) => {
                error!(sequences = batch.len(), error = %text, "a step failed");
                for (work, sequence) in batch {
                    self.fail(work.id, sequence, text.clone());
                }
            }
        }
    }

    fn fail(&mut self, id: SequenceId, mut sequence: Sequence<B::Language>, text: String) {
        self.backend.release(&mut sequence.state);
        self.scheduler.feed(Event::Ended { id });
        self.outputs.push(Output::Refused { id, refusal: Refusal::Engine(text) });
    }

    /// What a step means for one of its sequences.
    fn advance(&mut self, work: Work, mut sequence: Sequence<B::Language>, outcome: Outcome) {
        let id = work.id;
        sequence.computed += work.tokens as usize;
        let Drawn { token, logprob } = match outcome {
            Outcome::Computed => {
                self.sequences.insert(id, sequence);
                self.outputs.push(Output::Progress { id });
                return;
            }
            Outcome::Failed(text) => {
                error!(sequence = id.0, error = %text, "a sequence failed");
                return self.fail(id, sequence, text);
            }
            Outcome::Drawn(drawn) => drawn,
        };
        let position = u32::try_from(sequence.tokens.len() - sequence.prompt_tokens).unwrap_or(u32::MAX);
        let (text, end) = sequence.take(self.language, token);
        let logprobs = logprob.into_iter().collect();
        self.outputs.push(Output::Tokens { id, position, tokens: vec![token], text, logprobs });
        match end {
            None => {
                self.sequences.insert(id, sequence);
            }
            Some(end) => {
                self.scheduler.feed(Event::Ended { id });
                self.finish(id, sequence, end);
            }
        }
    }

    fn forget(&mut self, id: SequenceId) {
        if let Some(mut sequence) = self.sequences.remove(&id) {
            self.backend.release(&mut sequence.state);
        }
    }

    fn cancel_all(&mut self) {
        let mut ids: Vec<_> = self.sequences.keys().copied().collect();
        ids.sort_unstable();
        for id in ids {
            self.forget(id);
            self.outputs.push(Output::Cancelled { id });
        }
        self.outputs.extend(self.admissions.cancel_all().map(|id| Output::Cancelled { id }));
    }
}
