//! PostgreSQL: one connection, its prepared statements, and what its errors mean.

use std::{collections::HashMap, time::Duration};

use bytes::BytesMut;
use tokio::task::AbortHandle;
use tokio_postgres::{
    Client, Config, NoTls, Socket, Statement,
    config::SslMode,
    error::SqlState,
    tls::MakeTlsConnect,
    types::{FromSql, IsNull, ToSql, Type, to_sql_checked},
};

use crate::{
    Error,
    connection::{Row, Sql, Value},
    tls::{self, Tls},
};

/// How long a server may take to let us in.
const CONNECT: Duration = Duration::from_secs(3);

/// The connection.
pub(crate) struct Pg {
    client: Client,
    /// As many as there are in this crate's source.
    statements: HashMap<Sql, Statement>,
    driver: AbortHandle,
}

impl Drop for Pg {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Pg {
    pub(crate) async fn connect(url: &str) -> Result<Pg, Error> {
        let (url, mode) = tls::split(url).map_err(|error| Error::Unavailable(error.into()))?;
        let mut config: Config = url.parse().map_err(|error| Error::Unavailable(Box::new(error)))?;
        config.application_name("banyan").connect_timeout(CONNECT);
        let (client, driver) = match Tls::new(&mode).map_err(|error| Error::Unavailable(error.into()))? {
            None => enter(config.ssl_mode(SslMode::Disable), NoTls).await?,
            Some(tls) => enter(config.ssl_mode(SslMode::Require), tls).await?,
        };
        Ok(Pg { client, statements: HashMap::new(), driver })
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    pub(crate) async fn batch(&mut self, sql: &str) -> Result<(), Error> {
        self.client.batch_execute(sql).await.map_err(error)
    }

    pub(crate) async fn execute(&mut self, sql: Sql, values: &[Value]) -> Result<u64, Error> {
        let statement = self.prepared(sql).await?;
        self.client.execute_raw(&statement, values).await.map_err(error)
    }

    pub(crate) async fn rows(&mut self, sql: Sql, values: &[Value]) -> Result<Vec<Row>, Error> {
        let statement = self.prepared(sql).await?;
        let parameters: Vec<&(dyn ToSql + Sync)> = values.iter().map(|value| value as _).collect();
        let rows = self.client.query(&statement, &parameters).await.map_err(error)?;
        let read = |row: &tokio_postgres::Row| {
            let columns = (0..row.len()).map(|column| row.try_get(column).map_err(error));
            Ok(Row(columns.collect::<Result<_, Error>>()?))
        };
        rows.iter().map(read).collect()
    }

    async fn prepared(&mut self, sql: Sql) -> Result<Statement, Error> {
        if let Some(statement) = self.statements.get(sql) {
            return Ok(statement.clone());
        }
        let numbered = sql.replace('?', "$").replace("{lock}", "FOR UPDATE").replace("{free}", "FOR UPDATE SKIP LOCKED");
        let statement = self.client.prepare(&numbered).await.map_err(error)?;
        self.statements.insert(sql, statement.clone());
        Ok(statement)
    }
}

async fn enter<T>(config: &Config, tls: T) -> Result<(Client, AbortHandle), Error>
where
    T: MakeTlsConnect<Socket>,
    T::Stream: Send + 'static,
{
    let connecting = tokio::time::timeout(CONNECT, config.connect(tls));
    let (client, connection) = connecting.await.map_err(|late| Error::Unavailable(late.into()))?.map_err(error)?;
    // Ends with the client; what goes wrong, the client's calls say.
    let driver = tokio::spawn(async move { drop(connection.await) }).abort_handle();
    Ok((client, driver))
}

impl ToSql for Value {
    fn to_sql(&self, kind: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        match (self, kind) {
            (Value::Null, _) => Ok(IsNull::Yes),
            (Value::Int(number), &Type::INT8) => number.to_sql(kind, out),
            (Value::Int(number), &Type::INT4) => i32::try_from(*number)?.to_sql(kind, out),
            (Value::Text(text), _) => text.to_sql(kind, out),
            (Value::Bytes(bytes), &Type::BYTEA) => bytes.to_sql(kind, out),
            (value, kind) => Err(format!("a value of the wrong kind for {kind}: {}", value.kind()).into()),
        }
    }

    /// What fits is seen when it is written.
    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

impl<'a> FromSql<'a> for Value {
    fn from_sql(kind: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        match *kind {
            Type::INT8 => Ok(Value::Int(i64::from_sql(kind, raw)?)),
            Type::INT4 => Ok(Value::Int(i32::from_sql(kind, raw)?.into())),
            Type::TEXT | Type::VARCHAR => Ok(Value::Text(String::from_sql(kind, raw)?)),
            Type::BYTEA => Ok(Value::Bytes(raw.to_vec())),
            _ => Err(format!("a column of type {kind}").into()),
        }
    }

    fn from_sql_null(_: &Type) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Value::Null)
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

impl Value {
    fn kind(&self) -> &'static str {
        match self {
            Value::Null => "null",
            Value::Int(_) => "a number",
            Value::Text(_) => "a text",
            Value::Bytes(_) => "bytes",
        }
    }
}

fn error(error: tokio_postgres::Error) -> Error {
    let Some(code) = error.code().cloned() else {
        // Not the server's word: the connection, or a value that does not fit.
        let own = error.as_db_error().is_none()
            && !error.is_closed()
            && std::error::Error::source(&error).is_some_and(|source| !source.is::<std::io::Error>());
        return if own { Error::Refused(error.into()) } else { Error::Unavailable(error.into()) };
    };
    if code == SqlState::DISK_FULL || code == SqlState::READ_ONLY_SQL_TRANSACTION {
        return Error::ReadOnly(error.into());
    }
    // Classes 08 (connections), 53 (resources), 57 (an operator's hand), 58 (the system), 28 and 3D (not let in).
    match code.code().get(..2) {
        Some("08" | "53" | "57" | "58" | "28" | "3D") => Error::Unavailable(error.into()),
        Some("40") => Error::Busy,
        _ => Error::Refused(error.into()),
    }
}
