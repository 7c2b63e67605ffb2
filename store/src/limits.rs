//! How much a key may ask a minute: buckets that run full and drain evenly, taken from before a query and settled after it.
//!
//! A bucket holds what was used lately, in sixty-thousandths, so that it drains by its limit every millisecond and no fraction is
//! ever lost. The rule is plain code; the store makes it one for all APIs.

use futures::FutureExt as _;

use crate::{Error, Key, Store, connection::Connection, time::unix_ms};

/// A minute in milliseconds: what one request or token weighs in a bucket.
const MINUTE: i64 = 60_000;

/// More than a year's worth is a mistake of somebody's clock.
const LEVEL_MAX: i64 = i64::MAX / 4;

/// What a key has used lately.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    requests: i64,
    tokens: i64,
    at_ms: i64,
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Usually one.
    pub requests: u32,
    /// An upper bound of prompt and answer.
    pub tokens: u64,
}

/// How a key stands with one of its limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// A minute.
    pub limit: u32,
    /// At once.
    pub remaining: u32,
    /// Until all of the limit remains.
    pub reset_ms: u64,
}

/// How a key stands with its limits; `None` where it has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Of requests.
    pub requests: Option<Room>,
    /// Of tokens.
    pub tokens: Option<Room>,
}

/// It would be too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Whether it is the tokens, or else the requests.
    pub by_tokens: bool,
    /// When it would no longer be.
    pub retry_ms: u64,
    /// How the key stands.
    pub standing: Standing,
}

impl Bucket {
    /// Takes what is wanted, all or nothing.
    ///
    /// What is larger than a whole limit waits for an empty bucket, rather than for ever.
    ///
    /// # Errors
    /// When there is not enough room.
    pub fn take(&mut self, key: &Key, wanted: Wanted, now_ms: i64) -> Result<Standing, Refused> {
        self.drain(key, now_ms);
        let requests = wait(self.requests, key.requests_per_minute, wanted.requests.into());
        let tokens = wait(self.tokens, key.tokens_per_minute, wanted.tokens);
        if requests > 0 || tokens > 0 {
            let (by_tokens, retry_ms) = (tokens > requests, requests.max(tokens));
            return Err(Refused { by_tokens, retry_ms, standing: self.standing(key) });
        }
        self.requests = add(self.requests, wanted.requests.into());
        self.tokens = add(self.tokens, i64::try_from(wanted.tokens).unwrap_or(i64::MAX));
        Ok(self.standing(key))
    }

    /// Puts right what was reserved by what was used.
    pub fn settle(&mut self, key: &Key, reserved: u64, used: u64, now_ms: i64) {
        self.drain(key, now_ms);
        let difference = i64::try_from(used).unwrap_or(i64::MAX).saturating_sub(i64::try_from(reserved).unwrap_or(i64::MAX));
        self.tokens = add(self.tokens, difference).max(0);
    }

    /// How the key stands.
    pub fn standing(&self, key: &Key) -> Standing {
        Standing { requests: room(self.requests, key.requests_per_minute), tokens: room(self.tokens, key.tokens_per_minute) }
    }

    /// A clock that was set back drains nothing until it has caught up with where it was, or a minute at most.
    fn drain(&mut self, key: &Key, now_ms: i64) {
        let passed = now_ms.saturating_sub(self.at_ms);
        if passed < 0 && passed > -MINUTE {
            return;
        }
        self.at_ms = now_ms;
        let less = |level: i64, limit: Option<u32>| match limit {
            Some(limit) => level.saturating_sub(passed.max(0).saturating_mul(limit.into())).max(0),
            None => 0,
        };
        self.requests = less(self.requests, key.requests_per_minute);
        self.tokens = less(self.tokens, key.tokens_per_minute);
    }
}

fn add(level: i64, more: i64) -> i64 {
    level.saturating_add(more.saturating_mul(MINUTE)).min(LEVEL_MAX)
}

/// Milliseconds until so much has room.
fn wait(level: i64, limit: Option<u32>, wanted: u64) -> u64 {
    let Some(limit) = limit else { return 0 };
    let wanted = i64::from(limit).min(i64::try_from(wanted).unwrap_or(i64::MAX));
    let beyond = level.saturating_add(wanted * MINUTE).saturating_sub(i64::from(limit) * MINUTE);
    // Nothing wanted is never too much.
    if wanted == 0 { 0 } else { beyond.max(0).unsigned_abs().div_ceil(u64::from(limit)) }
}

fn room(level: i64, limit: Option<u32>) -> Option<Room> {
    let limit = limit?;
    let remaining = (i64::from(limit) * MINUTE).saturating_sub(level).max(0) / MINUTE;
    let reset_ms = level.unsigned_abs().div_ceil(u64::from(limit));
    Some(Room { limit, remaining: u32::try_from(remaining).unwrap_or(u32::MAX), reset_ms })
}

impl Store {
    /// Takes from a key's bucket, which all APIs share.
    ///
    /// # Errors
    /// When the store can't be asked; what the bucket says is inside.
    pub async fn take(&self, key: &Key, wanted: Wanted) -> Result<Result<Standing, Refused>, Error> {
        let key = key.clone();
        self.write(move |connection| {
            async move {
                let mut bucket = read(connection, &key.id).await?;
                let taken = bucket.take(&key, wanted, unix_ms());
                if taken.is_ok() {
                    write(connection, &key.id, bucket).await?;
                }
                Ok(taken)
            }
            .boxed()
        })
        .await
    }
}

/// For whoever settles several at once.
pub(crate) async fn settle(connection: &mut Connection, key: &Key, reserved: u64, used: u64) -> Result<(), Error> {
    let mut bucket = read(connection, &key.id).await?;
    bucket.settle(key, reserved, used, unix_ms());
    write(connection, &key.id, bucket).await
}

async fn read(connection: &mut Connection, key: &str) -> Result<Bucket, Error> {
    let row = connection.row("SELECT requests, tokens, at_ms FROM buckets WHERE key_id = ?1 {lock}", &[key.into()]).await?;
    match row {
        Some(row) => Ok(Bucket { requests: row.int(0)?, tokens: row.int(1)?, at_ms: row.int(2)? }),
        None => Err(Error::Missing("the key is gone".to_owned())),
    }
}

async fn write(connection: &mut Connection, key: &str, bucket: Bucket) -> Result<(), Error> {
    let values = [key.into(), bucket.requests.into(), bucket.tokens.into(), bucket.at_ms.into()];
    let sql = "UPDATE buckets SET requests = ?2, tokens = ?3, at_ms = ?4 WHERE key_id = ?1";
    connection.execute(sql, &values).await.map(drop)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(requests: Option<u32>, tokens: Option<u32>) -> Key {
        Key {
            id: "k".into(),
            name: "k".into(),
            shown: String::new(),
            models: Vec::new(),
            requests_per_minute: requests,
            tokens_per_minute: tokens,
            operator: false,
            created_ms: 0,
            revoked_ms: None,
        }
    }

    fn one(tokens: u64) -> Wanted {
        Wanted { requests: 1, tokens }
    }

    #[test]
    fn a_minutes_worth_goes_at_once_and_comes_back_evenly() {
        let (key, mut bucket) = (key(Some(6), None), Bucket::default());
        for left in (0..6).rev() {
            assert_eq!(bucket.take(&key, one(0), 0).unwrap().requests.unwrap().remaining, left);
        }
        let refused = bucket.take(&key, one(0), 0).unwrap_err();
        assert_eq!((refused.by_tokens, refused.retry_ms), (false, 10_000));
        assert_eq!(refused.standing.requests, Some(Room { limit: 6, remaining: 0, reset_ms: 60_000 }));
        assert!(bucket.take(&key, one(0), 9_999).is_err());
        assert!(bucket.take(&key, one(0), 10_000).is_ok());
        assert_eq!(bucket.take(&key, one(0), 10_000).unwrap_err().retry_ms, 10_000);
    }

    #[test]
    fn what_was_reserved_and_not_used_is_there_again() {
        let (key, mut bucket) = (key(None, Some(100)), Bucket::default());
        bucket.take(&key, one(80), 0).unwrap();
        assert!(bucket.take(&key, one(30), 0).unwrap_err().by_tokens);
        bucket.settle(&key, 80, 20, 0);
        assert_eq!(bucket.take(&key, one(80), 0).unwrap().tokens.unwrap().remaining, 0);
    }

    #[test]
    fn more_than_a_whole_limit_waits_for_an_empty_bucket_and_not_for_ever() {
        let (key, mut bucket) = (key(None, Some(100)), Bucket::default());
        bucket.take(&key, one(5000), 0).unwrap();
        bucket.settle(&key, 5000, 50, 0);
        assert_eq!(bucket.take(&key, one(5000), 0).unwrap_err().retry_ms, 30_000);
        assert!(bucket.take(&key, one(5000), 30_000).is_ok());
    }

    #[test]
    fn a_clock_that_jumps_locks_nobody_out() {
        let (key, mut bucket) = (key(Some(1), None), Bucket::default());
        bucket.take(&key, one(0), 1_000_000_000).unwrap();
        assert!(bucket.take(&key, one(0), 999_990_000).is_err());
        assert!(bucket.take(&key, one(0), 1_000).is_err(), "nothing drained by going back");
        assert!(bucket.take(&key, one(0), 61_000).is_ok());
    }

    proptest! {
        #[test]
        fn no_minute_after_an_empty_bucket_lets_more_through_than_its_limit_and_what_drained(
            limit in 1u32..500,
            gaps in proptest::collection::vec(0i64..3_000, 1..400),
        ) {
            let (key, mut bucket, mut now, mut passed) = (key(Some(limit), None), Bucket::default(), 0, 0i64);
            for gap in gaps {
                now += gap;
                match bucket.take(&key, one(0), now) {
                    Ok(_) => passed += 1,
                    Err(refused) => {
                        let mut later = bucket;
                        prop_assert!(later.take(&key, one(0), now + refused.retry_ms as i64).is_ok(), "the advice is true");
                        let mut sooner = bucket;
                        prop_assert!(sooner.take(&key, one(0), now + refused.retry_ms as i64 - 1).is_err(), "and no later than need be");
                    }
                }
                prop_assert!(passed * MINUTE <= i64::from(limit) * (MINUTE + now));
            }
        }
    }
}
