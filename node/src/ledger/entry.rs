//! One query's account.

use std::{collections::HashMap, sync::Arc};

use banyan_proto::{Attempt, NodeName, QueryId};

use super::{
    HOLDING_TIMEOUT_US, PROGRESS_TIMEOUT_US, UNSERVED_TIMEOUT_US,
    types::{Action, Asked, Holder, Hop, Outcome, State, Try, Way, Why},
};
use crate::{
    capacity::{self, Capacity},
    lanes::Waiting,
};

/// Attempts that `why` shows; a query that is recalled or refused more often has said enough.
const TRIES_MAX: usize = 64;

/// Tokens behind the point of a death after which a query is no suspect: the step that killed came and went.
const PROOF_TOKENS: u32 = 2;
/// Whatever is there when so many engines die is not run again, wherever it was.
const DEATHS_MAX: u32 = 3;
/// Engines that may die with a query in them of which nobody heard that it had begun: it may have waited there for memory, or
/// have been so quick to kill that the word of it was lost.
const UNHEARD_MAX: u32 = 1;

/// Nearer to the front than that each step is told.
const PLACES_TOLD: u32 = 16;

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) id: QueryId,
    pub(super) order: u64,
    pub(super) owner: Arc<str>,
    pub(super) model: Arc<str>,
    pub(super) prefer: Option<NodeName>,
    priority: i32,
    pub(super) tokens_max: u32,
    pub(super) bytes: usize,
    pub(super) attempt: Attempt,
    pub(super) state: State,
    pub(super) holder: Option<Holder>,
    /// What the client has.
    pub(super) tokens: Vec<u32>,
    pub(super) deadline: u64,
    accepted_at: u64,
    pub(super) waiting_since: u64,
    pub(super) first_token_at: Option<u64>,
    ended_at: Option<u64>,
    pub(super) sent_at: u64,
    /// The last sign of life: accepted, held, progress.
    pub(super) seen_at: u64,
    /// Whether the holder's engine has begun with it.
    pub(super) started: bool,
    /// Engines that died or failed with it.
    deaths: u32,
    /// Engines that died with it before it was heard to have begun.
    unheard: u32,
    /// It has not got past the point of the last death.
    pub(super) suspect: bool,
    /// The stream of the node that died last with it: those that died together are told apart, one after the other.
    pub(super) death: u64,
    /// Tokens that the client had then.
    died_at: u32,
    /// The attempt and the node of the last one.
    blamed: Option<(Attempt, NodeName)>,
    pub(super) recalled: bool,
    /// Until its first token it fails rather than wait.
    pub(super) impatient: bool,
    /// Since when nobody reads its answer.
    pub(super) detached_at: Option<u64>,
    /// What its client was told last of its place in the lanes; 0: nothing.
    place: u32,
    /// Why the next attempt is sent.
    pub(super) why: Why,
    tries: Vec<Try>,
    outcome: Option<Outcome>,
    error: Option<String>,
}

impl Entry {
    pub(super) fn new(now: u64, order: u64, asked: Asked, epoch: u64) -> Self {
        Entry {
            id: asked.id,
            order,
            owner: asked.owner,
            model: asked.model,
            prefer: asked.prefer,
            priority: asked.priority,
            // Nothing is free, so that lanes can be measured by it.
            tokens_max: asked.tokens_max.max(1),
            bytes: asked.bytes,
            attempt: Attempt { epoch, number: 0 },
            state: State::Waiting,
            holder: None,
            tokens: Vec::new(),
            deadline: now.saturating_add(asked.time_us),
            accepted_at: now,
            waiting_since: now,
            first_token_at: None,
            ended_at: None,
            sent_at: now,
            seen_at: now,
            started: false,
            deaths: 0,
            unheard: 0,
            suspect: false,
            death: 0,
            died_at: 0,
            blamed: None,
            recalled: false,
            impatient: asked.impatient,
            detached_at: None,
            place: 0,
            why: Why::New,
            tries: Vec::new(),
            outcome: None,
            error: None,
        }
    }

    /// It was tried before, for another model, and what may still be on its way of that is not to be taken for this one's.
    pub(super) fn goes_on_behind(&mut self, tries: Vec<Try>) {
        self.attempt.number = tries.last().map_or(0, |last| last.number);
        self.tries = tries;
    }

    pub(super) fn waiting(&self) -> Waiting {
        Waiting {
            id: self.id,
            owner: self.owner.clone(),
            model: self.model.clone(),
            priority: self.priority,
            order: self.order,
            since: self.accepted_at,
            // What its owner was charged for once is not charged again.
            tokens: if self.attempt.number == 0 { self.tokens_max } else { 0 },
            bytes: self.bytes,
        }
    }

    pub(super) fn send(&mut self, now: u64, epoch: u64) {
        self.begin(now, Attempt { epoch, number: self.attempt.number + 1 });
    }

    /// A node has held this attempt since an earlier reign: it counts as sent now.
    pub(super) fn adopt(&mut self, now: u64, attempt: Attempt) {
        self.why = Why::Adopted;
        self.begin(now, attempt);
    }

    fn begin(&mut self, now: u64, attempt: Attempt) {
        self.attempt = attempt;
        self.state = State::Sent;
        self.sent_at = now;
        self.holder = None;
        self.recalled = false;
        if self.tries.len() < TRIES_MAX {
            self.tries.push(Try {
                number: self.attempt.number,
                why: self.why,
                holder: None,
                sent_us: now - self.accepted_at,
                held_us: None,
                started_us: None,
                ended_us: None,
                trail: Vec::new(),
                outcome: None,
            });
        }
    }

    pub(super) fn wait(&mut self, now: u64, why: Why) {
        if self.holder.is_some() {
            self.seen_at = now;
        }
        self.started = false;
        self.waiting_since = now;
        self.state = State::Waiting;
        self.holder = None;
        self.recalled = false;
        self.why = why;
    }

    pub(super) fn hold(&mut self, now: u64, holder: Holder, running: bool, trail: Vec<Hop>) {
        let since = now - self.accepted_at;
        if let Some(current) = self.current_try() {
            current.holder = Some(holder.name.clone());
            current.held_us.get_or_insert(since);
            if running {
                current.started_us.get_or_insert(since);
            }
            if !trail.is_empty() {
                current.trail = trail;
            }
        }
        self.holder = Some(holder);
        self.state = if running { State::Running } else { State::Queued };
        self.seen_at = now;
    }

    /// The current holder is lost while it ran it. True when it may be to blame: its engine had begun with it, or that was never
    /// heard, and too often for chance.
    pub(super) fn is_guilty(&mut self) -> bool {
        if !self.started {
            self.unheard += 1;
        }
        self.started || self.unheard > UNHEARD_MAX
    }

    /// The current holder's engine died or failed with it. True when that is once too often: a suspect has not got past the
    /// point of the first time, and `alone` can be to blame.
    pub(super) fn blame(&mut self, alone: bool) -> bool {
        let again = self.suspect && alone;
        self.deaths += 1;
        self.suspect = true;
        self.died_at = self.tokens.len() as u32;
        self.death = self.holder.as_ref().map_or(0, |holder| holder.stream);
        self.blamed = self.holder.as_ref().map(|holder| (self.attempt, holder.name.clone()));
        again || self.deaths > DEATHS_MAX
    }

    /// Whether a suspect has got past the point.
    pub(super) fn is_proven(&self) -> bool {
        self.suspect && self.tokens.len() as u32 >= self.died_at + PROOF_TOKENS
    }

    /// A node that says to hold a lost attempt lives: it was its stream that broke, so nobody is to blame.
    /// True when that clears a suspect.
    pub(super) fn forgive(&mut self, attempt: Attempt, name: &NodeName) -> bool {
        if self.blamed.as_ref().is_none_or(|(lost, by)| *lost != attempt || by != name) {
            return false;
        }
        self.blamed = None;
        self.deaths -= 1;
        std::mem::take(&mut self.suspect)
    }

    /// A query that waits is not stranded as long as somebody serves its model.
    pub(super) fn note_served(&mut self, now: u64, room: &[Capacity]) {
        if self.state == State::Waiting && capacity::total(room, &self.model, |set| set.slots) > 0 {
            self.seen_at = now;
        }
    }

    /// The first to say so holds it; after that only the same stream may, or a newer one of the same node, which takes over.
    pub(super) fn may_be_held_by(&self, holder: &Holder) -> bool {
        match self.state {
            State::Waiting | State::Ended => false,
            State::Sent | State::Queued | State::Running => {
                let takes_over = |known: &Holder| known.name == holder.name && known.stream < holder.stream;
                self.holder.as_ref().is_none_or(|known| known.stream == holder.stream || takes_over(known))
            }
        }
    }

    /// Whether a newer stream of the same node has taken over: it says again what was still on its way on the old one.
    pub(super) fn is_superseded(&self, attempt: Attempt, holder: &Holder) -> bool {
        let newer = |known: &Holder| known.name == holder.name && known.stream > holder.stream;
        self.attempt == attempt && self.holder.as_ref().is_some_and(newer)
    }

    /// What was said came on this stream. Gives the recall that the old one may have swallowed.
    pub(super) fn follow(&mut self, holder: &Holder) -> Option<Action> {
        let known = self.holder.as_mut().filter(|known| known.stream != holder.stream)?;
        known.clone_from(holder);
        let recalled = self.recalled && self.state == State::Queued;
        recalled.then_some(Action::Recall { stream: holder.stream, id: self.id, attempt: self.attempt })
    }

    /// The current attempt ended.
    pub(super) fn tried(&mut self, now: u64, holder: Option<Holder>, outcome: Outcome, trail: Vec<Hop>) {
        let since = now - self.accepted_at;
        if let Some(current) = self.current_try() {
            if let Some(holder) = holder {
                current.holder = Some(holder.name);
            }
            if !trail.is_empty() {
                current.trail = trail;
            }
            current.ended_us = Some(since);
            current.outcome = Some(outcome);
        }
    }

    pub(super) fn cancel(&self, actions: &mut Vec<Action>) {
        if let Some(holder) = &self.holder {
            actions.push(Action::Cancel { stream: holder.stream, id: self.id, attempt: self.attempt });
        }
    }

    pub(super) fn placed(&self) -> Action {
        let node = self.holder.as_ref().map(|holder| holder.name.clone());
        let place = if self.state == State::Waiting { self.place } else { 0 };
        Action::Placed { id: self.id, node, running: self.state == State::Running, place }
    }

    /// Tells its place in the lanes, where that differs from what its client knows by something that people notice: with thousands
    /// waiting, each of them would hear of every one that is served.
    pub(super) fn stand(&mut self, place: u32) -> Option<Action> {
        let differs = place.abs_diff(self.place);
        if self.state != State::Waiting || differs == 0 || (place > PLACES_TOLD && differs < place / 8) {
            return None;
        }
        self.place = place;
        Some(self.placed())
    }

    /// Whether a tick has something to do for it; `streams` has the last progress of each.
    pub(super) fn due(&self, now: u64, streams: &HashMap<u64, u64>) -> bool {
        let silent = now.saturating_sub(self.seen_at);
        let hung = || {
            let stream = self.holder.as_ref().and_then(|holder| streams.get(&holder.stream));
            stream.is_none_or(|last| now.saturating_sub(*last) >= PROGRESS_TIMEOUT_US)
        };
        now >= self.deadline
            || match self.state {
                State::Waiting => silent >= UNSERVED_TIMEOUT_US,
                State::Sent => now.saturating_sub(self.sent_at) >= HOLDING_TIMEOUT_US,
                State::Running => silent >= PROGRESS_TIMEOUT_US && hung(),
                State::Queued | State::Ended => false,
            }
    }

    pub(super) fn end(&mut self, now: u64, outcome: Outcome, error: Option<&str>) {
        if self.tries.last().is_some_and(|last| last.outcome.is_none()) {
            self.tried(now, None, outcome, Vec::new());
        }
        self.state = State::Ended;
        self.outcome = Some(outcome);
        self.error = error.map(str::to_owned);
        self.ended_at = Some(now);
    }

    pub(super) fn way(&self) -> Way {
        let since = |at: u64| at - self.accepted_at;
        Way {
            id: self.id,
            owner: self.owner.clone(),
            model: self.model.clone(),
            state: self.state,
            outcome: self.outcome,
            tries: self.tries.clone(),
            tokens: self.tokens.len() as u32,
            first_token_us: self.first_token_at.map(since),
            ended_us: self.ended_at.map(since),
            error: self.error.clone(),
        }
    }

    pub(super) fn trail(&self) -> &[Hop] {
        self.tries.last().filter(|last| last.number == self.attempt.number).map_or(&[], |last| &last.trail)
    }

    fn current_try(&mut self) -> Option<&mut Try> {
        let number = self.attempt.number;
        self.tries.last_mut().filter(|last| last.number == number)
    }
}
