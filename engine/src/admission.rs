//! From a request to a sequence: parameters checked, the prompt rendered and tokenized, an earlier attempt's tokens taken up.
//!
//! What is admitted is decided by the request and the model alone, on whichever thread. Which thread it is, is [`Admissions`]'
//! and the runner's affair: a tokenizer must not hold up a batch that decodes.

mod checks;
mod extent;
mod queue;

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::language::Language;
use crate::sequence::{End, Sequence};
use crate::{FinishReason, Prompt, Refusal, Request};

pub(crate) use checks::{check_prompt, room};
pub(crate) use extent::Extent;
pub(crate) use queue::{Admissions, Full};

/// A message costs a template some instructions, however short it is.
const MESSAGE_BYTES: usize = 64;

/// A sequence that may wait for its slot, or one that has nothing left to do: what an earlier attempt generated was the
/// whole answer.
pub(crate) struct Admitted<L: Language> {
    pub(crate) sequence: Sequence<L>,
    /// Its prompt's, and those of an earlier attempt.
    pub(crate) tokens: Vec<u32>,
    pub(crate) end: Option<End>,
}

/// Reads a request. A panic is a bug, and costs this request only.
pub(crate) fn admit<L: Language>(language: &L, request: &Request) -> Result<Admitted<L>, Refusal> {
    catch_unwind(AssertUnwindSafe(|| admit_or_panic(language, request)))
        .unwrap_or_else(|panic| Err(Refusal::Engine(panic_text(panic.as_ref()))))
}

fn admit_or_panic<L: Language>(language: &L, request: &Request) -> Result<Admitted<L>, Refusal> {
    checks::check(request, language.vocabulary())?;
    let reading = language.read(request)?;
    let tokens_max = room(language.context(), reading.tokens.len(), request.max_tokens)?;
    let state = language.begin(request, &reading);
    let mut sequence = Sequence::new(request, reading.tokens.len(), tokens_max, state);
    let mut tokens = reading.tokens;
    let nothing_to_do = tokens_max == 0 && !language.tells(&sequence.state);
    let mut end = nothing_to_do.then_some(End::Whole(FinishReason::Length));
    for &token in &request.resume {
        if end.is_some() {
            break;
        }
        // The text of these tokens went out with the earlier attempt.
        tokens.push(token);
        (_, end) = sequence.take(language, token);
        language.accept(&mut sequence.state, token);
    }
    Ok(Admitted { sequence, tokens, end })
}

/// How much there is to read in a request, about: bytes of text, and a byte for each token.
pub(crate) fn bytes(request: &Request) -> usize {
    let prompt = match &request.prompt {
        Prompt::Text(text) => text.len(),
        Prompt::Tokens(tokens) => tokens.len(),
        Prompt::Chat(messages) => messages.iter().map(|message| message.role.len() + message.content.len() + MESSAGE_BYTES).sum(),
    };
    prompt + request.resume.len() + request.sampling.logit_bias.len()
}

/// What a panic said, as far as it said anything.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned()).or_else(|| panic.downcast_ref::<String>().cloned());
    format!("a bug: {}", text.unwrap_or_else(|| "a panic without a text".to_owned()))
}
