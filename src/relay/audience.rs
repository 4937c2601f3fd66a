//! The audience of an event: groups, and single sockets by their own channels.
//!
//! Events of some types are orders, for example to join a group. They act only on a socket's own channel.

use std::sync::Arc;

use super::{Acceptance, Relay, WorkerVerdict, begin};
use crate::channel_layer::{Incoming, LayerError, SocketChannel, Target};
use crate::event::{DecodeError, Event, Value};
use crate::hub::{Group, Member};
use crate::ids::GroupName;
use crate::metrics::DropCause;
use crate::render;

/// Puts the socket into `group`.
const GROUP_ADD: &str = "lockgate.group_add";
/// Takes the socket out of `group`.
const GROUP_DISCARD: &str = "lockgate.group_discard";
/// Opens a socket whose handshake waits for its worker.
const ACCEPT: &str = "websocket.accept";
/// Refuses a socket whose handshake waits for its worker, and closes any other.
const CLOSE: &str = "websocket.close";

/// The sockets of this replica that get an event.
#[derive(Default)]
pub(super) struct Audience {
    pub(super) groups: Vec<Arc<Group>>,
    /// The single sockets. [`Audience::served`] takes out those that a group has served.
    pub(super) sockets: Vec<Arc<Member>>,
    /// True if the event was sent to one socket's own channel and not through a group.
    direct: bool,
}

impl Audience {
    /// Makes the audience of one group.
    pub(super) fn of_group(group: Arc<Group>) -> Self {
        Self {
            groups: vec![group],
            ..Self::default()
        }
    }

    /// Returns the group if the audience is one group and nothing else.
    pub(super) fn only_group(&self) -> Option<&Arc<Group>> {
        match (&*self.groups, &*self.sockets) {
            ([group], []) => Some(group),
            _ => None,
        }
    }

    /// Takes out a socket that a group has served, so that it does not get the event twice.
    pub(super) fn served(sockets: &mut Vec<Arc<Member>>, member: &Member) {
        if !sockets.is_empty() {
            sockets.retain(|socket| socket.id() != member.id());
        }
    }
}

/// Returns true if the event is an order about one socket, which nothing delivers from a group.
pub(super) fn is_order(event: &Event) -> bool {
    let event_type = event.event_type();
    event_type.is_some_and(|event_type| [GROUP_ADD, GROUP_DISCARD, ACCEPT].contains(&event_type))
}

impl Relay {
    /// Makes the socket listen on its own channel. Events sent there after this returns reach the socket.
    ///
    /// # Errors
    /// Fails if the layer does not acknowledge in time. Call [`Relay::unlisten`] even then.
    pub async fn listen(
        &self,
        member: &Arc<Member>,
        channel: SocketChannel,
    ) -> Result<(), LayerError> {
        self.channels.insert(channel.0, member);
        self.parts.layer.open_channel(channel).await
    }

    /// Stops the socket from listening on its own channel.
    pub fn unlisten(&self, channel: SocketChannel) {
        self.channels.remove(channel.0);
        self.parts.layer.close_channel(channel);
    }

    /// Returns true if a socket must listen on its own channel.
    ///
    /// It always does where listening costs nothing. Elsewhere it does only if its route's consumer may give the name
    /// of the channel to others.
    pub fn hears_channel(&self, consumer_tells: bool) -> bool {
        consumer_tells || self.parts.layer.hears_every_socket()
    }

    /// Decodes a message. Returns the event and its audience; `None` if no socket of this replica gets it, or if the
    /// message is not an event, which is counted.
    pub(super) fn open(&self, incoming: Incoming) -> Option<(Audience, Arc<Event>)> {
        let (target, unrecorded) = (incoming.target.clone(), incoming.unrecorded);
        let known = match &target {
            Target::Inside => None,
            // The target is looked up first: a message without an audience here is not decoded.
            target => Some(self.audience(target)?),
        };
        let opened = self.parts.layer.open(incoming);
        let opened = opened.inspect_err(|error| self.not_decoded(&target, error));
        let (target, event) = opened.ok()??;
        if !event.is_dispatchable() {
            // A message without a valid type would end a Channels consumer. Here it is dropped.
            self.not_decoded(&target, &DecodeError::NoType);
            return None;
        }
        let audience = known.or_else(|| self.audience(&target))?;
        if unrecorded {
            self.parts.metrics.events_unrecorded.increment(1);
        }
        Some((audience, event))
    }

    /// Returns the sockets of a target; `None` if none is connected to this replica.
    fn audience(&self, target: &Target) -> Option<Audience> {
        let group = |name: &GroupName| self.parts.hub.groups().get(name);
        let socket = |channel: &SocketChannel| self.channels.get(channel.0);
        let audience = match target {
            Target::Inside => return None,
            Target::Group(name) => Audience::of_group(group(name)?),
            Target::Socket(channel) => Audience {
                sockets: vec![socket(channel)?],
                direct: true,
                ..Audience::default()
            },
            Target::Members(members) => Audience {
                groups: members.groups.iter().filter_map(group).collect(),
                sockets: members.sockets.iter().filter_map(socket).collect(),
                direct: false,
            },
        };
        (!audience.groups.is_empty() || !audience.sockets.is_empty()).then_some(audience)
    }

    /// Carries out an event that is an order. Returns false if the event is to be delivered instead.
    pub(super) fn obeyed(self: &Arc<Self>, audience: &Audience, event: &Event) -> bool {
        let adds = match event.event_type() {
            Some(GROUP_ADD) => true,
            Some(GROUP_DISCARD) => false,
            Some(ACCEPT) => {
                self.accept(audience, event);
                return true;
            }
            // For an open socket it is an event like any other, and rendering turns it into the close.
            Some(CLOSE) => return self.refuse(audience, event),
            _ => return false,
        };
        // Sent through a group it is neither carried out nor delivered, but counted.
        let group = event.get("group").and_then(Value::as_str);
        let group = group.and_then(|name| self.group_name(name));
        match (audience.direct, group) {
            (true, Some(group)) => {
                for member in &audience.sockets {
                    if adds {
                        self.add_by_order(member, &group);
                    } else {
                        self.leave(member, &group);
                    }
                }
            }
            _ => self.parts.metrics.dropped(DropCause::NotValid),
        }
        true
    }

    /// Passes a worker's accept to the handshake. A worker accepts every socket, so an open socket ignores it.
    fn accept(&self, audience: &Audience, event: &Event) {
        if !audience.direct {
            return self.parts.metrics.dropped(DropCause::NotValid);
        }
        for member in &audience.sockets {
            self.decide(member, || match Acceptance::of_event(event) {
                Ok(acceptance) => WorkerVerdict::Accept(acceptance),
                Err(error) => WorkerVerdict::NotValid(error),
            });
        }
    }

    /// Passes a worker's refusal to the handshake; returns false if none waits.
    fn refuse(&self, audience: &Audience, event: &Event) -> bool {
        let refuse = |member: &Arc<Member>| {
            self.decide(member, || WorkerVerdict::Close(render::close_frame(event)))
        };
        audience.direct && audience.sockets.iter().any(refuse)
    }

    /// Joins the group without waiting for the layer, because later events of the tenant wait for this one.
    fn add_by_order(self: &Arc<Self>, member: &Arc<Member>, group: &GroupName) {
        let added = self.put_into(std::slice::from_ref(member), group);
        let Some(confirmed) = added.confirmed else {
            return;
        };
        let (tenant, socket) = (self.parts.tenant.clone(), member.id());
        begin(Box::pin(async move {
            if let Err(error) = confirmed.await {
                tracing::debug!(
                    tenant.id = %tenant, conn.id = %socket, error = %error,
                    "An event made a socket join a group, and the layer has not confirmed the subscription"
                );
            }
        }));
    }
}
