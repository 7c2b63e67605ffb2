//! Whole engines, fake and real, through their handle and channel.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::mpsc::Receiver;

use crate::scheduler::{Record, Recording, replay};
use crate::{
    DeviceChoice, Dtype, Engine, FinishReason, LoadOptions, Message, Model, Options, Output, Prompt, Refusal, Request, Sampling,
    SequenceId, Source, StartError, Step, Tell, TokenLogprob, Told, Usage, fake,
};

fn request(id: u64, prompt: &str) -> Request {
    Request {
        id: SequenceId(id),
        model: String::new(),
        prompt: Prompt::Text(prompt.into()),
        sampling: Sampling { seed: id, ..Sampling::default() },
        max_tokens: None,
        min_tokens: 0,
        stop: Vec::new(),
        ignore_eos: false,
        resume: Vec::new(),
        tell: Tell::Nothing,
        traceparent: String::new(),
    }
}

/// What came of one sequence.
#[derive(Clone, Debug, Default, PartialEq)]
struct Answer {
    started: bool,
    tokens: Vec<u32>,
    /// With each token, or with several that came at once; the last is what came with the end.
    texts: Vec<String>,
    logprobs: Vec<TokenLogprob>,
    /// Of the prompt.
    told: Option<Told>,
    end: Option<Output>,
}

impl Answer {
    fn text(&self) -> String {
        self.texts.concat()
    }

    /// What it says, however many tokens came at once.
    fn content(&self) -> (&[u32], String, &[TokenLogprob], (FinishReason, u32)) {
        let (reason, usage) = self.finished();
        (&self.tokens, self.text(), &self.logprobs, (reason, usage.completion_tokens))
    }

    fn reason(&self) -> FinishReason {
        self.finished().0
    }

    fn usage(&self) -> Usage {
        self.finished().1
    }

    fn finished(&self) -> (FinishReason, Usage) {
        match &self.end {
            Some(Output::Finished { reason, usage, .. }) => (*reason, *usage),
            other => panic!("expected an answer that finished, got {other:?}"),
        }
    }

    fn refusal(&self) -> &Refusal {
        match &self.end {
            Some(Output::Refused { refusal, .. }) => refusal,
            other => panic!("expected a refusal, got {other:?}"),
        }
    }
}

/// All news so far, checked as it comes.
#[derive(Default)]
struct Heard(BTreeMap<u64, Answer>);

impl Heard {
    fn hear(&mut self, step: Step) {
        assert!(!step.outputs.is_empty(), "a step says something");
        for output in step.outputs {
            let answer = self.0.entry(output.id().0).or_default();
            assert!(answer.end.is_none(), "nothing follows the end: {output:?}");
            match output {
                Output::Started { .. } => {
                    assert!(!answer.started, "a sequence starts once");
                    answer.started = true;
                }
                Output::Progress { .. } => assert!(answer.started),
                Output::Tokens { position, tokens, text, logprobs, told, .. } => {
                    assert!(answer.started);
                    assert!(told.is_none() || answer.tokens.is_empty(), "a prompt is told of with the first token");
                    answer.told = answer.told.take().or(told);
                    if answer.tokens.is_empty() {
                        answer.tokens.resize(position as usize, u32::MAX);
                        answer.texts.resize(position as usize, String::new());
                    }
                    assert_eq!(position as usize, answer.tokens.len(), "positions come one after the other");
                    answer.tokens.extend(tokens);
                    answer.texts.push(text);
                    answer.logprobs.extend(logprobs);
                }
                Output::Finished { ref text, ref told, .. } => {
                    answer.texts.push(text.clone());
                    answer.told = answer.told.take().or(told.clone());
                    answer.end = Some(output);
                }
                Output::Cancelled { .. } | Output::Refused { .. } => answer.end = Some(output),
            }
        }
    }

    fn until(&mut self, steps: &mut Receiver<Step>, done: impl Fn(&Heard) -> bool) {
        while !done(self) {
            self.hear(steps.blocking_recv().expect("the engine still runs"));
        }
    }

    fn ended(&self, count: usize) -> bool {
        self.0.values().filter(|answer| answer.end.is_some()).count() >= count
    }
}

/// Submits all at once and waits for their ends.
fn ask(engine: &Engine, steps: &mut Receiver<Step>, requests: impl IntoIterator<Item = Request>) -> BTreeMap<u64, Answer> {
    let mut count = 0;
    for request in requests {
        engine.submit(request);
        count += 1;
    }
    let mut heard = Heard::default();
    heard.until(steps, |heard| heard.ended(count));
    heard.0
}

fn ask_one(engine: &Engine, steps: &mut Receiver<Step>, request: Request) -> Answer {
    let id = request.id.0;
    ask(engine, steps, [request]).remove(&id).expect("the answer was waited for")
}

fn stop(engine: &Engine) {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(engine.stop());
}

mod admission;
mod fakes;
mod real;
mod reuse;
mod telling;
