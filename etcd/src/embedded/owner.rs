//! The task that owns the store and its file: it does one thing after the other, and answers when the result is on the disk.
//!
//! Whoever wants something sends a job. Jobs that wait together are done together and share one write to the disk.

use std::{
    io,
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::MissedTickBehavior,
};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tracing::{error, info};

use super::{log::Log, refusal::Refusal, store::Store};

/// How many jobs wait before whoever sends another waits itself.
const JOBS_WAITING: usize = 1024;

/// How many jobs share one write to the disk: what a burst brings, without making the first wait for long.
const JOBS_TOGETHER: usize = 128;

/// How often leases are looked at, as in etcd; a lease ends at most so much late.
const TICK: Duration = Duration::from_millis(500);

/// A job, which returns how it is answered once the disk has spoken.
type Job = Box<dyn FnOnce(&mut Store, Duration) -> Answer + Send>;
type Answer = Box<dyn FnOnce(&io::Result<()>) + Send>;

/// A cheap handle on the owner.
#[derive(Clone)]
pub(super) struct Owner {
    jobs: mpsc::Sender<Job>,
    revision: watch::Receiver<i64>,
    ended: CancellationToken,
}

impl Owner {
    /// Starts the task. It ends, and the log is closed, after `ended`.
    pub(super) fn start(store: Store, log: Option<Log>, ended: CancellationToken) -> (Owner, tokio::task::JoinHandle<()>) {
        let (jobs, waiting) = mpsc::channel(JOBS_WAITING);
        let (revision_sender, revision) = watch::channel(store.revision());
        let task = Task { store, has_file: log.is_some(), log, jobs: waiting, revision: revision_sender, clock: Clock::new() };
        let running = tokio::spawn(task.run(ended.clone()));
        (Owner { jobs, revision, ended }, running)
    }

    /// Does something with the store, and waits until that is on the disk. The time is the store's own.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Store, Duration) -> T + Send + 'static,
    ) -> Result<T, Status> {
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |store, now| {
            let result = job(store, now);
            Box::new(move |written| {
                let result = match written {
                    Ok(()) => Ok(result),
                    Err(error) => Err(Status::unavailable(format!("banyan's registry can't write its file: {error}"))),
                };
                // Whoever asked may have gone.
                let _ = reply.send(result);
            })
        });
        let stopping = |_| Status::unavailable("banyan's registry is stopping");
        self.jobs.send(job).await.map_err(|_| stopping(()))?;
        answer.await.map_err(|_| stopping(()))?
    }

    /// As [`Owner::ask`], for what may be refused.
    pub(super) async fn request<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Store, Duration) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Status> {
        self.ask(job).await?.map_err(Status::from)
    }

    /// The revision that is on the disk.
    pub(super) fn revision(&self) -> watch::Receiver<i64> {
        self.revision.clone()
    }

    /// When the server stops.
    pub(super) fn ended(&self) -> CancellationToken {
        self.ended.clone()
    }
}

struct Task {
    store: Store,
    has_file: bool,
    /// None without a file, and while a write is going on.
    log: Option<Log>,
    jobs: mpsc::Receiver<Job>,
    revision: watch::Sender<i64>,
    clock: Clock,
}

impl Task {
    async fn run(mut self, ended: CancellationToken) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut jobs = Vec::with_capacity(JOBS_TOGETHER);
        loop {
            tokio::select! {
                biased;
                () = ended.cancelled() => return,
                _ = tick.tick() => {
                    let now = self.clock.now();
                    self.store.expire(now);
                }
                _ = self.jobs.recv_many(&mut jobs, JOBS_TOGETHER) => {}
            }
            let now = self.clock.now();
            let answers: Vec<Answer> = jobs.drain(..).map(|job| job(&mut self.store, now)).collect();
            let written = self.write().await;
            // First the revision: who has an answer and then watches from now on gets nothing that he knows.
            let revision = self.store.revision();
            self.revision.send_if_modified(|told| std::mem::replace(told, revision) != revision);
            for answer in answers {
                answer(&written);
            }
        }
    }

    /// Brings what changed to the disk.
    async fn write(&mut self) -> io::Result<()> {
        let records = self.store.take_journal();
        if records.is_empty() {
            return Ok(());
        }
        let Some(mut log) = self.log.take() else {
            return if self.has_file { Err(io::Error::other("the file was lost")) } else { Ok(()) };
        };
        let state = log.wants_state().then(|| self.store.to_records());
        let writing = tokio::task::spawn_blocking(move || {
            let written = match state {
                Some(state) => log.replace(&state),
                None => log.append(&records),
            };
            (log, written)
        });
        let (log, written) = writing.await.map_err(io::Error::other)?;
        self.log = Some(log);
        if let Err(error) = &written {
            // The state goes on in memory; the next write is of all of it, so nothing is lost once there is room again.
            error!(%error, "could not write the registry file");
        }
        written
    }
}

/// The time that counts for leases: time during which this process ran.
///
/// When it was stopped, or starved, for longer than a second, nobody could renew a lease, so that time does not count.
struct Clock {
    served: Duration,
    last: Instant,
}

impl Clock {
    /// The most that one look at the clock adds; looks are half a second apart when all is well.
    const STEP_MAX: Duration = Duration::from_secs(1);

    fn new() -> Clock {
        Clock { served: Duration::ZERO, last: Instant::now() }
    }

    fn now(&mut self) -> Duration {
        let passed = self.last.elapsed();
        self.last = Instant::now();
        if passed > 2 * Self::STEP_MAX {
            info!(seconds = passed.as_secs_f32(), "did not run for a while; leases are longer by that");
        }
        self.served += passed.min(Self::STEP_MAX);
        self.served
    }
}
