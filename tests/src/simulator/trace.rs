//! A number that stands for everything that happened, in order: the same seed gives the same.

use banyan_proto::v1;

use super::node::Input;

/// FNV-1a over every input that every node handled. See the module.
#[derive(Debug)]
pub(super) struct Trace {
    hash: u64,
    /// Whole messages, not only what they are about.
    whole: bool,
    buffer: Vec<u8>,
}

impl Trace {
    pub(super) fn new(whole: bool) -> Trace {
        Trace { hash: 0xcbf2_9ce4_8422_2325, whole, buffer: Vec::new() }
    }

    pub(super) fn hash(&self) -> u64 {
        self.hash
    }

    pub(super) fn input(&mut self, now: u64, node: u32, input: &Input) {
        self.number(now);
        self.number(node.into());
        match input {
            Input::Hello { tie } => self.two(1, *tie),
            Input::Up { tie, up } => {
                self.two(2, *tie);
                self.message(up);
            }
            Input::UpEnd { tie } => self.two(3, *tie),
            Input::Round => self.number(4),
            Input::Declined { tie } => self.two(5, *tie),
            Input::AttachTimeout { tie } => self.two(6, *tie),
            Input::Down { tie, down } => {
                self.two(7, *tie);
                self.message(down);
            }
            Input::DownEnd { tie } => self.two(8, *tie),
            Input::Patience { tie, .. } => self.two(9, *tie),
            Input::Return { tie } => self.two(10, *tie),
            Input::Begin { turn } => self.two(11, *turn),
            Input::Drain { .. } => self.number(24),
            Input::Wanted(name) => self.bytes(name.as_str().as_bytes()),
            Input::Dial => self.number(12),
            Input::Unwelcome { stream } => self.two(13, *stream),
            Input::Control { stream, control } => {
                self.two(14, *stream);
                self.message(control);
            }
            Input::ControlEnd { stream } => self.two(15, *stream),
            Input::Step(step) => self.two(16, step.outputs.len() as u32),
            Input::Join { stream } => self.two(17, *stream),
            Input::Delivery { stream, delivery } => {
                self.two(18, *stream);
                self.delivery(delivery);
            }
            Input::DeliveryEnd { stream } => self.two(19, *stream),
            Input::Ask { client } => self.two(20, *client),
            Input::Leave { client } => self.two(21, *client),
            Input::Tick => self.number(22),
            Input::Report => self.number(23),
        }
    }

    fn delivery(&mut self, delivery: &v1::Delivery) {
        if self.whole {
            return self.message(delivery);
        }
        if let Some(v1::delivery::Kind::Frame(frame)) = &delivery.kind {
            for part in &frame.parts {
                self.bytes(&part.id);
            }
        }
    }

    fn message(&mut self, message: &impl prost::Message) {
        if self.whole {
            let mut buffer = std::mem::take(&mut self.buffer);
            buffer.clear();
            message.encode(&mut buffer).expect("a vector grows");
            self.bytes(&buffer);
            self.buffer = buffer;
        }
    }

    fn two(&mut self, one: u64, other: u32) {
        self.number(one << 32 | u64::from(other));
    }

    fn number(&mut self, number: u64) {
        // A round per word: cheaper than per byte, and as good for telling traces apart.
        self.hash = (self.hash ^ number).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.number(u64::from_le_bytes(word));
        }
    }
}
