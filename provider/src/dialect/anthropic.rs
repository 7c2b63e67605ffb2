//! Anthropic's dialect: <https://docs.anthropic.com/en/api/messages-streaming>.

use banyan_engine::{FinishReason, Prompt, Request, Sampling};
use serde_json::{Map, Value, json};

use super::{Ask, News, NotOffered, count, decimal, not_offered};
use crate::{config::Upstream, sse::Event};

pub(super) const VERSION: &str = "2023-06-01";

pub(super) fn ask(upstream: &Upstream, model: &str, request: &Request) -> Result<Ask, NotOffered> {
    let Prompt::Chat(messages) = &request.prompt else {
        let message = format!("the provider {} answers conversations only: ask POST /v1/chat/completions", upstream.name);
        return Err(NotOffered { param: "prompt", message });
    };
    let (sampling, defaults) = (&request.sampling, Sampling::default());
    for (param, wanted) in [
        ("logprobs", sampling.logprobs.is_some()),
        ("logit_bias", !sampling.logit_bias.is_empty()),
        ("presence_penalty", sampling.presence_penalty != defaults.presence_penalty),
        ("frequency_penalty", sampling.frequency_penalty != defaults.frequency_penalty),
        ("repetition_penalty", sampling.repetition_penalty != defaults.repetition_penalty),
        ("min_p", sampling.min_p != defaults.min_p),
        ("min_tokens", request.min_tokens > 0),
        ("ignore_eos", request.ignore_eos),
        // It goes from 0 to 1 there.
        ("temperature", sampling.temperature > 1.0),
    ] {
        if wanted {
            return Err(not_offered(upstream, param));
        }
    }
    let system: Vec<&str> =
        messages.iter().filter(|message| message.role == "system").map(|message| message.content.as_str()).collect();
    let others = messages.iter().filter(|message| message.role != "system");
    let mut body = Map::new();
    body.insert("model".into(), model.into());
    body.insert("max_tokens".into(), request.max_tokens.unwrap_or(upstream.max_tokens).into());
    if !system.is_empty() {
        body.insert("system".into(), system.join("\n\n").into());
    }
    body.insert("messages".into(), others.map(|message| json!({ "role": message.role, "content": message.content })).collect());
    body.insert("stream".into(), true.into());
    if sampling.temperature != defaults.temperature {
        body.insert("temperature".into(), decimal(sampling.temperature));
    }
    if sampling.top_p != defaults.top_p {
        body.insert("top_p".into(), decimal(sampling.top_p));
    }
    if sampling.top_k != defaults.top_k {
        body.insert("top_k".into(), sampling.top_k.into());
    }
    if !request.stop.is_empty() {
        body.insert("stop_sequences".into(), request.stop.as_slice().into());
    }
    // It knows no seed.
    Ok(Ask { path: "/messages", body: body.into() })
}

pub(super) fn read(event: &Event) -> Vec<News> {
    let Ok(data) = serde_json::from_str::<Value>(&event.data) else {
        return vec![News::Failed("its stream has an event that is no JSON".to_owned())];
    };
    match data["type"].as_str().unwrap_or(&event.name) {
        "message_start" => {
            let usage = &data["message"]["usage"];
            // What it found in its cache, or put there, counts apart.
            let parts = ["input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"];
            let prompt = parts.iter().filter_map(|part| count(&usage[*part])).reduce(u32::saturating_add);
            vec![News::Usage { prompt, completion: None, cached: count(&usage["cache_read_input_tokens"]) }]
        }
        "content_block_delta" => match data["delta"]["text"].as_str() {
            Some(text) if !text.is_empty() => vec![News::Piece { text: text.to_owned(), logprobs: Vec::new() }],
            _ => Vec::new(),
        },
        "message_delta" => {
            let reason = match data["delta"]["stop_reason"].as_str() {
                Some("max_tokens" | "model_context_window_exceeded") => Some(FinishReason::Length),
                Some(_) => Some(FinishReason::Stop),
                None => None,
            };
            let usage = News::Usage { prompt: None, completion: count(&data["usage"]["output_tokens"]), cached: None };
            [Some(usage), reason.map(News::Reason)].into_iter().flatten().collect()
        }
        "message_stop" => vec![News::End],
        "error" => {
            let message = data["error"]["message"].as_str().unwrap_or("it does not say why");
            vec![News::Failed(message.to_owned())]
        }
        // Pings, and the beginnings and ends of blocks.
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use banyan_engine::{Message, SequenceId};

    use super::*;
    use crate::config::Config;

    fn upstream() -> Upstream {
        let text = "[[upstream]]\nname = 'a'\ndialect = 'anthropic'\nurl = 'http://a'\nmodels = ['m']\nmax_tokens = 99";
        toml::from_str::<Config>(text).unwrap().upstreams.remove(0)
    }

    fn request() -> Request {
        let mut request = Request::fixed(SequenceId(1), Vec::new(), 7);
        let message = |role: &str, content: &str| Message { role: role.into(), content: content.into() };
        request.prompt = Prompt::Chat(vec![message("system", "be brief"), message("user", "hi")]);
        (request.ignore_eos, request.max_tokens, request.sampling) = (false, None, Sampling::default());
        request
    }

    fn data(data: Value) -> Event {
        Event { name: String::new(), data: data.to_string() }
    }

    #[test]
    fn the_system_stands_apart_and_an_answers_length_is_always_told() {
        let ask = ask(&upstream(), "there", &request()).unwrap();
        let body = json!({
            "model": "there", "max_tokens": 99, "system": "be brief",
            "messages": [{ "role": "user", "content": "hi" }], "stream": true,
        });
        assert_eq!((ask.path, ask.body), ("/messages", body));
    }

    #[test]
    fn what_it_does_not_offer_is_refused_by_name() {
        let text = Request { prompt: Prompt::Text("x".into()), ..request() };
        assert_eq!(ask(&upstream(), "m", &text).unwrap_err().param, "prompt");
        let mut hot = request();
        hot.sampling.temperature = 1.5;
        assert_eq!(ask(&upstream(), "m", &hot).unwrap_err().param, "temperature");
    }

    #[test]
    fn events_are_pieces_ends_and_counts() {
        let start =
            json!({ "type": "message_start", "message": { "usage": { "input_tokens": 5, "cache_read_input_tokens": 2 } } });
        assert_eq!(read(&data(start)), [News::Usage { prompt: Some(7), completion: None, cached: Some(2) }]);
        let delta = json!({ "type": "content_block_delta", "delta": { "type": "text_delta", "text": "a" } });
        assert_eq!(read(&data(delta)), [News::Piece { text: "a".into(), logprobs: Vec::new() }]);
        let end = json!({ "type": "message_delta", "delta": { "stop_reason": "max_tokens" }, "usage": { "output_tokens": 3 } });
        let usage = News::Usage { prompt: None, completion: Some(3), cached: None };
        assert_eq!(read(&data(end)), [usage, News::Reason(FinishReason::Length)]);
        assert_eq!(read(&data(json!({ "type": "ping" }))), []);
        assert_eq!(read(&data(json!({ "type": "message_stop" }))), [News::End]);
        let error = json!({ "type": "error", "error": { "type": "overloaded_error", "message": "Overloaded" } });
        assert_eq!(read(&data(error)), [News::Failed("Overloaded".into())]);
    }
}
