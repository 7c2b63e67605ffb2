//! Leases: which there are, until when, and which keys each holds. Pure; the time is passed in.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::refusal::Refusal;

/// The shortest lease, in seconds: what an etcd with its usual election time-out grants at least.
const TTL_MIN: i64 = 2;

/// The longest lease, in seconds; etcd's own bound.
const TTL_MAX: i64 = 9_000_000_000;

/// How many leases there may be: one per node and registration, with room for a runaway script, and small enough to look
/// through twice a second.
const LEASES_MAX: usize = 65_536;

/// All leases.
#[derive(Debug, Default)]
pub(super) struct Leases {
    by_id: BTreeMap<i64, Lease>,
}

/// One lease.
#[derive(Debug)]
pub(super) struct Lease {
    /// Its time to live as granted, in seconds.
    pub(super) ttl: i64,
    /// When it ends, on the store's clock.
    pub(super) ends: Duration,
    pub(super) keys: BTreeSet<Vec<u8>>,
}

impl Leases {
    /// Grants a lease; returns its time to live in seconds.
    pub(super) fn grant(&mut self, id: i64, ttl: i64, now: Duration) -> Result<i64, Refusal> {
        if ttl > TTL_MAX {
            return Err(Refusal::LeaseTtlTooLarge);
        }
        if self.by_id.contains_key(&id) {
            return Err(Refusal::LeaseExists);
        }
        if self.by_id.len() >= LEASES_MAX {
            return Err(Refusal::TooManyRequests);
        }
        let ttl = ttl.max(TTL_MIN);
        self.by_id.insert(id, Lease { ttl, ends: now + seconds(ttl), keys: BTreeSet::new() });
        Ok(ttl)
    }

    /// Renews a lease; returns its time to live in seconds.
    pub(super) fn renew(&mut self, id: i64, now: Duration) -> Option<i64> {
        let lease = self.by_id.get_mut(&id)?;
        lease.ends = now + seconds(lease.ttl);
        Some(lease.ttl)
    }

    pub(super) fn remove(&mut self, id: i64) -> Option<Lease> {
        self.by_id.remove(&id)
    }

    pub(super) fn get(&self, id: i64) -> Option<&Lease> {
        self.by_id.get(&id)
    }

    pub(super) fn contains(&self, id: i64) -> bool {
        self.by_id.contains_key(&id)
    }

    /// All of them, by id.
    pub(super) fn iter(&self) -> impl Iterator<Item = (i64, &Lease)> {
        self.by_id.iter().map(|(id, lease)| (*id, lease))
    }

    /// Those whose time is over.
    pub(super) fn over(&self, now: Duration) -> Vec<i64> {
        self.by_id.iter().filter(|(_, lease)| lease.ends <= now).map(|(id, _)| *id).collect()
    }

    /// Notes that a key now belongs to the lease `to` and no longer to `from`; 0 is none.
    pub(super) fn hand_over(&mut self, key: &[u8], from: i64, to: i64) {
        if let Some(lease) = self.by_id.get_mut(&from) {
            lease.keys.remove(key);
        }
        if let Some(lease) = self.by_id.get_mut(&to) {
            lease.keys.insert(key.to_vec());
        }
    }
}

impl Lease {
    /// What is left of it, in whole seconds.
    pub(super) fn left(&self, now: Duration) -> i64 {
        i64::try_from(self.ends.saturating_sub(now).as_secs()).unwrap_or(i64::MAX)
    }
}

fn seconds(ttl: i64) -> Duration {
    Duration::from_secs(ttl.unsigned_abs())
}
