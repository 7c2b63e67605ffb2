//! The engine thread: takes commands, asks the scheduler, computes steps, tells the news.
//!
//! Owns every sequence between its submission and its end. What a token is and how it is computed is the backend's:
//! the model's or the fake's.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, TryRecvError};

use tokio::sync::{mpsc, watch};
use tracing::{debug, error, warn};

use crate::scheduler::{Event, Scheduler, Work};
use crate::{FinishReason, Output, Refusal, Request, SequenceId, Step, TokenLogprob, Usage, admission};

/// Steps that may wait for their reader. A reader that the operating system delays by some milliseconds costs nothing,
/// and one that stopped reading stops the engine before much is computed for nobody.
pub(crate) const STEPS_WAITING: usize = 64;

/// What a handle says to its engine thread.
#[derive(Debug)]
pub(crate) enum Command {
    Submit(Box<Request>),
    Cancel(SequenceId),
    Stop,
}

/// Computes what the runner decides: the model, or the fake.
pub(crate) trait Backend {
    /// What a sequence needs between steps: its sampler, its text, its KV pages.
    type State;

    /// Tokens of a prompt and its answer together.
    fn context(&self) -> u32;

    /// Number of token ids.
    fn vocabulary(&self) -> usize;

    /// The prompt's tokens (at least one), and the state of a sequence that has generated nothing yet.
    fn admit(&mut self, request: &Request) -> Result<(Vec<u32>, Self::State), Refusal>;

    /// One forward pass; a token for each item that samples. An error fails all items.
    fn compute(&mut self, items: &mut [Item<'_, Self::State>]) -> Result<Vec<Option<Drawn>>, String>;

    /// The sequence goes on behind a token that an earlier attempt drew.
    fn accept(&self, state: &mut Self::State, token: u32);

    /// Whether a token ends the text.
    fn is_end(&self, token: u32) -> bool;

    /// The text that a token adds, and whether a stop string is complete.
    fn push(&self, state: &mut Self::State, token: u32, stops_count: bool) -> (String, bool);

    /// The sequence has ended: frees what it holds, and gives the text that was held back.
    fn release(&mut self, state: Self::State) -> String;
}

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

/// A sequence between its submission and its end.
struct Sequence<S> {
    tokens: Vec<u32>,
    prompt_tokens: usize,
    computed: usize,
    /// Completion tokens that it may have.
    tokens_max: usize,
    /// What the client asked for: a fact about the request that shapes every token.
    min_tokens: usize,
    ignore_eos: bool,
    state: S,
}

/// Runs until it is told to stop, or until nobody can reach it or hear it any more.
pub(crate) fn run<B: Backend>(
    mut backend: B,
    scheduler: Scheduler,
    commands: &Receiver<Command>,
    steps: mpsc::Sender<Step>,
    stop: watch::Receiver<bool>,
) {
    let mut runner = Runner { backend: &mut backend, scheduler, sequences: HashMap::new(), outputs: Vec::new() };
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
    scheduler: Scheduler,
    sequences: HashMap<SequenceId, Sequence<B::State>>,
    /// News that no step has carried away yet.
    outputs: Vec<Output>,
}

impl<B: Backend> Runner<'_, B> {
    /// Takes all commands; waits for one where there is nothing to do. False: it is over.
    fn listen(&mut self, commands: &Receiver<Command>) -> bool {
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
            Command::Submit(request) => self.submit(&request),
            Command::Cancel(id) => {
                if self.scheduler.feed(Event::Cancelled { id }) {
                    self.forget(id);
                    self.outputs.push(Output::Cancelled { id });
                }
            }
            Command::Stop => return false,
        }
        true
    }

    fn submit(&mut self, request: &Request) {
        let id = request.id;
        if self.sequences.contains_key(&id) {
            warn!(sequence = id.0, "an id came twice, and the second request is dropped");
            return;
        }
        let admitted = catch_unwind(AssertUnwindSafe(|| self.admit(request)))
            .unwrap_or_else(|panic| Err(Refusal::Engine(panic_text(panic.as_ref()))));
        match admitted {
            Ok(None) => {}
            Ok(Some(sequence)) => {
                let event = Event::Submitted {
                    id,
                    prompt_tokens: u32::try_from(sequence.tokens.len()).unwrap_or(u32::MAX),
                    tokens_max: u32::try_from(sequence.prompt_tokens + sequence.tokens_max).unwrap_or(u32::MAX),
                    alone: request.alone,
                };
                if self.scheduler.feed(event) {
                    self.sequences.insert(id, sequence);
                } else {
                    // `start` sees to it that a whole context fits, so only a wrong bound gets here.
                    self.backend.release(sequence.state);
                    let text = "the sequence needs more KV memory than the engine has".to_owned();
                    self.outputs.push(Output::Refused { id, refusal: Refusal::Engine(text) });
                }
            }
            Err(refusal) => {
                debug!(sequence = id.0, %refusal, "refused");
                self.outputs.push(Output::Refused { id, refusal });
            }
        }
    }

    /// `None`: what an earlier attempt generated was the whole answer, and it is finished.
    fn admit(&mut self, request: &Request) -> Result<Option<Sequence<B::State>>, Refusal> {
        admission::check(request, self.backend.vocabulary())?;
        let (prompt, state) = self.backend.admit(request)?;
        let prompt_tokens = prompt.len();
        let tokens_max = match admission::room(self.backend.context(), prompt_tokens, request.max_tokens) {
            Ok(room) => room as usize,
            Err(refusal) => {
                self.backend.release(state);
                return Err(refusal);
            }
        };
        let mut sequence = Sequence {
            tokens: prompt,
            prompt_tokens,
            computed: 0,
            tokens_max,
            min_tokens: request.min_tokens as usize,
            ignore_eos: request.ignore_eos,
            state,
        };
        if sequence.tokens_max == 0 {
            self.finish(request.id, sequence, FinishReason::Length, false);
            return Ok(None);
        }
        for token in &request.resume {
            // The text of these tokens went out with the earlier attempt.
            let (_, end) = self.take(&mut sequence, *token);
            self.backend.accept(&mut sequence.state, *token);
            if let Some((reason, stopped)) = end {
                self.finish(request.id, sequence, reason, stopped);
                return Ok(None);
            }
        }
        Ok(Some(sequence))
    }

    /// Appends a token of the answer: its text, and, if the answer ends with it, why, and whether by a stop string.
    fn take(&mut self, sequence: &mut Sequence<B::State>, token: u32) -> (String, Option<(FinishReason, bool)>) {
        sequence.tokens.push(token);
        let count = sequence.tokens.len() - sequence.prompt_tokens;
        let stops_count = count >= sequence.min_tokens;
        if self.backend.is_end(token) {
            if stops_count && !sequence.ignore_eos {
                return (String::new(), Some((FinishReason::Stop, false)));
            }
            return (String::new(), (count >= sequence.tokens_max).then_some((FinishReason::Length, false)));
        }
        let (text, stopped) = self.backend.push(&mut sequence.state, token, stops_count);
        if stopped {
            (text, Some((FinishReason::Stop, true)))
        } else {
            (text, (count >= sequence.tokens_max).then_some((FinishReason::Length, false)))
        }
    }

    fn finish(&mut self, id: SequenceId, sequence: Sequence<B::State>, reason: FinishReason, stopped: bool) {
        let usage = Usage {
            prompt_tokens: u32::try_from(sequence.prompt_tokens).unwrap_or(u32::MAX),
            completion_tokens: u32::try_from(sequence.tokens.len() - sequence.prompt_tokens).unwrap_or(u32::MAX),
            cached_tokens: 0,
        };
        let held_back = self.backend.release(sequence.state);
        // Behind a stop string nothing is part of the answer.
        let text = if stopped { String::new() } else { held_back };
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
        let mut batch: Vec<(Work, Sequence<B::State>)> = plan
            .work
            .iter()
            .map(|work| (*work, self.sequences.remove(&work.id).expect("the scheduler plans only submitted sequences")))
            .collect();
        let mut items: Vec<Item<'_, B::State>> = batch
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
            .unwrap_or_else(|panic| Err(panic_text(panic.as_ref())));
        match computed {
            Ok(drawn) => {
                for ((work, sequence), drawn) in batch.into_iter().zip(drawn) {
                    self.advance(work, sequence, drawn);
                }
            }
            Err(text) => {
                error!(sequences = batch.len(), error = %text, "a step failed");
                for (work, sequence) in batch {
                    self.backend.release(sequence.state);
                    self.scheduler.feed(Event::Ended { id: work.id });
                    self.outputs.push(Output::Refused { id: work.id, refusal: Refusal::Engine(text.clone()) });
                }
            }
        }
    }

    /// What a step means for one of its sequences.
    fn advance(&mut self, work: Work, mut sequence: Sequence<B::State>, drawn: Option<Drawn>) {
        let id = work.id;
        sequence.computed += work.tokens as usize;
        let Some(Drawn { token, logprob }) = drawn else {
            self.sequences.insert(id, sequence);
            self.outputs.push(Output::Progress { id });
            return;
        };
        let position = u32::try_from(sequence.tokens.len() - sequence.prompt_tokens).unwrap_or(u32::MAX);
        let (text, end) = self.take(&mut sequence, token);
        let logprobs = logprob.into_iter().collect();
        self.outputs.push(Output::Tokens { id, position, tokens: vec![token], text, logprobs });
        match end {
            None => {
                self.sequences.insert(id, sequence);
            }
            Some((reason, stopped)) => {
                self.scheduler.feed(Event::Ended { id });
                self.finish(id, sequence, reason, stopped);
            }
        }
    }

    fn forget(&mut self, id: SequenceId) {
        if let Some(sequence) = self.sequences.remove(&id) {
            self.backend.release(sequence.state);
        }
    }

    fn cancel_all(&mut self) {
        let mut ids: Vec<_> = self.sequences.keys().copied().collect();
        ids.sort_unstable();
        for id in ids {
            self.forget(id);
            self.outputs.push(Output::Cancelled { id });
        }
    }
}

/// What a panic said, as far as it said anything.
fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned()).or_else(|| panic.downcast_ref::<String>().cloned());
    format!("a bug: {}", text.unwrap_or_else(|| "a panic without a text".to_owned()))
}
