//! The JSON of answers, field for field as OpenAI's clients read it, with one field of our own: `banyan`.

use banyan_proto::{QueryId, v1};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

/// A whole chat, as it is documented.
pub(crate) type WholeChat = Envelope<'static, Chat<'static>>;

/// An event of a streamed chat.
pub(crate) type ChatEvent = Envelope<'static, ChatChunk<'static>>;

/// A completion, whole or an event of a streamed one.
pub(crate) type AnyCompletion = Envelope<'static, Completion<'static>>;

/// What encloses choices: a whole answer, or one event of a streamed one.
#[derive(JsonSchema, Serialize)]
pub(crate) struct Envelope<'a, C> {
    pub(super) id: &'a str,
    pub(super) object: &'static str,
    pub(super) created: u64,
    pub(super) model: &'a str,
    /// Known when a node has finished.
    pub(super) system_fingerprint: Option<&'a str>,
    pub(super) choices: &'a [C],
    /// `Some(None)` is `null`: usage was asked for, and comes later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) usage: Option<Option<Usage>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) banyan: Option<Origin<'a>>,
}

/// A choice of a whole chat.
#[derive(JsonSchema, Serialize)]
pub(crate) struct Chat<'a> {
    pub(super) index: usize,
    pub(super) message: Message<'a>,
    pub(super) logprobs: Option<ChatLogprobs>,
    #[schemars(extend("enum" = ["stop", "length"]))]
    pub(super) finish_reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) banyan: Option<Origin<'a>>,
}

#[derive(JsonSchema, Serialize)]
pub(super) struct Message<'a> {
    pub(super) role: &'static str,
    pub(super) content: &'a str,
    pub(super) refusal: Option<()>,
}

/// A choice of an event of a streamed chat.
#[derive(JsonSchema, Serialize)]
pub(crate) struct ChatChunk<'a> {
    pub(super) index: usize,
    pub(super) delta: Delta<'a>,
    pub(super) logprobs: Option<ChatLogprobs>,
    #[schemars(extend("enum" = ["stop", "length", null]))]
    pub(super) finish_reason: Option<&'static str>,
}

#[derive(JsonSchema, Serialize, Default)]
pub(super) struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) content: Option<&'a str>,
}

/// A choice of a completion, whole or streamed.
#[derive(JsonSchema, Serialize)]
pub(crate) struct Completion<'a> {
    pub(super) index: usize,
    pub(super) text: &'a str,
    pub(super) logprobs: Option<CompletionLogprobs>,
    #[schemars(extend("enum" = ["stop", "length", null]))]
    pub(super) finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) banyan: Option<Origin<'a>>,
}

/// Tokens of a whole answer.
#[derive(JsonSchema, Serialize, Clone, Copy, Default)]
pub(super) struct Usage {
    prompt_tokens: u32,
    completion_tokens: u32,
    total_tokens: u32,
    prompt_tokens_details: PromptDetails,
}

#[derive(JsonSchema, Serialize, Clone, Copy, Default)]
struct PromptDetails {
    cached_tokens: u32,
}

impl Usage {
    /// Of all choices, `per_prompt` to a prompt, which counts once.
    pub(super) fn of<'a>(finishes: impl Iterator<Item = &'a v1::Finish>, per_prompt: usize) -> Self {
        let mut usage = Usage::default();
        let add = |sum: &mut u32, more: u32| *sum = sum.saturating_add(more);
        for (choice, finish) in finishes.enumerate() {
            if choice % per_prompt == 0 {
                add(&mut usage.prompt_tokens, finish.prompt_tokens);
                add(&mut usage.prompt_tokens_details.cached_tokens, finish.cached_tokens);
            }
            add(&mut usage.completion_tokens, finish.completion_tokens);
        }
        usage.total_tokens = usage.prompt_tokens.saturating_add(usage.completion_tokens);
        usage
    }
}

/// Where an answer comes from.
#[derive(JsonSchema, Serialize)]
pub(super) struct Origin<'a> {
    /// As `banyan why` takes it.
    query: String,
    /// `null` while it waits at the root.
    node: Option<&'a str>,
    /// The one that it is asked of: an alias may stand for several. An older root does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<&'a str>,
    attempt: u32,
    running: bool,
    /// Which one it will be to be served, while it waits at the root.
    #[serde(skip_serializing_if = "Option::is_none")]
    place: Option<u32>,
    trail: Vec<Hop<'a>>,
}

#[derive(JsonSchema, Serialize)]
struct Hop<'a> {
    node: &'a str,
    reason: String,
    ms: f64,
}

impl<'a> Origin<'a> {
    pub(super) fn new(query: QueryId, placed: &'a v1::Placed) -> Self {
        let hop = |hop: &'a v1::Hop| Hop {
            node: &hop.node,
            reason: hop.reason().as_str_name().trim_start_matches("REASON_").to_ascii_lowercase(),
            ms: hop.spent_us as f64 / 1000.0,
        };
        Origin {
            query: query.to_string(),
            node: Some(placed.node.as_str()).filter(|node| !node.is_empty()),
            model: Some(placed.model.as_str()).filter(|model| !model.is_empty()),
            attempt: placed.attempt,
            running: placed.running,
            place: Some(placed.place).filter(|place| *place > 0),
            trail: placed.trail.iter().map(hop).collect(),
        }
    }
}

pub(super) fn finish_reason(finish: &v1::Finish) -> &'static str {
    match finish.reason() {
        v1::FinishReason::Length => "length",
        v1::FinishReason::Stop | v1::FinishReason::Unspecified => "stop",
    }
}

/// Log-probabilities as chats have them.
#[derive(JsonSchema, Serialize)]
pub(super) struct ChatLogprobs {
    content: Vec<ChatLogprob>,
    refusal: Option<()>,
}

#[derive(JsonSchema, Serialize)]
struct ChatLogprob {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
    top_logprobs: Vec<TopLogprob>,
}

#[derive(JsonSchema, Serialize)]
struct TopLogprob {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

impl ChatLogprobs {
    /// `None` when none were asked for.
    pub(super) fn of(tokens: &[v1::TokenLogprob]) -> Option<Self> {
        let top = |token: &v1::TokenLogprob| TopLogprob {
            token: shown(&token.bytes, ""),
            logprob: finite(token.logprob),
            bytes: token.bytes.to_vec(),
        };
        let one = |token: &v1::TokenLogprob| ChatLogprob {
            token: shown(&token.bytes, ""),
            logprob: finite(token.logprob),
            bytes: token.bytes.to_vec(),
            top_logprobs: token.top.iter().map(top).collect(),
        };
        (!tokens.is_empty()).then(|| ChatLogprobs { content: tokens.iter().map(one).collect(), refusal: None })
    }
}

/// Log-probabilities as completions have them: four lists of one length.
#[derive(JsonSchema, Serialize)]
pub(super) struct CompletionLogprobs {
    tokens: Vec<String>,
    /// `null` for the first token of a prompt.
    token_logprobs: Vec<Option<f32>>,
    /// `null` when only the chosen tokens' were asked for.
    top_logprobs: Option<Vec<Option<Map<String, Value>>>>,
    /// Where each token begins, in characters from the start of the choice.
    text_offset: Vec<usize>,
}

impl CompletionLogprobs {
    /// Counts `offset` on, as an answer may come in pieces; `begins` with the first token of its prompt, which has nothing before
    /// it. `None` when none were asked for.
    pub(super) fn of(tokens: &[v1::TokenLogprob], offset: &mut usize, begins: bool) -> Option<Self> {
        let shown = |token: &v1::TokenLogprob| shown(&token.bytes, "bytes:");
        let starts = |token: &v1::TokenLogprob| {
            let at = *offset;
            // Bytes that go on with a character don't count, so that halves of one count once.
            *offset += token.bytes.iter().filter(|byte| **byte & 0xc0 != 0x80).count();
            at
        };
        let top = |token: &v1::TokenLogprob| {
            let likeliest = token.top.iter().map(|top| (shown(top), finite(top.logprob).into()));
            let mut tops: Map<String, Value> = likeliest.collect();
            // The chosen one is always among them.
            tops.entry(shown(token)).or_insert_with(|| finite(token.logprob).into());
            tops
        };
        let known = |at: usize| at > 0 || !begins;
        let any_top = tokens.iter().any(|token| !token.top.is_empty());
        (!tokens.is_empty()).then(|| CompletionLogprobs {
            tokens: tokens.iter().map(shown).collect(),
            token_logprobs: tokens.iter().enumerate().map(|(at, token)| known(at).then(|| finite(token.logprob))).collect(),
            top_logprobs: any_top.then(|| tokens.iter().enumerate().map(|(at, token)| known(at).then(|| top(token))).collect()),
            text_offset: tokens.iter().map(starts).collect(),
        })
    }
}

/// A token as text; one that is no text on its own as its bytes, escaped as OpenAI does.
fn shown(bytes: &[u8], escaped: &str) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold(escaped.to_owned(), |text, byte| text + &format!("\\x{byte:02x}")),
    }
}

/// JSON has no infinity; OpenAI writes this for what can't happen.
fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { -9999.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(bytes: &'static [u8], logprob: f32) -> v1::TokenLogprob {
        v1::TokenLogprob { token: 1, bytes: bytes.into(), logprob, top: vec![] }
    }

    #[test]
    fn halves_of_a_character_are_shown_as_bytes_and_counted_once() {
        let mut offset = 0;
        let tokens =
            [token("né".as_bytes(), -0.5), token(b"\xf0\x9f", -1.0), token(b"\x8c\xb3", f32::NEG_INFINITY), token(b"!", 0.0)];
        let logprobs = serde_json::to_value(CompletionLogprobs::of(&tokens, &mut offset, false)).unwrap();
        assert_eq!(logprobs["tokens"], serde_json::json!(["né", "bytes:\\xf0\\x9f", "bytes:\\x8c\\xb3", "!"]));
        assert_eq!(logprobs["text_offset"], serde_json::json!([0, 2, 3, 3]));
        assert_eq!(logprobs["token_logprobs"], serde_json::json!([-0.5, -1.0, -9999.0, 0.0]));
        assert_eq!(logprobs["top_logprobs"], Value::Null);
        assert_eq!(offset, 4);
        let echoed = serde_json::to_value(CompletionLogprobs::of(&tokens, &mut 0, true)).unwrap();
        assert_eq!(echoed["token_logprobs"], serde_json::json!([null, -1.0, -9999.0, 0.0]));
    }

    #[test]
    fn no_count_from_the_wire_wraps_the_sums() {
        let finish =
            v1::Finish { prompt_tokens: u32::MAX, completion_tokens: u32::MAX, cached_tokens: u32::MAX, ..Default::default() };
        let usage = serde_json::to_value(Usage::of([&finish, &finish].into_iter(), 1)).unwrap();
        for sum in ["prompt_tokens", "completion_tokens", "total_tokens"] {
            assert_eq!(usage[sum], u32::MAX, "{usage}");
        }
    }

    #[test]
    fn a_prompt_with_several_choices_is_counted_once() {
        let finish = v1::Finish { prompt_tokens: 10, completion_tokens: 3, cached_tokens: 4, ..Default::default() };
        let finishes = vec![finish; 6];
        let usage = serde_json::to_value(Usage::of(finishes.iter(), 3)).unwrap();
        assert_eq!(
            usage,
            serde_json::json!({
                "prompt_tokens": 20, "completion_tokens": 18, "total_tokens": 38, "prompt_tokens_details": { "cached_tokens": 8 }
            })
        );
    }
}
