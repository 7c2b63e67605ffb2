//! One query on its way through the tree, seen from the API: asked, asked again behind what was passed on while its root is
//! away, and read until it ends. Dropping it cancels the query.

use std::{pin::Pin, sync::Arc, time::Duration};

use banyan_etcd::View;
use banyan_observe::{Place, Side, Span};
use banyan_proto::{NodeName, QueryId, v1};
use banyan_store::Key;
use futures::{Stream, stream};
use prost::Message as _;
use tokio::{
    sync::watch,
    time::{Instant, Sleep, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tracing::debug;

use crate::{
    chain::Chain,
    root::{Answering, AskError, Roots},
};

/// The pause before a root is asked again, doubled each time up to the longest.
const PAUSE: Duration = Duration::from_millis(25);
const PAUSE_MAX: Duration = Duration::from_millis(400);

/// A stream that lived so long was none of the trouble before it.
const STABLE: Duration = Duration::from_secs(1);

/// Only the root decides that a query is late. It gets that much longer to say so before we do.
const LATE: Duration = Duration::from_secs(5);

/// A query before it is sent.
#[derive(Debug, Clone)]
pub(crate) struct Query {
    pub(crate) id: QueryId,
    pub(crate) model: String,
    pub(crate) owner: String,
    /// Which models it may be served by, whatever its name stands for.
    pub(crate) key: Option<Arc<Key>>,
    pub(crate) priority: i32,
    pub(crate) deadline: Instant,
    /// Comes back at the time that it was told.
    pub(crate) returning: bool,
    /// An upper bound, prompt and completion together.
    pub(crate) tokens_max: u32,
    pub(crate) generation: v1::Generation,
    /// Who may come back for it, and how.
    pub(crate) claim: Claim,
    /// Where it is in a trace.
    pub(crate) place: Option<Place>,
}

/// How somebody may come back for an answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Claim {
    /// It is under way already, and this API did not ask for it.
    pub(crate) attach: bool,
    /// Another API may pick it up when this one dies.
    pub(crate) resumable: bool,
    /// It goes on for a while when its client's connection ends: the client says when it wants no more.
    pub(crate) lingers: bool,
    /// Of the request under an idempotency key.
    pub(crate) digest: bytes::Bytes,
    /// How long the root remembers the complete answer.
    pub(crate) retain: Duration,
    /// Picks the tree.
    pub(crate) key: Option<u64>,
}

/// Chunks that are kept to ask again with; beyond, only the tokens are.
const SAID_BYTES_MAX: usize = 3 << 20;

/// News of a query.
#[derive(Debug, PartialEq)]
pub(crate) enum Event {
    /// Where it lies now.
    Placed(v1::Placed),
    /// More of the answer, and the position of the token behind it.
    Tokens(v1::Chunk, u32),
    /// All of it.
    End(v1::Finish),
}

/// How a query failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The root says so.
    #[error("{}", .0.message)]
    Failed(v1::Failed),
    /// No root could be asked.
    #[error(transparent)]
    Unasked(AskError),
    /// The root went away after the answer began.
    #[error("the root went away while it answered")]
    Lost,
    /// The deadline passed, and the root says nothing.
    #[error("the root was silent beyond the deadline")]
    Late,
    /// What the root said makes no sense.
    #[error("the root's answer can't be read: {0}")]
    Garbled(&'static str),
    /// This API is shutting down.
    #[error("the API is shutting down")]
    Closing,
}

/// Sends the query when it is first polled, and ends after [`Event::End`] or a failure.
pub(crate) fn ask(
    roots: Arc<Roots>,
    query: Query,
    ending: CancellationToken,
) -> impl Stream<Item = Result<Event, Failure>> + Send + 'static {
    let late = Box::pin(sleep_until(query.deadline + LATE));
    let chain = Chain::new(roots.chain(&query.model, query.id, query.key.as_deref()), |model| roots.serves(model));
    let payload = if query.claim.attach { bytes::Bytes::new() } else { query.generation.encode_to_vec().into() };
    let mut span = roots.tracer.below("ask", Side::Client, query.place.as_ref());
    if let Some(span) = &mut span {
        span.set("banyan.query", query.id.to_string());
    }
    let answer = Answer {
        span,
        changes: roots.changes(),
        roots,
        asked: query.claim.attach,
        query,
        chain,
        payload,
        stream: None,
        since: Instant::now(),
        tree: None,
        said: Vec::new(),
        said_bytes: 0,
        position: 0,
        ended: false,
        ending,
        trouble: None,
        pause: PAUSE,
    };
    stream::unfold(Some((answer, late)), |state| async move {
        let (mut answer, mut late) = state?;
        let event = answer.next(late.as_mut()).await;
        if let (Err(_), Some(span)) = (&event, &mut answer.span) {
            span.fail("");
        }
        answer.ended = !matches!(event, Ok(Event::Placed(_) | Event::Tokens(..)) | Err(Failure::Late));
        let goes_on = matches!(event, Ok(Event::Placed(_) | Event::Tokens(..)));
        Some((event, goes_on.then_some((answer, late))))
    })
}

struct Answer {
    span: Option<Span>,
    roots: Arc<Roots>,
    /// Of the registry.
    changes: watch::Receiver<Arc<View>>,
    query: Query,
    /// The models that may serve it.
    chain: Chain,
    payload: bytes::Bytes,
    stream: Option<Answering>,
    /// When it began.
    since: Instant,
    /// Whose root was asked, or is being asked.
    tree: Option<NodeName>,
    /// Whether a root may know of the query.
    asked: bool,
    /// What was passed on, to ask the next root behind it.
    said: Vec<v1::Tokens>,
    said_bytes: usize,
    /// The next token's.
    position: u32,
    ended: bool,
    /// The API's end: then answers are not cancelled, for another one may pick them up.
    ending: CancellationToken,
    /// Since when no root can be reached.
    trouble: Option<Instant>,
    pause: Duration,
}

/// Whoever reads an answer has gone, which a root can't tell from the death of this process.
impl Drop for Answer {
    fn drop(&mut self) {
        let claim = &self.query.claim;
        // Who has not heard of it yet can't come back for it, but by its key.
        let lingers = claim.lingers && (self.position > 0 || claim.key.is_some());
        let cancels = claim.resumable && !lingers && !self.ended && !self.ending.is_cancelled();
        let Some(tree) = self.tree.take().filter(|_| cancels) else { return };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        // Its stream ends before it is cancelled.
        self.stream = None;
        let (roots, wanted) = (self.roots.clone(), self.reference());
        runtime.spawn(async move { roots.cancel(&tree, wanted).await });
    }
}

impl Answer {
    async fn next(&mut self, late: Pin<&mut Sleep>) -> Result<Event, Failure> {
        tokio::select! {
            biased;
            event = self.advance() => event,
            () = late => Err(Failure::Late),
        }
    }

    async fn advance(&mut self) -> Result<Event, Failure> {
        loop {
            let Some(stream) = &mut self.stream else {
                match self.send().await {
                    Ok(stream) => {
                        (self.tree, self.asked) = (Some(stream.tree.clone()), true);
                        (self.stream, self.since) = (Some(stream), Instant::now());
                    }
                    Err(AskError::Unknown) => return Err(Failure::Failed(unknown())),
                    Err(error) => {
                        // Another tree may be there for it.
                        self.tree = self.tree.take().filter(|_| self.asked);
                        self.wait_before_asking_again(error).await?;
                    }
                }
                continue;
            };
            let answer = match stream.first.take() {
                Some(first) => Ok(Some(first)),
                None => tokio::select! {
                    biased;
                    answer = stream.answers.message() => answer,
                    Ok(()) = self.changes.changed() => {
                        if self.roots.is_succeeded(stream) {
                            self.broken(Some(Status::unavailable("another root has taken its place"))).await?;
                        }
                        continue;
                    }
                },
            };
            match answer {
                Ok(Some(answer)) => {
                    if matches!(answer.kind, Some(v1::answer::Kind::End(_) | v1::answer::Kind::Failed(_))) {
                        // The stream's end comes right behind: read, it costs nothing; dropped, it costs a reset.
                        let _ = stream.answers.message().await;
                    }
                    if let Some(event) = self.read(answer).await? {
                        return Ok(event);
                    }
                }
                broken => self.broken(broken.err()).await?,
            }
        }
    }

    async fn send(&mut self) -> Result<Answering, AskError> {
        if self.query.claim.attach && self.payload.is_empty() {
            return self.roots.attach(self.reference()).await;
        }
        let tree = match &self.tree {
            Some(tree) => tree.clone(),
            None => self.roots.pick(&self.chain.step().model, self.query.claim.key)?,
        };
        // Before it answers: whoever leaves while it does is to be cancelled there.
        self.tree = Some(tree.clone());
        self.roots.ask(&tree, self.question()).await
    }

    fn reference(&self) -> v1::AnswerRef {
        v1::AnswerRef { id: self.query.id.to_wire(), owner: self.query.owner.clone(), following: 0 }
    }

    fn question(&self) -> v1::Question {
        let remaining = self.query.deadline.saturating_duration_since(Instant::now());
        let own = self.span.as_ref().map(Span::place);
        let place = own.as_ref().or(self.query.place.as_ref());
        let header = v1::Header {
            traceparent: place.map(Place::traceparent).unwrap_or_default(),
            tracestate: place.map(Place::tracestate).unwrap_or_default(),
            id: self.query.id.to_wire(),
            owner: self.query.owner.clone(),
            model: self.chain.step().model.clone(),
            impatient: self.chain.step().impatient,
            remaining_ms: remaining.as_millis().try_into().unwrap_or(u64::MAX),
            priority: self.query.priority,
            tokens_max: self.query.tokens_max,
            returning: self.query.returning,
            ..Default::default()
        };
        v1::Question {
            header: header.encode_to_vec().into(),
            payload: self.payload.clone(),
            delivered: self.said.clone(),
            again: self.asked,
            resumable: self.query.claim.resumable,
            digest: self.query.claim.digest.clone(),
            retain_ms: self.query.claim.retain.as_millis().try_into().unwrap_or(u64::MAX),
        }
    }

    /// `None`: nothing new.
    async fn read(&mut self, answer: v1::Answer) -> Result<Option<Event>, Failure> {
        use v1::answer::Kind;
        match answer.kind {
            Some(Kind::Failed(failed)) if self.trouble.is_some() && self.is_still_taken(failed.reason()) => {
                // The root has not noticed yet that our connection broke.
                self.broken(Some(Status::already_exists(failed.message))).await?;
                return Ok(None);
            }
            // It leaves; whoever comes next goes on.
            Some(Kind::Failed(failed)) if failed.reason() == v1::Failure::ShuttingDown => {
                self.broken(Some(Status::unavailable(failed.message))).await?;
                return Ok(None);
            }
            Some(Kind::Failed(failed)) => {
                // An answer that has begun changes neither model nor provider, and one that somebody else asked for is theirs.
                let late = Instant::now() >= self.query.deadline;
                if self.position > 0 || self.query.claim.attach || late {
                    return Err(Failure::Failed(failed));
                }
                debug!(query = %self.query.id, model = self.chain.step().model, error = failed.message, "failed");
                self.chain.fail(failed).map_err(Failure::Failed)?;
                (self.stream, self.tree, self.asked) = (None, None, false);
                return Ok(None);
            }
            _ => {}
        }
        match answer.kind {
            Some(Kind::Placed(placed)) => Ok(Some(Event::Placed(placed))),
            Some(Kind::Tokens(tokens)) if tokens.position < self.position => Ok(None),
            Some(Kind::Tokens(tokens)) if tokens.position > self.position => Err(Failure::Garbled("tokens are missing")),
            Some(Kind::Tokens(tokens)) => {
                let count = u32::try_from(tokens.ids.len()).unwrap_or(u32::MAX);
                self.position = self.position.saturating_add(count);
                (self.trouble, self.pause) = (None, PAUSE);
                let chunk = v1::Chunk::decode(tokens.chunk.clone()).map_err(|_| Failure::Garbled("its text"))?;
                self.keep(tokens);
                Ok(Some(Event::Tokens(chunk, self.position)))
            }
            Some(Kind::End(end)) => {
                v1::Finish::decode(end.finish).map(|finish| Some(Event::End(finish))).map_err(|_| Failure::Garbled("its end"))
            }
            Some(Kind::Accepted(accepted)) => {
                self.payload = accepted.payload;
                Ok(None)
            }
            // Of a kind that a newer root knows, or a failure, which was handled above.
            Some(Kind::Failed(_)) | None => Ok(None),
        }
    }

    /// Whether a root says so that still answers our own earlier question: it takes this one for another's, or no longer has the
    /// start of an answer that it keeps for nobody.
    fn is_still_taken(&self, reason: v1::Failure) -> bool {
        self.asked && !self.query.claim.attach && matches!(reason, v1::Failure::Duplicate | v1::Failure::NotFound)
    }

    fn keep(&mut self, mut tokens: v1::Tokens) {
        self.said_bytes += tokens.chunk.len() + 4 * tokens.ids.len();
        if self.said_bytes > SAID_BYTES_MAX {
            tokens.chunk.clear();
            self.said.iter_mut().for_each(|said| said.chunk.clear());
        }
        self.said.push(tokens);
    }

    async fn broken(&mut self, status: Option<Status>) -> Result<(), Failure> {
        if self.stream.take().is_some() && self.since.elapsed() >= STABLE {
            (self.trouble, self.pause) = (None, PAUSE);
        }
        let source = status.unwrap_or_else(|| Status::unavailable("the answer ended before it was complete"));
        self.wait_before_asking_again(AskError::Broken { source }).await
    }

    async fn wait_before_asking_again(&mut self, error: AskError) -> Result<(), Failure> {
        let since = *self.trouble.get_or_insert_with(Instant::now);
        let patience = if matches!(error, AskError::NoRoot) { self.roots.retry } else { self.roots.failover };
        if !error.is_passing() || since.elapsed() + self.pause > patience {
            return Err(if self.position > 0 { Failure::Lost } else { Failure::Unasked(error) });
        }
        self.roots.meters.retried(error.kind());
        if let Some(span) = &mut self.span {
            span.note("root asked again");
        }
        debug!(query = %self.query.id, error = &error as &dyn std::error::Error, "root asked again");
        tokio::select! {
            () = sleep(self.pause) => self.pause = (self.pause * 2).min(PAUSE_MAX),
            // Perhaps a new root.
            Ok(()) = self.changes.changed() => {}
        }
        Ok(())
    }
}

fn unknown() -> v1::Failed {
    v1::Failed { reason: v1::Failure::NotFound.into(), ..Default::default() }
}
