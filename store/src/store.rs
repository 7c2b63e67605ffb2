//! The store as the API has it: a handle that makes each question a transaction over one of a few connections.

use std::{
    fmt,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt as _, future::BoxFuture};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    Error, Target,
    connection::{Connection, Row, Sql, Value},
    postgres::Pg,
    schema,
    sqlite::Lite,
};

/// Connections to PostgreSQL. Questions are short, and its own default is 100 for all its clients.
const CONNECTIONS: usize = 8;

/// Who gets no connection for so long is told so, and goes on without the store.
const PATIENCE: Duration = Duration::from_secs(5);

/// As long as any question takes on a server that is well.
const TRANSACTION: Duration = Duration::from_secs(15);

/// A handle to the store; clones share its connections.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

struct Shared {
    target: Target,
    permits: Arc<Semaphore>,
    idle: Mutex<Vec<Connection>>,
    /// Questions that it could not answer.
    troubles: AtomicU64,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Store").field(&self.shared.target).finish()
    }
}

impl Store {
    /// Opens the store, and brings its tables to the form that this version knows.
    ///
    /// # Errors
    /// When it can't be reached or written, or was made by a later version.
    pub async fn open(target: Target) -> Result<Store, Error> {
        let connections = if matches!(target, Target::Postgres(_)) { CONNECTIONS } else { 1 };
        let shared = Shared {
            target,
            permits: Arc::new(Semaphore::new(connections)),
            idle: Mutex::default(),
            troubles: AtomicU64::new(0),
        };
        let store = Store { shared: Arc::new(shared) };
        store.write(|connection| schema::migrate(connection).boxed()).await?;
        Ok(store)
    }

    /// Where it is, without passwords.
    pub fn target(&self) -> &Target {
        &self.shared.target
    }

    /// Whether it answers.
    ///
    /// # Errors
    /// When it does not.
    pub async fn probe(&self) -> Result<(), Error> {
        self.rows("SELECT 1", []).await.map(drop)
    }

    /// A transaction that outlives the death of this process.
    pub(crate) async fn write<T, F>(&self, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut Connection) -> BoxFuture<'c, Result<T, Error>> + Send + 'static,
    {
        self.transaction(false, work).await
    }

    /// A transaction that outlives the machine's death as well: what was promised to somebody.
    pub(crate) async fn write_durably<T, F>(&self, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut Connection) -> BoxFuture<'c, Result<T, Error>> + Send + 'static,
    {
        self.transaction(true, work).await
    }

    /// One question, in a transaction of its own.
    pub(crate) async fn rows<const N: usize>(&self, sql: Sql, values: [Value; N]) -> Result<Vec<Row>, Error> {
        self.write(move |connection| async move { connection.rows(sql, &values).await }.boxed()).await
    }

    /// One change, in a transaction of its own.
    pub(crate) async fn change<const N: usize>(&self, sql: Sql, values: [Value; N]) -> Result<(), Error> {
        self.write(move |connection| async move { connection.execute(sql, &values).await.map(drop) }.boxed()).await
    }

    /// How often it was in trouble since it was opened: away, full, busy or damaged.
    pub fn troubles(&self) -> u64 {
        self.shared.troubles.load(Ordering::Relaxed)
    }

    async fn transaction<T, F>(&self, durable: bool, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut Connection) -> BoxFuture<'c, Result<T, Error>> + Send + 'static,
    {
        let done = self.attempt(durable, work).await;
        if done.as_ref().is_err_and(Error::is_trouble) {
            self.shared.troubles.fetch_add(1, Ordering::Relaxed);
        }
        done
    }

    async fn attempt<T, F>(&self, durable: bool, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut Connection) -> BoxFuture<'c, Result<T, Error>> + Send + 'static,
    {
        let waiting = tokio::time::timeout(PATIENCE, Arc::clone(&self.shared.permits).acquire_owned());
        let permit = waiting.await.map_err(|_| Error::Busy)?.map_err(|_| Error::Busy)?;
        match &self.shared.target {
            Target::Postgres(url) => {
                let doing = self.on_server(url, durable, work);
                tokio::time::timeout(TRANSACTION, doing).await.map_err(|late| Error::Unavailable(late.into()))?
            }
            Target::File(path) => self.on_disk(permit, Some(path.clone()), durable, work).await,
            Target::Memory => self.on_disk(permit, None, durable, work).await,
        }
    }

    async fn on_server<T, F>(&self, url: &str, durable: bool, work: F) -> Result<T, Error>
    where
        F: for<'c> FnOnce(&'c mut Connection) -> BoxFuture<'c, Result<T, Error>>,
    {
        let mut kept = self.shared.take();
        let begun = match &mut kept {
            Some(connection) => connection.begin(durable).await.is_ok(),
            None => false,
        };
        let mut connection = match kept.filter(|_| begun) {
            Some(connection) => connection,
            None => {
                // What was kept may have died since, and the others with it.
                self.shared.lock().clear();
                let mut fresh = Connection::Postgres(Box::new(Pg::connect(url).await?));
                fresh.begin(durable).await?;
                fresh
            }
        };
        // Dropped in the middle, the connection closes, and the server rolls back.
        let done = finish(&mut connection, work).await;
        if !matches!(&connection, Connection::Postgres(pg) if pg.is_closed()) && done.is_clean {
            self.shared.lock().push(connection);
        }
        done.outcome
    }

    async fn on_disk<T, F>(
        &self,
        permit: OwnedSemaphorePermit,
        path: Option<std::path::PathBuf>,
        durable: bool,
        work: F,
    ) -> Result<T, Error>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut Connection) -> BoxFuture<'c, Result<T, Error>> + Send + 'static,
    {
        let shared = Arc::clone(&self.shared);
        let doing = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let mut connection = match shared.take() {
                Some(connection) => connection,
                None => Connection::Sqlite(Lite::open(path.as_deref().map(Path::new))?),
            };
            let whole = async {
                match connection.begin(durable).await {
                    Ok(()) => finish(&mut connection, work).await,
                    Err(error) => Done { outcome: Err(error), is_clean: true },
                }
            };
            let done = whole.now_or_never().expect("SQLite never waits");
            // The memory's only connection is the memory.
            if done.is_clean || path.is_none() {
                shared.lock().push(connection);
            }
            done.outcome
        });
        doing.await.map_err(|error| Error::Refused(error.into()))?
    }
}

/// At most `limit` of what was asked for with one more, and whether that one was there.
pub(crate) fn page<T>(mut found: Vec<T>, limit: u32) -> (Vec<T>, bool) {
    let has_more = found.len() > limit as usize;
    found.truncate(limit as usize);
    (found, has_more)
}

struct Done<T> {
    outcome: Result<T, Error>,
    /// The connection is in no transaction.
    is_clean: bool,
}

async fn finish<T, F>(connection: &mut Connection, work: F) -> Done<T>
where
    F: for<'c> FnOnce(&'c mut Connection) -> BoxFuture<'c, Result<T, Error>>,
{
    let outcome = match work(connection).await {
        Ok(answer) => connection.commit().await.map(|()| answer),
        Err(error) => Err(error),
    };
    let is_clean = outcome.is_ok() || connection.roll_back().await.is_ok();
    Done { outcome, is_clean }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Option<Connection> {
        self.lock().pop()
    }
}
