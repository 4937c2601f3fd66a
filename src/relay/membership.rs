//! Groups that open sockets join and leave by an order: of a worker, or of a back end that calls the API.
//!
//! Such a socket is in the group at once. The layer confirms its subscription later, and a client that is told positions gets
//! that of the group then.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt as _, stream};

use super::Relay;
use crate::channel_layer::LayerError;
use crate::hub::{Joined, Member};
use crate::ids::GroupName;
use crate::tasks;

/// Sockets that were put into a group.
#[derive(Default)]
pub struct Additions {
    /// The sockets that were not in the group before.
    pub changed: u64,
    /// The sockets that are in `limits.groups_per_socket` groups already.
    pub over_limit: u64,
    /// Ends when events of the group reach the sockets; `None` if nothing changed. Hand it to [`begin`], also if its end does
    /// not matter: the layer learns of the subscription with its first poll.
    pub confirmed: Option<BoxFuture<'static, Result<(), LayerError>>>,
}

/// Runs `work` beside the caller. Its first step is done when this returns.
pub fn begin(mut work: BoxFuture<'static, ()>) {
    if (&mut work).now_or_never().is_none() {
        tasks::brief(work);
    }
}

impl Relay {
    /// Puts open sockets into a group. Those that have left the hub, or have no room, stay as they are.
    pub fn put_into(self: &Arc<Self>, members: &[Arc<Member>], group: &GroupName) -> Additions {
        let (mut added, mut told) = (Additions::default(), Vec::new());
        for member in members {
            if member.groups().contains(group) {
                continue;
            }
            if !self.has_room_for_group(member) {
                added.over_limit += 1;
                continue;
            }
            // Before it joins. A handshake that holds the group already tells the position itself.
            let tells = self.tells_position(member, group) && !member.outbound().holds(group);
            if tells {
                self.hold(member, std::slice::from_ref(group), |_| false);
            }
            match self.parts.hub.join(member, group) {
                Joined::New => {
                    self.parts.metrics.subscriptions.increment(1.0);
                    self.joined(member, group);
                    added.changed += 1;
                    told.extend(tells.then(|| member.clone()));
                }
                Joined::Already if tells => member.outbound().release(group),
                Joined::Already | Joined::Gone => {}
            }
        }
        if added.changed > 0 {
            added.confirmed = Some(self.clone().confirm(group.clone(), told).boxed());
        }
        added
    }

    /// Waits for the subscription, and tells these sockets the position of the group.
    async fn confirm(
        self: Arc<Self>,
        group: GroupName,
        told: Vec<Arc<Member>>,
    ) -> Result<(), LayerError> {
        let subscribed = self.parts.layer.subscribe(&group).await;
        let tell = async |member: Arc<Member>| match member.groups().contains(&group) {
            true => self.resume(&member, &group, None).await,
            // It has left meanwhile.
            false => member.outbound().release(&group),
        };
        stream::iter(told).for_each(tell).await;
        subscribed
    }

    /// Returns true if the client of the socket is told its position in the group.
    fn tells_position(&self, member: &Member, group: &GroupName) -> bool {
        let settings = self.settings.load();
        let route = settings.delivery(member);
        route.is_some_and(|route| route.delivery.resumes()) && self.has_history(group)
    }

    /// Takes the sockets out of a group; returns the number of those that were in it.
    pub fn take_out(&self, members: &[Arc<Member>], group: &GroupName) -> u64 {
        let mut left = 0;
        for member in members {
            left += u64::from(member.groups().contains(group));
            self.leave(member, group);
        }
        left
    }
}
