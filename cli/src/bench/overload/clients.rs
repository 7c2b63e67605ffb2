//! Clients who come whether or not those before them were served.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use bytes::Bytes;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};

use crate::{
    bench::histogram::Histogram,
    http::{Connection, Target},
};

/// Before anything counts: queues fill, and the tree learns its rate.
const WARMING: Duration = Duration::from_secs(3);
/// Longer waits than this nobody was told to come back after.
const KEPT_MAX: Duration = Duration::from_secs(59);
/// What is under way at the end is waited for that long.
const ENDING: Duration = Duration::from_secs(30);
const SEED: u64 = 20_26;
const PATH: &str = "/completions";

/// Everybody who asks one API. Keeps its connections.
#[derive(Clone)]
pub(crate) struct Crowd {
    target: Arc<Target>,
    model: String,
    new_tokens: u32,
    idle: Arc<Mutex<Vec<Connection>>>,
    asked: Arc<AtomicU64>,
}

/// What happened to those who came.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) offered: u64,
    pub(crate) served: u64,
    pub(crate) refused: Histogram,
    pub(crate) told: Histogram,
    pub(crate) came_back: u64,
    pub(crate) let_in: u64,
    pub(crate) first_token: Histogram,
    pub(crate) each_token: Histogram,
    pub(crate) failed: u64,
    pub(crate) error: Option<String>,
    pub(crate) late: Histogram,
}

enum Outcome {
    Answered { first: Duration, whole: Duration },
    Refused { after: Duration, retry_after: Duration },
}

impl Crowd {
    pub(crate) fn new(target: Arc<Target>, model: String, new_tokens: u32) -> Crowd {
        Crowd { target, model, new_tokens, idle: Arc::default(), asked: Arc::default() }
    }

    /// Answers a second when `at_once` clients ask again as soon as they were answered.
    pub(crate) async fn peak(&self, at_once: u32, time: Duration) -> anyhow::Result<f64> {
        let begun = Instant::now() + WARMING;
        let end = begun + time;
        let mut clients = JoinSet::new();
        for _ in 0..at_once {
            let crowd = self.clone();
            clients.spawn(async move {
                let mut served = 0u64;
                while Instant::now() < end {
                    if let Outcome::Answered { .. } = crowd.ask(crowd.question()).await?
                        && (begun..end).contains(&Instant::now())
                    {
                        served += 1;
                    }
                }
                anyhow::Ok(served)
            });
        }
        let mut served = 0;
        while let Some(client) = clients.join_next().await {
            served += client.context("a client panicked")?.context("failed to measure the peak")?;
        }
        anyhow::ensure!(served > 0, "nothing was answered within {time:?}: measure longer, or ask for less with --new");
        Ok(served as f64 / time.as_secs_f64())
    }

    /// Comes so often a second, for that long.
    pub(crate) async fn load(&self, per_s: f64, time: Duration) -> Seen {
        let start = Instant::now();
        let begun = start + WARMING;
        let end = begun + time;
        let seen = Arc::new(Mutex::new(Seen::default()));
        let mut rng = StdRng::seed_from_u64(SEED);
        let mut clients = JoinSet::new();
        let mut next = start;
        while next < end {
            sleep_until(next).await;
            let visit = Visit { crowd: self.clone(), seen: seen.clone(), begun, end, due: next };
            clients.spawn(visit.make());
            while clients.try_join_next().is_some() {}
            next += Duration::from_secs_f64(-(1.0 - rng.random::<f64>()).ln() / per_s);
        }
        let _ = tokio::time::timeout(ENDING, async { while clients.join_next().await.is_some() {} }).await;
        clients.shutdown().await;
        std::mem::take(&mut *seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Another one for each, so that no two clients are taken for one.
    fn question(&self) -> Bytes {
        let number = self.asked.fetch_add(1, Ordering::Relaxed);
        let body = serde_json::json!({
            "model": self.model, "prompt": format!("question {number}: how are things in the tree?"), "stream": true,
            "max_tokens": self.new_tokens, "ignore_eos": true, "temperature": 0, "seed": 1,
        });
        body.to_string().into()
    }

    /// A connection that nobody uses; the API closes those that nobody used for a minute.
    fn idle(&self) -> Option<Connection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        std::iter::from_fn(|| idle.pop()).find(|connection| !connection.is_closed())
    }

    async fn ask(&self, body: Bytes) -> anyhow::Result<Outcome> {
        let mut connection = match self.idle() {
            Some(connection) => connection,
            None => Connection::open(&self.target).await?,
        };
        let asked = Instant::now();
        let (mut first, mut tail) = (None, Vec::new());
        let head = connection
            .post_any(PATH, body, |piece| {
                first.get_or_insert_with(|| asked.elapsed());
                // The end of a stream is told by its last bytes; an error by its first.
                tail.extend_from_slice(piece);
                let before = tail.len().saturating_sub(256);
                tail.drain(..before);
            })
            .await?;
        let whole = asked.elapsed();
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        match (head.status, first) {
            (200, Some(first)) if tail.ends_with(b"data: [DONE]\n\n") => Ok(Outcome::Answered { first, whole }),
            (429, _) => {
                let retry_after = head.retry_after.context("a refusal does not say when to come back")?;
                Ok(Outcome::Refused { after: whole, retry_after })
            }
            (status, _) => anyhow::bail!("the API answered {status}: {}", String::from_utf8_lossy(&tail).trim()),
        }
    }
}

/// One client: comes, and once more if it is told when.
struct Visit {
    crowd: Crowd,
    seen: Arc<Mutex<Seen>>,
    begun: Instant,
    end: Instant,
    due: Instant,
}

impl Visit {
    async fn make(self) {
        let late = self.due.elapsed();
        let body = self.crowd.question();
        let outcome = self.crowd.ask(body.clone()).await;
        let retry_after = self.note(&outcome, |seen| {
            seen.offered += 1;
            seen.late.push(late);
        });
        let Some(retry_after) = retry_after.filter(|after| *after < KEPT_MAX) else { return };
        let back = Instant::now() + retry_after;
        if back < self.end {
            sleep_until(back).await;
            let outcome = self.crowd.ask(body).await;
            let let_in = !matches!(outcome, Ok(Outcome::Refused { .. }));
            self.note(&outcome, |seen| {
                seen.came_back += 1;
                seen.let_in += u64::from(let_in);
            });
        }
    }

    /// Counts an outcome if it came in the time that is measured; says when to come back.
    fn note(&self, outcome: &anyhow::Result<Outcome>, also: impl FnOnce(&mut Seen)) -> Option<Duration> {
        let told = match outcome {
            Ok(Outcome::Refused { retry_after, .. }) => Some(*retry_after),
            _ => None,
        };
        if !(self.begun..self.end).contains(&Instant::now()) {
            return told;
        }
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Ok(Outcome::Answered { first, whole }) => {
                seen.served += 1;
                seen.first_token.push(*first);
                if let Some(gaps) = self.crowd.new_tokens.checked_sub(1).filter(|gaps| *gaps > 0) {
                    seen.each_token.push((*whole - *first) / gaps);
                }
            }
            Ok(Outcome::Refused { after, retry_after }) => {
                seen.refused.push(*after);
                seen.told.push(*retry_after);
            }
            Err(error) => {
                seen.failed += 1;
                seen.error.get_or_insert_with(|| format!("{error:#}"));
            }
        }
        also(&mut seen);
        told
    }
}
