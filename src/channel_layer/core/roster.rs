//! The groups that this replica has joined, each with the number that stands for it in channel names: state without IO.

use std::sync::Arc;

use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::error::ErrorKind;
use crate::ids::GroupName;

use super::idle::IdleGroup;
use super::names::Names;

/// Receives the outcome of a join.
type Confirmed = oneshot::Receiver<Result<(), ErrorKind>>;

struct Membership {
    number: u64,
    /// Redis has confirmed it.
    joined: bool,
    /// Redis has confirmed it at some time.
    was_joined: bool,
    /// No socket is in it, and it is left at this time.
    idle_until: Option<Instant>,
    /// `None`: not each event that was sent to it has been heard of since it was moved the last time.
    watch: Option<Watch>,
    /// The number of interruptions of the watch.
    interruptions: u64,
    /// The task of the memberships was told to join it.
    ordered: bool,
    waiters: Vec<oneshot::Sender<Result<(), ErrorKind>>>,
}

/// The time for which this process has known each event of a group, at the moment in which the event is sent.
#[derive(Clone, Copy)]
enum Watch {
    /// Since the group's events were moved, and still.
    On,
    /// Until this time.
    Until(Instant),
}

/// The state of a group's watch before its events are moved.
#[derive(Clone, Copy)]
pub(super) struct WatchTicket {
    number: u64,
    interruptions: u64,
    joined: bool,
    /// The time up to which each event was known; `None`: never.
    pub(super) known: Option<Instant>,
}

impl Membership {
    fn interrupt(&mut self, at: Instant) {
        self.interruptions += 1;
        self.watch = self.watch.map(|watch| match watch {
            Watch::On => Watch::Until(at),
            Watch::Until(before) => Watch::Until(before.min(at)),
        });
    }
}

#[derive(Default)]
struct JoinedGroups {
    /// Numbers are never used twice, so a late message for a group that was left reaches no other group.
    last_number: u64,
    by_name: HashMap<GroupName, Membership>,
    by_number: HashMap<u64, GroupName>,
}

/// The wished memberships and their state.
#[derive(Default)]
pub(super) struct GroupRoster {
    groups: Mutex<JoinedGroups>,
}

/// The outcome of a wish.
pub(super) enum Wish {
    /// The replica is in the group.
    Joined,
    /// The group is being joined.
    Joining(Confirmed),
    /// The caller has to order the join.
    Order(Confirmed),
}

impl GroupRoster {
    /// Wishes for a group.
    pub(super) fn want(&self, group: &GroupName) -> Wish {
        let mut groups = self.groups.lock();
        let JoinedGroups {
            last_number,
            by_name,
            by_number,
        } = &mut *groups;
        let membership = by_name.entry_ref(group).or_insert_with(|| {
            *last_number += 1;
            by_number.insert(*last_number, group.clone());
            Membership {
                number: *last_number,
                joined: false,
                was_joined: false,
                idle_until: None,
                watch: None,
                interruptions: 0,
                ordered: false,
                waiters: Vec::new(),
            }
        });
        membership.idle_until = None;
        if membership.joined {
            return Wish::Joined;
        }
        let (waiter, confirmed) = oneshot::channel();
        // During an outage handshakes come and give up. Their waiters are removed here, or they would pile up.
        membership.waiters.retain(|waiter| !waiter.is_closed());
        membership.waiters.push(waiter);
        if std::mem::replace(&mut membership.ordered, true) {
            Wish::Joining(confirmed)
        } else {
            Wish::Order(confirmed)
        }
    }

    /// Ends the wish; returns the number that the group had.
    pub(super) fn unwant(&self, group: &GroupName) -> Option<u64> {
        let mut groups = self.groups.lock();
        let membership = groups.by_name.remove(group)?;
        groups.by_number.remove(&membership.number);
        Some(membership.number)
    }

    /// Ends the wish at `until`; returns the number that the group has. `None` if Redis has never confirmed it: then it stays as
    /// it is.
    pub(super) fn idle(&self, group: &GroupName, until: Instant) -> Option<u64> {
        let mut groups = self.groups.lock();
        let membership = groups.by_name.get_mut(group)?;
        membership.was_joined.then(|| {
            membership.idle_until = Some(until);
            membership.number
        })
    }

    /// Ends a wish whose time is over; false if the group was wished for again.
    pub(super) fn end_idle(&self, (group, number, until): &IdleGroup) -> bool {
        let mut groups = self.groups.lock();
        let is_it = groups.by_name.get(group).is_some_and(|membership| {
            membership.number == *number && membership.idle_until == Some(*until)
        });
        if is_it {
            groups.by_name.remove(group);
            groups.by_number.remove(number);
        }
        is_it
    }

    /// Returns the state of a group's watch; `None` if it is not wished for. `asked_at` is the time since which the reading link may
    /// not have heard of events, taken before the call.
    pub(super) fn watch(
        &self,
        group: &GroupName,
        asked_at: Option<Instant>,
    ) -> Option<WatchTicket> {
        let groups = self.groups.lock();
        let membership = groups.by_name.get(group)?;
        Some(WatchTicket {
            number: membership.number,
            interruptions: membership.interruptions,
            joined: membership.joined,
            known: { membership.watch.zip(asked_at) }.map(|(watch, asked_at)| match watch {
                Watch::On => asked_at,
                Watch::Until(at) => at.min(asked_at),
            }),
        })
    }

    /// Notes that all events that waited were moved, after the ticket was taken.
    pub(super) fn watched(&self, group: &GroupName, ticket: WatchTicket) {
        let mut groups = self.groups.lock();
        if ticket.joined
            && let Some(membership) = groups.by_name.get_mut(group)
            && (membership.number, membership.interruptions)
                == (ticket.number, ticket.interruptions)
        {
            membership.watch = Some(Watch::On);
        }
    }

    /// Notes that the events that wait could not be moved.
    pub(super) fn not_moved(&self, group: &GroupName) {
        if let Some(membership) = self.groups.lock().by_name.get_mut(group) {
            membership.interrupt(Instant::now());
        }
    }

    /// Notes that copies of events may be missing since `at`.
    pub(super) fn interrupt(&self, shard: &HostNumber, at: Instant) {
        let mut groups = self.groups.lock();
        for (name, membership) in &mut groups.by_name {
            if shard.has(name) {
                membership.interrupt(at);
            }
        }
    }

    /// Returns true if no socket is in the group, and events may have been missed since it was moved the last time.
    pub(super) fn is_idle_and_unsure(&self, group: &GroupName) -> bool {
        let groups = self.groups.lock();
        let membership = groups.by_name.get(group);
        membership.is_some_and(|membership| {
            membership.idle_until.is_some() && !matches!(membership.watch, Some(Watch::On))
        })
    }

    /// Returns the group with this number, if it is wished for.
    pub(super) fn group(&self, number: u64) -> Option<GroupName> {
        self.groups.lock().by_number.get(&number).cloned()
    }

    /// Returns the number of a group, if it is wished for.
    pub(super) fn number(&self, group: &GroupName) -> Option<u64> {
        self.groups.lock().by_name.get(group).map(|one| one.number)
    }

    /// Notes that Redis has the membership; `added` is true if it had not before. Returns true if it counted as joined before.
    pub(super) fn joined(&self, group: &GroupName, number: u64, added: bool) -> bool {
        let mut groups = self.groups.lock();
        let Some(membership) = groups.by_name.get_mut(group) else {
            return false;
        };
        if membership.number != number {
            return false;
        }
        for waiter in std::mem::take(&mut membership.waiters) {
            let _caller_is_gone = waiter.send(Ok(())).is_err();
        }
        if added {
            membership.watch = None;
            membership.interruptions += 1;
        }
        membership.was_joined = true;
        std::mem::replace(&mut membership.joined, true)
    }

    /// Notes that Redis refuses the membership; the next wish is an order again.
    pub(super) fn refused(&self, group: &GroupName, kind: ErrorKind) {
        let mut groups = self.groups.lock();
        if let Some(membership) = groups.by_name.get_mut(group) {
            membership.joined = false;
            membership.ordered = false;
            membership.interrupt(Instant::now());
            for waiter in std::mem::take(&mut membership.waiters) {
                let _caller_is_gone = waiter.send(Err(kind)).is_err();
            }
        }
    }

    /// Notes that a host may have lost its memberships, and messages since `at`. New wishes wait until the group is joined again; the caller sees to
    /// that. Returns true if there was a membership.
    pub(super) fn doubt(&self, shard: &HostNumber, at: Instant) -> bool {
        let mut groups = self.groups.lock();
        let mut any = false;
        for (name, membership) in &mut groups.by_name {
            if shard.has(name) {
                any |= std::mem::take(&mut membership.joined);
                membership.interrupt(at);
                membership.ordered = true;
            }
        }
        any
    }

    /// Returns every group of a host that is wished for.
    pub(super) fn names(&self, shard: &HostNumber) -> Vec<GroupName> {
        let groups = self.groups.lock();
        let mine = groups.by_name.keys().filter(|name| shard.has(name));
        mine.cloned().collect()
    }
}

/// One of the hosts of a layer.
#[derive(Clone, Debug)]
pub(super) struct HostNumber {
    pub(super) index: usize,
    pub(super) names: Arc<Names>,
}

impl HostNumber {
    /// Returns true if a group's members lie on this host.
    fn has(&self, group: &GroupName) -> bool {
        self.names.host_of(group) == self.index
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_order_serves_all_who_wait() {
        let (roster, group) = (GroupRoster::default(), GroupName::from("g"));
        let Wish::Order(mut first) = roster.want(&group) else {
            panic!("the group is not joined yet");
        };
        let Wish::Joining(mut second) = roster.want(&group) else {
            panic!("it is being joined");
        };
        let number = roster.number(&group).unwrap();
        assert!(!roster.joined(&group, number, true));
        assert_eq!(first.try_recv(), Ok(Ok(())));
        assert_eq!(second.try_recv(), Ok(Ok(())));
        assert!(matches!(roster.want(&group), Wish::Joined));
        assert!(roster.joined(&group, number, true), "a renewal");
    }

    #[test]
    fn a_refused_group_is_ordered_again() {
        let (roster, group) = (GroupRoster::default(), GroupName::from("g"));
        let Wish::Order(mut first) = roster.want(&group) else {
            panic!("the group is not joined yet");
        };
        roster.refused(&group, ErrorKind::Permission);
        assert_eq!(first.try_recv(), Ok(Err(ErrorKind::Permission)));
        assert!(matches!(roster.want(&group), Wish::Order(_)));
    }

    #[test]
    fn a_doubtful_group_is_waited_for() {
        let (roster, group) = (GroupRoster::default(), GroupName::from("g"));
        drop(roster.want(&group));
        let number = roster.number(&group).unwrap();
        roster.joined(&group, number, true);
        let host = HostNumber {
            index: 0,
            names: Arc::new(Names::new("asgi", "", 1)),
        };
        assert!(roster.doubt(&host, Instant::now()));
        assert!(!roster.doubt(&host, Instant::now()));
        let Wish::Joining(mut confirmed) = roster.want(&group) else {
            panic!("it is being joined again");
        };
        assert!(!roster.joined(&group, number, true), "no renewal");
        assert_eq!(confirmed.try_recv(), Ok(Ok(())));
    }

    #[test]
    fn what_was_known_before_an_interruption_stays_known_and_no_later_one_adds_to_it() {
        let (roster, group) = (GroupRoster::default(), GroupName::from("g"));
        drop(roster.want(&group));
        let number = roster.number(&group).unwrap();
        let asked = |at| roster.watch(&group, at).expect("it is wished for");
        let ticket = || asked(Some(Instant::now()));
        assert!(ticket().known.is_none());
        roster.watched(&group, ticket());
        assert!(ticket().known.is_none(), "not joined yet");
        roster.joined(&group, number, true);
        roster.watched(&group, ticket());
        let host = HostNumber {
            index: 0,
            names: Arc::new(Names::new("asgi", "", 1)),
        };
        let late = Instant::now();
        let early = late - std::time::Duration::from_secs(5);
        roster.doubt(&host, late);
        assert_eq!(ticket().known, Some(late), "a lost link");
        roster.interrupt(&host, early);
        roster.interrupt(&host, late);
        assert_eq!(ticket().known, Some(early));
        let before = ticket();
        roster.joined(&group, number, false);
        roster.watched(&group, before);
        assert_eq!(ticket().known, Some(early), "not joined at the ticket");
        roster.watched(&group, ticket());
        assert!(ticket().known.is_some_and(|known| known >= late));
        // The process was stopped, and its reading link has not noticed yet.
        assert_eq!(asked(Some(early)).known, Some(early));
        roster.not_moved(&group);
        assert_eq!(asked(Some(early)).known, Some(early));
        assert_eq!(asked(None).known, None);
    }

    #[test]
    fn a_number_is_never_used_twice() {
        let (roster, group) = (GroupRoster::default(), GroupName::from("g"));
        drop(roster.want(&group));
        let first = roster.unwant(&group).unwrap();
        assert_eq!(roster.unwant(&group), None);
        drop(roster.want(&group));
        let second = roster.number(&group).unwrap();
        assert_ne!(first, second);
        assert_eq!(
            (roster.group(first), roster.group(second)),
            (None, Some(group.clone()))
        );
        // A late confirmation of the first membership does not confirm the second.
        assert!(!roster.joined(&group, first, true));
        assert!(matches!(roster.want(&group), Wish::Joining(_)));
    }
}
