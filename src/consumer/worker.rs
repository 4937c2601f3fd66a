//! `kind = "worker"`: sends a socket's connect, frames and disconnect to a Channels worker
//! (`manage.py runworker NAME`) as ASGI events.
//!
//! Each event also carries `reply_channel`, `path`, `kwargs`, `user` and `tenant`, which the worker has no other source
//! for. The worker answers on the reply channel, which is the socket's own channel; [`crate::relay`] handles the
//! answers. Every event is a map with text keys and a type, because any other message would end the worker.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::{
    Consumer, Context, MakeConsumer, Message, Refused, Scope, SocketHandle, member_channel,
};
use crate::channel_layer::LayerError;
use crate::channel_names::{MAX_NAME, valid_group_name};
use crate::close_code::{CloseFrame, CloseReason};
use crate::config::{Accept, ConsumerConfig, Fault, Faults, OnWorkerFull};
use crate::event::{Event, Key, Value};
use crate::ids::{ChannelName, GroupName};
use crate::metrics::DropCause;
use crate::relay::{Acceptance, Relay, Waiting, WorkerVerdict};
use crate::routes::PathValue;

/// The settings of a route, which its sockets share.
struct WorkerSettings {
    channel: Box<str>,
    partitions: u32,
    accept: Accept,
    timeout: Duration,
    on_full: OnWorkerFull,
}

/// Tells a worker about one socket.
struct Worker {
    settings: Arc<WorkerSettings>,
    /// True if the worker may know the socket, and so is told of its end.
    may_know: bool,
}

/// The longest `worker_timeout`. A handshake ends after 30 s, and the rest of it needs a part of that.
const LONGEST_WAIT: Duration = Duration::from_secs(25);

/// Reads the route's `consumer` table. The keys of faults are relative to the route.
pub(super) fn factory(config: &ConsumerConfig) -> Result<MakeConsumer, Faults> {
    let mut faults = Vec::new();
    if config.accept == Accept::Worker && config.worker_timeout > LONGEST_WAIT {
        let found = format!("{:?}", config.worker_timeout);
        let fault = Fault::new("consumer.worker_timeout", found, "at most \"25s\"");
        faults.push(fault.advice("an unanswered handshake ends after 30 seconds"));
    }
    let channel = match channel(config) {
        Ok(channel) => Faults::or(faults, channel)?,
        Err(fault) => {
            faults.push(fault);
            return Err(Faults(faults));
        }
    };
    let settings = Arc::new(WorkerSettings {
        channel: channel.into(),
        partitions: config.partitions,
        accept: config.accept,
        timeout: config.worker_timeout,
        on_full: config.on_worker_full,
    });
    Ok(Arc::new(move |_| {
        Box::new(Worker {
            settings: settings.clone(),
            may_know: false,
        })
    }))
}

/// Returns the channel that workers listen to. With partitions, the name leaves room for `.K`.
fn channel(config: &ConsumerConfig) -> Result<&str, Fault> {
    let wrong = |found: String, expected: String| Fault::new("consumer.channel", found, expected);
    let Some(name) = config.channel.as_deref() else {
        let expected = "the channel that a worker listens to".to_owned();
        let advice = "such as channel = \"chat\", with `manage.py runworker chat`";
        return Err(wrong("no channel".to_owned(), expected).advice(advice));
    };
    if !valid_group_name(name) {
        let expected = format!("1 to {MAX_NAME} of ASCII letters, digits, \"-\", \"_\", \".\"");
        return Err(wrong(format!("{name:?}"), expected));
    }
    let last = config.partitions.saturating_sub(1).to_string();
    if config.partitions > 0 && name.len() + 1 + last.len() > MAX_NAME {
        let expected = format!("a name of at most {MAX_NAME} characters with its partition");
        let found = format!("{name:?}, which leaves no room for .{last}");
        return Err(wrong(found, expected));
    }
    Ok(name)
}

#[async_trait]
impl Consumer for Worker {
    async fn connect(&mut self, context: &mut Context<'_>) -> Result<(), Refused> {
        let SocketHandle { member, relay } = context.socket;
        let scope = context.scope;
        // Registered before the worker is told, so that its answer cannot come too early.
        let waiting = match self.settings.accept {
            Accept::Gateway => None,
            Accept::Worker => Some(relay.expect_verdict(member_channel(member))),
        };
        let before = member.groups();
        let offered = context.offered_subprotocols().iter();
        let offered = offered.map(|name| Value::from(&**name)).collect();
        let offered = ("subprotocols", Value::Array(offered));
        let goodbye = WorkerGoodbye {
            settings: &self.settings,
            relay,
            scope,
        };
        let told = self
            .settings
            .tell(relay, scope, "websocket.connect", [offered])
            .await;
        if let Err(error) = told {
            if error.kind().is_none() {
                // No worker knows the socket, so none needs its end. After a lost link a worker may know it.
                goodbye.forget();
            }
            return match self.settings.not_taken(relay, &error) {
                NotTaken::Dropped if waiting.is_none() => {
                    // A worker that starts later gets the socket's frames and its end.
                    self.may_know = true;
                    Ok(())
                }
                // A handshake that waits for a worker would get no answer.
                NotTaken::Dropped | NotTaken::Closes => {
                    // An error of Redis says nothing about workers.
                    if matches!(error, LayerError::NoReceiver | LayerError::ChannelFull) {
                        relay.metrics().worker_timeouts.increment(1);
                    }
                    let channel = self.settings.channel_of(scope).to_string();
                    context
                        .refuses_because(format!("no worker on the channel {channel:?}: {error}"));
                    Err(Refused::Unavailable)
                }
            };
        }
        if let Some(waiting) = waiting {
            self.settings.decided(context, waiting, &before).await?;
        }
        goodbye.forget();
        self.may_know = true;
        Ok(())
    }

    async fn receive(&mut self, context: &mut Context<'_>, message: Message) {
        let body = match message {
            Message::Text(text) => ("text", Value::from(text)),
            Message::Binary(bytes) => ("bytes", Value::Bin(bytes.into())),
        };
        let (settings, relay) = (&self.settings, &context.socket.relay);
        let told = settings
            .tell(relay, context.scope, "websocket.receive", [body])
            .await;
        if let Err(error) = told
            && matches!(settings.not_taken(relay, &error), NotTaken::Closes)
        {
            context.close_for(CloseReason::Unavailable);
        }
    }

    async fn disconnect(&mut self, context: &mut Context<'_>, close: &CloseFrame) {
        if self.may_know {
            let (relay, scope) = (&context.socket.relay, context.scope);
            let channel = self.settings.channel_of(scope);
            let event = disconnected(scope, close);
            self.settings.say_goodbye(relay, &channel, &event).await;
        }
    }
}

/// The consequence for a socket whose event no worker took.
enum NotTaken {
    /// The event is dropped.
    Dropped,
    /// The socket closes.
    Closes,
}

impl WorkerSettings {
    /// Sends one event of the socket's life to the worker.
    async fn tell<const N: usize>(
        &self,
        relay: &Relay,
        scope: &Scope,
        event_type: &str,
        more: [(&'static str, Value); N],
    ) -> Result<(), LayerError> {
        let event = event(scope, event_type, more);
        relay.send(&self.channel_of(scope), &event).await
    }

    /// Waits for the worker's answer to a handshake. `before` holds the socket's groups when it was told.
    async fn decided(
        &self,
        context: &mut Context<'_>,
        mut waiting: Waiting,
        before: &[GroupName],
    ) -> Result<(), Refused> {
        let SocketHandle { member, relay } = context.socket;
        let waits = relay.metrics().waits_for_worker();
        let outbound = member.outbound();
        let verdict = tokio::select! {
            verdict = tokio::time::timeout(self.timeout, waiting.verdict()) => verdict,
            // The socket was closed meanwhile, for example by a revocation. The last check of the handshake
            // turns the close into its refusal, so this only ends the wait.
            _ = std::future::poll_fn(|cx| outbound.poll_closing(cx)) => {
                Ok(WorkerVerdict::Accept(Acceptance::default()))
            }
        };
        drop(waits);
        let answered = match verdict {
            Ok(WorkerVerdict::Accept(acceptance)) => context.answer_with(acceptance),
            Ok(WorkerVerdict::NotValid(error)) => Err(error),
            Ok(WorkerVerdict::Close(frame)) => return Err(Refused::ClosedWith(frame)),
            Err(_) => {
                relay.metrics().worker_timeouts.increment(1);
                let why = self.no_answer(context.scope);
                context.refuses_because(why);
                return Err(Refused::Unavailable);
            }
        };
        if let Err(error) = answered {
            relay.not_accepted(&error);
            context.refuses_because(format!("the worker's answer cannot be used: {error}"));
            return Err(Refused::Unavailable);
        }
        // The worker may have put the socket into groups before it accepted. Their subscriptions must be
        // acknowledged before the client gets its 101.
        let mut ordered = member.groups();
        ordered.retain(|group| !before.contains(group));
        // A group that the worker discards meanwhile stays subscribed for a second, so these do not race with it.
        let joins = ordered.iter().map(|group| relay.layer().subscribe(group));
        let joined = futures_util::future::try_join_all(joins).await;
        joined.map_err(|_| Refused::Unavailable)?;
        Ok(())
    }

    /// Says that no worker answered a handshake.
    fn no_answer(&self, scope: &Scope) -> String {
        let channel = self.channel_of(scope).to_string();
        format!(
            "no worker on the channel {channel:?} answered within {:?}: run `manage.py runworker {channel}`, or look at its log",
            self.timeout
        )
    }

    /// Returns the worker's channel for a socket. It is always the same one, so that the frames stay in order.
    fn channel_of(&self, scope: &Scope) -> ChannelName {
        if self.partitions == 0 {
            return ChannelName::from(&*self.channel);
        }
        // The bits are random, so the remainder spreads the sockets evenly.
        let bits = u128::from_be_bytes(member_channel(&scope.member).0);
        let partition = bits % u128::from(self.partitions);
        ChannelName::from(format!("{}.{partition}", self.channel))
    }

    /// Counts an event that no worker took, and returns the consequence for its socket.
    fn not_taken(&self, relay: &Relay, error: &LayerError) -> NotTaken {
        let cause = match error {
            LayerError::ChannelFull => DropCause::WorkerFull,
            LayerError::NoReceiver => DropCause::NoConsumer,
            // A JSON layer cannot carry the bytes of a binary frame.
            LayerError::Encode(_) => DropCause::NotValid,
            LayerError::Unavailable(_) | LayerError::Publish(_) | LayerError::NotRecorded(_) => {
                return NotTaken::Closes;
            }
        };
        relay.not_sent(&self.channel, cause, error);
        match (cause, self.on_full) {
            (DropCause::NotValid, _) | (_, OnWorkerFull::Drop) => NotTaken::Dropped,
            (_, OnWorkerFull::Close) => NotTaken::Closes,
        }
    }

    /// Tells the worker about the end of a socket. An error is counted only, because no socket is left to close.
    async fn say_goodbye(&self, relay: &Relay, channel: &ChannelName, event: &Event) {
        if let Err(error) = relay.send(channel, event).await {
            self.not_taken(relay, &error);
        }
    }
}

/// Tells a worker about the end of a socket when it is dropped, which covers every way out of the handshake.
struct WorkerGoodbye<'a> {
    settings: &'a Arc<WorkerSettings>,
    relay: &'a Arc<Relay>,
    scope: &'a Scope,
}

impl WorkerGoodbye<'_> {
    /// Cancels the message: either the socket opens and `disconnect` tells its end, or no worker knows it.
    fn forget(self) {
        std::mem::forget(self);
    }
}

impl Drop for WorkerGoodbye<'_> {
    fn drop(&mut self) {
        let event = disconnected(self.scope, &CloseFrame::absent());
        let channel = self.settings.channel_of(self.scope);
        let (settings, relay) = (self.settings.clone(), self.relay.clone());
        let goodbye = {
            let relay = relay.clone();
            async move { settings.say_goodbye(&relay, &channel, &event).await }
        };
        relay.say_later(goodbye);
    }
}

fn disconnected(scope: &Scope, close: &CloseFrame) -> Event {
    let more = [
        ("code", Value::Int(i64::from(close.code))),
        ("reason", Value::from(&*close.reason)),
    ];
    event(scope, "websocket.disconnect", more)
}

/// Returns an ASGI event with the socket's properties.
fn event<const N: usize>(
    scope: &Scope,
    event_type: &str,
    more: [(&'static str, Value); N],
) -> Event {
    let params = scope.path_parameters();
    let kwargs = params
        .iter()
        .map(|(name, value)| (Key::from(name), argument(value)));
    let common = [
        ("reply_channel", Value::from(scope.channel_name().as_str())),
        ("path", Value::from(&*scope.path())),
        ("kwargs", Value::Map(kwargs.collect())),
        ("user", user(scope)),
        ("tenant", Value::from(scope.tenant().as_str())),
    ];
    Event::new(event_type, common.into_iter().chain(more))
}

/// Returns a path parameter as a Django view would get it. An `int` of more than 64 bits is text, because MessagePack
/// cannot hold it.
fn argument(value: &PathValue) -> Value {
    match value {
        PathValue::Int(digits) => digits
            .parse::<u64>()
            .map_or_else(|_| Value::from(&**digits), Value::from),
        PathValue::Uuid(text) | PathValue::Text(text) => Value::from(&**text),
    }
}

/// Returns the fields of the user record; null for an anonymous socket.
fn user(scope: &Scope) -> Value {
    let Some(user) = scope.user() else {
        return Value::Nil;
    };
    let fields = serde_json::from_str::<serde_json::Value>(&user.fields.text());
    fields.map_or(Value::Nil, |fields| Value::from(&fields))
}
