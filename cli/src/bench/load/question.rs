//! What is asked: every question another one, so that no server answers from what it computed before.

use bytes::Bytes;

use super::{Endpoint, Plan};

/// The endpoint's path, and the body of a question.
pub(super) fn question(model: &str, plan: &Plan, number: u64) -> (&'static str, Bytes) {
    let ids = (0..u64::from(plan.prompt)).map(|at| {
        let mixed = (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ at).wrapping_mul(0xff51_afd7_ed55_8ccd);
        1 + (mixed >> 40) % 200
    });
    let mut body = serde_json::json!({
        "model": model, "stream": true, "stream_options": { "include_usage": true },
        "temperature": 0, "max_tokens": plan.new_tokens, "ignore_eos": true,
    });
    let path = match plan.endpoint {
        Endpoint::Chat => {
            let words: Vec<String> = ids.map(|id| format!("{}", char::from(b'a' + (id % 26) as u8))).collect();
            body["messages"] = serde_json::json!([{ "role": "user", "content": words.join(" ") }]);
            "/chat/completions"
        }
        Endpoint::Completions => {
            body["prompt"] = ids.collect();
            "/completions"
        }
    };
    (path, body.to_string().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_question_is_another() {
        for endpoint in [Endpoint::Chat, Endpoint::Completions] {
            let plan = Plan { endpoint, ..Plan::default() };
            let questions: std::collections::HashSet<_> = (0..200).map(|number| question("m", &plan, number).1).collect();
            assert_eq!(questions.len(), 200);
        }
    }
}
