//! One query's call: the keys that it tries, the stream that it reads, and what of that becomes the answer.
//!
//! Until the first piece a failure costs a key its turn, and the next one is tried. After it nobody goes on: an upstream can't
//! continue what another has begun.

use std::time::Duration;

use banyan_engine::{FinishReason, Output, PIECE, Prompt, Refusal, Request, Usage};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Response, StatusCode, body::Incoming, header, http};
use tokio::{
    sync::mpsc,
    time::{Instant, interval, sleep_until, timeout},
};
use tracing::{debug, warn};

use crate::{
    dialect::{self, Ask, News},
    engine::{Offer, Shared},
    keys::{Broke, Fault, FaultKind, Reservation},
    sse,
};

/// Sooner than a root takes a silent engine for hung.
const BEAT: Duration = Duration::from_secs(5);
/// A refusal's text.
const REFUSAL_BYTES_MAX: usize = 64 << 10;
/// Behind its last event a stream ends; a connection on which it does so is used again.
const END_PATIENCE: Duration = Duration::from_secs(1);
/// Bytes of a token, about and rather too few, and what a message takes beside its text.
const TOKEN_BYTES: usize = 3;
const MESSAGE_TOKENS: usize = 6;
/// Keys that one query may cost their turn: one that upstreams fail with is not to put all of them out.
const TRIES_MAX: usize = 3;
/// What was said until now, and where the answer stands.
type Outlet = mpsc::Sender<Output>;

/// Answers a query. The last output is returned; those before it go out.
pub(crate) async fn answer(shared: &Shared, request: &Request, to: &Outlet) -> Output {
    match attempt(shared, request, to).await {
        Ok((reason, usage)) => Output::Finished { id: request.id, reason, text: String::new(), usage, told: None },
        Err(refusal) => Output::Refused { id: request.id, refusal },
    }
}

async fn attempt(shared: &Shared, request: &Request, to: &Outlet) -> Result<(FinishReason, Usage), Refusal> {
    if !request.resume.is_empty() {
        let message = "the provider's answer broke off and can't be continued, by this provider or another: ask again";
        return Err(Refusal::Broken(message.to_owned()));
    }
    let mut asks: Vec<(&Offer, Ask)> = Vec::new();
    let mut refused = None;
    for offer in shared.offers(&request.model) {
        match dialect::ask(shared.upstream(offer.upstream), &offer.there, request) {
            Ok(ask) => asks.push((offer, ask)),
            Err(not_offered) => refused = refused.or(Some(not_offered)),
        }
    }
    if asks.is_empty() {
        let (param, message) = match refused {
            Some(refused) => (refused.param, refused.message),
            None => ("model", format!("no upstream of this provider has the model '{}'", request.model)),
        };
        return Err(Refusal::Invalid { param, message });
    }
    let upstreams: Vec<usize> = asks.iter().map(|(offer, _)| offer.upstream).collect();
    let prompt_tokens = prompt_tokens(&request.prompt);
    let most = upstreams.iter().map(|&upstream| request.max_tokens.unwrap_or(shared.upstream(upstream).max_tokens)).max();
    let tokens = prompt_tokens + u64::from(most.unwrap_or_default());
    let (mut tried, mut last): (_, Option<Refusal>) = (Vec::new(), None);
    loop {
        let reservation = match (shared.reserve(&upstreams, &tried, tokens), last) {
            (Ok(reservation), None) => reservation,
            (Ok(reservation), Some(_)) if tried.len() < TRIES_MAX => reservation,
            (Ok(reservation), Some(refusal)) => {
                shared.give_back(reservation);
                return Err(refusal);
            }
            (Err(_), Some(refusal)) => return Err(refusal),
            (Err(Broke::NotNow { wait_ms }), None) => {
                shared.close_for(wait_ms, &upstreams);
                let seconds = wait_ms.div_ceil(1000);
                let message = format!("the provider's keys are used up or left alone for now, the first for {seconds} s more");
                return Err(Refusal::Busy(message));
            }
            (Err(Broke::Never { limit }), None) => {
                let message = format!(
                    "prompt and completion may come to {tokens} tokens, and no key of the provider may spend more than {limit} at \
                     once: ask for fewer"
                );
                return Err(Refusal::Invalid { param: "max_tokens", message });
            }
            (Err(Broke::Tried), None) => return Err(Refusal::Busy("the provider has no key".to_owned())),
        };
        let key = reservation.key;
        let (offer, ask) = asks.iter().find(|(offer, _)| offer.upstream == shared.upstream_of(key)).expect("it was asked for");
        let mut trial = Trial {
            shared,
            request,
            to,
            upstream: offer.upstream,
            spending: Spending { shared, reservation: Some(reservation), sent: false, prompt_tokens, pieces: 0, usage: None },
            reason: None,
        };
        match trial.run(ask).await {
            Ok(()) => return Ok((trial.reason.unwrap_or(FinishReason::Stop), trial.spending.usage_or_estimate())),
            Err(Trouble::Query(refusal)) => return Err(refusal),
            Err(Trouble::Key(fault)) => {
                let error = format!("{}: {}", shared.upstream(offer.upstream).name, fault.error);
                warn!(key, error, "a provider's key fails");
                let (pieces, kind) = (trial.spending.pieces, fault.kind);
                trial.spending.fail(fault);
                if pieces > 0 {
                    let message = format!(
                        "the provider's answer broke off after {pieces} pieces ({error}), and nobody can continue it: ask again"
                    );
                    return Err(Refusal::Broken(message));
                }
                tried.push(key);
                last = Some(match kind {
                    FaultKind::Failed => Refusal::Engine(error),
                    FaultKind::Busy | FaultKind::Denied => Refusal::Busy(error),
                });
            }
        }
    }
}

/// What goes wrong with a call.
enum Trouble {
    /// Its key's or its upstream's fault: another may be better.
    Key(Fault),
    /// The query's own.
    Query(Refusal),
}

/// One call with one key.
struct Trial<'a> {
    shared: &'a Shared,
    request: &'a Request,
    to: &'a Outlet,
    upstream: usize,
    spending: Spending<'a>,
    reason: Option<FinishReason>,
}

impl Trial<'_> {
    async fn run(&mut self, ask: &Ask) -> Result<(), Trouble> {
        let upstream = self.shared.upstream(self.upstream);
        let key = self.spending.key();
        let call =
            self.shared.call(self.upstream, key, &self.request.traceparent, ask).map_err(|error| trouble(&error.to_string()))?;
        // Its node says that it runs; from here on it is not waiting in any queue of ours.
        let _ = self.to.send(Output::Started { id: self.request.id }).await;
        self.spending.sent = true;
        let deadline = Instant::now() + upstream.first_token;
        let response = match self.until(deadline, self.shared.http(self.upstream).send(call)).await {
            Some(Ok(response)) => response,
            Some(Err(error)) => {
                // What could not be dialled was not asked.
                self.spending.sent = !error.is_connect();
                return Err(busy(format!("it can't be reached ({})", innermost(&error))));
            }
            None => return Err(trouble(&format!("no answer within {} s", upstream.first_token.as_secs()))),
        };
        if response.status() != StatusCode::OK {
            return Err(self.refused(deadline, response).await);
        }
        self.stream(deadline, response.into_body()).await
    }

    async fn stream(&mut self, deadline: Instant, mut body: Incoming) -> Result<(), Trouble> {
        let upstream = self.shared.upstream(self.upstream);
        let (mut reader, mut deadline) = (sse::Reader::default(), deadline);
        loop {
            let frame = match self.until(deadline, body.frame()).await {
                Some(Some(Ok(frame))) => frame,
                Some(Some(Err(error))) => return Err(trouble(&format!("its stream broke ({})", innermost(&error)))),
                // Some services end without a word.
                Some(None) if self.reason.is_some() => return Ok(()),
                Some(None) => return Err(trouble("its stream ended before the answer did")),
                None if self.spending.pieces == 0 => {
                    return Err(trouble(&format!("no first token within {} s", upstream.first_token.as_secs())));
                }
                None => return Err(trouble(&format!("silent for {} s", upstream.idle.as_secs()))),
            };
            let Ok(bytes) = frame.into_data() else { continue };
            for event in reader.read(&bytes).map_err(|error| trouble(&error.to_string()))? {
                for news in dialect::read(upstream.dialect, &event) {
                    if self.take(news).await? {
                        tokio::spawn(timeout(END_PATIENCE, async move { while let Some(Ok(_)) = body.frame().await {} }));
                        return Ok(());
                    }
                }
            }
            if self.spending.pieces > 0 {
                deadline = Instant::now() + upstream.idle;
            }
        }
    }

    /// True at the answer's end.
    async fn take(&mut self, news: News) -> Result<bool, Trouble> {
        match news {
            News::Piece { text, logprobs } => {
                if self.spending.pieces == 0 {
                    self.shared.succeeded(self.spending.reservation.as_ref());
                }
                let position = u32::try_from(self.spending.pieces).unwrap_or(u32::MAX);
                let tokens = vec![PIECE; logprobs.len().max(1)];
                self.spending.pieces += tokens.len() as u64;
                let logprobs = if self.request.sampling.logprobs.is_some() { logprobs } else { Vec::new() };
                // Fails when the engine stops, which ends this call too.
                let _ = self.to.send(Output::Tokens { id: self.request.id, position, tokens, text, logprobs, told: None }).await;
            }
            News::Usage { prompt, completion, cached } => {
                let known = self.spending.usage.get_or_insert_default();
                known.prompt = prompt.or(known.prompt);
                known.completion = completion.or(known.completion);
                known.cached = cached.or(known.cached);
            }
            News::Reason(reason) => self.reason = Some(reason),
            News::End if self.reason.is_some() || self.spending.pieces > 0 => return Ok(true),
            News::End => return Err(trouble("it ended without an answer")),
            News::Failed(message) => return Err(trouble(&message)),
        }
        Ok(false)
    }

    /// What an answer means that is none.
    async fn refused(&mut self, deadline: Instant, response: Response<Incoming>) -> Trouble {
        let (status, retry_after_ms) = (response.status(), retry_after_ms(response.headers()));
        let body = Limited::new(response.into_body(), REFUSAL_BYTES_MAX).collect();
        let body = match self.until(deadline, body).await {
            Some(Ok(body)) => body.to_bytes(),
            _ => Bytes::new(),
        };
        let said = dialect::error_message(&body);
        let kind = match status.as_u16() {
            401..=403 => Some(FaultKind::Denied),
            // 529: how Anthropic says that it is overloaded.
            408 | 409 | 425 | 429 | 503 | 529 => Some(FaultKind::Busy),
            400..500 => None,
            _ => Some(FaultKind::Failed),
        };
        let Some(kind) = kind else {
            debug!(%status, "a provider refuses a query");
            let name = &self.shared.upstream(self.upstream).name;
            let message = match said {
                Some(said) => format!("the provider {name} refuses the request ({}): {said}", status.as_u16()),
                None => format!("the provider {name} refuses the request ({status})"),
            };
            return Trouble::Query(Refusal::Invalid { param: "", message });
        };
        // Who refuses a key may quote it.
        let error = match said.filter(|_| kind != FaultKind::Denied) {
            Some(said) => format!("{}: {said}", status.as_u16()),
            None => status.to_string(),
        };
        Trouble::Key(Fault { error, retry_after_ms, kind })
    }

    /// Waits, and shows meanwhile that it is alive. `None` when it takes too long.
    async fn until<T>(&self, deadline: Instant, future: impl Future<Output = T>) -> Option<T> {
        let mut future = std::pin::pin!(future);
        let mut beat = interval(BEAT);
        beat.reset();
        loop {
            tokio::select! {
                biased;
                done = &mut future => return Some(done),
                () = sleep_until(deadline) => return None,
                _ = beat.tick() => {
                    let _ = self.to.send(Output::Progress { id: self.request.id }).await;
                }
            }
        }
    }
}

/// What was reserved for a call, settled when that ends, however it ends.
struct Spending<'a> {
    shared: &'a Shared,
    reservation: Option<Reservation>,
    /// Whether the upstream may have heard of it.
    sent: bool,
    /// About.
    prompt_tokens: u64,
    /// Of the answer, each about a token.
    pieces: u64,
    usage: Option<Counted>,
}

/// What the upstream says that it took.
#[derive(Default)]
struct Counted {
    prompt: Option<u32>,
    completion: Option<u32>,
    cached: Option<u32>,
}

impl Spending<'_> {
    fn key(&self) -> usize {
        self.reservation.as_ref().map_or(0, |reservation| reservation.key)
    }

    fn fail(&mut self, fault: Fault) {
        if let Some(reservation) = &self.reservation {
            self.shared.failed(reservation, fault);
        }
    }

    fn usage_or_estimate(&self) -> Usage {
        let counted = |counted: fn(&Counted) -> Option<u32>, otherwise: u64| {
            self.usage.as_ref().and_then(counted).unwrap_or_else(|| u32::try_from(otherwise).unwrap_or(u32::MAX))
        };
        Usage {
            prompt_tokens: counted(|usage| usage.prompt, self.prompt_tokens),
            completion_tokens: counted(|usage| usage.completion, self.pieces),
            cached_tokens: counted(|usage| usage.cached, 0),
        }
    }
}

impl Drop for Spending<'_> {
    fn drop(&mut self) {
        let Some(reservation) = self.reservation.take() else { return };
        if !self.sent {
            return self.shared.give_back(reservation);
        }
        let answered = self.pieces > 0 || self.usage.is_some();
        let usage = self.usage_or_estimate();
        let tokens = u64::from(usage.prompt_tokens) + u64::from(usage.completion_tokens);
        self.shared.settle(reservation, if answered { tokens } else { 0 });
    }
}

fn trouble(error: &str) -> Trouble {
    Trouble::Key(Fault { error: error.to_owned(), retry_after_ms: None, kind: FaultKind::Failed })
}

fn busy(error: String) -> Trouble {
    Trouble::Key(Fault { error, retry_after_ms: None, kind: FaultKind::Busy })
}

/// What a prompt comes to, about: upstreams count with tokenizers of their own.
fn prompt_tokens(prompt: &Prompt) -> u64 {
    let of = |text: &str| text.len().div_ceil(TOKEN_BYTES);
    let tokens = match prompt {
        Prompt::Text(text) => of(text),
        Prompt::Tokens(tokens) => tokens.len(),
        Prompt::Chat(messages) => messages.iter().map(|message| of(&message.content) + MESSAGE_TOKENS).sum(),
    };
    tokens as u64
}

fn retry_after_ms(headers: &http::HeaderMap) -> Option<u64> {
    let number = |name: &str| headers.get(name)?.to_str().ok()?.trim().parse::<f64>().ok().filter(|number| *number >= 0.0);
    let ms = number("retry-after-ms").or_else(|| number(header::RETRY_AFTER.as_str()).map(|seconds| seconds * 1000.0));
    ms.map(|ms| ms as u64)
}

/// The cause that says most.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// The call of a query, with a key.
pub(crate) fn request(url: &str, headers: Vec<(&'static str, String)>, ask: &Ask) -> http::Result<hyper::Request<Full<Bytes>>> {
    let mut call = hyper::Request::post(format!("{}{}", url.trim_end_matches('/'), ask.path))
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::ACCEPT, "text/event-stream")
        .header(header::USER_AGENT, concat!("banyan/", env!("CARGO_PKG_VERSION")));
    for (name, value) in headers {
        let mut value = http::HeaderValue::try_from(value)?;
        value.set_sensitive(true);
        call = call.header(name, value);
    }
    call.body(Full::new(ask.body.to_string().into()))
}
