//! What is told of a prompt, gathered chunk by chunk as it goes through the model: the mean of its hidden states, or the
//! log-probabilities of its tokens.
//!
//! Each number is one chain of operations over the positions in their order, so it does not depend on how the prompt was cut
//! into chunks, nor on its company. How the states and logits are computed is the backend's.

use std::ops::Range;
use std::sync::Arc;

use crate::{Prompt, Request, Tell, TextStream, TokenLogprob, Tokenizer, Told};

/// What a caller wants of its prompt, as far as it is computed.
#[derive(Debug)]
pub(crate) enum Telling {
    /// Nothing, or it was told.
    Nothing,
    /// The text alone.
    Text(String),
    /// The text, and for each token what its log-probability was, with so many alternatives.
    Logprobs { text: String, top: u8, tokens: Vec<TokenLogprob> },
    /// Sums over the tokens so far.
    Embedding { sums: Vec<f64>, tokens: usize },
}

/// What a chunk adds to it.
#[derive(Debug)]
pub(crate) enum Added {
    Logprobs(Vec<TokenLogprob>),
    Sums { sums: Vec<f64>, tokens: usize },
}

impl Telling {
    /// Of a request whose prompt has been read to `tokens`.
    pub(crate) fn new(request: &Request, tokens: &[u32], tokenizer: &Arc<Tokenizer>) -> Telling {
        // An earlier attempt has told it with the first token.
        if !request.resume.is_empty() {
            return Telling::Nothing;
        }
        let text = || match &request.prompt {
            Prompt::Text(text) => text.clone(),
            Prompt::Tokens(_) | Prompt::Chat(_) => spelled(tokens, tokenizer),
        };
        match (request.tell, request.sampling.logprobs) {
            (Tell::Nothing, _) => Telling::Nothing,
            (Tell::Echo, None) => Telling::Text(text()),
            (Tell::Echo, Some(top)) => {
                let first = tokens.first().copied().unwrap_or_default();
                let first =
                    TokenLogprob { token: first, bytes: tokenizer.token_bytes(first).to_vec(), logprob: 0.0, top: Vec::new() };
                Telling::Logprobs { text: text(), top, tokens: vec![first] }
            }
            (Tell::Embedding, _) => Telling::Embedding { sums: Vec::new(), tokens: 0 },
        }
    }

    /// Whether the prompt's tokens have to go through the model for it.
    pub(crate) fn reads(&self) -> bool {
        matches!(self, Telling::Logprobs { .. } | Telling::Embedding { .. })
    }

    /// Of a chunk of `count` tokens from position `computed` on, those whose hidden states are wanted.
    pub(crate) fn rows(&self, computed: usize, count: usize, prompt_tokens: usize) -> Range<usize> {
        let until = match self {
            Telling::Nothing | Telling::Text(_) => 0,
            // What is behind the last one is the answer's.
            Telling::Logprobs { .. } => prompt_tokens - 1,
            Telling::Embedding { .. } => prompt_tokens,
        };
        0..until.saturating_sub(computed).min(count)
    }

    /// The sums with the states of a chunk from position `computed` on: `[tokens, width]`.
    pub(crate) fn summed(&self, computed: usize, states: &[f32], width: usize) -> Added {
        let before = match self {
            // Given up for others and begun again, it starts at nothing.
            Telling::Embedding { sums, tokens } if *tokens == computed && computed > 0 => sums.clone(),
            _ => vec![0.0; width],
        };
        let rows = states.chunks_exact(width);
        let tokens = computed + rows.len();
        let sums = rows.fold(before, |mut sums, row| {
            for (sum, &number) in sums.iter_mut().zip(row) {
                *sum += f64::from(number);
            }
            sums
        });
        Added::Sums { sums, tokens }
    }

    /// Takes up what a chunk from position `computed` on has added.
    pub(crate) fn take(&mut self, computed: usize, added: Added) {
        match (self, added) {
            (Telling::Logprobs { tokens, .. }, Added::Logprobs(more)) => {
                tokens.truncate(computed + 1);
                tokens.extend(more);
            }
            (Telling::Embedding { sums, tokens }, Added::Sums { sums: now, tokens: count }) => {
                (*sums, *tokens) = (now, count);
            }
            _ => debug_assert!(false, "what is added is of the kind that was asked for"),
        }
    }

    /// What it has come to, once.
    pub(crate) fn told(&mut self) -> Option<Told> {
        match std::mem::replace(self, Telling::Nothing) {
            Telling::Nothing => None,
            Telling::Text(text) => Some(Told::Echo { text, logprobs: Vec::new() }),
            Telling::Logprobs { text, tokens, .. } => Some(Told::Echo { text, logprobs: tokens }),
            Telling::Embedding { sums, tokens } => {
                Some(Told::Embedding(sums.into_iter().map(|sum| (sum / tokens as f64) as f32).collect()))
            }
        }
    }
}

/// What tokens say.
fn spelled(tokens: &[u32], tokenizer: &Arc<Tokenizer>) -> String {
    let mut text = TextStream::new(Arc::clone(tokenizer), Vec::new());
    let mut spelled: String = tokens.iter().map(|&token| text.push(token, true).text).collect();
    spelled.push_str(&text.finish());
    spelled
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_does_not_depend_on_the_chunks_nor_on_a_start_that_was_given_up() {
        let states: Vec<f32> = (0..30).map(|i| (i as f32 * 0.37).sin()).collect();
        let mean = |cuts: &[Range<usize>]| {
            let mut telling = Telling::Embedding { sums: Vec::new(), tokens: 0 };
            for cut in cuts {
                let added = telling.summed(cut.start, &states[cut.start * 3..cut.end * 3], 3);
                telling.take(cut.start, added);
            }
            telling.told()
        };
        let whole = mean(&[0..5, 5..10]);
        assert!(matches!(&whole, Some(Told::Embedding(numbers)) if numbers.len() == 3));
        assert_eq!(mean(&[0..1, 1..7, 7..10]), whole);
        assert_eq!(mean(&[0..4, 4..6, 0..5, 5..10]), whole);
    }

    #[test]
    fn only_the_prompts_own_positions_are_wanted() {
        let embedding = Telling::Embedding { sums: Vec::new(), tokens: 0 };
        assert_eq!([embedding.rows(0, 4, 6), embedding.rows(4, 2, 6), embedding.rows(6, 1, 6)], [0..4, 0..2, 0..0]);
        let logprobs = Telling::Logprobs { text: String::new(), top: 0, tokens: Vec::new() };
        assert_eq!([logprobs.rows(0, 4, 6), logprobs.rows(4, 2, 6), logprobs.rows(6, 1, 6)], [0..4, 0..1, 0..0]);
        assert_eq!(Telling::Nothing.rows(0, 4, 6), 0..0);
    }
}
