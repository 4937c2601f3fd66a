//! The conversion of a row to a user.

use md5::{Digest as _, Md5};

use super::{PASSWORD, UserQuery};
use crate::config::IdType;
use crate::ids::UserId;
use crate::python::json::write_text;
use crate::stores::database::answer::{CUT_ROW_ID, MAX_ID};
use crate::stores::database::value::{Row, SqlValue};

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

impl UserQuery {
    /// Converts a row; `None` if its id is NULL or of another type.
    ///
    /// # Errors
    /// The name of a column that the statement should return and does not.
    pub(in crate::stores::database) fn user_row(&self, row: &Row) -> Result<Option<UserRow>, &str> {
        let column = |name: &str| {
            row.iter()
                .rev()
                .find(|(own, _)| **own == *name)
                .map(|(_, v)| v)
        };
        let found = column(&self.field).ok_or(self.field.as_str())?;
        let Some(id) = self.id(found) else {
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
