//! The JSON of commands: read, and written.

use std::sync::Arc;

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::{
    Command, LARGEST_PAGE, ListScope, MAX_ADDRESS, MAX_MESSAGE, NotCarried, NotUnderstood, Op,
    PAGE, Sockets, VERSION,
};
use crate::close_code::{CloseNotValid, RequestedClose};
use crate::event::Event;
use crate::ids::{GroupName, Jti, RevocationTarget, UserId, WrittenUserId};

#[derive(Deserialize)]
struct Wire<'a> {
    v: u32,
    #[serde(borrow)]
    op: std::borrow::Cow<'a, str>,
    id: Option<String>,
    reply: Option<String>,
    #[serde(default, deserialize_with = "not_null")]
    jti: Option<String>,
    #[serde(default, deserialize_with = "not_null")]
    user_id: Option<WrittenUserId>,
    issued_before: Option<f64>,
    code: Option<u16>,
    reason: Option<String>,
    #[serde(borrow)]
    event: Option<&'a RawValue>,
    #[serde(default, deserialize_with = "not_null")]
    group: Option<String>,
    #[serde(default, deserialize_with = "not_null")]
    channel: Option<String>,
    cursor: Option<String>,
    limit: Option<usize>,
}

/// Reads a member that says which sockets or tokens a command is about. Null is refused: taken as absent, it would let the
/// command reach more of them, as the whole tenant in place of a user.
fn not_null<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
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
            Some(WrittenUserId::Text(text)) => Ok(UserId::from(text.as_str())),
            // A number stands for its decimal text.
            Some(WrittenUserId::Number(number)) => Ok(UserId::from(number.to_string())),
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
