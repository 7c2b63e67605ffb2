//! The root's desk: the ledger with the payloads, clients and holders' streams that its decisions are about.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use banyan_proto::{NodeName, QueryId, v1};
use bytes::Bytes;
use prost::Message as _;
use tokio::{sync::mpsc, time::Instant};

use super::{
    input::{Ask, HolderLink, WhyFound},
    parcel::Parcel,
};
use crate::{
    ledger::{self, Action, Fault, Holder, Ledger, Why},
    router::Ticket,
    translate,
};

/// A client that reads nothing for that long, with answers waiting for it, has gone or might as well have.
const CLIENT_PATIENCE: Duration = Duration::from_secs(30);

/// Nodes that deliver to one root; more want a second tree.
const HOLDERS_MAX: usize = 65_536;

/// What a client may leave unread, in bytes: more than an answer's tokens with all their alternatives.
const UNREAD_BYTES_MAX: u64 = 8 << 20;
/// What all may leave unread together; beyond, those who have read least are cut off.
const UNREAD_BYTES_TOTAL_MAX: u64 = 256 << 20;

/// Refusals for overload are noted together, so often.
const NOTE_INTERVAL: Duration = Duration::from_secs(1);

/// A query that left sooner did not wait for room, it only passed through.
const WAITED_US: u64 = 1000;

pub(super) struct Desk {
    pub(super) ledger: Ledger,
    clients: HashMap<QueryId, Client>,
    holders: HashMap<u64, HolderLink>,
    /// The router's capacity changed since the ledger was last told.
    pub(super) room_changed: bool,
    /// Streams of holders that can't keep up.
    broken: Vec<u64>,
    /// Clients that were found gone when they were told something.
    gone: Vec<(QueryId, u64)>,
    /// Refused for overload since that was last noted, and when it was.
    overloaded: u64,
    noted: Option<Instant>,
}

struct Client {
    serial: u64,
    to: mpsc::UnboundedSender<v1::Answer>,
    sent: u64,
    /// Of all that was sent.
    bytes: u64,
    read: Arc<AtomicU64>,
    /// The last time that it was seen to read, and how much it had read.
    seen: (Instant, u64),
    header: v1::Header,
    payload: Bytes,
    /// Whom the last attempt was sent to.
    child: Option<NodeName>,
}

impl Client {
    /// Bytes that it has not read, about: by their number, as if all answers were of one size.
    fn unread(&self) -> u64 {
        let unread = self.sent.saturating_sub(super::load(&self.read));
        self.bytes.saturating_mul(unread) / self.sent.max(1)
    }
}

impl Desk {
    pub(super) fn new(settings: ledger::Settings) -> Self {
        Desk {
            ledger: Ledger::new(settings),
            clients: HashMap::new(),
            holders: HashMap::new(),
            room_changed: false,
            broken: Vec::new(),
            gone: Vec::new(),
            overloaded: 0,
            noted: None,
        }
    }

    /// Takes in a question; nothing when its header can't be read or its id is in use, of which the client is told.
    pub(super) fn accept(&mut self, ask: Ask, now: Instant) -> Option<ledger::Asked> {
        let Ask { question, serial, to, read, .. } = ask;
        let refuse = |reason: v1::Failure, message: &str| {
            let failed = v1::Failed { reason: reason.into(), message: message.to_owned(), ..Default::default() };
            // Fails when the client has gone already.
            let _ = to.send(answer(v1::answer::Kind::Failed(failed)));
        };
        let Some(asked) = translate::asked(&question) else {
            refuse(v1::Failure::Invalid, "the question's header has no 16-byte id");
            return None;
        };
        if self.ledger.is_live(&asked.id) {
            refuse(v1::Failure::Duplicate, "a query with this id is being answered");
            return None;
        }
        let header = question.header.unwrap_or_default();
        let seen = (now, 0);
        let client = Client { serial, to, sent: 0, bytes: 0, read, seen, header, payload: question.payload, child: None };
        self.clients.insert(asked.id, client);
        Some(asked)
    }

    /// The message that goes down for an attempt.
    pub(super) fn query(&self, root: &NodeName, ticket: &Ticket, why: Why, now: u64) -> Option<Parcel> {
        let client = self.clients.get(&ticket.id)?;
        let (delivered, left_us) = self.ledger.delivered(&ticket.id, now)?;
        let spent_us = self.ledger.waited(&ticket.id, now).unwrap_or(0);
        let mut trail = Vec::new();
        if why != Why::New || spent_us >= WAITED_US {
            let reason = translate::reason_of_why(why).into();
            trail.push(v1::Hop { node: root.to_string(), reason, spent_us });
        }
        let header =
            v1::Header { attempt: Some(ticket.attempt.into()), remaining_ms: left_us / 1000, trail, ..client.header.clone() };
        let query = v1::Query { header: Some(header), payload: client.payload.clone(), delivered: delivered.to_vec() };
        Some(Parcel::new(query))
    }

    /// Does what the ledger decided, but for sending.
    pub(super) fn act(&mut self, action: &Action, at_hand: &mut Option<v1::part::Kind>) {
        match action {
            Action::Send { .. } => {}
            Action::Deliver { id } => {
                if let Some(v1::part::Kind::Tokens(tokens)) = at_hand.take() {
                    self.tell(id, v1::answer::Kind::Tokens(tokens));
                }
            }
            Action::Finish { id } => {
                if let Some(v1::part::Kind::Finished(end)) = at_hand.take() {
                    self.tell(id, v1::answer::Kind::End(end));
                }
                self.clients.remove(id);
            }
            Action::Fail { id, failure } => {
                let said = match at_hand.take() {
                    Some(v1::part::Kind::Refused(refused)) => refused.failed,
                    _ => None,
                };
                match failure {
                    ledger::Failure::Overloaded { .. } => {
                        self.overloaded += 1;
                        tracing::debug!(query = %id, ?failure, "refused");
                    }
                    _ => tracing::info!(query = %id, ?failure, "failed"),
                }
                self.tell(id, v1::answer::Kind::Failed(translate::failed(failure.clone(), said)));
                self.clients.remove(id);
            }
            Action::Placed { id, node, running } => {
                let placed = v1::Placed {
                    node: node.as_ref().map(NodeName::to_string).unwrap_or_default(),
                    running: *running,
                    attempt: self.ledger.attempt(id).map_or(0, |attempt| attempt.number),
                    trail: translate::trail_to_wire(self.ledger.trail(id)),
                };
                self.tell(id, v1::answer::Kind::Placed(placed));
            }
            Action::Cancel { stream, id, attempt } => {
                self.control(*stream, v1::control::Kind::Cancel(translate::reference(*id, *attempt)));
            }
            Action::Recall { stream, id, attempt } => {
                self.control(*stream, v1::control::Kind::Recall(translate::reference(*id, *attempt)));
            }
        }
    }

    /// Forgets a client that has gone; false when the query is no longer, or never was, that client's.
    pub(super) fn forget(&mut self, id: &QueryId, serial: u64) -> bool {
        let theirs = self.clients.get(id).is_some_and(|client| client.serial == serial);
        if theirs {
            self.clients.remove(id);
        }
        theirs
    }

    /// Remembers whom an attempt was sent to.
    pub(super) fn sent_to(&mut self, id: &QueryId, child: &NodeName) {
        if let Some(client) = self.clients.get_mut(id) {
            client.child = Some(child.clone());
        }
    }

    /// The queries whose last attempt was sent to a child, the oldest first.
    pub(super) fn sent_through(&self, child: &NodeName) -> Vec<QueryId> {
        let through = self.clients.iter().filter(|(_, client)| client.child.as_ref() == Some(child));
        let mut ids: Vec<QueryId> = through.map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids
    }

    /// Whom the next attempt should not be sent to: the child with which the last one was lost.
    pub(super) fn avoid(&self, id: &QueryId, why: Why) -> Option<NodeName> {
        (why == Why::Lost).then(|| self.clients.get(id)?.child.clone()).flatten()
    }

    pub(super) fn holder_joined(&mut self, link: HolderLink) {
        if self.holders.len() >= HOLDERS_MAX {
            // Dropped, its stream ends.
            tracing::warn!(node = %link.name, "more nodes deliver than a root has room for");
            return;
        }
        let welcome = v1::Welcome { epoch: self.ledger.epoch() };
        // Fails only when the stream has ended again, which its reader will say.
        let _ = link.to.try_send(v1::Control { kind: Some(v1::control::Kind::Welcome(welcome)) });
        self.holders.insert(link.stream, link);
    }

    pub(super) fn holder_gone(&mut self, stream: u64) -> bool {
        self.holders.remove(&stream).is_some()
    }

    /// The event in a holder's message, with the message where the client or the log may need it.
    pub(super) fn read(&self, stream: u64, part: v1::Part) -> Option<(ledger::Event, Option<v1::part::Kind>)> {
        use ledger::Event;
        use v1::part::Kind;
        let id = QueryId::from_wire(&part.id).ok()?;
        let attempt = part.attempt?.into();
        let holder = Holder { name: self.holders.get(&stream)?.name.clone(), stream };
        let kind = part.kind?;
        let event = match &kind {
            Kind::Holding(holding) => {
                Event::Held { id, attempt, holder, running: holding.running, trail: translate::trail(holding.trail.clone()) }
            }
            Kind::Tokens(tokens) => {
                Event::Generated { id, attempt, holder, position: tokens.position, tokens: tokens.ids.clone() }
            }
            Kind::Finished(_) => Event::Finished { id, attempt, holder },
            Kind::Refused(refused) => Event::Refused {
                id,
                attempt,
                holder,
                fault: match refused.reason() {
                    v1::RefusedReason::Busy => Fault::Busy,
                    v1::RefusedReason::Engine => Fault::Engine,
                    v1::RefusedReason::Failed | v1::RefusedReason::Unspecified => Fault::Query,
                },
                trail: translate::trail(refused.trail.clone()),
            },
            Kind::Returned(_) => Event::Returned { id, attempt, holder },
            Kind::Progress(_) => Event::Progressed { id, attempt, holder },
        };
        Some((event, Some(kind)))
    }

    /// Clients with answers waiting that have read nothing for too long, and those that leave more unread than all may together.
    pub(super) fn stalled_clients(&mut self, now: Instant) -> Vec<(QueryId, u64)> {
        let mut stalled = Vec::new();
        let mut unread_total = 0;
        for (id, client) in &mut self.clients {
            let read = super::load(&client.read);
            unread_total += client.unread();
            if read != client.seen.1 || read == client.sent {
                client.seen = (now, read);
            } else if now - client.seen.0 > CLIENT_PATIENCE {
                stalled.push((*id, client.serial));
            }
        }
        if unread_total > UNREAD_BYTES_TOTAL_MAX {
            let mut all: Vec<(u64, QueryId, u64)> =
                self.clients.iter().map(|(id, client)| (client.unread(), *id, client.serial)).collect();
            all.sort_unstable_by(|one, other| other.cmp(one));
            for (bytes, id, serial) in all {
                if unread_total <= UNREAD_BYTES_TOTAL_MAX {
                    break;
                }
                unread_total -= bytes;
                stalled.push((id, serial));
            }
        }
        stalled.sort_unstable();
        stalled.dedup();
        stalled
    }

    /// Clients and holders that are remembered.
    pub(super) fn sizes(&self) -> (usize, usize) {
        (self.clients.len(), self.holders.len())
    }

    /// What to note of refusals for overload, now and then.
    pub(super) fn note_overload(&mut self, now: Instant) -> Option<String> {
        if self.overloaded == 0 || self.noted.is_some_and(|noted| now - noted < NOTE_INTERVAL) {
            return None;
        }
        self.noted = Some(now);
        let count = std::mem::take(&mut self.overloaded);
        Some(format!("{count} queries refused since the last note, the tree is full and so are the lanes"))
    }

    pub(super) fn take_broken(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.broken)
    }

    pub(super) fn take_gone(&mut self) -> Vec<(QueryId, u64)> {
        std::mem::take(&mut self.gone)
    }

    pub(super) fn why(&self, text: &str) -> WhyFound {
        let ids = match text.parse::<QueryId>() {
            Ok(id) => vec![id],
            Err(_) => self.ledger.ids_with_prefix(text.rsplit_once('-').map_or(text, |(_, prefix)| prefix)),
        };
        match ids[..] {
            [id] => self.ledger.way(&id).map_or(WhyFound::Nothing, |way| WhyFound::Way(Box::new(way))),
            [] => WhyFound::Nothing,
            _ => WhyFound::Ambiguous,
        }
    }

    /// The root is leaving: its live queries end with a clear error.
    pub(super) fn shut_down(&mut self) {
        for (_, client) in self.clients.drain() {
            let failed = v1::Failed {
                reason: v1::Failure::ShuttingDown.into(),
                message: "the root is shutting down".to_owned(),
                retry_after_ms: 1000,
                ..Default::default()
            };
            let _ = client.to.send(answer(v1::answer::Kind::Failed(failed)));
        }
        self.holders.clear();
    }

    fn tell(&mut self, id: &QueryId, kind: v1::answer::Kind) {
        if let Some(client) = self.clients.get_mut(id) {
            let answer = answer(kind);
            client.sent += 1;
            client.bytes += answer.encoded_len() as u64;
            if client.unread() > UNREAD_BYTES_MAX || client.to.send(answer).is_err() {
                self.gone.push((*id, client.serial));
            }
        }
    }

    fn control(&mut self, stream: u64, kind: v1::control::Kind) {
        let Some(holder) = self.holders.get(&stream) else { return };
        if holder.to.try_send(v1::Control { kind: Some(kind) }).is_err() {
            self.broken.push(stream);
        }
    }
}

fn answer(kind: v1::answer::Kind) -> v1::Answer {
    v1::Answer { kind: Some(kind) }
}
