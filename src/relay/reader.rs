//! Reads the history of a group: for all its members to fill a hole, and for the sockets that come back.
//!
//! A group has one reader at most, which ends when no work is left. What wants a read meanwhile waits and is served together.
//! A read begins after Redis has confirmed the subscription, so that each event is in what was read or comes live.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Relay;
use super::recorded::HealingPage;
use super::reports::GroupReport;
use super::window::Replays;
use crate::budget::{HeldBytes, HeldKind};
use crate::channel_layer::{HistoryFrom, HistoryPage, Incoming, LayerError, Payload, Target};
use crate::error::ErrorKind;
use crate::event::{DecodeError, Event};
use crate::hub::{AfterPage, Group, Job, Member, Pace, ReadWish, TrackPage, TrackedEvent};
use crate::ids::{ConnectionId, GroupName};
use crate::metrics::GapCause;
use crate::position::Position;
use crate::stores::backoff::Backoff;
use crate::tasks;

/// Groups of a tenant that are read at the same time.
pub(super) const READERS: usize = 32;
/// The least time between two reads for sockets that come back, where more than one came within it: they share a read.
const GATHERED: Duration = Duration::from_millis(25);
/// The time between two looks at sockets that wait for room.
pub(super) const LOOK: Duration = Duration::from_millis(20);
/// An event that was read must come live within this time. Then it is missing, and is read for all.
const OVERDUE: Duration = Duration::from_secs(1);
/// The first and the longest pause between failed reads.
const PAUSES: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(2)];
/// A history that cannot be read for this time is a gap. A failover takes 15 s in a cluster with the defaults of Redis, 30 s with
/// those of Sentinel, and the vote: clients that come back meanwhile lose nothing, since nothing is recorded either.
const AWAY: Duration = Duration::from_secs(60);
/// The same where Redis answers that the user may not read it, which time alone does not mend.
const REFUSED: Duration = Duration::from_secs(5);
/// The longest wait of a handshake for the position of its group.
const KNOWN_WITHIN: Duration = Duration::from_secs(2);

/// The time between two looks at groups without events. Their position lives for an hour at least, and two looks are well
/// within it: the first one only notes that a group is idle.
pub(super) const IDLE_LOOK: Duration = Duration::from_secs(900);

/// The state of a group's reader between two of its jobs.
pub(super) struct GroupReader {
    group: Arc<Group>,
    failures: Failures,
    replays: Replays,
    looked: Instant,
}

impl GroupReader {
    /// Makes one on the heap: it goes back and forth between the line and its task.
    fn new(group: &Arc<Group>) -> Box<Self> {
        Box::new(Self {
            group: group.clone(),
            failures: Failures::default(),
            replays: Replays::default(),
            looked: Instant::now(),
        })
    }

    /// Returns the next job. Looks after the sockets that wait also while there is work: one that reads on and on must not keep
    /// others waiting that have room again.
    fn next_job(&mut self) -> Job {
        if self.looked.elapsed() >= LOOK {
            self.looked = Instant::now();
            let before = self.looked.checked_sub(OVERDUE);
            self.group.history().look(before.unwrap_or(self.looked));
        }
        self.group.history().next_job()
    }
}

/// The failures of a reader in a row.
pub(super) struct Failures {
    since: Option<Instant>,
    backoff: Backoff,
    told: bool,
}

impl Default for Failures {
    fn default() -> Self {
        let [first, longest] = PAUSES;
        Self {
            since: None,
            backoff: Backoff::between(first, longest),
            told: false,
        }
    }
}

/// A socket that has not joined its group yet.
pub(super) struct Joining {
    pub(super) group: Arc<Group>,
    member: ConnectionId,
}

impl Drop for Joining {
    fn drop(&mut self) {
        self.group.history().joined(self.member);
    }
}

/// Returns the time after which a history that cannot be read for this reason is a gap.
pub(super) fn patience(error: &LayerError) -> Duration {
    match error.kind() {
        Some(ErrorKind::Permission) => REFUSED,
        _ => AWAY,
    }
}

impl Failures {
    /// Notes a failure, and returns the wait before the next attempt.
    pub(super) fn wait(&mut self) -> Duration {
        self.since.get_or_insert_with(Instant::now);
        self.backoff.pause()
    }

    /// Returns true once, when it has lasted.
    fn is_to_be_told(&mut self, error: &LayerError) -> bool {
        let lasts = |since: Instant| since.elapsed() >= patience(error);
        !self.told && self.since.is_some_and(lasts) && !std::mem::replace(&mut self.told, true)
    }
}

impl Relay {
    /// Returns true if events of the group are recorded.
    pub fn has_history(&self, group: &GroupName) -> bool {
        self.parts.rules.history(group).is_some()
    }

    /// Notes that a socket joins a group with history, until the result is dropped.
    pub(super) fn joining(&self, member: &Member, group: &GroupName) -> Option<Joining> {
        let group = self.parts.hub.groups().get(group)?;
        self.has_history(group.name()).then(|| {
            group.history().joins(member.id());
            let member = member.id();
            Joining { group, member }
        })
    }

    /// Waits until the position of a group with history is known, so that any hole after it is seen. Does not wait for a
    /// history that cannot be read.
    pub(super) async fn know(self: &Arc<Self>, group: &Arc<Group>) {
        if group.history().is_known() {
            return;
        }
        let (asked, known) = oneshot::channel();
        self.wish(group, ReadWish::Know(asked));
        tokio::time::timeout(KNOWN_WITHIN, known).await.ok();
    }

    /// Reads the positions of groups that had no event of late, which renews their life. Without it the position of a group that
    /// is silent for long would expire under its members, and its next event, in a new epoch, would look like a loss.
    pub(super) fn renew_idle(self: &Arc<Self>) {
        let mut groups = self.parts.hub.groups().with_history();
        groups.retain(|group| !group.is_empty() && group.history().idles());
        if groups.is_empty() {
            return;
        }
        let relay = self.clone();
        tasks::brief(async move {
            for group in groups {
                // What cannot be read now is read at the next look, or by the next event.
                if let Ok(Some(page)) = relay.read_page(&group, HistoryFrom::END).await
                    && group.history().found(&page.end)
                {
                    relay.start_reader(&group);
                }
            }
        });
    }

    pub(super) fn wish(self: &Arc<Self>, group: &Arc<Group>, wish: ReadWish) {
        if group.history().wish(wish) {
            let reader = GroupReader::new(group);
            tasks::brief(self.clone().serve_sockets(reader, Vec::new()));
        }
    }

    /// Starts the reader of a group whose live events may have a hole.
    pub(super) fn start_reader(self: &Arc<Self>, group: &Arc<Group>) {
        self.read_in_turn(GroupReader::new(group), Instant::now());
    }

    /// Reads one page for all members of a group. Sockets that wait for the history get a task of their own.
    pub(super) async fn read_turn(self: &Arc<Self>, mut reader: Box<GroupReader>) {
        let group = reader.group.clone();
        if reader.failures.since.is_some() {
            let wishes = group.history().take_wishes();
            if !wishes.is_empty() {
                return tasks::brief(self.clone().serve_sockets(reader, wishes));
            }
        }
        let from = match reader.next_job() {
            Job::Done => return,
            Job::Wait => return tasks::brief(self.clone().serve_sockets(reader, Vec::new())),
            Job::Batch(wishes) => {
                return tasks::brief(self.clone().serve_sockets(reader, wishes));
            }
            Job::Heal(from) => from,
        };
        let wait = match self.heal(&group, from).await {
            Ok(ControlFlow::Continue(())) => {
                reader.failures = Failures::default();
                ControlFlow::Continue(Duration::ZERO)
            }
            Ok(ControlFlow::Break(())) => ControlFlow::Break(()),
            Err(error) => self.failed(&group, &mut reader.failures, &error).await,
        };
        if let ControlFlow::Continue(wait) = wait {
            self.read_in_turn(reader, Instant::now() + wait);
        }
    }

    /// Serves the sockets that wait for the history of a group, until there are none or its live events have a hole.
    async fn serve_sockets(
        self: Arc<Self>,
        mut reader: Box<GroupReader>,
        mut wishes: Vec<ReadWish>,
    ) {
        let group = reader.group.clone();
        loop {
            if !wishes.is_empty() {
                let began = Instant::now();
                let several = wishes.iter().filter(|wish| wish.is_new()).count() > 1;
                self.serve_wishes(&group, wishes, &mut reader.replays).await;
                // A socket that takes every page, or a route that shows none of its events, asks on and on.
                if let Some(window) = &mut reader.replays.window {
                    window.bound();
                }
                if several {
                    tokio::time::sleep(GATHERED.saturating_sub(began.elapsed())).await;
                }
            }
            wishes = match reader.next_job() {
                Job::Done => return,
                Job::Heal(_) => return self.read_in_turn(reader, Instant::now()),
                Job::Batch(wishes) => wishes,
                Job::Wait => {
                    self.keep_needed(&group, &mut reader.replays);
                    tokio::time::sleep(LOOK).await;
                    Vec::new()
                }
            };
        }
    }

    /// Reads one page for all members. Breaks if there is nothing to read any more.
    async fn heal(
        self: &Arc<Self>,
        group: &Arc<Group>,
        from: Position,
    ) -> Result<ControlFlow<()>, LayerError> {
        let page = match self.read_page(group, HistoryFrom::from(&from)).await? {
            Some(page) => page,
            None => {
                self.give_up(group);
                return Ok(ControlFlow::Break(()));
            }
        };
        let held = self.held(&page);
        let (mut entries, mut pace) = (Vec::with_capacity(page.entries.len()), Pace::spent());
        for entry in page.entries {
            let event = TrackedEvent {
                event: self.decode_recorded(group.name(), entry.payload),
                healed: true,
                source: self.accounting(),
                skipped: None,
                held: None,
            };
            entries.push((entry.offset, event));
            pace.spend(1).await;
        }
        let (after, delivered) = oneshot::channel();
        let page = HealingPage {
            page: TrackPage {
                end: page.end,
                past: page.past,
                entries,
                more: page.more,
            },
            group: group.clone(),
            after,
            held,
        };
        // Without the relay's task the tenant is gone.
        if self.pages.sender.send(page).await.is_err() {
            self.give_up(group);
            return Ok(ControlFlow::Break(()));
        }
        match delivered.await {
            Ok(AfterPage::Live | AfterPage::ReadOn) => {}
            Ok(AfterPage::EndEpoch(lost)) => {
                self.parts.layer.renew_history(group.name(), &lost).await?;
                group.history().epoch_ended();
            }
            Err(_) => {
                self.give_up(group);
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Returns the wait after a failed read. Breaks if the group has no members any more.
    async fn failed(
        self: &Arc<Self>,
        group: &Arc<Group>,
        failures: &mut Failures,
        error: &LayerError,
    ) -> ControlFlow<(), Duration> {
        if group.is_empty() {
            self.give_up(group);
            return ControlFlow::Break(());
        }
        let is_first = failures.since.is_none();
        let wait = failures.wait();
        if is_first && self.is_reported_now(GroupReport::Unread) {
            tracing::warn!(
                tenant.id = %self.parts.tenant, group.name = %group.name(), error = %error,
                "Could not read missing events from the history of a group; trying again"
            );
        }
        if failures.is_to_be_told(error) {
            let at = group.history().at();
            self.parts.metrics.gap(GapCause::History);
            let mut pace = Pace::default();
            let lost = GapCause::History;
            self.tell_group_gap((group, lost), at.as_ref(), &mut pace)
                .await;
        }
        ControlFlow::Continue(wait)
    }

    /// Ends the work for a group that has no history any more. The sockets that wait get their live events.
    pub(super) fn give_up(&self, group: &Group) {
        for member in group.history().forget() {
            member.outbound().release(group.name());
        }
    }

    /// Reads one page, once the subscription of the group is confirmed.
    pub(super) async fn read_page(
        &self,
        group: &Group,
        from: HistoryFrom,
    ) -> Result<Option<HistoryPage>, LayerError> {
        // The semaphore is never closed.
        let _permit = self.readers.acquire().await;
        let (layer, name) = (&self.parts.layer, group.name());
        let subscribed = layer.subscribe(name).await;
        // The last member may have left meanwhile, and would not end this subscription.
        let groups = self.parts.hub.groups();
        groups.if_absent(name, || layer.unsubscribe(name));
        subscribed?;
        self.history(name, from).await
    }

    /// Reads one page of a group's history; `None` if the group has none. Values that are not readable are counted.
    ///
    /// # Errors
    /// [`LayerError`] if the layer cannot be read.
    pub async fn history(
        &self,
        group: &GroupName,
        from: HistoryFrom,
    ) -> Result<Option<HistoryPage>, LayerError> {
        let page = self.parts.layer.history(group, from).await?;
        if let Some(page) = page.as_ref().filter(|page| page.unreadable > 0) {
            self.not_readable(group, page.unreadable);
        }
        Ok(page)
    }

    /// Counts a page while it is in work.
    pub(super) fn held(&self, page: &HistoryPage) -> HeldBytes {
        let bytes = page.entries.iter().map(|entry| entry.payload.size()).sum();
        HeldBytes::of(&self.parts.budget, HeldKind::History, bytes)
    }

    /// Returns the event of a recorded payload; `None` if it is none, which is counted.
    pub(super) fn decode_recorded(
        &self,
        group: &GroupName,
        payload: Payload,
    ) -> Option<Arc<Event>> {
        let decoded = payload.decode(self.parts.layer.codec());
        let event = decoded.and_then(|event| match event.is_dispatchable() {
            true => Ok(event),
            false => Err(DecodeError::NoType),
        });
        let target = || Target::Group(group.clone());
        event
            .inspect_err(|error| self.not_decoded(&target(), error))
            .ok()
    }

    /// Returns the event of a live message; `None` if it is none, which is counted.
    pub(super) fn decode(&self, incoming: Incoming) -> Option<Arc<Event>> {
        let target = incoming.target.clone();
        let opened = self.parts.layer.open(incoming);
        let opened = opened.inspect_err(|error| self.not_decoded(&target, error));
        let (_, event) = opened.ok()??;
        if !event.is_dispatchable() {
            self.not_decoded(&target, &DecodeError::NoType);
            return None;
        }
        Some(event)
    }
}
