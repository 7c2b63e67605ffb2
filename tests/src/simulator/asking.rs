//! What clients and their APIs do: they ask, read, and ask the next root behind what they have.

use std::sync::Arc;

use super::{
    node::Input,
    pipe::Wire,
    world::{Event, MILLISECOND, ROOT, World},
};

/// How long an API waits before it asks again.
const ASK_PAUSE: u64 = 100 * MILLISECOND;

impl World {
    pub(super) fn ask(&mut self, node: u32, client: u32) {
        let waker = self.bells.waker(Wire::Answer(client));
        let (now, life) = (self.now(), self.nodes[node as usize].life);
        let asking = &mut self.clients[client as usize];
        if asking.is_done() {
            return;
        }
        let (question, to, read): (_, _, Arc<_>) = asking.open(waker, now, life);
        // Listens from now on.
        self.read(client);
        if let Some(body) = &mut self.nodes[node as usize].body {
            body.core.ask(question, client.into(), to, read);
        }
    }

    pub(super) fn read(&mut self, client: u32) {
        let now = self.now();
        let one = &mut self.clients[client as usize];
        let before = (one.got(), one.ended_at);
        let (id, life) = (one.id, one.root_life);
        match one.read(now) {
            Ok(false) => {}
            Ok(true) if self.nodes[ROOT].life != life => self.agenda.after(ASK_PAUSE, Event::Again { client }),
            Ok(true) => self.break_promise(format!("query {id} of client {client}: its stream ended without an end")),
            Err(broken) => self.break_promise(format!("query {id} of client {client}: {broken}")),
        }
        let one = &self.clients[client as usize];
        self.figures.tokens += u64::from(one.got() - before.0);
        if before.1.is_none() && one.ended_at.is_some() {
            self.figures.ended(one);
        }
    }

    /// As an API does: the next root is asked as soon as it is there.
    pub(super) fn ask_again(&mut self, client: u32) {
        let now = self.now();
        let one = &mut self.clients[client as usize];
        if one.is_done() {
            return;
        }
        if now >= one.asked_at + one.wish.deadline_ms * MILLISECOND {
            one.give_up(now);
            let one = &self.clients[client as usize];
            return self.figures.ended(one);
        }
        if self.nodes[ROOT].body.is_none() {
            return self.agenda.after(ASK_PAUSE, Event::Again { client });
        }
        let (delay, life) = (self.delay() + self.setup.client / 2, self.nodes[ROOT].life);
        self.agenda.after(delay, Event::Input { node: ROOT as u32, life, input: Input::Ask { client } });
    }
}
