//! The channels of groups that gateways alone hear, for a layer whose events come another way.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use hashbrown::HashMap;
use parking_lot::Mutex;

use super::inbox::Inbox;
use super::pubsub::{Heard, LinkShare, PubSubEndpoints};
use super::{GroupHistories, LayerError};
use crate::ids::GroupName;
use crate::stores::redis::RedisStore;

/// The subscriptions of one layer to these channels. The default has none.
#[derive(Default)]
pub struct NoticeLines {
    /// In the order of the layer's hosts; empty if gateways tell each other of no group.
    lines: Box<[LinkShare]>,
    groups: Mutex<HashMap<GroupName, Heard>>,
    histories: Option<GroupHistories>,
}

impl NoticeLines {
    /// Makes the subscriptions of a layer on the servers of `stores`, in the order of its hosts. Notices go to `inbox`.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new(
        endpoints: &PubSubEndpoints,
        stores: &[Arc<RedisStore>],
        histories: GroupHistories,
        inbox: &Arc<Inbox>,
    ) -> Self {
        let lines = match histories.rules().have_notices() {
            true => endpoints.notice_lines(stores, histories.tenant(), inbox),
            false => Box::default(),
        };
        Self {
            lines,
            groups: Mutex::default(),
            histories: Some(histories),
        }
    }

    /// Returns the rules by which groups are recorded.
    pub(super) fn histories(&self) -> Option<&GroupHistories> {
        self.histories.as_ref()
    }

    /// Asks for the notices of a group, if it has any; returns once Redis has confirmed, and true if it had not before. `home` is the group's host, and the
    /// layer's own name of the group.
    ///
    /// # Errors
    /// [`LayerError::Unavailable`]; the link goes on trying.
    pub(super) async fn subscribe(
        &self,
        group: &GroupName,
        (host, channel): (usize, &str),
    ) -> Result<bool, LayerError> {
        let Some((line, notices)) = self.of(group, host, channel) else {
            return Ok(false);
        };
        let heard = self.groups.lock().entry_ref(group).or_default().clone();
        if heard.load(Ordering::Acquire) {
            return Ok(false);
        }
        line.listen_to_notices(notices, group, heard).await?;
        Ok(true)
    }

    /// Ends the wish for the notices of a group.
    pub(super) fn unsubscribe(&self, group: &GroupName, (host, channel): (usize, &str)) {
        if let Some((line, notices)) = self.of(group, host, channel) {
            self.groups.lock().remove(group);
            line.unsubscribe(notices);
        }
    }

    fn of(&self, group: &GroupName, host: usize, channel: &str) -> Option<(&LinkShare, Bytes)> {
        let line = self.lines.get(host)?;
        let notices = self.histories.as_ref()?.notices(group, channel)?;
        Some((line, notices.into()))
    }

    /// Returns true if every wish was answered and the servers take commands.
    pub(super) async fn ready(&self) -> bool {
        for line in &self.lines {
            if !line.ready().await {
                return false;
            }
        }
        true
    }
}
