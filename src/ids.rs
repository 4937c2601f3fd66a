//! The ids that pass between the parts. Each has a type of its own; none is a plain string.
//!
//! Text ids share their bytes (`Arc<str>`), so that a clone costs one counter. [`crate::channel_names`] has the rules
//! for group names, [`crate::user_id`] the rules for user ids.

use std::borrow::{Borrow, Cow};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Returns the text that keys, logs and API calls show.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:?})"), &*self.0)
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

macro_rules! free_text_id {
    ($($name:ident),*) => {
        $(
            impl From<&str> for $name {
                fn from(text: &str) -> Self {
                    Self(text.into())
                }
            }

            impl From<String> for $name {
                fn from(text: String) -> Self {
                    Self(text.into())
                }
            }
        )*
    };
}

text_id! {
    /// The name of a tenant: `[a-z0-9][a-z0-9-]{0,62}`, so that it fits into a Redis key and a host label.
    TenantId
}
text_id! {
    /// The canonical id of a user within one tenant (see [`crate::user_id`]). Never a metric label.
    UserId
}
text_id! {
    /// A group within one tenant, without the layer's prefix.
    GroupName
}
text_id! {
    /// A channel of a channel layer. Every socket has one of its own, with 128 random bits.
    ChannelName
}
text_id! {
    /// One running gateway process: 128 random bits as 32 hexadecimal digits, new at every start.
    ReplicaId
}
free_text_id!(UserId, GroupName, ChannelName, ReplicaId);

/// The unique id of a token (RFC 7519 §4.1.7): any text, also the empty one.
///
/// Every open socket holds one, so the usual form is kept small: the output of `uuid4().hex`, which simplejwt uses,
/// takes 16 bytes.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Jti(JtiForm);

#[derive(Clone, PartialEq, Eq, Hash)]
enum JtiForm {
    /// Exactly 32 lower-case hexadecimal digits. Any other text is `Text`, so that equal texts compare equal.
    Hex([u8; 16]),
    Text(Arc<str>),
}

impl From<&str> for Jti {
    fn from(text: &str) -> Self {
        let lower_hex = |b: u8| b.is_ascii_digit() || matches!(b, b'a'..=b'f');
        let hex = (text.len() == 32 && text.bytes().all(lower_hex))
            .then(|| u128::from_str_radix(text, 16).ok())
            .flatten();
        Self(match hex {
            Some(number) => JtiForm::Hex(number.to_be_bytes()),
            None => JtiForm::Text(text.into()),
        })
    }
}

impl From<String> for Jti {
    fn from(text: String) -> Self {
        Self::from(text.as_str())
    }
}

impl Jti {
    /// Returns the text.
    pub fn text(&self) -> Cow<'_, str> {
        match &self.0 {
            JtiForm::Hex(bytes) => {
                const DIGITS: &[u8; 16] = b"0123456789abcdef";
                let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
                let digits = digits.map(|digit| char::from(DIGITS[usize::from(digit)]));
                Cow::Owned(digits.collect())
            }
            JtiForm::Text(text) => Cow::Borrowed(text),
        }
    }
}

impl fmt::Display for Jti {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())
    }
}

impl fmt::Debug for Jti {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Jti({:?})", self.to_string())
    }
}

/// The text is not a valid tenant name.
#[derive(Debug, thiserror::Error)]
#[error("a tenant's name is 1 to 63 of a-z, 0-9 and -, and does not start with -")]
pub struct TenantNameError;

impl FromStr for TenantId {
    type Err = TenantNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if text.is_empty() || text.len() > 63 || text.starts_with('-') || !text.bytes().all(allowed)
        {
            return Err(TenantNameError);
        }
        Ok(Self(text.into()))
    }
}

impl ReplicaId {
    /// Returns a new id with 128 random bits.
    pub fn random() -> Self {
        Self(random_hex().into())
    }
}

/// Returns 128 random bits as 32 lower-case hexadecimal digits, the form that `uuid4().hex` has in Channels.
pub fn random_hex() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// The tokens that a revocation revokes.
#[derive(Clone, Debug, PartialEq)]
pub enum RevocationTarget {
    /// One token.
    Token(Jti),
    /// The tokens of a user that were issued at or before a cut-off (Unix seconds), or have no `iat`.
    User(UserId, f64),
    /// The tokens of all users of the tenant that were issued at or before a cut-off, or have no `iat`.
    All(f64),
}

/// A user id as JSON has it: callers may write a primary key as a number.
#[derive(Clone, Debug, serde::Deserialize, utoipa::ToSchema)]
#[serde(untagged)]
pub enum WrittenUserId {
    /// A text.
    Text(String),
    /// An integer.
    Number(i64),
}

/// The id of a connection of this process. It is never reused while the process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jti_prints_what_it_was_made_of() {
        for text in [
            "",
            "0",
            "00000000000000000000000000000000",
            "9f1c4d2e8a7b4c6d9e0f1a2b3c4d5e6f",
            "9F1C4D2E8A7B4C6D9E0F1A2B3C4D5E6F",
            "+f1c4d2e8a7b4c6d9e0f1a2b3c4d5e6f",
            "9f1c4d2e-8a7b-4c6d-9e0f-1a2b3c4d5e6f",
            "a:b*{c}\r\n",
        ] {
            assert_eq!(Jti::from(text).to_string(), text);
        }
        assert_ne!(
            Jti::from("9F1C4D2E8A7B4C6D9E0F1A2B3C4D5E6F"),
            Jti::from("9f1c4d2e8a7b4c6d9e0f1a2b3c4d5e6f")
        );
        assert_eq!(size_of::<Option<Jti>>(), 24);
    }

    #[test]
    fn tenant_names_follow_the_contract() {
        for good in ["a", "0", "acme", "a-b-", "9lives", &"x".repeat(63)] {
            assert!(good.parse::<TenantId>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "A", "a_b", "a.b", "a:b", "é", &"x".repeat(64)] {
            assert!(bad.parse::<TenantId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn replica_ids_are_32_digits_and_differ() {
        let (a, b) = (ReplicaId::random(), ReplicaId::random());
        assert_eq!(a.as_str().len(), 32);
        assert_ne!(a, b);
    }
}
