//! The queries that the node keeps, its engine, and the stream on which it delivers to the root.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::Duration,
};

use banyan_engine as engine;
use banyan_observe::Tracer;
use banyan_proto::{Attempt, NodeName, QueryId, v1};
use tokio::{sync::mpsc, time::Instant};

use super::{chunks::Chunks, parcel::Parcel, traced::AtHolder};
use crate::{
    meters::Meters,
    router::{Action, Service},
    translate,
};

/// What was said so long ago has arrived, or its stream was found broken since: pings see to that.
const UNSURE: Duration = Duration::from_secs(4);
/// Parts of one frame when much is said at once: some hundred kilobytes.
const PARTS_MAX: usize = 1024;

/// Chunks of one answer that are kept for a root that comes next; beyond, it is computed again from where that one stands.
const SAID_BYTES_MAX: usize = 4 << 20;
/// Answers that end while there is no root: a batch or two of short ones.
const ENDED_MAX: usize = 1024;

pub(super) struct Work {
    engine: engine::Engine,
    tracer: Tracer,
    /// In the order of their ids, so that what is said of all of them is said in that order.
    kept: BTreeMap<QueryId, Kept>,
    sequences: HashMap<engine::SequenceId, QueryId>,
    next_sequence: u64,
    /// The Deliver stream; `None` while there is no way to the root.
    to: Option<mpsc::Sender<v1::Delivery>>,
    /// Parts for the next frame.
    parts: Vec<v1::Part>,
    /// Answers that have ended and no root was told of.
    untold: usize,
    /// What was said lately, for another stream that takes over: the end of a broken one may not have arrived. The engine's
    /// speed bounds it.
    said: VecDeque<(Instant, v1::Part)>,
    /// Counted since the start, until `counted_at`.
    service: Service,
    counted_at: Instant,
}

struct Kept {
    attempt: Attempt,
    query: v1::Query,
    /// The one that it asks for.
    model: String,
    sequence: Option<engine::SequenceId>,
    /// What was computed: a root that comes next may need it again.
    said: Chunks,
    /// How it ended, while no root has been told.
    end: Option<v1::part::Kind>,
    /// The root has yet to say where to go on.
    waits: bool,
    /// The root took it away, so it is told nothing more of it.
    silent: bool,
    /// Since when it waits for its slot.
    queued_at: Option<Instant>,
    /// Where it is in its client's trace.
    trace: Option<Box<AtHolder>>,
}

impl Work {
    pub(super) fn new(engine: engine::Engine, now: Instant, tracer: Tracer) -> Self {
        Work {
            engine,
            tracer,
            kept: BTreeMap::new(),
            sequences: HashMap::new(),
            next_sequence: 0,
            to: None,
            parts: Vec::new(),
            untold: 0,
            said: VecDeque::new(),
            service: Service::default(),
            counted_at: now,
        }
    }

    /// How it served since the start.
    pub(super) fn service(&mut self, now: Instant) -> Service {
        self.pass_time(now);
        self.service
    }

    /// Tokens that were generated since the start.
    pub(super) fn tokens(&self) -> u64 {
        self.service.tokens
    }

    fn pass_time(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(std::mem::replace(&mut self.counted_at, now));
        self.service.busy_us += passed.as_micros() as u64 * self.sequences.len() as u64;
    }

    /// How the engine uses its KV memory, where it has any.
    pub(super) fn kv(&self) -> Option<v1::Kv> {
        Some(self.engine.stats()).filter(|stats| stats.pages > 0).map(translate::kv)
    }

    /// The keys that the engine spends from.
    pub(super) fn accounts(&self) -> Vec<v1::Account> {
        self.engine.accounts().into_iter().map(translate::account).collect()
    }

    /// Says how many queries wait for a slot.
    pub(super) fn expect(&self, waiting: usize) {
        self.engine.expect(u32::try_from(waiting).unwrap_or(u32::MAX));
    }

    /// Sequences that its engine has.
    pub(super) fn running(&self) -> usize {
        self.sequences.len()
    }

    /// Queries of which anything is kept.
    pub(super) fn kept(&self) -> usize {
        self.kept.len()
    }

    pub(super) fn is_connected(&self) -> bool {
        self.to.is_some()
    }

    /// Does what the router decided. Returns the query when it could not even start, so that its slot is free again.
    pub(super) fn act(
        &mut self,
        us: &NodeName,
        action: &Action,
        query: Option<Parcel>,
        now: Instant,
        meters: Option<&Meters>,
    ) -> Option<QueryId> {
        match action {
            Action::Execute { id } => {
                if let Some(query) = query {
                    self.keep(us, *id, query, v1::Reason::Room);
                }
                self.pass_time(now);
                let queued = self.kept.get_mut(id).and_then(|kept| kept.queued_at.take());
                if let (Some(meters), Some(since)) = (meters, queued) {
                    meters.left_queue(now - since);
                }
                return self.execute(*id);
            }
            Action::Queue { id } => {
                if let Some(query) = query {
                    self.keep(us, *id, query, v1::Reason::Queued);
                    if let Some(kept) = self.kept.get_mut(id) {
                        kept.queued_at = Some(now);
                    }
                    self.say_holding(*id);
                }
            }
            Action::Refuse { id, because } => {
                if let Some(mut query) = query {
                    query.add_hop(us, v1::Reason::Refused);
                    let refused = translate::refused_busy(*because, query.trail().to_vec());
                    self.parts.push(translate::part(*id, query.attempt(), refused));
                }
            }
            Action::Return { id } => {
                if let Some(kept) = self.kept.remove(id) {
                    self.parts.push(translate::part(*id, kept.attempt, v1::part::Kind::Returned(v1::Returned {})));
                }
            }
            Action::Abort { id } => {
                if let Some(kept) = self.kept.get_mut(id)
                    && let Some(sequence) = kept.sequence
                {
                    kept.silent = true;
                    self.engine.cancel(sequence);
                }
            }
            Action::Drop { id } => {
                self.kept.remove(id);
            }
            Action::Forward { .. } | Action::Report { .. } | Action::Judge { .. } => {}
        }
        None
    }

    /// Passes on what an engine step said. Returns the queries that left the engine.
    pub(super) fn step(&mut self, step: engine::Step, now: Instant) -> Vec<QueryId> {
        self.pass_time(now);
        let mut ended = Vec::new();
        for output in step.outputs {
            let sequence = output.id();
            let Some(&id) = self.sequences.get(&sequence) else { continue };
            let Some(kept) = self.kept.get_mut(&id) else { continue };
            if let engine::Output::Tokens { tokens, .. } = &output {
                self.service.tokens += tokens.len() as u64;
            }
            match &output {
                engine::Output::Finished { .. } => self.service.answered += 1,
                engine::Output::Refused { refusal: engine::Refusal::Engine(_), .. } => self.service.failed += 1,
                _ => {}
            }
            if let Some(trace) = &mut kept.trace {
                trace.said(&self.tracer, &output);
            }
            let last = output.is_last();
            let kind = translate::part_kind(output, self.engine.info().served(&kept.model)).filter(|_| !kept.silent);
            if let Some(v1::part::Kind::Tokens(tokens)) = &kind {
                kept.said.push(tokens);
            }
            let untold = last && kept.waits && kind.is_some();
            match kind {
                Some(kind) if kept.waits => kept.end = last.then_some(kind),
                Some(kind) => self.parts.push(translate::part(id, kept.attempt, kind)),
                None => {}
            }
            if last {
                self.sequences.remove(&sequence);
                kept.sequence = None;
                kept.trace = None;
                ended.push(id);
                if !untold || self.untold >= ENDED_MAX {
                    self.kept.remove(&id);
                } else {
                    self.untold += 1;
                }
            }
        }
        ended
    }

    /// A way to the root is open: it hears of everything that is kept, and says where to go on or cancels what it gave to others
    /// meanwhile. And it hears once more what was said lately of what has ended.
    pub(super) fn connected(&mut self, to: mpsc::Sender<v1::Delivery>, now: Instant) {
        self.wait_for_the_root(now);
        let ids: Vec<QueryId> = self.kept.iter().filter(|(_, kept)| !kept.silent).map(|(id, _)| *id).collect();
        for id in ids {
            self.say_holding(id);
        }
        let mut parts = std::mem::take(&mut self.parts);
        let ended = |part: &&v1::Part| {
            let passing = matches!(part.kind, Some(v1::part::Kind::Holding(_) | v1::part::Kind::Progress(_)));
            !passing && QueryId::from_wire(&part.id).is_ok_and(|id| !self.kept.contains_key(&id))
        };
        parts.extend(self.said.iter().map(|(_, part)| part).filter(ended).cloned());
        self.to = Some(to);
        while !parts.is_empty() {
            let rest = parts.split_off(parts.len().min(PARTS_MAX));
            self.send(std::mem::replace(&mut parts, rest));
        }
    }

    /// There is no root: what runs goes on, and is kept for the next one.
    pub(super) fn disconnected(&mut self, now: Instant) {
        self.to = None;
        self.wait_for_the_root(now);
    }

    fn wait_for_the_root(&mut self, now: Instant) {
        self.remember(now);
        for kept in self.kept.values_mut() {
            kept.waits = true;
        }
    }

    /// The root wants an attempt from a position on.
    pub(super) fn resume(&mut self, id: QueryId, attempt: Attempt, position: u32) {
        let Some(kept) = self.kept.get_mut(&id).filter(|kept| kept.attempt == attempt && !kept.silent) else {
            // Dropped meanwhile: the root is not to wait for it.
            self.parts.push(translate::part(id, attempt, v1::part::Kind::Returned(v1::Returned {})));
            return;
        };
        if !kept.said.begins_at(position) {
            // Its client got these tokens in other pieces.
            kept.silent = true;
            if let Some(sequence) = kept.sequence {
                self.engine.cancel(sequence);
            }
            self.parts.push(translate::part(id, attempt, v1::part::Kind::Returned(v1::Returned {})));
            self.forget_ended(id, attempt);
            return;
        }
        kept.waits = false;
        for tokens in kept.said.since(position) {
            self.parts.push(translate::part(id, attempt, v1::part::Kind::Tokens(tokens.clone())));
        }
        if let Some(end) = kept.end.take() {
            self.parts.push(translate::part(id, attempt, end));
            self.kept.remove(&id);
            self.untold -= 1;
        }
    }

    /// Nobody asks for an answer that ended while there was no root.
    pub(super) fn forget_ended(&mut self, id: QueryId, attempt: Attempt) {
        if self.kept.get(&id).is_some_and(|kept| kept.end.is_some() && kept.attempt <= attempt) {
            self.kept.remove(&id);
            self.untold -= 1;
        }
    }

    /// Every attempt that is kept.
    pub(super) fn attempts(&self) -> Vec<(QueryId, Attempt)> {
        self.kept.iter().map(|(id, kept)| (*id, kept.attempt)).collect()
    }

    /// Sends the parts as one frame. False when the root does not read: the stream is dropped.
    pub(super) fn flush(&mut self, now: Instant) -> bool {
        if self.parts.is_empty() {
            return true;
        }
        let parts = self.parts.clone();
        self.remember(now);
        self.send(parts)
    }

    fn send(&mut self, parts: Vec<v1::Part>) -> bool {
        let Some(to) = &self.to else { return true };
        let frame = v1::Delivery { kind: Some(v1::delivery::Kind::Frame(v1::Frame { parts })) };
        if to.try_send(frame).is_err() {
            self.to = None;
            return false;
        }
        true
    }

    /// Says something that is about no query; where there is no way now it is not worth saying later.
    pub(super) fn tell(&mut self, kind: v1::delivery::Kind) {
        if let Some(to) = &self.to {
            // A root that reads nothing is found out by the next frame.
            let _ = to.try_send(v1::Delivery { kind: Some(kind) });
        }
    }

    fn remember(&mut self, now: Instant) {
        self.said.extend(self.parts.drain(..).map(|part| (now, part)));
        let old = self.said.partition_point(|(at, _)| now.duration_since(*at) > UNSURE);
        self.said.drain(..old);
    }

    /// The node is leaving: the root sends everything that is kept here elsewhere, and blames nobody.
    pub(super) fn hand_back(&mut self) {
        for (id, kept) in std::mem::take(&mut self.kept) {
            if let Some(sequence) = kept.sequence {
                self.engine.cancel(sequence);
            }
            if !kept.silent && kept.end.is_none() {
                self.parts.push(translate::part(id, kept.attempt, v1::part::Kind::Returned(v1::Returned {})));
            }
        }
        self.untold = 0;
        self.sequences.clear();
    }

    fn keep(&mut self, us: &NodeName, id: QueryId, mut query: Parcel, reason: v1::Reason) {
        query.add_hop(us, reason);
        let (attempt, query) = (query.attempt(), query.into_query());
        let from = query.delivered.len() as u32;
        let model = query.header.as_ref().map(|header| header.model.clone()).unwrap_or_default();
        let trace = query.header.as_ref().and_then(|header| AtHolder::begin(&self.tracer, us, &id, header));
        let kept = Kept {
            attempt,
            query,
            model,
            sequence: None,
            said: Chunks::new(from, SAID_BYTES_MAX),
            end: None,
            waits: self.to.is_none(),
            silent: false,
            queued_at: None,
            trace,
        };
        if self.kept.insert(id, kept).is_some_and(|before| before.end.is_some()) {
            self.untold -= 1;
        }
    }

    fn execute(&mut self, id: QueryId) -> Option<QueryId> {
        let sequence = engine::SequenceId(self.next_sequence);
        // What is not kept can't run, so its slot is free again.
        let Some(kept) = self.kept.get_mut(&id) else { return Some(id) };
        match translate::request(sequence, &kept.query) {
            Ok(mut request) => {
                if let Some(trace) = &kept.trace {
                    request.traceparent = trace.place().traceparent();
                }
                self.next_sequence += 1;
                kept.sequence = Some(sequence);
                // The prompt was read and is not needed again: the root has its own copy for a further attempt.
                kept.query.payload.clear();
                kept.query.delivered = Vec::new();
                self.sequences.insert(sequence, id);
                self.say_holding(id);
                self.engine.submit(request);
                None
            }
            Err(failed) => {
                let trail = kept.query.header.take().map(|header| header.trail).unwrap_or_default();
                let part = translate::part(id, kept.attempt, translate::refused(failed, trail));
                self.parts.push(part);
                self.kept.remove(&id);
                Some(id)
            }
        }
    }

    fn say_holding(&mut self, id: QueryId) {
        let Some(kept) = self.kept.get(&id) else { return };
        let trail = kept.query.header.as_ref().map(|header| header.trail.clone()).unwrap_or_default();
        let holding = v1::Holding {
            running: kept.sequence.is_some() || kept.end.is_some(),
            trail,
            resumable: kept.waits,
            from: kept.said.from(),
            position: kept.said.position(),
        };
        self.parts.push(translate::part(id, kept.attempt, v1::part::Kind::Holding(holding)));
    }
}
