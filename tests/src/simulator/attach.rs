//! Links between parents and children, as production's uplink and its service of the tree keep them. Whom to attach to is
//! production's `Search`; here is only what the sockets would do.

use std::time::Duration;

use banyan_node::bare::search::{ATTACH_TIMEOUT, Candidate, End, RETURN_INTERVAL, ROOTLESS_MAX, pause_after, rootless};
use banyan_proto::v1;

use super::{
    link::Tie,
    node::{Body, Dialling, Held, Input},
    pipe::{Pipe, Wire},
    world::{Event, OUTBOX, World},
};

/// Whoever answers no connection is given up after that long, as in production.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

impl World {
    // ---- The parent's end

    pub(super) fn as_parent(&mut self, node: u32, input: Input) {
        match input {
            Input::Hello { tie: number } => {
                let Some(tie) = self.ties.get(number).filter(|tie| !tie.left && !tie.lost) else { return };
                let name = self.name(tie.child as usize).clone();
                let (to, pipe) = Pipe::new(&self.bells, Wire::Down(number), OUTBOX);
                if let Some(tie) = self.ties.get_mut(number) {
                    tie.down = Some(pipe);
                }
                let Some(body) = self.body(node) else { return };
                body.children.insert(number, name.clone());
                body.core.child_attached(name.clone(), name.to_string(), number.into(), to);
            }
            Input::Up { tie: number, up } => {
                let lost = self.ties.get(number).is_none_or(|tie| tie.lost);
                let Some(body) = self.body(node).filter(|_| !lost) else { return };
                if let Some(child) = body.children.get(&number).cloned() {
                    body.core.child_said(&child, number.into(), *up);
                }
            }
            Input::UpEnd { tie: number } => {
                let Some(body) = self.body(node) else { return };
                if let Some(child) = body.children.remove(&number) {
                    body.core.child_gone(child, number.into());
                }
                self.end_tie(number);
            }
            _ => {}
        }
    }

    // ---- The child's end

    pub(super) fn as_child(&mut self, node: u32, input: Input) {
        match input {
            Input::Round => self.round(node),
            Input::Declined { tie } | Input::AttachTimeout { tie } => self.declined(node, tie),
            Input::Down { tie, down } => self.down(node, tie, down),
            Input::DownEnd { tie } => self.down_end(node, tie),
            Input::Patience { tie, since } => {
                let held = self.body(node).and_then(|body| body.uplink.link.as_ref());
                if held.is_some_and(|held| held.tie == tie && held.rootless_since == Some(since)) {
                    self.detach(node, End::Rootless);
                }
            }
            Input::Return { tie } => {
                let life = self.nodes[node as usize].life;
                let Some(body) = self.body(node).filter(|body| body.is_attached(tie)) else { return };
                let idle = body.uplink.dialling.is_none();
                self.agenda.after(nanos(RETURN_INTERVAL), input_of(node, life, Input::Return { tie }));
                if idle {
                    self.return_to_wanted(node);
                }
            }
            Input::Begin { turn } => {
                let dialling = self.body(node).and_then(|body| body.uplink.dialling.as_ref());
                if dialling.is_some_and(|dialling| dialling.turn == turn && dialling.now.is_none()) {
                    self.try_next(node);
                }
            }
            Input::Wanted(wanted) => {
                let Some(body) = self.body(node) else { return };
                body.wanted = Some(wanted);
                // As in production, a round of a node without a link goes on with whom it has.
                if body.uplink.link.is_some() {
                    self.return_to_wanted(node);
                }
            }
            _ => {}
        }
    }

    fn round(&mut self, node: u32) {
        let view = &self.registry.seen;
        let Some(body) = &mut self.nodes[node as usize].body else { return };
        if body.uplink.link.is_some() || body.uplink.dialling.is_some() {
            return;
        }
        let Some(wanted) = &body.wanted else { return };
        let order = body.search.candidates(wanted, view);
        self.dial(node, order, 0);
    }

    /// Tries the wanted parent, where that is another than the present one; whoever else was tried is no more.
    fn return_to_wanted(&mut self, node: u32) {
        self.stop_dialling(node);
        let view = &self.registry.seen;
        let Some(body) = &mut self.nodes[node as usize].body else { return };
        let (Some(wanted), Some(held)) = (&body.wanted, &body.uplink.link) else { return };
        if *wanted != held.parent {
            let order = body.search.all(wanted, view).into_iter().filter(|one| one.name == *wanted).collect();
            self.dial(node, order, 0);
        }
    }

    /// The parent is about to leave: tries everybody else.
    fn try_others(&mut self, node: u32, pause: u64) {
        self.stop_dialling(node);
        let view = &self.registry.seen;
        let Some(body) = &mut self.nodes[node as usize].body else { return };
        let Some(wanted) = &body.wanted else { return };
        let all = body.search.all(wanted, view).into_iter();
        let order = all.filter(|one| !body.search.is_parent(&one.name)).collect();
        self.dial(node, order, pause);
    }

    fn dial(&mut self, node: u32, order: Vec<Candidate>, pause: u64) {
        let life = self.nodes[node as usize].life;
        let (first, begun) = (order.first().cloned(), self.now() + pause);
        let Some(body) = self.body(node) else { return };
        body.uplink.turn += 1;
        let turn = body.uplink.turn;
        body.uplink.dialling = Some(Dialling { now: None, rest: order.into(), turn, first, begun });
        self.agenda.after(pause, input_of(node, life, Input::Begin { turn }));
    }

    fn stop_dialling(&mut self, node: u32) {
        let Some(body) = self.body(node) else { return };
        if let Some(Dialling { now: Some((_, tie)), .. }) = body.uplink.dialling.take() {
            self.give_up(tie);
        }
    }

    fn try_next(&mut self, node: u32) {
        let Some(body) = self.body(node) else { return };
        let Some(dialling) = &mut body.uplink.dialling else { return };
        let Some(candidate) = dialling.rest.pop_front() else { return self.found_nobody(node) };
        let child_life = self.nodes[node as usize].life;
        let parent = self.number(&candidate.address);
        let parent_life = self.nodes[parent as usize].life;
        let (up, down) = (None, None);
        let tie = Tie { child: node, child_life, parent, parent_life, up, down, lost: false, left: false, ended: false };
        let number = self.ties.add(tie);
        if let Some(dialling) = self.body(node).and_then(|body| body.uplink.dialling.as_mut()) {
            dialling.now = Some((candidate, number));
        }
        self.agenda.after(nanos(ATTACH_TIMEOUT), input_of(node, child_life, Input::AttachTimeout { tie: number }));
        if !self.reaches(node, parent) {
            let declined = Input::Declined { tie: number };
            return self.agenda.after(nanos(CONNECT_TIMEOUT), input_of(node, child_life, declined));
        }
        // A connection is there and back, and then the hello goes.
        let way = self.delay() + self.delay();
        if self.nodes[parent as usize].body.is_none() {
            return self.agenda.after(way, input_of(node, child_life, Input::Declined { tie: number }));
        }
        let way = way + self.delay();
        self.agenda.after(way, input_of(parent, parent_life, Input::Hello { tie: number }));
    }

    fn found_nobody(&mut self, node: u32) {
        let now = self.now();
        let Some(body) = self.body(node) else { return };
        let Some(Dialling { first, begun, .. }) = body.uplink.dialling.take() else { return };
        if let Some(first) = first.filter(|_| body.uplink.link.is_none()) {
            body.search.failed(&first, Duration::from_nanos(now - begun));
        }
        match body.uplink.link.as_mut().map(|held| held.leaving.as_mut()) {
            None => self.pause_search(node, End::Nobody),
            // The next tick tries again.
            Some(None) => {}
            Some(Some(tries)) => {
                let pause = pause_after(*tries);
                *tries += 1;
                let pause = self.network.jitter(pause);
                self.try_others(node, pause);
            }
        }
    }

    fn down(&mut self, node: u32, number: u32, down: v1::Down) {
        if self.ties.get(number).is_none_or(|tie| tie.lost) {
            return;
        }
        let Some(body) = self.body(node) else { return };
        if body.dials(number) {
            // Who goes elsewhere by choice goes to somebody with a way to the root.
            let rooted = body.uplink.link.is_some();
            return match down.kind {
                Some(v1::down::Kind::Ancestry(ancestry))
                    if !(body.search.is_among(&ancestry) || rooted && rootless(&ancestry)) =>
                {
                    self.attached(node, number, &ancestry);
                }
                _ => {
                    self.give_up(number);
                    self.try_next(node);
                }
            };
        }
        if !body.is_attached(number) {
            if let (Some(v1::down::Kind::Query(query)), true) = (down.kind, body.uplink.reading_out.contains(&number)) {
                body.core.query(number.into(), query);
            }
            return;
        }
        match down.kind {
            Some(v1::down::Kind::Query(query)) => body.core.query(number.into(), query),
            Some(v1::down::Kind::Ancestry(ancestry)) => {
                if !body.search.told(&ancestry) {
                    return self.detach(node, End::Broken);
                }
                let full = body.search.full(&ancestry);
                body.core.ancestry(number.into(), full.clone());
                self.note_root(node, number, &full);
            }
            Some(v1::down::Kind::Leaving(_)) => {
                if let Some(held) = &mut body.uplink.link {
                    held.leaving = Some(0);
                }
                self.try_others(node, 0);
            }
            Some(v1::down::Kind::Rejected(_)) => self.detach(node, End::Broken),
            _ => {}
        }
    }

    fn declined(&mut self, node: u32, tie: u32) {
        if self.body(node).is_some_and(|body| body.dials(tie)) {
            self.give_up(tie);
            self.try_next(node);
        }
    }

    fn down_end(&mut self, node: u32, tie: u32) {
        let Some(body) = self.body(node) else { return };
        if body.dials(tie) {
            self.give_up(tie);
            self.try_next(node);
        } else if let Some(held) = body.uplink.link.as_ref().filter(|held| held.tie == tie) {
            let end = if held.leaving.is_some() { End::Leaving } else { End::Broken };
            self.detach(node, end);
        } else {
            body.uplink.reading_out.retain(|old| *old != tie);
            self.leave_tie(tie);
        }
    }

    fn attached(&mut self, node: u32, number: u32, ancestry: &v1::Ancestry) {
        let life = self.nodes[node as usize].life;
        let (to, pipe) = Pipe::new(&self.bells, Wire::Up(number), OUTBOX);
        if let Some(tie) = self.ties.get_mut(number) {
            tie.up = Some(pipe);
        }
        let Some(body) = self.body(node) else { return };
        let Some(Dialling { now: Some((candidate, _)), .. }) = body.uplink.dialling.take() else { return };
        let parent = candidate.name.clone();
        if let Some(old) = body.uplink.link.take() {
            // The new link takes over from it; what is on its way there is read to its end.
            body.search.ended(End::Moved);
            body.uplink.reading_out.push(old.tie);
        }
        body.search.attached(candidate, ancestry);
        body.uplink.link = Some(Held { parent: parent.clone(), tie: number, rootless_since: None, leaving: None });
        let full = body.search.full(ancestry);
        body.core.attached(parent, number.into(), full.clone(), to);
        self.figures.attachments += 1;
        self.agenda.after(nanos(RETURN_INTERVAL), input_of(node, life, Input::Return { tie: number }));
        self.note_root(node, number, &full);
    }

    /// What an ancestry means beside the task: a patience that ends, and a root to deliver to.
    fn note_root(&mut self, node: u32, number: u32, full: &v1::Ancestry) {
        let now = self.now();
        let life = self.nodes[node as usize].life;
        let Some(held) = self.body(node).and_then(|body| body.uplink.link.as_mut()) else { return };
        held.rootless_since = rootless(full).then_some(now);
        if rootless(full) {
            let patience = Input::Patience { tie: number, since: now };
            return self.agenda.after(nanos(ROOTLESS_MAX), input_of(node, life, patience));
        }
        if let Some(last) = full.ancestors.last() {
            let root = self.number(&last.address);
            self.found_root(node, root, full.epoch);
        }
    }

    fn detach(&mut self, node: u32, end: End) {
        self.stop_dialling(node);
        let Some(body) = self.body(node) else { return };
        let Some(held) = body.uplink.link.take() else { return };
        // Its writer goes with the link, which tells the parent.
        body.core.detached(held.tie.into());
        self.leave_tie(held.tie);
        self.pause_search(node, end);
    }

    fn pause_search(&mut self, node: u32, end: End) {
        let life = self.nodes[node as usize].life;
        let Some(body) = self.body(node) else { return };
        let pause = body.search.ended(end);
        let pause = pause.map_or(0, |pause| self.network.jitter(pause));
        self.agenda.after(pause, input_of(node, life, Input::Round));
    }

    /// A parent that did not take us is told, if it can be, that we are gone.
    pub(super) fn give_up(&mut self, number: u32) {
        let delay = self.delay();
        let Some(tie) = self.ties.get_mut(number) else { return };
        tie.left = true;
        let (parent, life) = (tie.parent, tie.parent_life);
        if !tie.lost {
            self.agenda.after(delay, input_of(parent, life, Input::UpEnd { tie: number }));
        }
    }

    fn leave_tie(&mut self, number: u32) {
        let Some(tie) = self.ties.get_mut(number) else { return };
        tie.left = true;
        if tie.ended {
            self.ties.remove(number);
        }
    }

    fn end_tie(&mut self, number: u32) {
        let Some(tie) = self.ties.get_mut(number) else { return };
        tie.ended = true;
        if tie.left {
            self.ties.remove(number);
        }
    }

    /// What reached a process that is not there is answered by its machine.
    pub(super) fn undeliverable(&mut self, what: Input) {
        let delay = self.delay();
        match what {
            Input::Hello { tie } => {
                if let Some(Tie { child, child_life, .. }) = self.ties.get(tie) {
                    self.agenda.after(delay, input_of(*child, *child_life, Input::Declined { tie }));
                }
            }
            Input::Join { stream } => {
                if let Some(one) = self.streams.get(stream) {
                    self.agenda.after(delay, input_of(one.node, one.node_life, Input::Unwelcome { stream }));
                }
            }
            // The root that it was for is no more.
            Input::Ask { client } => self.agenda.after(delay, Event::Again { client }),
            Input::UpEnd { tie } => self.end_tie(tie),
            Input::DownEnd { tie } => self.leave_tie(tie),
            Input::DeliveryEnd { stream } if self.streams.get(stream).is_some_and(|stream| stream.left) => {
                self.streams.remove(stream);
            }
            _ => {}
        }
    }

    pub(super) fn body(&mut self, node: u32) -> Option<&mut Body> {
        self.nodes[node as usize].body.as_mut()
    }

    /// The node at an address. Nodes are reached by their names, which are told in the registry and in ancestries.
    pub(super) fn number(&self, address: &str) -> u32 {
        self.by_name.get(address).copied().unwrap_or_else(|| panic!("nobody was ever at {address:?}"))
    }

    pub(super) fn reaches(&self, one: u32, other: u32) -> bool {
        let (ours, theirs) = (&self.nodes[one as usize], &self.nodes[other as usize]);
        ours.island == theirs.island && !self.severed.contains(&(one.min(other), one.max(other)))
    }
}

impl Body {
    fn dials(&self, number: u32) -> bool {
        self.dialled() == Some(number)
    }

    /// The link to whom it tries now.
    pub(super) fn dialled(&self) -> Option<u32> {
        let now = self.uplink.dialling.as_ref().and_then(|dialling| dialling.now.as_ref());
        now.map(|(_, tie)| *tie)
    }

    pub(super) fn is_attached(&self, number: u32) -> bool {
        self.uplink.link.as_ref().is_some_and(|held| held.tie == number)
    }
}

pub(super) fn input_of(node: u32, life: u32, input: Input) -> Event {
    Event::Input { node, life, input }
}

pub(super) fn nanos(duration: Duration) -> u64 {
    duration.as_nanos() as u64
}
