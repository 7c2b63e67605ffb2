//! The wire's messages to our types and back. Decides nothing.

use std::sync::Arc;

use banyan_engine as engine;
use banyan_proto::{Attempt, NodeName, QueryId, v1};
use prost::Message as _;

use crate::{
    capacity::Capacity,
    ledger::{self, Failure, Hop, Outcome, Overload, State, Why},
    router::{Because, Choice, Service, Ticket},
};

/// The largest number of alternatives with a token's log-probability, as in OpenAI's API.
const TOP_LOGPROBS_MAX: u32 = 20;

/// What the router needs of a query.
pub(crate) fn ticket(header: &v1::Header) -> Option<Ticket> {
    Some(Ticket {
        id: QueryId::from_wire(&header.id).ok()?,
        attempt: header.attempt?.into(),
        model: header.model.as_str().into(),
        prefer: header.prefer.parse().ok(),
        hops: header.trail.len() as u32,
        avoid: None,
    })
}

/// A question's header, where it can be read.
pub(crate) fn header(question: &v1::Question) -> Option<v1::Header> {
    v1::Header::decode(question.header.clone()).ok()
}

/// Which query it is about.
pub(crate) fn asked_id(question: &v1::Question) -> Option<QueryId> {
    QueryId::from_wire(&header(question)?.id).ok()
}

/// What the ledger needs of a question.
pub(crate) fn asked(header: &v1::Header, question: &v1::Question) -> Option<ledger::Asked> {
    Some(ledger::Asked {
        id: QueryId::from_wire(&header.id).ok()?,
        owner: header.owner.as_str().into(),
        model: header.model.as_str().into(),
        priority: header.priority,
        prefer: header.prefer.parse().ok(),
        tokens_max: header.tokens_max,
        bytes: question.payload.len(),
        time_us: header.remaining_ms.saturating_mul(1000),
        returning: header.returning,
        impatient: header.impatient,
    })
}

/// Models with longer names, or more of them than this on one engine, are nobody's honest report.
const MODEL_NAME_BYTES_MAX: usize = 256;
const MODELS_PER_ENGINE_MAX: usize = 64;

pub(crate) fn capacity(wire: v1::Capacity) -> Capacity {
    let named = wire.models.into_iter().filter(|model| model.len() <= MODEL_NAME_BYTES_MAX);
    let mut models: Vec<Arc<str>> = named.take(MODELS_PER_ENGINE_MAX).map(Arc::from).collect();
    models.sort();
    Capacity { models, room: wire.room, queue: wire.queue, slots: wire.slots }
}

pub(crate) fn capacity_to_wire(capacity: &Capacity) -> v1::Capacity {
    let models = capacity.models.iter().map(|model| model.to_string()).collect();
    v1::Capacity { models, room: capacity.room, queue: capacity.queue, slots: capacity.slots }
}

pub(crate) fn service(wire: v1::Service) -> Service {
    Service { busy_us: wire.busy_us, tokens: wire.tokens, answered: wire.answered, failed: wire.failed }
}

pub(crate) fn trail(wire: Vec<v1::Hop>) -> Vec<Hop> {
    wire.into_iter().map(|hop| Hop { node: hop.node, reason: hop.reason, spent_us: hop.spent_us }).collect()
}

pub(crate) fn trail_to_wire(trail: &[Hop]) -> Vec<v1::Hop> {
    trail.iter().map(|hop| v1::Hop { node: hop.node.clone(), reason: hop.reason, spent_us: hop.spent_us }).collect()
}

pub(crate) fn reference(id: QueryId, attempt: Attempt) -> v1::QueryRef {
    v1::QueryRef { id: id.to_wire(), attempt: Some(attempt.into()) }
}

pub(crate) fn read_reference(wire: &v1::QueryRef) -> Option<(QueryId, Attempt)> {
    Some((QueryId::from_wire(&wire.id).ok()?, wire.attempt?.into()))
}

pub(crate) fn part(id: QueryId, attempt: Attempt, kind: v1::part::Kind) -> v1::Part {
    v1::Part { id: id.to_wire(), attempt: Some(attempt.into()), kind: Some(kind) }
}

pub(crate) fn reason_of_choice(choice: Choice) -> v1::Reason {
    match choice {
        Choice::Preferred => v1::Reason::Preferred,
        Choice::Room => v1::Reason::ChildWithRoom,
        Choice::Turn => v1::Reason::RoundRobin,
    }
}

pub(crate) fn reason_of_why(why: Why) -> v1::Reason {
    match why {
        Why::New => v1::Reason::Waited,
        Why::Recalled => v1::Reason::Recalled,
        Why::Returned => v1::Reason::Returned,
        Why::Lost => v1::Reason::Lost,
        Why::Refused => v1::Reason::Refused,
        Why::Adopted => v1::Reason::Adopted,
    }
}

/// The engine's request for a query, or why there can't be one.
pub(crate) fn request(id: engine::SequenceId, query: &v1::Query) -> Result<engine::Request, v1::Failed> {
    let unreadable = |what: &str| invalid("", format!("the query's payload is not readable: {what}"));
    let generation = v1::Generation::decode(query.payload.clone()).map_err(|error| unreadable(&error.to_string()))?;
    let tell = match generation.tell() {
        v1::Tell::Nothing => engine::Tell::Nothing,
        v1::Tell::Echo => engine::Tell::Echo,
        v1::Tell::Embedding => engine::Tell::Embedding,
    };
    let prompt = match generation.prompt {
        Some(v1::generation::Prompt::Text(text)) => engine::Prompt::Text(text),
        Some(v1::generation::Prompt::Tokens(tokens)) => engine::Prompt::Tokens(tokens.ids),
        Some(v1::generation::Prompt::Chat(chat)) => engine::Prompt::Chat(
            chat.messages.into_iter().map(|message| engine::Message { role: message.role, content: message.content }).collect(),
        ),
        None => return Err(invalid("prompt", "there is no prompt".to_owned())),
    };
    let wire = generation.sampling.unwrap_or_default();
    if wire.top_logprobs > TOP_LOGPROBS_MAX {
        return Err(invalid("top_logprobs", format!("top_logprobs is at most {TOP_LOGPROBS_MAX}")));
    }
    let sampling = engine::Sampling {
        temperature: wire.temperature,
        top_p: wire.top_p,
        top_k: wire.top_k,
        min_p: wire.min_p,
        repetition_penalty: wire.repetition_penalty,
        presence_penalty: wire.presence_penalty,
        frequency_penalty: wire.frequency_penalty,
        seed: wire.seed,
        logprobs: wire.logprobs.then_some(wire.top_logprobs as u8),
        logit_bias: wire.logit_bias.into_iter().map(|one| engine::LogitBias { token: one.token, bias: one.bias }).collect(),
    };
    Ok(engine::Request {
        id,
        model: query.header.as_ref().map(|header| header.model.clone()).unwrap_or_default(),
        prompt,
        sampling,
        max_tokens: (generation.max_tokens > 0 || generation.prompt_only).then_some(generation.max_tokens),
        min_tokens: generation.min_tokens,
        stop: generation.stop,
        ignore_eos: generation.ignore_eos,
        resume: query.delivered.clone(),
        tell,
        traceparent: query.header.as_ref().map(|header| header.traceparent.clone()).unwrap_or_default(),
    })
}

/// What an engine's output says to the root; nothing for outputs that are the node's own affair.
pub(crate) fn part_kind(output: engine::Output, served: Option<&engine::Served>) -> Option<v1::part::Kind> {
    use v1::part::Kind;
    Some(match output {
        engine::Output::Cancelled { .. } => return None,
        // Until then it waited in the engine, which is no progress of its own.
        engine::Output::Started { .. } | engine::Output::Progress { .. } => Kind::Progress(v1::Progress {}),
        engine::Output::Tokens { position, tokens, text, logprobs, told, .. } => {
            let logprobs = logprobs.into_iter().map(logprob).collect();
            let chunk = v1::Chunk { text, logprobs, told: told.map(self::told) }.encode_to_vec().into();
            Kind::Tokens(v1::Tokens { position, ids: tokens, chunk })
        }
        engine::Output::Finished { reason, text, usage, told, .. } => {
            let reason = match reason {
                engine::FinishReason::Stop => v1::FinishReason::Stop,
                engine::FinishReason::Length => v1::FinishReason::Length,
            };
            let finish = v1::Finish {
                reason: reason.into(),
                prompt_tokens: usage.prompt_tokens,
                completion_tokens: usage.completion_tokens,
                cached_tokens: usage.cached_tokens,
                text,
                model: served.map(|served| served.model.clone()).unwrap_or_default(),
                fingerprint: served.map(|served| served.fingerprint.clone()).unwrap_or_default(),
                told: told.map(self::told),
            };
            Kind::Finished(v1::End { finish: finish.encode_to_vec().into() })
        }
        engine::Output::Refused { refusal, .. } => {
            let reason = match &refusal {
                engine::Refusal::Engine(_) => v1::RefusedReason::Engine,
                engine::Refusal::Busy(_) => v1::RefusedReason::Busy,
                engine::Refusal::TooLong { .. } | engine::Refusal::Invalid { .. } | engine::Refusal::Broken(_) => {
                    v1::RefusedReason::Failed
                }
            };
            Kind::Refused(v1::Refused { reason: reason.into(), failed: Some(refusal_to_wire(refusal)), trail: Vec::new() })
        }
    })
}

/// The node's no that ends a query.
pub(crate) fn refused(failed: v1::Failed, trail: Vec<v1::Hop>) -> v1::part::Kind {
    v1::part::Kind::Refused(v1::Refused { reason: v1::RefusedReason::Failed.into(), failed: Some(failed), trail })
}

/// The node's no that sends a query elsewhere.
pub(crate) fn refused_busy(because: Because, trail: Vec<v1::Hop>) -> v1::part::Kind {
    let message = format!("{because:?}").to_lowercase();
    let failed = v1::Failed { reason: v1::Failure::Overloaded.into(), message, ..Default::default() };
    v1::part::Kind::Refused(v1::Refused { reason: v1::RefusedReason::Busy.into(), failed: Some(failed), trail })
}

fn refusal_to_wire(refusal: engine::Refusal) -> v1::Failed {
    let message = refusal.to_string();
    match refusal {
        engine::Refusal::TooLong { limit, got } => {
            v1::Failed { reason: v1::Failure::TooLong.into(), message, limit, got, ..Default::default() }
        }
        engine::Refusal::Invalid { param, .. } => invalid(param, message),
        engine::Refusal::Busy(_) => v1::Failed { reason: v1::Failure::Overloaded.into(), message, ..Default::default() },
        engine::Refusal::Engine(_) | engine::Refusal::Broken(_) => {
            v1::Failed { reason: v1::Failure::Engine.into(), message, ..Default::default() }
        }
    }
}

fn invalid(param: &str, message: String) -> v1::Failed {
    v1::Failed { reason: v1::Failure::Invalid.into(), message, param: param.to_owned(), ..Default::default() }
}

fn told(told: engine::Told) -> v1::Told {
    match told {
        engine::Told::Echo { text, logprobs } => {
            v1::Told { text, logprobs: logprobs.into_iter().map(logprob).collect(), embedding: Vec::new() }
        }
        engine::Told::Embedding(embedding) => v1::Told { embedding, ..v1::Told::default() },
    }
}

fn logprob(one: engine::TokenLogprob) -> v1::TokenLogprob {
    let top = one.top.into_iter().map(|(token, bytes, logprob)| v1::TokenLogprob {
        token,
        bytes: bytes.into(),
        logprob,
        top: Vec::new(),
    });
    v1::TokenLogprob { token: one.token, bytes: one.bytes.into(), logprob: one.logprob, top: top.collect() }
}

/// What the client is told; `said` is what the node itself said.
pub(crate) fn failed(failure: Failure, said: Option<v1::Failed>) -> v1::Failed {
    let of = |reason: v1::Failure, message: &str| v1::Failed {
        reason: reason.into(),
        message: message.to_owned(),
        ..Default::default()
    };
    match failure {
        Failure::Overloaded { because, retry_after_ms, kept } => {
            v1::Failed { retry_after_ms, kept, ..of(v1::Failure::Overloaded, &overloaded(because, retry_after_ms, kept)) }
        }
        Failure::UnknownModel { served } => v1::Failed {
            models: served.iter().map(|model| model.to_string()).collect(),
            ..of(v1::Failure::UnknownModel, "no node of the tree serves this model now")
        },
        Failure::NoPlace => {
            let message = "no node that serves this model has a place for the query now";
            v1::Failed { retry_after_ms: 1000, ..of(v1::Failure::Overloaded, message) }
        }
        Failure::Unserved => v1::Failed {
            retry_after_ms: 1000,
            ..of(v1::Failure::NoNode, "the nodes that served this model are away, and none came back in time")
        },
        Failure::Deadline => of(v1::Failure::Deadline, "the query's deadline passed before its answer was complete"),
        Failure::Hopeless { wait_ms } => of(
            v1::Failure::Deadline,
            &format!(
                "the query would have waited {} s more, beyond its deadline: allow more with deadline_ms, or ask when there is less to do",
                wait_ms.div_ceil(1000)
            ),
        ),
        Failure::Poison => {
            let because = said.map(|said| format!(": {}", said.message)).unwrap_or_default();
            of(
                v1::Failure::Poison,
                &format!("two nodes died or failed while they ran this query, so it is not tried again{because}"),
            )
        }
        Failure::Broken => of(v1::Failure::Engine, "the provider's answer broke off, and nobody can continue it: ask again"),
        Failure::Abandoned => of(v1::Failure::Cancelled, "its client left and did not come back for it"),
        Failure::Holder => said.unwrap_or_else(|| of(v1::Failure::Engine, "the node refused the query without a reason")),
    }
}

fn overloaded(because: Overload, retry_after_ms: u64, kept: bool) -> String {
    let seconds = retry_after_ms.div_ceil(1000);
    let why = match because {
        Overload::Lanes => "the tree is full, and so is what may wait for it".to_owned(),
        Overload::Memory => "the queries under way take all the memory that they may".to_owned(),
        Overload::Deadline { wait_ms } => {
            format!("{} s of work are ahead of this query, more than its deadline allows", wait_ms.div_ceil(1000))
        }
    };
    let advice = match kept {
        true => format!("send the same request again in {seconds} s, a place is kept for it"),
        false => format!("more than {seconds} s of work are promised to others: ask later, or have nodes added"),
    };
    format!("{why}: {advice}")
}

/// An engine's figures.
pub(crate) fn kv(stats: engine::scheduler::Stats) -> v1::Kv {
    v1::Kv {
        pages: stats.pages,
        pages_held: stats.pages_held,
        pages_cached: stats.pages_cached,
        pages_evicted: stats.pages_evicted,
        tokens_looked_up: stats.tokens_looked_up,
        tokens_reused: stats.tokens_reused,
        preemptions: stats.preemptions,
        tokens_drafted: stats.tokens_drafted,
        tokens_accepted: stats.tokens_accepted,
    }
}

/// How a provider's key stands.
pub(crate) fn account(account: engine::Account) -> v1::Account {
    v1::Account {
        upstream: account.upstream,
        key: account.key,
        running: account.running,
        requests: account.requests,
        requests_max: account.requests_max,
        tokens: account.tokens,
        tokens_max: account.tokens_max,
        reset_ms: account.reset_ms,
        spent: account.spent,
        budget: account.budget,
        budget_reset_ms: account.budget_reset_ms,
        failures: account.failures,
        cooling_ms: account.cooling_ms,
        error: account.error,
    }
}

/// The way of a query, for `why`.
pub(crate) fn way(way: &ledger::Way) -> v1::Way {
    v1::Way {
        id: way.id.to_string(),
        model: way.model.to_string(),
        owner: way.owner.to_string(),
        state: match (way.state, way.outcome) {
            (State::Waiting, _) => "waiting",
            (State::Sent, _) => "sent",
            (State::Queued, _) => "queued",
            (State::Running, _) => "running",
            (State::Ended, Some(Outcome::Finished)) => "finished",
            (State::Ended, Some(Outcome::Cancelled)) => "cancelled",
            (State::Ended, _) => "failed",
        }
        .to_owned(),
        tries: way.tries.iter().map(one_try).collect(),
        tokens: way.tokens,
        first_token_us: way.first_token_us.unwrap_or(0),
        ended_us: way.ended_us.unwrap_or(0),
        error: way.error.clone().unwrap_or_default(),
    }
}

fn one_try(one: &ledger::Try) -> v1::Try {
    v1::Try {
        number: one.number,
        holder: one.holder.as_ref().map(NodeName::to_string).unwrap_or_default(),
        sent_us: one.sent_us,
        held_us: one.held_us.unwrap_or(0),
        started_us: one.started_us.unwrap_or(0),
        ended_us: one.ended_us.unwrap_or(0),
        trail: trail_to_wire(&one.trail),
        reason: reason_of_why(one.why).into(),
        outcome: match one.outcome {
            None => "",
            Some(Outcome::Finished) => "finished",
            Some(Outcome::Lost) => "lost",
            Some(Outcome::Returned) => "returned",
            Some(Outcome::Refused) => "refused",
            Some(Outcome::Cancelled) => "cancelled",
            Some(Outcome::Expired) => "expired",
        }
        .to_owned(),
    }
}
