//! The statement that reads users, and the conversion of its rows.

use std::sync::Arc;

use md5::{Digest as _, Md5};
use parking_lot::Mutex;
use uuid::Uuid;

use super::statement::{Bind, Dialect, Statement, StatementError};
use super::url::DatabaseUrl;
use super::value::{Row, push_text};
use crate::config::{Fault, Faults, IdType, TokenConfig, UsersConfig};
use crate::ids::UserId;
use crate::user_id;

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

/// The types that PostgreSQL compares with a text.
const TEXT_TYPES: [&str; 4] = ["text", "character varying", "character", "citext"];

/// An example of a statement that reads users, for messages.
const EXAMPLE: &str = "SELECT id, is_active FROM people WHERE id IN (:user_ids)";

/// One user from the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserRow {
    /// The id; equal, byte by byte, to an id that was asked for.
    pub id: UserId,
    /// `None` for NULL and for a value that is not a boolean.
    pub is_active: Option<bool>,
    /// A JSON object of every returned column but `password`, in the order of the statement.
    pub fields: Box<str>,
    /// MD5 of the text of the column `password`; `None` if it is NULL or not asked for.
    pub password_digest: Option<[u8; 16]>,
}

#[derive(Debug)]
enum QueryForm {
    Table {
        schema: Option<String>,
        table: String,
        /// The statement; `None` until the columns are known.
        statement: Mutex<Option<Arc<Statement>>>,
    },
    Query(Arc<Statement>),
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
                QueryForm::Table {
                    schema,
                    table,
                    statement: Mutex::new(None),
                }
            }
        };
        Ok(Self {
            form,
            dialect,
            field: token.user_id_field.clone(),
            id_type: user_id::bound_type_of(token, users.id_type),
            with_active: token.check_user_is_active,
            with_password: token.check_revoke_token,
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
            QueryForm::Table { schema, table, .. } => Some((schema.as_deref(), table)),
            QueryForm::Query(_) => None,
        }
    }

    /// Returns the statement; `None` if the table's columns must be read first.
    pub(super) fn statement(&self) -> Option<Arc<Statement>> {
        match &self.form {
            QueryForm::Table { statement, .. } => statement.lock().clone(),
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
    pub(super) fn plan(
        &self,
        columns: &[String],
        field_type: Option<&str>,
    ) -> Option<Arc<Statement>> {
        let QueryForm::Table {
            schema,
            table,
            statement,
        } = &self.form
        else {
            return self.statement();
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
        let planned = Statement::parse(&sql, self.dialect, &["user_ids"])
            .ok()
            .map(Arc::new);
        statement.lock().clone_from(&planned);
        planned
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

    /// Drops the statement, because the table may have changed. Its columns are read again before the next query.
    pub(super) fn forget_plan(&self) {
        if let QueryForm::Table { statement, .. } = &self.form {
            *statement.lock() = None;
        }
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

    /// Converts a row; `None` if its id is NULL or of another type.
    ///
    /// # Errors
    /// The name of a column that the statement should return and does not.
    pub(super) fn user_row(&self, row: &Row) -> Result<Option<UserRow>, &str> {
        let column = |name: &str| {
            row.iter()
                .rev()
                .find(|(own, _)| own == name)
                .map(|(_, v)| v)
        };
        let found = column(&self.field).ok_or(self.field.as_str())?;
        let id = match self.id_type {
            IdType::Uuid => found.as_uuid().map(|uuid| uuid.hyphenated().to_string()),
            IdType::Int | IdType::Text => found.as_text().map(str::to_owned),
        };
        let Some(id) = id else {
            return Ok(None);
        };
        let is_active = match column("is_active") {
            Some(value) => value.as_bool(),
            None if self.with_active => return Err("is_active"),
            None => Some(true),
        };
        let password_digest = match (self.with_password, column(PASSWORD)) {
            (true, None) => return Err(PASSWORD),
            (true, Some(value)) => value.as_text().map(|text| Md5::digest(text).into()),
            (false, _) => None,
        };
        Ok(Some(UserRow {
            fields: self.fields(row, &id),
            id: id.into(),
            is_active,
            password_digest,
        }))
    }

    fn fields(&self, row: &Row, id: &str) -> Box<str> {
        let mut out = String::from("{");
        for (index, (name, value)) in row.iter().enumerate() {
            let again = row[index + 1..].iter().any(|(later, _)| later == name);
            if again || name.eq_ignore_ascii_case(PASSWORD) {
                continue;
            }
            if out.len() > 1 {
                out.push(',');
            }
            push_text(&mut out, name);
            out.push(':');
            if self.id_type == IdType::Uuid && *name == self.field {
                push_text(&mut out, id);
            } else {
                value.write_json(&mut out);
            }
        }
        out.push('}');
        out.into()
    }
}

/// Returns `text` if it is `[A-Za-z_][A-Za-z0-9_]*`, so that it needs no escaping in quotes.
fn identifier(text: &str) -> Option<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let digit_first = text.starts_with(|c: char| c.is_ascii_digit());
    (!text.is_empty() && !digit_first && text.chars().all(word)).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::value::SqlValue;
    use super::*;
    use crate::config::Secret;

    fn query(
        url: &str,
        change: impl Fn(&mut UsersConfig, &mut TokenConfig),
    ) -> Result<UserQuery, Faults> {
        let mut users = UsersConfig {
            database: Some(Secret::from(url)),
            ..UsersConfig::default()
        };
        let mut token = TokenConfig::default();
        change(&mut users, &mut token);
        UserQuery::new(&users, &token)
    }

    /// Before: a field that nothing returns was found by the first handshake, which was refused without a reason.
    #[test]
    fn a_field_can_be_one_that_the_query_names() {
        let by = |sql: &str| {
            let made = query("sqlite://x", |users, _| users.query = Some(sql.to_owned()));
            made.expect("valid")
        };
        let named = by("SELECT id, is_active, u.team AS \"crew\" FROM u WHERE id IN (:user_ids)");
        for (name, may) in [
            ("id", true),
            ("team", true),
            ("Crew", true),
            ("email", false),
            ("user_ids", false),
            ("password", false),
        ] {
            assert_eq!(named.may_return(name), may, "{name}");
        }
        let all = by("SELECT * FROM u WHERE id IN (:user_ids)");
        assert!(all.may_return("email") && !all.may_return("PASSWORD"));
        let commented = by("SELECT id FROM u WHERE id IN (:user_ids) -- email *");
        assert!(!commented.may_return("email"));
        let table = query("sqlite://x", |_, token| {
            token.user_id_field = "badge".into()
        });
        let table = table.expect("valid");
        assert!(table.may_return("email") && table.may_return("badge"));
        assert!(!table.may_return("team"));
        let columns = ["id", "badge", "team", "password"].map(str::to_owned);
        assert_eq!(table.fields_of(columns.to_vec()), ["id", "badge"]);
        assert_eq!(all.fields_of(columns.to_vec()), ["id", "badge", "team"]);
    }

    fn strings(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn tables_are_named_by_identifiers_only() {
        for good in ["auth_user", "_x", "Auth.User1"] {
            assert!(
                query("postgres://h/d", |users, _| users.table = good.into()).is_ok(),
                "{good}"
            );
        }
        for bad in [
            "", "1a", "a b", "a.b.c", ".a", "a.", "a\"b", "a;--", "é", "a\n",
        ] {
            let refused = query("mysql://h/d", |users, _| users.table = bad.into());
            assert_eq!(refused.unwrap_err().0[0].key, "users.table", "{bad}");
        }
        let refused = query("sqlite://f", |_, token| token.user_id_field = "a b".into());
        assert_eq!(refused.unwrap_err().0[0].key, "token.user_id_field");
    }

    #[test]
    fn a_query_uses_its_user_ids() {
        let with = |sql: &str| query("sqlite://f", |users, _| users.query = Some(sql.into()));
        assert!(with("SELECT * FROM u WHERE id IN (:user_ids)").is_ok());
        assert!(with("SELECT * FROM u WHERE id IN (':user_ids')").is_err());
        assert!(with("SELECT * FROM u WHERE id = :user_id OR id IN (:user_ids)").is_err());
        assert!(query("oracle://h/d", |_, _| ()).is_err());
    }

    #[test]
    fn a_table_gives_the_columns_it_has() {
        let query = query("postgres://h/d", |users, token| {
            users.table = "app.people".into();
            token.user_id_field = "username".into();
            token.check_revoke_token = true;
        });
        let query = query.unwrap();
        assert_eq!(query.missing(&strings(&["id"])), Some("username"));
        assert_eq!(query.missing(&strings(&["username"])), Some("is_active"));
        let columns = strings(&["bio", "password", "is_active", "username", "email"]);
        assert_eq!(query.missing(&columns), None);
        let (sql, _) = query
            .plan(&columns, Some("text"))
            .unwrap()
            .render(|_| vec![Bind::Int(1)]);
        assert_eq!(
            sql,
            r#"SELECT "username", "email", "is_active", "password" FROM "app"."people" WHERE "username" IN ($1)"#
        );
        let (sql, _) = query
            .plan(&columns, Some("bigint"))
            .unwrap()
            .render(|_| vec![Bind::Int(1); 2]);
        assert!(
            sql.ends_with(r#" WHERE "username" = ANY (ARRAY[$1, $2]::bigint[])"#),
            "{sql}"
        );
    }

    #[test]
    fn ids_are_bound_by_their_type() {
        let binds = |url: &str, id_type, id: &str| {
            let query = query(url, |users, _| users.id_type = id_type).unwrap();
            query.binds(&id.into())
        };
        let text = |text: &str| Bind::Text(text.into());
        assert_eq!(binds("sqlite://f", IdType::Int, "-7"), [Bind::Int(-7)]);
        assert_eq!(binds("sqlite://f", IdType::Int, "9223372036854775808"), []);
        assert_eq!(binds("postgres://f", IdType::Text, "a\0"), []);
        assert_eq!(binds("mysql://f", IdType::Text, "a\0"), [text("a\0")]);
        let id = "7d444840-9dc0-11d1-b245-5ffdce74fad2";
        assert_eq!(
            binds("mysql://f", IdType::Uuid, id),
            [text("7d4448409dc011d1b2455ffdce74fad2"), text(id)]
        );
        assert_eq!(
            binds("postgres://f", IdType::Uuid, id),
            [Bind::Uuid(Uuid::try_parse(id).unwrap())]
        );
        assert_eq!(binds("mysql://f", IdType::Uuid, "x"), []);
    }

    #[test]
    fn the_password_leaves_only_its_digest() {
        let row = vec![
            ("id".to_owned(), SqlValue::Number("7".into())),
            ("Password".to_owned(), SqlValue::Text("secret".into())),
            ("password".to_owned(), SqlValue::Text("secret".into())),
            ("is_active".to_owned(), SqlValue::Number("1".into())),
        ];
        let on = query("sqlite://f", |_, token| token.check_revoke_token = true).unwrap();
        let user = on.user_row(&row).unwrap().unwrap();
        assert_eq!(&*user.fields, r#"{"id":7,"is_active":1}"#);
        assert_eq!(user.is_active, Some(true));
        let digest = u128::from_be_bytes(user.password_digest.unwrap());
        assert_eq!(format!("{digest:032X}"), "5EBE2294ECD0E0F08EAB7690D2A6EE69");
        let off = query("sqlite://f", |_, _| ()).unwrap();
        assert_eq!(off.user_row(&row).unwrap().unwrap().password_digest, None);
    }

    #[test]
    fn a_null_is_neither_active_nor_inactive() {
        let query = query("sqlite://f", |_, _| ()).unwrap();
        let row = vec![
            ("id".to_owned(), SqlValue::Number("7".into())),
            ("is_active".to_owned(), SqlValue::Null),
        ];
        assert_eq!(query.user_row(&row).unwrap().unwrap().is_active, None);
        assert_eq!(query.user_row(&row[..1].to_vec()), Err("is_active"));
    }
}
