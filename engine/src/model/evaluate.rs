//! A model's logits of a whole text, for whoever wants to look at the model and not at an answer.

use candle_core::Result;

use super::Model;
use crate::kernels::{Pool, Segment};
use crate::kv::{PAGE_TOKENS, Storage};

/// A text that a model reads from position 0 on, part by part.
pub(crate) struct Reading<'a> {
    model: &'a Model,
    pool: &'a Pool,
    cache: Storage,
    pages: Vec<u32>,
    position: usize,
}

impl<'a> Reading<'a> {
    /// Of texts of up to `tokens_max` tokens, one after the other.
    pub(crate) fn new(model: &'a Model, pool: &'a Pool, tokens_max: usize) -> Result<Reading<'a>> {
        let context = model.kv_shape().context as usize;
        if tokens_max > context {
            candle_core::bail!("a text of {tokens_max} tokens; the model takes {context}");
        }
        let pages: Vec<u32> = (0..tokens_max.div_ceil(PAGE_TOKENS as usize) as u32).collect();
        let cache = model.cache(pages.len() as u32)?;
        Ok(Reading { model, pool, cache, pages, position: 0 })
    }

    /// Forgets what was read.
    pub(crate) fn begin(&mut self) {
        self.position = 0;
    }

    /// The logits behind each token of the text's next part: `[tokens, vocabulary]`, row-major.
    pub(crate) fn logits(&mut self, part: &[u32]) -> Result<Vec<f32>> {
        let vocabulary = self.model.config.vocabulary();
        if self.position + part.len() > self.pages.len() * PAGE_TOKENS as usize {
            candle_core::bail!("the text is longer than was said");
        }
        if let Some(token) = part.iter().find(|&&token| token as usize >= vocabulary) {
            candle_core::bail!("token {token} is not of the model's vocabulary of {vocabulary}");
        }
        let segment = Segment { row: 0, rows: part.len(), position: self.position, pages: &self.pages };
        let samples: Vec<u32> = (0..part.len() as u32).collect();
        let on = self.model.compute(self.pool);
        let logits = self.model.network.forward(on, &mut self.cache, part, &[segment], &samples)?;
        self.position += part.len();
        Ok(logits.values)
    }
}

impl Model {
    /// The logits behind each token of a text that begins at position 0: `[tokens][vocabulary]`. Computed by steps of up to
    /// `chunk` tokens on so many threads, which changes no bit of them. A text longer than the context is an error.
    pub fn logits(&self, tokens: &[u32], chunk: usize, threads: usize) -> Result<Vec<Vec<f32>>> {
        let pool = Pool::new(threads).map_err(candle_core::Error::wrap)?;
        let mut reading = Reading::new(self, &pool, tokens.len())?;
        let mut logits = Vec::with_capacity(tokens.len());
        for part in tokens.chunks(chunk.max(1)) {
            logits.extend(reading.logits(part)?.chunks(self.config.vocabulary()).map(<[f32]>::to_vec));
        }
        Ok(logits)
    }
}
