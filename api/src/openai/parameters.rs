//! The parameters that both endpoints share: read, checked against their ranges, and turned into what a node is asked.

use std::time::Duration;

use banyan_proto::v1;
use serde_json::{Value, json};

use super::{
    Error,
    field::{Boolean, Documented, Field, Integer, Number, Other, Text},
    fields::{Fields, expected, whole},
};

/// No context that we know of is longer.
const TOKENS_MAX: i64 = 10_000_000;

/// As many as clients of several services use; each is compared at every token.
const STOPS_MAX: usize = 16;
const STOP_BYTES_MAX: usize = 512;

/// OpenAI's own is lower; each entry is added at every token.
const BIASES_MAX: usize = 1024;

/// OpenAI's.
pub(super) const TOP_LOGPROBS_MAX: i64 = 20;

/// Choices of one request, `n` times the number of prompts: about as many as the largest engine runs together.
pub(crate) const CHOICES_MAX: usize = 64;

/// An hour: who waits longer for one answer has gone away.
const DEADLINE_MAX_MS: i64 = 3_600_000;

/// Longer ones name no model.
const MODEL_BYTES_MAX: usize = 256;
const USER_BYTES_MAX: usize = 512;

/// What a request for anything says.
pub(super) static COMMON: &[&dyn Documented] = &[&MODEL, &USER, &DEADLINE_MS, &PRIORITY];

/// What both endpoints that generate have in common, beside that.
pub(super) static GENERATING: &[&dyn Documented] = &[
    &MAX_TOKENS,
    &MAX_COMPLETION_TOKENS,
    &MIN_TOKENS,
    &TEMPERATURE,
    &TOP_P,
    &TOP_K,
    &MIN_P,
    &REPETITION_PENALTY,
    &PRESENCE_PENALTY,
    &FREQUENCY_PENALTY,
    &LOGIT_BIAS,
    &STOP,
    &IGNORE_EOS,
    &SEED,
    &N,
    &STREAM,
    &STREAM_OPTIONS,
    &RESUMABLE,
    &PLACES,
];

static MODEL: Field<Text> =
    Field { name: "model", holds: Text(1..=MODEL_BYTES_MAX), about: "One of those that GET /v1/models lists." };
static USER: Field<Text> = Field { name: "user", holds: Text(0..=USER_BYTES_MAX), about: "Taken, and not used." };
static DEADLINE_MS: Field<Integer> = Field {
    name: "deadline_ms",
    holds: Integer(1..=DEADLINE_MAX_MS),
    about: "Ours. How long the answer may take; what can't be complete by then ends with 504.",
};
static PRIORITY: Field<Integer> = Field {
    name: "priority",
    holds: Integer(-100..=100),
    about: "Ours. Higher goes first among the caller's own requests: a point is worth a second of waiting. 0 by default.",
};
static MAX_TOKENS: Field<Integer> = Field {
    name: "max_tokens",
    holds: Integer(0..=TOKENS_MAX),
    about: "Tokens to generate at most. By default as many as the context holds (chats), or 16 (completions). 0 goes with \"echo\": true \
            only.",
};
static MAX_COMPLETION_TOKENS: Field<Integer> =
    Field { name: "max_completion_tokens", holds: Integer(0..=TOKENS_MAX), about: "The newer name of max_tokens." };
static MIN_TOKENS: Field<Integer> = Field {
    name: "min_tokens",
    holds: Integer(0..=TOKENS_MAX),
    about: "Ours. No end of text and no stop string counts before that many; at most max_tokens.",
};
static TEMPERATURE: Field<Number> =
    Field { name: "temperature", holds: Number(0.0..=2.0), about: "0 takes the likeliest token each time. 1 by default." };
static TOP_P: Field<Number> = Field {
    name: "top_p",
    holds: Number(0.0..=1.0),
    about: "Draws from the fewest tokens that have this probability together; 0 is refused. 1, the default, is off.",
};
static TOP_K: Field<Integer> = Field {
    name: "top_k",
    // −1 means off to vLLM's clients, 0 to everybody else's.
    holds: Integer(-1..=1_000_000),
    about: "Ours. Draws from so many of the likeliest tokens. 0, the default, and -1 are off.",
};
static MIN_P: Field<Number> = Field {
    name: "min_p",
    holds: Number(0.0..=1.0),
    about: "Ours. Draws from tokens with at least this share of the likeliest one's probability. 0, the default, is off.",
};
static REPETITION_PENALTY: Field<Number> = Field {
    name: "repetition_penalty",
    holds: Number(0.1..=10.0),
    about: "Ours. Divides the logits of tokens that stand in prompt or answer (arXiv:1909.05858). 1, the default, is off.",
};
static PRESENCE_PENALTY: Field<Number> = Field {
    name: "presence_penalty",
    holds: Number(-2.0..=2.0),
    about: "Taken once from the logits of tokens that stand in the answer. 0 by default.",
};
static FREQUENCY_PENALTY: Field<Number> = Field {
    name: "frequency_penalty",
    holds: Number(-2.0..=2.0),
    about: "Taken from the logits of tokens as often as they stand in the answer. 0 by default.",
};
static LOGIT_BIAS: Field<Other> =
    Field { name: "logit_bias", holds: Other(biases_schema), about: "Added to the logits of tokens, by their ids." };
static STOP: Field<Other> =
    Field { name: "stop", holds: Other(stops_schema), about: "Texts that end the answer and are no part of it." };
static IGNORE_EOS: Field<Boolean> =
    Field { name: "ignore_eos", holds: Boolean, about: "Ours. Goes on behind the end of text. False by default." };
static SEED: Field<Other> = Field {
    name: "seed",
    holds: Other(|| json!({ "type": "integer", "minimum": i64::MIN, "maximum": u64::MAX })),
    about: "64 bits, signed or not. The same request with the same seed gets the same answer from models of one fingerprint.",
};
static N: Field<Integer> =
    Field { name: "n", holds: Integer(1..=CHOICES_MAX as i64), about: "Choices for each prompt. 1 by default." };
static STREAM: Field<Boolean> =
    Field { name: "stream", holds: Boolean, about: "Whether tokens come as they are generated, as server-sent events." };
static STREAM_OPTIONS: Field<Other> = Field {
    name: "stream_options",
    holds: Other(|| json!({ "type": "object", "properties": { INCLUDE_USAGE.name: INCLUDE_USAGE.schema() } })),
    about: "Goes with \"stream\": true only.",
};
static INCLUDE_USAGE: Field<Boolean> =
    Field { name: "include_usage", holds: Boolean, about: "One more event before the end, with the counts of tokens." };
static RESUMABLE: Field<Boolean> = Field {
    name: "resumable",
    holds: Boolean,
    about: "Ours. A stream that goes on for a while when its connection ends: come back with Last-Event-ID, or end it with DELETE.",
};

static PLACES: Field<Boolean> = Field {
    name: "places",
    holds: Boolean,
    about: "Ours. A stream begins while its answer still waits, and tells its place in the queue: events without choices, with banyan.place.",
};

/// What both endpoints have in common.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Parameters {
    pub(crate) model: String,
    /// All but the prompt and the choice's own seed.
    pub(crate) generation: v1::Generation,
    pub(crate) seed: u64,
    /// Choices per prompt.
    pub(crate) n: usize,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
    /// A stream that goes on for a while when its connection ends, until its client comes back, or ends it.
    pub(crate) resumable: bool,
    /// It begins while it waits, and says where.
    pub(crate) places: bool,
    /// `None`: the API's default.
    pub(crate) deadline: Option<Duration>,
    /// `None`: nobody said.
    pub(crate) priority: Option<i32>,
}

impl Parameters {
    /// Those of a request that says nothing.
    pub(crate) fn of(model: String) -> Self {
        let sampling = v1::Sampling { temperature: 1.0, top_p: 1.0, repetition_penalty: 1.0, ..Default::default() };
        Parameters {
            model,
            generation: v1::Generation { sampling: Some(sampling), ..Default::default() },
            seed: rand::random(),
            n: 1,
            stream: false,
            include_usage: false,
            resumable: false,
            places: false,
            deadline: None,
            priority: None,
        }
    }

    /// # Errors
    /// When one is missing, of the wrong type, beyond its range, or not offered.
    pub(super) fn read(fields: &mut Fields) -> Result<Self, Error> {
        let mut read = Parameters::common(fields)?;
        read.seed(fields)?;
        read.lengths(fields)?;
        read.generation.stop = stops(fields)?;
        read.generation.ignore_eos = fields.boolean(&IGNORE_EOS)?.unwrap_or(false);
        read.generation.sampling = Some(sampling(fields)?);
        read.n = fields.integer(&N)?.unwrap_or(1) as usize;
        read.stream = fields.boolean(&STREAM)?.unwrap_or(false);
        if let Some(mut options) = fields.object(&STREAM_OPTIONS)? {
            if !read.stream {
                return Err(Error::parameter("stream_options", "'stream_options' goes with \"stream\": true only"));
            }
            read.include_usage = options.boolean(&INCLUDE_USAGE)?.unwrap_or(false);
        }
        read.resumable = fields.boolean(&RESUMABLE)?.unwrap_or(false);
        read.places = fields.boolean(&PLACES)?.unwrap_or(false);
        Ok(read)
    }

    /// Those of a request that generates nothing.
    ///
    /// # Errors
    /// As [`read`](Self::read) has them.
    pub(super) fn common(fields: &mut Fields) -> Result<Self, Error> {
        let Some(model) = fields.text(&MODEL)? else {
            return Err(Error::parameter("model", "'model' is missing: name one of those that GET /v1/models lists"));
        };
        let mut read = Parameters::of(model);
        read.deadline = fields.integer(&DEADLINE_MS)?.map(|ms| Duration::from_millis(ms.unsigned_abs()));
        read.priority = fields.integer(&PRIORITY)?.map(|priority| priority as i32);
        // Checked, so that a wrong one is noticed now; it names nobody until keys do.
        fields.text(&USER)?;
        Ok(read)
    }

    /// Nothing may be generated where that is of use only.
    pub(super) fn generates(&self) -> Result<(), Error> {
        match self.generation.prompt_only {
            false => Ok(()),
            true => Err(Error::parameter(MAX_TOKENS.name, "'max_tokens' must be at least 1; 0 goes with \"echo\": true only")),
        }
    }

    /// What the `choice`-th of a prompt's choices is asked. Equal seeds give equal answers, so each choice has its own.
    pub(crate) fn generation(&self, prompt: v1::generation::Prompt, choice: usize) -> v1::Generation {
        let mut generation = self.generation.clone();
        generation.prompt = Some(prompt);
        generation.sampling.get_or_insert_default().seed = seed_of(self.seed, choice as u64);
        generation
    }

    pub(super) fn sampling_mut(&mut self) -> &mut v1::Sampling {
        self.generation.sampling.get_or_insert_default()
    }

    fn seed(&mut self, fields: &mut Fields) -> Result<(), Error> {
        if let Some(value) = fields.other(&SEED) {
            // Both halves of 64 bits: some clients draw signed seeds, others unsigned ones.
            let seed = value.as_u64().or_else(|| whole(&value).map(i64::cast_unsigned));
            self.seed = seed.ok_or_else(|| expected("seed", &"an integer of 64 bits", &value))?;
        }
        Ok(())
    }

    fn lengths(&mut self, fields: &mut Fields) -> Result<(), Error> {
        let old = fields.integer(&MAX_TOKENS)?;
        let new = fields.integer(&MAX_COMPLETION_TOKENS)?;
        if let (Some(old), Some(new)) = (old, new)
            && old != new
        {
            let message = "'max_completion_tokens' and 'max_tokens' differ: leave 'max_tokens' out";
            return Err(Error::parameter("max_tokens", message));
        }
        let most = new.or(old);
        self.generation.max_tokens = most.unwrap_or(0) as u32;
        self.generation.prompt_only = most == Some(0);
        let least = fields.integer(&MIN_TOKENS)?.unwrap_or(0);
        if most.is_some_and(|most| least > most) {
            return Err(Error::parameter(MIN_TOKENS.name, "'min_tokens' must not be more than 'max_tokens'"));
        }
        self.generation.min_tokens = least as u32;
        Ok(())
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014); the first choice keeps the seed, so that `n` does not change it.
fn seed_of(seed: u64, choice: u64) -> u64 {
    if choice == 0 {
        return seed;
    }
    let mut z = seed.wrapping_add(choice.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn sampling(fields: &mut Fields) -> Result<v1::Sampling, Error> {
    let mut number = |field, default| fields.number(field).map(|number| number.unwrap_or(default) as f32);
    Ok(v1::Sampling {
        temperature: number(&TEMPERATURE, 1.0)?,
        top_p: number(&TOP_P, 1.0)?,
        min_p: number(&MIN_P, 0.0)?,
        repetition_penalty: number(&REPETITION_PENALTY, 1.0)?,
        presence_penalty: number(&PRESENCE_PENALTY, 0.0)?,
        frequency_penalty: number(&FREQUENCY_PENALTY, 0.0)?,
        top_k: fields.integer(&TOP_K)?.unwrap_or(0).max(0) as u32,
        logit_bias: biases(fields)?,
        ..Default::default()
    })
}

fn stops(fields: &mut Fields) -> Result<Vec<String>, Error> {
    let wrong = |value: &Value| {
        let what = format_args!("a string, or a list of at most {STOPS_MAX} strings, each of 1 to {STOP_BYTES_MAX} bytes");
        expected("stop", &what, value)
    };
    let Some(value) = fields.other(&STOP) else { return Ok(Vec::new()) };
    let texts = match &value {
        Value::Array(texts) if texts.len() <= STOPS_MAX => texts.as_slice(),
        Value::String(_) => std::slice::from_ref(&value),
        _ => return Err(wrong(&value)),
    };
    let one = |text: &Value| match text.as_str() {
        Some(text) if (1..=STOP_BYTES_MAX).contains(&text.len()) => Ok(text.to_owned()),
        _ => Err(wrong(text)),
    };
    texts.iter().map(one).collect()
}

fn stops_schema() -> Value {
    let one = json!({ "type": "string", "minLength": 1, "maxLength": STOP_BYTES_MAX });
    json!({ "anyOf": [one, { "type": "array", "maxItems": STOPS_MAX, "items": one }] })
}

fn biases_schema() -> Value {
    let bias = json!({ "type": "number", "minimum": -100, "maximum": 100 });
    json!({
        "type": "object", "maxProperties": BIASES_MAX, "patternProperties": { "^[0-9]{1,9}$": bias }, "additionalProperties": false,
    })
}

fn biases(fields: &mut Fields) -> Result<Vec<v1::LogitBias>, Error> {
    let Some(value) = fields.other(&LOGIT_BIAS) else { return Ok(Vec::new()) };
    let wrong = || {
        let message = format!("'logit_bias' must map at most {BIASES_MAX} token ids to numbers from -100 to 100");
        Error::parameter("logit_bias", message)
    };
    let entries = value.as_object().filter(|entries| entries.len() <= BIASES_MAX).ok_or_else(wrong)?;
    let one = |(token, bias): (&String, &Value)| {
        let token = token.parse().map_err(|_| wrong())?;
        let bias = bias.as_f64().filter(|bias| (-100.0..=100.0).contains(bias)).ok_or_else(wrong)?;
        Ok(v1::LogitBias { token, bias: bias as f32 })
    };
    entries.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn read(mut body: Value) -> Result<Parameters, String> {
        body["model"] = json!("m");
        let mut fields = Fields::parse(body.to_string().as_bytes()).unwrap();
        Parameters::read(&mut fields).map_err(|error| serde_json::to_string(&error.shape()).unwrap())
    }

    #[test]
    fn defaults_are_openais() {
        let parameters = read(json!({})).unwrap();
        let sampling = parameters.generation.sampling.as_ref().unwrap();
        assert_eq!((sampling.temperature, sampling.top_p, sampling.top_k), (1.0, 1.0, 0));
        assert_eq!((sampling.min_p, sampling.repetition_penalty, sampling.presence_penalty), (0.0, 1.0, 0.0));
        assert_eq!((parameters.n, parameters.stream, parameters.generation.max_tokens), (1, false, 0));
    }

    #[test]
    fn everything_arrives_where_the_node_reads_it() {
        let parameters = read(json!({
            "temperature": 0, "top_p": 0.5, "top_k": 40, "min_p": 0.1, "seed": -1, "stop": ["a", "b"], "max_completion_tokens": 9,
            "min_tokens": 2, "repetition_penalty": 1.5, "presence_penalty": -2, "frequency_penalty": 2, "ignore_eos": true,
            "logit_bias": {"50256": -100}, "n": 3, "stream": true, "stream_options": {"include_usage": true},
            "deadline_ms": 1500, "priority": -3, "user": "me", "unheard_of": {"x": 1},
        }))
        .unwrap();
        let generation = parameters.generation(v1::generation::Prompt::Text("p".into()), 0);
        let sampling = generation.sampling.unwrap();
        assert_eq!((sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p), (0.0, 0.5, 40, 0.1));
        assert_eq!((sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty), (1.5, -2.0, 2.0));
        assert_eq!((sampling.seed, sampling.logit_bias), (u64::MAX, vec![v1::LogitBias { token: 50256, bias: -100.0 }]));
        assert_eq!((generation.max_tokens, generation.min_tokens, generation.ignore_eos), (9, 2, true));
        assert_eq!(generation.stop, ["a", "b"]);
        assert_eq!((parameters.n, parameters.stream, parameters.include_usage, parameters.priority), (3, true, true, Some(-3)));
        assert_eq!(parameters.deadline, Some(Duration::from_millis(1500)));
    }

    #[test]
    fn absurd_values_are_refused_by_name() {
        for (param, value) in [
            ("temperature", json!(2.1)),
            ("temperature", json!("hot")),
            ("top_p", json!(-0.1)),
            ("top_k", json!(-2)),
            ("min_p", json!(1.5)),
            ("repetition_penalty", json!(0)),
            ("presence_penalty", json!(3)),
            ("frequency_penalty", json!(-3)),
            ("max_tokens", json!(-1)),
            ("max_tokens", json!(1e18)),
            ("max_completion_tokens", json!(-1)),
            ("min_tokens", json!(-1)),
            ("n", json!(0)),
            ("n", json!(65)),
            ("seed", json!(0.5)),
            ("seed", json!("1")),
            ("stop", json!([""])),
            ("stop", json!(vec!["x"; 17])),
            ("stop", json!({})),
            ("logit_bias", json!({"a": 1})),
            ("logit_bias", json!({"1": 101})),
            ("logit_bias", json!([1])),
            ("ignore_eos", json!(1)),
            ("stream", json!("yes")),
            ("stream_options", json!({"include_usage": true})),
            ("deadline_ms", json!(0)),
            ("priority", json!(1000)),
            ("user", json!(5)),
        ] {
            let error = read(json!({ param: value.clone() })).expect_err(&format!("{param} {value}"));
            assert!(error.contains(&format!("\"param\":\"{param}\"")), "{param} {value}: {error}");
        }
        assert!(read(json!({ "max_tokens": 3, "max_completion_tokens": 4 })).is_err());
        assert!(read(json!({ "max_tokens": 3, "min_tokens": 4 })).is_err());
        let none = read(json!({ "max_tokens": 0 })).unwrap();
        assert!(none.generation.prompt_only && none.generates().is_err());
    }

    #[test]
    fn choices_have_seeds_of_their_own_and_keep_them() {
        let parameters = read(json!({ "seed": 7 })).unwrap();
        let seed = |choice| parameters.generation(v1::generation::Prompt::Text(String::new()), choice).sampling.unwrap().seed;
        assert_eq!(seed(0), 7);
        let all: std::collections::BTreeSet<u64> = (0..64).map(seed).collect();
        assert_eq!(all.len(), 64);
        assert_eq!(seed(5), seed(5));
    }

    proptest! {
        #[test]
        fn whatever_is_sent_is_read_or_refused(name in "temperature|top_p|top_k|seed|stop|n|logit_bias|max_tokens|stream_options",
            value in r#"-?[0-9]{1,22}(\.[0-9]{1,4})?(e-?[0-9]{1,2})?|true|null|\[\]|\{\}|"[a-z]{0,9}"|\[[0-9]+,"a"\]|\{"1":[0-9]+\}"#) {
            let body = format!(r#"{{"model":"m","{name}":{value}}}"#);
            if let Ok(mut fields) = Fields::parse(body.as_bytes()) {
                let _ = Parameters::read(&mut fields);
            }
        }
    }
}
