//! One connection to either database, and the values that go in and come out.

use crate::{Error, postgres::Pg, sqlite::Lite};

/// A connection. Whoever has it has it alone.
pub(crate) enum Connection {
    Sqlite(Lite),
    Postgres(Box<Pg>),
}

/// What a column holds.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Null,
    Int(i64),
    Text(String),
    Bytes(Vec<u8>),
}

/// One row of an answer.
#[derive(Debug)]
pub(crate) struct Row(pub(crate) Vec<Value>);

/// Statements have `?1`, `?2` … for their values, in both databases. `{lock}` stands where PostgreSQL locks the rows that it reads,
/// and `{free}` where it passes over those that are locked; in SQLite whoever may write is alone anyway.
pub(crate) type Sql = &'static str;

impl Connection {
    /// Begins to write.
    pub(crate) async fn begin(&mut self, durable: bool) -> Result<(), Error> {
        match self {
            Connection::Sqlite(lite) => lite.begin(durable),
            Connection::Postgres(pg) => pg.batch("BEGIN").await,
        }
    }

    pub(crate) async fn commit(&mut self) -> Result<(), Error> {
        match self {
            Connection::Sqlite(lite) => lite.commit(),
            Connection::Postgres(pg) => pg.batch("COMMIT").await,
        }
    }

    /// Undoes what was written; a connection that can't is of no use any more.
    pub(crate) async fn roll_back(&mut self) -> Result<(), Error> {
        match self {
            Connection::Sqlite(lite) => lite.roll_back(),
            Connection::Postgres(pg) => pg.batch("ROLLBACK").await,
        }
    }

    /// Runs a statement, and says how many rows it changed.
    pub(crate) async fn execute(&mut self, sql: Sql, values: &[Value]) -> Result<u64, Error> {
        match self {
            Connection::Sqlite(lite) => lite.execute(sql, values),
            Connection::Postgres(pg) => pg.execute(sql, values).await,
        }
    }

    /// Runs a statement that answers with rows.
    pub(crate) async fn rows(&mut self, sql: Sql, values: &[Value]) -> Result<Vec<Row>, Error> {
        match self {
            Connection::Sqlite(lite) => lite.rows(sql, values),
            Connection::Postgres(pg) => pg.rows(sql, values).await,
        }
    }

    /// Runs a statement that answers with one row at most.
    pub(crate) async fn row(&mut self, sql: Sql, values: &[Value]) -> Result<Option<Row>, Error> {
        Ok(self.rows(sql, values).await?.into_iter().next())
    }

    /// Runs statements that have no values, for the schema.
    pub(crate) async fn batch(&mut self, sql: &str) -> Result<(), Error> {
        match self {
            Connection::Sqlite(lite) => lite.batch(sql),
            Connection::Postgres(pg) => pg.batch(sql).await,
        }
    }

    pub(crate) fn is_postgres(&self) -> bool {
        matches!(self, Connection::Postgres(_))
    }
}

impl Row {
    pub(crate) fn int(&self, column: usize) -> Result<i64, Error> {
        self.maybe_int(column)?.ok_or(Error::Strange("a number is missing"))
    }

    pub(crate) fn text(&self, column: usize) -> Result<String, Error> {
        self.maybe_text(column)?.ok_or(Error::Strange("a text is missing"))
    }

    pub(crate) fn bytes(&self, column: usize) -> Result<Vec<u8>, Error> {
        match self.0.get(column) {
            Some(Value::Bytes(bytes)) => Ok(bytes.clone()),
            _ => Err(Error::Strange("bytes are missing")),
        }
    }

    pub(crate) fn maybe_int(&self, column: usize) -> Result<Option<i64>, Error> {
        match self.0.get(column) {
            Some(Value::Int(number)) => Ok(Some(*number)),
            Some(Value::Null) => Ok(None),
            _ => Err(Error::Strange("no number where one belongs")),
        }
    }

    pub(crate) fn maybe_text(&self, column: usize) -> Result<Option<String>, Error> {
        match self.0.get(column) {
            Some(Value::Text(text)) => Ok(Some(text.clone())),
            Some(Value::Null) => Ok(None),
            _ => Err(Error::Strange("no text where one belongs")),
        }
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Value {
        Value::Int(number)
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Value {
        Value::Int(number.into())
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::Text(storable(text))
    }
}

impl From<&String> for Value {
    fn from(text: &String) -> Value {
        Value::Text(storable(text))
    }
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Value {
        value.map_or(Value::Null, Into::into)
    }
}

impl From<&[u8]> for Value {
    fn from(bytes: &[u8]) -> Value {
        Value::Bytes(bytes.to_vec())
    }
}

/// PostgreSQL's texts can't hold U+0000; both databases are to keep the same.
fn storable(text: &str) -> String {
    if text.contains('\0') { text.replace('\0', "\u{fffd}") } else { text.to_owned() }
}
