//! OpenAI's dialect, as most services speak it: <https://platform.openai.com/docs/api-reference/chat/streaming>.

use banyan_engine::{FinishReason, PIECE, Prompt, Request, Sampling, TokenLogprob};
use serde_json::{Map, Value, json};

use super::{Ask, News, NotOffered, count, decimal, not_offered};
use crate::{
    config::{TokensField, Upstream},
    sse::Event,
};

/// Integers that every JSON reader keeps.
const SEED_BITS: u64 = (1 << 53) - 1;

pub(super) fn ask(upstream: &Upstream, model: &str, request: &Request) -> Result<Ask, NotOffered> {
    let chat = matches!(request.prompt, Prompt::Chat(_));
    let mut body = Map::new();
    body.insert("model".into(), model.into());
    match &request.prompt {
        Prompt::Chat(messages) => {
            let one = |message: &banyan_engine::Message| json!({ "role": message.role, "content": message.content });
            body.insert("messages".into(), messages.iter().map(one).collect());
        }
        Prompt::Text(text) => drop(body.insert("prompt".into(), text.as_str().into())),
        Prompt::Tokens(tokens) => drop(body.insert("prompt".into(), tokens.as_slice().into())),
    }
    body.insert("stream".into(), true.into());
    body.insert("stream_options".into(), json!({ "include_usage": true }));
    let field = match upstream.tokens_field {
        TokensField::MaxCompletionTokens if chat => "max_completion_tokens",
        _ => "max_tokens",
    };
    body.insert(field.into(), request.max_tokens.unwrap_or(upstream.max_tokens).into());
    if !request.stop.is_empty() {
        body.insert("stop".into(), request.stop.as_slice().into());
    }
    sampling(&request.sampling, chat, &mut body);
    extensions(upstream, request, &mut body)?;
    Ok(Ask { path: if chat { "/chat/completions" } else { "/completions" }, body: body.into() })
}

/// What differs from what all take for granted.
fn sampling(sampling: &Sampling, chat: bool, body: &mut Map<String, Value>) {
    let defaults = Sampling::default();
    let mut tell = |name: &str, value: f32, default: f32| {
        if value != default {
            body.insert(name.into(), decimal(value));
        }
    };
    tell("temperature", sampling.temperature, defaults.temperature);
    tell("top_p", sampling.top_p, defaults.top_p);
    tell("presence_penalty", sampling.presence_penalty, defaults.presence_penalty);
    tell("frequency_penalty", sampling.frequency_penalty, defaults.frequency_penalty);
    body.insert("seed".into(), (sampling.seed & SEED_BITS).into());
    if !sampling.logit_bias.is_empty() {
        let bias = sampling.logit_bias.iter().map(|one| (one.token.to_string(), decimal(one.bias)));
        body.insert("logit_bias".into(), Value::Object(bias.collect()));
    }
    match sampling.logprobs {
        Some(top) if chat => {
            body.insert("logprobs".into(), true.into());
            body.insert("top_logprobs".into(), top.into());
        }
        Some(top) => drop(body.insert("logprobs".into(), top.into())),
        None => {}
    }
}

fn extensions(upstream: &Upstream, request: &Request, body: &mut Map<String, Value>) -> Result<(), NotOffered> {
    let (sampling, defaults) = (&request.sampling, Sampling::default());
    let wanted = [
        ("top_k", sampling.top_k != defaults.top_k, sampling.top_k.into()),
        ("min_p", sampling.min_p != defaults.min_p, decimal(sampling.min_p)),
        ("repetition_penalty", sampling.repetition_penalty != defaults.repetition_penalty, decimal(sampling.repetition_penalty)),
        ("min_tokens", request.min_tokens > 0, request.min_tokens.into()),
        ("ignore_eos", request.ignore_eos, true.into()),
    ];
    for (name, _, value) in wanted.into_iter().filter(|(_, wanted, _)| *wanted) {
        if !upstream.extensions {
            return Err(not_offered(upstream, name));
        }
        body.insert(name.into(), value);
    }
    Ok(())
}

pub(super) fn read(event: &Event) -> Vec<News> {
    if event.data == "[DONE]" {
        return vec![News::End];
    }
    let Ok(chunk) = serde_json::from_str::<Value>(&event.data) else {
        return vec![News::Failed("its stream has an event that is no JSON".to_owned())];
    };
    if let Some(error) = chunk.get("error").filter(|error| !error.is_null()) {
        let message = error.get("message").and_then(Value::as_str).or(error.as_str()).unwrap_or("it does not say why");
        return vec![News::Failed(message.to_owned())];
    }
    let mut news = Vec::new();
    let choice = &chunk["choices"][0];
    let text = choice["delta"]["content"].as_str().or(choice["text"].as_str()).unwrap_or_default();
    let logprobs = logprobs(&choice["logprobs"]);
    if !text.is_empty() || !logprobs.is_empty() {
        news.push(News::Piece { text: text.to_owned(), logprobs });
    }
    match choice["finish_reason"].as_str() {
        Some("length") => news.push(News::Reason(FinishReason::Length)),
        Some(_) => news.push(News::Reason(FinishReason::Stop)),
        None => {}
    }
    let usage = &chunk["usage"];
    if usage.is_object() {
        news.push(News::Usage {
            prompt: count(&usage["prompt_tokens"]),
            completion: count(&usage["completion_tokens"]),
            cached: count(&usage["prompt_tokens_details"]["cached_tokens"]),
        });
    }
    news
}

/// Of a chat's chunk, or of a completion's. Whose tokens have what ids nobody says.
fn logprobs(logprobs: &Value) -> Vec<TokenLogprob> {
    let number = |value: &Value| value.as_f64().unwrap_or_default() as f32;
    if let Some(content) = logprobs["content"].as_array() {
        let bytes = |one: &Value| match one["bytes"].as_array() {
            Some(bytes) => bytes.iter().filter_map(|byte| u8::try_from(byte.as_u64()?).ok()).collect(),
            None => one["token"].as_str().unwrap_or_default().as_bytes().to_vec(),
        };
        let top = |one: &Value| -> Vec<(u32, Vec<u8>, f32)> {
            let all = one["top_logprobs"].as_array().into_iter().flatten();
            all.map(|top| (PIECE, bytes(top), number(&top["logprob"]))).collect()
        };
        let one = |one: &Value| TokenLogprob { token: PIECE, bytes: bytes(one), logprob: number(&one["logprob"]), top: top(one) };
        return content.iter().map(one).collect();
    }
    let Some(tokens) = logprobs["tokens"].as_array() else { return Vec::new() };
    let one = |(index, token): (usize, &Value)| {
        let all = logprobs["top_logprobs"][index].as_object().into_iter().flatten();
        let mut top: Vec<(u32, Vec<u8>, f32)> =
            all.map(|(text, logprob)| (PIECE, text.as_bytes().to_vec(), number(logprob))).collect();
        top.sort_by(|one, other| other.2.total_cmp(&one.2));
        let bytes = token.as_str().unwrap_or_default().as_bytes().to_vec();
        TokenLogprob { token: PIECE, bytes, logprob: number(&logprobs["token_logprobs"][index]), top }
    };
    tokens.iter().enumerate().map(one).collect()
}

#[cfg(test)]
mod tests {
    use banyan_engine::{Message, SequenceId};

    use super::*;
    use crate::config::Config;

    fn upstream(rest: &str) -> Upstream {
        let text = format!("[[upstream]]\nname = 'a'\nurl = 'http://a'\nmodels = ['m']\n{rest}");
        toml::from_str::<Config>(&text).unwrap().upstreams.remove(0)
    }

    fn request() -> Request {
        let mut request = Request::fixed(SequenceId(1), Vec::new(), 7);
        request.prompt = Prompt::Chat(vec![Message { role: "user".into(), content: "hi".into() }]);
        (request.ignore_eos, request.sampling) = (false, Sampling { temperature: 0.7, seed: 5, ..Sampling::default() });
        request
    }

    fn data(data: Value) -> Event {
        Event { name: String::new(), data: data.to_string() }
    }

    #[test]
    fn a_conversation_is_asked_as_every_service_knows_it() {
        let ask = ask(&upstream(""), "there", &request()).unwrap();
        let body = json!({
            "model": "there", "messages": [{ "role": "user", "content": "hi" }], "stream": true,
            "stream_options": { "include_usage": true }, "max_tokens": 7, "temperature": 0.7, "seed": 5,
        });
        assert_eq!((ask.path, ask.body), ("/chat/completions", body));
    }

    #[test]
    fn text_and_tokens_are_completions() {
        for (prompt, sent) in [(Prompt::Text("x".into()), json!("x")), (Prompt::Tokens(vec![1, 2]), json!([1, 2]))] {
            let ask = ask(&upstream("tokens_field = 'max_completion_tokens'"), "m", &Request { prompt, ..request() }).unwrap();
            assert_eq!((ask.path, &ask.body["prompt"], &ask.body["max_tokens"]), ("/completions", &sent, &json!(7)));
        }
    }

    #[test]
    fn what_is_beyond_the_standard_goes_where_it_is_known() {
        let mut request = request();
        request.sampling.top_k = 5;
        let refused = ask(&upstream(""), "m", &request).unwrap_err();
        assert_eq!((refused.param, refused.message.contains("leave it out")), ("top_k", true));
        assert_eq!(ask(&upstream("extensions = true"), "m", &request).unwrap().body["top_k"], 5);
    }

    #[test]
    fn chunks_are_pieces_ends_and_counts() {
        let piece = |text: &str| News::Piece { text: text.into(), logprobs: Vec::new() };
        assert_eq!(read(&data(json!({ "choices": [{ "delta": { "role": "assistant", "content": "" } }] }))), []);
        assert_eq!(read(&data(json!({ "choices": [{ "delta": { "content": "a" }, "finish_reason": null }] }))), [piece("a")]);
        assert_eq!(
            read(&data(json!({ "choices": [{ "text": "b", "finish_reason": "length" }], "usage": null }))),
            [piece("b"), News::Reason(FinishReason::Length)]
        );
        let usage = json!({ "choices": [], "usage": { "prompt_tokens": 3, "completion_tokens": 2 } });
        assert_eq!(read(&data(usage)), [News::Usage { prompt: Some(3), completion: Some(2), cached: None }]);
        assert_eq!(read(&Event { name: String::new(), data: "[DONE]".into() }), [News::End]);
        assert_eq!(read(&data(json!({ "error": { "message": "no" } }))), [News::Failed("no".into())]);
        assert!(matches!(&read(&Event { name: String::new(), data: "<html>".into() })[..], [News::Failed(_)]));
    }

    #[test]
    fn logprobs_come_in_both_shapes() {
        let one = |text: &str, logprob, top| TokenLogprob { token: PIECE, bytes: text.as_bytes().to_vec(), logprob, top };
        let chat = json!({ "content": [{ "token": "a", "bytes": [97], "logprob": -0.5, "top_logprobs": [{ "token": "b", "logprob": -1.0 }] }] });
        assert_eq!(logprobs(&chat), [one("a", -0.5, vec![(PIECE, b"b".to_vec(), -1.0)])]);
        let completion =
            json!({ "tokens": ["a", "b"], "token_logprobs": [null, -0.25], "top_logprobs": [null, { "c": -2.0, "b": -0.25 }] });
        let top = vec![(PIECE, b"b".to_vec(), -0.25), (PIECE, b"c".to_vec(), -2.0)];
        assert_eq!(logprobs(&completion), [one("a", 0.0, Vec::new()), one("b", -0.25, top)]);
        assert_eq!(logprobs(&Value::Null), []);
    }
}
