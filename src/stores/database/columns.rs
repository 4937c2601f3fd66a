//! The columns that a table or a query gives, and the one that is missing.

use std::sync::Arc;

use super::answer::MAX_COLUMNS;
use super::bounded::DescribedColumn;
use super::link::{AskError, ValueFault};
use super::statement::{self, Statement};
use super::user_query::UserPlan;
use super::{ColumnProblem, Database, Dialect, UserQuery, postgres, refused, table_name};

/// The columns of a table.
#[derive(Debug, Default)]
pub(super) struct Columns {
    /// The columns that the database's user may read.
    pub(super) readable: Vec<String>,
    /// The columns that it may not read.
    pub(super) hidden: Vec<String>,
    /// The type of the column that holds the ids, where PostgreSQL says it.
    pub(super) field_type: Option<String>,
    /// The columns that a query returns.
    described: Vec<DescribedColumn>,
}

impl Columns {
    /// Returns the reason why a statement with these columns is not asked.
    pub(super) fn too_many(&self) -> Option<ColumnProblem> {
        let count = self.described.len();
        (count > MAX_COLUMNS).then_some(ColumnProblem::TooMany { count })
    }
}

impl Database {
    /// Returns the columns of the table, or of what the operator's statement returns.
    pub(super) async fn columns(&self, query: &UserQuery) -> Result<Columns, AskError> {
        if let Some(statement) = query.statement() {
            let described = self.described(query, &statement).await?;
            return Ok(Columns {
                readable: described.iter().map(|column| column.name.clone()).collect(),
                described,
                ..Columns::default()
            });
        }
        let Some((schema, table)) = query.table() else {
            return Ok(Columns::default());
        };
        let text = |text: &str| statement::Bind::Text(text.to_owned());
        let (sql, binds) = match (self.dialect(), schema) {
            (Dialect::Postgres, schema) => {
                let schema = schema.map(|schema| format!("\"{schema}\"."));
                let name = format!("{}\"{table}\"", schema.unwrap_or_default());
                // The catalogue also lists columns that the role may not read.
                let sql = "SELECT attname::text, has_column_privilege(attrelid, attnum, 'SELECT'), \
                           atttypid::regtype::text FROM pg_attribute WHERE attrelid = to_regclass($1) \
                           AND attnum > 0 AND NOT attisdropped";
                (sql, vec![text(&name)])
            }
            (Dialect::MySql, None) => (
                "SELECT column_name FROM information_schema.columns \
                 WHERE table_schema = DATABASE() AND table_name = ?",
                vec![text(table)],
            ),
            (Dialect::MySql, Some(schema)) => (
                "SELECT column_name FROM information_schema.columns \
                 WHERE table_schema = ? AND table_name = ?",
                vec![text(schema), text(table)],
            ),
            (Dialect::Sqlite, None) => ("SELECT name FROM pragma_table_info(?)", vec![text(table)]),
            (Dialect::Sqlite, Some(schema)) => (
                "SELECT name FROM pragma_table_info(?, ?)",
                vec![text(table), text(schema)],
            ),
        };
        let answer = self.ask("columns", sql.to_owned(), binds).await?;
        let mut columns = Columns::default();
        for row in answer.rows {
            let Some(name) = row.first().and_then(|(_, value)| value.as_text()) else {
                continue;
            };
            let readable = row.get(1).and_then(|(_, value)| value.as_bool());
            if query.is_field(name) {
                let kind = row.get(2).and_then(|(_, value)| value.as_text());
                columns.field_type = kind.map(str::to_owned);
            }
            match readable {
                Some(false) => columns.hidden.push(name.to_owned()),
                _ => columns.readable.push(name.to_owned()),
            }
        }
        Ok(columns)
    }

    /// Checks with a query for a probe id that the database answers, and that the columns exist and are readable. Returns the
    /// columns that become fields.
    ///
    /// # Errors
    /// [`ColumnProblem`] with the missing part.
    pub async fn check_columns(&self, query: &UserQuery) -> Result<Vec<String>, ColumnProblem> {
        let columns = self.columns(query).await;
        let columns = columns.map_err(|failed| failed.error)?;
        if let Some(problem) = columns.too_many() {
            return Err(problem);
        }
        if let Some(column) = query.missing(&columns.readable) {
            return Err(missing_column(query, &columns, column));
        }
        let plan = self.plan_of(query, &columns).await;
        let plan = plan.map_err(|failed| failed.error)?;
        match self.ask_users(&plan, &query.binds(&query.probe())).await {
            // The column has another type than the probe, which a handshake may have too.
            Err(failed) if failed.value == Some(ValueFault::Parameter) => {}
            // The server has just read the same statement outside of a frame.
            Err(failed) if failed.is_unfit && query.table().is_none() => {
                return Err(ColumnProblem::NotInSubquery(failed.error));
            }
            Err(failed) => {
                if failed.value == Some(ValueFault::TooSlow) {
                    self.health.failed(&failed.error);
                }
                return Err(failed.error.into());
            }
            Ok(_) => {}
        }
        Ok(query.fields_of(columns.readable))
    }

    /// Makes the plan for reading users where there are these columns.
    pub(super) async fn plan_of(
        &self,
        query: &UserQuery,
        columns: &Columns,
    ) -> Result<Arc<UserPlan>, AskError> {
        if let Some(statement) = query.statement() {
            return Ok(query.keep_plan(statement, &columns.described));
        }
        let made = query.table_statement(&columns.readable, columns.field_type.as_deref());
        let (statement, names) = made.ok_or_else(|| {
            let table = table_name(query);
            refused(ColumnProblem::NoTable { table })
        })?;
        let described = match self.dialect() {
            Dialect::MySql => self.described(query, &statement).await?,
            Dialect::Postgres | Dialect::Sqlite => {
                let columns = names.into_iter().map(|name| DescribedColumn {
                    name,
                    is_long: false,
                    is_computed: false,
                });
                columns.collect()
            }
        };
        Ok(query.keep_plan(statement, &described))
    }

    /// Returns the columns that a statement returns.
    async fn described(
        &self,
        query: &UserQuery,
        statement: &Statement,
    ) -> Result<Vec<DescribedColumn>, AskError> {
        let binds = query.binds(&query.probe());
        let (sql, binds) = statement.render(|_| binds.clone());
        let sql = match self.dialect() {
            Dialect::Postgres => postgres::bounded_rows(&sql, None, &[]),
            Dialect::MySql | Dialect::Sqlite => sql,
        };
        self.prepare(sql, binds).await
    }
}

/// Returns the reason why a column that is needed is not there.
pub(super) fn missing_column(query: &UserQuery, columns: &Columns, column: &str) -> ColumnProblem {
    let (table, column) = (table_name(query), column.to_owned());
    match query.table() {
        Some(_) if columns.hidden.contains(&column) => ColumnProblem::NotReadable { table, column },
        Some(_) if columns.readable.is_empty() && columns.hidden.is_empty() => {
            ColumnProblem::NoTable { table }
        }
        Some(_) => ColumnProblem::NoColumn { table, column },
        None => ColumnProblem::NotReturned { column },
    }
}
