//! The Watch service: one session per stream, several watchers in each.
//!
//! A session asks the store for more when the revision has moved and its client has taken what it was sent; nothing queues
//! up for a client that does not read.

use std::{collections::BTreeMap, time::Duration};

use etcd_client::{
    WatchFilterType,
    proto::{PbWatchRequest, PbWatchRequestUnion, PbWatchResponse, PbWatchService},
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{
    identity::Identity,
    owner::Owner,
    span::Span,
    watching::{Batch, Watching},
};

/// How many messages wait for the network on one stream.
const MESSAGES_WAITING: usize = 8;

/// How many watchers one stream may have: Banyan needs one, and a session looks through all of its own at each revision.
const WATCHERS_MAX: usize = 1024;

/// How long a watcher that asked for it hears nothing before it is told how far the history is; as in etcd.
const PROGRESS_EVERY: Duration = Duration::from_mins(10);

/// The id in answers that are for no watcher, or for one that was not made.
const NO_WATCHER: i64 = -1;

pub(super) struct Watch {
    pub(super) owner: Owner,
    pub(super) identity: Identity,
}

#[tonic::async_trait]
impl PbWatchService for Watch {
    type WatchStream = ReceiverStream<Result<PbWatchResponse, Status>>;

    async fn watch(&self, request: Request<Streaming<PbWatchRequest>>) -> Result<Response<Self::WatchStream>, Status> {
        let (messages, sent) = mpsc::channel(MESSAGES_WAITING);
        let session = Session {
            revision: self.owner.revision(),
            owner: self.owner.clone(),
            identity: self.identity,
            watchers: BTreeMap::new(),
            next_id: 0,
            messages,
        };
        let ended = self.owner.ended();
        tokio::spawn(async move { ended.run_until_cancelled(session.run(request.into_inner())).await });
        Ok(Response::new(ReceiverStream::new(sent)))
    }
}

struct Session {
    owner: Owner,
    identity: Identity,
    revision: watch::Receiver<i64>,
    watchers: BTreeMap<i64, Watcher>,
    next_id: i64,
    messages: mpsc::Sender<Result<PbWatchResponse, Status>>,
}

struct Watcher {
    watching: Watching,
    progress: bool,
    heard: Instant,
}

/// The client has gone.
struct Gone;

impl Session {
    async fn run(mut self, mut requests: Streaming<PbWatchRequest>) {
        let mut progress = tokio::time::interval(PROGRESS_EVERY);
        // A client may close its side and go on listening; only closing both ends the session.
        let mut open = true;
        loop {
            let done = tokio::select! {
                request = requests.message(), if open => match request {
                    Ok(Some(request)) => self.answer(request).await,
                    Ok(None) => {
                        open = false;
                        Ok(())
                    }
                    Err(_) => Err(Gone),
                },
                Ok(()) = self.revision.changed() => self.pump().await.map(|_| ()),
                _ = progress.tick() => self.tell_progress().await,
                () = self.messages.closed() => Err(Gone),
            };
            if done.is_err() {
                return;
            }
        }
    }

    async fn answer(&mut self, request: PbWatchRequest) -> Result<(), Gone> {
        match request.request_union {
            Some(PbWatchRequestUnion::CreateRequest(create)) => {
                // No key is every key, as in etcd.
                let key = if create.key.is_empty() { vec![0] } else { create.key };
                let filters = |filter: WatchFilterType| create.filters.contains(&(filter as i32));
                let watching = Watching {
                    span: Span::new(&key, &create.range_end),
                    next: create.start_revision,
                    puts: !filters(WatchFilterType::NoPut),
                    deletions: !filters(WatchFilterType::NoDelete),
                    previous: create.prev_kv,
                };
                self.create(create.watch_id, watching, create.progress_notify).await
            }
            Some(PbWatchRequestUnion::CancelRequest(cancel)) => {
                if self.watchers.remove(&cancel.watch_id).is_none() {
                    return Ok(());
                }
                self.send(PbWatchResponse { watch_id: cancel.watch_id, canceled: true, ..self.message() }).await
            }
            Some(PbWatchRequestUnion::ProgressRequest(_)) => {
                let header = self.pump().await.map(|revision| self.identity.header(revision))?;
                self.send(PbWatchResponse { watch_id: NO_WATCHER, header, ..PbWatchResponse::default() }).await
            }
            None => Ok(()),
        }
    }

    async fn create(&mut self, wanted_id: i64, mut watching: Watching, progress: bool) -> Result<(), Gone> {
        let revision = self.revision.borrow_and_update().to_owned();
        let header = self.identity.header(revision);
        let refused = if watching.span.is_empty() {
            Some("mvcc: watcher range is empty")
        } else if self.watchers.contains_key(&wanted_id) && wanted_id != 0 {
            Some("mvcc: duplicate watch ID provided on the WatchStream")
        } else if self.watchers.len() >= WATCHERS_MAX {
            Some("banyan: too many watchers on one stream; open another")
        } else {
            None
        };
        if let Some(reason) = refused {
            let cancel_reason = reason.to_owned();
            let created = PbWatchResponse { header, watch_id: NO_WATCHER, created: true, canceled: true, ..Default::default() };
            return self.send(PbWatchResponse { cancel_reason, ..created }).await;
        }
        let watch_id = if wanted_id == 0 { self.free_id() } else { wanted_id };
        if watching.next <= 0 {
            watching.next = revision + 1;
        }
        self.watchers.insert(watch_id, Watcher { watching, progress, heard: Instant::now() });
        self.send(PbWatchResponse { header, watch_id, created: true, ..PbWatchResponse::default() }).await?;
        self.pump().await.map(|_| ())
    }

    fn free_id(&mut self) -> i64 {
        while self.watchers.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        self.next_id - 1
    }

    /// Sends every watcher what there is for it. Returns the revision up to which they have everything.
    async fn pump(&mut self) -> Result<i64, Gone> {
        loop {
            let mut places: Vec<(i64, Watching)> = self.watchers.iter().map(|(id, each)| (*id, each.watching.clone())).collect();
            let advanced = self.owner.ask(move |store, _| {
                let batches: Vec<_> = places.iter_mut().map(|(_, place)| place.advance(&store.keyspace)).collect();
                (store.revision(), places, batches)
            });
            let Ok((revision, places, batches)) = advanced.await else { return Err(Gone) };
            let mut more = false;
            for ((watch_id, watching), batch) in places.into_iter().zip(batches) {
                let message = PbWatchResponse { header: self.identity.header(revision), watch_id, ..Default::default() };
                match batch {
                    Batch::CaughtUp => self.place(watch_id, watching),
                    Batch::Events(events) => {
                        more |= watching.next <= revision;
                        self.place(watch_id, watching);
                        self.send(PbWatchResponse { events, ..message }).await?;
                    }
                    Batch::Compacted(compact_revision) => {
                        self.watchers.remove(&watch_id);
                        self.send(PbWatchResponse { canceled: true, compact_revision, ..message }).await?;
                    }
                }
            }
            if !more {
                return Ok(revision);
            }
        }
    }

    fn place(&mut self, id: i64, watching: Watching) {
        if let Some(watcher) = self.watchers.get_mut(&id) {
            watcher.watching = watching;
        }
    }

    async fn tell_progress(&mut self) -> Result<(), Gone> {
        let revision = self.pump().await?;
        let quiet = |watcher: &Watcher| watcher.progress && watcher.heard.elapsed() >= PROGRESS_EVERY;
        let quiet: Vec<i64> = self.watchers.iter().filter(|(_, each)| quiet(each)).map(|(id, _)| *id).collect();
        for watch_id in quiet {
            let header = self.identity.header(revision);
            self.send(PbWatchResponse { header, watch_id, ..PbWatchResponse::default() }).await?;
        }
        Ok(())
    }

    fn message(&self) -> PbWatchResponse {
        PbWatchResponse { header: self.identity.header(*self.revision.borrow()), ..PbWatchResponse::default() }
    }

    async fn send(&mut self, message: PbWatchResponse) -> Result<(), Gone> {
        if let Some(watcher) = self.watchers.get_mut(&message.watch_id) {
            watcher.heard = Instant::now();
        }
        self.messages.send(Ok(message)).await.map_err(|_| Gone)
    }
}
