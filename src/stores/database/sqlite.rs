//! The part that is special to SQLite, where each value has a type and columns only declare one.
//!
//! It runs in the process, so that a long value would take memory before any statement could measure it. Hence the limit with
//! which `.cargo/config.toml` has it built: `SQLITE_MAX_LENGTH`, 2 MiB. It ends a statement that meets a longer value.

use std::str::FromStr;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteRow};
use sqlx::{
    AssertSqlSafe, Column, ConnectOptions, Executor, Row as _, SqlSafeStr, Sqlite, TypeInfo,
    ValueRef,
};

use super::answer::{SqlAnswer, SqlRow};
use super::bounded::DescribedColumn;
use super::link::{Ask, Link, STATEMENT_TIMEOUT};
use super::statement::Bind;
use super::value::{ColumnName, Row, SqlValue, names_of};

pub(super) fn options(url: &str) -> Result<SqliteConnectOptions, sqlx::Error> {
    Ok(SqliteConnectOptions::from_str(url)?
        .busy_timeout(STATEMENT_TIMEOUT)
        // Rows are looked up one by one and cached elsewhere, so SQLite's default cache of 2 MB per connection would be
        // wasted.
        .pragma("cache_size", "-256")
        // Rows that wait for the reader: the driver's 50 could have 2 MiB in each column.
        .row_buffer_size(2)
        .disable_statement_logging())
}

impl Link for Sqlite {
    async fn ask(
        conn: &mut SqliteConnection,
        ask: &Ask,
        _pooled: bool,
    ) -> Result<SqlAnswer, sqlx::Error> {
        let mut query = sqlx::query(AssertSqlSafe(ask.sql.clone()));
        for bind in &ask.binds {
            query = match bind {
                Bind::Int(number) => query.bind(*number),
                Bind::Uuid(uuid) => query.bind(uuid.simple().to_string()),
                Bind::Text(text) => query.bind(text.clone()),
            };
        }
        SqlAnswer::read(query.fetch(conn), names_of, row).await
    }

    async fn columns(
        conn: &mut SqliteConnection,
        ask: &Ask,
        _pooled: bool,
    ) -> Result<Vec<DescribedColumn>, sqlx::Error> {
        let statement = conn
            .prepare(AssertSqlSafe(ask.sql.clone()).into_sql_str())
            .await?;
        let columns = sqlx::Statement::columns(&statement).iter();
        let described = columns.map(|column| DescribedColumn {
            name: column.name().to_owned(),
            // No value is longer than SQLite's own limit.
            is_long: false,
            is_computed: false,
        });
        Ok(described.collect())
    }
}

fn row(row: &SqliteRow, names: &[ColumnName]) -> Result<SqlRow, sqlx::Error> {
    let columns = row.columns().iter().zip(names);
    let values = columns.map(|(column, name)| {
        let declared = column.type_info().name();
        Ok((name.clone(), value(row, column.ordinal(), declared)?))
    });
    Ok(SqlRow::Whole(values.collect::<Result<Row, sqlx::Error>>()?))
}

fn value(row: &SqliteRow, index: usize, declared: &str) -> Result<SqlValue, sqlx::Error> {
    let raw = row.try_get_raw(index)?;
    if raw.is_null() {
        return Ok(SqlValue::Null);
    }
    let kind = raw.type_info();
    Ok(match (kind.name(), declared) {
        ("INTEGER", "BOOLEAN") => SqlValue::Bool(row.try_get_unchecked::<i64, _>(index)? != 0),
        ("INTEGER", _) => SqlValue::Number(row.try_get_unchecked::<i64, _>(index)?.to_string()),
        ("REAL", _) => SqlValue::from_float(row.try_get_unchecked(index)?),
        ("BLOB", _) => SqlValue::Bytes(row.try_get_unchecked(index)?),
        (_, declared) => {
            let bytes: &[u8] = row.try_get_unchecked(index)?;
            let text = String::from_utf8_lossy(bytes);
            SqlValue::Text(match declared {
                // Django writes a space where ISO 8601 has a T.
                "DATETIME" => text.replacen(' ', "T", 1),
                _ => text.into_owned(),
            })
        }
    })
}
