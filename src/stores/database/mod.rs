//! PostgreSQL, MySQL and SQLite behind two queries: fetch users by id, and check that a row exists.
//!
//! Each database has a pool that connects when it is first needed. sqlx's `Any` is not used, because one column of a
//! type that it does not know fails the whole row. Nothing here writes to the database of a tenant or prints a password;
//! [`tenant_table`] has the tables of the registry, which are the gateway's own.

use std::sync::Arc;
use std::time::Duration;

use sqlx::mysql::MySqlPoolOptions;
use sqlx::pool::PoolOptions;
use sqlx::postgres::PgPoolOptions;
use sqlx::sqlite::SqlitePoolOptions;
use sqlx::{MySqlPool, SqlitePool};

use self::answer::{MAX_COLUMNS, SqlAnswer};
use self::bounded::DescribedColumn;
use self::budget::Gate;
use self::link::{Ask, AskError, Health, ValueFault};
use self::pooler::PoolerAware;
use self::url::DriverOptions;
use crate::config::{PoolConfig, Secret, Trust};
use crate::error::{Dependency, ErrorKind, StoreError};

pub use self::budget::ConnectionBudget;
pub use self::fetching::{FetchedUsers, by_id};
pub use self::inspection::DatabaseFacts;
pub use self::statement::{Dialect, SqlParam, Statement, StatementError};
pub use self::url::DatabaseUrl;
pub use self::user_query::{UserQuery, UserRow};

mod answer;
mod bounded;
mod budget;
mod columns;
mod fetching;
mod inspection;
mod link;
mod mysql;
mod pooler;
mod postgres;
mod sqlite;
mod statement;
pub mod tenant_table;
mod tls;
mod url;
mod user_query;
mod value;
mod way;

/// The most ids in one statement. Shorter lists are filled up to a power of two, so that a server caches nine plans
/// and not 256.
pub const MAX_IDS: usize = 256;

/// A reason for which the users of a tenant cannot be read, in words for its operator.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the texts say it")]
pub enum ColumnProblem {
    #[error("there is no table {table}, or the database's user may not see it")]
    NoTable { table: String },
    #[error("table {table} has no column {column}")]
    NoColumn { table: String, column: String },
    #[error("the database's user may not read column {column} of table {table}")]
    NotReadable { table: String, column: String },
    #[error("users.query returns no column {column}")]
    NotReturned { column: String },
    #[error(
        "users.query returns {count} columns, more than {}; select those that are needed",
        MAX_COLUMNS
    )]
    TooMany { count: usize },
    #[error(
        "users.query cannot stand in a subquery: {0}. SQL_NO_CACHE and SQL_CALC_FOUND_ROWS cannot, nor on MySQL 5.7 two columns of one name"
    )]
    NotInSubquery(StoreError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

enum Pools {
    Postgres(Box<PoolerAware>),
    MySql(MySqlPool),
    Sqlite(SqlitePool),
}

/// One database of a tenant.
pub struct Database {
    pools: Pools,
    health: Health,
    gate: Gate,
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Database({})", self.health.endpoint())
    }
}

impl Database {
    /// Makes a pool for `url` within `budget`, which connects at the first query. Needs a tokio runtime.
    ///
    /// # Errors
    /// Fails if the URL cannot be parsed. The error never contains the password.
    pub fn connect_lazy(
        url: &Secret,
        trust: &Trust,
        pool: &PoolConfig,
        budget: &Arc<ConnectionBudget>,
    ) -> Result<Arc<Self>, StoreError> {
        let url = DatabaseUrl::to_connect(url, trust)?;
        let health = Health::new(url.endpoint(), url.password.clone());
        let in_memory = url.is_in_memory();
        let pools = match url.options {
            DriverOptions::Postgres(options, pooled) => {
                let pool = sized(PgPoolOptions::new(), pool);
                Pools::Postgres(Box::new(PoolerAware::new(pool, *options, pooled)))
            }
            DriverOptions::MySql(options) => {
                let pool = sized(MySqlPoolOptions::new(), pool)
                    .after_connect(|conn, _| Box::pin(mysql::limit_time(conn)));
                Pools::MySql(pool.connect_lazy_with(*options))
            }
            DriverOptions::Sqlite(options, _) => {
                let mut pool = sized(SqlitePoolOptions::new(), pool);
                if in_memory {
                    // The database lives as long as a connection to it, so one connection stays.
                    pool = pool
                        .min_connections(1)
                        .idle_timeout(None)
                        .max_lifetime(None);
                }
                Pools::Sqlite(pool.connect_lazy_with(*options))
            }
        };
        let gate = match &pools {
            Pools::Postgres(pool) => budget.gate(&pool.pool, false),
            Pools::MySql(pool) => budget.gate(pool, false),
            Pools::Sqlite(pool) => budget.gate(pool, in_memory),
        };
        Ok(Arc::new(Self {
            pools,
            health,
            gate,
        }))
    }

    /// Returns the name for logs and metrics: host and port, or `sqlite`.
    pub fn endpoint(&self) -> &str {
        self.health.endpoint()
    }

    /// Returns true if the database failed to answer within the last second. A caller with a stale answer can then use
    /// it at once.
    pub fn seems_down(&self) -> bool {
        self.health.seems_down()
    }

    /// Notes that a caller waited for `waited` in vain. The database counts as down until it answers.
    pub fn is_late(&self, waited: Duration) {
        self.health
            .failed(&StoreError::timeout(Dependency::Database, waited));
    }

    /// Returns true if the way to the database was found to lead through a transaction pooler, or its URL says so.
    pub fn is_pooled(&self) -> bool {
        matches!(&self.pools, Pools::Postgres(pool) if pool.is_pooled())
    }

    /// Returns the kind of the database.
    pub fn dialect(&self) -> Dialect {
        match &self.pools {
            Pools::Postgres(_) => Dialect::Postgres,
            Pools::MySql(_) => Dialect::MySql,
            Pools::Sqlite(_) => Dialect::Sqlite,
        }
    }

    /// Has the database read a statement without running it. Returns its columns.
    async fn prepare(
        &self,
        sql: String,
        binds: Vec<statement::Bind>,
    ) -> Result<Vec<DescribedColumn>, AskError> {
        let mut ask = Ask {
            sql,
            binds,
            way: None,
        };
        match &self.pools {
            Pools::Postgres(pool) => {
                ask.way = Some(pool.way(self.endpoint()));
                let columns = async |ask: &Ask| {
                    link::columns(&pool.pool, &self.gate, &self.health, ask).await
                };
                match columns(&ask).await {
                    Err(failed) if failed.pooler => {
                        pool.found_pooler(self.endpoint(), &failed.error.source);
                        columns(&ask).await
                    }
                    answer => answer,
                }
            }
            Pools::MySql(pool) => link::columns(pool, &self.gate, &self.health, &ask).await,
            Pools::Sqlite(pool) => link::columns(pool, &self.gate, &self.health, &ask).await,
        }
    }

    /// Checks that the database can read the statement of [`Database::exists`]: its tables, columns and types.
    ///
    /// # Errors
    /// Fails if the database does not answer, or refuses the statement.
    pub async fn check_exists(
        &self,
        statement: &Statement,
        params: &[(&str, SqlParam)],
    ) -> Result<(), StoreError> {
        let Some((sql, binds)) = statement.render_exists(params) else {
            return Ok(());
        };
        let prepared = self.prepare(sql, binds).await;
        prepared.map(drop).map_err(|failed| failed.error)
    }

    /// Returns true if `statement` returns any row. The answer is false for a value that no row can hold.
    ///
    /// # Errors
    /// Fails if the database does not answer, or refuses the statement.
    pub async fn exists(
        &self,
        statement: &Statement,
        params: &[(&str, SqlParam)],
    ) -> Result<bool, StoreError> {
        let Some((sql, binds)) = statement.render_exists(params) else {
            return Ok(false);
        };
        match self.ask("authorize", sql, binds).await {
            Ok(answer) => {
                let value = answer.rows.first().and_then(|row| row.first());
                Ok(value
                    .and_then(|(_, value)| value.as_bool())
                    .unwrap_or(false))
            }
            Err(failed) if failed.value == Some(ValueFault::Parameter) => Ok(false),
            Err(failed) => Err(failed.error),
        }
    }

    async fn ask(
        &self,
        operation: &'static str,
        sql: String,
        binds: Vec<statement::Bind>,
    ) -> Result<SqlAnswer, AskError> {
        let mut ask = Ask {
            sql,
            binds,
            way: None,
        };
        match &self.pools {
            Pools::Postgres(pool) => {
                ask.way = Some(pool.way(self.endpoint()));
                let answer = async |ask: &Ask| {
                    link::ask(&pool.pool, &self.gate, &self.health, operation, ask).await
                };
                match answer(&ask).await {
                    Err(failed) if failed.pooler => {
                        pool.found_pooler(self.endpoint(), &failed.error.source);
                        answer(&ask).await
                    }
                    answer => answer,
                }
            }
            Pools::MySql(pool) => link::ask(pool, &self.gate, &self.health, operation, &ask).await,
            Pools::Sqlite(pool) => link::ask(pool, &self.gate, &self.health, operation, &ask).await,
        }
    }
}

/// Reads the JSON text of a value as a boolean, in any form in which a database writes one. Returns `None` for null and
/// for any other value.
pub fn json_truth(json: &str) -> Option<bool> {
    value::SqlValue::from_json(json).as_bool()
}

fn sized<DB: sqlx::Database>(options: PoolOptions<DB>, pool: &PoolConfig) -> PoolOptions<DB> {
    options
        .max_connections(pool.max.max(1))
        .idle_timeout(pool.idle)
        .acquire_timeout(budget::ACQUIRE_TIMEOUT)
        // A test would cost a round trip per query. A lost connection is noticed by the query, which is tried again.
        .test_before_acquire(false)
}

fn refused(problem: ColumnProblem) -> AskError {
    let kind = match problem {
        ColumnProblem::NotReadable { .. } => ErrorKind::Permission,
        _ => ErrorKind::Other,
    };
    let text = problem.to_string();
    AskError {
        error: StoreError::new(Dependency::Database, kind, text),
        value: None,
        schema_changed: false,
        is_unfit: false,
        pooler: false,
    }
}

fn table_name(query: &UserQuery) -> String {
    match query.table() {
        Some((Some(schema), table)) => format!("{schema}.{table}"),
        Some((None, table)) => table.to_owned(),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_url_that_cannot_be_read_is_not_quoted() {
        let pool = PoolConfig {
            max: 1,
            idle: std::time::Duration::from_secs(1),
        };
        for url in [
            "postgres://u:hunter2@h:port/d",
            "mysql://u:hunter2@[::/d",
            "redis://u:hunter2@h",
        ] {
            let error = Database::connect_lazy(
                &Secret::from(url),
                &Trust::default(),
                &pool,
                &ConnectionBudget::new(1),
            )
            .unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        }
    }
}
