//! One query to one database: takes a connection from the pool, limits the time, retries once, and classifies errors.

use std::error::Error as _;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sqlx::mysql::MySqlDatabaseError;
use sqlx::pool::PoolConnection;
use sqlx::{ConnectOptions, Connection, Pool};
use tracing::{info, warn};

use super::answer::SqlAnswer;
use super::bounded::DescribedColumn;
use super::budget::{ConnectionTurn, Gate};
use super::statement::Bind;
use super::way::Way;
use crate::error::{Dependency, ErrorKind, StoreError};
use crate::metrics;

/// The longest time of a statement, after which the server ends it. A server that does not is abandoned after
/// [`ANSWER_TIMEOUT`].
pub(super) const STATEMENT_TIMEOUT: Duration = Duration::from_secs(2);
/// The longest wait for an answer: the statement timeout, and half a second for the server to report it.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(2500);
/// The longest search for the cause of a connection that was not made in time.
const PROBE_TIMEOUT: Duration = Duration::from_millis(200);
/// The time after a failure for which the database counts as down.
const DOWN_FOR: Duration = Duration::from_secs(1);

/// The operation that reads users.
pub(super) const USERS: &str = "users";

/// A statement with its values.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    pub(super) sql: String,
    pub(super) binds: Vec<Bind>,
    /// The knowledge about transaction poolers between here and PostgreSQL.
    pub(super) way: Option<Arc<Way>>,
}

impl Ask {
    /// Returns true if the way to the database leads through a transaction pooler. It is asked again once there is a
    /// connection, because the first one may find it out.
    fn is_pooled(&self) -> bool {
        self.way.as_ref().is_some_and(|way| way.is_pooled())
    }
}

/// The operations that differ between the databases.
pub(super) trait Link: sqlx::Database {
    /// Returns the rows of a statement. `pooled`: it goes through a transaction pooler (see [`super::pooler`]).
    fn ask(
        conn: &mut Self::Connection,
        ask: &Ask,
        pooled: bool,
    ) -> impl Future<Output = Result<SqlAnswer, sqlx::Error>> + Send;

    /// Returns the columns that a statement returns, without running it.
    fn columns(
        conn: &mut Self::Connection,
        ask: &Ask,
        pooled: bool,
    ) -> impl Future<Output = Result<Vec<DescribedColumn>, sqlx::Error>> + Send;
}

/// The record of whether the database answers. It feeds the metric, one log line per change, and
/// [`Health::seems_down`].
#[derive(Debug)]
pub(super) struct Health {
    endpoint: String,
    /// The password, to be masked in errors of the driver.
    password: Option<String>,
    start: Instant,
    /// Milliseconds from `start` to the last failed attempt, plus one; 0 while the database answers.
    failed_at: AtomicU64,
}

impl Health {
    pub(super) fn new(endpoint: String, password: Option<String>) -> Self {
        Self {
            endpoint,
            password: password.filter(|password| !password.is_empty()),
            start: Instant::now(),
            failed_at: AtomicU64::new(0),
        }
    }

    pub(super) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub(super) fn seems_down(&self) -> bool {
        match self.failed_at.load(Ordering::Relaxed) {
            0 => false,
            at => self.start.elapsed() < Duration::from_millis(at) + DOWN_FOR,
        }
    }

    pub(super) fn answered(&self) {
        if self.failed_at.swap(0, Ordering::Relaxed) != 0 {
            info!(endpoint = %self.endpoint, "The database answers again");
        }
        metrics::dependency_up(Dependency::Database, &self.endpoint, true);
    }

    pub(super) fn failed(&self, error: &StoreError) {
        metrics::dependency_failed(error);
        if !matches!(
            error.kind,
            ErrorKind::Io | ErrorKind::Timeout | ErrorKind::Auth
        ) {
            return;
        }
        let millis = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
        if self.failed_at.swap(millis + 1, Ordering::Relaxed) == 0 {
            warn!(endpoint = %self.endpoint, error.kind = error.kind.label(), error = %error.source, "The database does not answer");
        }
        metrics::dependency_up(Dependency::Database, &self.endpoint, false);
    }

    fn unknown_pooler(&self, error: &sqlx::Error) -> AskError {
        AskError {
            error: self.store_error(error),
            value: None,
            schema_changed: false,
            is_unfit: false,
            pooler: true,
        }
    }

    /// Converts an error of the driver: adds its kind and masks the password.
    pub(super) fn store_error(&self, error: &sqlx::Error) -> StoreError {
        // Only the server's message, without the position in its source code.
        let mut text = match error.as_database_error() {
            Some(error) => error.message().to_owned(),
            None => error.to_string(),
        };
        if let Some(password) = &self.password {
            text = text.replace(password.as_str(), "***");
        }
        StoreError::new(Dependency::Database, kind(error), text)
    }
}

/// Runs `ask` and returns its rows. A transient failure is tried once more.
pub(super) async fn ask<DB: Link>(
    pool: &Pool<DB>,
    gate: &Gate,
    health: &Health,
    operation: &'static str,
    ask: &Ask,
) -> Result<SqlAnswer, AskError> {
    let began = Instant::now();
    let first = attempt(pool, gate, ask, false).await;
    let outcome = match first {
        Err(Failed::Sql(error)) if is_transient(&error) => attempt(pool, gate, ask, true).await,
        other => other,
    };
    settle(health, operation, began, outcome)
}

/// Returns the columns of `ask`.
pub(super) async fn columns<DB: Link>(
    pool: &Pool<DB>,
    gate: &Gate,
    health: &Health,
    ask: &Ask,
) -> Result<Vec<DescribedColumn>, AskError> {
    let began = Instant::now();
    let mut pooled = ask.is_pooled();
    let outcome = async {
        let (mut conn, _turn) = connection(pool, gate, true).await?;
        pooled = ask.is_pooled();
        let columns = limited(DB::columns(&mut conn, ask, pooled)).await;
        // The answer may still come, and the next user of the connection would get it.
        if matches!(columns, Err(Failed::NoAnswer)) {
            drop(conn.detach());
        }
        columns
    };
    let outcome = outcome.await;
    let outcome = outcome.map_err(|failed| failed.perhaps_of_pooler(pooled));
    settle(health, "columns", began, outcome)
}

/// A failed query, with the server's verdict on the statement.
#[derive(Debug)]
pub(super) struct AskError {
    pub(super) error: StoreError,
    /// Set if a value is at fault and not the statement, so that a query with other values may succeed.
    pub(super) value: Option<ValueFault>,
    /// True if a column or table has disappeared, has another type, or is no longer readable.
    pub(super) schema_changed: bool,
    /// True if the server cannot read the statement, or a part of it where it stands.
    pub(super) is_unfit: bool,
    /// True if there is a transaction pooler that was not known: nothing was asked, and nothing was recorded.
    pub(super) pooler: bool,
}

/// The value that a database cannot read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ValueFault {
    /// A bound value, which no row can hold.
    Parameter,
    /// A bound value or a value in a row.
    Unknown,
    /// A value in a row is longer than the database passes on.
    TooLong,
    /// The server has ended the statement at its time limit: for a value that takes long to read, or because it is slow itself.
    TooSlow,
}

enum Failed {
    Sql(sqlx::Error),
    NoAnswer,
    /// The sign of a transaction pooler that was not known.
    UnknownPooler(sqlx::Error),
}

impl Failed {
    /// Tells the sign of a pooler from other failures, unless one was known.
    fn perhaps_of_pooler(self, known: bool) -> Self {
        match self {
            Self::Sql(error) if !known && is_pooler(&error) => Self::UnknownPooler(error),
            other => other,
        }
    }
}

impl From<sqlx::Error> for Failed {
    fn from(error: sqlx::Error) -> Self {
        Self::Sql(error)
    }
}

fn settle<T>(
    health: &Health,
    operation: &'static str,
    began: Instant,
    outcome: Result<T, Failed>,
) -> Result<T, AskError> {
    if let Err(Failed::UnknownPooler(error)) = &outcome {
        return Err(health.unknown_pooler(error));
    }
    metrics::dependency_took(Dependency::Database, operation, began.elapsed());
    let failed = match outcome {
        Ok(answer) => {
            health.answered();
            return Ok(answer);
        }
        Err(Failed::NoAnswer) => AskError {
            error: StoreError::timeout(Dependency::Database, ANSWER_TIMEOUT),
            value: None,
            schema_changed: false,
            is_unfit: false,
            pooler: false,
        },
        Err(Failed::Sql(error) | Failed::UnknownPooler(error)) => AskError {
            error: health.store_error(&error),
            value: value_fault(&error),
            schema_changed: is_schema_error(&error),
            // A syntax error; an option of a statement that stands in another.
            is_unfit: matches!(mysql_number(&error), Some(1064 | 1234)),
            pooler: false,
        },
    };
    // A user's value may be the reason. `Database::fetch_users` finds out, and notes it if it is the database.
    if operation != USERS || failed.value != Some(ValueFault::TooSlow) {
        health.failed(&failed.error);
    }
    Err(failed)
}

async fn attempt<DB: Link>(
    pool: &Pool<DB>,
    gate: &Gate,
    ask: &Ask,
    again: bool,
) -> Result<SqlAnswer, Failed> {
    let known = ask.is_pooled();
    let conn = connection(pool, gate, again).await;
    let (mut conn, _turn) = conn.map_err(|failed| failed.perhaps_of_pooler(known))?;
    let pooled = ask.is_pooled();
    let answer = limited(DB::ask(&mut conn, ask, pooled)).await;
    let is_of_use = match &answer {
        Ok(answer) => !answer.is_stopped,
        // The answer may still come, and the next user of the connection would get it.
        Err(Failed::NoAnswer) => false,
        // The server's plan of a prepared statement does not fit the changed table.
        Err(Failed::Sql(error)) if is_pooler(error) || code(error).as_deref() == Some("0A000") => {
            false
        }
        Err(Failed::Sql(error)) => !leaves_rows(error),
        Err(Failed::UnknownPooler(_)) => true,
    };
    // Rows may still be coming. The server ends the statement once the connection is gone.
    if !is_of_use {
        drop(conn.detach());
    }
    answer.map_err(|failed| failed.perhaps_of_pooler(pooled))
}

async fn limited<T>(answer: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, Failed> {
    match tokio::time::timeout(ANSWER_TIMEOUT, answer).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(Failed::NoAnswer),
    }
}

/// Returns a connection. With `tested` it pings the connection first, because a restart of the server leaves several
/// dead ones in the pool.
async fn connection<DB: Link>(
    pool: &Pool<DB>,
    gate: &Gate,
    tested: bool,
) -> Result<(PoolConnection<DB>, ConnectionTurn), Failed> {
    let turn = gate.turn().await?;
    for _ in 0..=pool.options().get_max_connections() {
        let mut conn = match gate.acquire(pool).await {
            Ok(conn) => conn,
            Err(error) => return Err(why_not(pool, error).await.into()),
        };
        if !tested || matches!(limited(conn.ping()).await, Ok(())) {
            return Ok((conn, turn));
        }
        drop(conn.detach());
    }
    Err(Failed::NoAnswer)
}

/// Finds the cause of a pool's timeout. The pool retries a refused connection until its time is up and then reports
/// only the timeout.
async fn why_not<DB: Link>(pool: &Pool<DB>, error: sqlx::Error) -> sqlx::Error {
    if !matches!(error, sqlx::Error::PoolTimedOut) || pool.size() > 0 {
        return error;
    }
    let options = pool.connect_options();
    match tokio::time::timeout(PROBE_TIMEOUT, options.connect()).await {
        Ok(Err(cause)) => cause,
        Ok(Ok(_)) | Err(_) => error,
    }
}

/// Returns the SQLSTATE, or the number of SQLite's result code.
fn code(error: &sqlx::Error) -> Option<String> {
    Some(error.as_database_error()?.code()?.into_owned())
}

fn mysql_number(error: &sqlx::Error) -> Option<u16> {
    let error = error.as_database_error()?;
    Some(error.try_downcast_ref::<MySqlDatabaseError>()?.number())
}

/// Returns true if the same statement may succeed at once.
///
/// Such errors are lost connections, deadlocks, failed serialization, an outdated plan, and a server that shuts down,
/// because its successor may be up.
fn is_transient(error: &sqlx::Error) -> bool {
    if is_broken(error) {
        return true;
    }
    match mysql_number(error) {
        // Server shutdown, deadlock, connection killed. A lock wait timeout is none: the wait was long enough.
        Some(number) => matches!(number, 1053 | 1213 | 1927),
        None => code(error).is_some_and(|code| {
            matches!(
                code.as_str(),
                "40001" | "40P01" | "57P01" | "57P02" | "0A000" | "26000" | "6"
            ) || code.starts_with("08")
        }),
    }
}

/// Returns true if an error is a sign of a transaction pooler between gateway and PostgreSQL.
fn is_pooler(error: &sqlx::Error) -> bool {
    let text = error.as_database_error().map(|error| error.message());
    match (code(error).as_deref(), text) {
        // A prepared statement is gone or is there already: another server answers than before.
        (Some("26000" | "42P05"), _) => true,
        // PgBouncer, and Amazon's RDS Proxy.
        (_, Some(text)) => {
            text.contains("unsupported startup parameter") || text.contains("command-line options")
        }
        _ => false,
    }
}

/// Returns true if rows may be coming after an error: it is not the server's, which is the last word on a statement, but of a
/// value that cannot be decoded, or of a broken link.
pub(super) fn leaves_rows(error: &sqlx::Error) -> bool {
    error.as_database_error().is_none()
}

fn is_broken(error: &sqlx::Error) -> bool {
    match error {
        // sqlx sometimes reports a connection that was closed while idle as a protocol error.
        sqlx::Error::Io(_) | sqlx::Error::WorkerCrashed | sqlx::Error::Protocol(_) => true,
        _ => error
            .source()
            .is_some_and(|source| source.is::<std::io::Error>()),
    }
}

fn value_fault(error: &sqlx::Error) -> Option<ValueFault> {
    use ValueFault::{Parameter, TooLong, TooSlow, Unknown};
    // The driver cannot read it, as JSON of a cast that checks nothing.
    if matches!(
        error,
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_)
    ) {
        return Some(Unknown);
    }
    match mysql_number(error) {
        // Collations that cannot be mixed; text that the column's character set lacks.
        Some(1267 | 3854) => Some(Parameter),
        Some(1292 | 1366) => Some(Unknown),
        Some(1969 | 3024) => Some(TooSlow),
        Some(_) => None,
        None => match code(error)?.as_str() {
            // A number out of range; text that is not a number or UUID; characters that the encoding lacks.
            "22003" | "22P02" | "22P05" => Some(Parameter),
            // SQLite: a string or blob over the limit with which it is built.
            "18" => Some(TooLong),
            "57014" => Some(TooSlow),
            code if code.len() == 5 && code.starts_with("22") => Some(Unknown),
            _ => None,
        },
    }
}

pub(super) fn is_schema_error(error: &sqlx::Error) -> bool {
    match mysql_number(error) {
        // Unknown column, two of one name, table or column not permitted, no such table; a list of columns that does not fit
        // (MySQL, MariaDB).
        Some(number) => matches!(number, 1054 | 1060 | 1142 | 1143 | 1146 | 1353 | 4002),
        None => code(error).is_some_and(|code| {
            matches!(code.as_str(), "42702" | "42703" | "42P01" | "42501" | "1")
        }),
    }
}

fn kind(error: &sqlx::Error) -> ErrorKind {
    match error {
        sqlx::Error::PoolTimedOut => return ErrorKind::Timeout,
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => {
            return ErrorKind::Io;
        }
        sqlx::Error::Protocol(_)
        | sqlx::Error::ColumnDecode { .. }
        | sqlx::Error::Decode(_)
        | sqlx::Error::Encode(_) => return ErrorKind::Protocol,
        _ => {}
    }
    if let Some(number) = mysql_number(error) {
        return match number {
            1044 | 1142 | 1143 | 1370 => ErrorKind::Permission,
            1045 | 1698 | 1862 => ErrorKind::Auth,
            1205 | 1969 | 3024 => ErrorKind::Timeout,
            1040 | 1053 | 1203 | 1226 | 1927 => ErrorKind::Io,
            _ => ErrorKind::Other,
        };
    }
    match code(error).as_deref() {
        // Ended by the statement's time limit, or a lock that was not given in time (SQLite: 5, after `busy_timeout`).
        Some("57014" | "55P03" | "5" | "6") => ErrorKind::Timeout,
        Some("42501") => ErrorKind::Permission,
        // SQLite: the file cannot be opened or read.
        Some("14" | "10" | "23") => ErrorKind::Io,
        Some(code) if code.starts_with("28") => ErrorKind::Auth,
        Some(code)
            if code.starts_with("57P") || code.starts_with("08") || code.starts_with("53") =>
        {
            ErrorKind::Io
        }
        _ => ErrorKind::Other,
    }
}
