//! The model behind the runner: requests to tokens, tokens to logits, logits to tokens, tokens to text.

use std::borrow::Cow;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Tensor};

use crate::kernels::{PEAK_COLUMNS, Pool, Segment};
use crate::kv::Storage;
use crate::language::{Language, Reading};
use crate::ops::Logits;
use crate::profile::{self, Arithmetic, Part, Profiler, Shape, Work};
use crate::runner::{Backend, Drawn, Item, Outcome};
use crate::sampler::Peaks;
use crate::telling::{Added, Telling};
use crate::{
    Logprob, Model, Profile, Prompt, Refusal, Request, Sampled, Sampler, TextStream, TokenLogprob, Told, admission, sampler,
};

/// Rows of a prompt whose logits are looked at together: with 150,000 of them to a row, 40 MB.
const LOOKED_AT: usize = 64;

/// One engine's part: the weights are shared, the KV pages are its own, and the threads are those that other engines leave.
pub(crate) struct Local {
    model: Arc<Model>,
    cache: Storage,
    pool: Pool,
    profiler: Option<Profiler>,
}

/// A model, with as much context as there is KV memory for.
pub(crate) struct Served {
    pub(crate) model: Arc<Model>,
    /// Tokens of a prompt and its answer together.
    pub(crate) context: u32,
}

/// What a sequence needs between steps.
pub(crate) struct State {
    prompt_tokens: usize,
    /// Whether anything is drawn behind the prompt.
    generates: bool,
    sampler: Sampler,
    text: TextStream,
    telling: Telling,
}

impl Item<'_, State> {
    /// Rows whose logits are drawn from.
    fn draws(&self) -> usize {
        if self.samples && self.state.generates { 1 + self.draft.len() } else { 0 }
    }

    /// Those of its tokens whose hidden states are wanted, counted from the first that is computed now.
    fn tells(&self) -> Range<usize> {
        self.state.telling.rows(self.computed, self.count, self.state.prompt_tokens)
    }
}

/// What came of a forward pass.
struct Found {
    /// Of each item that draws, one after the other: behind its last token, and behind each guess.
    logits: Logits,
    /// Of each item: what its chunk adds to what is told of its prompt, or why there is no such thing.
    added: Vec<Option<Result<Added, String>>>,
}

/// One sequence's part in sampling.
struct Draw<'a> {
    /// Of the first token to draw, in the answer.
    position: u32,
    sampler: &'a mut Sampler,
    draft: &'a [u32],
    /// A row for the token behind what is known, and one behind each guess.
    logits: &'a mut [f32],
    /// What the head has noted of each row, if it has.
    peaks: &'a [f32],
    vocabulary: usize,
    /// The tokens, or why there are none.
    sampled: Option<Result<Vec<Sampled>, String>>,
}

impl Local {
    pub(crate) fn new(model: Arc<Model>, cache: Storage, pool: Pool, profile: Option<Profile>) -> Local {
        Local { model, cache, pool, profiler: profile.map(Profiler::new) }
    }

    fn forward(&mut self, items: &[Item<'_, State>]) -> candle_core::Result<Found> {
        let mut tokens = Vec::new();
        let mut segments = Vec::with_capacity(items.len());
        let (mut wanted, mut told) = (Vec::new(), Vec::new());
        for item in items {
            let row = tokens.len() as u32;
            let rows = item.count + item.draft.len();
            let segment = Segment { row: tokens.len(), rows, position: item.computed, pages: item.pages };
            tokens.extend_from_slice(&item.tokens[item.computed..item.computed + item.count]);
            tokens.extend_from_slice(item.draft);
            let end = tokens.len() as u32;
            wanted.extend(end - item.draws() as u32..end);
            told.extend(item.tells().map(|told| row + told as u32));
            segments.push(segment);
        }
        let draws = wanted.len();
        wanted.extend(&told);
        let (network, on) = (&self.model.network, self.model.compute(&self.pool));
        let Some(states) = network.states(on, &mut self.cache, &tokens, &segments, &wanted)? else {
            return Ok(Found { logits: Logits::default(), added: Vec::new() });
        };
        if told.is_empty() {
            return Ok(Found { logits: network.head(on, &states)?, added: Vec::new() });
        }
        let logits = if draws > 0 { network.head(on, &states.narrow(0, 0, draws)?)? } else { Logits::default() };
        let mut from = draws;
        let added = items.iter().map(|item| {
            let count = item.tells().len();
            from += count;
            (count > 0).then(|| self.tell(item, &states.narrow(0, from - count, count)?)).transpose()
        });
        Ok(Found { logits, added: added.collect::<candle_core::Result<_>>()? })
    }

    /// What the hidden states of a chunk of a prompt add to what is told of it.
    fn tell(&self, item: &Item<'_, State>, states: &Tensor) -> candle_core::Result<Result<Added, String>> {
        let (count, width) = states.dims2()?;
        let Telling::Logprobs { top, .. } = item.state.telling else {
            let states: Vec<f32> = states.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
            let broken = states.iter().filter(|number| !number.is_finite()).count();
            let added = (broken == 0).then(|| item.state.telling.summed(item.computed, &states, width));
            return Ok(added.ok_or_else(|| not_finite(broken, states.len(), "hidden states")));
        };
        let next = &item.tokens[item.computed + 1..item.computed + 1 + count];
        let vocabulary = self.model.config.vocabulary();
        let mut logprobs = Vec::with_capacity(count);
        for (part, next) in next.chunks(LOOKED_AT).enumerate() {
            let states = states.narrow(0, part * LOOKED_AT, next.len())?;
            let Logits { values, peaks } = self.model.network.head(self.model.compute(&self.pool), &states)?;
            let noted = |row: usize| {
                let blocks = vocabulary.div_ceil(PEAK_COLUMNS);
                peaks.get(row * blocks..(row + 1) * blocks)
            };
            let found: Vec<Mutex<Option<Logprob>>> = next.iter().map(|_| Mutex::default()).collect();
            self.pool.run(next.len(), &|row| {
                let logits = &values[row * vocabulary..(row + 1) * vocabulary];
                let peaks = noted(row).map_or_else(|| Peaks::new(logits), Peaks::noted);
                // Nobody else has this task, so the lock is free; it is there for the compiler.
                *found[row].lock().unwrap_or_else(PoisonError::into_inner) =
                    peaks.map(|peaks| sampler::logprob(next[row], logits, &peaks, usize::from(top)));
            });
            for (row, (found, &token)) in found.into_iter().zip(next).enumerate() {
                let Some(logprob) = found.into_inner().unwrap_or_else(PoisonError::into_inner) else {
                    let row = &values[row * vocabulary..(row + 1) * vocabulary];
                    let broken = row.iter().filter(|logit| !logit.is_finite()).count();
                    return Ok(Err(not_finite(broken, vocabulary, "logits")));
                };
                logprobs.push(self.shown(token, logprob));
            }
        }
        Ok(Ok(Added::Logprobs(logprobs)))
    }
}

/// Where a model's numbers are none, any answer would be a lie.
fn not_finite(broken: usize, all: usize, what: &str) -> String {
    format!(
        "{broken} of the model's {all} {what} are not finite: its weights are damaged, or too large for f32; fetch the checkpoint \
         again, or serve another one"
    )
}

impl Language for Served {
    type State = State;

    fn context(&self) -> u32 {
        self.context
    }

    fn vocabulary(&self) -> usize {
        self.model.config.vocabulary()
    }

    fn read<'a>(&self, request: &'a Request) -> Result<Reading<'a>, Refusal> {
        let Served { model, context } = self;
        let extent = admission::Extent::new(*context, model.tokenizer.token_bytes_max(), request.max_tokens);
        let (text, stop) = match &request.prompt {
            Prompt::Text(text) => (Cow::Borrowed(text.as_str()), Vec::new()),
            Prompt::Chat(messages) => {
                extent.check_chat(messages)?;
                let rendered = model.template.render_within(messages, extent.bytes_max())?;
                let rendered = rendered.ok_or_else(|| extent.too_long())?;
                (Cow::Owned(rendered.text), rendered.stop)
            }
            Prompt::Tokens(tokens) => {
                admission::room(*context, tokens.len(), request.max_tokens)?;
                admission::check_prompt(tokens, self.vocabulary())?;
                return Ok(Reading { text: Cow::Borrowed(""), tokens: model.or_begin(tokens.clone()), stop: Vec::new() });
            }
        };
        extent.check_text(text.len())?;
        // A template writes the beginning of the text itself.
        let rendered = model.template.own() && matches!(request.prompt, Prompt::Chat(_));
        let tokens = if rendered { model.tokenizer.encode_rendered(&text) } else { model.tokenizer.encode(&text) };
        let tokens = model.or_begin(tokens);
        Ok(Reading { text, tokens, stop })
    }

    fn begin(&self, request: &Request, reading: &Reading<'_>) -> State {
        let stop = request.stop.iter().chain(&reading.stop).cloned().collect();
        State {
            prompt_tokens: reading.tokens.len(),
            generates: request.max_tokens != Some(0),
            telling: Telling::new(request, &reading.tokens, &self.model.tokenizer),
            sampler: Sampler::new(&request.sampling, &reading.tokens),
            text: TextStream::new(Arc::clone(&self.model.tokenizer), stop),
        }
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

    fn tells(&self, state: &State) -> bool {
        state.telling.reads()
    }

    fn told(&self, state: &mut State) -> Option<Told> {
        state.telling.told()
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
    type Language = Served;

    fn compute(&mut self, items: &mut [Item<'_, State>]) -> Result<Vec<Outcome>, String> {
        self.pool.stay();
        let begun = self.profiler.as_ref().and_then(Profiler::begin);
        let rows = |item: &Item<'_, State>| item.count + item.draft.len();
        let shape = Shape { rows: items.iter().map(rows).sum(), samples: items.iter().map(Item::draws).sum() };
        let outcomes = self.pass(items);
        if let (Some(profiler), Some(begun)) = (&mut self.profiler, begun) {
            profiler.end(shape, begun);
        }
        outcomes
    }

    fn rest(&mut self) {
        self.pool.rest();
    }
}

impl Local {
    /// In a frame of its own: tests/instructions counts what happens in it.
    #[inline(never)]
    fn pass(&mut self, items: &mut [Item<'_, State>]) -> Result<Vec<Outcome>, String> {
        let vocabulary = self.model.config.vocabulary();
        let Found { logits: Logits { values: mut logits, peaks }, added } =
            self.forward(items).map_err(|error| error.to_string())?;
        let _span = profile::span(|| {
            let logits = logits.len() as u64;
            (Part::Sampling, Work { bytes: 4 * logits, operations: 2 * logits, arithmetic: Arithmetic::F32 })
        });
        // Drawing from 50,000 logits takes tens of microseconds, and sequences are independent: each is a task.
        let mut rest = &mut logits[..];
        let mut noted = &peaks[..];
        let blocks = vocabulary.div_ceil(PEAK_COLUMNS);
        let draws: Vec<Mutex<Draw<'_>>> = items
            .iter_mut()
            .filter(|item| item.draws() > 0)
            .map(|item| {
                let position = (item.tokens.len() - item.state.prompt_tokens) as u32;
                let (logits, others) = std::mem::take(&mut rest).split_at_mut(item.draws() * vocabulary);
                rest = others;
                let (peaks, others) = noted.split_at((item.draws() * blocks).min(noted.len()));
                noted = others;
                let (sampler, draft) = (&mut item.state.sampler, item.draft);
                Mutex::new(Draw { position, sampler, draft, logits, peaks, vocabulary, sampled: None })
            })
            .collect();
        self.pool.run(draws.len(), &|draw| {
            // Nobody else has this task, so the lock is free; it is there for the compiler.
            let mut draw = draws[draw].lock().unwrap_or_else(PoisonError::into_inner);
            // The others' samplers have moved on, so the step can't be tried again.
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| draw.draw())) {
                draw.sampled = Some(Err(admission::panic_text(panic.as_ref())));
            }
        });
        let sampled: Vec<_> =
            draws.into_iter().map(|draw| draw.into_inner().unwrap_or_else(PoisonError::into_inner).sampled).collect();
        let (mut sampled, mut added) = (sampled.into_iter(), added.into_iter());
        let outcome = |item: &mut Item<'_, State>| {
            let sampled = if item.draws() > 0 { sampled.next().flatten() } else { None };
            match added.next().flatten() {
                Some(Ok(added)) => item.state.telling.take(item.computed, added),
                Some(Err(cause)) => return Outcome::Failed(cause),
                None => {}
            }
            match sampled {
                Some(Ok(sampled)) => Outcome::Drawn(sampled.into_iter().map(|sampled| self.drawn(sampled)).collect()),
                Some(Err(cause)) => Outcome::Failed(cause),
                None if item.samples => Outcome::Read,
                None => Outcome::Computed,
            }
        };
        Ok(items.iter_mut().map(outcome).collect())
    }

    fn drawn(&self, sampled: Sampled) -> Drawn {
        let Sampled { token, logprob } = sampled;
        Drawn { token, logprob: logprob.map(|logprob| self.shown(token, logprob)) }
    }

    fn shown(&self, token: u32, logprob: Logprob) -> TokenLogprob {
        let bytes = |token| self.model.tokenizer.token_bytes(token).to_vec();
        let Logprob { logprob, top } = logprob;
        let top = top.into_iter().map(|(token, logprob)| (token, bytes(token), logprob)).collect();
        TokenLogprob { token, bytes: bytes(token), logprob, top }
    }
}

impl Draw<'_> {
    /// Draws token by token, as a step for each would, until one is not the one that was guessed. Where the logits are no
    /// numbers to draw by, any token would be a lie.
    fn draw(&mut self) {
        let mut sampled: Vec<Sampled> = Vec::with_capacity(1 + self.draft.len());
        let mut noted = self.peaks.chunks_exact(self.vocabulary.div_ceil(PEAK_COLUMNS));
        for (position, logits) in (self.position..).zip(self.logits.chunks_exact_mut(self.vocabulary)) {
            let Some(peaks) = noted.next().map_or_else(|| Peaks::new(logits), Peaks::noted) else {
                let broken = logits.iter().filter(|logit| !logit.is_finite()).count();
                self.sampled = Some(Err(not_finite(broken, logits.len(), "logits")));
                return;
            };
            let token = self.sampler.sample_among(position, logits, peaks);
            let guessed = self.draft.get(sampled.len()) == Some(&token.token);
            sampled.push(token);
            if !guessed {
                break;
            }
        }
        self.sampled = Some(Ok(sampled));
    }
}
