//! `kind = "broadcast"`: publishes a client's JSON object to a group as an event.
//!
//! A client cannot set the type, keys that begin with `__`, or stamped keys.

use std::sync::Arc;

use async_trait::async_trait;

use super::scope::shown_user;
use super::{Consumer, Context, GroupError, MakeConsumer, Message, Scope};
use crate::close_code::CloseReason;
use crate::config::{ConsumerConfig, Fault, Faults, OnInvalid, RouteConfig};
use crate::event::{Event, Value};
use crate::templates::Template;

/// The answer to an invalid frame with `on_invalid = "reply"`.
const NOT_VALID: &str = r#"{"type":"lockgate.error","code":"message_not_valid"}"#;

/// The settings of a route, which its sockets share.
struct BroadcastSettings {
    to: Template,
    event_type: Box<str>,
    fields: Option<Vec<String>>,
    stamp: Vec<String>,
    skip_sender: bool,
    on_invalid: OnInvalid,
}

/// Publishes the messages of one client.
pub struct Broadcast {
    settings: Arc<BroadcastSettings>,
    /// The group's name for this socket.
    to: Box<str>,
}

/// Reads the route's `consumer` table. The keys of faults are relative to the route.
pub(super) fn factory(route: &RouteConfig) -> Result<MakeConsumer, Faults> {
    let config = &route.consumer;
    let mut faults = fields(config);
    let mut read = |read: Result<_, Fault>| read.map_err(|fault| faults.push(fault)).ok();
    let (to, event_type) = (read(target(route)), read(event_type(config)));
    let (Some(to), Some(event_type)) = (to, event_type) else {
        return Err(Faults(faults));
    };
    let to = Template::parse(to).map_err(|error| {
        let expected = "a template such as \"chat_{room}\"";
        Fault::new("consumer.to", format!("{to:?}"), expected).advice(error.to_string())
    })?;
    let settings = BroadcastSettings {
        to,
        event_type: event_type.into(),
        fields: config.fields.clone(),
        stamp: config.stamp.clone(),
        skip_sender: config.skip_sender,
        on_invalid: config.on_invalid,
    };
    let settings = Faults::or(faults, Arc::new(settings))?;
    Ok(Arc::new(move |scope| {
        // Admission has rendered the same template for the route's groups, so this does not fail. If it did, the empty
        // name would be refused at each `group_send`.
        let to = scope
            .fill(&settings.to, &scope.path_parameters())
            .unwrap_or_default()
            .into();
        Box::new(Broadcast {
            settings: settings.clone(),
            to,
        })
    }))
}

/// Returns the group template that frames go to, which is one of the route's own.
fn target(route: &RouteConfig) -> Result<&str, Fault> {
    let quoted = || {
        let groups = route.groups.iter().map(|group| format!("{group:?}"));
        groups.collect::<Vec<_>>().join(", ")
    };
    match (&route.consumer.to, route.groups.as_slice()) {
        (_, []) => {
            let expected = "at least one group for a broadcast to go to";
            Err(Fault::new("groups", "no groups", expected))
        }
        (None, [only]) => Ok(only),
        (None, several) => {
            let found = format!("no \"to\" on a route with {} groups", several.len());
            Err(Fault::new(
                "consumer.to",
                found,
                format!("one of {}", quoted()),
            ))
        }
        (Some(to), groups) if groups.contains(to) => Ok(to),
        (Some(to), _) => {
            let expected = format!("one of the route's groups: {}", quoted());
            Err(Fault::new("consumer.to", format!("{to:?}"), expected))
        }
    }
}

/// Returns the type of the events: not one that the gateway obeys or that Channels refuses.
fn event_type(config: &ConsumerConfig) -> Result<&str, Fault> {
    let wrong = |found: String, expected: &str, advice: &str| {
        Err(Fault::new("consumer.type", found, expected).advice(advice))
    };
    match config.event_type.as_deref() {
        None => {
            let advice = "such as type = \"chat.message\"";
            wrong("no type".to_owned(), "the type of the event", advice)
        }
        Some(reserved @ ("websocket.send" | "websocket.close")) => {
            let advice = "it acts as an ASGI message on every route, and clients would fill it";
            wrong(format!("{reserved:?}"), "a type of the application", advice)
        }
        Some(hidden) if hidden.starts_with(['_', '.']) => {
            let expected = "a type that begins with neither _ nor .";
            wrong(
                format!("{hidden:?}"),
                expected,
                "Channels' consumers refuse it",
            )
        }
        Some(event_type) => Ok(event_type),
    }
}

/// Returns the faults in `fields` and `stamp`: a client must not set a key that the gateway sets.
fn fields(config: &ConsumerConfig) -> Vec<Fault> {
    let fields = config.fields.iter().flatten().enumerate();
    let fields = fields.filter_map(|(index, field)| {
        let found = match field.as_str() {
            "type" => "\"type\"".to_owned(),
            own if own.starts_with("__") => format!("{own:?}"),
            own if config.stamp.iter().any(|stamp| stamp == own) => {
                format!("{own:?}, which is stamped too")
            }
            _ => return None,
        };
        let key = format!("consumer.fields[{index}]");
        Some(Fault::new(key, found, "keys that a client may set").advice("remove it"))
    });
    let stamps = config.stamp.iter().enumerate();
    let stamps = stamps
        .filter(|(_, stamp)| *stamp == "type" || stamp.starts_with("__"))
        .map(|(index, stamp)| {
            let expected = "user_id or a field of the user";
            let key = format!("consumer.stamp[{index}]");
            Fault::new(key, format!("{stamp:?}"), expected)
        });
    fields.chain(stamps).collect()
}

#[async_trait]
impl Consumer for Broadcast {
    async fn receive(&mut self, context: &mut Context<'_>, message: Message) {
        let event = match &message {
            Message::Text(text) => self.settings.event(text, context.scope()),
            Message::Binary(_) => None,
        };
        let Some(event) = event else {
            return self.refuse(context);
        };
        let sent = match self.settings.skip_sender {
            true => context.group_send_to_others(&self.to, &event).await,
            false => context.group_send(&self.to, &event).await,
        };
        match sent {
            Ok(()) => {}
            Err(error) if error.is_outage() => {
                tracing::debug!(user.id = shown_user(context.scope()), error = %error, "Could not publish a client's event");
                context.close_for(CloseReason::Unavailable);
            }
            Err(GroupError::RateLimited(_)) => context.close_for(CloseReason::RateLimited),
            // The event itself is at fault; for example, MessagePack cannot hold an integer of more than 64 bits.
            Err(_) => self.refuse(context),
        }
    }
}

impl Broadcast {
    fn refuse(&self, context: &Context<'_>) {
        context.drop_invalid_frame();
        match self.settings.on_invalid {
            OnInvalid::Drop => {}
            OnInvalid::Reply => context.send_text(NOT_VALID),
            OnInvalid::Close => context.close_for(CloseReason::MessageNotValid),
        }
    }
}

impl BroadcastSettings {
    /// Makes the event of a frame; `None` if the frame is not a JSON object, or not one that an event can hold.
    fn event(&self, text: &str, scope: &Scope) -> Option<Event> {
        let sent = Event::from_json(text.as_bytes()).ok()?;
        let mut fields = Vec::with_capacity(sent.fields.len() + self.stamp.len() + 1);
        fields.push(("type".into(), Value::Str(self.event_type.clone())));
        fields.extend(
            sent.fields
                .into_iter()
                .filter(|(key, _)| key.as_str().is_some_and(|key| self.may_set(key))),
        );
        for name in &self.stamp {
            fields.push((name.as_str().into(), stamped(name, scope)));
        }
        Some(Event { fields })
    }

    fn may_set(&self, key: &str) -> bool {
        let own =
            key == "type" || key.starts_with("__") || self.stamp.iter().any(|stamp| stamp == key);
        !own && self
            .fields
            .as_ref()
            .is_none_or(|fields| fields.iter().any(|field| field == key))
    }
}

/// Returns the value of a stamped key: the canonical id for `user_id`, else the field of the user record, else null.
fn stamped(name: &str, scope: &Scope) -> Value {
    match name {
        "user_id" => scope
            .user_id()
            .map_or(Value::Nil, |id| Value::Str(id.as_str().into())),
        field => scope
            .user_field(field)
            .map_or(Value::Nil, |value| Value::from(&value)),
    }
}
