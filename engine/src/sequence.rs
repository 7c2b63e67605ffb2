//! A sequence between its admission and its end: its tokens, and when the answer ends.

use crate::language::Language;
use crate::{FinishReason, Request, Usage};

/// Prompt and answer so far.
pub(crate) struct Sequence<L: Language> {
    pub(crate) tokens: Vec<u32>,
    pub(crate) prompt_tokens: usize,
    /// How many of the tokens went through the model.
    pub(crate) computed: usize,
    /// Completion tokens that it may have.
    pub(crate) tokens_max: usize,
    pub(crate) state: L::State,
    min_tokens: usize,
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
    pub(crate) fn new(request: &Request, prompt: Vec<u32>, tokens_max: u32, state: L::State) -> Self {
        Sequence {
            prompt_tokens: prompt.len(),
            tokens: prompt,
            computed: 0,
            tokens_max: tokens_max as usize,
            state,
            // What the client asked for: a fact about the request that shapes every token.
            min_tokens: request.min_tokens as usize,
            ignore_eos: request.ignore_eos,
        }
    }

    /// Appends a token of the answer: its text, and, where the answer ends with it, how.
    pub(crate) fn take(&mut self, language: &L, token: u32) -> (String, Option<End>) {
        self.tokens.push(token);
        let count = self.tokens.len() - self.prompt_tokens;
        let stops_count = count >= self.min_tokens;
        let full = (count >= self.tokens_max).then_some(End::Whole(FinishReason::Length));
        if language.is_end(token) {
            let ends = stops_count && !self.ignore_eos;
            return (String::new(), if ends { Some(End::Whole(FinishReason::Stop)) } else { full });
        }
        let (text, stopped) = language.push(&mut self.state, token, stops_count);
        (text, if stopped { Some(End::Stopped) } else { full })
    }

    pub(crate) fn usage(&self) -> Usage {
        Usage {
            prompt_tokens: u32::try_from(self.prompt_tokens).unwrap_or(u32::MAX),
            completion_tokens: u32::try_from(self.tokens.len() - self.prompt_tokens).unwrap_or(u32::MAX),
            cached_tokens: 0,
        }
    }
}
