//! Has the lines of batches answered: as many at a time as the tree runs at once, behind everybody else's queries.
//!
//! A line is asked of this API's own endpoints, for the batch's owner, under a key that is the line's name, so that a worker that comes
//! after a death finds the answer that is still under way. What is answered is written before anything else is done with it.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{HeaderMap, Request, StatusCode, header},
};
use banyan_store::{Batch, BatchStatus, Claim, Error as StoreError, Line, LineState, Outcome, Problem, Store, unix_ms};
use futures::{FutureExt as _, future::BoxFuture};
use serde_json::{Value, json};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};
use tower::ServiceExt as _;
use tracing::{debug, info, warn};

use super::input::Input;
use crate::{
    caller::{Caller, EVERYBODY},
    routes::Context,
};

/// How often to look for a batch that nobody works on.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Of one API. Each gets lines in as there is room, so more would only take turns.
const BATCHES_AT_ONCE: usize = 4;

/// How long a batch stays with an API that is gone.
const LEASE_MS: i64 = 15_000;
/// And how soon one that was cancelled elsewhere ends.
const RENEW_EVERY: Duration = Duration::from_secs(2);

/// Lines of a batch that were sent and do not run yet. One is enough to find room when there is some, and with none people wait behind it
/// in no node's queue.
const NOT_RUNNING_MAX: usize = 1;
/// Lines under way: as many as a large tree runs at once.
const UNDER_WAY_MAX: usize = 256;
/// Lines read together.
const PAGE: u32 = 256;
/// Lines written together while a batch's file is read.
const LINES_TOGETHER: usize = 500;

/// The lowest priority that there is.
const PRIORITY: i32 = -100;

/// How often a line is sent again after failures that may be its own fault.
const TRIES_MAX: u32 = 5;
/// Between tries when nobody says how long.
const PAUSE: Duration = Duration::from_secs(1);

/// As large as any answer gets.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Works on batches until the API stops.
pub(crate) async fn work(context: Context, router: Router, store: Store) {
    // No other life of any API has it.
    let claimant = format!("{} {:032x}", context.replica, rand::random::<u128>());
    let mut working: JoinSet<()> = JoinSet::new();
    loop {
        while working.try_join_next().is_some() {}
        while working.len() < BATCHES_AT_ONCE {
            match store.claim_batch(&claimant, LEASE_MS).await {
                Ok(Some((batch, claim))) => {
                    info!(batch = batch.id, "works on a batch");
                    let work = Work { context: context.clone(), router: router.clone(), store: store.clone(), claim };
                    working.spawn(work.run(batch));
                }
                Ok(None) => break,
                Err(error) => {
                    debug!(error = &error as &dyn std::error::Error, "failed to look for batches");
                    break;
                }
            }
        }
        tokio::select! {
            () = context.stopping.cancelled() => break,
            () = context.batches.notified() => {}
            () = sleep(LOOK_EVERY) => {}
        }
    }
    while working.join_next().await.is_some() {}
}

/// One batch's.
struct Work {
    context: Context,
    router: Router,
    store: Store,
    claim: Claim,
}

/// Why work on a batch stops here.
enum Stop {
    /// Another API has it, or will: nothing more may be written.
    Lost,
    /// It is to end like this.
    End(Outcome),
}

impl Work {
    async fn run(self, batch: Batch) {
        let (status, seen) = watch::channel(batch.status);
        let stopped = {
            let working = self.answer(&batch, seen);
            tokio::select! {
                biased;
                () = self.context.stopping.cancelled() => Stop::Lost,
                () = self.keep_claim(&status) => Stop::Lost,
                stopped = working => stopped,
            }
        };
        let ended = match stopped {
            Stop::End(outcome) => {
                let ending = self.insist(|| self.store.end_batch(&self.claim, outcome.clone(), unanswered));
                match ending.await {
                    Ok(()) => info!(batch = batch.id, ?outcome, "batch ended"),
                    Err(error) => debug!(batch = batch.id, error = &error as &dyn std::error::Error, "batch not ended"),
                }
                return;
            }
            Stop::Lost => self.store.release_claim(&self.claim).await,
        };
        if let Err(error) = ended {
            debug!(batch = batch.id, error = &error as &dyn std::error::Error, "claim not given back");
        }
    }

    /// Ends when the claim is lost.
    async fn keep_claim(&self, status: &watch::Sender<BatchStatus>) {
        let mut kept = Instant::now();
        loop {
            sleep(RENEW_EVERY).await;
            match self.store.renew_claim(&self.claim, LEASE_MS).await {
                Ok(Some(batch)) => {
                    kept = Instant::now();
                    status.send_if_modified(|status| std::mem::replace(status, batch.status) != batch.status);
                }
                Ok(None) => return,
                Err(_) if kept.elapsed() > Duration::from_millis(LEASE_MS.unsigned_abs()) => return,
                Err(error) => debug!(error = &error as &dyn std::error::Error, "claim not renewed"),
            }
        }
    }

    async fn answer(&self, batch: &Batch, mut status: watch::Receiver<BatchStatus>) -> Stop {
        let expiry = Duration::from_millis((batch.expires_ms - unix_ms()).max(0).unsigned_abs());
        let expired = sleep_until(Instant::now() + expiry);
        let answering = async {
            if batch.status == BatchStatus::Validating {
                match self.read(batch).await {
                    Ok(None) => {}
                    Ok(Some(problems)) => return Stop::End(Outcome::Failed(problems)),
                    Err(_) => return Stop::Lost,
                }
            }
            match Lines::of(self, batch) {
                Some(lines) => lines.answer().await,
                // Its key is no longer good.
                None => Stop::End(Outcome::Cancelled),
            }
        };
        tokio::select! {
            biased;
            _ = status.wait_for(|status| *status == BatchStatus::Cancelling) => Stop::End(Outcome::Cancelled),
            () = expired => Stop::End(Outcome::Expired),
            stop = answering => stop,
        }
    }

    /// Reads the batch's file into lines, and says what is wrong with it.
    async fn read(&self, batch: &Batch) -> Result<Option<Vec<Problem>>, StoreError> {
        let body_bytes = self.context.limits.body_bytes;
        'again: loop {
            let mut input = Input::new(&self.store, &batch.input_file_id, &batch.endpoint, body_bytes);
            loop {
                let lines = match input.next(LINES_TOGETHER).await {
                    Ok(lines) => lines,
                    Err(error) if error.is_trouble() => {
                        sleep(PAUSE).await;
                        continue 'again;
                    }
                    Err(error) => return Err(error),
                };
                if !input.problems.is_empty() {
                    return Ok(Some(input.problems));
                }
                if lines.is_empty() {
                    break;
                }
                self.insist(|| self.store.add_lines(&self.claim, lines.clone())).await?;
            }
            let count = input.count();
            return self.insist(|| self.store.begin_batch(&self.claim, count)).await.map(|()| None);
        }
    }

    /// Asks the store until it is well.
    async fn insist<T, F: Future<Output = Result<T, StoreError>>>(&self, mut ask: impl FnMut() -> F) -> Result<T, StoreError> {
        let mut told = false;
        loop {
            match ask().await {
                Err(error) if error.is_trouble() => {
                    if !std::mem::replace(&mut told, true) {
                        warn!(batch = self.claim.batch_id, error = &error as &dyn std::error::Error, "batch waits for the store");
                    }
                    sleep(PAUSE).await;
                }
                outcome => return outcome,
            }
        }
    }
}

/// The lines of a batch, as they are being answered.
struct Lines<'a> {
    work: &'a Work,
    batch: &'a Batch,
    caller: Caller,
    /// Read and not sent.
    next: VecDeque<Line>,
    /// Where reading goes on; `None` at the end.
    from: Option<u32>,
    /// To be sent again, each at its time.
    later: Vec<(Instant, Line, u32)>,
    under_way: JoinSet<Answered>,
    not_running: Arc<Semaphore>,
    /// Answered, and not yet written.
    ended: Vec<(u32, LineState, String)>,
    writing: Option<BoxFuture<'a, Result<(), StoreError>>>,
}

/// A line and what came of it.
struct Answered {
    line: Line,
    tries: u32,
    status: StatusCode,
    headers: HeaderMap,
    body: Value,
}

impl<'a> Lines<'a> {
    /// None when the batch's owner has no key that is good.
    fn of(work: &'a Work, batch: &'a Batch) -> Option<Self> {
        let key = match &*batch.owner {
            EVERYBODY => None,
            owner => Some(work.context.keyring.by_id(owner)?),
        };
        let caller = Caller::of(key, batch.id.as_str().into());
        Some(Lines {
            work,
            batch,
            caller,
            next: VecDeque::new(),
            from: Some(0),
            later: Vec::new(),
            under_way: JoinSet::new(),
            not_running: Arc::new(Semaphore::new(NOT_RUNNING_MAX)),
            ended: Vec::new(),
            writing: None,
        })
    }

    async fn answer(mut self) -> Stop {
        loop {
            if self.next.is_empty()
                && let Some(from) = self.from
            {
                let read = self.work.insist(|| self.work.store.waiting_lines(&self.batch.id, from, PAGE)).await;
                let Ok(lines) = read else { return Stop::Lost };
                self.from = lines.last().map(|line| line.position + 1);
                self.next.extend(lines);
                continue;
            }
            if self.writing.is_none() && !self.ended.is_empty() {
                self.writing = Some(self.write());
            }
            let due = self.later.iter().map(|(due, ..)| *due).min();
            if self.next.is_empty() && due.is_none() && self.under_way.is_empty() && self.writing.is_none() {
                return Stop::End(Outcome::Completed);
            }
            let may_send = self.under_way.len() + self.ended.len() < UNDER_WAY_MAX;
            let ready = !self.next.is_empty() || due.is_some_and(|due| due <= Instant::now());
            tokio::select! {
                biased;
                written = written(&mut self.writing) => {
                    self.writing = None;
                    if written.is_err() {
                        return Stop::Lost;
                    }
                }
                Some(answered) = self.under_way.join_next() => match answered {
                    Ok(answered) => self.take(answered),
                    // A panic is our own mistake: the line stays, and the next worker has it.
                    Err(_) => return Stop::Lost,
                },
                Ok(permit) = Arc::clone(&self.not_running).acquire_owned(), if may_send && ready => self.send(permit),
                () = sleep_until(due.unwrap_or_else(Instant::now)), if may_send && !ready && due.is_some() => {}
            }
        }
    }

    fn send(&mut self, permit: OwnedSemaphorePermit) {
        let now = Instant::now();
        let again = self.later.iter().position(|(due, ..)| *due <= now);
        let (line, tries) = match again {
            Some(at) => {
                let (_, line, tries) = self.later.swap_remove(at);
                (line, tries)
            }
            None => match self.next.pop_front() {
                Some(line) => (line, 0),
                None => return,
            },
        };
        let running = Arc::new(Notify::new());
        let name = format!("{}-{}", self.batch.id, line.position);
        let caller = self.caller.clone().behind(name.as_str().into(), PRIORITY, Some(Arc::clone(&running)));
        // Another try is another request: what failed would fail again under its key.
        let key = if tries == 0 { name.clone() } else { format!("{name}-{tries}") };
        let request = Request::post(self.batch.endpoint.as_str())
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::CONTENT_LENGTH, line.body.len())
            .header("x-request-id", &name)
            .header("idempotency-key", key)
            .extension(caller)
            .body(Body::from(line.body.clone()))
            .expect("names of batches are headers' values");
        let router = self.work.router.clone();
        self.under_way.spawn(async move {
            let mut asked = std::pin::pin!(async move {
                let response = router.oneshot(request).await.unwrap_or_else(|never| match never {});
                let (parts, body) = response.into_parts();
                let body = to_bytes(body, ANSWER_BYTES_MAX).await.ok();
                let body = body.and_then(|body| serde_json::from_slice(&body).ok()).unwrap_or(Value::Null);
                (parts.status, parts.headers, body)
            });
            let (status, headers, body) = tokio::select! {
                biased;
                answered = &mut asked => answered,
                () = running.notified() => {
                    drop(permit);
                    asked.await
                }
            };
            Answered { line, tries, status, headers, body }
        });
    }

    /// Notes what came of a line: its answer, or that it is to be sent again.
    fn take(&mut self, answered: Answered) {
        match self.again(&answered) {
            Some(pause) => {
                let tries = answered.tries + 1;
                self.later.push((Instant::now() + pause, answered.line, tries));
            }
            None => {
                let state = if answered.status.is_success() { LineState::Completed } else { LineState::Failed };
                self.ended.push((answered.line.position, state, output(&self.batch.id, &answered)));
            }
        }
    }

    /// Writes down what has come together, while others are sent and answered.
    fn write(&mut self) -> BoxFuture<'a, Result<(), StoreError>> {
        let (work, ended) = (self.work, std::mem::take(&mut self.ended));
        async move { work.insist(|| work.store.end_lines(&work.claim, ended.clone())).await }.boxed()
    }

    /// When to send a line again; `None`: what came is its answer.
    fn again(&self, answered: &Answered) -> Option<Duration> {
        let status = answered.status;
        let passing = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
        let may_be_its_own = status.is_server_error() && answered.tries < TRIES_MAX;
        let after = answered.headers.get("retry-after-ms").and_then(|after| after.to_str().ok()?.parse().ok());
        let pause = after.map_or(PAUSE, Duration::from_millis).max(Duration::from_millis(20));
        (passing || may_be_its_own).then_some(pause)
    }
}

async fn written(writing: &mut Option<BoxFuture<'_, Result<(), StoreError>>>) -> Result<(), StoreError> {
    match writing {
        Some(writing) => writing.await,
        None => std::future::pending().await,
    }
}

/// A line of the output or of the errors.
fn output(batch_id: &str, answered: &Answered) -> String {
    let request_id = answered.headers.get("x-request-id").and_then(|id| id.to_str().ok());
    json!({
        "id": format!("batch_req_{}_{}", batch_id.trim_start_matches("batch_"), answered.line.position),
        "custom_id": answered.line.custom_id,
        "response": { "status_code": answered.status.as_u16(), "request_id": request_id, "body": answered.body },
        "error": null,
    })
    .to_string()
}

/// The line of the errors for one that was not answered.
fn unanswered(outcome: &Outcome, batch_id: &str, custom_id: &str) -> String {
    let (code, message) = match outcome {
        Outcome::Expired => ("batch_expired", "this request was not answered before the batch's time was up"),
        _ => ("batch_cancelled", "this request was not answered before the batch was cancelled"),
    };
    json!({
        "id": format!("batch_req_{}", batch_id.trim_start_matches("batch_")),
        "custom_id": custom_id,
        "response": null,
        "error": { "code": code, "message": message },
    })
    .to_string()
}
