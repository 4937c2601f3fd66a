//! The part that is special to SQLite, where each value has a type and columns only declare one.

use std::str::FromStr;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteRow};
use sqlx::{
    AssertSqlSafe, Column, ConnectOptions, Executor, Row as _, SqlSafeStr, Sqlite, TypeInfo,
    ValueRef,
};

use super::link::{Ask, Link, STATEMENT_TIMEOUT};
use super::statement::Bind;
use super::value::{ColumnName, Row, SqlValue, names_of};

pub(super) fn options(url: &str) -> Result<SqliteConnectOptions, sqlx::Error> {
    Ok(SqliteConnectOptions::from_str(url)?
        .busy_timeout(STATEMENT_TIMEOUT)
        // Rows are looked up one by one and cached elsewhere, so SQLite's default cache of 2 MB per connection would be
        // wasted.
        .pragma("cache_size", "-256")
        .disable_statement_logging())
}

impl Link for Sqlite {
    async fn ask(
        conn: &mut SqliteConnection,
        ask: &Ask,
        _pooled: bool,
    ) -> Result<Vec<Row>, sqlx::Error> {
        let mut query = sqlx::query(AssertSqlSafe(ask.sql.clone()));
        for bind in &ask.binds {
            query = match bind {
                Bind::Int(number) => query.bind(*number),
                Bind::Uuid(uuid) => query.bind(uuid.simple().to_string()),
                Bind::Text(text) => query.bind(text.clone()),
            };
        }
        let rows = query.fetch_all(conn).await?;
        let names = names_of(&rows);
        rows.iter().map(|one| row(one, &names)).collect()
    }

    async fn columns(
        conn: &mut SqliteConnection,
        ask: &Ask,
        _pooled: bool,
    ) -> Result<Vec<String>, sqlx::Error> {
        let statement = conn
            .prepare(AssertSqlSafe(ask.sql.clone()).into_sql_str())
            .await?;
        let names = sqlx::Statement::columns(&statement)
            .iter()
            .map(|column| column.name().to_owned());
        Ok(names.collect())
    }
}

fn row(row: &SqliteRow, names: &[ColumnName]) -> Result<Row, sqlx::Error> {
    let columns = row.columns().iter().zip(names);
    let values = columns.map(|(column, name)| {
        let declared = column.type_info().name();
        Ok((name.clone(), value(row, column.ordinal(), declared)?))
    });
    values.collect()
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
