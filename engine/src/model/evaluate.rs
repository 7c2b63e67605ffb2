//! A model's logits of a whole text, for whoever wants to look at the model and not at an answer.

use candle_core::Result;

use super::Model;
use crate::kernels::{Pool, Segment};
use crate::kv::{PAGE_TOKENS, Pages};

impl Model {
    /// The logits behind each token of a text that begins at position 0: `[tokens][vocabulary]`. Computed by steps of up to
    /// `chunk` tokens on so many threads, which changes no bit of them. A text longer than the context is an error.
    pub fn logits(&self, tokens: &[u32], chunk: usize, threads: usize) -> Result<Vec<Vec<f32>>> {
        let (context, vocabulary) = (self.kv_shape().context as usize, self.config.vocabulary());
        if tokens.len() > context || tokens.iter().any(|&token| token as usize >= vocabulary) {
            candle_core::bail!("a text of {} tokens; the model takes {context}, of a vocabulary of {vocabulary}", tokens.len());
        }
        let pool = Pool::new(threads).map_err(candle_core::Error::wrap)?;
        let mut cache = self.cache(tokens.len().div_ceil(PAGE_TOKENS as usize) as u32)?;
        let mut pages = Pages::default();
        cache.grow(&mut pages, tokens.len())?;
        let mut logits = Vec::with_capacity(tokens.len());
        for (number, part) in tokens.chunks(chunk.max(1)).enumerate() {
            let segment = Segment { row: 0, rows: part.len(), position: number * chunk.max(1), pages: &pages.0 };
            let samples: Vec<u32> = (0..part.len() as u32).collect();
            let rows = self.network.forward(self.compute(&pool), &mut cache.storage, part, &[segment], &samples)?;
            logits.extend(rows.chunks(vocabulary).map(<[f32]>::to_vec));
        }
        Ok(logits)
    }
}
