//! Sockets join groups and leave them: in the hub first, then in the channel layer.
//!
//! A group's subscription outlives its last socket here by [`super::lingering::LINGER`].

use std::sync::Arc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Relay;
use crate::channel_layer::LayerError;
use crate::hub::{Joined, Left, Member};
use crate::ids::GroupName;
use crate::metrics::DropCause;

impl Relay {
    /// Returns true if the socket may join one more group. Counts the refusal if it may not.
    pub fn has_room_for_group(&self, member: &Member) -> bool {
        let most = self.limits().groups_per_socket as usize;
        let has_room = most == 0 || member.groups().len() < most;
        if !has_room {
            self.parts.metrics.dropped(DropCause::Limit);
            self.parts.metrics.rate_limited("groups_per_socket");
        }
        has_room
    }

    /// Puts the socket into the group. Events published after this returns reach the socket.
    ///
    /// # Errors
    /// Fails if the layer does not acknowledge in time. The socket is in the group even then;
    /// [`Relay::unregister`] takes it out.
    pub async fn join(
        self: &Arc<Self>,
        member: &Arc<Member>,
        group: &GroupName,
    ) -> Result<(), LayerError> {
        if !self.enter_hub(member, group) {
            return Ok(());
        }
        let joining = self.joining(member, group);
        self.follow(member, group).await?;
        if let Some(joining) = joining {
            self.know(&joining.group).await;
        }
        Ok(())
    }

    /// Puts the socket into the group as [`Relay::join`] does. Holes in its events are seen from the first one on.
    ///
    /// # Errors
    /// As [`Relay::join`].
    pub async fn add_to_group(
        &self,
        member: &Arc<Member>,
        group: &GroupName,
    ) -> Result<(), LayerError> {
        match self.enter_hub(member, group) {
            true => self.follow(member, group).await,
            false => Ok(()),
        }
    }

    /// Puts the socket into the group in the hub: `expire_lingering` must see it before the layer is asked. Returns false if the
    /// socket is gone: no member would be left to end the subscription.
    fn enter_hub(&self, member: &Arc<Member>, group: &GroupName) -> bool {
        let joined = self.parts.hub.join(member, group);
        if joined == Joined::New {
            self.parts.metrics.subscriptions.increment(1.0);
        }
        joined != Joined::Gone
    }

    /// Waits for the subscription of a group that the socket has entered.
    async fn follow(&self, member: &Member, group: &GroupName) -> Result<(), LayerError> {
        let subscribed = self.parts.layer.subscribe(group).await;
        self.joined(member, group);
        subscribed
    }

    pub(super) fn joined(&self, member: &Member, group: &GroupName) {
        if let Some(presence) = &self.presence {
            presence.joined(member, group, &*self.parts.layer);
        }
    }

    /// Takes the socket out of one group.
    pub fn leave(&self, member: &Member, group: &GroupName) {
        self.forget(self.parts.hub.leave(member, group));
        // Nothing is told to a socket that waits for its position in the group.
        member.outbound().leave(group);
        if let Some(presence) = &self.presence {
            presence.left(member, group);
        }
    }

    /// Takes the socket out of the hub and of all its groups, and ends the tasks that wait for its end.
    pub fn unregister(&self, member: &Member) {
        let left = self.parts.hub.unregister(member);
        self.see_out(member, left);
    }

    /// Takes a socket that says goodbye out of the hub as [`Self::unregister`] does. [`Self::forget_dismissed`] tells its end.
    pub fn dismiss(&self, member: &Member) {
        let left = self.parts.hub.dismiss(member);
        self.see_out(member, left);
    }

    /// Forgets a socket that was dismissed, and whose queue has ended since.
    pub fn forget_dismissed(&self, member: &Member) {
        self.parts.hub.forget_dismissed(member);
        self.lifetimes.end(member);
    }

    fn see_out(&self, member: &Member, left: Left) {
        self.forget(left);
        if let Some(presence) = &self.presence {
            presence.closed(member);
        }
        self.lifetimes.end(member);
    }

    /// Returns the token that is cancelled once the socket is closed.
    pub fn end_of(&self, member: &Member) -> CancellationToken {
        self.lifetimes.of(member)
    }

    fn forget(&self, left: Left) {
        self.parts
            .metrics
            .subscriptions
            .decrement(left.memberships as f64);
        if !left.emptied.is_empty() {
            self.lingering.lock().add(left.emptied, Instant::now());
        }
    }

    /// Unsubscribes groups that have been empty for [`super::lingering::LINGER`].
    pub(super) fn expire_lingering(&self) {
        let now = Instant::now();
        let mut lingering = self.lingering.lock();
        while let Some(group) = lingering.expired(now) {
            // Under the lock of the groups: a socket that joins the group now subscribes after this.
            self.parts.hub.groups().remove_if_empty(&group, || {
                self.parts.layer.unsubscribe(&group);
                if let Some(presence) = &self.presence {
                    presence.emptied(&group);
                }
            });
        }
    }
}
