//! The queries that the node keeps, its engine, and the stream on which it delivers to the root.

use std::collections::{BTreeMap, HashMap};

use banyan_engine as engine;
use banyan_proto::{Attempt, NodeName, QueryId, v1};
use tokio::sync::mpsc;

use super::parcel::Parcel;
use crate::{router::Action, translate};

pub(super) struct Work {
    engine: engine::Engine,
    /// In the order of their ids, so that what is said of all of them is said in that order.
    kept: BTreeMap<QueryId, Kept>,
    sequences: HashMap<engine::SequenceId, QueryId>,
    next_sequence: u64,
    /// The Deliver stream; `None` while there is no way to the root.
    to: Option<mpsc::Sender<v1::Delivery>>,
    /// Parts for the next frame.
    parts: Vec<v1::Part>,
    /// Generated since the start.
    pub(super) tokens: u64,
}

struct Kept {
    attempt: Attempt,
    query: v1::Query,
    sequence: Option<engine::SequenceId>,
    /// The root took it away, so it is told nothing more of it.
    silent: bool,
}

impl Work {
    pub(super) fn new(engine: engine::Engine) -> Self {
        Work {
            engine,
            kept: BTreeMap::new(),
            sequences: HashMap::new(),
            next_sequence: 0,
            to: None,
            parts: Vec::new(),
            tokens: 0,
        }
    }

    /// How the engine uses its KV memory.
    pub(super) fn kv(&self) -> v1::Kv {
        translate::kv(self.engine.stats())
    }

    /// Queries of which anything is kept.
    pub(super) fn kept(&self) -> usize {
        self.kept.len()
    }

    pub(super) fn is_connected(&self) -> bool {
        self.to.is_some()
    }

    /// Does what the router decided. Returns the query when it could not even start, so that its slot is free again.
    pub(super) fn act(&mut self, us: &NodeName, action: &Action, query: Option<Parcel>) -> Option<QueryId> {
        match action {
            Action::Execute { id } => {
                if let Some(query) = query {
                    self.keep(us, *id, query, v1::Reason::Room);
                }
                return self.execute(*id);
            }
            Action::Queue { id } => {
                if let Some(query) = query {
                    self.keep(us, *id, query, v1::Reason::Queued);
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
            Action::Forward { .. } | Action::Report { .. } => {}
        }
        None
    }

    /// Passes on what an engine step said. Returns the queries that left the engine.
    pub(super) fn step(&mut self, step: engine::Step) -> Vec<QueryId> {
        let mut ended = Vec::new();
        for output in step.outputs {
            let sequence = output.id();
            let Some(&id) = self.sequences.get(&sequence) else { continue };
            let Some(kept) = self.kept.get(&id) else { continue };
            if let engine::Output::Tokens { tokens, .. } = &output {
                self.tokens += tokens.len() as u64;
            }
            let last = output.is_last();
            if !kept.silent
                && let Some(kind) = translate::part_kind(output, self.engine.info())
            {
                self.parts.push(translate::part(id, kept.attempt, kind));
            }
            if last {
                self.sequences.remove(&sequence);
                self.kept.remove(&id);
                ended.push(id);
            }
        }
        ended
    }

    /// The way to the root is open: it hears of everything that is kept, and cancels what it gave to others meanwhile.
    pub(super) fn connected(&mut self, to: mpsc::Sender<v1::Delivery>) {
        self.to = Some(to);
        self.parts.clear();
        let ids: Vec<QueryId> = self.kept.iter().filter(|(_, kept)| !kept.silent).map(|(id, _)| *id).collect();
        for id in ids {
            self.say_holding(id);
        }
    }

    pub(super) fn disconnected(&mut self) {
        self.to = None;
        self.parts.clear();
    }

    /// Sends the parts as one frame. False when the root does not read: the stream is dropped.
    pub(super) fn flush(&mut self) -> bool {
        if self.parts.is_empty() {
            return true;
        }
        let parts = std::mem::take(&mut self.parts);
        let Some(to) = &self.to else { return true };
        let frame = v1::Delivery { kind: Some(v1::delivery::Kind::Frame(v1::Frame { parts })) };
        if to.try_send(frame).is_err() {
            self.to = None;
            return false;
        }
        true
    }

    /// The node is leaving: the root sends everything that is kept here elsewhere, and blames nobody.
    pub(super) fn hand_back(&mut self) {
        for (id, kept) in std::mem::take(&mut self.kept) {
            if let Some(sequence) = kept.sequence {
                self.engine.cancel(sequence);
            }
            if !kept.silent {
                self.parts.push(translate::part(id, kept.attempt, v1::part::Kind::Returned(v1::Returned {})));
            }
        }
        self.sequences.clear();
    }

    fn keep(&mut self, us: &NodeName, id: QueryId, mut query: Parcel, reason: v1::Reason) {
        query.add_hop(us, reason);
        let attempt = query.attempt();
        self.kept.insert(id, Kept { attempt, query: query.into_query(), sequence: None, silent: false });
    }

    fn execute(&mut self, id: QueryId) -> Option<QueryId> {
        let sequence = engine::SequenceId(self.next_sequence);
        // What is not kept can't run, so its slot is free again.
        let Some(kept) = self.kept.get_mut(&id) else { return Some(id) };
        match translate::request(sequence, &kept.query) {
            Ok(request) => {
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
        let holding = v1::Holding { running: kept.sequence.is_some(), trail };
        self.parts.push(translate::part(id, kept.attempt, v1::part::Kind::Holding(holding)));
    }
}
