//! Writes down what has ended, behind the backs of those who asked: one transaction for whatever has come together meanwhile.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use banyan_store::{Record, Store, unix_ms};
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep},
};
use tracing::warn;

/// What ends in some seconds at a few thousand requests a second; what comes beyond it is lost, and counted.
const WAITING_MAX: usize = 16_384;
/// In one transaction.
const TOGETHER_MAX: usize = 512;

/// How long a store that is in trouble is asked again, before what should be written is given up.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(200);

const SWEEP_EVERY: Duration = Duration::from_secs(3600);
/// How long the request log, and batches that have ended, are kept.
const KEPT_MS: i64 = 30 * 86_400_000;

/// A handle to the task that writes.
#[derive(Clone)]
pub(crate) struct Recorder {
    records: Option<mpsc::Sender<Record>>,
    /// Since that was last told.
    lost: Arc<AtomicU64>,
    lost_total: Arc<AtomicU64>,
}

impl Recorder {
    /// One that forgets everything.
    pub(crate) fn none() -> Recorder {
        Recorder { records: None, lost: Arc::default(), lost_total: Arc::default() }
    }

    /// Starts the task. It ends when all handles are gone, and has then written everything.
    pub(crate) fn start(store: Store) -> (Recorder, JoinHandle<()>) {
        let (records, waiting) = mpsc::channel(WAITING_MAX);
        let recorder = Recorder { records: Some(records), ..Recorder::none() };
        let (lost, total) = (Arc::clone(&recorder.lost), Arc::clone(&recorder.lost_total));
        (recorder, tokio::spawn(run(store, waiting, lost, total)))
    }

    /// Records that were not written.
    pub(crate) fn lost(&self) -> u64 {
        self.lost_total.load(Ordering::Relaxed)
    }

    pub(crate) fn write(&self, record: Record) {
        if let Some(records) = &self.records
            && records.try_send(record).is_err()
        {
            self.lost.fetch_add(1, Ordering::Relaxed);
            self.lost_total.fetch_add(1, Ordering::Relaxed);
        }
    }
}

async fn run(store: Store, mut waiting: mpsc::Receiver<Record>, lost: Arc<AtomicU64>, lost_total: Arc<AtomicU64>) {
    let mut sweep = Instant::now();
    let mut records = Vec::new();
    while waiting.recv_many(&mut records, TOGETHER_MAX).await > 0 {
        let begun = Instant::now();
        let together = std::mem::take(&mut records);
        loop {
            match store.record(together.clone()).await {
                Ok(()) => break,
                Err(error) if begun.elapsed() > PATIENCE => {
                    let now_lost = together.len() as u64;
                    lost_total.fetch_add(now_lost, Ordering::Relaxed);
                    warn!(error = &error as &dyn std::error::Error, records = now_lost, "usage was not written");
                    break;
                }
                Err(_) => sleep(PAUSE).await,
            }
        }
        match lost.swap(0, Ordering::Relaxed) {
            0 => {}
            records => warn!(records, "usage was not written: the store is too slow"),
        }
        if sweep <= Instant::now() {
            sweep = Instant::now() + SWEEP_EVERY;
            if let Err(error) = store.sweep(unix_ms().saturating_sub(KEPT_MS)).await {
                warn!(error = &error as &dyn std::error::Error, "failed to delete what is old");
            }
        }
    }
}
