//! SQLite: one connection of the process, a journal that readers of other processes don't wait for, and what its errors mean.

use std::{path::Path, time::Duration};

use rusqlite::{ErrorCode, OpenFlags, params_from_iter, types::ValueRef};

use crate::{
    Error,
    connection::{Row, Sql, Value},
};

/// Another process that writes is waited for.
const BUSY: Duration = Duration::from_secs(5);

/// All statements that there are, about.
const STATEMENTS: usize = 128;

/// The connection.
pub(crate) struct Lite {
    connection: rusqlite::Connection,
    durable: bool,
}

impl Lite {
    /// Opens a file, or the memory.
    pub(crate) fn open(path: Option<&Path>) -> Result<Lite, Error> {
        let connection = match path {
            Some(path) => {
                if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
                    std::fs::create_dir_all(folder).map_err(|error| Error::Unavailable(error.into()))?;
                }
                private(path)?;
                let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
                rusqlite::Connection::open_with_flags(path, flags)
            }
            None => rusqlite::Connection::open_in_memory(),
        }
        .map_err(error)?;
        connection.busy_timeout(BUSY).map_err(error)?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        let lite = Lite { connection, durable: false };
        // A write survives the death of the process by being in the log, and that of the machine by being synced, which `begin`
        // asks for where it was promised.
        lite.pragma("journal_mode = WAL")?;
        lite.pragma("synchronous = NORMAL")?;
        lite.pragma("foreign_keys = ON")?;
        // As large as it was at its largest otherwise.
        lite.pragma("journal_size_limit = 67108864")?;
        Ok(lite)
    }

    fn pragma(&self, pragma: &str) -> Result<(), Error> {
        // Some answer with a row.
        self.connection.execute_batch(&format!("PRAGMA {pragma}")).map_err(error)
    }

    pub(crate) fn begin(&mut self, durable: bool) -> Result<(), Error> {
        if self.durable != durable {
            self.pragma(if durable { "synchronous = FULL" } else { "synchronous = NORMAL" })?;
            self.durable = durable;
        }
        self.batch("BEGIN IMMEDIATE")
    }

    pub(crate) fn commit(&mut self) -> Result<(), Error> {
        self.batch("COMMIT")
    }

    pub(crate) fn roll_back(&mut self) -> Result<(), Error> {
        // A full disk has rolled back by itself.
        if self.connection.is_autocommit() { Ok(()) } else { self.batch("ROLLBACK") }
    }

    pub(crate) fn execute(&mut self, sql: Sql, values: &[Value]) -> Result<u64, Error> {
        let mut statement = self.connection.prepare_cached(&of(sql)).map_err(error)?;
        statement.execute(params_from_iter(values.iter().map(value))).map(|rows| rows as u64).map_err(error)
    }

    pub(crate) fn rows(&mut self, sql: Sql, values: &[Value]) -> Result<Vec<Row>, Error> {
        let mut statement = self.connection.prepare_cached(&of(sql)).map_err(error)?;
        let columns = statement.column_count();
        let mut rows = statement.query(params_from_iter(values.iter().map(value))).map_err(error)?;
        let mut read = Vec::new();
        while let Some(row) = rows.next().map_err(error)? {
            let column = |at| row.get_ref(at).map(own).map_err(error)?;
            read.push(Row((0..columns).map(column).collect::<Result<_, _>>()?));
        }
        Ok(read)
    }

    pub(crate) fn batch(&mut self, sql: &str) -> Result<(), Error> {
        self.connection.execute_batch(sql).map_err(error)
    }
}

/// Makes a new file one that only its owner reads: it holds what people said.
#[cfg(unix)]
fn private(path: &Path) -> Result<(), Error> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    match made {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::StorageFull => Err(Error::ReadOnly(error.into())),
        Err(error) => Err(Error::Unavailable(error.into())),
    }
}

#[cfg(not(unix))]
fn private(_: &Path) -> Result<(), Error> {
    Ok(())
}

fn of(sql: Sql) -> std::borrow::Cow<'static, str> {
    if sql.contains('{') { sql.replace("{lock}", "").replace("{free}", "").into() } else { sql.into() }
}

fn value(value: &Value) -> rusqlite::types::ToSqlOutput<'_> {
    rusqlite::types::ToSqlOutput::Borrowed(match value {
        Value::Null => ValueRef::Null,
        Value::Int(number) => ValueRef::Integer(*number),
        Value::Text(text) => ValueRef::Text(text.as_bytes()),
        Value::Bytes(bytes) => ValueRef::Blob(bytes),
    })
}

fn own(value: ValueRef<'_>) -> Result<Value, Error> {
    Ok(match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(number) => Value::Int(number),
        ValueRef::Text(text) => Value::Text(String::from_utf8_lossy(text).into_owned()),
        ValueRef::Blob(bytes) => Value::Bytes(bytes.to_vec()),
        ValueRef::Real(_) => return Err(Error::Strange("a fraction")),
    })
}

fn error(error: rusqlite::Error) -> Error {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull | ErrorCode::ReadOnly) => Error::ReadOnly(error.into()),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Error::Busy,
        Some(ErrorCode::SystemIoFailure | ErrorCode::CannotOpen | ErrorCode::PermissionDenied | ErrorCode::OutOfMemory) => {
            Error::Unavailable(error.into())
        }
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            Error::Strange("its file is damaged, or no SQLite database")
        }
        _ => Error::Refused(error.into()),
    }
}
