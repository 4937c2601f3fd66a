//! The statement that reads users; [`rows`] converts what it returns.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use uuid::Uuid;

use super::bounded::{DescribedColumn, StatementFrame};
use super::statement::{Bind, Dialect, Statement, StatementError};
use super::url::DatabaseUrl;
use crate::config::{Fault, Faults, IdType, TokenConfig, UsersConfig};
use crate::ids::UserId;
use crate::user_id;

mod rows;

pub use rows::UserRow;

/// Columns of a Django user table that are read if the table has them, beside those that are needed.
const WELCOME: [&str; 8] = [
    "id",
    "username",
    "first_name",
    "last_name",
    "email",
    "is_active",
    "is_staff",
    "is_superuser",
];
/// The column of the password; its value never becomes a field.
const PASSWORD: &str = "password";

/// The time after which the columns of a statement are read again. A column that a migration adds to a `SELECT *` is a field
/// then, and one that it makes longer is measured.
const DESCRIBE_EVERY: Duration = Duration::from_secs(60);

/// The types that PostgreSQL compares with a text.
const TEXT_TYPES: [&str; 4] = ["text", "character varying", "character", "citext"];

/// An example of a statement that reads users, for messages.
const EXAMPLE: &str = "SELECT id, is_active FROM people WHERE id IN (:user_ids)";

#[derive(Debug)]
enum QueryForm {
    Table {
        schema: Option<String>,
        table: String,
    },
    Query(Arc<Statement>),
}

/// The statement that reads users, and what is known of its columns.
#[derive(Debug)]
pub(super) struct UserPlan {
    pub(super) statement: Arc<Statement>,
    /// The names of the columns; none if two are the same.
    pub(super) names: Vec<String>,
    /// The column of ids, unless the statement returns none or two of that name.
    pub(super) field: Option<String>,
    /// The frame of the statement; only on MySQL.
    pub(super) frame: Option<StatementFrame>,
    described_at: Instant,
}

impl UserPlan {
    fn new(
        statement: Arc<Statement>,
        columns: &[DescribedColumn],
        field: &str,
        dialect: Dialect,
    ) -> Self {
        let mut names: Vec<String> = columns.iter().map(|column| column.name.clone()).collect();
        let fields = names.iter().filter(|name| *name == field);
        let field = (fields.count() == 1).then(|| field.to_owned());
        let frame =
            (dialect == Dialect::MySql).then(|| StatementFrame::new(columns, field.as_deref()));
        let distinct: HashSet<&String> = names.iter().collect();
        if distinct.len() < names.len() {
            names.clear();
        }
        Self {
            statement,
            names,
            field,
            frame,
            described_at: Instant::now(),
        }
    }
}

/// The way in which a tenant's users are read.
#[derive(Debug)]
pub struct UserQuery {
    form: QueryForm,
    dialect: Dialect,
    field: String,
    id_type: IdType,
    with_active: bool,
    with_password: bool,
    /// `None` until the columns are known.
    plan: Mutex<Option<Arc<UserPlan>>>,
    remark: Option<String>,
}

impl UserQuery {
    /// Builds the query from the configuration; it does not ask the database.
    ///
    /// # Errors
    /// The faults of the configuration, at keys of `[tenants.NAME]`.
    pub fn new(users: &UsersConfig, token: &TokenConfig) -> Result<Self, Faults> {
        let at_database = |fault: Fault| fault.below("users.database");
        let Some(url) = &users.database else {
            let expected = "the database that holds its users";
            let advice = "postgres://…, mysql://… or sqlite://…; with users.source = \"claims\" none is needed";
            return Err(at_database(Fault::new("", "no database", expected).advice(advice)).into());
        };
        let url = DatabaseUrl::parse(url).map_err(at_database)?;
        let dialect = url.dialect();
        let form = match &users.query {
            Some(sql) => {
                let statement = Statement::parse(sql, dialect, &["user_ids"])
                    .and_then(|statement| match statement.uses("user_ids") {
                        true => Ok(statement),
                        false => Err(StatementError::Unused("user_ids".to_owned())),
                    })
                    .map_err(|error| error.fault("users.query", EXAMPLE))?;
                QueryForm::Query(Arc::new(statement))
            }
            None => {
                let name = users.table.as_str();
                let (schema, table) = match name.split_once('.') {
                    Some((schema, table)) => (Some(identifier(schema)), identifier(table)),
                    None => (None, identifier(name)),
                };
                let (Some(schema), Some(table)) =
                    (schema.map_or(Some(None), |s| s.map(Some)), table)
                else {
                    let expected =
                        "the name of a table, such as \"auth_user\" or \"public.auth_user\"";
                    let advice = "letters, digits and _, no digit first, at most one dot";
                    let fault = Fault::new("users.table", format!("{name:?}"), expected);
                    return Err(fault.advice(advice).into());
                };
                let field = &token.user_id_field;
                if identifier(field).is_none() {
                    let expected = "the name of a column: letters, digits and _, no digit first";
                    let fault = Fault::new("token.user_id_field", format!("{field:?}"), expected);
                    return Err(fault.into());
                }
                QueryForm::Table { schema, table }
            }
        };
        Ok(Self {
            form,
            dialect,
            field: token.user_id_field.clone(),
            id_type: user_id::bound_type_of(token, users.id_type),
            with_active: token.check_user_is_active,
            with_password: token.check_revoke_token,
            plan: Mutex::default(),
            remark: url.remark(),
        })
    }

    /// Returns a remark for the operator on the database's URL, if there is one.
    pub fn remark(&self) -> Option<&str> {
        self.remark.as_deref()
    }

    /// Returns the kind of database that the query is for.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// Returns schema and table as configured; `None` if the operator gave a query.
    pub(super) fn table(&self) -> Option<(Option<&str>, &str)> {
        match &self.form {
            QueryForm::Table { schema, table } => Some((schema.as_deref(), table)),
            QueryForm::Query(_) => None,
        }
    }

    /// Returns the statement that the operator gave; `None` for a table.
    pub(super) fn statement(&self) -> Option<Arc<Statement>> {
        match &self.form {
            QueryForm::Table { .. } => None,
            QueryForm::Query(statement) => Some(Arc::clone(statement)),
        }
    }

    /// Returns false if no row can have the field `name`, as far as the configuration shows: the query does not name it, or
    /// it is none of the columns that are read of a table.
    pub fn may_return(&self, name: &str) -> bool {
        if name.eq_ignore_ascii_case(PASSWORD) {
            return false;
        }
        match &self.form {
            QueryForm::Table { .. } => WELCOME.contains(&name) || name == self.field,
            QueryForm::Query(statement) => {
                // With `*` the table decides. A database may compare names without case.
                let words = statement.words();
                let mut words = words.iter();
                words.any(|word| word == "*" || word.eq_ignore_ascii_case(name))
            }
        }
    }

    /// Returns the names that [`UserQuery::may_return`] compares with.
    pub fn words(&self) -> Vec<String> {
        match &self.form {
            QueryForm::Table { .. } => WELCOME.map(str::to_owned).to_vec(),
            QueryForm::Query(statement) => statement.words(),
        }
    }

    /// Returns the fields of a user whose row is read from these columns.
    pub(super) fn fields_of(&self, mut columns: Vec<String>) -> Vec<String> {
        let is_table = matches!(self.form, QueryForm::Table { .. });
        columns.retain(|name| {
            let is_read = !is_table || WELCOME.contains(&name.as_str()) || *name == self.field;
            is_read && !name.eq_ignore_ascii_case(PASSWORD)
        });
        columns
    }

    /// Returns the first column that is needed and missing from `columns`.
    pub(super) fn missing(&self, columns: &[String]) -> Option<&str> {
        let mut needed = vec![self.field.as_str()];
        needed.extend(self.with_active.then_some("is_active"));
        needed.extend(self.with_password.then_some(PASSWORD));
        needed
            .into_iter()
            .find(|name| !columns.iter().any(|column| column == name))
    }

    /// Returns true if ids are looked for in the column `name`.
    pub(super) fn is_field(&self, name: &str) -> bool {
        name == self.field
    }

    /// Makes the statement for a table with `columns`, where the ids have the type `field_type` if the database says it.
    /// Returns it with the names that it selects.
    pub(super) fn table_statement(
        &self,
        columns: &[String],
        field_type: Option<&str>,
    ) -> Option<(Arc<Statement>, Vec<String>)> {
        let QueryForm::Table { schema, table } = &self.form else {
            return None;
        };
        let mut names: Vec<&str> = WELCOME.to_vec();
        names.retain(|name| columns.iter().any(|column| column == name));
        if !names.contains(&self.field.as_str()) {
            names.insert(0, &self.field);
        }
        names.extend(self.with_password.then_some(PASSWORD));
        let quoted: Vec<_> = names.iter().map(|name| self.dialect.quote(name)).collect();
        let schema = schema
            .as_ref()
            .map(|schema| self.dialect.quote(schema) + ".");
        let sql = format!(
            "SELECT {} FROM {}{} WHERE {}",
            quoted.join(", "),
            schema.unwrap_or_default(),
            self.dialect.quote(table),
            self.condition(field_type),
        );
        let statement = Statement::parse(&sql, self.dialect, &["user_ids"]).ok()?;
        let names = names.into_iter().map(str::to_owned);
        Some((Arc::new(statement), names.collect()))
    }

    /// Returns the condition on the ids. PostgreSQL compares no column of another type with a text, so the texts are
    /// converted; the column is not, so that its index is of use.
    fn condition(&self, field_type: Option<&str>) -> String {
        let field = self.dialect.quote(&self.field);
        match field_type.filter(|_| self.id_type == IdType::Text) {
            Some(kind) if !TEXT_TYPES.contains(&kind) => {
                format!("{field} = ANY (ARRAY[:user_ids]::{kind}[])")
            }
            _ => format!("{field} IN (:user_ids)"),
        }
    }

    /// Returns what is known of the columns; `None` if it must be read first, or again.
    pub(super) fn plan(&self) -> Option<Arc<UserPlan>> {
        let plan = self.plan.lock().clone()?;
        let is_table = matches!(self.form, QueryForm::Table { .. });
        let is_described = match self.dialect {
            Dialect::Postgres => !is_table,
            Dialect::MySql => true,
            Dialect::Sqlite => false,
        };
        (!is_described || plan.described_at.elapsed() < DESCRIBE_EVERY).then_some(plan)
    }

    /// Keeps what is known of the columns of a statement.
    pub(super) fn keep_plan(
        &self,
        statement: Arc<Statement>,
        columns: &[DescribedColumn],
    ) -> Arc<UserPlan> {
        let plan = Arc::new(UserPlan::new(statement, columns, &self.field, self.dialect));
        *self.plan.lock() = Some(Arc::clone(&plan));
        plan
    }

    /// Drops a plan that the database refused, because the columns may have changed. Statements in flight may have the same one,
    /// and drop none that was made since. Returns false if the same statement would follow.
    pub(super) fn forget_plan(&self, refused: &Arc<UserPlan>) -> bool {
        let mut plan = self.plan.lock();
        plan.take_if(|plan| Arc::ptr_eq(plan, refused));
        self.dialect != Dialect::Sqlite || matches!(self.form, QueryForm::Table { .. })
    }

    /// Returns the values to search for an id. There are none if no column of the type can hold it; the user is then not
    /// found.
    pub(super) fn binds(&self, id: &UserId) -> Vec<Bind> {
        let text = id.as_str();
        match (self.id_type, self.dialect) {
            (IdType::Int, _) => text.parse().ok().map(Bind::Int).into_iter().collect(),
            // PostgreSQL's text has no NUL, and would refuse the whole statement.
            (IdType::Text, Dialect::Postgres) if text.contains('\0') => Vec::new(),
            (IdType::Text, _) => vec![Bind::Text(text.to_owned())],
            (IdType::Uuid, dialect) => match (Uuid::try_parse(text), dialect) {
                (Err(_), _) => Vec::new(),
                (Ok(uuid), Dialect::Postgres) => vec![Bind::Uuid(uuid)],
                // Django writes 32 digits; others, and a text cast of MariaDB's own type, have hyphens.
                (Ok(uuid), Dialect::MySql | Dialect::Sqlite) => vec![
                    Bind::Text(uuid.simple().to_string()),
                    Bind::Text(uuid.hyphenated().to_string()),
                ],
            },
        }
    }

    /// Returns an id of the right type for a probe; there need not be such a user.
    pub(super) fn probe(&self) -> UserId {
        match self.id_type {
            IdType::Int => "0".into(),
            IdType::Uuid => Uuid::nil().hyphenated().to_string().into(),
            IdType::Text => "".into(),
        }
    }
}

/// Returns `text` if it is `[A-Za-z_][A-Za-z0-9_]*`, so that it needs no escaping in quotes.
fn identifier(text: &str) -> Option<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let digit_first = text.starts_with(|c: char| c.is_ascii_digit());
    (!text.is_empty() && !digit_first && text.chars().all(word)).then(|| text.to_owned())
}

#[cfg(test)]
mod tests;
