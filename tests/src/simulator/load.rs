//! Who asks: questions at random times, as from very many clients.

use super::{
    attach::input_of,
    client::{Client, Wish},
    node::Input,
    world::{Event, ROOT, SECOND, World},
};
use crate::random::Random;

/// A stream of questions.
#[derive(Clone, Debug)]
pub struct Load {
    /// Questions per second, at random times (a Poisson process).
    pub rate: f64,
    /// No more come after that.
    pub until: u64,
    /// Who asks: so many owners, evenly.
    pub owners: u32,
    /// For which models, evenly; an empty name asks for any.
    pub models: Vec<&'static str>,
    /// Tokens of prompts.
    pub prompt_tokens: u32,
    /// Tokens of answers.
    pub tokens: Lengths,
    /// Milliseconds that an answer may take.
    pub deadline_ms: u64,
    /// The share of clients that go away before they have their answer.
    pub leaving: f64,
}

/// How long answers are.
#[derive(Clone, Copy, Debug)]
pub enum Lengths {
    /// All the same.
    Fixed(u32),
    /// Evenly between the two.
    Between(u32, u32),
    /// Most are short, one in so many is long.
    Mixed {
        /// Of most.
        short: u32,
        /// Of the others.
        long: u32,
        /// One in so many.
        one_in: u32,
    },
}

impl Lengths {
    fn draw(self, random: &mut Random) -> u32 {
        match self {
            Lengths::Fixed(tokens) => tokens,
            Lengths::Between(low, high) => low + random.below((high - low + 1) as usize) as u32,
            Lengths::Mixed { short, long, one_in } => {
                if random.below(one_in as usize) == 0 {
                    long
                } else {
                    short
                }
            }
        }
    }

    /// On average.
    pub fn mean(self) -> f64 {
        match self {
            Lengths::Fixed(tokens) => tokens.into(),
            Lengths::Between(low, high) => f64::from(low + high) / 2.0,
            Lengths::Mixed { short, long, one_in } => {
                (f64::from(short) * f64::from(one_in - 1) + f64::from(long)) / f64::from(one_in)
            }
        }
    }
}

impl Load {
    /// So many questions a second, from one owner, for any model.
    pub fn new(rate: f64, until: u64, tokens: Lengths) -> Load {
        Load { rate, until, owners: 1, models: vec![""], prompt_tokens: 8, tokens, deadline_ms: 300_000, leaving: 0.0 }
    }
}

impl World {
    /// Questions come from now on.
    pub fn offer(&mut self, load: Load) {
        let number = self.loads.len() as u32;
        self.loads.push(load);
        self.next_question(number);
    }

    /// One client asks one thing now.
    pub fn ask_once(&mut self, wish: Wish) -> usize {
        let number = self.clients.len();
        // The seed's part of the id spreads them as random ids would be.
        let seed = self.random.number();
        let client = Client::new(number as u64 + 1, seed, wish, self.now());
        self.clients.push(client);
        self.live.push(number as u32);
        self.figures.asked += 1;
        let delay = self.delay() + self.setup.client / 2;
        let life = self.nodes[ROOT].life;
        self.agenda.after(delay, input_of(ROOT as u32, life, Input::Ask { client: number as u32 }));
        number
    }

    /// One client asks one thing after a while.
    pub fn ask_later(&mut self, after: u64, wish: Wish) {
        self.agenda.after(after, Event::Wish(Box::new(wish)));
    }

    /// A client goes away.
    pub fn leave(&mut self, client: usize) {
        if self.clients[client].is_done() {
            return;
        }
        self.clients[client].leave();
        self.figures.left += 1;
        let delay = self.delay();
        let life = self.nodes[ROOT].life;
        self.agenda.after(delay, input_of(ROOT as u32, life, Input::Leave { client: client as u32 }));
    }

    /// The clients that there ever were.
    pub fn clients(&self) -> &[Client] {
        &self.clients
    }

    fn next_question(&mut self, load: u32) {
        let Load { rate, until, .. } = self.loads[load as usize];
        let gap = self.random.exponential(SECOND as f64 / rate) as u64;
        if self.now() + gap <= until {
            self.agenda.after(gap, Event::Question { load });
        }
    }

    pub(super) fn question(&mut self, load: u32) {
        let Load { owners, models, prompt_tokens, tokens, deadline_ms, leaving, .. } = self.loads[load as usize].clone();
        let wish = Wish {
            owner: self.random.below(owners as usize) as u32,
            model: models[self.random.below(models.len())],
            prompt_tokens,
            tokens: tokens.draw(&mut self.random),
            deadline_ms,
            priority: 0,
        };
        self.ask_once(wish);
        if leaving > 0.0 && self.random.chance(leaving) {
            // Whoever asked some time ago, so that queries leave in all their states.
            let recent = self.clients.len().min(64);
            let client = self.clients.len() - 1 - self.random.below(recent);
            self.leave(client);
        }
        self.next_question(load);
    }
}
