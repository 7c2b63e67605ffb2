//! A query's part of its client's trace: what the root, each node on the way and the holder did about it, and how long that took.

use banyan_engine::Output;
use banyan_observe::{Place, Side, Span, Tracer};
use banyan_proto::{Attempt, NodeName, QueryId, v1};

use crate::{
    ledger::{self, Why},
    meters, router, translate,
};

/// Where a query is in a trace, when it is in one.
pub(super) fn place(header: &v1::Header) -> Option<Place> {
    if header.traceparent.is_empty() { None } else { Place::read(&header.traceparent, &header.tracestate) }
}

/// The same, written into the header of what goes on.
pub(super) fn write(place: Option<&Place>, header: &mut v1::Header) {
    if let Some(place) = place {
        (header.traceparent, header.tracestate) = (place.traceparent(), place.tracestate());
    }
}

fn named(span: &mut Span, node: &NodeName, id: &QueryId) {
    span.set("banyan.node", node.to_string());
    span.set("banyan.query", id.to_string());
}

/// At the root: from acceptance to the end, and one attempt after the other.
pub(super) struct AtRoot {
    // First, so that it ends first.
    attempt: Option<Span>,
    whole: Span,
}

impl AtRoot {
    pub(super) fn begin(tracer: &Tracer, node: &NodeName, id: &QueryId, header: &v1::Header) -> Option<Box<AtRoot>> {
        let mut whole = tracer.below("root", Side::Server, place(header).as_ref())?;
        named(&mut whole, node, id);
        whole.set("gen_ai.request.model", header.model.clone());
        Some(Box::new(AtRoot { attempt: None, whole }))
    }

    /// The next attempt begins; gives its place.
    pub(super) fn send(&mut self, tracer: &Tracer, attempt: Attempt, why: Why) -> Option<Place> {
        self.attempt = None;
        let mut span = tracer.below("attempt", Side::Client, Some(&self.whole.place()))?;
        span.set("banyan.attempt", i64::from(attempt.number));
        span.set("banyan.reason", meters::reason(why));
        let place = span.place();
        self.attempt = Some(span);
        Some(place)
    }

    /// A node has it.
    pub(super) fn placed(&mut self, node: Option<&NodeName>) {
        if let (Some(span), Some(node)) = (&mut self.attempt, node) {
            span.set("banyan.holder", node.to_string());
        }
    }

    /// It ends without a (further) answer.
    pub(super) fn fail(&mut self, failure: &ledger::Failure) {
        let why = meters::outcome(failure);
        for span in self.attempt.iter_mut().chain([&mut self.whole]) {
            span.fail(why);
        }
    }
}

/// A node that passes a query on: its decision.
pub(super) fn forward(
    tracer: &Tracer,
    node: &NodeName,
    child: &NodeName,
    choice: router::Choice,
    header: &v1::Header,
) -> Option<Place> {
    let mut span = tracer.below("forward", Side::Server, place(header).as_ref())?;
    named(&mut span, node, &QueryId::from_wire(&header.id).ok()?);
    span.set("banyan.child", child.to_string());
    span.set("banyan.reason", translate::reason_of_choice(choice).as_str_name());
    Some(span.place())
}

/// At the holder: all of it, and what it does now: it waits, reads the prompt, or generates.
pub(super) struct AtHolder {
    part: Option<Span>,
    whole: Span,
    tokens: i64,
}

impl AtHolder {
    pub(super) fn begin(tracer: &Tracer, node: &NodeName, id: &QueryId, header: &v1::Header) -> Option<Box<AtHolder>> {
        let mut whole = tracer.below("hold", Side::Server, place(header).as_ref())?;
        named(&mut whole, node, id);
        let part = tracer.below("queue", Side::Within, Some(&whole.place()));
        Some(Box::new(AtHolder { part, whole, tokens: 0 }))
    }

    /// For whom its engine asks.
    pub(super) fn place(&self) -> Place {
        self.whole.place()
    }

    /// The engine said something of it.
    pub(super) fn said(&mut self, tracer: &Tracer, output: &Output) {
        let next = match output {
            Output::Started { .. } => "prefill",
            Output::Tokens { tokens, .. } => {
                let first = self.tokens == 0;
                self.tokens += tokens.len() as i64;
                if !first {
                    return;
                }
                "decode"
            }
            Output::Finished { usage, .. } => {
                self.whole.set("gen_ai.usage.input_tokens", i64::from(usage.prompt_tokens));
                self.whole.set("gen_ai.usage.output_tokens", i64::from(usage.completion_tokens));
                self.whole.set("banyan.cached_tokens", i64::from(usage.cached_tokens));
                return;
            }
            Output::Refused { refusal, .. } => {
                // Its text may quote a request.
                let why = if matches!(refusal, banyan_engine::Refusal::Engine(_)) { "the engine failed" } else { "refused" };
                return self.whole.fail(why);
            }
            _ => return,
        };
        // The one before ends first.
        self.part = None;
        self.part = tracer.below(next, Side::Within, Some(&self.whole.place()));
    }
}
