//! One look at the tree, shared by all who look: a task that follows the roots while anybody does, and the last of its events for those
//! who come back.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use banyan_proto::{NodeName, v1};
use serde_json::Value;
use tokio::{
    sync::{broadcast, mpsc},
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::CancellationToken;

use super::picture::Picture;
use crate::{root::Roots, sse};

/// What changes within that goes as one event.
const TOGETHER: Duration = Duration::from_millis(100);
/// Rates are over that long.
const RATE_OVER: Duration = Duration::from_secs(1);
/// Events that a reader may be behind, and that are kept for those who come back: some seconds.
const EVENTS_MAX: usize = 128;
/// More people than look at one tree through one API.
const READERS_MAX: usize = 256;
/// Who loses the line is back by then.
const LINGER: Duration = Duration::from_secs(10);
/// Between two tries at a root.
const PAUSE: Duration = Duration::from_millis(300);
/// Sights of roots that wait.
const SIGHTS: usize = 64;

/// The look, while there is one.
#[derive(Default)]
pub(crate) struct Trees {
    hub: Mutex<Option<Arc<Hub>>>,
}

/// What is seen. See the module.
pub(super) struct Hub {
    seen: Mutex<Seen>,
    events: broadcast::Sender<Arc<Event>>,
    /// Tells its events from those of another one.
    life: u64,
}

struct Seen {
    picture: Picture,
    number: u64,
    last: VecDeque<Arc<Event>>,
}

/// Something that changed, or all of it.
pub(super) struct Event {
    pub(super) number: u64,
    life: u64,
    value: Value,
}

/// Somebody who looks.
pub(super) struct Reader {
    pub(super) hub: Arc<Hub>,
    pub(super) events: broadcast::Receiver<Arc<Event>>,
    /// The last event that it has got.
    pub(super) seen: u64,
}

impl Event {
    pub(super) fn write(&self, events: &mut sse::Events) {
        events.id(&format!("{:x}-{}", self.life, self.number));
        events.json(&self.value);
    }
}

impl Trees {
    /// Lets somebody look: from the event on that they saw last, where it is still known, else from all of it. `None`: too many do.
    pub(super) fn join(
        self: &Arc<Self>,
        roots: &Arc<Roots>,
        last: Option<&str>,
        ending: &CancellationToken,
    ) -> Option<(Reader, Vec<Arc<Event>>)> {
        let mut kept = lock(&self.hub);
        let hub = kept.get_or_insert_with(|| {
            let mut picture = Picture::default();
            picture.members(&roots.view());
            // Those who come get all of it first.
            picture.changes();
            let seen = Mutex::new(Seen { picture, number: 0, last: VecDeque::new() });
            let hub = Arc::new(Hub { seen, events: broadcast::channel(EVENTS_MAX).0, life: rand::random() });
            let looking = look(Arc::clone(self), Arc::clone(&hub), Arc::clone(roots));
            tokio::spawn(ending.clone().run_until_cancelled_owned(looking));
            hub
        });
        if hub.events.receiver_count() >= READERS_MAX {
            return None;
        }
        // Under the lock, so that nothing is told between what is given now and what follows.
        let seen = lock(&hub.seen);
        let events = hub.events.subscribe();
        let first = seen.since(hub.life, last).unwrap_or_else(|| vec![Arc::new(hub.all(&seen))]);
        let reader = Reader { hub: Arc::clone(hub), events, seen: seen.number };
        drop(seen);
        Some((reader, first))
    }

    /// Whether nobody looks any more; then it is over.
    fn is_over(&self, hub: &Hub) -> bool {
        let mut kept = lock(&self.hub);
        let over = hub.events.receiver_count() == 0;
        if over {
            *kept = None;
        }
        over
    }
}

impl Hub {
    /// All that is seen now.
    pub(super) fn whole(&self) -> Arc<Event> {
        let seen = lock(&self.seen);
        Arc::new(self.all(&seen))
    }

    fn all(&self, seen: &Seen) -> Event {
        Event { number: seen.number, life: self.life, value: seen.picture.whole() }
    }

    /// Tells what has changed.
    fn tell(&self) {
        let mut seen = lock(&self.seen);
        let Some(value) = seen.picture.changes() else { return };
        seen.number += 1;
        let event = Arc::new(Event { number: seen.number, life: self.life, value });
        if seen.last.len() == EVENTS_MAX {
            seen.last.pop_front();
        }
        seen.last.push_back(Arc::clone(&event));
        // Fails when nobody looks, and who comes back finds it above.
        let _ = self.events.send(event);
    }

    fn with<T>(&self, act: impl FnOnce(&mut Picture) -> T) -> T {
        act(&mut lock(&self.seen).picture)
    }
}

impl Seen {
    /// The events behind one that somebody saw, when none of them is forgotten.
    fn since(&self, life: u64, last: Option<&str>) -> Option<Vec<Arc<Event>>> {
        let (of, number) = last?.split_once('-')?;
        let number: u64 = number.parse().ok()?;
        if of != format!("{life:x}") || number > self.number {
            return None;
        }
        let first = self.last.front().map_or(self.number + 1, |event| event.number);
        (number + 1 >= first).then(|| self.last.iter().filter(|event| event.number > number).cloned().collect())
    }
}

async fn look(trees: Arc<Trees>, hub: Arc<Hub>, roots: Arc<Roots>) {
    let mut view = roots.changes();
    let (to, mut sights) = mpsc::channel(SIGHTS);
    let (mut watched, mut watching) = (BTreeSet::new(), JoinSet::new());
    let (mut together, mut rates) = (interval(TOGETHER), interval(RATE_OVER));
    together.set_missed_tick_behavior(MissedTickBehavior::Delay);
    rates.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut wanted_at = Instant::now();
    view.mark_changed();
    loop {
        tokio::select! {
            changed = view.changed() => {
                if changed.is_err() {
                    // The registry's handle is gone, and with it the API.
                    return;
                }
                let view = view.borrow_and_update().clone();
                for tree in view.roots.keys().filter(|tree| watched.insert((*tree).clone())) {
                    watching.spawn(follow(Arc::clone(&roots), tree.clone(), to.clone()));
                }
                hub.with(|picture| picture.members(&view));
            }
            Some((tree, sight)) = sights.recv() => hub.with(|picture| picture.sight(&tree, sight)),
            _ = rates.tick() => hub.with(|picture| picture.rates(Instant::now())),
            _ = together.tick() => {
                hub.tell();
                if hub.events.receiver_count() > 0 {
                    wanted_at = Instant::now();
                } else if wanted_at.elapsed() > LINGER && trees.is_over(&hub) {
                    return;
                }
            }
        }
    }
}

/// Watches the root of one tree, whichever it is, for ever.
async fn follow(roots: Arc<Roots>, tree: NodeName, to: mpsc::Sender<(NodeName, Option<v1::Sight>)>) {
    loop {
        let sights = match roots.inspect(&tree) {
            Ok(mut client) => client.watch(v1::WatchRequest {}).await.map(tonic::Response::into_inner).ok(),
            Err(_) => None,
        };
        if let Some(mut sights) = sights {
            while let Ok(Some(sight)) = sights.message().await {
                if to.send((tree.clone(), Some(sight))).await.is_err() {
                    return;
                }
            }
        }
        if to.send((tree.clone(), None)).await.is_err() {
            return;
        }
        sleep(PAUSE).await;
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
