//! One query on its way through the tree, seen from the API: asked, asked again while the root is unreachable, and read until
//! it ends. Dropping it cancels the query.

use std::{pin::Pin, sync::Arc, time::Duration};

use banyan_proto::{QueryId, v1};
use futures::{Stream, stream};
use prost::Message as _;
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tonic::{Status, Streaming};
use tracing::debug;

use crate::root::{AskError, Roots};

/// The pause before a root is asked again, doubled each time up to the longest.
const PAUSE: Duration = Duration::from_millis(25);
const PAUSE_MAX: Duration = Duration::from_millis(400);

/// Only the root decides that a query is late. It gets that much longer to say so before we do.
const LATE: Duration = Duration::from_secs(5);

/// A query before it is sent.
#[derive(Debug, Clone)]
pub(crate) struct Query {
    pub(crate) id: QueryId,
    pub(crate) model: String,
    pub(crate) owner: String,
    pub(crate) priority: i32,
    pub(crate) deadline: Instant,
    /// Comes back at the time that it was told.
    pub(crate) returning: bool,
    /// An upper bound, prompt and completion together.
    pub(crate) tokens_max: u32,
    pub(crate) generation: v1::Generation,
}

/// News of a query.
#[derive(Debug, PartialEq)]
pub(crate) enum Event {
    /// Where it lies now.
    Placed(v1::Placed),
    /// More of the answer.
    Tokens(v1::Chunk),
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
pub(crate) fn ask(roots: Arc<Roots>, query: Query) -> impl Stream<Item = Result<Event, Failure>> + Send + 'static {
    let late = Box::pin(sleep_until(query.deadline + LATE));
    let payload = query.generation.encode_to_vec().into();
    let answer = Answer { roots, query, payload, stream: None, position: 0, trouble: None, pause: PAUSE };
    stream::unfold(Some((answer, late)), |state| async move {
        let (mut answer, mut late) = state?;
        let event = answer.next(late.as_mut()).await;
        let goes_on = matches!(event, Ok(Event::Placed(_) | Event::Tokens(_)));
        Some((event, goes_on.then_some((answer, late))))
    })
}

struct Answer {
    roots: Arc<Roots>,
    query: Query,
    payload: bytes::Bytes,
    stream: Option<Streaming<v1::Answer>>,
    /// The next token's.
    position: u32,
    /// Since when no root can be reached.
    trouble: Option<Instant>,
    pause: Duration,
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
                match self.roots.ask(&self.query.model, self.question()).await {
                    Ok(stream) => self.stream = Some(stream),
                    Err(error) => self.wait_before_asking_again(error).await?,
                }
                continue;
            };
            match stream.message().await {
                Ok(Some(answer)) => {
                    if matches!(answer.kind, Some(v1::answer::Kind::End(_) | v1::answer::Kind::Failed(_))) {
                        // The stream's end comes right behind: read, it costs nothing; dropped, it costs a reset.
                        let _ = stream.message().await;
                    }
                    if let Some(event) = self.read(answer).await? {
                        return Ok(event);
                    }
                }
                broken => self.broken(broken.err()).await?,
            }
        }
    }

    fn question(&self) -> v1::Question {
        let remaining = self.query.deadline.saturating_duration_since(Instant::now());
        v1::Question {
            header: Some(v1::Header {
                id: self.query.id.to_wire(),
                owner: self.query.owner.clone(),
                model: self.query.model.clone(),
                remaining_ms: remaining.as_millis().try_into().unwrap_or(u64::MAX),
                priority: self.query.priority,
                tokens_max: self.query.tokens_max,
                returning: self.query.returning,
                ..Default::default()
            }),
            payload: self.payload.clone(),
        }
    }

    /// `None`: nothing new.
    async fn read(&mut self, answer: v1::Answer) -> Result<Option<Event>, Failure> {
        use v1::answer::Kind;
        match answer.kind {
            Some(Kind::Failed(failed)) if failed.reason() == v1::Failure::Duplicate && self.trouble.is_some() => {
                // The root has not noticed yet that our connection broke.
                self.broken(Some(Status::already_exists(failed.message))).await?;
                return Ok(None);
            }
            Some(Kind::Failed(failed)) => return Err(Failure::Failed(failed)),
            _ => (self.trouble, self.pause) = (None, PAUSE),
        }
        match answer.kind {
            Some(Kind::Placed(placed)) => Ok(Some(Event::Placed(placed))),
            Some(Kind::Tokens(tokens)) if tokens.position < self.position => Ok(None),
            Some(Kind::Tokens(tokens)) if tokens.position > self.position => Err(Failure::Garbled("tokens are missing")),
            Some(Kind::Tokens(tokens)) => {
                let count = u32::try_from(tokens.ids.len()).unwrap_or(u32::MAX);
                self.position = self.position.saturating_add(count);
                v1::Chunk::decode(tokens.chunk).map(|chunk| Some(Event::Tokens(chunk))).map_err(|_| Failure::Garbled("its text"))
            }
            Some(Kind::End(end)) => {
                v1::Finish::decode(end.finish).map(|finish| Some(Event::End(finish))).map_err(|_| Failure::Garbled("its end"))
            }
            // Of a kind that a newer root knows, or a failure, which was handled above.
            Some(Kind::Failed(_)) | None => Ok(None),
        }
    }

    async fn broken(&mut self, status: Option<Status>) -> Result<(), Failure> {
        self.stream = None;
        if self.position > 0 {
            return Err(Failure::Lost);
        }
        let source = status.unwrap_or_else(|| Status::unavailable("the answer ended before it began"));
        self.wait_before_asking_again(AskError::Broken { source }).await
    }

    async fn wait_before_asking_again(&mut self, error: AskError) -> Result<(), Failure> {
        let since = *self.trouble.get_or_insert_with(Instant::now);
        if !error.is_passing() || since.elapsed() + self.pause > self.roots.retry {
            return Err(Failure::Unasked(error));
        }
        debug!(query = %self.query.id, error = &error as &dyn std::error::Error, "root asked again");
        sleep(self.pause).await;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        Ok(())
    }
}
