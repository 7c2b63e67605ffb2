//! Which sequences run in the next step, and in which KV pages: continuous batching as plain code.
//!
//! Owns the order of waiting and running sequences, their tokens, the batch bound, the token budget of a step and the KV pages:
//! who holds which, and which texts are kept for others that begin alike. Leaves tensors, texts, threads and time to the
//! runner, which feeds [`Event`]s and carries out [`Plan`]s. The same events give the same plans: [`replay`] checks a recorded
//! live run.
//!
//! The rules, in order:
//! - Who came first goes first. Every running sequence is older than all that wait.
//! - A decoding sequence that fills its last page gets another one. Where there is none, the youngest that runs gives its pages
//!   up, waits at the head of the line, and is computed again later: the oldest always goes on, so everybody's turn comes.
//! - The first in line joins as soon as a slot is free, and pages for its tokens so far, and some beside them for everybody who
//!   runs to grow into, so that who joins is not preempted at once.
//! - What stands in a cached page is not computed again, but for who wants something of each token. At least one token always
//!   is: somebody has to give the logits.
//! - Every running sequence that lacks one token decodes in every step; what is left of the step's budget goes to prompts, first
//!   come first served.
//! - Where few decode and nothing else is to be computed, a step has time to check guesses at the tokens that follow.

mod budget;
mod recording;
mod sequence;

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::SequenceId;
use crate::draft::DRAFT_MAX;
use crate::pages::Pages;
use budget::Budget;
pub use recording::{Divergence, Record, Recording, replay};
use sequence::Sequence;

/// Pages that must be left for each running sequence to grow into when another one joins. Two are some tens of tokens: less
/// often than that nobody is preempted for a newcomer's sake.
const HEADROOM_PAGES: usize = 2;

/// Rows of a step, drafts included, up to which more rows cost little beside reading the weights.
const SPECULATIVE_ROWS: usize = 16;

/// What bounds a step and a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Sequences that run at once.
    pub batch_max: u32,
    /// Prompt tokens in a step in which others decode, at the most; fewer where they take long, so that a long prompt delays the
    /// others' next tokens by a bounded time. Decoded tokens count against it, but one prompt token is always allowed. Where
    /// nobody decodes, a multiple.
    pub step_tokens: u32,
    /// KV pages of the engine.
    pub pages: u32,
    /// Tokens of a page.
    pub page_tokens: u32,
    /// Whether to guess.
    pub speculate: bool,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// A sequence came in.
    Submitted {
        /// Which.
        id: SequenceId,
        /// Its prompt, and what an earlier attempt had generated: at least one token.
        tokens: Vec<u32>,
        /// Tokens that it can grow to, prompt included.
        tokens_max: u32,
        /// All its tokens go through the model, whatever stands in cached pages: something is wanted of each.
        #[serde(default)]
        whole: bool,
    },
    /// Its part in a step that samples is done, and gave tokens.
    Drawn {
        /// Which.
        id: SequenceId,
        /// At least one; all but the last were in its draft.
        tokens: Vec<u32>,
    },
    /// The last step, which had prompt tokens in it, is done.
    Took {
        /// How long it took.
        micros: u64,
    },
    /// Somebody wants no more of it.
    Cancelled {
        /// Which.
        id: SequenceId,
    },
    /// It is finished.
    Ended {
        /// Which.
        id: SequenceId,
    },
    /// Its part in a step was not computed, so nobody knows what stands in its pages.
    Failed {
        /// Which.
        id: SequenceId,
    },
}

/// One step: a forward pass over these.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Sequences that gave their pages up and wait again, the youngest first.
    pub preempted: Vec<SequenceId>,
    /// Sequences that join with this step, in the order in which they came. One that was preempted joins again.
    pub joined: Vec<SequenceId>,
    /// What to compute, in the order in which they came. Empty: there is nothing to do.
    pub work: Vec<Work>,
}

/// A sequence's part in a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    /// Whose.
    pub id: SequenceId,
    /// The position of the first token that goes through the model; the KV of all before it stands in the pages.
    pub from: u32,
    /// How many tokens go through the model.
    pub tokens: u32,
    /// Whether the last of them gives the next token: true for a decode and for a prompt's last chunk.
    pub samples: bool,
    /// Guesses that go through the model behind them. Each one that is the very token which is drawn at its position counts,
    /// and gives another token.
    pub draft: Vec<u32>,
}

/// Figures since the start, and the pages as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// KV pages of the engine.
    pub pages: u32,
    /// That sequences hold.
    pub pages_held: u32,
    /// That nobody holds, and whose text is kept for those who begin alike.
    pub pages_cached: u32,
    /// Cached pages that had to make room.
    pub pages_evicted: u64,
    /// Tokens that sequences came with, their prompts above all.
    pub tokens_looked_up: u64,
    /// Of these, how many were computed already.
    pub tokens_reused: u64,
    /// How often a sequence gave its pages to an older one.
    pub preemptions: u64,
    /// Tokens that were guessed, to be checked in a step beside others.
    pub tokens_drafted: u64,
    /// Of these, how many were right.
    pub tokens_accepted: u64,
}

/// The state: who waits, who runs, who holds which pages.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    waiting: VecDeque<Sequence>,
    /// The oldest first.
    running: Vec<Sequence>,
    pages: Pages,
    budget: Budget,
    /// Prompt tokens in the last step.
    prompt_tokens: usize,
    /// Of the last plan: those, and a token of everybody who decodes.
    rows: usize,
    /// Of sequences, not of pages, which know their own.
    stats: Stats,
    recording: Option<Recording>,
}

impl Scheduler {
    /// An idle scheduler. A limit of 0 counts as 1: nothing could ever run otherwise.
    pub fn new(limits: Limits, recording: Option<Recording>) -> Scheduler {
        let limits = Limits {
            batch_max: limits.batch_max.max(1),
            step_tokens: limits.step_tokens.max(1),
            pages: limits.pages.max(1),
            page_tokens: limits.page_tokens.max(1),
            ..limits
        };
        if let Some(recording) = &recording {
            recording.begin(limits);
        }
        Scheduler {
            limits,
            waiting: VecDeque::new(),
            running: Vec::new(),
            pages: Pages::new(limits.pages),
            budget: Budget::new(limits.step_tokens),
            prompt_tokens: 0,
            rows: 0,
            stats: Stats::default(),
            recording,
        }
    }

    /// Takes note of what happened. False: the id is unknown (it has ended), or, for `Submitted`, already here, or it could
    /// never run because it has no token or needs more pages than there are; nothing changed then, and the caller answers for
    /// it.
    pub fn feed(&mut self, event: Event) -> bool {
        if let Some(recording) = &self.recording {
            recording.push(Record::Event(event.clone()));
        }
        match event {
            Event::Submitted { id, tokens, tokens_max, whole } => {
                let sequence = Sequence::new(id, tokens, tokens_max, whole, self.limits.page_tokens);
                if sequence.tokens.is_empty() || sequence.pages_max() > self.pages.count() as usize || self.knows(id) {
                    return false;
                }
                self.waiting.push_back(sequence);
                true
            }
            Event::Drawn { id, tokens } => {
                let Some(sequence) = self.running.iter_mut().find(|running| running.id == id) else { return false };
                let (drafted, accepted) = sequence.draw(tokens);
                self.stats.tokens_drafted += drafted as u64;
                self.stats.tokens_accepted += accepted as u64;
                true
            }
            Event::Took { micros } => {
                self.budget.learn(self.prompt_tokens, self.rows, micros);
                true
            }
            Event::Cancelled { id } | Event::Ended { id } => self.leave(id, true),
            Event::Failed { id } => self.leave(id, false),
        }
    }

    /// The next step. The caller carries it out, or ends the sequences in it.
    pub fn plan(&mut self) -> Plan {
        for running in &mut self.running {
            running.remember(&mut self.pages);
        }
        let preempted = self.grow();
        // Who was preempted does not come back in the same step, and nobody overtakes it.
        let joined = if preempted.is_empty() { self.join() } else { Vec::new() };
        let plan = Plan { preempted, joined, work: self.work() };
        if let Some(recording) = &self.recording {
            recording.push(Record::Plan(plan.clone()));
        }
        plan
    }

    /// Sequences in the batch.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Whether a plan would be empty.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// A running sequence's tokens, prompt and answer; empty for others.
    pub fn tokens(&self, id: SequenceId) -> &[u32] {
        self.find(id).map_or(&[], |running| &running.tokens)
    }

    /// A running sequence's pages: position `p` is in number `p / page_tokens`. Empty for others.
    pub fn pages(&self, id: SequenceId) -> &[u32] {
        self.find(id).map_or(&[], |running| &running.pages)
    }

    /// How many of a running sequence's tokens were computed already when it came.
    pub fn cached_tokens(&self, id: SequenceId) -> u32 {
        self.find(id).map_or(0, |running| running.cached)
    }

    /// The figures as they are.
    pub fn stats(&self) -> Stats {
        Stats {
            pages: self.pages.count(),
            pages_held: self.pages.count() - self.pages.available(),
            pages_cached: self.pages.idle(),
            pages_evicted: self.pages.evicted(),
            ..self.stats
        }
    }

    fn find(&self, id: SequenceId) -> Option<&Sequence> {
        self.running.iter().find(|running| running.id == id)
    }

    fn knows(&self, id: SequenceId) -> bool {
        self.find(id).is_some() || self.waiting.iter().any(|waiting| waiting.id == id)
    }

    /// Takes a sequence out. `computed`: what was planned for it is in its pages.
    fn leave(&mut self, id: SequenceId, computed: bool) -> bool {
        if let Some(at) = self.running.iter().position(|running| running.id == id) {
            let mut sequence = self.running.remove(at);
            if computed {
                sequence.remember(&mut self.pages);
            }
            sequence.release(&mut self.pages);
            true
        } else if let Some(at) = self.waiting.iter().position(|waiting| waiting.id == id) {
            self.waiting.remove(at);
            true
        } else {
            false
        }
    }

    /// Gives every sequence the page that its next token wants, the oldest first. Who had to make room, the youngest first.
    fn grow(&mut self) -> Vec<SequenceId> {
        let mut preempted = Vec::new();
        let mut at = 0;
        while at < self.running.len() {
            if !self.running[at].lacks_page() {
                at += 1;
            } else if let Some(page) = self.pages.take() {
                self.running[at].pages.push(page);
            } else {
                let mut youngest = self.running.pop().expect("somebody runs, who lacks a page");
                youngest.release(&mut self.pages);
                youngest.preempted = true;
                preempted.push(youngest.id);
                self.stats.preemptions += 1;
                self.waiting.push_front(youngest);
            }
        }
        preempted
    }

    fn join(&mut self) -> Vec<SequenceId> {
        let mut joined = Vec::new();
        // The first in line waits for its pages rather than being overtaken by smaller ones: nobody starves.
        while self.running.len() < self.limits.batch_max as usize && self.waiting.front().is_some_and(|next| self.fits(next)) {
            let mut sequence = self.waiting.pop_front().expect("the front was just looked at");
            if !sequence.preempted {
                self.stats.tokens_looked_up += sequence.tokens.len() as u64;
            }
            self.reuse(&mut sequence);
            while sequence.lacks_page() {
                sequence.pages.push(self.pages.take().expect("what fits has its pages"));
            }
            joined.push(sequence.id);
            self.running.push(sequence);
        }
        joined
    }

    /// Whether the pages for a sequence's tokens can be had, and some more for everybody to grow into.
    fn fits(&self, next: &Sequence) -> bool {
        let (mut found, mut idle) = (0, 0);
        for page in next.found(&self.pages) {
            found += 1;
            idle += usize::from(self.pages.is_idle(page));
        }
        let needed = next.pages_now() - found + idle;
        let growth = |room: usize| room.min(HEADROOM_PAGES);
        let headroom: usize = if self.running.is_empty() {
            // Nobody is disturbed, and alone it can have all pages.
            0
        } else {
            let others: usize = self.running.iter().map(|running| growth(running.pages_max() - running.pages.len())).sum();
            others + growth(next.pages_max() - next.pages_now())
        };
        needed + headroom <= self.pages.available() as usize
    }

    fn reuse(&mut self, sequence: &mut Sequence) {
        let first_time = !sequence.preempted;
        let reused = sequence.reuse(&mut self.pages);
        if first_time {
            self.stats.tokens_reused += reused as u64;
        }
    }

    fn work(&mut self) -> Vec<Work> {
        let mut running = std::mem::take(&mut self.running);
        // A neighbour may have computed meanwhile what both begin with.
        running.iter_mut().filter(|running| running.left() > 1).for_each(|running| self.reuse(running));
        let decoding = running.iter().filter(|running| running.left() == 1).count();
        let whole = self.budget.tokens(decoding);
        let mut budget = whole;
        let mut work = Vec::with_capacity(running.len());
        for sequence in &mut running {
            let decodes = sequence.left() == 1;
            let tokens = if decodes { 1 } else { sequence.left().min(budget) };
            if tokens == 0 {
                continue;
            }
            budget -= if decodes { 0 } else { tokens };
            let from = u32::try_from(sequence.computed).unwrap_or(u32::MAX);
            sequence.computed += tokens;
            let (samples, tokens) = (sequence.left() == 0, u32::try_from(tokens).unwrap_or(u32::MAX));
            work.push(Work { id: sequence.id, from, tokens, samples, draft: Vec::new() });
        }
        self.running = running;
        self.prompt_tokens = whole - budget;
        self.rows = self.prompt_tokens + decoding;
        if self.limits.speculate && work.iter().all(|work| work.tokens == 1 && work.samples) {
            self.draft(&mut work);
        }
        work
    }

    /// Adds guesses to a step that only decodes. They take no page that somebody will want soon.
    fn draft(&mut self, work: &mut [Work]) {
        let each = SPECULATIVE_ROWS.saturating_sub(work.len()).checked_div(work.len()).unwrap_or(0).min(DRAFT_MAX);
        if each == 0 {
            return;
        }
        // A page for everybody's next token.
        let wanted = self.running.len();
        for (sequence, work) in self.running.iter_mut().zip(work) {
            debug_assert_eq!(sequence.id, work.id, "everybody decodes");
            let spare = (self.pages.available() as usize).saturating_sub(wanted);
            work.draft = sequence.draft(each, &mut self.pages, spare);
        }
    }
}

#[cfg(test)]
mod tests;
