//! The model behind the runner: requests to tokens, tokens to logits, logits to tokens, tokens to text.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};

use crate::kernels::{Pool, Segment};
use crate::kv::{Cache, Pages};
use crate::language::{Language, Reading};
use crate::profile::{self, Arithmetic, Part, Profiler, Shape, Work};
use crate::runner::{Backend, Drawn, Item, Outcome};
use crate::sampler::Peaks;
use crate::{Model, Profile, Prompt, Refusal, Request, Sampled, Sampler, TextStream, TokenLogprob, admission};

/// One engine's part: the weights are shared, the KV pages and the threads are its own.
pub(crate) struct Local {
    model: Arc<Model>,
    cache: Cache,
    pool: Pool,
    profiler: Option<Profiler>,
}

/// What a sequence needs between steps.
pub(crate) struct State {
    prompt_tokens: usize,
    sampler: Sampler,
    text: TextStream,
    pages: Pages,
}

/// One row's part in sampling.
struct Draw<'a> {
    position: u32,
    sampler: &'a mut Sampler,
    logits: &'a mut [f32],
    /// The token, or why there is none.
    sampled: Option<Result<Sampled, String>>,
}

impl Local {
    pub(crate) fn new(model: Arc<Model>, cache: Cache, pool: Pool, profile: Option<Profile>) -> Local {
        Local { model, cache, pool, profiler: profile.map(Profiler::new) }
    }

    /// The logits of each item that samples, one after the other.
    fn forward(&mut self, items: &mut [Item<'_, State>]) -> candle_core::Result<Vec<f32>> {
        for item in items.iter_mut() {
            self.cache.grow(&mut item.state.pages, item.computed + item.count)?;
        }
        let mut tokens = Vec::new();
        let mut segments = Vec::with_capacity(items.len());
        let mut samples = Vec::new();
        for item in items.iter() {
            let segment = Segment { row: tokens.len(), rows: item.count, position: item.computed, pages: &item.state.pages.0 };
            tokens.extend_from_slice(&item.tokens[item.computed..item.computed + item.count]);
            if item.samples {
                samples.push(tokens.len() as u32 - 1);
            }
            segments.push(segment);
        }
        self.model.network.forward(self.model.compute(&self.pool), &mut self.cache.storage, &tokens, &segments, &samples)
    }
}

impl Language for Model {
    type State = State;

    fn context(&self) -> u32 {
        self.kv_shape().context
    }

    fn vocabulary(&self) -> usize {
        self.config.vocabulary()
    }

    fn read<'a>(&self, request: &'a Request) -> Result<Reading<'a>, Refusal> {
        let context = self.kv_shape().context;
        let extent = admission::Extent::new(context, self.tokenizer.token_bytes_max(), request.max_tokens);
        let (text, stop) = match &request.prompt {
            Prompt::Text(text) => (Cow::Borrowed(text.as_str()), Vec::new()),
            Prompt::Chat(messages) => {
                extent.check_chat(messages)?;
                let rendered = self.template.render_within(messages, extent.bytes_max())?;
                let rendered = rendered.ok_or_else(|| extent.too_long())?;
                (Cow::Owned(rendered.text), rendered.stop)
            }
            Prompt::Tokens(tokens) => {
                admission::room(context, tokens.len(), request.max_tokens)?;
                admission::check_prompt(tokens, self.vocabulary())?;
                return Ok(Reading { text: Cow::Borrowed(""), tokens: self.or_begin(tokens.clone()), stop: Vec::new() });
            }
        };
        extent.check_text(text.len())?;
        // A template writes the beginning of the text itself.
        let rendered = self.template.own() && matches!(request.prompt, Prompt::Chat(_));
        let tokens = if rendered { self.tokenizer.encode_rendered(&text) } else { self.tokenizer.encode(&text) };
        let tokens = self.or_begin(tokens);
        Ok(Reading { text, tokens, stop })
    }

    fn begin(&self, request: &Request, reading: &Reading<'_>) -> State {
        let stop = request.stop.iter().chain(&reading.stop).cloned().collect();
        State {
            prompt_tokens: reading.tokens.len(),
            sampler: Sampler::new(&request.sampling, &reading.tokens),
            text: TextStream::new(Arc::clone(&self.tokenizer), stop),
            pages: Pages::default(),
        }
    }

    fn accept(&self, state: &mut State, token: u32) {
        state.sampler.accept(token);
    }

    fn is_end(&self, token: u32) -> bool {
        self.tokenizer.eos().contains(&token)
    }

    fn push(&self, state: &mut State, token: u32, stops_count: bool) -> (String, bool) {
        let pushed = state.text.push(token, stops_count);
        (pushed.text, pushed.stopped)
    }

    fn finish(&self, state: State) -> String {
        state.text.finish()
    }
}

impl Model {
    /// Where a text begins, GPT-2 has seen the end of another.
    fn or_begin(&self, mut prompt: Vec<u32>) -> Vec<u32> {
        if prompt.is_empty() {
            prompt.push(self.tokenizer.eos().first().copied().unwrap_or(0));
        }
        prompt
    }
}

impl Backend for Local {
    type Language = Model;

    fn compute(&mut self, items: &mut [Item<'_, State>]) -> Result<Vec<Outcome>, String> {
        let begun = self.profiler.as_ref().and_then(Profiler::begin);
        let shape =
            Shape { rows: items.iter().map(|item| item.count).sum(), samples: items.iter().filter(|item| item.samples).count() };
        let outcomes = self.pass(items);
        if let (Some(profiler), Some(begun)) = (&mut self.profiler, begun) {
            profiler.end(shape, begun);
        }
        outcomes
    }

    fn release(&mut self, state: &mut State) {
        self.cache.release(std::mem::take(&mut state.pages));
    }
}

impl Local {
    /// In a frame of its own: tests/instructions counts what happens in it.
    #[inline(never)]
    fn pass(&mut self, items: &mut [Item<'_, State>]) -> Result<Vec<Outcome>, String> {
        let vocabulary = self.model.vocabulary();
        let mut logits = self.forward(items).map_err(|error| error.to_string())?;
        let _span = profile::span(|| {
            let logits = logits.len() as u64;
            (Part::Sampling, Work { bytes: 4 * logits, operations: 2 * logits, arithmetic: Arithmetic::F32 })
        });
        // Drawing from 50,000 logits takes tens of microseconds, and rows are independent: each is a task.
        let mut rows = logits.chunks_exact_mut(vocabulary);
        let draws: Vec<Mutex<Draw<'_>>> = items
            .iter_mut()
            .filter(|item| item.samples)
            .map(|item| {
                let position = (item.tokens.len() - item.state.prompt_tokens) as u32;
                let logits = rows.next().expect("a row of logits for each item that samples");
                Mutex::new(Draw { position, sampler: &mut item.state.sampler, logits, sampled: None })
            })
            .collect();
        self.pool.run(draws.len(), &|draw| {
            // Nobody else has this task, so the lock is free; it is there for the compiler.
            draws[draw].lock().unwrap_or_else(PoisonError::into_inner).draw();
        });
        let sampled: Vec<_> =
            draws.into_iter().map(|draw| draw.into_inner().unwrap_or_else(PoisonError::into_inner).sampled).collect();
        let mut sampled = sampled.into_iter();
        let outcome = |item: &Item<'_, State>| match if item.samples { sampled.next().flatten() } else { None } {
            Some(Ok(sampled)) => Outcome::Drawn(self.drawn(sampled)),
            Some(Err(cause)) => Outcome::Failed(cause),
            None => Outcome::Computed,
        };
        Ok(items.iter().map(outcome).collect())
    }

    fn drawn(&self, sampled: Sampled) -> Drawn {
        let bytes = |token| self.model.tokenizer.token_bytes(token).to_vec();
        let logprob = sampled.logprob.map(|logprob| TokenLogprob {
            token: sampled.token,
            bytes: bytes(sampled.token),
            logprob: logprob.logprob,
            top: logprob.top.into_iter().map(|(token, logprob)| (token, bytes(token), logprob)).collect(),
        });
        Drawn { token: sampled.token, logprob }
    }
}

impl Draw<'_> {
    /// Draws, unless the logits are no numbers to draw by: any token would then be a lie.
    fn draw(&mut self) {
        self.sampled = Some(if let Some(peaks) = Peaks::new(self.logits) {
            Ok(self.sampler.sample_among(self.position, self.logits, peaks))
        } else {
            let (broken, all) = (self.logits.iter().filter(|logit| !logit.is_finite()).count(), self.logits.len());
            Err(format!(
                "{broken} of the model's {all} logits are not finite: its weights are damaged, or too large for f32; fetch the \
                 checkpoint again, or serve another one"
            ))
        });
    }
}
