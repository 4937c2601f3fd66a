//! The part that is special to PostgreSQL: placeholders with types, rows as JSON, and transaction poolers.

use std::str::FromStr;

use serde::de::{Deserializer as _, MapAccess, Visitor};
use serde_json::value::RawValue;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgRow, PgTypeInfo};
use sqlx::{
    AssertSqlSafe, Column, ConnectOptions, Executor, Postgres, Row as _, SqlSafeStr, Type,
    TypeInfo, ValueRef,
};

use super::link::{Ask, Link, STATEMENT_TIMEOUT};
use super::statement::Bind;
use super::value::{Row, SqlValue};

/// The column of [`wrap_rows`] that holds the row as JSON.
const ROW: &str = "lockgate.row";

/// Returns the options of `url`, and true if it goes through a transaction pooler (`statement-cache-capacity=0`).
///
/// A pooler such as pgbouncer accepts no `options` at connect, and prepared statements end with their transaction.
pub(super) fn options(url: &str) -> Result<(PgConnectOptions, bool), sqlx::Error> {
    let pooled = url.contains("statement-cache-capacity=0");
    let options = PgConnectOptions::from_str(url)?.disable_statement_logging();
    if pooled {
        return Ok((options.extra_float_digits(None), true));
    }
    let own_timeout = options
        .get_options()
        .is_some_and(|o| o.contains("statement_timeout"));
    if own_timeout {
        return Ok((options, false));
    }
    let limit = STATEMENT_TIMEOUT.as_millis();
    Ok((options.options([("statement_timeout", limit)]), false))
}

/// Wraps `sql` so that each row also comes as JSON, because only the server can write all of its types.
pub(super) fn wrap_rows(sql: &str) -> String {
    // A column with the name of the alias would hide the row, hence the unusual name. The line feed ends a comment on
    // the last line of `sql`.
    format!(
        "SELECT \"{ROW}s\".*, row_to_json(\"{ROW}s\")::text AS \"{ROW}\" FROM (\n{sql}\n) AS \"{ROW}s\""
    )
}

impl Link for Postgres {
    async fn ask(conn: &mut PgConnection, ask: &Ask) -> Result<Vec<Row>, sqlx::Error> {
        if !ask.pooled {
            return fetch(conn, ask).await;
        }
        // A transaction stays on one connection to the server, and the time limit ends with it.
        let limit = STATEMENT_TIMEOUT.as_millis();
        let begin = format!("BEGIN; SET LOCAL statement_timeout = {limit}");
        sqlx::raw_sql(AssertSqlSafe(begin))
            .execute(&mut *conn)
            .await?;
        let rows = fetch(conn, ask).await;
        sqlx::raw_sql("ROLLBACK").execute(&mut *conn).await?;
        rows
    }

    async fn columns(conn: &mut PgConnection, ask: &Ask) -> Result<Vec<String>, sqlx::Error> {
        // The connection keeps the statement for later queries, which bind values of these types. Left alone, the server
        // would choose a type by the column, such as a shorter integer.
        let types: Vec<_> = ask.binds.iter().map(type_of).collect();
        let sql = AssertSqlSafe(ask.sql.clone()).into_sql_str();
        let statement = conn.prepare_with(sql, &types).await?;
        let names = sqlx::Statement::columns(&statement)
            .iter()
            .map(|column| column.name().to_owned());
        Ok(names.filter(|name| name != ROW).collect())
    }
}

fn type_of(bind: &Bind) -> PgTypeInfo {
    match bind {
        Bind::Int(_) => <i64 as Type<Postgres>>::type_info(),
        Bind::Uuid(_) => <uuid::Uuid as Type<Postgres>>::type_info(),
        Bind::Text(_) => <String as Type<Postgres>>::type_info(),
    }
}

async fn fetch(conn: &mut PgConnection, ask: &Ask) -> Result<Vec<Row>, sqlx::Error> {
    let mut query = sqlx::query(AssertSqlSafe(ask.sql.clone())).persistent(!ask.pooled);
    for bind in &ask.binds {
        query = match bind {
            Bind::Int(number) => query.bind(*number),
            Bind::Uuid(uuid) => query.bind(*uuid),
            Bind::Text(text) => query.bind(text.clone()),
        };
    }
    query.fetch_all(conn).await?.iter().map(row).collect()
}

/// Returns the values of a row: from its JSON after [`wrap_rows`], else those of the few types in the gateway's own
/// statements.
fn row(row: &PgRow) -> Result<Row, sqlx::Error> {
    let columns = row.columns();
    let Some(json) = columns.iter().position(|column| column.name() == ROW) else {
        return columns
            .iter()
            .map(|column| Ok((column.name().to_owned(), plain(row, column.ordinal())?)))
            .collect();
    };
    let value = row.try_get_raw(json)?;
    let bytes = value.as_bytes().map_err(sqlx::Error::Decode)?;
    // A database with the encoding SQL_ASCII returns any bytes.
    let text = String::from_utf8_lossy(bytes);
    let decimal = |name: &str| {
        let column = columns.iter().find(|column| column.name() == name);
        column.is_some_and(|column| column.type_info().name() == "NUMERIC")
    };
    // `row_to_json` writes NUMERIC as a number, but decimals become text, as for the other databases.
    let mut fields: Row = object(&text).map_err(|error| sqlx::Error::Decode(error.into()))?;
    for (name, value) in &mut fields {
        if let SqlValue::Number(digits) = value
            && decimal(name)
        {
            *value = SqlValue::Text(std::mem::take(digits));
        }
    }
    Ok(fields)
}

fn plain(row: &PgRow, index: usize) -> Result<SqlValue, sqlx::Error> {
    let value = row.try_get_raw(index)?;
    if value.is_null() {
        return Ok(SqlValue::Null);
    }
    Ok(match value.type_info().name() {
        "BOOL" => SqlValue::Bool(row.try_get_unchecked(index)?),
        _ => SqlValue::Text(row.try_get_unchecked(index)?),
    })
}

/// Returns the fields of a JSON object, with numbers as they are written.
fn object(json: &str) -> Result<Row, serde_json::Error> {
    struct Fields;

    impl<'de> Visitor<'de> for Fields {
        type Value = Row;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Row, A::Error> {
            let mut fields = Row::new();
            while let Some((name, value)) = map.next_entry::<String, &'de RawValue>()? {
                fields.push((name, SqlValue::from_json(value.get())));
            }
            Ok(fields)
        }
    }

    serde_json::Deserializer::from_str(json).deserialize_map(Fields)
}
