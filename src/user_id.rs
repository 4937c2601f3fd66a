//! Canonical user ids: one text per user, for every form that a token, an API call or a command line may use.
//!
//! The accepted forms are those of Django for the field's type: Python's `int()`, `uuid.UUID()`, `str()`. Redis keys,
//! limits, groups and logs use the canonical text, so two forms of one user must yield the same.

use crate::config::{IdType, TokenConfig};
use crate::ids::UserId;
use crate::python::{self, Scalar};

/// The reason why a value is no user id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserIdError {
    /// Django fails to read the value, so the token is refused.
    #[error("the value cannot be read as a user id")]
    NotReadable,
    /// The value is valid but no user can have it. It counts as an unknown user.
    #[error("no user can have this id")]
    OutOfRange,
}

/// Returns the type to read the claim with. If the token names its user by another field than the primary key, it is text.
pub fn id_type_of(token: &TokenConfig, id_type: IdType) -> IdType {
    match token.user_id_field.as_str() {
        "id" => id_type,
        _ => IdType::Text,
    }
}

/// Returns the type as which ids are bound in statements. A field other than the primary key holds text, unless the
/// tenant says that its ids are UUIDs: the default, `int`, is about the primary key.
pub fn bound_type_of(token: &TokenConfig, id_type: IdType) -> IdType {
    match (token.user_id_field.as_str(), id_type) {
        ("id", id_type) => id_type,
        (_, IdType::Uuid) => IdType::Uuid,
        (_, IdType::Int | IdType::Text) => IdType::Text,
    }
}

/// Reads the user id of a token's claim.
///
/// # Errors
/// [`UserIdError::NotReadable`] if simplejwt would fail, [`UserIdError::OutOfRange`] if it would find no user.
pub fn from_claim(claim: Scalar<'_>, id_type: IdType) -> Result<UserId, UserIdError> {
    // Django turns `None` into `IS NULL`, which matches no user.
    if claim == Scalar::None {
        return Err(UserIdError::OutOfRange);
    }
    match id_type {
        IdType::Int => int_from_claim(claim),
        IdType::Uuid => uuid_from_claim(claim),
        IdType::Text => text_from_claim(claim),
    }
}

/// Reads a user id from text, as from an API call or a command line.
///
/// # Errors
/// As [`from_claim`].
pub fn from_text(text: &str, id_type: IdType) -> Result<UserId, UserIdError> {
    from_claim(Scalar::Text(text), id_type)
}

fn int_from_claim(claim: Scalar<'_>) -> Result<UserId, UserIdError> {
    let int = claim.int().ok_or(UserIdError::NotReadable)?;
    // Integers of databases have at most 64 bits.
    let value = int.to_i64().ok_or(UserIdError::OutOfRange)?;
    Ok(UserId::from(value.to_string()))
}

fn uuid_from_claim(claim: Scalar<'_>) -> Result<UserId, UserIdError> {
    let value = match claim {
        Scalar::Text(text) => python::uuid::parse(text),
        Scalar::Bool(_) | Scalar::Int(_) => claim.int().and_then(|int| int.to_u128()),
        _ => None,
    };
    let value = uuid::Uuid::from_u128(value.ok_or(UserIdError::NotReadable)?);
    Ok(UserId::from(value.hyphenated().to_string()))
}

fn text_from_claim(claim: Scalar<'_>) -> Result<UserId, UserIdError> {
    let text = match claim {
        // No database accepts a lone surrogate.
        Scalar::BrokenText => return Err(UserIdError::NotReadable),
        claim => claim.str().ok_or(UserIdError::OutOfRange)?,
    };
    // PostgreSQL accepts no NUL in a text. An empty field would match every user who left it empty.
    match &*text {
        "" => Err(UserIdError::OutOfRange),
        text if text.contains('\0') => Err(UserIdError::NotReadable),
        text => Ok(UserId::from(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn int(claim: Scalar<'_>) -> Result<String, UserIdError> {
        from_claim(claim, IdType::Int).map(|id| id.to_string())
    }

    #[test]
    fn integers_follow_python() {
        for (text, id) in [
            (" 1 ", "1"),
            ("0001", "1"),
            ("1_0", "10"),
            ("٣٤", "34"),
            ("-0", "0"),
        ] {
            assert_eq!(int(Scalar::Text(text)), Ok(id.to_owned()), "{text:?}");
        }
        for text in ["", "abc", "1.0", "1e0", "1\0", "²"] {
            let expected = Err(UserIdError::NotReadable);
            assert_eq!(int(Scalar::Text(text)), expected, "{text:?}");
        }
        assert_eq!(
            int(Scalar::Text("99999999999999999999")),
            Err(UserIdError::OutOfRange)
        );
        assert_eq!(
            int(Scalar::Int("9223372036854775808")),
            Err(UserIdError::OutOfRange)
        );
        assert_eq!(int(Scalar::Float(1.9)), Ok("1".into()));
        assert_eq!(int(Scalar::Float(-0.5)), Ok("0".into()));
        assert_eq!(int(Scalar::Float(1e308)), Err(UserIdError::OutOfRange));
        assert_eq!(int(Scalar::Float(f64::NAN)), Err(UserIdError::NotReadable));
        assert_eq!(int(Scalar::Bool(true)), Ok("1".into()));
        assert_eq!(int(Scalar::None), Err(UserIdError::OutOfRange));
        assert_eq!(int(Scalar::Container), Err(UserIdError::NotReadable));
    }

    #[test]
    fn uuids_follow_python() {
        let canonical = "6f1c2d3e-4a5b-4c6d-8e7f-0123456789ab";
        let good = [
            canonical,
            "6F1C2D3E-4A5B-4C6D-8E7F-0123456789AB",
            "6f1c2d3e4a5b4c6d8e7f0123456789ab",
            "{6f1c2d3e-4a5b-4c6d-8e7f-0123456789ab}",
            "urn:uuid:6f1c2d3e-4a5b-4c6d-8e7f-0123456789ab",
        ];
        for text in good {
            assert_eq!(
                from_text(text, IdType::Uuid).unwrap().as_str(),
                canonical,
                "{text}"
            );
        }
        let number = Scalar::Int("147690609487755141172659641408706546091");
        assert_eq!(
            from_claim(number, IdType::Uuid).unwrap().as_str(),
            canonical
        );
        for text in [
            "",
            "1",
            "6f1c2d3e-4a5b-4c6d-8e7f-0123456789a",
            "g".repeat(32).as_str(),
        ] {
            assert_eq!(
                from_text(text, IdType::Uuid),
                Err(UserIdError::NotReadable),
                "{text}"
            );
        }
    }

    #[test]
    fn text_is_taken_as_it_is() {
        for text in ["alice", "alice ", "ALICE", "é", "42", "'; --"] {
            assert_eq!(from_text(text, IdType::Text).unwrap().as_str(), text);
        }
        let floats = [
            (1.0, "1.0"),
            (1.5, "1.5"),
            (1e16, "1e+16"),
            (1e-5, "1e-05"),
            (123456.789, "123456.789"),
        ];
        for (value, text) in floats {
            assert_eq!(
                from_claim(Scalar::Float(value), IdType::Text)
                    .unwrap()
                    .as_str(),
                text
            );
        }
        assert_eq!(from_text("", IdType::Text), Err(UserIdError::OutOfRange));
        assert_eq!(
            from_text("a\0", IdType::Text),
            Err(UserIdError::NotReadable)
        );
        assert_eq!(
            from_claim(Scalar::Bool(true), IdType::Text)
                .unwrap()
                .as_str(),
            "True"
        );
    }
}
