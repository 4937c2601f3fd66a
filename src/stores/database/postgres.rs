//! The part that is special to PostgreSQL: placeholders with types, rows as JSON, and transaction poolers.

use std::borrow::Cow;
use std::str::FromStr;

use serde::Deserialize;
use serde::de::{Deserializer as _, MapAccess, Visitor};
use serde_json::value::RawValue;
use sqlx::postgres::{PgArguments, PgColumn, PgConnectOptions, PgConnection, PgRow, PgTypeInfo};
use sqlx::query::Query;
use sqlx::{
    AssertSqlSafe, Column, ConnectOptions, Connection, Executor, Postgres, Row as _, SqlSafeStr,
    Type, TypeInfo, ValueRef,
};

use super::answer::{CUT_ROW_ID, MAX_ID, MAX_ROW, SqlAnswer, SqlRow};
use super::bounded::DescribedColumn;
use super::link::{Ask, Link, STATEMENT_TIMEOUT, leaves_rows};
use super::statement::Bind;
use super::value::{ColumnName, Row, SqlValue, names_of};

/// The column of [`bounded_rows`] that holds the row as JSON.
const ROW: &str = "lockgate.row";
/// The subquery of [`bounded_rows`] that writes rows as JSON.
const JSON: &str = "lockgate.json";

/// Returns the options of `url`, and true if it says that it leads to a transaction pooler (`statement-cache-capacity=0`).
pub(super) fn options(url: &str) -> Result<(PgConnectOptions, bool), sqlx::Error> {
    let pooled = url.contains("statement-cache-capacity=0");
    let options = PgConnectOptions::from_str(url)?.disable_statement_logging();
    Ok((options, pooled))
}

/// Adds the time limit of statements, unless the URL has its own. Returns true with it if it is ours.
pub(super) fn limited(options: PgConnectOptions) -> (PgConnectOptions, bool) {
    let own = options.get_options();
    if own.is_some_and(|own| own.contains("statement_timeout")) {
        return (options, false);
    }
    let limit = STATEMENT_TIMEOUT.as_millis();
    (options.options([("statement_timeout", limit)]), true)
}

/// Returns the options for a transaction pooler such as PgBouncer, which takes no `options` at connect, and whose servers
/// know no prepared statement of an earlier transaction.
pub(super) fn for_pooler(options: PgConnectOptions) -> PgConnectOptions {
    options.extra_float_digits(None).statement_cache_capacity(0)
}

/// Returns true if the server of a connection has the time limit of [`limited`]. A pooler may be told to ignore it
/// (`ignore_startup_parameters`).
pub(super) async fn has_limit(conn: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let ask = "SELECT setting FROM pg_settings WHERE name = 'statement_timeout'";
    let row = match sqlx::raw_sql(ask).fetch_one(conn).await {
        Ok(row) => row,
        // Something that speaks like PostgreSQL and has no such table.
        Err(sqlx::Error::Database(_) | sqlx::Error::RowNotFound) => return Ok(true),
        Err(error) => return Err(error),
    };
    let setting: String = row.try_get_unchecked(0)?;
    let milliseconds = setting.parse::<u128>();
    Ok(milliseconds.map_or(true, |number| number == STATEMENT_TIMEOUT.as_millis()))
}

/// Returns the process of the server that a connection speaks with. It prepares nothing.
pub(super) async fn server_process(conn: &mut PgConnection) -> Result<i32, sqlx::Error> {
    let ask = sqlx::raw_sql("SELECT pg_backend_pid()");
    ask.fetch_one(conn).await?.try_get_unchecked(0)
}

/// Wraps `sql` so that each row comes as JSON, because only the server can write all of its types, and a row over [`MAX_ROW`]
/// as NULL beside its `field`. Without `field` such a row is all NULL.
///
/// PostgreSQL measures a value as it stores it, where a long text may be compressed to a hundredth. So the JSON is measured as well.
/// Where the names of the `columns` are known, it need not fetch a long value for that: five of 100 MB took a busy server 2 s.
/// The columns themselves come as NULL, for the names and types alone: they are those of a second `sql` that is planned and never
/// run. A prepared statement with four ids takes the server 0.05 ms with it and without; one through a transaction pooler, which
/// is parsed and planned each time, 0.36 ms instead of 0.16 ms (pgbench, PostgreSQL 15).
pub(super) fn bounded_rows(sql: &str, field: Option<&str>, columns: &[String]) -> String {
    let column = |name: &str| format!("\"{ROW}s\".\"{}\"", name.replace('"', "\"\""));
    let id = match field {
        Some(field) => format!("left({}::text, {MAX_ID})", column(field)),
        None => "NULL".to_owned(),
    };
    let size = match columns {
        [] => format!("pg_column_size(\"{ROW}s\")"),
        columns => {
            let sizes = columns.iter().map(|name| column(name));
            let sizes = sizes.map(|column| format!("COALESCE(pg_column_size({column}), 0)"));
            sizes.collect::<Vec<_>>().join(" + ")
        }
    };
    // A column with the name of an alias would hide it, hence the unusual names. The line feed ends a comment on the last line of
    // `sql`. OFFSET keeps the planner from writing the expressions of the subquery where their names stand, twice.
    format!(
        "SELECT CASE WHEN octet_length(\"{JSON}\".j) <= {MAX_ROW} THEN \"{JSON}\".j END AS \"{ROW}\", \
         CASE WHEN octet_length(\"{JSON}\".j) <= {MAX_ROW} THEN NULL ELSE \"{JSON}\".i END AS \"{CUT_ROW_ID}\", \"{ROW}.types\".* \
         FROM (SELECT CASE WHEN {size} <= {MAX_ROW} THEN row_to_json(\"{ROW}s\")::text END AS j, {id} AS i \
         FROM (\n{sql}\n) AS \"{ROW}s\" OFFSET 0) AS \"{JSON}\" LEFT JOIN (\n{sql}\n) AS \"{ROW}.types\" ON false"
    )
}

impl Link for Postgres {
    async fn ask(
        conn: &mut PgConnection,
        ask: &Ask,
        pooled: bool,
    ) -> Result<SqlAnswer, sqlx::Error> {
        if !pooled {
            return fetch(conn, bound(&ask.sql, ask)).await;
        }
        forget_statements(conn).await?;
        // A transaction stays on one connection to the server, and the time limit ends with it.
        let limit = STATEMENT_TIMEOUT.as_millis();
        let begin = format!("BEGIN; SET LOCAL statement_timeout = {limit}");
        sqlx::raw_sql(AssertSqlSafe(begin))
            .execute(&mut *conn)
            .await?;
        let answer = fetch(conn, bound(&ask.sql, ask).persistent(false)).await;
        // A connection with rows that were not read ends, and its transaction with it.
        let has_rows = match &answer {
            Ok(answer) => answer.is_stopped,
            Err(error) => leaves_rows(error),
        };
        if !has_rows {
            sqlx::raw_sql("ROLLBACK").execute(&mut *conn).await?;
        }
        answer
    }

    async fn columns(
        conn: &mut PgConnection,
        ask: &Ask,
        pooled: bool,
    ) -> Result<Vec<DescribedColumn>, sqlx::Error> {
        if pooled {
            forget_statements(conn).await?;
            return pooled_columns(conn, ask).await;
        }
        // A statement that the connection knows has the columns of the day on which it was prepared.
        conn.clear_cached_statements().await?;
        // The connection keeps the statement for later queries, which bind values of these types. Left alone, the server
        // would choose a type by the column, such as a shorter integer.
        let types: Vec<_> = ask.binds.iter().map(type_of).collect();
        let sql = AssertSqlSafe(ask.sql.clone()).into_sql_str();
        let statement = conn.prepare_with(sql, &types).await?;
        Ok(described(sqlx::Statement::columns(&statement)))
    }
}

/// Makes a connection forget what it prepared before a pooler was found: the next server may know another statement by that
/// name.
async fn forget_statements(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    match conn.cached_statements_size() {
        0 => Ok(()),
        _ => conn.clear_cached_statements().await,
    }
}

/// Returns the columns of a statement without a prepared statement, which a pooler's server would keep. The statement is
/// planned as one side of a join that has no rows of it.
async fn pooled_columns(
    conn: &mut PgConnection,
    ask: &Ask,
) -> Result<Vec<DescribedColumn>, sqlx::Error> {
    let sql = format!(
        "SELECT \"{ROW}s\".* FROM (SELECT 1) AS \"{ROW}.one\" LEFT JOIN (\n{}\n) AS \"{ROW}s\" ON false",
        ask.sql
    );
    let row = bound(&sql, ask).persistent(false).fetch_one(conn).await?;
    Ok(described(row.columns()))
}

fn described(columns: &[PgColumn]) -> Vec<DescribedColumn> {
    let described = columns.iter().map(|column| DescribedColumn {
        name: column.name().to_owned(),
        // Every row is measured as JSON, whatever its columns are.
        is_long: false,
        is_computed: false,
    });
    described
        .filter(|column| ![ROW, CUT_ROW_ID].contains(&column.name.as_str()))
        .collect()
}

fn type_of(bind: &Bind) -> PgTypeInfo {
    match bind {
        Bind::Int(_) => <i64 as Type<Postgres>>::type_info(),
        Bind::Uuid(_) => <uuid::Uuid as Type<Postgres>>::type_info(),
        Bind::Text(_) => <String as Type<Postgres>>::type_info(),
    }
}

async fn fetch(
    conn: &mut PgConnection,
    query: Query<'static, Postgres, PgArguments>,
) -> Result<SqlAnswer, sqlx::Error> {
    SqlAnswer::read(query.fetch(conn), columns_of, row).await
}

fn bound(sql: &str, ask: &Ask) -> Query<'static, Postgres, PgArguments> {
    let mut query = sqlx::query(AssertSqlSafe(sql.to_owned()));
    for bind in &ask.binds {
        query = match bind {
            Bind::Int(number) => query.bind(*number),
            Bind::Uuid(uuid) => query.bind(*uuid),
            Bind::Text(text) => query.bind(text.clone()),
        };
    }
    query
}

/// A column of an answer.
struct JsonColumn {
    name: ColumnName,
    /// `row_to_json` writes its NUMERIC as a number, but decimals become text, as for the other databases.
    is_decimal: bool,
}

fn columns_of(row: &PgRow) -> Vec<JsonColumn> {
    let columns = names_of(row).into_iter().zip(row.columns());
    let columns = columns.map(|(name, column)| JsonColumn {
        name,
        is_decimal: column.type_info().name() == "NUMERIC",
    });
    columns.collect()
}

/// Returns the values of a row: from its JSON after [`bounded_rows`], else those of the few types in the gateway's own
/// statements.
fn row(row: &PgRow, columns: &[JsonColumn]) -> Result<SqlRow, sqlx::Error> {
    let columns = match columns {
        [first, _, columns @ ..] if *first.name == *ROW => columns,
        columns => {
            let columns = columns.iter().enumerate();
            let values = columns.map(|(at, column)| Ok((column.name.clone(), plain(row, at)?)));
            return Ok(SqlRow::Whole(values.collect::<Result<_, sqlx::Error>>()?));
        }
    };
    let value = row.try_get_raw(0)?;
    if value.is_null() {
        return Ok(SqlRow::Cut(vec![(CUT_ROW_ID.into(), plain(row, 1)?)]));
    }
    let bytes = value.as_bytes().map_err(sqlx::Error::Decode)?;
    // A database with the encoding SQL_ASCII returns any bytes.
    let text = String::from_utf8_lossy(bytes);
    let fields = object(&text, columns).map_err(|error| sqlx::Error::Decode(error.into()))?;
    Ok(SqlRow::Whole(fields))
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

/// Returns the fields of a JSON object, with numbers as they are written. The names of the `columns` are those of the fields, in their
/// order.
fn object(json: &str, columns: &[JsonColumn]) -> Result<Row, serde_json::Error> {
    struct Fields<'n>(&'n [JsonColumn]);

    impl<'de> Visitor<'de> for Fields<'_> {
        type Value = Row;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Row, A::Error> {
            let mut fields = Row::with_capacity(self.0.len());
            while let Some((name, value)) = map.next_entry::<BorrowedName<'de>, &'de RawValue>()? {
                let column = self.0.get(fields.len());
                let column = column.filter(|column| *column.name == *name.0);
                let value = match (SqlValue::from_json(value.get()), column) {
                    (SqlValue::Number(digits), Some(column)) if column.is_decimal => {
                        SqlValue::Text(digits)
                    }
                    (value, _) => value,
                };
                let name = column.map_or_else(|| name.0.into(), |column| column.name.clone());
                fields.push((name, value));
            }
            Ok(fields)
        }
    }

    serde_json::Deserializer::from_str(json).deserialize_map(Fields(columns))
}

/// A name that borrows from the input unless it holds escapes.
#[derive(Deserialize)]
struct BorrowedName<'a>(#[serde(borrow)] Cow<'a, str>);
