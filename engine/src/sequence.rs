//! A sequence between its admission and its end: how far its answer is, and when it ends. Its tokens are the scheduler's.

use crate::language::Language;
use crate::{FinishReason, Request, Usage};

/// An answer that is being generated.
pub(crate) struct Sequence<L: Language> {
    pub(crate) prompt_tokens: u32,
    /// Completion tokens so far.
    pub(crate) count: u32,
    /// Completion tokens that it may have.
    pub(crate) tokens_max: u32,
    /// Its caller knows that it runs.
    pub(crate) started: bool,
    pub(crate) state: L::State,
    min_tokens: u32,
    ignore_eos: bool,
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// With the end of text, or with as many tokens as it may have.
    Whole(FinishReason),
    /// With a stop string: what was held back behind it is no part of the answer.
    Stopped,
}

impl End {
    pub(crate) fn reason(self) -> FinishReason {
        match self {
            End::Whole(reason) => reason,
            End::Stopped => FinishReason::Stop,
        }
    }
}

impl<L: Language> Sequence<L> {
    /// Behind its prompt.
    pub(crate) fn new(request: &Request, prompt_tokens: usize, tokens_max: u32, state: L::State) -> Self {
        Sequence {
            prompt_tokens: u32::try_from(prompt_tokens).unwrap_or(u32::MAX),
            count: 0,
            tokens_max,
            started: false,
            state,
            // What the client asked for: a fact about the request that shapes every token.
            min_tokens: request.min_tokens,
            ignore_eos: request.ignore_eos,
        }
    }

    /// Takes a token of the answer: its text, and, where the answer ends with it, how.
    pub(crate) fn take(&mut self, language: &L, token: u32) -> (String, Option<End>) {
        self.count += 1;
        let stops_count = self.count >= self.min_tokens;
        let full = (self.count >= self.tokens_max).then_some(End::Whole(FinishReason::Length));
        if language.is_end(token) {
            let ends = stops_count && !self.ignore_eos;
            return (String::new(), if ends { Some(End::Whole(FinishReason::Stop)) } else { full });
        }
        let (text, stopped) = language.push(&mut self.state, token, stops_count);
        (text, if stopped { Some(End::Stopped) } else { full })
    }

    /// What it took, `cached` of its tokens having been computed before it came.
    pub(crate) fn usage(&self, cached: u32) -> Usage {
        let cached_tokens = cached.min(self.prompt_tokens);
        Usage { prompt_tokens: self.prompt_tokens, completion_tokens: self.count, cached_tokens }
    }
}
