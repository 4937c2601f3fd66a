//! Commands from a replica or a back end to all replicas, on `lockgate:TENANT:control` and `lockgate::control`.
//! [`super::answer`] has the answers.
//!
//! The messages are public (JSON, `{"v":1,"op",…}`) and may come from any sender with the right to publish. A message that
//! cannot be read is its sender's error and changes nothing. [`crate::tenant`] carries the messages out.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::close_code::{CloseNotValid, RequestedClose};
use crate::event::{Event, NotRenderable};
use crate::ids::{GroupName, Jti, RevocationTarget, UserId};

/// The version of the messages.
pub const VERSION: u32 = 1;
/// Bytes of the longest message that is written or read: the largest event of the API (1 MiB), and room for the other
/// members. An event can be longer than it came, because numbers are written out: `1e15` is `1000000000000000.0`.
pub const MAX_MESSAGE: usize = 2 * 1024 * 1024;
/// Bytes of the longest `id` and `reply`. An answer repeats the id, so a longer one would make long answers.
const MAX_ADDRESS: usize = 128;
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
    /// Close sockets.
    Disconnect {
        /// The sockets.
        sockets: Sockets,
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
    /// List open sockets.
    List {
        /// The sockets to list.
        of: ListScope,
        /// List only sockets whose channel name comes after this one.
        cursor: Option<String>,
        /// The largest number of sockets in the answer.
        limit: usize,
    },
    /// Put open sockets into a group.
    GroupAdd {
        /// The sockets.
        sockets: Sockets,
        /// The group.
        group: GroupName,
    },
    /// Take open sockets out of a group.
    GroupDiscard {
        /// The sockets.
        sockets: Sockets,
        /// The group.
        group: GroupName,
    },
    /// Stop serving the tenant.
    Suspend,
    /// Serve the tenant again.
    Resume,
    /// Read the configuration again (`lockgate::control` only).
    Reload,
    /// Look for changes of the registry of tenants (`lockgate::control` only).
    Registry,
}

/// The sockets of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListScope {
    /// All sockets of the tenant.
    All,
    /// Those in a group.
    Group(GroupName),
    /// Those of a user.
    User(UserId),
}

/// The sockets that a command is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sockets {
    /// All sockets of a user.
    OfUser(UserId),
    /// The socket with this channel name.
    OfChannel(String),
}

impl Sockets {
    /// Returns the member of a message that names the sockets.
    fn member(&self) -> (&'static str, &str) {
        match self {
            Self::OfUser(user) => ("user_id", user.as_str()),
            Self::OfChannel(channel) => ("channel", channel),
        }
    }
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

/// A command that no replica would read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotCarried {
    /// The message would be longer than [`MAX_MESSAGE`].
    #[error("the message to the replicas would be longer than 2 MiB")]
    TooLong,
    /// The event has a value that JSON cannot carry.
    #[error("{0}")]
    Event(NotRenderable),
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
    channel: Option<String>,
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
        let wire: Wire<'_> = serde_json::from_slice(bytes).map_err(|_| not_readable(bytes))?;
        if wire.v != VERSION {
            return Err(NotUnderstood::Version);
        }
        let short = |text: &Option<String>| text.as_ref().is_none_or(|t| t.len() <= MAX_ADDRESS);
        if !short(&wire.id) {
            return Err(NotUnderstood::Member("id"));
        }
        if !short(&wire.reply) {
            return Err(NotUnderstood::Member("reply"));
        }
        let (id, reply) = (wire.id.clone(), wire.reply.clone());
        let op = wire.op()?;
        Ok(Self { op, id, reply })
    }

    /// Returns the bytes of the message.
    ///
    /// # Errors
    /// [`NotCarried`]: [`Command::read`] would refuse the message.
    pub fn to_json(&self) -> Result<Vec<u8>, NotCarried> {
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
            Op::Disconnect { sockets, close } => {
                let (name, value) = sockets.member();
                put(name, value.into());
                if let Some(code) = close.code() {
                    put("code", code.into());
                }
                if let Some(reason) = close.reason() {
                    put("reason", reason.into());
                }
            }
            // The event is added below as text: serde_json's values would change its order and its numbers.
            Op::Send { user, .. } => put("user_id", user.as_str().into()),
            Op::List { of, cursor, limit } => {
                match of {
                    ListScope::All => {}
                    ListScope::Group(group) => put("group", group.as_str().into()),
                    ListScope::User(user) => put("user_id", user.as_str().into()),
                }
                if let Some(cursor) = cursor {
                    put("cursor", cursor.as_str().into());
                }
                put("limit", (*limit).into());
            }
            Op::GroupAdd { sockets, group } | Op::GroupDiscard { sockets, group } => {
                let (name, value) = sockets.member();
                put(name, value.into());
                put("group", group.as_str().into());
            }
            Op::Count | Op::Suspend | Op::Resume | Op::Reload | Op::Registry => {}
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
            let written = event.write_json(&mut text, false);
            written.map_err(NotCarried::Event)?;
            text.push('}');
        }
        match text.len() <= MAX_MESSAGE {
            true => Ok(text.into_bytes()),
            false => Err(NotCarried::TooLong),
        }
    }
}

/// Tells a message of another version, whose members may have other types, from one that cannot be read.
fn not_readable(bytes: &[u8]) -> NotUnderstood {
    #[derive(Deserialize)]
    struct Version {
        v: u32,
    }
    match serde_json::from_slice(bytes) {
        Ok(Version { v }) if v != VERSION => NotUnderstood::Version,
        _ => NotUnderstood::NotReadable,
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
        let sockets = || match &self.channel {
            None => Ok(Sockets::OfUser(user()?)),
            Some(channel) if self.user_id.is_none() => Ok(Sockets::OfChannel(channel.clone())),
            Some(_) => Err(NotUnderstood::Member("user_id")),
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
                let sockets = sockets()?;
                Op::Disconnect { sockets, close }
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
            "list" | "list_user" => Op::List {
                of: match (&*self.op, self.group) {
                    ("list_user", _) => ListScope::User(user()?),
                    (_, Some(group)) => ListScope::Group(group.into()),
                    (_, None) => ListScope::All,
                },
                cursor: self.cursor,
                limit: self.limit.unwrap_or(PAGE).min(LARGEST_PAGE),
            },
            "group_add" | "group_discard" => {
                let sockets = sockets()?;
                let group = self.group.ok_or(NotUnderstood::Member("group"))?;
                let group = GroupName::from(group);
                match &*self.op {
                    "group_add" => Op::GroupAdd { sockets, group },
                    _ => Op::GroupDiscard { sockets, group },
                }
            }
            "suspend" => Op::Suspend,
            "resume" => Op::Resume,
            "reload" => Op::Reload,
            "registry" => Op::Registry,
            _ => return Err(NotUnderstood::Op),
        })
    }
}

impl Op {
    /// Returns true for what must never be dropped: it takes something back.
    pub const fn is_urgent(&self) -> bool {
        matches!(
            self,
            Op::Revoke(_) | Op::Invalidate(_) | Op::GroupDiscard { .. } | Op::Suspend | Op::Resume
        )
    }

    /// Returns the word in the member `op`.
    pub const fn name(&self) -> &'static str {
        match self {
            Op::Revoke(_) => "revoke",
            Op::Invalidate(_) => "invalidate",
            Op::Disconnect { .. } => "disconnect",
            Op::Send { .. } => "send",
            Op::Count => "count",
            Op::List {
                of: ListScope::User(_),
                ..
            } => "list_user",
            Op::List { .. } => "list",
            Op::GroupAdd { .. } => "group_add",
            Op::GroupDiscard { .. } => "group_discard",
            Op::Suspend => "suspend",
            Op::Resume => "resume",
            Op::Reload => "reload",
            Op::Registry => "registry",
        }
    }
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
                sockets: Sockets::OfUser("7".into()),
                close: RequestedClose::new(Some(4001), Some("bye".into())).unwrap(),
            },
            Op::Disconnect {
                sockets: Sockets::OfChannel("specific.x".into()),
                close: RequestedClose::default(),
            },
            Op::Send {
                user: "7".into(),
                event: Arc::new(event.unwrap()),
            },
            Op::Count,
            Op::List {
                of: ListScope::Group("g".into()),
                cursor: Some("c".into()),
                limit: 7,
            },
            Op::List {
                of: ListScope::User("7".into()),
                cursor: Some("c".into()),
                limit: 7,
            },
            Op::GroupAdd {
                sockets: Sockets::OfUser("7".into()),
                group: "g".into(),
            },
            Op::GroupDiscard {
                sockets: Sockets::OfChannel("specific.x".into()),
                group: "g".into(),
            },
            Op::Suspend,
            Op::Resume,
            Op::Reload,
            Op::Registry,
        ];
        for op in ops {
            let command = Command {
                op,
                id: Some("1".into()),
                reply: Some("lockgate::reply:x".into()),
            };
            let json = command.to_json().unwrap();
            assert_eq!(Command::read(&json), Ok(command));
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
            of: ListScope::All,
            cursor: None,
            limit: PAGE,
        };
        assert_eq!(read(r#"{"v":1,"op":"list"}"#), Ok(list));
    }

    /// The reader used to refuse what the writer had written: an event grows where its numbers are written out.
    #[test]
    fn what_no_replica_would_read_is_not_written() {
        let send = |numbers: usize| {
            let text = format!("{{\"type\":\"x\",\"n\":[{}0]}}", "1e15,".repeat(numbers));
            assert!(text.len() <= 1024 * 1024);
            let command = Command {
                op: Op::Send {
                    user: "7".into(),
                    event: Arc::new(Event::from_json(text).unwrap()),
                },
                id: None,
                reply: None,
            };
            (command.to_json(), command)
        };
        let (written, command) = send(100_000);
        assert_eq!(Command::read(&written.unwrap()), Ok(command));
        assert_eq!(send(200_000).0, Err(NotCarried::TooLong));
    }

    #[test]
    fn what_means_nothing_is_refused() {
        let deep = format!("{{\"v\":1,\"op\":\"count\",\"x\":{}", "[".repeat(100_000));
        let long = format!("{{\"v\":1,\"op\":\"{}\"}}", "x".repeat(MAX_MESSAGE));
        let address = "x".repeat(MAX_ADDRESS + 1);
        let long_id = format!("{{\"v\":1,\"op\":\"count\",\"id\":\"{address}\"}}");
        let long_reply = format!("{{\"v\":1,\"op\":\"count\",\"reply\":\"{address}\"}}");
        for (message, expected) in [
            ("", NotUnderstood::NotReadable),
            ("[]", NotUnderstood::NotReadable),
            (r#"[1,"count"]"#, NotUnderstood::NotReadable),
            ("{}", NotUnderstood::NotReadable),
            (&deep, NotUnderstood::NotReadable),
            (&long, NotUnderstood::TooLong),
            (r#"{"v":2,"op":7}"#, NotUnderstood::Version),
            (r#"{"v":2,"op":"count"}"#, NotUnderstood::Version),
            (&long_id, NotUnderstood::Member("id")),
            (&long_reply, NotUnderstood::Member("reply")),
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
                r#"{"v":1,"op":"disconnect"}"#,
                NotUnderstood::Member("user_id"),
            ),
            (
                r#"{"v":1,"op":"disconnect","user_id":"7","channel":"c"}"#,
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
