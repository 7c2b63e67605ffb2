//! The clients: so many at once, each asking again when its answer has ended (closed loop), or coming so often a second, whatever
//! became of those before them (open loop).

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

use super::{
    Pace, Plan,
    question::question,
    stream::{Events, Seen},
};
use crate::{
    bench::histogram::Histogram,
    http::{Connection, Target},
};

/// Arrivals are the same in every run.
const SEED: u64 = 20_26;
/// Who is refused and not told for how long.
const REFUSED: Duration = Duration::from_secs(1);
/// What is under way when no more come is waited for that long.
const ENDING: Duration = Duration::from_secs(60);
/// Clients of an open loop that are under way at most: each has a connection, and thereby a file.
const UNDER_WAY_MAX: usize = 8192;

/// Everybody who asks.
#[derive(Clone)]
pub(super) struct Crowd {
    target: Arc<Target>,
    model: Arc<str>,
    plan: Arc<Plan>,
    idle: Arc<Mutex<Vec<Connection>>>,
    asked: Arc<AtomicU64>,
    found: Arc<Mutex<Found>>,
}

/// What became of those who asked.
#[derive(Default)]
pub(super) struct Found {
    pub(super) offered: u64,
    pub(super) answers: u64,
    pub(super) tokens: u64,
    pub(super) refused: u64,
    pub(super) failed: u64,
    pub(super) error: Option<String>,
    /// Answers within the objective.
    pub(super) good: u64,
    pub(super) first_token: Histogram,
    pub(super) each_token: Histogram,
    pub(super) answer: Histogram,
    /// How late the clients themselves were.
    pub(super) late: Histogram,
}

/// How a question ended.
enum Outcome {
    Answered(Seen),
    Refused(Duration),
}

impl Crowd {
    pub(super) fn new(target: Arc<Target>, model: &str, plan: &Plan) -> Crowd {
        Crowd {
            target,
            model: model.into(),
            plan: Arc::new(plan.clone()),
            idle: Arc::default(),
            asked: Arc::default(),
            found: Arc::default(),
        }
    }

    /// One question that is not counted.
    pub(super) async fn warm_up(&self) -> anyhow::Result<()> {
        let short = Plan { new_tokens: 2, ..(*self.plan).clone() };
        match (Crowd { plan: Arc::new(short), ..self.clone() }).ask(u64::MAX).await? {
            Outcome::Answered(_) => Ok(()),
            Outcome::Refused(_) => anyhow::bail!("it was refused: measure when the server has room"),
        }
    }

    /// All of them, until the last answer's end; and how long that took.
    pub(super) async fn run(self) -> (Found, Duration) {
        let begun = Instant::now();
        match self.plan.pace {
            Pace::Closed { .. } => self.closed(begun).await,
            Pace::Open { per_s, time } => self.open(per_s, time, begun).await,
        }
        (std::mem::take(&mut *self.found()), begun.elapsed())
    }

    async fn closed(&self, begun: Instant) {
        let Pace::Closed { clients, rounds, time } = self.plan.pace else { return };
        let end = time.map(|time| begun + time);
        let mut all = JoinSet::new();
        for _ in 0..clients {
            let crowd = self.clone();
            all.spawn(async move {
                let mut round = 0;
                while end.map_or(round < rounds, |end| Instant::now() < end) {
                    round += 1;
                    if let Some(wait) = crowd.visit(None).await {
                        sleep(wait).await;
                    }
                }
            });
        }
        while all.join_next().await.is_some() {}
    }

    async fn open(&self, per_s: f64, time: Duration, begun: Instant) {
        let mut rng = StdRng::seed_from_u64(SEED);
        let mut all = JoinSet::new();
        let mut next = begun;
        while next < begun + time {
            sleep_until(next).await;
            while all.try_join_next().is_some() {}
            let due = next;
            if all.len() < UNDER_WAY_MAX {
                let crowd = self.clone();
                all.spawn(async move { crowd.visit(Some(due)).await });
            } else {
                self.found().fails(format!("{UNDER_WAY_MAX} clients wait already: ask less often"));
            }
            // Poisson arrivals: those of many who don't know each other.
            next += Duration::from_secs_f64(-(1.0 - rng.random::<f64>()).ln() / per_s);
        }
        let _ = tokio::time::timeout(ENDING, async { while all.join_next().await.is_some() {} }).await;
        let left = all.len();
        all.shutdown().await;
        (0..left).for_each(|_| self.found().fails(format!("no answer came within {ENDING:?} of the end")));
    }

    /// One question, counted. For how long its client is to wait, if it was refused or failed.
    async fn visit(&self, due: Option<Instant>) -> Option<Duration> {
        let late = due.map(|due| due.elapsed());
        let outcome = self.ask(self.asked.fetch_add(1, Ordering::Relaxed)).await;
        let mut found = self.found();
        found.offered += 1;
        if let Some(late) = late {
            found.late.push(late);
        }
        match outcome {
            Ok(Outcome::Answered(seen)) => {
                found.answers += 1;
                found.tokens += seen.tokens;
                found.first_token.push(seen.first);
                found.answer.push(seen.whole);
                let each = seen.each();
                if let Some(each) = each {
                    found.each_token.push(each);
                }
                found.good += u64::from(self.plan.objective.is_met(seen.first, each, seen.whole));
                None
            }
            Ok(Outcome::Refused(wait)) => {
                found.refused += 1;
                Some(wait)
            }
            Err(error) => {
                found.fails(format!("{error:#}"));
                Some(REFUSED)
            }
        }
    }

    async fn ask(&self, number: u64) -> anyhow::Result<Outcome> {
        let mut connection = match self.idle() {
            Some(connection) => connection,
            None => Connection::open(&self.target).await?,
        };
        let (path, body) = question(&self.model, &self.plan, number);
        let asked = std::time::Instant::now();
        let (mut events, mut said) = (Events::default(), Vec::new());
        let head = connection
            .post_any(path, body, |piece| {
                events.feed(piece, asked);
                said.extend_from_slice(&piece[..piece.len().min(SAID_BYTES_MAX.saturating_sub(said.len()))]);
            })
            .await?;
        let whole = asked.elapsed();
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        match head.status {
            200 => Ok(Outcome::Answered(events.seen(whole)?)),
            429 => Ok(Outcome::Refused(head.retry_after.unwrap_or(REFUSED))),
            status => anyhow::bail!("the API answered {status}: {}", String::from_utf8_lossy(&said).trim()),
        }
    }

    /// A connection that nobody uses and that is still open.
    fn idle(&self) -> Option<Connection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        std::iter::from_fn(|| idle.pop()).find(|connection| !connection.is_closed())
    }

    fn found(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is kept of what a server says, to show it where it is an error.
const SAID_BYTES_MAX: usize = 512;

impl Found {
    fn fails(&mut self, error: String) {
        self.failed += 1;
        self.error.get_or_insert(error);
    }
}
