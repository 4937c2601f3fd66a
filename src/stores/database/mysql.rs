//! The part that is special to MySQL and MariaDB: types of columns, and the time limit of a statement.

use std::str::FromStr;

use sqlx::mysql::types::MySqlTime;
use sqlx::mysql::{MySqlConnectOptions, MySqlConnection, MySqlRow, MySqlTypeInfo};
use sqlx::types::time::{Date, OffsetDateTime, PrimitiveDateTime};
use sqlx::{
    AssertSqlSafe, Column, ColumnOrigin, ConnectOptions, Connection, Executor, MySql, Row as _,
    SqlSafeStr, Type, TypeInfo, ValueRef,
};

use super::answer::{SqlAnswer, SqlRow};
use super::bounded::{CUT, DescribedColumn};
use super::link::{Ask, Link, STATEMENT_TIMEOUT};
use super::statement::Bind;
use super::value::{ColumnName, Row, SqlValue, names_of};

pub(super) fn options(url: &str) -> Result<MySqlConnectOptions, sqlx::Error> {
    Ok(MySqlConnectOptions::from_str(url)?.disable_statement_logging())
}

/// Limits the time of the statements of a new connection. MySQL and MariaDB each execute one of the two comments.
pub(super) async fn limit_time(conn: &mut MySqlConnection) -> Result<(), sqlx::Error> {
    let (millis, seconds) = (
        STATEMENT_TIMEOUT.as_millis(),
        STATEMENT_TIMEOUT.as_secs_f64(),
    );
    let sql = format!(
        "SET @lockgate = 1 /*!50708 , SESSION max_execution_time = {millis} */ \
         /*M!100101 , SESSION max_statement_time = {seconds} */"
    );
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(conn).await?;
    Ok(())
}

impl Link for MySql {
    async fn ask(
        conn: &mut MySqlConnection,
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
        conn: &mut MySqlConnection,
        ask: &Ask,
        _pooled: bool,
    ) -> Result<Vec<DescribedColumn>, sqlx::Error> {
        // A statement that the connection knows has the columns of the day on which it was prepared.
        conn.clear_cached_statements().await?;
        let statement = conn
            .prepare(AssertSqlSafe(ask.sql.clone()).into_sql_str())
            .await?;
        let columns = sqlx::Statement::columns(&statement).iter();
        let described = columns.map(|column| DescribedColumn {
            name: column.name().to_owned(),
            is_long: is_long(column.type_info()),
            is_computed: matches!(column.origin(), ColumnOrigin::Expression),
        });
        Ok(described.collect())
    }
}

/// Returns true if a value of a type may be longer than 64 KiB. A longer `CHAR` or `BINARY` is one of these types, too.
fn is_long(kind: &MySqlTypeInfo) -> bool {
    let name = kind.name();
    name.ends_with("TEXT") || name.ends_with("BLOB") || matches!(name, "JSON" | "GEOMETRY" | "NULL")
}

fn row(row: &MySqlRow, names: &[ColumnName]) -> Result<SqlRow, sqlx::Error> {
    let columns = row.columns().iter().zip(names);
    let values = columns.map(|(column, name)| Ok((name.clone(), value(row, column.ordinal())?)));
    let mut values = values.collect::<Result<Row, sqlx::Error>>()?;
    let cut = values.pop_if(|(name, _)| **name == *CUT);
    Ok(
        match cut.is_some_and(|(_, cut)| cut.as_bool() == Some(true)) {
            true => SqlRow::Cut(values),
            false => SqlRow::Whole(values),
        },
    )
}

fn value(row: &MySqlRow, index: usize) -> Result<SqlValue, sqlx::Error> {
    let raw = row.try_get_raw(index)?;
    if raw.is_null() {
        return Ok(SqlValue::Null);
    }
    let kind = raw.type_info().name().to_owned();
    Ok(match kind.as_str() {
        "BOOLEAN" => SqlValue::Bool(row.try_get_unchecked(index)?),
        "TINYINT" | "SMALLINT" | "MEDIUMINT" | "INT" | "BIGINT" => {
            SqlValue::Number(row.try_get_unchecked::<i64, _>(index)?.to_string())
        }
        "FLOAT" => SqlValue::Number(row.try_get_unchecked::<f32, _>(index)?.to_string()),
        "DOUBLE" => SqlValue::from_float(row.try_get_unchecked(index)?),
        "BIT" | "YEAR" => SqlValue::Number(row.try_get_unchecked::<u64, _>(index)?.to_string()),
        unsigned if unsigned.ends_with("UNSIGNED") => {
            SqlValue::Number(row.try_get_unchecked::<u64, _>(index)?.to_string())
        }
        "DATE" => date(row.try_get_unchecked::<Date, _>(index)),
        "DATETIME" => date(
            row.try_get_unchecked::<PrimitiveDateTime, _>(index)
                .map(iso),
        ),
        "TIMESTAMP" => date(row.try_get_unchecked::<OffsetDateTime, _>(index).map(|at| {
            format!(
                "{}+00:00",
                iso(PrimitiveDateTime::new(at.date(), at.time()))
            )
        })),
        "TIME" => date(row.try_get_unchecked::<MySqlTime, _>(index)),
        "JSON" => SqlValue::from_json(&text(row, index)?),
        // Before the binary types: the driver also gives these names to text with a binary collation (utf8mb4_bin,
        // MariaDB's JSON).
        _ if <str as Type<MySql>>::compatible(&raw.type_info()) => {
            SqlValue::Text(text(row, index)?)
        }
        "BINARY" | "VARBINARY" | "TINYBLOB" | "BLOB" | "MEDIUMBLOB" | "LONGBLOB" | "GEOMETRY" => {
            SqlValue::Bytes(row.try_get_unchecked(index)?)
        }
        _ => SqlValue::Text(text(row, index)?),
    })
}

/// Converts a time; NULL for a value that only MySQL takes for a time, such as `0000-00-00`.
fn date<T: ToString>(value: Result<T, sqlx::Error>) -> SqlValue {
    value.map_or(SqlValue::Null, |value| SqlValue::Text(value.to_string()))
}

fn text(row: &MySqlRow, index: usize) -> Result<String, sqlx::Error> {
    let bytes: Vec<u8> = row.try_get_unchecked(index)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Formats a time as `2026-11-23T18:30:00`, with microseconds if they are not zero.
fn iso(at: PrimitiveDateTime) -> String {
    let (date, (hour, minute, second, micro)) = (at.date(), at.time().as_hms_micro());
    let whole = format!("{date}T{hour:02}:{minute:02}:{second:02}");
    match micro {
        0 => whole,
        micro => format!("{whole}.{micro:06}"),
    }
}
