//! The keys as this API knows them: all of them in memory, looked at again every second, and good while the store is away.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use banyan_store::{Bucket, Error, Key, KeyTable, Refused, Standing, Store, Wanted, unix_ms};
use tracing::warn;

/// How long a key that was revoked elsewhere is still good here.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// All keys.
pub(crate) struct Keyring {
    table: RwLock<Arc<KeyTable>>,
    /// Whether a key has to be shown even while there is none.
    closed: bool,
    /// What was used here while the store could not be asked; one for each key that was.
    alone: Mutex<HashMap<String, Bucket>>,
}

/// Why somebody may not ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Denied {
    /// No key was shown.
    Missing,
    /// It is none of ours.
    Unknown,
    /// It was one.
    Revoked,
}

impl Keyring {
    /// Keys that nobody has to show.
    pub(crate) fn none() -> Self {
        Keyring { table: RwLock::default(), closed: false, alone: Mutex::default() }
    }

    /// Reads all keys. With `closed`, one has to be shown even while there is none.
    pub(crate) async fn load(store: &Store, closed: bool) -> Result<Self, Error> {
        let table = store.keys_since(None).await?.unwrap_or_default();
        Ok(Keyring { table: RwLock::new(Arc::new(table)), closed, alone: Mutex::default() })
    }

    /// Whether no key was ever made.
    pub(crate) fn is_empty(&self) -> bool {
        self.table().is_empty()
    }

    /// Whose secret it is. `None`: nobody has to show one.
    pub(crate) fn check(&self, secret: Option<&str>) -> Result<Option<Arc<Key>>, Denied> {
        let table = self.table();
        if table.is_empty() && !self.closed {
            return Ok(None);
        }
        let key = table.find(secret.ok_or(Denied::Missing)?, unix_ms()).ok_or(Denied::Unknown)?;
        if key.revoked_ms.is_some() { Err(Denied::Revoked) } else { Ok(Some(Arc::clone(key))) }
    }

    /// The key of an id, while it is good.
    pub(crate) fn by_id(&self, id: &str) -> Option<Arc<Key>> {
        self.table().by_id(id).cloned()
    }

    /// Takes from a key's bucket where the store can't be asked: then every API counts for itself.
    pub(crate) fn take_alone(&self, key: &Key, wanted: Wanted) -> Result<Standing, Refused> {
        let mut alone = self.alone.lock().unwrap_or_else(PoisonError::into_inner);
        if !alone.contains_key(&key.id) {
            alone.insert(key.id.clone(), Bucket::default());
        }
        let bucket = alone.get_mut(&key.id).expect("it was put there above");
        bucket.take(key, wanted, unix_ms())
    }

    /// Looks for changes until it is dropped.
    pub(crate) async fn follow(self: Arc<Self>, store: Store) {
        let mut in_trouble = false;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let known = self.table();
            match store.keys_since(Some(&known)).await {
                Ok(changed) => {
                    in_trouble = false;
                    if let Some(table) = changed {
                        *self.table.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(table);
                    }
                }
                Err(error) if !in_trouble => {
                    in_trouble = true;
                    warn!(error = &error as &dyn std::error::Error, "keys can't be read; those known stay good");
                }
                Err(_) => {}
            }
        }
    }

    fn table(&self) -> Arc<KeyTable> {
        self.table.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
