//! Who gets an event: groups, and sockets by their own channels; and what only a socket's own channel may order.

use std::sync::Arc;

use futures_util::FutureExt as _;

use super::{Relay, Verdict};
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

/// The sockets of this replica that an event is for.
#[derive(Default)]
pub(super) struct Audience {
    pub(super) groups: Vec<Arc<Group>>,
    /// Single sockets; those that a group has served are taken out by [`Audience::served`].
    pub(super) sockets: Vec<Arc<Member>>,
    /// It was sent to the one socket's own channel, not through a group.
    direct: bool,
}

impl Audience {
    /// All sockets of one group.
    pub(super) fn of_group(group: Arc<Group>) -> Self {
        Self {
            groups: vec![group],
            ..Self::default()
        }
    }

    /// Returns the group, if it is all that is meant.
    pub(super) fn only_group(&self) -> Option<&Arc<Group>> {
        match (&*self.groups, &*self.sockets) {
            ([group], []) => Some(group),
            _ => None,
        }
    }

    /// Notes that a group served the socket, so that it does not get the event twice.
    pub(super) fn served(sockets: &mut Vec<Arc<Member>>, member: &Member) {
        if !sockets.is_empty() {
            sockets.retain(|socket| socket.id() != member.id());
        }
    }
}

impl Relay {
    /// Lets the socket hear its own channel; once this returns, what is sent there reaches it.
    ///
    /// # Errors
    /// If the layer does not acknowledge in time; call [`Relay::unlisten`] all the same.
    pub async fn listen(
        &self,
        member: &Arc<Member>,
        channel: SocketChannel,
    ) -> Result<(), LayerError> {
        self.channels.insert(channel.0, member);
        self.parts.layer.open_channel(channel).await
    }

    /// The socket does not hear its channel any more.
    pub fn unlisten(&self, channel: SocketChannel) {
        self.channels.remove(channel.0);
        self.parts.layer.close_channel(channel);
    }

    /// Whether a socket hears its own channel: always where that is free, else where its route's consumer may have
    /// told somebody the name.
    pub fn hears_channel(&self, consumer_tells: bool) -> bool {
        consumer_tells || self.parts.layer.hears_every_socket()
    }

    /// The event and who gets it; `None` if nobody here, or if it is none, which is counted.
    pub(super) fn open(&self, incoming: Incoming) -> Option<(Audience, Arc<Event>)> {
        let target = incoming.target.clone();
        let known = match &target {
            Target::Inside => None,
            // What nobody waits for need not be decoded.
            target => Some(self.audience(target)?),
        };
        let opened = self.parts.layer.open(incoming);
        let opened = opened.inspect_err(|error| self.not_decoded(&target, error));
        let (target, event) = opened.ok()??;
        if !event.is_dispatchable() {
            // It ends a Channels consumer; here it is no event.
            self.not_decoded(&target, &DecodeError::NoType);
            return None;
        }
        let audience = known.or_else(|| self.audience(&target))?;
        Some((audience, event))
    }

    /// Who is meant; `None` if nobody here.
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

    /// Does what an event orders, if it is one of those that act only on a socket's own channel.
    pub(super) fn obeyed(&self, audience: &Audience, event: &Event) -> bool {
        let adds = match event.event_type() {
            Some(GROUP_ADD) => true,
            Some(GROUP_DISCARD) => false,
            Some(ACCEPT) => {
                self.accept(audience);
                return true;
            }
            // An open socket takes it like any other event.
            Some(CLOSE) => return self.refuse(audience, event),
            _ => return false,
        };
        // Through a group it is neither an order nor something for a client.
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

    /// A worker accepts each socket that it is told of; only a handshake that waits needs to know.
    fn accept(&self, audience: &Audience) {
        if !audience.direct {
            return self.parts.metrics.dropped(DropCause::NotValid);
        }
        for member in &audience.sockets {
            self.decide(member, || Verdict::Accept);
        }
    }

    /// True if a handshake waited for it.
    fn refuse(&self, audience: &Audience, event: &Event) -> bool {
        let refuse = |member: &Arc<Member>| {
            self.decide(member, || Verdict::Close(render::close_frame(event)))
        };
        audience.direct && audience.sockets.iter().any(refuse)
    }

    /// Joins without waiting for the layer: other events of the tenant stand behind this one.
    fn add_by_order(&self, member: &Arc<Member>, group: &GroupName) {
        let new = !member.groups().contains(group);
        if new && !self.has_room_for_group(member) {
            return self.parts.metrics.dropped(DropCause::Limit);
        }
        // The wish is told at the first poll and outlives the future.
        if let Some(Err(error)) = self.join(member, group).now_or_never() {
            tracing::debug!(
                tenant.id = %self.parts.tenant, conn.id = %member.id(), error = %error,
                "A group was joined by order, and the layer has not confirmed it"
            );
        }
    }
}
