//! Gaps: events that may be missing, and the clients that are told.
//!
//! Groups with history read what is missing. A gap of the whole tenant is told to the sockets that are in another group too;
//! a gap of one group to its members, once its history has not what is missing.

use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use tokio::time::Instant;

use super::Relay;
use super::reports::GroupReport;
use super::turn::Turn;
use crate::channel_layer::Target;
use crate::close_code::CloseReason;
use crate::config::OnGap;
use crate::frame::{Frame, Opcode};
use crate::hub::{Group, Member, Pace, close_paced, walk};
use crate::ids::ConnectionId;
use crate::metrics::GapCause;
use crate::position::Position;
use crate::render::{EventPlace, gap_notice};
use crate::tasks;

/// Sockets closed per second with `on_gap = "close"`, so that their clients do not reconnect all at once.
const GAP_CLOSES_PER_SECOND: f64 = 300.0;
/// Gaps within this time are reported as one.
const GAP_TOLD_EVERY: Duration = Duration::from_secs(1);
/// Groups that are doubted in one step of a turn, as the fan-out of an event has a socket.
const DOUBTED_AT_ONCE: usize = 16;
/// Sockets that are told in the turn that finds a gap; the others are told in turns of their own.
const TOLD_AT_ONCE: usize = 64;
/// The message that clients get with `on_gap = "notify"`.
const GAP_NOTICE: &str = r#"{"type":"lockgate.gap"}"#;

/// The state of reporting gaps to clients.
#[derive(Default)]
pub(super) struct Gaps {
    /// The time of the last report.
    told: Option<Instant>,
    /// The newest gap that is not reported yet.
    untold: Option<GapCause>,
}

impl Gaps {
    /// Takes the gap that is to be reported now.
    fn next_report(&mut self) -> Option<GapCause> {
        let since = self.told.map(|told| told.elapsed());
        if since.is_some_and(|since| since < GAP_TOLD_EVERY) {
            return None;
        }
        let cause = self.untold.take()?;
        self.told = Some(Instant::now());
        Some(cause)
    }
}

/// The sockets to close because of gaps.
#[derive(Default)]
pub(super) struct GapCloses {
    waiting: HashMap<ConnectionId, Arc<Member>>,
    /// A task closes sockets, and takes the waiting ones after them.
    runs: bool,
}

impl GapCloses {
    /// Returns the sockets that wait; `None` ends the task.
    fn next(&mut self) -> Option<Vec<Arc<Member>>> {
        let waiting = std::mem::take(&mut self.waiting);
        self.runs = !waiting.is_empty();
        self.runs.then(|| waiting.into_values().collect())
    }
}

impl Relay {
    /// Notes a gap. Overload makes hundreds of gaps, so [`GAP_TOLD_EVERY`] bounds the reports; the last gap is always
    /// reported, so that clients learn of every missing event.
    pub(super) async fn gap(self: &Arc<Self>, cause: GapCause, pace: &mut Pace) {
        if let Some(presence) = &self.presence {
            presence.doubt();
        }
        let groups = self.parts.hub.groups().with_history();
        for groups in groups.chunks(DOUBTED_AT_ONCE) {
            for group in groups {
                if group.history().doubt() {
                    self.start_reader(group);
                }
            }
            pace.spend(1).await;
        }
        self.gaps.lock().untold = Some(cause);
        self.tell_gap(pace).await;
    }

    /// Notes that events for one group or socket may have been missed. A group with history reads them.
    pub(super) async fn missed(self: &Arc<Self>, target: Target, turn: &mut Turn) {
        match target {
            Target::Group(name) => {
                if let Some(presence) = &self.presence {
                    presence.doubt();
                }
                let Some(group) = self.parts.hub.groups().get(&name) else {
                    return;
                };
                if group.known_history().is_none() {
                    self.tell_missed(&group, &mut turn.pace).await;
                } else if group.history().doubt() {
                    self.start_reader(&group);
                }
            }
            Target::Socket(channel) => {
                let member = self.channels.get(channel.0);
                let member = member.filter(|member| {
                    let settings = self.settings.load();
                    let route = settings.delivery(member);
                    route.is_some_and(|route| route.tells_channel)
                });
                self.tell_members(member.into_iter().collect());
            }
            Target::Inside | Target::Members(_) => {
                self.gap(GapCause::Link, &mut turn.pace).await;
            }
        }
    }

    /// Tells the members of a group without history that its events may have been missed.
    async fn tell_missed(self: &Arc<Self>, group: &Group, pace: &mut Pace) {
        self.parts.metrics.unhealed_gap(GapCause::Link);
        tracing::debug!(
            tenant.id = %self.parts.tenant, group.name = %group.name(), count = group.len(),
            "Events of a group may have been missed"
        );
        let members = group.members();
        pace.spend(members.len()).await;
        self.tell_members(members);
    }

    /// Tells sockets of a gap as `on_gap` says.
    fn tell_members(self: &Arc<Self>, members: Vec<Arc<Member>>) {
        match self.settings.load().on_gap {
            OnGap::Count => {}
            OnGap::Notify => {
                let notice = Frame::encode(Opcode::Text, GAP_NOTICE.as_bytes(), self.accounting());
                let mut members = members.into_iter();
                for member in members.by_ref().take(TOLD_AT_ONCE) {
                    member.outbound().push_frame(&notice);
                }
                if members.len() > 0 {
                    // Ten thousand in one turn would take milliseconds from other tenants.
                    tasks::brief(async move {
                        let mut pace = Pace::spent();
                        for member in members {
                            member.outbound().push_frame(&notice);
                            pace.spend(1).await;
                        }
                    });
                }
            }
            OnGap::Close => self.close_for_gap(members),
        }
    }

    pub(super) async fn tell_gap(self: &Arc<Self>, pace: &mut Pace) {
        let Some(cause) = self.gaps.lock().next_report() else {
            return;
        };
        let mut members = Vec::new();
        for member in self.parts.hub.members() {
            if !self.is_healed(&member) {
                members.push(member);
            }
            pace.spend(1).await;
        }
        if members.is_empty() && !self.parts.hub.is_empty() {
            return;
        }
        if !members.is_empty() {
            self.parts.metrics.unhealed_gap(cause);
        }
        tracing::warn!(
            tenant.id = %self.parts.tenant, cause = ?cause, count = members.len(), "Events may have been missed"
        );
        self.tell_members(members);
    }

    /// Returns true if what the socket missed is read from the histories of its groups. An event that was sent to its own
    /// channel is in none.
    fn is_healed(&self, member: &Member) -> bool {
        let settings = self.settings.load();
        let route = settings.delivery(member);
        route.is_some_and(|route| !route.tells_channel) && member.is_healed()
    }

    /// Closes sockets, paced. Those of a gap that comes while others are closed follow them.
    fn close_for_gap(self: &Arc<Self>, members: Vec<Arc<Member>>) {
        let mut closing = self.closing.lock();
        let members = members.into_iter().map(|member| (member.id(), member));
        closing.waiting.extend(members);
        if closing.waiting.is_empty() || std::mem::replace(&mut closing.runs, true) {
            return;
        }
        drop(closing);
        let relay = self.clone();
        tasks::brief(async move {
            loop {
                let next = relay.closing.lock().next();
                let Some(members) = next else { return };
                close_paced(members, GAP_CLOSES_PER_SECOND, CloseReason::EventsLost).await;
            }
        });
    }

    /// Tells the members of a group that events before `at` are missing for good. Clients that resume are told in any case,
    /// the others as `on_gap` says.
    pub(super) async fn tell_group_gap(
        self: &Arc<Self>,
        (group, cause): (&Group, GapCause),
        at: Option<&Position>,
        pace: &mut Pace,
    ) {
        self.parts.metrics.unhealed_gap(cause);
        if self.is_reported_now(GroupReport::Lost) {
            tracing::warn!(
                tenant.id = %self.parts.tenant, group.name = %group.name(), count = group.len(),
                "Events of a group were missed and its history does not have them"
            );
        }
        let (settings, name) = (self.settings(), group.name());
        let gap = gap_notice(name, self.accounting());
        let place = at.map(|at| EventPlace { group: name, at });
        let position = place.map(|place| place.notice(Some(false), self.accounting()));
        let mut closes = Vec::new();
        let tell = |member: &Arc<Member>| {
            let resumes = settings
                .delivery(member)
                .is_some_and(|route| route.delivery.resumes());
            let outbound = member.outbound();
            match settings.on_gap {
                // It waits behind the replay, which may have ended before this place. A replay that goes beyond it tells the
                // same, and this is then forgotten with the events up to there.
                _ if resumes && outbound.holds(name) => {
                    if let (Some(at), Some(position)) = (at, &position) {
                        outbound.push_recorded(&gap, name, at);
                        outbound.push_recorded(position, name, at);
                    }
                }
                _ if resumes => {
                    outbound.push_frame(&gap);
                    if let Some(position) = &position {
                        outbound.push_frame(position);
                    }
                }
                OnGap::Count => {}
                OnGap::Notify => drop(outbound.push_frame(&gap)),
                OnGap::Close => closes.push(member.clone()),
            }
        };
        let written = walk(group, pace, tell).await;
        self.count_written(&written);
        if !closes.is_empty() {
            self.close_for_gap(closes);
        }
    }
}
