//! What a request takes: reserved before it is asked, counted while it is answered, and written down when it is dropped.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use banyan_observe::{Place, Side, Span};
use banyan_proto::{
    QueryId,
    v1::{self, generation::Prompt},
};
use banyan_store::{Key, Record, Settlement, Wanted, unix_ms};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    answer::Event,
    caller::Caller,
    meters::{Ended, Meters, Model},
    openai::Error,
    recorder::Recorder,
    routes::Shared,
};

/// nginx's, for a client that went away before it was answered.
const CLIENT_GONE: u16 = 499;

/// A token stands for so many bytes, about, where no node said how many there were.
const TOKEN_BYTES: usize = 4;

/// Of a prompt or an answer in the request log: what a person reads, not what a model does.
const TEXT_BYTES_MAX: usize = 64 << 10;

/// What one request takes.
pub(crate) struct Tally {
    recorder: Recorder,
    meters: Arc<Meters>,
    model: Arc<Model>,
    /// Its part of a trace, and where that is: in the client's, where it is none of its own.
    span: Option<Span>,
    place: Option<Place>,
    first_token: Option<Duration>,
    record: Record,
    key: Option<Arc<Key>>,
    reserved: u64,
    begun: Instant,
    choices: Vec<Counted>,
    /// Of the prompt, until a node says.
    prompt_tokens: u32,
    per_prompt: usize,
    /// 0: nothing failed.
    failed: AtomicU16,
    /// It is another request's answer that goes on.
    silent: bool,
    /// Whether its texts are written down.
    texts: bool,
}

/// One choice.
#[derive(Clone, Default)]
struct Counted {
    completion_tokens: u32,
    prompt_tokens: Option<u32>,
    ended: bool,
    text: String,
}

impl Shared {
    /// Lets a request go on that may use so many tokens, and reserves them.
    ///
    /// # Errors
    /// When its key may not ask for the model, or has used up a limit.
    pub(crate) async fn admit(&self, caller: &Caller, model: &str, tokens: u64) -> Result<Tally, Error> {
        if !self.roots.may(caller.key.as_deref(), model) {
            let allowed = caller.key.as_ref().map_or(&[][..], |key| &key.models);
            return Err(Error::no_such_model(model, allowed.iter().map(String::as_str)));
        }
        let mut span = self.roots.tracer.begin("request", Side::Server, caller.place.as_ref());
        if let Some(span) = &mut span {
            span.set("banyan.request", caller.request_id.to_string());
            span.set("gen_ai.request.model", model.to_owned());
            caller.is_traced(span.place());
        }
        let place = span.as_ref().map(Span::place).or_else(|| caller.place.clone());
        self.meters.begun();
        let mut tally = Tally {
            recorder: self.recorder.clone(),
            meters: Arc::clone(&self.meters),
            model: self.meters.model(model, || self.roots.offers(None).iter().any(|offer| offer.id == model)),
            span,
            place,
            first_token: None,
            record: Record {
                at_ms: unix_ms(),
                request_id: caller.request_id.to_string(),
                key_id: caller.key_id().to_owned(),
                model: model.to_owned(),
                ..Record::default()
            },
            key: None,
            reserved: 0,
            begun: Instant::now(),
            choices: Vec::new(),
            prompt_tokens: 0,
            per_prompt: 1,
            failed: AtomicU16::new(0),
            silent: false,
            texts: self.log_texts,
        };
        let Some(key) = &caller.key else { return Ok(tally) };
        if key.requests_per_minute.is_none() && key.tokens_per_minute.is_none() {
            return Ok(tally);
        }
        let wanted = Wanted { requests: 1, tokens };
        let taken = match &self.store {
            Some(store) => store.take(key, wanted).await.unwrap_or_else(|error| {
                tracing::debug!(error = &error as &dyn std::error::Error, "limits counted alone");
                self.keyring.take_alone(key, wanted)
            }),
            None => self.keyring.take_alone(key, wanted),
        };
        match taken {
            Ok(standing) => {
                caller.stands(standing);
                (tally.key, tally.reserved) = (Some(Arc::clone(key)), tokens);
                Ok(tally)
            }
            Err(refused) => {
                caller.stands(refused.standing);
                self.meters.limited(refused.by_tokens);
                let error = Error::limited(refused, key);
                tally.failed(&error);
                Err(error)
            }
        }
    }
}

impl Tally {
    /// Counts choices, so many to a prompt; `prompt_bytes` is all prompts' together.
    pub(crate) fn choices(&mut self, first: QueryId, choices: usize, per_prompt: usize, prompt_bytes: usize) {
        self.record.query_id = first.to_string();
        self.choices = vec![Counted::default(); choices];
        self.per_prompt = per_prompt.max(1);
        self.prompt_tokens = u32::try_from(prompt_bytes.div_ceil(TOKEN_BYTES)).unwrap_or(u32::MAX);
    }

    /// Where what is done for it is in a trace.
    pub(crate) fn place(&self) -> Option<Place> {
        self.place.clone()
    }

    /// What is asked.
    pub(crate) fn asks(&mut self, prompts: &[Prompt]) {
        if self.texts {
            let mut told: Vec<String> = prompts.iter().map(told).collect();
            let one = if told.len() == 1 { told.remove(0) } else { Value::from(told).to_string() };
            self.record.prompt = Some(cut(one));
        }
    }

    /// Counts nothing: somebody has come back for what is counted already.
    pub(crate) fn again(&mut self) {
        self.silent = true;
    }

    /// What happened to a choice.
    pub(crate) fn note(&mut self, choice: usize, event: &Event) {
        let counted = &mut self.choices[choice];
        match event {
            Event::Placed(placed) => {
                if !placed.node.is_empty() {
                    self.record.node.clone_from(&placed.node);
                }
            }
            Event::Tokens(chunk, position) => {
                counted.completion_tokens = *position;
                if let (Some(span), None) = (&mut self.span, self.first_token) {
                    span.note("first token");
                }
                let first_token = *self.first_token.get_or_insert_with(|| self.begun.elapsed());
                self.record.first_token_ms.get_or_insert_with(|| milliseconds(first_token));
                if self.texts && counted.text.len() < TEXT_BYTES_MAX {
                    counted.text.push_str(&chunk.text);
                }
            }
            Event::End(finish) => {
                counted.completion_tokens = finish.completion_tokens;
                counted.prompt_tokens = Some(finish.prompt_tokens);
                counted.ended = true;
                if self.texts {
                    counted.text.push_str(&finish.text);
                }
            }
        }
    }

    /// A choice that generates nothing has ended.
    pub(crate) fn ended(&mut self, choice: usize, prompt_tokens: u32, placed: Option<&v1::Placed>) {
        if let Some(placed) = placed {
            self.record.node.clone_from(&placed.node);
        }
        self.choices[choice] = Counted { prompt_tokens: Some(prompt_tokens), ended: true, ..Counted::default() };
    }

    /// The request fails with this.
    pub(crate) fn failed(&self, error: &Error) {
        self.failed.store(error.code(), Ordering::Relaxed);
    }

    /// What was answered, where that is written down.
    fn answer(&mut self) -> Option<String> {
        let mut texts: Vec<String> = self.choices.iter_mut().map(|choice| std::mem::take(&mut choice.text)).collect();
        match texts.len() {
            _ if !self.texts || texts.iter().all(String::is_empty) => None,
            1 => Some(cut(texts.remove(0))),
            _ => Some(cut(Value::from(texts).to_string())),
        }
    }

    /// Tokens of all choices: of prompts, each counted once, and of answers.
    fn used(&self) -> (u32, u32) {
        let begun = self.choices.iter().any(|choice| choice.completion_tokens > 0 || choice.ended);
        let mut prompts: u32 = 0;
        for choices in self.choices.chunks(self.per_prompt) {
            prompts = prompts.saturating_add(choices.iter().find_map(|choice| choice.prompt_tokens).unwrap_or(0));
        }
        // It was read, and by nobody who could say how long it was.
        if begun && prompts == 0 {
            prompts = self.prompt_tokens;
        }
        let completions = self.choices.iter().fold(0u32, |sum, choice| sum.saturating_add(choice.completion_tokens));
        (prompts, completions)
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        let (prompt_tokens, completion_tokens) = self.used();
        let status = match self.failed.load(Ordering::Relaxed) {
            0 if self.choices.iter().all(|choice| choice.ended) => 200,
            0 => CLIENT_GONE,
            status => status,
        };
        if let Some(span) = &mut self.span {
            span.set("http.response.status_code", i64::from(status));
            span.set("gen_ai.usage.input_tokens", i64::from(prompt_tokens));
            span.set("gen_ai.usage.output_tokens", i64::from(completion_tokens));
            if status >= 500 {
                span.fail("");
            }
        }
        self.meters.ended(
            &self.model,
            &Ended {
                silent: self.silent,
                status,
                prompt_tokens,
                output_tokens: completion_tokens,
                alone: self.choices.len() == 1,
                first_token: self.first_token,
                whole: self.begun.elapsed(),
            },
        );
        if self.silent {
            return;
        }
        let settlement = self.key.take().map(|key| Settlement {
            key,
            reserved: self.reserved,
            used: u64::from(prompt_tokens) + u64::from(completion_tokens),
        });
        let answer = self.answer();
        let record = std::mem::take(&mut self.record);
        let total_ms = milliseconds(self.begun.elapsed());
        self.recorder.write(Record { prompt_tokens, completion_tokens, total_ms, status, settlement, answer, ..record });
    }
}

/// A prompt as it came.
fn told(prompt: &Prompt) -> String {
    match prompt {
        Prompt::Text(text) => text.clone(),
        Prompt::Tokens(tokens) => Value::from(tokens.ids.clone()).to_string(),
        Prompt::Chat(chat) => {
            let one = |message: &v1::Message| json!({ "role": message.role, "content": message.content });
            chat.messages.iter().map(one).collect::<Value>().to_string()
        }
    }
}

fn cut(mut text: String) -> String {
    if text.len() > TEXT_BYTES_MAX {
        text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
        text.push('…');
    }
    text
}

fn milliseconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}
