//! The model behind the runner: requests to tokens, tokens to logits, logits to tokens, tokens to text.

use std::sync::{Arc, Mutex, PoisonError};

use crate::kernels::{Pool, Segment};
use crate::kv::{Cache, Pages};
use crate::runner::{Backend, Drawn, Item};
use crate::{Model, Prompt, Refusal, Request, Sampled, Sampler, TextStream, TokenLogprob, admission};

/// One engine's part: the weights are shared, the KV pages and the threads are its own.
pub(crate) struct Local {
    model: Arc<Model>,
    cache: Cache,
    pool: Pool,
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
    sampled: Option<Sampled>,
}

impl Local {
    pub(crate) fn new(model: Arc<Model>, cache: Cache, pool: Pool) -> Local {
        Local { model, cache, pool }
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

impl Backend for Local {
    type State = State;

    fn context(&self) -> u32 {
        self.model.kv_shape().context
    }

    fn vocabulary(&self) -> usize {
        self.model.network.config.vocab_size
    }

    fn admit(&mut self, request: &Request) -> Result<(Vec<u32>, State), Refusal> {
        let mut stop = request.stop.clone();
        let mut prompt = match &request.prompt {
            Prompt::Text(text) => self.model.tokenizer.encode(text),
            Prompt::Chat(messages) => {
                let rendered = self.model.template.render(messages)?;
                stop.extend(rendered.stop);
                self.model.tokenizer.encode(&rendered.text)
            }
            Prompt::Tokens(tokens) => {
                admission::check_prompt(tokens, self.vocabulary())?;
                tokens.clone()
            }
        };
        if prompt.is_empty() {
            // Where a text begins, GPT-2 has seen the end of another.
            prompt.push(self.model.tokenizer.eos().first().copied().unwrap_or(0));
        }
        let state = State {
            prompt_tokens: prompt.len(),
            sampler: Sampler::new(&request.sampling, &prompt),
            text: TextStream::new(Arc::clone(&self.model.tokenizer), stop),
            pages: Pages::default(),
        };
        Ok((prompt, state))
    }

    fn compute(&mut self, items: &mut [Item<'_, State>]) -> Result<Vec<Option<Drawn>>, String> {
        let vocabulary = self.vocabulary();
        let mut logits = self.forward(items).map_err(|error| error.to_string())?;
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
            let draw = &mut *draws[draw].lock().unwrap_or_else(PoisonError::into_inner);
            draw.sampled = Some(draw.sampler.sample(draw.position, draw.logits));
        });
        let sampled: Vec<Option<Sampled>> =
            draws.into_iter().map(|draw| draw.into_inner().unwrap_or_else(PoisonError::into_inner).sampled).collect();
        let mut sampled = sampled.into_iter();
        let drawn = |item: &Item<'_, State>| if item.samples { sampled.next().flatten() } else { None };
        Ok(items.iter().map(drawn).map(|sampled| sampled.map(|sampled| self.drawn(sampled))).collect())
    }

    fn accept(&self, state: &mut State, token: u32) {
        state.sampler.accept(token);
    }

    fn is_end(&self, token: u32) -> bool {
        self.model.tokenizer.eos().contains(&token)
    }

    fn push(&self, state: &mut State, token: u32, stops_count: bool) -> (String, bool) {
        let pushed = state.text.push(token, stops_count);
        (pushed.text, pushed.stopped)
    }

    fn release(&mut self, state: State) -> String {
        self.cache.release(state.pages);
        state.text.finish()
    }
}

impl Local {
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
