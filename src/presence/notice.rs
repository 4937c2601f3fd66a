//! The message to the replicas that says who joined a group and who left it.
//!
//! It is JSON: `{"epoch","n","left":[ID,…],"joined":[{"id","user"},…]}`. `n` counts the messages of a group within an epoch
//! from 1 on, so that a replica sees what it missed. The scripts in Redis write it.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::ids::UserId;

/// A user who joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entered {
    /// The id.
    pub id: UserId,
    /// The fields of the user record, as a JSON object.
    pub fields: Arc<str>,
}

/// The users who joined and left a group in one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Changes when the presence of the group was lost.
    pub epoch: String,
    /// The number of the message within the epoch.
    pub number: u64,
    /// The users who left. They left before the others joined.
    pub left: Vec<UserId>,
    /// The users who joined.
    pub joined: Vec<Entered>,
}

/// A message is no notice of presence.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is no notice of presence")]
pub struct NoticeError;

#[derive(Deserialize)]
struct WireNotice<'a> {
    epoch: String,
    n: u64,
    left: Vec<String>,
    #[serde(borrow)]
    joined: Vec<WireEntered<'a>>,
}

#[derive(Deserialize)]
struct WireEntered<'a> {
    id: String,
    #[serde(borrow)]
    user: &'a RawValue,
}

impl Notice {
    /// Reads a message.
    ///
    /// # Errors
    /// [`NoticeError`]; a message may be anything.
    pub fn read(bytes: &[u8]) -> Result<Self, NoticeError> {
        let wire: WireNotice<'_> = serde_json::from_slice(bytes).map_err(|_| NoticeError)?;
        let is_object = |entered: &WireEntered<'_>| entered.user.get().starts_with('{');
        if !wire.joined.iter().all(is_object) {
            return Err(NoticeError);
        }
        let entered = |entered: WireEntered<'_>| Entered {
            id: entered.id.into(),
            fields: entered.user.get().into(),
        };
        Ok(Self {
            epoch: wire.epoch,
            number: wire.n,
            left: wire.left.into_iter().map(UserId::from).collect(),
            joined: wire.joined.into_iter().map(entered).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notice_is_read_and_anything_else_is_refused() {
        let text =
            r#"{"epoch":"ab","n":7,"left":["a\/b"],"joined":[{"id":"8","user":{"name":"é"}}]}"#;
        let notice = Notice::read(text.as_bytes()).unwrap();
        assert_eq!((notice.number, notice.left), (7, vec!["a/b".into()]));
        assert_eq!(&*notice.joined[0].fields, r#"{"name":"é"}"#);
        for other in [
            "",
            "[]",
            &text.replace("epoch", "x"),
            &text.replace(r#"{"name":"é"}"#, "7"),
            &text.replace('7', "-7"),
            &text.replace("ab", "\\"),
        ] {
            assert_eq!(Notice::read(other.as_bytes()), Err(NoticeError), "{other}");
        }
    }
}
