//! What production code wrote to its streams, on its way to whom it is for.

use super::{
    node::Input,
    pipe::{Pipe, Wire},
    world::{Event, World},
};

impl World {
    pub(super) fn delay(&mut self) -> u64 {
        self.setup.delay.draw(&mut self.network)
    }

    /// Sends off what production code wrote.
    pub(super) fn pump(&mut self) {
        let mut rung = std::mem::take(&mut self.rung);
        loop {
            self.bells.take(&mut rung);
            if rung.is_empty() {
                break;
            }
            for wire in rung.drain(..) {
                match wire {
                    Wire::Up(tie) => while self.send_up(tie) {},
                    Wire::Down(tie) => while self.send_down(tie) {},
                    Wire::Delivery(stream) => while self.send_delivery(stream) {},
                    Wire::Control(stream) => while self.send_control(stream) {},
                    Wire::Answer(client) => {
                        let delay = self.setup.client / 2;
                        self.agenda.after(delay, Event::Answer { client });
                    }
                }
            }
        }
        self.rung = rung;
    }

    fn send_up(&mut self, number: u32) -> bool {
        let Some(tie) = self.ties.get_mut(number) else { return false };
        let delay = || self.setup.delay.draw(&mut self.network);
        let Some((at, up)) = Pipe::leaving(&mut tie.up, self.agenda.now(), delay) else { return false };
        let input = up.map_or(Input::UpEnd { tie: number }, |up| Input::Up { tie: number, up: Box::new(up) });
        let (node, life, lost) = (tie.parent, tie.parent_life, tie.lost);
        self.send(at, node, life, input, lost)
    }

    fn send_down(&mut self, number: u32) -> bool {
        let Some(tie) = self.ties.get_mut(number) else { return false };
        let delay = || self.setup.delay.draw(&mut self.network);
        let Some((at, down)) = Pipe::leaving(&mut tie.down, self.agenda.now(), delay) else { return false };
        let input = down.map_or(Input::DownEnd { tie: number }, |down| Input::Down { tie: number, down });
        let (node, life, lost) = (tie.child, tie.child_life, tie.lost);
        self.send(at, node, life, input, lost)
    }

    fn send_delivery(&mut self, number: u32) -> bool {
        let Some(stream) = self.streams.get_mut(number) else { return false };
        let delay = || self.setup.delay.draw(&mut self.network);
        let Some((at, one)) = Pipe::leaving(&mut stream.deliveries, self.agenda.now(), delay) else { return false };
        let input = one.map_or(Input::DeliveryEnd { stream: number }, |delivery| Input::Delivery { stream: number, delivery });
        let (node, life, lost) = (stream.root, stream.root_life, stream.lost);
        self.send(at, node, life, input, lost)
    }

    fn send_control(&mut self, number: u32) -> bool {
        let Some(stream) = self.streams.get_mut(number) else { return false };
        let delay = || self.setup.delay.draw(&mut self.network);
        let Some((at, one)) = Pipe::leaving(&mut stream.controls, self.agenda.now(), delay) else { return false };
        let input = one.map_or(Input::ControlEnd { stream: number }, |control| Input::Control { stream: number, control });
        let (node, life, lost) = (stream.node, stream.node_life, stream.lost);
        self.send(at, node, life, input, lost)
    }

    /// True: there may be more on that wire.
    fn send(&mut self, at: u64, node: u32, life: u32, input: Input, lost: bool) -> bool {
        if !lost {
            self.figures.messages += 1;
            self.agenda.at(at, Event::Input { node, life, input });
        }
        true
    }
}
