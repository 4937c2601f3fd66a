//! Messages between replicas, and from back ends to all replicas: commands on `lockgate:TENANT:control` and
//! `lockgate::control`, and answers on `lockgate::reply:ID`.
//!
//! The messages are public (JSON, `{"v":1,"op",…}`) and may come from any sender with the right to publish. A message that
//! cannot be read is its sender's error and changes nothing. [`crate::tenant`] carries the messages out.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::close_code::{CloseNotValid, RequestedClose};
use crate::event::Event;
use crate::ids::{GroupName, Jti, RevocationTarget, UserId};

/// The version of the messages.
pub const VERSION: u32 = 1;
/// Bytes of the longest message that is read: the largest event of the API (1 MiB), and room for the other members.
const MAX_MESSAGE: usize = 2 * 1024 * 1024;
/// Sockets in one answer to a `list` without a `limit`.
pub const PAGE: usize = 100;
/// The largest number of sockets in one answer to a `list`.
pub const LARGEST_PAGE: usize = 1000;

/// A command to a replica.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Close the sockets of revoked tokens.
    Revoke(RevocationTarget),
    /// Forget a user's record, and check the user's sockets against a new one.
    Invalidate(UserId),
    /// Close the sockets of a user.
    Disconnect {
        /// The user.
        user: UserId,
        /// The code and the reason of the close frame.
        close: RequestedClose,
    },
    /// Send an event to every socket of a user.
    Send {
        /// The user.
        user: UserId,
        /// The event.
        event: Arc<Event>,
    },
    /// Count the open sockets.
    Count,
    /// List the open sockets.
    List {
        /// List only sockets of this group.
        group: Option<GroupName>,
        /// List only sockets whose channel name comes after this one.
        cursor: Option<String>,
        /// The largest number of sockets in the answer.
        limit: usize,
    },
    /// Stop serving the tenant.
    Suspend,
    /// Serve the tenant again.
    Resume,
    /// Read the configuration again (`lockgate::control` only).
    Reload,
}

/// A message of a control channel.
#[derive(Clone, Debug, PartialEq)]
pub struct Command {
    /// The command itself.
    pub op: Op,
    /// The id that the answer repeats.
    pub id: Option<String>,
    /// The channel for the answer; without it no answer is sent.
    pub reply: Option<String>,
}

/// The reason why a message cannot be carried out by this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotUnderstood {
    /// The message is longer than 2 MiB.
    #[error("it is longer than 2 MiB")]
    TooLong,
    /// The message is not a JSON object, or a member has a wrong type.
    #[error("it is not a JSON object with members of the right types")]
    NotReadable,
    /// The member `v` is not 1.
    #[error("its version is not 1")]
    Version,
    /// The member `op` is not known.
    #[error("its op is not known")]
    Op,
    /// A member is absent or not valid.
    #[error("{0} is missing or not valid")]
    Member(&'static str),
}

#[derive(Deserialize)]
struct Wire<'a> {
    v: u32,
    #[serde(borrow)]
    op: std::borrow::Cow<'a, str>,
    id: Option<String>,
    reply: Option<String>,
    jti: Option<String>,
    user_id: Option<UserText>,
    issued_before: Option<f64>,
    code: Option<u16>,
    reason: Option<String>,
    #[serde(borrow)]
    event: Option<&'a RawValue>,
    group: Option<String>,
    cursor: Option<String>,
    limit: Option<usize>,
}

/// A user id. Back ends may write a primary key as a number; it stands for its decimal text.
#[derive(Deserialize)]
#[serde(untagged)]
enum UserText {
    Text(String),
    Number(i64),
}

impl Command {
    /// Reads a message.
    ///
    /// # Errors
    /// [`NotUnderstood`]
    pub fn read(bytes: &[u8]) -> Result<Self, NotUnderstood> {
        if bytes.len() > MAX_MESSAGE {
            return Err(NotUnderstood::TooLong);
        }
        // serde would also read an array, as the members in their order.
        if !bytes.trim_ascii_start().starts_with(b"{") {
            return Err(NotUnderstood::NotReadable);
        }
        /// The member that is read first, because a later version may have other members.
        #[derive(Deserialize)]
        struct Version {
            v: u32,
        }
        let version: Version =
            serde_json::from_slice(bytes).map_err(|_| NotUnderstood::NotReadable)?;
        if version.v != VERSION {
            return Err(NotUnderstood::Version);
        }
        let wire: Wire<'_> =
            serde_json::from_slice(bytes).map_err(|_| NotUnderstood::NotReadable)?;
        debug_assert_eq!(wire.v, VERSION);
        let (id, reply) = (wire.id.clone(), wire.reply.clone());
        let op = wire.op()?;
        Ok(Self { op, id, reply })
    }

    /// Returns the bytes of the message.
    pub fn to_json(&self) -> Vec<u8> {
        let mut members = serde_json::Map::new();
        let mut put = |name: &str, value: serde_json::Value| {
            members.insert(name.to_owned(), value);
        };
        put("v", VERSION.into());
        put("op", self.op.name().into());
        match &self.op {
            Op::Revoke(RevocationTarget::Token(jti)) => put("jti", jti.to_string().into()),
            Op::Revoke(RevocationTarget::User(user, before)) => {
                put("user_id", user.as_str().into());
                put("issued_before", number(*before));
            }
            Op::Revoke(RevocationTarget::All(before)) => put("issued_before", number(*before)),
            Op::Invalidate(user) => put("user_id", user.as_str().into()),
            Op::Disconnect { user, close } => {
                put("user_id", user.as_str().into());
                if let Some(code) = close.code() {
                    put("code", code.into());
                }
                if let Some(reason) = close.reason() {
                    put("reason", reason.into());
                }
            }
            // The event is added below as text: serde_json's values would change its order and its numbers.
            Op::Send { user, .. } => put("user_id", user.as_str().into()),
            Op::List {
                group,
                cursor,
                limit,
            } => {
                if let Some(group) = group {
                    put("group", group.as_str().into());
                }
                if let Some(cursor) = cursor {
                    put("cursor", cursor.as_str().into());
                }
                put("limit", (*limit).into());
            }
            Op::Count | Op::Suspend | Op::Resume | Op::Reload => {}
        }
        if let Some(id) = &self.id {
            put("id", id.as_str().into());
        }
        if let Some(reply) = &self.reply {
            put("reply", reply.as_str().into());
        }
        let mut text = serde_json::Value::Object(members).to_string();
        if let Op::Send { event, .. } = &self.op {
            text.pop();
            text.push_str(",\"event\":");
            if event.write_json(&mut text, false).is_err() {
                text.push_str("null");
            }
            text.push('}');
        }
        text.into_bytes()
    }
}

/// Converts a number; a whole number is written without a fraction, as back ends do.
fn number(value: f64) -> serde_json::Value {
    if value.fract() == 0.0 && value.abs() < 9e15 {
        (value as i64).into()
    } else {
        value.into()
    }
}

impl Wire<'_> {
    fn op(self) -> Result<Op, NotUnderstood> {
        let user = || match &self.user_id {
            Some(UserText::Text(text)) => Ok(UserId::from(text.as_str())),
            Some(UserText::Number(number)) => Ok(UserId::from(number.to_string())),
            None => Err(NotUnderstood::Member("user_id")),
        };
        let before = || match self.issued_before {
            Some(before) if before.is_finite() => Ok(before),
            _ => Err(NotUnderstood::Member("issued_before")),
        };
        Ok(match &*self.op {
            "revoke" => Op::Revoke(match (&self.jti, &self.user_id) {
                (Some(jti), None) => RevocationTarget::Token(Jti::from(jti.as_str())),
                (Some(_), Some(_)) => return Err(NotUnderstood::Member("user_id")),
                (None, Some(_)) => RevocationTarget::User(user()?, before()?),
                (None, None) => RevocationTarget::All(before()?),
            }),
            "invalidate" => Op::Invalidate(user()?),
            "disconnect" => {
                let close = RequestedClose::new(self.code, self.reason.clone());
                let close = close.map_err(|part| match part {
                    CloseNotValid::Code => NotUnderstood::Member("code"),
                    CloseNotValid::Reason => NotUnderstood::Member("reason"),
                })?;
                let user = user()?;
                Op::Disconnect { user, close }
            }
            "send" => {
                let event = self.event.ok_or(NotUnderstood::Member("event"))?;
                let event = Event::from_json(event.get().as_bytes())
                    .map_err(|_| NotUnderstood::Member("event"))?;
                Op::Send {
                    user: user()?,
                    event: Arc::new(event),
                }
            }
            "count" => Op::Count,
            "list" => Op::List {
                group: self.group.map(GroupName::from),
                cursor: self.cursor,
                limit: self.limit.unwrap_or(PAGE).min(LARGEST_PAGE),
            },
            "suspend" => Op::Suspend,
            "resume" => Op::Resume,
            "reload" => Op::Reload,
            _ => return Err(NotUnderstood::Op),
        })
    }
}

impl Op {
    /// Returns the word in the member `op`.
    pub const fn name(&self) -> &'static str {
        match self {
            Op::Revoke(_) => "revoke",
            Op::Invalidate(_) => "invalidate",
            Op::Disconnect { .. } => "disconnect",
            Op::Send { .. } => "send",
            Op::Count => "count",
            Op::List { .. } => "list",
            Op::Suspend => "suspend",
            Op::Resume => "resume",
            Op::Reload => "reload",
        }
    }
}

/// The answer of one replica. Members that the command does not ask for are left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// [`VERSION`]
    pub v: u32,
    /// The id of the command.
    pub id: String,
    /// The id of the replica that answers.
    pub replica: String,
    /// Sockets that the command closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed: Option<u64>,
    /// Sockets that an event was queued for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivered: Option<u64>,
    /// Open sockets of the tenant, or of the group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<u64>,
    /// A page of the open sockets, in the order of their channel names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sockets: Vec<SocketEntry>,
    /// The reason why the command was not carried out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// One open socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SocketEntry {
    /// The canonical id of its user.
    pub user_id: String,
    /// The name of its channel, which is valid within its tenant only.
    pub channel: String,
    /// The path of its request, without the query.
    pub path: String,
    /// Whole seconds since it was opened.
    pub age: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Op, NotUnderstood> {
        Command::read(json.as_bytes()).map(|command| command.op)
    }

    #[test]
    fn commands_read_back_as_they_were_written() {
        let event =
            Event::from_json(br#"{"type":"x","n":18446744073709551615,"a":{"b":[1.5,null]}}"#);
        let ops = [
            Op::Revoke(RevocationTarget::Token("a:b\"*\n".into())),
            Op::Revoke(RevocationTarget::User("7".into(), 1_700_000_000.0)),
            Op::Revoke(RevocationTarget::All(1_700_000_000.5)),
            Op::Invalidate("é".into()),
            Op::Disconnect {
                user: "7".into(),
                close: RequestedClose::new(Some(4001), Some("bye".into())).unwrap(),
            },
            Op::Disconnect {
                user: "7".into(),
                close: RequestedClose::default(),
            },
            Op::Send {
                user: "7".into(),
                event: Arc::new(event.unwrap()),
            },
            Op::Count,
            Op::List {
                group: Some("g".into()),
                cursor: Some("c".into()),
                limit: 7,
            },
            Op::Suspend,
            Op::Resume,
            Op::Reload,
        ];
        for op in ops {
            let command = Command {
                op,
                id: Some("1".into()),
                reply: Some("lockgate::reply:x".into()),
            };
            assert_eq!(Command::read(&command.to_json()), Ok(command.clone()));
        }
    }

    #[test]
    fn what_back_ends_write_is_understood() {
        let revoke = read(r#"{"v":1,"op":"revoke","user_id":7,"issued_before":1700000000}"#);
        assert_eq!(
            revoke,
            Ok(Op::Revoke(RevocationTarget::User("7".into(), 1.7e9)))
        );
        let jti = read(r#"{"op":"revoke","jti":"","v":1,"later":[{}]}"#);
        assert_eq!(jti, Ok(Op::Revoke(RevocationTarget::Token("".into()))));
        let list = Op::List {
            group: None,
            cursor: None,
            limit: PAGE,
        };
        assert_eq!(read(r#"{"v":1,"op":"list"}"#), Ok(list));
    }

    #[test]
    fn what_means_nothing_is_refused() {
        let deep = format!("{{\"v\":1,\"op\":\"count\",\"x\":{}", "[".repeat(100_000));
        let long = format!("{{\"v\":1,\"op\":\"{}\"}}", "x".repeat(MAX_MESSAGE));
        for (message, expected) in [
            ("", NotUnderstood::NotReadable),
            ("[]", NotUnderstood::NotReadable),
            (r#"[1,"count"]"#, NotUnderstood::NotReadable),
            ("{}", NotUnderstood::NotReadable),
            (&deep, NotUnderstood::NotReadable),
            (&long, NotUnderstood::TooLong),
            (r#"{"v":2,"op":7}"#, NotUnderstood::Version),
            (r#"{"v":1,"op":7}"#, NotUnderstood::NotReadable),
            (r#"{"v":1,"op":"explode"}"#, NotUnderstood::Op),
            (
                r#"{"v":1,"op":"revoke"}"#,
                NotUnderstood::Member("issued_before"),
            ),
            (
                r#"{"v":1,"op":"revoke","user_id":"7"}"#,
                NotUnderstood::Member("issued_before"),
            ),
            (
                r#"{"v":1,"op":"revoke","jti":"x","user_id":"7"}"#,
                NotUnderstood::Member("user_id"),
            ),
            (
                r#"{"v":1,"op":"revoke","user_id":[],"issued_before":1}"#,
                NotUnderstood::NotReadable,
            ),
            (
                r#"{"v":1,"op":"revoke","issued_before":"1"}"#,
                NotUnderstood::NotReadable,
            ),
            (
                r#"{"v":1,"op":"invalidate"}"#,
                NotUnderstood::Member("user_id"),
            ),
            (
                r#"{"v":1,"op":"disconnect","user_id":"7","code":1006}"#,
                NotUnderstood::Member("code"),
            ),
            (
                r#"{"v":1,"op":"send","user_id":"7"}"#,
                NotUnderstood::Member("event"),
            ),
            (
                r#"{"v":1,"op":"send","user_id":"7","event":[]}"#,
                NotUnderstood::Member("event"),
            ),
        ] {
            assert_eq!(
                read(message),
                Err(expected),
                "{}",
                &message[..message.len().min(80)]
            );
        }
    }
}
