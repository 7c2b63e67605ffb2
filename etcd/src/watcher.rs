//! The one task per registry that keeps the [`View`] true: list, watch from there on, and begin again whenever in doubt.
//!
//! A broken or silent stream, a compacted revision and a restarted server all end the same way: a new listing. Every 30 s a
//! listing is taken while the watch goes on, since etcd 3.4 and 3.5 could drop an event around a compaction (etcd#18089).

use std::{future::Future, sync::Arc, time::Duration};

use etcd_client::{EventType, GetOptions, WatchOptions, WatchResponse};
use tokio::{
    runtime::Handle,
    sync::watch,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{
    CallError, View,
    backoff::Backoff,
    keys::Keys,
    registry::{SharedClient, now},
    view::Entry,
};

/// How often everything is listed though the watch is well.
const RECONCILE_EVERY: Duration = Duration::from_secs(30);

/// How many keys one answer of a listing brings: with values of at most 64 KiB, what [`MESSAGE_BYTES_MAX`] takes.
const PAGE_KEYS: i64 = 500;

/// The largest message that is taken from the registry, in bytes: a page of the largest members there can be.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// How often a listing begins again because its revision was compacted between two pages.
const LISTING_TRIES: usize = 3;

/// Reads all of a cluster's keys.
#[derive(Clone)]
pub(crate) struct Listing {
    client: SharedClient,
    keys: Keys,
    timeout: Duration,
}

/// Why following the registry ended.
enum End {
    /// Events are missing: list again.
    Behind,
    /// The way to the registry is lost.
    Lost(CallError),
}

/// Starts the task. It ends with `ended`.
pub(crate) fn spawn(runtime: &Handle, listing: Listing, ended: CancellationToken) -> watch::Receiver<Arc<View>> {
    let (sender, receiver) = watch::channel(Arc::default());
    let watcher = Watcher { listing, sender };
    runtime.spawn(async move { ended.run_until_cancelled(watcher.run()).await });
    receiver
}

impl Listing {
    pub(crate) fn new(client: SharedClient, keys: Keys, timeout: Duration) -> Self {
        Listing { client, keys, timeout }
    }

    /// Everything, at one revision.
    pub(crate) async fn read(&self) -> Result<View, CallError> {
        for _ in 1..LISTING_TRIES {
            match self.pages().await {
                Err(CallError::Status { status }) if status.code() == tonic::Code::OutOfRange => {}
                read => return read,
            }
        }
        self.pages().await
    }

    async fn pages(&self) -> Result<View, CallError> {
        let mut kv = now(&self.client).kv_client().max_decoding_message_size(MESSAGE_BYTES_MAX);
        let mut view = View::default();
        let mut from = self.keys.all().as_bytes().to_vec();
        let end = after(self.keys.all());
        loop {
            let options = GetOptions::new().with_range(end.clone()).with_limit(PAGE_KEYS).with_revision(view.revision);
            let page = self.within(kv.get(from.clone(), Some(options))).await?;
            if view.revision == 0 {
                view.revision = page.header().map_or(0, |header| header.revision());
            }
            for kv in page.kvs() {
                let entry = Entry { key: kv.key(), value: kv.value(), create_revision: kv.create_revision() };
                view.put(&self.keys, &entry);
            }
            match page.kvs().last() {
                Some(last) if page.more() => from = [last.key(), b"\0"].concat(),
                _ => return Ok(view),
            }
        }
    }

    async fn within<T>(&self, call: impl Future<Output = Result<T, etcd_client::Error>>) -> Result<T, CallError> {
        match tokio::time::timeout(self.timeout, call).await {
            Ok(result) => result.map_err(CallError::from),
            Err(_) => Err(CallError::TimedOut(self.timeout)),
        }
    }
}

/// The first key behind all that begin with `prefix`, which ends in a slash.
fn after(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

struct Watcher {
    listing: Listing,
    sender: watch::Sender<Arc<View>>,
}

impl Watcher {
    async fn run(self) {
        let mut backoff = Backoff::while_unavailable();
        loop {
            match self.follow(&mut backoff).await {
                End::Behind => info!(cluster = self.listing.keys.all(), "events were missed; listing again"),
                End::Lost(error) => {
                    let lost = self.sender.send_if_modified(|view| {
                        let was_live = view.live;
                        if was_live {
                            Arc::make_mut(view).live = false;
                        }
                        was_live
                    });
                    if lost {
                        warn!(cluster = self.listing.keys.all(), %error, "lost the registry; going on with what is known");
                    } else {
                        debug!(cluster = self.listing.keys.all(), %error, "no registry yet");
                    }
                }
            }
            tokio::time::sleep(backoff.next()).await;
        }
    }

    /// Lists, then follows the events until something is wrong.
    async fn follow(&self, backoff: &mut Backoff) -> End {
        match self.listen(backoff).await {
            Ok(end) => end,
            Err(error) => End::Lost(error),
        }
    }

    async fn listen(&self, backoff: &mut Backoff) -> Result<End, CallError> {
        let listed = self.listing.read().await?;
        let options = WatchOptions::new().with_prefix().with_start_revision(listed.revision + 1);
        let mut client = now(&self.listing.client).watch_client().max_decoding_message_size(MESSAGE_BYTES_MAX);
        let mut stream = self.listing.within(client.watch(self.listing.keys.all(), Some(options))).await?;
        self.publish(View { live: true, ..listed });
        backoff.reset();

        let mut reconcile = tokio::time::interval_at(Instant::now() + RECONCILE_EVERY, RECONCILE_EVERY);
        reconcile.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // A silent stream is asked for its progress after one time-out, and given up after two.
        let mut heard = Instant::now();
        let mut asked = false;
        loop {
            tokio::select! {
                message = stream.message() => {
                    (heard, asked) = (Instant::now(), false);
                    match message? {
                        Some(response) if response.canceled() => return Ok(End::Behind),
                        Some(response) => self.apply(&response),
                        None => return Ok(End::Lost(CallError::Status {
                            status: Box::new(tonic::Status::unavailable("the registry ended the watch")),
                        })),
                    }
                }
                () = tokio::time::sleep_until(heard + self.listing.timeout), if !asked => {
                    asked = true;
                    self.listing.within(stream.request_progress()).await?;
                }
                () = tokio::time::sleep_until(heard + 2 * self.listing.timeout), if asked => {
                    return Err(CallError::TimedOut(2 * self.listing.timeout));
                }
                _ = reconcile.tick() => {
                    let listed = self.listing.read().await?;
                    if listed.revision < self.sender.borrow().revision {
                        // Another history: the registry's data was replaced.
                        return Ok(End::Behind);
                    }
                    self.publish(View { live: true, ..listed });
                }
            }
        }
    }

    fn apply(&self, response: &WatchResponse) {
        let known = self.sender.borrow().revision;
        // What a listing brought already comes again on the stream.
        let new = response.events().iter().filter_map(|event| event.kv().map(|kv| (event, kv)));
        let new: Vec<_> = new.filter(|(_, kv)| kv.mod_revision() > known).collect();
        if new.is_empty() {
            return;
        }
        self.sender.send_modify(|view| {
            let view = Arc::make_mut(view);
            for (event, kv) in new {
                match event.event_type() {
                    EventType::Put => {
                        let entry = Entry { key: kv.key(), value: kv.value(), create_revision: kv.create_revision() };
                        view.put(&self.listing.keys, &entry);
                    }
                    EventType::Delete => view.delete(&self.listing.keys, kv.key()),
                }
                view.revision = view.revision.max(kv.mod_revision());
            }
        });
    }

    fn publish(&self, listed: View) {
        self.sender.send_if_modified(|view| {
            let changed = **view != listed;
            if changed {
                *view = Arc::new(listed);
            }
            changed
        });
    }
}
