//! What endpoints make of a request: the prompts, how often each is answered, and in which dialect.

use banyan_proto::v1::{self, generation::Prompt};
use tokio::time::Instant;

use super::{
    Error,
    comeback::Comeback,
    parameters::{CHOICES_MAX, Parameters},
};
use crate::{answer::Query, body::Arrival, routes::Context};

/// Each choice carries its prompt, so that a long one times many choices would take much memory.
const COPIES_BYTES_MAX: usize = 16 << 20;

/// What a template adds to each message, in tokens, at most.
const TEMPLATE_TOKENS: usize = 16;

/// Which of the two endpoints is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    Chat,
    Completions,
}

impl Dialect {
    /// The parameter that carries the prompt.
    pub(super) fn prompt(self) -> &'static str {
        match self {
            Dialect::Chat => "messages",
            Dialect::Completions => "prompt",
        }
    }

    /// What an answer's id begins with; the rest is its first query's.
    pub(super) fn prefix(self) -> &'static str {
        match self {
            Dialect::Chat => "chatcmpl-",
            Dialect::Completions => "cmpl-",
        }
    }
}

/// A request, understood.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Order {
    pub(crate) dialect: Dialect,
    pub(crate) parameters: Parameters,
    pub(crate) prompts: Vec<Prompt>,
    /// Whether answers begin with their prompt.
    pub(crate) echo: bool,
}

impl Order {
    /// # Errors
    /// When there are too many choices in all, or their prompts are too long together.
    pub(super) fn bounded(self) -> Result<Self, Error> {
        let (prompts, n) = (self.prompts.len(), self.parameters.n);
        let param = if prompts > 1 { "prompt" } else { "n" };
        if prompts * n > CHOICES_MAX {
            let message =
                format!("{} choices were asked for, of at most {CHOICES_MAX}: send fewer prompts, or a smaller n", prompts * n);
            return Err(Error::parameter(param, message));
        }
        if n > 1 && n * self.prompts.iter().map(bytes).sum::<usize>() > COPIES_BYTES_MAX {
            let message = format!("the prompts of all choices together exceed {COPIES_BYTES_MAX} bytes: ask for a smaller n");
            return Err(Error::parameter("n", message));
        }
        Ok(self)
    }

    /// The text that a choice begins with, where no node is asked for it.
    pub(super) fn echoed(&self, choice: usize) -> Option<&str> {
        let own = self.echo && self.parameters.generation.tell() == v1::Tell::Nothing;
        match &self.prompts[choice / self.parameters.n] {
            Prompt::Text(text) if own => Some(text),
            _ => None,
        }
    }
}

/// One query per choice; a prompt's choices are neighbours.
pub(super) fn queries(
    parameters: &Parameters,
    prompts: &[Prompt],
    context: &Context,
    comeback: &Comeback,
    arrival: &Arrival,
) -> Vec<Query> {
    let first = comeback.first(parameters.stream);
    let tokens = context.roots.context(&parameters.model);
    let deadline = Instant::now() + parameters.deadline.unwrap_or(context.limits.deadline);
    let claim = comeback.claim(parameters.stream, parameters.resumable);
    let mut ids = (0..).map(|number| first.nth(number));
    let mut one = |prompt: &Prompt, choice| Query {
        id: ids.next().expect("there is no end of numbers"),
        claim: claim.clone(),
        model: parameters.model.clone(),
        owner: arrival.caller.owner.to_string(),
        key: arrival.caller.key.clone(),
        priority: parameters.priority.unwrap_or(0).min(arrival.caller.priority_max),
        deadline,
        returning: arrival.returning,
        tokens_max: tokens_max(prompt, &parameters.generation, tokens),
        generation: parameters.generation(prompt.clone(), choice),
        place: None,
    };
    let mut queries = Vec::with_capacity(prompts.len() * parameters.n);
    for prompt in prompts {
        queries.extend((0..parameters.n).map(|choice| one(prompt, choice)));
    }
    queries
}

/// What a prompt takes.
pub(super) fn bytes(prompt: &Prompt) -> usize {
    match prompt {
        Prompt::Text(text) => text.len(),
        Prompt::Tokens(tokens) => tokens.ids.len() * size_of::<u32>(),
        Prompt::Chat(chat) => {
            chat.messages.iter().map(|message| message.role.len() + message.content.len() + TEMPLATE_TOKENS).sum()
        }
    }
}

/// A token stands for at least one byte, and nothing exceeds the context.
fn tokens_max(prompt: &Prompt, generation: &v1::Generation, context: Option<u32>) -> u32 {
    let prompt = match prompt {
        Prompt::Tokens(tokens) => tokens.ids.len(),
        text => bytes(text),
    };
    let context = context.unwrap_or(u32::MAX);
    let completion = match generation.max_tokens {
        0 if generation.prompt_only => 0,
        0 => context,
        tokens => tokens,
    };
    u32::try_from(prompt).unwrap_or(u32::MAX).saturating_add(completion).min(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_querys_tokens_are_bounded_by_its_bytes_and_by_the_context() {
        let text = |bytes: usize| Prompt::Text("x".repeat(bytes));
        let to = |max_tokens| v1::Generation { max_tokens, ..Default::default() };
        assert_eq!(tokens_max(&text(100), &to(20), Some(1024)), 120);
        assert_eq!(tokens_max(&text(5000), &to(20), Some(1024)), 1024);
        assert_eq!(tokens_max(&text(100), &to(0), Some(1024)), 1024);
        assert_eq!(tokens_max(&text(100), &to(20), None), 120);
        assert_eq!(tokens_max(&text(100), &v1::Generation { prompt_only: true, ..to(0) }, Some(1024)), 100);
    }
}
