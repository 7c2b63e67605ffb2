//! What goes wrong, and what people change.

use super::{
    attach::input_of,
    node::{Deliver, Input},
    world::{Event, MILLISECOND, ROOT, SECOND, World},
};

/// A silent peer is found so long after its last sign of life: production's pings and their patience.
const SILENCE: (f64, f64) = (1.4e9, 1.9e9);

impl World {
    /// SIGKILL: what it had sent still arrives, and its machine closes its connections.
    pub fn kill(&mut self, node: usize) {
        if self.end_life(node) {
            let life = self.nodes[node].life;
            self.agenda.after(self.setup.lease, Event::Expire { node: node as u32, life });
            self.figures.kills += 1;
        }
    }

    /// The root is killed, and a standby has taken its place after a while. It is told by the same name here: children of a former
    /// root are children of the present one.
    pub fn fail_over(&mut self, after: u64) {
        if self.end_life(ROOT) {
            let life = self.nodes[ROOT].life;
            self.agenda.after(after, Event::Expire { node: ROOT as u32, life });
            self.agenda.after(after, Event::Start { node: ROOT as u32, life });
            self.figures.failovers += 1;
        }
    }

    /// `banyan node drain`, or SIGTERM.
    pub fn drain(&mut self, node: usize, deadline: u64) {
        let (life, deadline) = (self.nodes[node].life, self.now() + deadline);
        self.agenda.after(0, input_of(node as u32, life, Input::Drain { deadline }));
        self.figures.drains += 1;
    }

    /// A node has left: its process ends, and its key with it.
    pub(super) fn depart(&mut self, node: usize) {
        let name = self.name(node).clone();
        if self.end_life(node) {
            self.registry.remove(&name);
            self.agenda.after(self.setup.watch, Event::Seen);
        }
    }

    fn end_life(&mut self, node: usize) -> bool {
        let this = &mut self.nodes[node];
        let Some(body) = this.body.take() else { return false };
        this.life += 1;
        (this.waking, this.paused, this.room_since) = (false, false, None);
        for what in std::mem::take(&mut this.inbox) {
            self.undeliverable(what);
        }
        // Whom it was dialling finds the connection closed, though nothing was ever written to it.
        if let Some(tie) = body.dialled() {
            self.give_up(tie);
        }
        if let Deliver::Dialling(stream) = body.deliver {
            self.leave_stream(stream, true);
        }
        drop(body);
        // A process's memory goes in any order; what that tells others has one.
        self.bells.take(&mut self.rung);
        self.rung.sort_unstable();
        self.pump();
        true
    }

    /// A new process under the old name, with the same wishes.
    pub fn restart(&mut self, node: usize) {
        let life = self.nodes[node].life;
        self.agenda.after(0, Event::Start { node: node as u32, life });
    }

    /// SIGSTOP. Peers find out after a while; and the process when it goes on.
    pub fn pause(&mut self, node: usize) {
        self.nodes[node].paused = true;
        self.break_links(|one, other| one == node as u32 || other == node as u32, SILENCE, false);
    }

    /// SIGCONT.
    pub fn go_on(&mut self, node: usize) {
        let now = self.now();
        let this = &mut self.nodes[node];
        this.paused = false;
        let life = this.life;
        if this.body.is_some() && !std::mem::replace(&mut this.waking, true) {
            self.agenda.at(now, Event::Wake { node: node as u32, life });
        }
    }

    /// Two nodes reach each other no more, and find out after a while.
    pub fn sever(&mut self, one: usize, other: usize) {
        let pair = (one.min(other) as u32, one.max(other) as u32);
        if !self.severed.contains(&pair) {
            self.severed.push(pair);
        }
        self.break_links(|one, other| (one.min(other), one.max(other)) == pair, SILENCE, true);
        self.figures.cuts += 1;
    }

    /// These nodes reach each other, and nobody else.
    pub fn isolate(&mut self, nodes: &[usize]) {
        let island = 1 + self.nodes.iter().map(|node| node.island).max().unwrap_or(0);
        for &node in nodes {
            self.nodes[node].island = island;
        }
        let islands: Vec<u32> = self.nodes.iter().map(|node| node.island).collect();
        self.break_links(|one, other| islands[one as usize] != islands[other as usize], SILENCE, true);
        self.figures.cuts += 1;
    }

    /// Everybody reaches everybody.
    pub fn heal(&mut self) {
        self.severed.clear();
        self.nodes.iter_mut().for_each(|node| node.island = 0);
    }

    /// All of a node's connections are reset, and it may connect again at once.
    pub fn reset(&mut self, node: usize) {
        let soon = (50_000.0, 500_000.0);
        self.break_links(|one, other| one == node as u32 || other == node as u32, soon, true);
        self.figures.cuts += 1;
    }

    /// Its engine takes so many times as long from now on.
    pub fn slow_down(&mut self, node: usize, times: f64) {
        let this = &mut self.nodes[node];
        this.slowness = times;
        if let Some(engine) = this.body.as_mut().and_then(|body| body.engine.as_mut()) {
            engine.slowness = times;
        }
    }

    /// `banyan node move`. False: the registry refuses, as where the node would be above itself.
    pub fn relocate(&mut self, node: usize, parent: usize) -> bool {
        let (name, parent) = (self.name(node).clone(), self.name(parent).clone());
        if self.nodes[node].body.is_none() || !self.registry.holds(&name) {
            return false;
        }
        if self.registry.register(&name, Some(&parent), &self.tree).is_err() {
            return false;
        }
        self.agenda.after(self.setup.watch, Event::Seen);
        let this = &mut self.nodes[node];
        this.config.parent = Some(parent.clone());
        let life = this.life;
        self.agenda.after(MILLISECOND, input_of(node as u32, life, Input::Wanted(parent)));
        self.figures.moves += 1;
        true
    }

    /// A node and all that are below it now.
    pub fn subtree(&self, node: usize) -> Vec<usize> {
        let mut inside = vec![false; self.nodes.len()];
        inside[node] = true;
        let mut found = vec![node];
        let mut below: Vec<Vec<usize>> = vec![Vec::new(); self.nodes.len()];
        for child in self.alive() {
            if let Some(parent) = self.parent(child) {
                below[parent].push(child);
            }
        }
        let mut at = 0;
        while let Some(&next) = found.get(at) {
            for &child in &below[next] {
                if !std::mem::replace(&mut inside[child], true) {
                    found.push(child);
                }
            }
            at += 1;
        }
        found
    }

    /// Whom a node is attached to.
    pub fn parent(&self, node: usize) -> Option<usize> {
        let held = self.nodes[node].body.as_ref()?.uplink.link.as_ref()?;
        Some(self.ties.get(held.tie)?.parent as usize)
    }

    /// What is under way on these links is lost, and both ends learn of it after a while: at once where a connection is reset,
    /// when pings stay away where it is silent. `both`: else only those that are not stopped themselves.
    fn break_links(&mut self, which: impl Fn(u32, u32) -> bool, after: (f64, f64), both: bool) {
        let ties: Vec<u32> =
            self.ties.iter().filter(|(_, tie)| !tie.lost && which(tie.child, tie.parent)).map(|(number, _)| number).collect();
        for number in ties {
            let (one, other) = (self.network.between(after.0, after.1) as u64, self.network.between(after.0, after.1) as u64);
            let Some(tie) = self.ties.get_mut(number) else { continue };
            tie.lost = both;
            let (child, child_life, parent, parent_life) = (tie.child, tie.child_life, tie.parent, tie.parent_life);
            self.silent(one, child, child_life, Input::DownEnd { tie: number }, both);
            self.silent(other, parent, parent_life, Input::UpEnd { tie: number }, both);
        }
        let broken = |stream: &super::link::Stream| !stream.lost && which(stream.node, stream.root);
        let streams: Vec<u32> = self.streams.iter().filter(|(_, stream)| broken(stream)).map(|(number, _)| number).collect();
        for number in streams {
            let (one, other) = (self.network.between(after.0, after.1) as u64, self.network.between(after.0, after.1) as u64);
            let Some(stream) = self.streams.get_mut(number) else { continue };
            stream.lost = both;
            let (node, node_life, root, root_life) = (stream.node, stream.node_life, stream.root, stream.root_life);
            self.silent(one, node, node_life, Input::ControlEnd { stream: number }, both);
            self.silent(other, root, root_life, Input::DeliveryEnd { stream: number }, both);
        }
    }

    fn silent(&mut self, after: u64, node: u32, life: u32, end: Input, both: bool) {
        if both {
            self.agenda.after(after, input_of(node, life, end));
        } else if !self.nodes[node as usize].paused {
            self.agenda.after(after, Event::Silent { node, life, end });
        }
    }

    /// A peer was silent for as long as anybody waits: if it still is, the link has ended.
    pub(super) fn found_silent(&mut self, node: u32, life: u32, end: Input) {
        let still = match &end {
            Input::DownEnd { tie } | Input::UpEnd { tie } => self.ties.get_mut(*tie).is_some_and(|tie| {
                let paused = self.nodes[tie.child as usize].paused || self.nodes[tie.parent as usize].paused;
                tie.lost |= paused;
                paused
            }),
            Input::ControlEnd { stream } | Input::DeliveryEnd { stream } => self.streams.get_mut(*stream).is_some_and(|stream| {
                let paused = self.nodes[stream.node as usize].paused || self.nodes[stream.root as usize].paused;
                stream.lost |= paused;
                paused
            }),
            _ => false,
        };
        if !still {
            return;
        }
        // The stopped one finds the connection closed when it goes on.
        let other = match &end {
            Input::DownEnd { tie } => self.ties.get(*tie).map(|one| (one.parent, one.parent_life, Input::UpEnd { tie: *tie })),
            Input::UpEnd { tie } => self.ties.get(*tie).map(|one| (one.child, one.child_life, Input::DownEnd { tie: *tie })),
            Input::ControlEnd { stream } => {
                self.streams.get(*stream).map(|one| (one.root, one.root_life, Input::DeliveryEnd { stream: *stream }))
            }
            Input::DeliveryEnd { stream } => {
                self.streams.get(*stream).map(|one| (one.node, one.node_life, Input::ControlEnd { stream: *stream }))
            }
            _ => None,
        };
        self.arrive(node, life, end);
        if let Some((node, life, end)) = other {
            self.arrive(node, life, end);
        }
    }

    /// How long a lease lasts.
    pub fn lease(&self) -> u64 {
        self.setup.lease
    }
}

/// The longest time in which a silent peer is found, and somebody else is attached to.
pub const RECOVERY: u64 = 8 * SECOND;
