//! An engine under virtual time: the production scheduler and the fake engine's speed, with tokens that tell whose they are.

use std::collections::BTreeMap;

use banyan_engine::{
    Engine, FinishReason, Order, Orders, Output, Prompt, Refusal, Request, SequenceId, Step, Usage, fake,
    scheduler::{Event, Plan, Scheduler},
};

/// The token at a position of a query's answer, whoever computes it.
pub(super) fn token(seed: u64, position: u32) -> u32 {
    let mut bits = seed ^ (u64::from(position) << 32 | 0x5bd1);
    bits = (bits ^ (bits >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    (bits >> 40) as u32
}

/// A node's engine.
#[derive(Debug)]
pub(super) struct Virtual {
    options: fake::Options,
    scheduler: Scheduler,
    orders: Orders,
    sequences: BTreeMap<SequenceId, Sequence>,
    outputs: Vec<Output>,
    plan: Option<Plan>,
    /// How much longer than the fake's its steps take.
    pub(super) slowness: f64,
}

#[derive(Debug)]
struct Sequence {
    seed: u64,
    prompt_tokens: usize,
    count: u32,
    tokens_max: u32,
    started: bool,
}

/// What an engine does next.
#[derive(Debug)]
pub(super) enum Next {
    /// Computes a step that takes so many nanoseconds.
    Computes(u64),
    /// Has news, and then computes.
    Says(Step),
    /// Waits for orders.
    Idles,
}

impl Virtual {
    /// An idle engine, and the handle for its node.
    pub(super) fn new(options: fake::Options) -> (Engine, Virtual) {
        let (engine, orders) = Engine::unmanned(options.info());
        let scheduler = Scheduler::new(options.limits(), None);
        let (sequences, outputs) = (BTreeMap::new(), Vec::new());
        (engine, Virtual { options, scheduler, orders, sequences, outputs, plan: None, slowness: 1.0 })
    }

    /// Whether a step is being computed.
    pub(super) fn computes(&self) -> bool {
        self.plan.is_some()
    }

    /// Whether it gives its node a moment to fill the slots that a step has freed.
    pub(super) fn waits_after(&self, step: &Step) -> bool {
        self.orders.expected() > 0 && step.outputs.iter().any(|output| matches!(output, Output::Finished { .. }))
    }

    /// Between two steps: takes orders, and begins with what is to be done.
    pub(super) fn begin(&mut self) -> Next {
        debug_assert!(self.plan.is_none(), "one step at a time");
        while let Some(order) = self.orders.next_order() {
            self.obey(order);
        }
        let plan = self.scheduler.plan();
        for id in &plan.joined {
            let sequence = self.sequences.get_mut(id).expect("only submitted sequences are planned");
            if !std::mem::replace(&mut sequence.started, true) {
                self.outputs.push(Output::Started { id: *id });
            }
        }
        if plan.work.is_empty() {
            return match self.outputs.is_empty() {
                true => Next::Idles,
                false => Next::Says(std::mem::take(&mut self.outputs).into()),
            };
        }
        let prompt = |work: &banyan_engine::scheduler::Work| {
            self.sequences[&work.id].prompt_tokens.saturating_sub(work.from as usize).min(work.tokens as usize)
        };
        let prompt_tokens = plan.work.iter().map(prompt).sum();
        let time = self.options.step_time(prompt_tokens).mul_f64(self.slowness);
        self.plan = Some(plan);
        Next::Computes(time.as_nanos() as u64)
    }

    /// The step is computed; it took so long.
    pub(super) fn end(&mut self, nanos: u64) -> Step {
        let plan = self.plan.take().expect("a step was begun");
        if plan.work.iter().any(|work| work.tokens > 1) {
            self.scheduler.feed(Event::Took { micros: nanos / 1000 });
        }
        for work in plan.work {
            let id = work.id;
            let sequence = self.sequences.get_mut(&id).expect("a planned sequence is not ended");
            if !work.samples {
                self.outputs.push(Output::Progress { id });
                continue;
            }
            let position = sequence.count;
            let token = token(sequence.seed, position);
            sequence.count += 1;
            self.scheduler.feed(Event::Drawn { id, tokens: vec![token] });
            self.outputs.push(Output::Tokens {
                id,
                position,
                tokens: vec![token],
                text: String::new(),
                logprobs: Vec::new(),
                told: None,
            });
            if sequence.count >= sequence.tokens_max {
                self.scheduler.feed(Event::Ended { id });
                self.finish(id);
            }
        }
        std::mem::take(&mut self.outputs).into()
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Submit(request) => self.submit(*request),
            Order::Cancel(id) => {
                if self.scheduler.feed(Event::Cancelled { id }) {
                    self.sequences.remove(&id);
                    self.outputs.push(Output::Cancelled { id });
                }
            }
        }
    }

    fn submit(&mut self, request: Request) {
        let Request { id, prompt, sampling, max_tokens, resume, .. } = request;
        let Prompt::Tokens(prompt) = prompt else { panic!("simulated prompts are tokens") };
        let (seed, count) = (sampling.seed, resume.len() as u32);
        for (position, resumed) in (0..).zip(&resume) {
            assert_eq!(*resumed, token(seed, position), "a new attempt was given a token that was never delivered");
        }
        let tokens_max = max_tokens.expect("simulated answers have a length");
        self.sequences.insert(id, Sequence { seed, prompt_tokens: prompt.len(), count, tokens_max, started: false });
        if count >= tokens_max {
            return self.finish(id);
        }
        let tokens_all = prompt.len() as u32 + tokens_max;
        let tokens: Vec<u32> = prompt.into_iter().chain(resume).collect();
        if !self.scheduler.feed(Event::Submitted { id, tokens, tokens_max: tokens_all, whole: false }) {
            self.sequences.remove(&id);
            let refusal = Refusal::Engine("the sequence needs more KV memory than the engine has".to_owned());
            self.outputs.push(Output::Refused { id, refusal });
        }
    }

    fn finish(&mut self, id: SequenceId) {
        let Some(sequence) = self.sequences.remove(&id) else { return };
        let usage = Usage { prompt_tokens: sequence.prompt_tokens as u32, completion_tokens: sequence.count, cached_tokens: 0 };
        self.outputs.push(Output::Finished { id, reason: FinishReason::Length, text: String::new(), usage, told: None });
    }
}
