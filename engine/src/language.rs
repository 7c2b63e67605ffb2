//! What a request means to a model, apart from computing: its prompt's tokens, and the text of the answer's.
//!
//! Shared by the thread that admits requests and the one that computes; it does not change while an engine runs.

use std::borrow::Cow;

use crate::{Refusal, Request, Told};

/// A model's, or the fake's.
pub(crate) trait Language: Send + Sync + 'static {
    /// What a sequence needs between steps: its sampler, its text, its KV pages.
    type State: Send;

    /// Tokens of a prompt and its answer together.
    fn context(&self) -> u32;

    /// Number of token ids.
    fn vocabulary(&self) -> usize;

    /// The prompt's tokens (at least one). What can't fit is refused before it is rendered or tokenized.
    fn read<'a>(&self, request: &'a Request) -> Result<Reading<'a>, Refusal>;

    /// The state of a sequence that has generated nothing yet.
    fn begin(&self, request: &Request, reading: &Reading<'_>) -> Self::State;

    /// The sequence goes on behind a token that an earlier attempt drew.
    fn accept(&self, state: &mut Self::State, token: u32);

    /// Whether a token ends the text.
    fn is_end(&self, token: u32) -> bool;

    /// The text that a token adds, and whether a stop string is complete.
    fn push(&self, state: &mut Self::State, token: u32, stops_count: bool) -> (String, bool);

    /// Whether something is to be told of the prompt that only comes of computing all of it.
    fn tells(&self, state: &Self::State) -> bool;

    /// What was asked of the prompt, once all of it is computed; `None`: nothing was, or it was told.
    fn told(&self, state: &mut Self::State) -> Option<Told>;

    /// The sequence has ended: the text that was held back.
    fn finish(&self, state: Self::State) -> String;
}

/// A prompt, read.
pub(crate) struct Reading<'a> {
    /// As the tokenizer saw it; empty where tokens came.
    pub(crate) text: Cow<'a, str>,
    pub(crate) tokens: Vec<u32>,
    /// What ends the answer beside the request's own stop strings.
    pub(crate) stop: Vec<String>,
}
