//! The record of one user.

use crate::ids::UserId;
use crate::packed_json::PackedObject;
use crate::stores::database::{UserRow, json_truth};

/// The most bytes of a record's fields. A larger record is refused, because all replicas with a socket of the user
/// keep it in memory.
pub(super) const MAX_FIELDS: usize = 64 * 1024;

/// A user of the tenant's database. The user's sockets share the record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserRecord {
    /// The canonical id.
    pub id: UserId,
    /// True if the user is active, or if `check_user_is_active` is off.
    pub is_active: bool,
    /// A JSON object with every returned column except `password`.
    pub fields: PackedObject,
    /// The MD5 of the password column; `None` if `check_revoke_token` is off or the column is NULL.
    pub password_digest: Option<[u8; 16]>,
}

impl UserRecord {
    pub(super) fn from_row(row: UserRow, check_active: bool) -> Self {
        Self {
            id: row.id,
            is_active: !check_active || row.is_active.unwrap_or(false),
            fields: PackedObject::new(&row.fields),
            password_digest: row.password_digest,
        }
    }

    /// Returns the value of one field.
    pub fn field(&self, name: &str) -> Option<serde_json::Value> {
        let mut fields: serde_json::Map<_, _> = serde_json::from_str(&self.fields.text()).ok()?;
        fields.remove(name)
    }

    /// Returns true if `claim`, the value of the token's revoke claim, was made from the user's current password.
    ///
    /// The claim is the upper-case hexadecimal MD5 of the whole column (`simplejwt.utils.get_md5_hash_password`).
    pub fn password_matches(&self, claim: &str) -> bool {
        self.password_digest
            .is_some_and(|digest| digits_of(digest) == claim)
    }

    /// Returns the approximate bytes of the record in memory.
    pub(super) fn weight(&self) -> usize {
        size_of::<Self>() + self.id.as_str().len() + self.fields.own_bytes()
    }
}

/// Returns the digest as upper-case hexadecimal digits.
pub(super) fn digits_of(digest: [u8; 16]) -> String {
    format!("{:032X}", u128::from_be_bytes(digest))
}

/// Parses the output of [`digits_of`]; `None` for any other text.
pub(super) fn from_hex(text: &str) -> Option<[u8; 16]> {
    let digest = u128::from_str_radix(text, 16).ok()?.to_be_bytes();
    (digits_of(digest) == text).then_some(digest)
}

/// Returns true if the JSON text of the column `is_active` means true.
pub(super) fn is_active(json: &str) -> bool {
    json_truth(json).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_claim_is_compared_exactly() {
        let record = UserRecord {
            id: "7".into(),
            is_active: true,
            fields: r#"{"id":7,"name":"é"}"#.into(),
            // MD5 of "secret".
            password_digest: from_hex("5EBE2294ECD0E0F08EAB7690D2A6EE69"),
        };
        assert!(record.password_matches("5EBE2294ECD0E0F08EAB7690D2A6EE69"));
        assert!(!record.password_matches("5ebe2294ecd0e0f08eab7690d2a6ee69"));
        assert!(!record.password_matches(""));
        assert_eq!(record.field("name"), Some("é".into()));
        assert_eq!(record.field("other"), None);
        let without = UserRecord {
            password_digest: None,
            ..record
        };
        assert!(!without.password_matches("5EBE2294ECD0E0F08EAB7690D2A6EE69"));
    }
}
