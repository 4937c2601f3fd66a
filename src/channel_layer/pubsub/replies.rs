//! The replies of Redis on a subscriber link: events go to the inboxes, confirmations and refusals to the wishes.

use std::sync::Arc;
use std::time::Instant;

use bytes::{Buf as _, Bytes, BytesMut};
use tracing::{info, warn};

use crate::error::{Dependency, ErrorKind};
use crate::metrics::{self, GapCause};
use crate::position::Position;
use crate::stores::misfit::UPGRADE_EACH;
use crate::stores::redis_keys::{CANARY_PATTERN, channel_of_notices, group_notices};

use super::super::inbox::{Incoming, Payload};
use super::super::link::canary::Flight;
use super::super::link::dial::{LinkError, kind_of_reply};
use super::super::link::resp::{Parser, RespReply};
use super::super::recorded::GroupNotice;
use super::super::target::Target;
use super::sent::OutOfStep;
use super::subscriber::Subscriber;
use super::subscriptions::{ChannelRole, ChannelRoute};

impl Subscriber {
    /// Takes every complete reply out of `input`.
    pub(super) fn take(
        &mut self,
        parser: &mut Parser,
        input: &mut BytesMut,
        canary: &mut Flight,
    ) -> Result<(), LinkError> {
        let read_at = Instant::now();
        let mut start = 0;
        loop {
            let (reply, used) = parser.next(&input[start..])?;
            start += used;
            let Some(reply) = reply else { break };
            match reply {
                RespReply::Message { channel, payload } => {
                    if channel == self.canary_channel {
                        canary.returned(payload);
                    }
                    self.deliver(channel, payload, read_at);
                }
                RespReply::Oversized { channel } => {
                    self.announced_for(&[]);
                    let routes = self.wishes.routes(channel).iter();
                    for route in routes.filter(|route| route.counts()) {
                        route.inbox.drop_oversized();
                    }
                }
                RespReply::Subscribed(channel) => self.confirmed(channel)?,
                RespReply::Unsubscribed(channel) => {
                    if let Some(channel) = self.wishes.ended(channel)? {
                        self.pass_on([channel]);
                    }
                }
                RespReply::Pong => self.wishes.ponged()?,
                RespReply::Error(text) => self.refused(text)?,
                RespReply::Replica | RespReply::Other => {}
            }
        }
        input.advance(start);
        Ok(())
    }

    fn deliver(&mut self, channel: &[u8], payload: &[u8], read_at: Instant) {
        let recorded = self.announced_for(channel);
        let (mut notice, mut is_plain) = (None, false);
        let routes = self.wishes.routes(channel).iter();
        for route in routes.filter(|route| route.counts()) {
            match route.role {
                ChannelRole::Events => {}
                ChannelRole::Recorded if recorded.is_some() => {}
                // Redis has not confirmed the channel of the positions, and the gap is told once it has.
                ChannelRole::Recorded if !self.hears_notices(route, channel) => continue,
                ChannelRole::Recorded => {}
                ChannelRole::Notices => {
                    notice = Some(payload);
                    continue;
                }
            }
            // The relay knows an event that comes again by its position.
            if recorded.is_none() {
                is_plain = true;
                if route.repeats(payload, read_at) {
                    route.inbox.push_missed(route.target.clone());
                    continue;
                }
            }
            // The payload is copied, not sliced: a slice would keep the whole read buffer alive while the event waits.
            let incoming = Incoming {
                target: route.target.clone(),
                payload: Payload::Encoded(Bytes::copy_from_slice(payload)),
                recorded: recorded.clone(),
                unrecorded: route.role == ChannelRole::Recorded && recorded.is_none(),
                read_at,
            };
            route.inbox.push(incoming, payload.len());
        }
        // The canary tells until when the link was heard.
        if let Some(recent) = &self.recent
            && (is_plain || channel == self.canary_channel)
        {
            recent.note(channel, payload, read_at);
        }
        if let Some(notice) = notice {
            self.take_notice(channel, notice, read_at);
        }
    }

    /// Returns the position that was announced for a message of `channel`. The message comes next behind the announcement,
    /// because both are sent in one step; if another one is next, the event is only in the history.
    fn announced_for(&mut self, channel: &[u8]) -> Option<Position> {
        let (notices, position) = self.announced.take()?;
        if channel_of_notices(&notices) == Some(channel) {
            return Some(position);
        }
        self.unheard(&notices, &position);
        None
    }

    /// Tells the relays of a position whose event did not come on this channel.
    fn unheard(&self, notices: &[u8], position: &Position) {
        for route in self.notice_routes(notices) {
            if let Target::Group(group) = &route.target {
                route.inbox.push_unheard(group.clone(), position.clone());
            }
        }
    }

    fn notice_routes(&self, channel: &[u8]) -> impl Iterator<Item = &ChannelRoute> {
        let routes = self.wishes.routes(channel).iter();
        routes.filter(|route| route.role == ChannelRole::Notices && route.counts())
    }

    /// Returns true if Redis has confirmed the channel of the positions of this group's events.
    fn hears_notices(&self, route: &ChannelRoute, channel: &[u8]) -> bool {
        let attachment = self.attachments.get(&route.attachment);
        let tenant = attachment.and_then(|attachment| attachment.layer.tenant.as_ref());
        let (Some(tenant), Ok(channel)) = (tenant, str::from_utf8(channel)) else {
            return false;
        };
        let notices = group_notices(tenant, channel);
        self.wishes.subscribed(notices.as_bytes())
    }

    /// Returns true if Redis has confirmed the channel of the events whose positions come on `notices`.
    fn hears_events_of(&self, notices: &[u8]) -> bool {
        channel_of_notices(notices).is_some_and(|events| self.wishes.subscribed(events))
    }

    fn take_notice(&mut self, channel: &[u8], message: &[u8], read_at: Instant) {
        match GroupNotice::parse(message) {
            Some(GroupNotice::Recorded(position)) => {
                let name = self.wishes.name(channel);
                self.announced = name.map(|name| (name, position));
            }
            Some(GroupNotice::Event(position, event)) => {
                for route in self.notice_routes(channel) {
                    let incoming = Incoming {
                        target: route.target.clone(),
                        payload: Payload::Encoded(Bytes::copy_from_slice(event)),
                        recorded: Some(position.clone()),
                        unrecorded: false,
                        read_at,
                    };
                    route.inbox.push(incoming, event.len());
                }
            }
            Some(GroupNotice::Presence(notice)) => {
                for route in self.notice_routes(channel) {
                    if let Target::Group(group) = &route.target {
                        let notice = Bytes::copy_from_slice(notice);
                        route.inbox.push_presence(group.clone(), notice);
                    }
                }
            }
            Some(GroupNotice::Hole(position)) => self.unheard(channel, &position),
            Some(GroupNotice::Unreadable) | None => {
                for route in self.notice_routes(channel) {
                    route.inbox.count_unreadable();
                }
            }
        }
    }

    fn confirmed(&mut self, channel: &[u8]) -> Result<(), LinkError> {
        let of_shard = self.misplaced.is_some();
        self.canary_denied &= channel != self.canary_channel;
        let late = self.wishes.confirmed(channel)?.iter();
        let late: Vec<_> = late
            .map(|late| (late.role, late.inbox.clone(), late.target.clone()))
            .collect();
        for (role, inbox, target) in late {
            match role {
                // The group's own channel has the same slot, and tells the same once it is confirmed.
                ChannelRole::Notices if of_shard && !self.hears_events_of(channel) => {}
                _ if of_shard => inbox.push_missed(target),
                _ => inbox.push_gap(GapCause::Link),
            }
        }
        if self.denied == 0 {
            return Ok(());
        }
        for route in self.wishes.routes(channel) {
            if let Some(attachment) = self.attachments.get_mut(&route.attachment)
                && std::mem::take(&mut attachment.denied)
            {
                self.denied -= 1;
                info!(
                    redis.endpoint = self.store.endpoint(),
                    "Redis grants {} again", attachment.layer.pattern
                );
            }
        }
        Ok(())
    }

    /// Hands channels over that another shard has.
    fn pass_on(&self, channels: impl IntoIterator<Item = Bytes>) {
        if let Some(misplaced) = &self.misplaced {
            let endpoint: Arc<str> = self.store.endpoint().into();
            for channel in channels {
                // Fails only while the process ends.
                drop(misplaced.send((endpoint.clone(), channel)));
            }
        }
    }

    /// Takes the refusal of the oldest command. An operator hears once of each layer that is denied a channel.
    fn refused(&mut self, text: &[u8]) -> Result<(), LinkError> {
        let kind = kind_of_reply(text);
        if kind == ErrorKind::Auth {
            return Err(LinkError::of_reply(text));
        }
        if self.misplaced.is_some() && is_redirection(text) {
            let channels = self.wishes.redirected(slot_named(text))?;
            self.pass_on(channels);
            return Ok(());
        }
        metrics::dependency_error(Dependency::Redis, kind);
        let refused = self.wishes.failed(kind)?;
        if refused.own && !std::mem::replace(&mut self.canary_denied, true) {
            warn!(
                redis.endpoint = self.store.endpoint(),
                error.kind = kind.label(),
                error = %String::from_utf8_lossy(text),
                "Redis refuses the canary's channel, so a deaf link goes unnoticed; {}",
                self.remedy(kind, CANARY_PATTERN)
            );
        }
        for attachment in refused.attachments {
            if let Some(attachment) = self.attachments.get_mut(&attachment)
                && !std::mem::replace(&mut attachment.denied, true)
            {
                self.denied += 1;
                let pattern = attachment.layer.pattern.clone();
                warn!(
                    redis.endpoint = self.store.endpoint(),
                    error.kind = kind.label(),
                    error = %String::from_utf8_lossy(text),
                    "Redis refuses a tenant's groups; {}",
                    self.remedy(kind, &pattern)
                );
            }
        }
        Ok(())
    }

    /// Returns the action on a refusal of channels with this pattern.
    fn remedy(&self, kind: ErrorKind, pattern: &str) -> String {
        let user = self.store.url().username().unwrap_or("default");
        match (kind, &self.misplaced) {
            (ErrorKind::Permission, Some(_)) => format!(
                "grant them: ACL SETUSER {user} +ssubscribe +sunsubscribe +spublish +ping &{pattern}"
            ),
            (ErrorKind::Permission, None) => format!(
                "grant them: ACL SETUSER {user} +subscribe +unsubscribe +publish +ping &{pattern}"
            ),
            // The server does not know the command.
            (ErrorKind::Protocol, Some(_)) => UPGRADE_EACH.to_owned(),
            (ErrorKind::Protocol, None) => {
                "the layer needs a Redis that has SUBSCRIBE, UNSUBSCRIBE and PUBLISH".to_owned()
            }
            _ => "trying again until it takes them".to_owned(),
        }
    }
}

/// Returns true if an error says that the node does not have the slot of the channels, or that no node has it at the moment.
fn is_redirection(text: &[u8]) -> bool {
    [&b"MOVED "[..], b"ASK ", b"TRYAGAIN ", b"CLUSTERDOWN "]
        .iter()
        .any(|code| text.starts_with(code))
}

/// Returns the slot that a redirection names: `MOVED 3999 127.0.0.1:6381`.
fn slot_named(text: &[u8]) -> Option<u16> {
    let word = text.split(|byte| *byte == b' ').nth(1)?;
    str::from_utf8(word).ok()?.parse().ok()
}

impl From<OutOfStep> for LinkError {
    fn from(_: OutOfStep) -> Self {
        Self::new(
            ErrorKind::Protocol,
            "Redis answered a command that was not sent",
        )
    }
}
