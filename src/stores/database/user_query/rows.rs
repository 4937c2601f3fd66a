//! The conversion of a row to a user.

use std::collections::HashMap;
use std::sync::Arc;

use md5::{Digest as _, Md5};

use super::{PASSWORD, UserQuery};
use crate::config::IdType;
use crate::ids::UserId;
use crate::python::json::write_text;
use crate::stores::database::answer::{CUT_ROW_ID, MAX_ID};
use crate::stores::database::value::{ColumnName, Row, SqlValue};

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

/// Converts the rows of one answer. It looks at the names of the columns once, since a row may have a thousand.
pub(in crate::stores::database) struct RowReader<'q> {
    query: &'q UserQuery,
    columns: Option<NamedColumns>,
}

/// The columns of an answer by their use. Of several of one name the last counts.
struct NamedColumns {
    names: Vec<ColumnName>,
    field: usize,
    is_active: Option<usize>,
    password: Option<usize>,
    /// True for each column that becomes a field of the user.
    is_field: Vec<bool>,
}

impl NamedColumns {
    fn new<'q>(query: &'q UserQuery, row: &Row) -> Result<Self, &'q str> {
        let mut last = HashMap::with_capacity(row.len());
        for (at, (name, _)) in row.iter().enumerate() {
            last.insert(&**name, at);
        }
        let needed = |name: &'q str, is_needed: bool| match last.get(name) {
            None if is_needed => Err(name),
            at => Ok(at.copied()),
        };
        let is_field = |(at, (name, _)): (usize, &(ColumnName, SqlValue))| {
            last.get(&**name) == Some(&at) && !name.eq_ignore_ascii_case(PASSWORD)
        };
        Ok(Self {
            names: row.iter().map(|(name, _)| name.clone()).collect(),
            field: needed(&query.field, true)?.unwrap_or_default(),
            is_active: needed("is_active", query.with_active)?,
            password: needed(PASSWORD, query.with_password)?,
            is_field: row.iter().enumerate().map(is_field).collect(),
        })
    }

    /// Returns true if a row has these columns. The rows of an answer share the names, so that it compares no texts.
    fn are_of(&self, row: &Row) -> bool {
        let mut both = self.names.iter().zip(row);
        self.names.len() == row.len() && both.all(|(name, (own, _))| Arc::ptr_eq(name, own))
    }
}

impl<'q> RowReader<'q> {
    /// Converts a row; `None` if its id is NULL or of another type.
    ///
    /// # Errors
    /// The name of a column that the statement should return and does not.
    pub(in crate::stores::database) fn read(
        &mut self,
        row: &Row,
    ) -> Result<Option<UserRow>, &'q str> {
        let query = self.query;
        let columns = match self.columns.take().filter(|columns| columns.are_of(row)) {
            Some(columns) => columns,
            None => NamedColumns::new(query, row)?,
        };
        let columns = self.columns.insert(columns);
        let value = |at: usize| row.get(at).map(|(_, value)| value);
        let Some(id) = value(columns.field).and_then(|value| query.id(value)) else {
            return Ok(None);
        };
        let password = columns.password.filter(|_| query.with_password);
        let password = password.and_then(value).and_then(SqlValue::as_text);
        Ok(Some(UserRow {
            fields: query.fields(row, columns, &id),
            id: id.into(),
            is_active: match columns.is_active.and_then(value) {
                Some(value) => value.as_bool(),
                None => Some(true),
            },
            password_digest: password.map(|text| Md5::digest(text).into()),
        }))
    }
}

impl UserQuery {
    /// Begins to convert the rows of an answer.
    pub(in crate::stores::database) fn row_reader(&self) -> RowReader<'_> {
        RowReader {
            query: self,
            columns: None,
        }
    }

    fn id(&self, value: &SqlValue) -> Option<String> {
        match self.id_type {
            IdType::Uuid => value.as_uuid().map(|uuid| uuid.hyphenated().to_string()),
            IdType::Int | IdType::Text => value.as_text().map(str::to_owned),
        }
    }

    /// Returns the id of a row that is too long, of which only some columns are there; `None` if it is not, or not whole.
    pub(in crate::stores::database) fn id_of_cut(&self, row: &Row) -> Option<UserId> {
        let mut columns = row.iter().rev();
        let (_, value) =
            columns.find(|(name, _)| **name == *self.field || **name == *CUT_ROW_ID)?;
        let id = self.id(value).filter(|_| value.len() < MAX_ID)?;
        Some(id.into())
    }

    fn fields(&self, row: &Row, columns: &NamedColumns, id: &str) -> Box<str> {
        let mut out = String::from("{");
        for ((name, value), is_field) in row.iter().zip(&columns.is_field) {
            if !is_field {
                continue;
            }
            if out.len() > 1 {
                out.push(',');
            }
            write_text(name, &mut out, false);
            out.push(':');
            if self.id_type == IdType::Uuid && **name == *self.field {
                write_text(id, &mut out, false);
            } else {
                value.write_json(&mut out);
            }
        }
        out.push('}');
        out.into()
    }
}
