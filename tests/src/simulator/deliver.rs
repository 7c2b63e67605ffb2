//! Streams between nodes and the root, as production's `Deliver` and the root's service keep them.

use banyan_node::bare::{RECONNECT_PAUSE, WELCOME_TIMEOUT};
use banyan_proto::v1;

use super::{
    attach::{CONNECT_TIMEOUT, input_of, nanos},
    link::Stream,
    node::{Deliver, Input},
    pipe::{Pipe, Wire},
    world::{OUTBOX, World},
};

impl World {
    fn unwelcome(&mut self, node: u32, stream: u32) {
        if self.body(node).is_some_and(|body| body.deliver == Deliver::Dialling(stream)) {
            self.leave_stream(stream, true);
            self.redial(node);
        }
    }

    /// The ancestry names a root.
    pub(super) fn found_root(&mut self, node: u32, root: u32, epoch: u64) {
        let Some(body) = self.body(node) else { return };
        if body.root.replace((root, epoch)) == Some((root, epoch)) {
            return;
        }
        match body.deliver {
            Deliver::Idle => self.dial_root(node),
            Deliver::Open(_) => self.close_stream(node),
            // Whoever is dialled or waited for now, the next one is the new one.
            Deliver::Pausing | Deliver::Dialling(_) => {}
        }
    }

    // ---- The node's end

    pub(super) fn as_holder(&mut self, node: u32, input: Input) {
        match input {
            Input::Dial => self.dial_root(node),
            Input::Unwelcome { stream } => self.unwelcome(node, stream),
            Input::Control { stream, control } => {
                if self.streams.get(stream).is_none_or(|stream| stream.lost) {
                    return;
                }
                let Some(body) = self.body(node) else { return };
                match body.deliver {
                    Deliver::Open(ours) if ours == stream => body.core.root_said(control),
                    Deliver::Dialling(ours) if ours == stream => {
                        if !matches!(control.kind, Some(v1::control::Kind::Welcome(_))) {
                            self.leave_stream(stream, true);
                            return self.redial(node);
                        }
                        body.deliver = Deliver::Open(stream);
                        let (to, pipe) = Pipe::new(&self.bells, Wire::Delivery(stream), OUTBOX);
                        if let Some(stream) = self.streams.get_mut(stream) {
                            stream.deliveries = Some(pipe);
                        }
                        if let Some(body) = self.body(node) {
                            body.core.root_connected(to);
                        }
                    }
                    _ => {}
                }
            }
            Input::ControlEnd { stream } => {
                let Some(body) = self.body(node) else { return };
                if body.deliver == Deliver::Dialling(stream) {
                    self.leave_stream(stream, true);
                    self.redial(node);
                } else if body.deliver == Deliver::Open(stream) {
                    self.close_stream(node);
                }
            }
            _ => {}
        }
    }

    fn dial_root(&mut self, node: u32) {
        let node_life = self.nodes[node as usize].life;
        let Some(body) = self.body(node) else { return };
        let Some((root, _)) = body.root.filter(|_| matches!(body.deliver, Deliver::Idle | Deliver::Pausing)) else { return };
        let root_life = self.nodes[root as usize].life;
        let stream = Stream { node, node_life, root, root_life, deliveries: None, controls: None, lost: false, left: false };
        let number = self.streams.add(stream);
        if let Some(body) = self.body(node) {
            body.deliver = Deliver::Dialling(number);
        }
        let unwelcome = || input_of(node, node_life, Input::Unwelcome { stream: number });
        self.agenda.after(nanos(WELCOME_TIMEOUT), unwelcome());
        if !self.reaches(node, root) {
            return self.agenda.after(nanos(CONNECT_TIMEOUT), unwelcome());
        }
        let way = self.delay() + self.delay();
        if self.nodes[root as usize].body.is_none() {
            return self.agenda.after(way, unwelcome());
        }
        let way = way + self.delay();
        self.agenda.after(way, input_of(root, root_life, Input::Join { stream: number }));
    }

    /// The stream has ended, or is to.
    fn close_stream(&mut self, node: u32) {
        let Some(body) = self.body(node) else { return };
        let Deliver::Open(stream) = body.deliver else { return };
        // Its writer goes with it, which tells the root.
        body.core.root_lost();
        self.leave_stream(stream, false);
        self.redial(node);
    }

    fn redial(&mut self, node: u32) {
        let life = self.nodes[node as usize].life;
        if let Some(body) = self.body(node) {
            body.deliver = Deliver::Pausing;
        }
        let pause = self.network.jitter(RECONNECT_PAUSE);
        self.agenda.after(pause, input_of(node, life, Input::Dial));
    }

    pub(super) fn leave_stream(&mut self, number: u32, tell: bool) {
        let delay = self.delay();
        let Some(stream) = self.streams.get_mut(number) else { return };
        stream.left = true;
        let (root, life) = (stream.root, stream.root_life);
        if tell && !stream.lost {
            self.agenda.after(delay, input_of(root, life, Input::DeliveryEnd { stream: number }));
        }
    }

    // ---- The root's end

    pub(super) fn as_root(&mut self, node: u32, what: Input) {
        match what {
            Input::Join { stream: number } => {
                let delay = self.delay();
                let Some(stream) = self.streams.get(number).filter(|stream| !stream.left && !stream.lost) else { return };
                let (holder, life) = (stream.node, stream.node_life);
                if self.nodes[node as usize].config.parent.is_some() {
                    // Nobody but a root offers the service.
                    return self.agenda.after(delay, input_of(holder, life, Input::Unwelcome { stream: number }));
                }
                let name = self.name(holder as usize).clone();
                let (to, pipe) = Pipe::new(&self.bells, Wire::Control(number), OUTBOX);
                if let Some(stream) = self.streams.get_mut(number) {
                    stream.controls = Some(pipe);
                }
                if let Some(body) = self.body(node) {
                    body.core.holder_joined(name, number.into(), to);
                }
            }
            Input::Delivery { stream, delivery } => {
                let lost = self.streams.get(stream).is_none_or(|stream| stream.lost);
                if let Some(body) = self.body(node).filter(|_| !lost) {
                    body.core.holder_said(stream.into(), delivery);
                }
            }
            Input::DeliveryEnd { stream } => {
                if let Some(body) = self.body(node) {
                    body.core.holder_gone(stream.into());
                }
                if self.streams.get(stream).is_some_and(|stream| stream.left) {
                    self.streams.remove(stream);
                }
            }
            _ => {}
        }
    }
}
