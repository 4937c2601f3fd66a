//! The tables of the registry: tenants, what changed and when, on PostgreSQL, MySQL and SQLite.
//!
//! Every change takes the next number of one counter, whose row stays locked until the change is stored. So the numbers
//! become visible in their order, and a reader that has seen number N reads what is above N and misses nothing.
//! [`crate::registry`] knows what the documents mean.

use std::future::Future;
use std::time::{Duration, Instant};

use futures_util::TryStreamExt as _;
use sqlx::mysql::MySqlPoolOptions;
use sqlx::postgres::PgPoolOptions;
use sqlx::sqlite::SqlitePoolOptions;
use sqlx::{AssertSqlSafe, MySqlPool, PgPool, Row as _, SqlitePool};

use self::row::{RowPart, RowPlace};
use self::schema::{MIGRATIONS, SCHEMA_TABLE, worded};
use super::link::{self, Health};
use super::statement::Dialect;
use super::url::{DatabaseUrl, DriverOptions};
use super::{budget, mysql};
use crate::config::{Secret, Trust};
use crate::error::{Dependency, StoreError};
use crate::metrics;

pub use self::row::{
    ExpectedVersion, SchemaVersion, TableChange, TableChanges, TenantRow, WriteOutcome,
};
pub use self::schema::NEWEST;

mod row;
mod schema;

/// The most connections. One reads, and calls of the API write beside it.
const CONNECTIONS: u32 = 4;
/// The time after which an unused connection closes.
const IDLE: Duration = Duration::from_secs(60);
/// The longest time of one step, such as a page of tenants or a change.
const STEP: Duration = Duration::from_secs(5);
/// The tenants of one part.
const PART: i64 = 500;
/// The columns of a tenant, in the order in which rows are read. A document over 2 MiB is not sent, and reads as none.
const COLUMNS: &str = "name, CASE WHEN OCTET_LENGTH(config) <= 2097152 THEN config END, \
    version, made, created_at, updated_at, serial";
/// The names of one part.
const VERSIONS: i64 = 10_000;
/// The number that names the lock of a migration on PostgreSQL, with which no other program should lock: "lockgate".
const MIGRATION_LOCK: i64 = 0x6c6f_636b_6761_7465;

/// Runs `$body` with the pool of whichever database the table is in.
macro_rules! on {
    ($table:expr, $pool:ident => $body:expr) => {
        match &$table.pools {
            TablePools::Postgres($pool) => $body,
            TablePools::MySql($pool) => $body,
            TablePools::Sqlite($pool) => $body,
        }
    };
}

/// Reads a row of any database. `None`, and a line in the log, if its name is no text. Each row is read by itself: what another
/// program has written into one must not keep the others from being read.
macro_rules! tenant_row {
    ($row:expr) => {{
        let number = |at: usize| $row.try_get::<i64, _>(at).unwrap_or_default();
        match $row.try_get::<String, _>(0) {
            Ok(name) => Some(TenantRow {
                name,
                config: $row.try_get(1).ok(),
                version: number(2),
                made: number(3),
                created_at: number(4),
                updated_at: number(5),
            }),
            Err(error) => {
                tracing::warn!(error = %error, "Ignored a row of the registry: its name is no text");
                None
            }
        }
    }};
}

/// Reads tenants until their documents are too long together.
macro_rules! read_part {
    ($query:expr, $pool:expr) => {{
        let mut conn = $pool.acquire().await?;
        let mut part = RowPart::default();
        let mut rows = $query.fetch(&mut *conn);
        while let Some(row) = rows.try_next().await? {
            part.add(tenant_row!(row), row.try_get(6).ok());
            if part.is_full() {
                break;
            }
        }
        drop(rows);
        if part.is_full() {
            // More rows are coming.
            drop(conn.detach());
        }
        part
    }};
}

/// Makes the missing migrations on a connection that holds the lock.
macro_rules! migrate_on {
    ($table:expr, $tx:ident, $now:expr) => {
        sqlx::query(SCHEMA_TABLE).execute(&mut *$tx).await?;
        let sql = "SELECT COALESCE(MAX(version), 0) FROM lockgate_registry_schema";
        let made: i64 = sqlx::query_scalar(sql).fetch_one(&mut *$tx).await?;
        for step in MIGRATIONS.iter().filter(|step| step.version > made) {
            let statements = step.statements.iter();
            for statement in statements.filter_map(|text| worded(text, $table.dialect())) {
                sqlx::query(AssertSqlSafe(statement)).execute(&mut *$tx).await?;
            }
            let sql = "INSERT INTO lockgate_registry_schema (version, readable_by, applied_at) VALUES (?, ?, ?)";
            sqlx::query($table.sql(sql))
                .bind(step.version)
                .bind(step.readable_by)
                .bind($now)
                .execute(&mut *$tx)
                .await?;
        }
    };
}

/// Makes a change in a transaction.
macro_rules! write_on {
    ($table:expr, $tx:ident, $change:expr) => {{
        let (table, change) = ($table, $change);
        // First, so that the row of the counter is locked before anything is read.
        sqlx::query("UPDATE lockgate_registry SET serial = serial + 1 WHERE id = 1")
            .execute(&mut *$tx)
            .await?;
        let sql = "SELECT serial FROM lockgate_registry WHERE id = 1";
        let serial: i64 = sqlx::query_scalar(sql).fetch_one(&mut *$tx).await?;
        if change.seen.is_some_and(|seen| seen != serial - 1) {
            $tx.rollback().await?;
            return Ok(WriteOutcome::Outdated);
        }
        let sql = "SELECT version FROM lockgate_tenant WHERE name = ?";
        let version: Option<i64> = sqlx::query_scalar(table.sql(sql))
            .bind(change.name)
            .fetch_optional(&mut *$tx)
            .await?;
        let next = match (change.expected, version) {
            // Not 1: a tenant that was deleted and made again has another version than any before.
            (ExpectedVersion::Absent, None) => serial,
            (ExpectedVersion::Is(expected), Some(version)) if expected == version => version + 1,
            _ => {
                $tx.rollback().await?;
                return Ok(WriteOutcome::Outdated);
            }
        };
        match (change.config, version) {
            (Some(config), None) => {
                let sql = "INSERT INTO lockgate_tenant \
                    (name, config, version, made, created_at, updated_at, serial) \
                    VALUES (?, ?, ?, ?, ?, ?, ?)";
                sqlx::query(table.sql(sql))
                    .bind(change.name)
                    .bind(config)
                    .bind(next)
                    .bind(serial)
                    .bind(change.now)
                    .bind(change.now)
                    .bind(serial)
                    .execute(&mut *$tx)
                    .await?;
            }
            (Some(config), Some(_)) => {
                let sql = "UPDATE lockgate_tenant \
                    SET config = ?, version = ?, updated_at = ?, serial = ? WHERE name = ?";
                sqlx::query(table.sql(sql))
                    .bind(config)
                    .bind(next)
                    .bind(change.now)
                    .bind(serial)
                    .bind(change.name)
                    .execute(&mut *$tx)
                    .await?;
            }
            (None, _) => {
                sqlx::query(table.sql("DELETE FROM lockgate_tenant WHERE name = ?"))
                    .bind(change.name)
                    .execute(&mut *$tx)
                    .await?;
            }
        }
        let sql = "INSERT INTO lockgate_tenant_audit \
            (serial, changed_at, tenant, actor, action, detail) VALUES (?, ?, ?, ?, ?, ?)";
        sqlx::query(table.sql(sql))
            .bind(serial)
            .bind(change.now)
            .bind(change.name)
            .bind(change.actor)
            .bind(change.action)
            .bind(change.detail)
            .execute(&mut *$tx)
            .await?;
        $tx.commit().await?;
        Ok(WriteOutcome::Stored(next))
    }};
}

enum TablePools {
    Postgres(PgPool),
    MySql(MySqlPool),
    Sqlite(SqlitePool),
}

/// The tables of the registry.
pub struct TenantTable {
    pools: TablePools,
    health: Health,
}

impl std::fmt::Debug for TenantTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TenantTable({})", self.health.endpoint())
    }
}

impl TenantTable {
    /// Makes the pool, which connects when it is first needed. It needs a runtime.
    ///
    /// # Errors
    /// Fails if the URL cannot be parsed. The error never contains the password.
    pub fn connect_lazy(url: &Secret, trust: &Trust) -> Result<Self, StoreError> {
        let url = DatabaseUrl::to_connect(url, trust)?;
        let health = Health::new(url.endpoint(), url.password.clone());
        macro_rules! sized {
            ($options:expr) => {
                $options
                    .max_connections(CONNECTIONS)
                    .idle_timeout(IDLE)
                    .acquire_timeout(budget::ACQUIRE_TIMEOUT)
            };
        }
        let pools = match url.options {
            DriverOptions::Postgres(options, _) => {
                TablePools::Postgres(sized!(PgPoolOptions::new()).connect_lazy_with(*options))
            }
            DriverOptions::MySql(options) => {
                let pool = sized!(MySqlPoolOptions::new())
                    .after_connect(|conn, _| Box::pin(mysql::limit_time(conn)));
                TablePools::MySql(pool.connect_lazy_with(*options))
            }
            DriverOptions::Sqlite(options, _) => {
                TablePools::Sqlite(sized!(SqlitePoolOptions::new()).connect_lazy_with(*options))
            }
        };
        Ok(Self { pools, health })
    }

    fn dialect(&self) -> Dialect {
        match &self.pools {
            TablePools::Postgres(_) => Dialect::Postgres,
            TablePools::MySql(_) => Dialect::MySql,
            TablePools::Sqlite(_) => Dialect::Sqlite,
        }
    }

    /// Writes a statement with `?` in the words of the database.
    fn sql(&self, statement: &str) -> AssertSqlSafe<String> {
        if self.dialect() != Dialect::Postgres {
            return AssertSqlSafe(statement.to_owned());
        }
        let mut parts = statement.split('?');
        let mut numbered = parts.next().unwrap_or_default().to_owned();
        for (index, part) in parts.enumerate() {
            numbered.push_str(&format!("${}{part}", index + 1));
        }
        AssertSqlSafe(numbered)
    }

    /// Limits the time of one step, and keeps the record of whether the database answers.
    async fn step<T>(
        &self,
        operation: &'static str,
        step: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, StoreError> {
        let began = Instant::now();
        let answer = tokio::time::timeout(STEP, step).await;
        metrics::dependency_took(Dependency::Database, operation, began.elapsed());
        let failed = match answer {
            Ok(Ok(answer)) => {
                self.health.answered();
                return Ok(answer);
            }
            Ok(Err(error)) => self.health.store_error(&error),
            Err(_) => StoreError::timeout(Dependency::Database, STEP),
        };
        self.health.failed(&failed);
        Err(failed)
    }

    /// Returns the version of the tables.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn schema(&self) -> Result<SchemaVersion, StoreError> {
        let sql = "SELECT COALESCE(MAX(version), 0), COALESCE(MAX(readable_by), 0) FROM lockgate_registry_schema";
        let read = async {
            let read =
                on!(self, pool => sqlx::query_as::<_, (i64, i64)>(sql).fetch_one(pool).await);
            match read {
                Err(error) if link::is_schema_error(&error) => Ok((0, 0)),
                read => read,
            }
        };
        let (version, readable_by) = self.step("registry_schema", read).await?;
        Ok(SchemaVersion {
            version,
            readable_by,
        })
    }

    /// Makes the migrations that are missing. Several replicas may try at once: one makes them, the others wait for it.
    ///
    /// # Errors
    /// [`StoreError`]; on MySQL a part of a migration may have been made, and it can be tried again.
    pub async fn migrate(&self, now: i64) -> Result<(), StoreError> {
        if self.schema().await?.version >= NEWEST {
            return Ok(());
        }
        let migrated = async {
            match &self.pools {
                TablePools::Postgres(pool) => {
                    let mut tx = pool.begin().await?;
                    sqlx::query("SELECT pg_advisory_xact_lock($1)")
                        .bind(MIGRATION_LOCK)
                        .execute(&mut *tx)
                        .await?;
                    migrate_on!(self, tx, now);
                    tx.commit().await
                }
                TablePools::MySql(pool) => {
                    let mut tx = pool.begin().await?;
                    // A lock of the connection, which ends with it: each CREATE ends a transaction.
                    sqlx::query("SELECT GET_LOCK('lockgate_registry', 5)")
                        .execute(&mut *tx)
                        .await?;
                    migrate_on!(self, tx, now);
                    sqlx::query("SELECT RELEASE_LOCK('lockgate_registry')")
                        .execute(&mut *tx)
                        .await?;
                    tx.commit().await
                }
                TablePools::Sqlite(pool) => {
                    let mut tx = pool.begin_with("BEGIN IMMEDIATE").await?;
                    migrate_on!(self, tx, now);
                    tx.commit().await
                }
            }
        };
        self.step("registry_migrate", migrated).await
    }

    /// Returns the number of the last change.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn serial(&self) -> Result<i64, StoreError> {
        let sql = "SELECT serial FROM lockgate_registry WHERE id = 1";
        let read =
            async { on!(self, pool => sqlx::query_scalar::<_, i64>(sql).fetch_one(pool).await) };
        self.step("registry_serial", read).await
    }

    /// Returns a reader of all tenants.
    pub fn tenants(&self) -> AllRows<'_> {
        AllRows {
            table: self,
            place: RowPlace::first(),
        }
    }

    /// Returns the names and versions of all tenants.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn versions(&self) -> Result<Vec<(String, i64)>, StoreError> {
        let sql = "SELECT name, version FROM lockgate_tenant WHERE name > ? ORDER BY name LIMIT ?";
        let (mut all, mut place) = (Vec::new(), RowPlace::first());
        while let Some(after) = &place.after {
            let part = async {
                on!(self, pool => {
                    let query = sqlx::query(self.sql(sql)).bind(after).bind(VERSIONS);
                    let rows = query.fetch_all(pool).await?;
                    let read = |name, version: Result<i64, _>| Some((name, version.unwrap_or_default()));
                    let named = rows.iter();
                    let named = named.filter_map(|row| read(row.try_get(0).ok()?, row.try_get(1)));
                    Ok((named.collect::<Vec<(String, i64)>>(), rows.len()))
                })
            };
            let (named, found) = self.step("registry_versions", part).await?;
            place.pass(named.last().map(|(name, _)| name), (found, VERSIONS));
            all.extend(named);
        }
        Ok(all)
    }

    /// Returns one tenant.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn one(&self, name: &str) -> Result<Option<TenantRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM lockgate_tenant WHERE name = ?");
        let read = async {
            on!(self, pool => {
                let row = sqlx::query(self.sql(&sql)).bind(name).fetch_optional(pool).await?;
                Ok(row.and_then(|row| tenant_row!(row)))
            })
        };
        self.step("registry_tenant", read).await
    }

    /// Returns what changed after the number `seen`, up to the number `serial` or an earlier one.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn changes(&self, seen: i64, serial: i64) -> Result<TableChanges, StoreError> {
        let rows = format!(
            "SELECT {COLUMNS} FROM lockgate_tenant WHERE serial > ? AND serial <= ? ORDER BY serial"
        );
        let deleted = "SELECT tenant FROM lockgate_tenant_audit \
                       WHERE serial > ? AND serial <= ? AND action = 'delete' ORDER BY serial";
        let read = async {
            on!(self, pool => {
                let query = sqlx::query(self.sql(&rows)).bind(seen).bind(serial);
                let part = read_part!(query, pool);
                let until = if part.is_full() { part.serial } else { serial };
                let query = sqlx::query_scalar::<_, String>(self.sql(deleted));
                let deleted = query.bind(seen).bind(until).fetch_all(pool).await?;
                Ok(TableChanges { rows: part.rows, deleted, until })
            })
        };
        self.step("registry_changes", read).await
    }

    /// Makes a change and its entry in the audit, both or neither.
    ///
    /// # Errors
    /// [`StoreError`]; the change may have been stored where the answer did not come.
    pub async fn write(&self, change: &TableChange<'_>) -> Result<WriteOutcome, StoreError> {
        let written = async {
            on!(self, pool => {
                let mut tx = pool.begin().await?;
                write_on!(self, tx, change)
            })
        };
        self.step("registry_write", written).await
    }
}

/// A reader of all tenants, in the order of their names.
#[derive(Debug)]
pub struct AllRows<'t> {
    table: &'t TenantTable,
    place: RowPlace,
}

impl AllRows<'_> {
    /// Returns the next part of them; `None` after the last one.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn next_part(&mut self) -> Result<Option<Vec<TenantRow>>, StoreError> {
        let Some(after) = &self.place.after else {
            return Ok(None);
        };
        let table = self.table;
        let sql =
            format!("SELECT {COLUMNS} FROM lockgate_tenant WHERE name > ? ORDER BY name LIMIT ?");
        let part = async {
            on!(table, pool => {
                let query = sqlx::query(table.sql(&sql)).bind(after).bind(PART);
                Ok(read_part!(query, pool))
            })
        };
        let part = table.step("registry_tenants", part).await?;
        let most = if part.is_full() { 0 } else { PART };
        self.place
            .pass(part.rows.last().map(|row| &row.name), (part.found, most));
        Ok(Some(part.rows))
    }
}
