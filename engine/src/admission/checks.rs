//! What a request must look like: parameter ranges, token ids, room in the context.

use crate::{Refusal, Request};

/// What the OpenAI API allows, and as many as a person could read.
const LOGPROBS_MAX: u8 = 20;
/// A stop string is compared with every new piece of text; four is the OpenAI API's bound, some clients send more.
const STOPS_MAX: usize = 16;
/// Text behind a possible stop string is held back, so its length bounds how far a stream can lag.
const STOP_BYTES_MAX: usize = 1024;

/// Checks everything that does not depend on the prompt's length. `vocabulary` is the number of token ids.
pub(crate) fn check(request: &Request, vocabulary: usize) -> Result<(), Refusal> {
    let sampling = &request.sampling;
    within("temperature", sampling.temperature, 0.0, 100.0)?;
    within("top_p", sampling.top_p, 0.0, 1.0)?;
    if sampling.top_p == 0.0 {
        return Err(invalid("top_p", "top_p must be greater than 0; for greedy text set temperature to 0".into()));
    }
    within("min_p", sampling.min_p, 0.0, 1.0)?;
    within("repetition_penalty", sampling.repetition_penalty, 0.01, 100.0)?;
    within("presence_penalty", sampling.presence_penalty, -100.0, 100.0)?;
    within("frequency_penalty", sampling.frequency_penalty, -100.0, 100.0)?;
    if sampling.logprobs.is_some_and(|logprobs| logprobs > LOGPROBS_MAX) {
        return Err(invalid("top_logprobs", format!("at most {LOGPROBS_MAX} log-probabilities a token can be reported")));
    }
    for bias in &sampling.logit_bias {
        within("logit_bias", bias.bias, -100.0, 100.0)?;
        known("logit_bias", bias.token, vocabulary)?;
    }
    if request.stop.len() > STOPS_MAX {
        return Err(invalid("stop", format!("at most {STOPS_MAX} stop strings are possible, and {} came", request.stop.len())));
    }
    for stop in &request.stop {
        if stop.is_empty() || stop.len() > STOP_BYTES_MAX {
            return Err(invalid("stop", format!("a stop string must have 1 to {STOP_BYTES_MAX} bytes, not {}", stop.len())));
        }
    }
    if let Some(max_tokens) = request.max_tokens
        && request.min_tokens > max_tokens
    {
        let message = format!("min_tokens ({}) must not be greater than max_tokens ({max_tokens})", request.min_tokens);
        return Err(invalid("min_tokens", message));
    }
    request.resume.iter().try_for_each(|token| known("resume", *token, vocabulary))
}

/// Checks token ids that a client sent as a prompt.
pub(crate) fn check_prompt(tokens: &[u32], vocabulary: usize) -> Result<(), Refusal> {
    tokens.iter().try_for_each(|token| known("prompt", *token, vocabulary))
}

/// How many tokens the answer may have.
pub(crate) fn room(context: u32, prompt_tokens: usize, max_tokens: Option<u32>) -> Result<u32, Refusal> {
    let prompt_tokens = u32::try_from(prompt_tokens).unwrap_or(u32::MAX);
    let got = prompt_tokens.saturating_add(max_tokens.unwrap_or(1));
    if got > context {
        return Err(Refusal::TooLong { limit: context, got });
    }
    Ok(max_tokens.unwrap_or(context - prompt_tokens))
}

fn within(param: &'static str, value: f32, least: f32, most: f32) -> Result<(), Refusal> {
    // A NaN is in no range.
    if (least..=most).contains(&value) {
        Ok(())
    } else {
        Err(invalid(param, format!("{param} must be from {least} to {most}, not {value}")))
    }
}

fn known(param: &'static str, token: u32, vocabulary: usize) -> Result<(), Refusal> {
    if (token as usize) < vocabulary {
        Ok(())
    } else {
        Err(invalid(param, format!("token {token} is not in the model's vocabulary of {vocabulary}")))
    }
}

fn invalid(param: &'static str, message: String) -> Refusal {
    Refusal::Invalid { param, message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LogitBias, Prompt, Sampling, SequenceId, Tell};

    fn request(change: impl FnOnce(&mut Request)) -> Request {
        let mut request = Request {
            id: SequenceId(1),
            model: String::new(),
            prompt: Prompt::Tokens(vec![1]),
            sampling: Sampling::default(),
            max_tokens: None,
            min_tokens: 0,
            stop: Vec::new(),
            ignore_eos: false,
            resume: Vec::new(),
            tell: Tell::Nothing,
            traceparent: String::new(),
        };
        change(&mut request);
        request
    }

    fn refused(change: impl FnOnce(&mut Request)) -> &'static str {
        match check(&request(change), 10) {
            Err(Refusal::Invalid { param, .. }) => param,
            other => panic!("expected an invalid parameter, got {other:?}"),
        }
    }

    #[test]
    fn absurd_parameters_are_named() {
        assert_eq!(check(&request(|_| ()), 10), Ok(()));
        assert_eq!(refused(|r| r.sampling.temperature = -0.1), "temperature");
        assert_eq!(refused(|r| r.sampling.temperature = f32::NAN), "temperature");
        assert_eq!(refused(|r| r.sampling.top_p = 0.0), "top_p");
        assert_eq!(refused(|r| r.sampling.top_p = 1.1), "top_p");
        assert_eq!(refused(|r| r.sampling.min_p = f32::INFINITY), "min_p");
        assert_eq!(refused(|r| r.sampling.repetition_penalty = 0.0), "repetition_penalty");
        assert_eq!(refused(|r| r.sampling.presence_penalty = f32::NEG_INFINITY), "presence_penalty");
        assert_eq!(refused(|r| r.sampling.logprobs = Some(21)), "top_logprobs");
        assert_eq!(refused(|r| r.sampling.logit_bias = vec![LogitBias { token: 10, bias: 1.0 }]), "logit_bias");
        assert_eq!(refused(|r| r.stop = vec![String::new()]), "stop");
        assert_eq!(refused(|r| r.stop = vec!["x".into(); 17]), "stop");
        assert_eq!(refused(|r| r.resume = vec![10]), "resume");
        assert_eq!(refused(|r| (r.min_tokens, r.max_tokens) = (3, Some(2))), "min_tokens");
        assert!(check_prompt(&[9, 10], 10).is_err());
    }

    #[test]
    fn numbers_that_are_none_are_refused_in_every_field_with_its_range() {
        type Set = fn(&mut Sampling, f32);
        let fields: [(&str, &str, Set); 7] = [
            ("temperature", "from 0 to 100", |sampling, value| sampling.temperature = value),
            ("top_p", "from 0 to 1", |sampling, value| sampling.top_p = value),
            ("min_p", "from 0 to 1", |sampling, value| sampling.min_p = value),
            ("repetition_penalty", "from 0.01 to 100", |sampling, value| sampling.repetition_penalty = value),
            ("presence_penalty", "from -100 to 100", |sampling, value| sampling.presence_penalty = value),
            ("frequency_penalty", "from -100 to 100", |sampling, value| sampling.frequency_penalty = value),
            ("logit_bias", "from -100 to 100", |sampling, bias| sampling.logit_bias = vec![LogitBias { token: 1, bias }]),
        ];
        for (name, range, set) in fields {
            for value in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN] {
                match check(&request(|request| set(&mut request.sampling, value)), 10) {
                    Err(Refusal::Invalid { param, message }) => {
                        assert_eq!(param, name);
                        assert!(message.contains(range) && message.contains(&value.to_string()), "{message}");
                    }
                    other => panic!("{name} {value}: {other:?}"),
                }
            }
        }
    }

    #[test]
    fn a_prompt_that_leaves_no_room_is_too_long() {
        assert_eq!(room(8, 3, None), Ok(5));
        assert_eq!(room(8, 3, Some(5)), Ok(5));
        assert_eq!(room(8, 3, Some(6)), Err(Refusal::TooLong { limit: 8, got: 9 }));
        assert_eq!(room(8, 8, None), Err(Refusal::TooLong { limit: 8, got: 9 }));
        assert_eq!(room(8, 8, Some(0)), Ok(0));
        assert_eq!(room(8, usize::MAX, Some(u32::MAX)), Err(Refusal::TooLong { limit: 8, got: u32::MAX }));
    }
}
