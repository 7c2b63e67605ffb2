//! Who was told to ask again, and when: whoever does gets the place that the root keeps.
//!
//! A client is known by its request's bytes, since clients send the same once more. They are remembered as a number.

use std::{
    collections::{HashMap, VecDeque, hash_map::RandomState},
    hash::{BuildHasher as _, Hasher as _},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Twice what a tree that answers a thousand queries a second promises.
const KEPT: usize = 1 << 17;
/// Clocks and timers are not exact.
const EARLY: Duration = Duration::from_millis(100);
/// After that a place is nobody's any more.
const LATE: Duration = Duration::from_secs(10);
/// Requests that are equal so far, and equally long, are one.
const HASHED_BYTES: usize = 256 << 10;

/// Those who may come back. See the module.
#[derive(Default)]
pub(crate) struct Returns {
    hasher: RandomState,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    due: HashMap<u64, Instant>,
    /// In the order in which they were told.
    order: VecDeque<(u64, Instant)>,
}

impl Returns {
    /// What a request is known by.
    pub(crate) fn key(&self, path: &str, body: &[u8]) -> u64 {
        let mut hash = self.hasher.build_hasher();
        hash.write(path.as_bytes());
        hash.write_usize(body.len());
        hash.write(&body[..body.len().min(HASHED_BYTES)]);
        hash.finish()
    }

    /// A client was told to come back after so long.
    pub(crate) fn told(&self, key: u64, now: Instant, after: Duration) {
        let due = now + after;
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.order.len() == KEPT {
            kept.forget_first();
        }
        kept.due.insert(key, due);
        kept.order.push_back((key, due));
    }

    /// Whether a client comes back, and at its time. Asked once: the place is then taken, or the client told again.
    pub(crate) fn is_back(&self, key: u64, now: Instant) -> bool {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        while kept.order.front().is_some_and(|(_, due)| *due + LATE < now) {
            kept.forget_first();
        }
        let back = kept.due.get(&key).is_some_and(|due| *due <= now + EARLY && now <= *due + LATE);
        if back {
            kept.due.remove(&key);
        }
        back
    }
}

impl Kept {
    fn forget_first(&mut self) {
        if let Some((key, due)) = self.order.pop_front()
            && self.due.get(&key) == Some(&due)
        {
            self.due.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_back_at_its_time_is_known_once() {
        let returns = Returns::default();
        let (start, wait) = (Instant::now(), Duration::from_secs(3));
        let key = returns.key("/v1/completions", b"{}");
        assert_ne!(key, returns.key("/v1/chat/completions", b"{}"));
        assert!(!returns.is_back(key, start));
        returns.told(key, start, wait);
        assert!(!returns.is_back(key, start), "too early");
        assert!(returns.is_back(key, start + wait));
        assert!(!returns.is_back(key, start + wait), "the place is taken");
        returns.told(key, start, wait);
        assert!(!returns.is_back(key, start + 10 * wait), "too late");
        assert!(returns.kept.lock().unwrap().order.is_empty());
    }

    #[test]
    fn no_more_are_remembered_than_may_be() {
        let returns = Returns::default();
        let now = Instant::now();
        for key in 0..2 * KEPT as u64 {
            returns.told(key, now, Duration::from_secs(1));
        }
        let kept = returns.kept.lock().unwrap();
        assert_eq!((kept.due.len(), kept.order.len()), (KEPT, KEPT));
    }
}
