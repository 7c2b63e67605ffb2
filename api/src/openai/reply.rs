//! From queries to a response: their answers merged, and gathered into a whole. `stream.rs` passes them on as they come.
//!
//! Nothing is answered before the first token, so that a failure until then has its own status; what fails later is told in the
//! stream. When the response is dropped, because its client went away, so are the answers, and the tree cancels their queries.

use std::{
    pin::Pin,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    Json,
    http::{HeaderName, HeaderValue},
    response::{IntoResponse as _, Response},
};
use banyan_proto::{QueryId, v1};
use futures::{Stream, StreamExt as _, stream::SelectAll};
use tokio::time::Instant;
use tokio_util::sync::WaitForCancellationFutureOwned;
use tracing::debug;

use super::{
    Dialect, Error, Order,
    comeback::Comeback,
    order::{self, queries},
    shapes::{Chat, ChatLogprobs, Completion, CompletionLogprobs, Envelope, Message, Origin, Usage, finish_reason},
    stream,
};
use crate::{
    answer::{self, Event, Failure, Query},
    body::Arrival,
    routes::Context,
    sse,
    tally::Tally,
};

static NODE: HeaderName = HeaderName::from_static("x-banyan-node");

/// Answers an order.
pub(crate) async fn complete(context: &Context, order: Order, comeback: &Comeback, arrival: Arrival) -> Result<Response, Error> {
    let choices = order.prompts.len() * order.parameters.n;
    if order.parameters.stream && comeback.seen().is_some_and(|seen| seen.len() != choices) {
        return Err(Error::parameter("Last-Event-ID", "'Last-Event-ID' belongs to an answer with another number of choices"));
    }
    let mut reply = Reply::start(context, order, comeback, arrival).await?;
    let (response, node) = if reply.order.parameters.stream {
        let mut early = Vec::new();
        let first = tokio::time::timeout(context.limits.first_token, reply.until_first_token(&mut early)).await;
        if let Ok(Err(failure)) = first {
            return Err(reply.error(failure));
        }
        let node = reply.node();
        (sse::response(stream::frames(reply, early, comeback.seen())), node)
    } else {
        reply.gather().await?;
        (reply.whole(), reply.node())
    };
    Ok(with_node(response, node))
}

/// One choice's answer, numbered.
type Answered = Pin<Box<dyn Stream<Item = (usize, Result<Event, Failure>)> + Send>>;

/// The answer to one order, as far as it has come.
pub(crate) struct Reply {
    pub(super) context: Context,
    pub(super) order: Order,
    arrival: Arrival,
    tally: Tally,
    pub(super) id: String,
    /// Unix time in seconds.
    created: u64,
    /// The model that serves it, where that was known before anything was said; else as it was asked for.
    model: String,
    events: SelectAll<Answered>,
    /// The API's end.
    ending: Pin<Box<WaitForCancellationFutureOwned>>,
    pub(crate) choices: Vec<Choice>,
}

/// One choice of it.
pub(crate) struct Choice {
    query: QueryId,
    pub(super) placed: Option<v1::Placed>,
    pub(super) finish: Option<v1::Finish>,
    /// Of a whole answer.
    pub(crate) text: String,
    /// Those of the prompt first, where it was echoed by a node.
    logprobs: Vec<v1::TokenLogprob>,
    echoed: bool,
}

impl Choice {
    pub(super) fn origin(&self) -> Option<Origin<'_>> {
        self.placed.as_ref().map(|placed| Origin::new(self.query, placed))
    }

    fn finish_reason(&self) -> &'static str {
        self.finish.as_ref().map_or("stop", finish_reason)
    }

    fn tell(&mut self, told: Option<v1::Told>) {
        let Some(told) = told else { return };
        self.text.push_str(&told.text);
        self.echoed |= !told.logprobs.is_empty();
        self.logprobs.extend(told.logprobs);
    }
}

impl Reply {
    /// Asks, when the caller may. Nothing is sent before the first event is awaited.
    ///
    /// # Errors
    /// When the caller may not, or not now.
    pub(crate) async fn start(context: &Context, order: Order, comeback: &Comeback, arrival: Arrival) -> Result<Self, Error> {
        let queries = queries(&order.parameters, &order.prompts, context, comeback, &arrival);
        let attaches = order.parameters.stream && comeback.seen().is_some();
        let tokens = if attaches { 0 } else { queries.iter().map(|query| u64::from(query.tokens_max)).sum() };
        let mut tally = context.admit(&arrival.caller, &order.parameters.model, tokens).await?;
        tally.choices(queries[0].id, queries.len(), order.parameters.n, order.prompts.iter().map(order::bytes).sum());
        if attaches {
            tally.again();
        } else {
            tally.asks(&order.prompts);
        }
        let unanswered = |query: &Query| Choice {
            query: query.id,
            placed: None,
            finish: None,
            text: String::new(),
            logprobs: Vec::new(),
            echoed: false,
        };
        let choices: Vec<Choice> = queries.iter().map(unanswered).collect();
        let mut events = SelectAll::new();
        for (index, query) in queries.into_iter().enumerate() {
            let query = Query { place: tally.place(), ..query };
            debug!(query = %query.id, model = query.model, dialect = ?order.dialect, stream = order.parameters.stream, "asked");
            events
                .push(answer::ask(context.roots.clone(), query, context.ending.clone()).map(move |event| (index, event)).boxed());
        }
        Ok(Reply {
            id: format!("{}{}", order.dialect.prefix(), choices[0].query),
            // The same for whoever comes back for it elsewhere.
            created: choices[0].query.unix_seconds().unwrap_or_else(now),
            model: order.parameters.model.clone(),
            context: context.clone(),
            order,
            arrival,
            tally,
            events,
            ending: Box::pin(context.ending.clone().cancelled_owned()),
            choices,
        })
    }

    /// The next event; placements are noted on the way. `None` when all choices have ended.
    pub(super) async fn next(&mut self) -> Option<Result<(usize, Event), Failure>> {
        let (index, event) = tokio::select! {
            biased;
            next = self.events.next() => next?,
            () = &mut self.ending => return Some(Err(Failure::Closing)),
        };
        if let Ok(event) = &event {
            self.tally.note(index, event);
            if let Event::Placed(placed) = event {
                if placed.running {
                    self.arrival.caller.runs();
                }
                self.choices[index].placed = Some(placed.clone());
            }
        }
        Some(event.map(|event| (index, event)))
    }

    async fn until_first_token(&mut self, early: &mut Vec<(usize, Event)>) -> Result<(), Failure> {
        while let Some(event) = self.next().await {
            let event = event?;
            match &event.1 {
                // Accepted, so that no refusal with a status of its own is to be expected.
                Event::Placed(placed) if placed.place > 0 && self.order.parameters.places => {
                    early.push(event);
                    break;
                }
                Event::Placed(_) => {}
                _ => {
                    early.push(event);
                    self.name_model();
                    break;
                }
            }
        }
        Ok(())
    }

    /// Waits until all choices are complete.
    pub(crate) async fn gather(&mut self) -> Result<(), Error> {
        for (index, choice) in self.choices.iter_mut().enumerate() {
            choice.text.push_str(self.order.echoed(index).unwrap_or_default());
        }
        while let Some(event) = self.next().await {
            let (index, event) = event.map_err(|failure| self.error(failure))?;
            let choice = &mut self.choices[index];
            match event {
                Event::Placed(_) => {}
                Event::Tokens(chunk, _) => {
                    choice.tell(chunk.told);
                    choice.text.push_str(&chunk.text);
                    choice.logprobs.extend(chunk.logprobs);
                }
                Event::End(mut finish) => {
                    choice.tell(finish.told.take());
                    choice.text.push_str(&finish.text);
                    choice.finish = Some(finish);
                }
            }
        }
        self.name_model();
        Ok(())
    }

    /// Behind the first token an answer changes its model no more.
    pub(super) fn name_model(&mut self) {
        if let Some(placed) = self.choices[0].placed.as_ref().filter(|placed| !placed.model.is_empty()) {
            self.model.clone_from(&placed.model);
        }
    }

    fn whole(&self) -> Response {
        let several = self.choices.len() > 1;
        let usage = Some(Some(self.usage()));
        let banyan = self.choices[0].origin();
        let choices = self.choices.iter().enumerate();
        match self.order.dialect {
            Dialect::Chat => {
                let choices = choices.map(|(index, choice)| Chat {
                    index,
                    message: Message { role: "assistant", content: &choice.text, refusal: None },
                    logprobs: ChatLogprobs::of(&choice.logprobs),
                    finish_reason: choice.finish_reason(),
                    banyan: choice.origin().filter(|_| several),
                });
                Json(self.envelope("chat.completion", &choices.collect::<Vec<_>>(), usage, banyan)).into_response()
            }
            Dialect::Completions => {
                let choices = choices.map(|(index, choice)| Completion {
                    index,
                    text: &choice.text,
                    logprobs: CompletionLogprobs::of(&choice.logprobs, &mut 0, choice.echoed),
                    finish_reason: Some(choice.finish_reason()),
                    banyan: choice.origin().filter(|_| several),
                });
                Json(self.envelope("text_completion", &choices.collect::<Vec<_>>(), usage, banyan)).into_response()
            }
        }
    }

    /// What encloses choices.
    pub(super) fn envelope<'a, C>(
        &'a self,
        object: &'static str,
        choices: &'a [C],
        usage: Option<Option<Usage>>,
        banyan: Option<Origin<'a>>,
    ) -> Envelope<'a, C> {
        let fingerprint = self.choices[0].finish.as_ref().map(|finish| finish.fingerprint.as_str());
        Envelope {
            id: &self.id,
            object,
            created: self.created,
            model: &self.model,
            system_fingerprint: fingerprint.filter(|fingerprint| !fingerprint.is_empty()),
            choices,
            usage,
            banyan,
        }
    }

    pub(super) fn usage(&self) -> Usage {
        Usage::of(self.choices.iter().filter_map(|choice| choice.finish.as_ref()), self.order.parameters.n)
    }

    /// What the client is told of a failure.
    pub(super) fn error(&self, failure: Failure) -> Error {
        let error = self.told(failure);
        self.tally.failed(&error);
        error
    }

    fn told(&self, failure: Failure) -> Error {
        debug!(query = %self.choices[0].query, error = &failure as &dyn std::error::Error, "query failed");
        error(&self.context, &self.arrival, &self.order.parameters.model, self.order.dialect.prompt(), failure)
    }

    /// Who runs the first choice.
    pub(crate) fn node(&self) -> Option<HeaderValue> {
        node(self.choices[0].placed.as_ref()?)
    }
}

/// What a client is told of a query's failure; `prompt` is the parameter that carried its prompt.
pub(super) fn error(context: &Context, arrival: &Arrival, model: &str, prompt: &'static str, failure: Failure) -> Error {
    if let Failure::Failed(failed) = &failure
        && failed.reason() == v1::Failure::Overloaded
    {
        // There may be many of these, and the models' names matter to none.
        if failed.kept {
            context.returns.told(arrival.key, Instant::now(), Duration::from_millis(failed.retry_after_ms));
        }
        return Error::of(failure, "", "", &[]);
    }
    let offers = context.roots.offers(arrival.caller.key.as_deref());
    let known: Vec<&str> = offers.iter().map(|offer| offer.id.as_str()).collect();
    Error::of(failure, model, prompt, &known)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Who runs a query, as a header.
pub(super) fn node(placed: &v1::Placed) -> Option<HeaderValue> {
    HeaderValue::try_from(&placed.node).ok().filter(|node| !node.is_empty())
}

/// Says in a header which node answers.
pub(crate) fn with_node(mut response: Response, node: Option<HeaderValue>) -> Response {
    if let Some(node) = node {
        response.headers_mut().insert(NODE.clone(), node);
    }
    response
}
