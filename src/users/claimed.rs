//! Users that the claims of their tokens describe, without a database.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::value::RawValue;

use super::{UserRecord, Users};
use crate::config::IdType;
use crate::ids::UserId;
use crate::packed_json::PackedObject;

/// The field of the user's id.
const ID: &str = "id";

/// The place in which a tenant's users are found.
#[derive(Clone)]
pub enum UserBook {
    /// The database, with the caches before it.
    Stored(Arc<Users>),
    /// The claims of each token; ids are of this type.
    Claimed(IdType),
}

impl UserBook {
    /// Returns the users of the database; `None` if the claims are the user.
    pub fn stored(&self) -> Option<&Arc<Users>> {
        match self {
            Self::Stored(users) => Some(users),
            Self::Claimed(_) => None,
        }
    }
}

/// Returns the user that verified claims, a JSON object, describe. The field `id` is `id` as an integer or a text, whichever
/// `id_type` says, also if there is a claim of this name: templates and workers may rely on it.
pub fn user_of_claims(id: &UserId, id_type: IdType, claims: &str) -> UserRecord {
    let value = match id_type {
        IdType::Int => id.to_string(),
        IdType::Uuid | IdType::Text => serde_json::Value::from(id.as_str()).to_string(),
    };
    UserRecord {
        id: id.clone(),
        is_active: true,
        fields: PackedObject::new(&with_id(&value, claims)),
        password_digest: None,
    }
}

/// Returns the object `claims` with the field `id` in front, as JSON text.
fn with_id(value: &str, claims: &str) -> String {
    let inner = claims.trim().strip_prefix('{');
    let inner = inner.and_then(|text| text.strip_suffix('}'));
    // A name with a backslash may be another spelling of `id`.
    let is_plain = !claims.contains("\"id\"") && !claims.contains('\\');
    match inner.map(str::trim) {
        Some("") => format!("{{\"{ID}\":{value}}}"),
        Some(rest) if is_plain => format!("{{\"{ID}\":{value},{rest}}}"),
        _ => with_other_id(value, claims),
    }
}

/// Does the same for claims that may have an `id` of their own.
fn with_other_id(value: &str, claims: &str) -> String {
    let read: Result<BTreeMap<String, &RawValue>, _> = serde_json::from_str(claims);
    let mut text = format!("{{\"{ID}\":{value}");
    for (name, value) in read.iter().flatten().filter(|(name, _)| *name != ID) {
        text.push(',');
        text.push_str(&serde_json::Value::from(name.as_str()).to_string());
        text.push(':');
        text.push_str(value.get());
    }
    text.push('}');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(id: &str, id_type: IdType, claims: &str) -> String {
        let user = user_of_claims(&id.into(), id_type, claims);
        assert!(user.is_active && user.password_digest.is_none());
        user.fields.text().into_owned()
    }

    #[test]
    fn the_claims_are_the_fields_and_the_id_is_the_user_id_claim() {
        use IdType::{Int, Text, Uuid};
        for (id, id_type, claims, expected) in [
            (
                "7",
                Int,
                r#"{"user_id":"7","org":"a"}"#,
                r#"{"id":7,"user_id":"7","org":"a"}"#,
            ),
            (
                "a\"b",
                Text,
                r#"{"sub":1.50}"#,
                r#"{"id":"a\"b","sub":1.50}"#,
            ),
            (
                "6f1e",
                Uuid,
                " {\n \"n\": 123456789012345678901234567890 } ",
                r#"{"id":"6f1e","n": 123456789012345678901234567890}"#,
            ),
            ("7", Int, "{}", r#"{"id":7}"#),
            // A claim of the name cannot stand in for another user.
            ("7", Int, r#"{"z":[1],"id":1}"#, r#"{"id":7,"z":[1]}"#),
            ("7", Int, r#"{"\u0069d":1,"\\":2}"#, r#"{"id":7,"\\":2}"#),
            ("7", Int, r#"{"a":"\"id\""}"#, r#"{"id":7,"a":"\"id\""}"#),
        ] {
            assert_eq!(fields(id, id_type, claims), expected, "{claims}");
        }
    }
}
