//! The root's desk: the ledger with the payloads, clients and holders' streams that its decisions are about.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use banyan_observe::Tracer;
use banyan_proto::{NodeName, QueryId, v1};
use bytes::Bytes;
use tokio::time::Instant;

use super::{
    answers::{Denied, Reader, Remembered, Said},
    chunks,
    early::Early,
    input::{Ask, Attach, HolderLink, ToHolder, WhyFound},
    parcel::Parcel,
    traced::{self, AtRoot},
};
use crate::{
    ledger::{self, Action, Event, Fault, Holder, Ledger, Why},
    router::Ticket,
    translate,
};

/// Nodes that deliver to one root; more want a second tree.
const HOLDERS_MAX: usize = 65_536;

/// What all may leave unread together; beyond, those who have read least are cut off.
const UNREAD_BYTES_TOTAL_MAX: u64 = 256 << 20;

/// Refusals for overload are noted together, so often.
const NOTE_INTERVAL: Duration = Duration::from_secs(1);

/// A query that left sooner did not wait for room, it only passed through.
const WAITED_US: u64 = 1000;

pub(super) struct Desk {
    pub(super) ledger: Ledger,
    /// The root.
    name: NodeName,
    tracer: Tracer,
    clients: HashMap<QueryId, Client>,
    remembered: Remembered,
    pub(super) early: Early,
    holders: HashMap<u64, HolderLink>,
    /// Where the nodes stand that have a stream, and the number of the newest.
    pub(super) presences: BTreeMap<NodeName, (u64, v1::Presence)>,
    /// The router's capacity changed since the ledger was last told.
    pub(super) room_changed: bool,
    /// Streams of holders that can't keep up.
    broken: Vec<u64>,
    /// For holders that hear from the root over the links.
    relayed: Vec<(NodeName, u64, v1::Control)>,
    /// Clients that were found gone when they were told something.
    gone: Vec<(QueryId, u64)>,
    /// Refused for overload since that was last noted, and when it was.
    overloaded: u64,
    noted: Option<Instant>,
}

/// A live query, and who reads its answer: one most of the time, none while somebody may come back, several when a retry
/// overtook the end of the first try.
struct Client {
    /// As it came.
    header: Bytes,
    said: Said,
    readers: Vec<Reader>,
    /// Whether it goes on for a while when nobody reads it.
    resumable: bool,
    /// Whom the last attempt was sent to.
    child: Option<NodeName>,
    /// Where it is in its client's trace.
    trace: Option<Box<AtRoot>>,
}

impl Desk {
    pub(super) fn new(settings: ledger::Settings, name: NodeName, tracer: Tracer) -> Self {
        Desk {
            ledger: Ledger::new(settings),
            name,
            tracer,
            clients: HashMap::new(),
            remembered: Remembered::default(),
            early: Early::default(),
            holders: HashMap::new(),
            presences: BTreeMap::new(),
            room_changed: false,
            broken: Vec::new(),
            relayed: Vec::new(),
            gone: Vec::new(),
            overloaded: 0,
            noted: None,
        }
    }

    /// Takes in a question, and gives back what the ledger is to know of it. Whoever may not ask is told so.
    pub(super) fn accept(&mut self, ask: Ask, now: u64, clock: Instant) -> Option<Event> {
        let mut reader = Reader::new(ask.serial, ask.to, ask.read, clock);
        let question = ask.question;
        let read = translate::header(&question).and_then(|header| Some((translate::asked(&header, &question)?, header)));
        let Some((asked, read)) = read else {
            reader.tell(refusal(v1::Failure::Invalid, "the question's header has no 16-byte id"));
            return None;
        };
        let id = asked.id;
        if self.early.take(&id, &asked.owner) {
            reader.tell(refusal(v1::Failure::Cancelled, "it was cancelled before it was asked"));
            return None;
        }
        let position = question.delivered.last().map_or(0, chunks::behind);
        let known = self.clients.get(&id).map(|client| &client.said).or_else(|| self.remembered.get(&id));
        if let Some(known) = known {
            if !question.again && question.digest.is_empty() {
                reader.tell(refusal(v1::Failure::Duplicate, "a query with this id is being answered"));
                return None;
            }
            let admitted = known.admits(&asked.owner, Some(&question.digest), position);
            return self.read_along(id, reader, admitted, position, now);
        }
        // A retry after the first try's root and API died together finds what a node still holds.
        let again = question.again || self.ledger.is_orphan(&id);
        let delivered: Vec<u32> = question.delivered.iter().flat_map(|tokens| tokens.ids.iter().copied()).collect();
        let said = Said::new(&asked.owner, &question);
        let (header, resumable) = (question.header, question.resumable);
        let trace = AtRoot::begin(&self.tracer, &self.name, &id, &read);
        self.clients.insert(id, Client { header, said, readers: vec![reader], resumable, child: None, trace });
        Some(if again { Event::AskedAgain { asked, delivered } } else { Event::Asked(asked) })
    }

    /// Lets somebody read an answer that another API asked for, or that this one lost.
    pub(super) fn attach(&mut self, attach: Attach, now: u64, clock: Instant) -> Option<Event> {
        let Attach { id, owner, serial, to, read } = attach;
        let known = self.clients.get(&id).map(|client| &client.said).or_else(|| self.remembered.get(&id));
        let admitted = match known.filter(|said| said.is_kept()) {
            Some(said) => said.admits(&owner, None, 0),
            None => Err(Denied::NotFound),
        };
        self.read_along(id, Reader::new(serial, to, read, clock), admitted, 0, now)
    }

    fn read_along(
        &mut self,
        id: QueryId,
        mut reader: Reader,
        admitted: Result<(), Denied>,
        position: u32,
        now: u64,
    ) -> Option<Event> {
        match admitted {
            Err(Denied::NotFound) => {
                reader.tell(refusal(v1::Failure::NotFound, "there is no such answer here, or no longer from its start"));
            }
            Err(Denied::Conflict) => {
                reader.tell(refusal(v1::Failure::Conflict, "this id belongs to another request"));
            }
            Ok(()) => {
                if let Some(client) = self.clients.get_mut(&id) {
                    let left_us = self.ledger.delivered(&id, now).map_or(0, |(_, left)| left);
                    client.said.repeat(&mut reader, position, left_us / 1000);
                    client.readers.push(reader);
                    return Some(Event::Attached { id });
                }
                if let Some(said) = self.remembered.get(&id) {
                    said.repeat(&mut reader, position, 0);
                }
            }
        }
        None
    }

    /// Whether it is being answered, or was lately.
    pub(super) fn knows(&self, id: &QueryId) -> bool {
        self.clients.contains_key(id) || self.remembered.get(id).is_some()
    }

    /// Nobody wants an answer any more, unless somebody else still reads it. True when the ledger is to forget it at once.
    pub(super) fn cancel(&mut self, id: &QueryId, owner: &str) -> bool {
        let Some(client) = self.clients.get_mut(id).filter(|client| client.said.owner == owner) else { return false };
        // The stream's own end may come later, and then there is nobody to wait for.
        client.resumable = false;
        let nobody = client.readers.is_empty();
        if nobody {
            self.clients.remove(id);
        }
        nobody
    }

    /// The message that goes down for an attempt.
    pub(super) fn query(&mut self, ticket: &Ticket, why: Why, now: u64) -> Option<Parcel> {
        let client = self.clients.get_mut(&ticket.id)?;
        let (delivered, left_us) = self.ledger.delivered(&ticket.id, now)?;
        let spent_us = self.ledger.waited(&ticket.id, now).unwrap_or(0);
        let mut trail = Vec::new();
        if why != Why::New || spent_us >= WAITED_US {
            let reason = translate::reason_of_why(why).into();
            trail.push(v1::Hop { node: self.name.to_string(), reason, spent_us });
        }
        // Nothing is not written, and would leave what the client had.
        let remaining_ms = (left_us / 1000).max(1);
        let mut header = v1::Header { attempt: Some(ticket.attempt.into()), remaining_ms, trail, ..Default::default() };
        let place = client.trace.as_mut().and_then(|trace| trace.send(&self.tracer, ticket.attempt, why));
        traced::write(place.as_ref(), &mut header);
        Parcel::new(&client.header, header, client.said.payload.clone(), delivered)
    }

    /// Does what the ledger decided, but for sending.
    pub(super) fn act(&mut self, action: &Action, at_hand: &mut Option<v1::part::Kind>, now: Instant) {
        match action {
            Action::Send { .. } | Action::Pause { .. } => {}
            Action::Deliver { id } => {
                if let Some(v1::part::Kind::Tokens(tokens)) = at_hand.take() {
                    self.tell(id, v1::answer::Kind::Tokens(tokens));
                }
            }
            Action::Finish { id } => {
                if let Some(v1::part::Kind::Finished(end)) = at_hand.take() {
                    self.tell(id, v1::answer::Kind::End(end));
                }
                if let Some(client) = self.clients.remove(id) {
                    self.remembered.keep(now, *id, client.said);
                }
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
                if let Some(trace) = self.clients.get_mut(id).and_then(|client| client.trace.as_mut()) {
                    trace.fail(failure);
                }
                self.tell(id, v1::answer::Kind::Failed(translate::failed(failure.clone(), said)));
                self.clients.remove(id);
            }
            Action::Placed { id, node, running, place } => {
                if let Some(trace) = self.clients.get_mut(id).and_then(|client| client.trace.as_mut()) {
                    trace.placed(node.as_ref());
                }
                let placed = v1::Placed {
                    node: node.as_ref().map(NodeName::to_string).unwrap_or_default(),
                    running: *running,
                    attempt: self.ledger.attempt(id).map_or(0, |attempt| attempt.number),
                    trail: translate::trail_to_wire(self.ledger.trail(id)),
                    model: self.ledger.model(id).unwrap_or_default().to_owned(),
                    place: *place,
                };
                self.tell(id, v1::answer::Kind::Placed(placed));
            }
            Action::Cancel { stream, id, attempt } => {
                self.control(*stream, v1::control::Kind::Cancel(translate::reference(*id, *attempt)));
            }
            Action::Resume { stream, id, attempt, position } => {
                let resume = v1::Resume { query: Some(translate::reference(*id, *attempt)), position: *position };
                self.control(*stream, v1::control::Kind::Resume(resume));
            }
            Action::Recall { stream, id, attempt } => {
                self.control(*stream, v1::control::Kind::Recall(translate::reference(*id, *attempt)));
            }
        }
    }

    /// Forgets a reader that has gone, and gives back what the ledger is to know, when it was the last one.
    pub(super) fn forget(&mut self, id: QueryId, serial: u64) -> Option<Event> {
        let client = self.clients.get_mut(&id)?;
        let before = client.readers.len();
        client.readers.retain(|reader| reader.serial != serial);
        if client.readers.len() == before || !client.readers.is_empty() {
            return None;
        }
        if client.resumable {
            return Some(Event::Detached { id });
        }
        self.clients.remove(&id);
        Some(Event::ClientLeft { id })
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
        // One of an older version says nothing of it.
        self.presences.entry(link.name.clone()).or_default().0 = link.stream;
        let (stream, welcome) = (link.stream, v1::Welcome { epoch: self.ledger.epoch() });
        self.holders.insert(stream, link);
        self.control(stream, v1::control::Kind::Welcome(welcome));
    }

    /// Whose stream it is.
    pub(super) fn holder(&self, stream: u64) -> Option<&NodeName> {
        self.holders.get(&stream).map(|link| &link.name)
    }

    pub(super) fn holder_gone(&mut self, stream: u64) -> bool {
        let Some(gone) = self.holders.remove(&stream) else { return false };
        if self.presences.get(&gone.name).is_some_and(|(newest, _)| *newest == stream) {
            self.presences.remove(&gone.name);
        }
        true
    }

    /// The event in a holder's message, with the message where the client or the log may need it.
    pub(super) fn read(&self, stream: u64, part: v1::Part) -> Option<(ledger::Event, Option<v1::part::Kind>)> {
        use v1::part::Kind;
        let id = QueryId::from_wire(&part.id).ok()?;
        let attempt = part.attempt?.into();
        let holder = Holder { name: self.holders.get(&stream)?.name.clone(), stream };
        let kind = part.kind?;
        let event = match &kind {
            Kind::Holding(holding) if holding.resumable => Event::Claimed {
                id,
                attempt,
                holder,
                running: holding.running,
                from: holding.from,
                trail: translate::trail(holding.trail.clone()),
            },
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

    /// Readers with answers waiting that have read nothing for too long, and those that leave more unread than all may together.
    pub(super) fn stalled_clients(&mut self, now: Instant) -> Vec<(QueryId, u64)> {
        let mut stalled = Vec::new();
        let mut unread_total = 0;
        for (id, client) in &mut self.clients {
            for reader in &mut client.readers {
                unread_total += reader.unread();
                if reader.is_stalled(now) {
                    stalled.push((*id, reader.serial));
                }
            }
        }
        if unread_total > UNREAD_BYTES_TOTAL_MAX {
            let readers = |(id, client): (&QueryId, &Client)| -> Vec<(u64, QueryId, u64)> {
                client.readers.iter().map(|reader| (reader.unread(), *id, reader.serial)).collect()
            };
            let mut all: Vec<(u64, QueryId, u64)> = self.clients.iter().flat_map(readers).collect();
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

    /// Forgets complete answers whose time is over.
    pub(super) fn expire(&mut self, now: Instant) {
        self.remembered.expire(now);
        self.early.expire(now);
    }

    pub(super) fn take_broken(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.broken)
    }

    /// What is to be told over the links: to whom, on which stream.
    pub(super) fn take_relayed(&mut self) -> Vec<(NodeName, u64, v1::Control)> {
        std::mem::take(&mut self.relayed)
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

    /// The root is leaving: its live queries end here with a clear error, or go on at the tree's next root.
    pub(super) fn shut_down(&mut self) {
        for (_, client) in self.clients.drain() {
            let failed = v1::Failed {
                reason: v1::Failure::ShuttingDown.into(),
                message: "the root is shutting down".to_owned(),
                retry_after_ms: 1000,
                ..Default::default()
            };
            for mut reader in client.readers {
                reader.tell(v1::answer::Kind::Failed(failed.clone()));
            }
        }
        self.holders.clear();
    }

    fn tell(&mut self, id: &QueryId, kind: v1::answer::Kind) {
        let Some(client) = self.clients.get_mut(id) else { return };
        client.said.note(&kind);
        for reader in &mut client.readers {
            if !reader.tell(kind.clone()) {
                self.gone.push((*id, reader.serial));
            }
        }
    }

    fn control(&mut self, stream: u64, kind: v1::control::Kind) {
        let Some(holder) = self.holders.get(&stream) else { return };
        let control = v1::Control { kind: Some(kind) };
        match &holder.to {
            ToHolder::Links => self.relayed.push((holder.name.clone(), stream, control)),
            ToHolder::Stream(to) => {
                if to.try_send(control).is_err() {
                    self.broken.push(stream);
                }
            }
        }
    }
}

fn refusal(reason: v1::Failure, message: &str) -> v1::answer::Kind {
    v1::answer::Kind::Failed(v1::Failed { reason: reason.into(), message: message.to_owned(), ..Default::default() })
}
