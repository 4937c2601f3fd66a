//! Events that their sender's own socket must not get (`skip_sender`).
//!
//! An event comes back from the channel layer without a word about its sender, since Channels' consumers read the same
//! bytes. The sender's replica therefore notes a digest of the event before it publishes it, and meets it again in the
//! event that comes back. Of two equal events of two senders each gets one, whichever is met first.

use std::collections::VecDeque;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use parking_lot::Mutex;

use crate::event::Event;
use crate::ids::{ConnectionId, GroupName};

/// A note is forgotten after this time: its event was lost.
const KEPT: Duration = Duration::from_secs(30);
/// The most notes of a group. Beyond it the oldest goes, and its sender gets the event.
const MOST: usize = 4096;

/// The events of this replica's sockets that are under way.
#[derive(Default)]
pub(super) struct Skips {
    digests: RandomState,
    /// The number of notes, so that the fan-out of events without any takes no lock.
    count: AtomicUsize,
    notes: Mutex<HashMap<GroupName, VecDeque<Note>>>,
}

/// An event that is under way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Note {
    digest: u64,
    sender: ConnectionId,
    at: Instant,
}

impl Skips {
    /// Notes an event before it is published; `None` if it has no JSON form, and its sender gets it.
    pub(super) fn note(
        &self,
        group: &GroupName,
        event: &Event,
        sender: ConnectionId,
        now: Instant,
    ) -> Option<Note> {
        let digest = self.digest(event)?;
        let note = Note {
            digest,
            sender,
            at: now,
        };
        let mut notes = self.notes.lock();
        let of_group = notes.entry_ref(group).or_default();
        let old = |note: &Note| now.duration_since(note.at) >= KEPT;
        while of_group.len() >= MOST || of_group.front().is_some_and(old) {
            of_group.pop_front();
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
        of_group.push_back(note);
        self.count.fetch_add(1, Ordering::Relaxed);
        Some(note)
    }

    /// Takes back a note whose event was not published.
    pub(super) fn forget(&self, group: &GroupName, note: &Note) {
        self.take_where(group, |other| other == note);
    }

    /// Returns the sender that must not get this event of the group.
    pub(super) fn sender(&self, group: &GroupName, event: &Event) -> Option<ConnectionId> {
        if self.count.load(Ordering::Relaxed) == 0 || !self.notes.lock().contains_key(group) {
            return None;
        }
        let digest = self.digest(event)?;
        let note = self.take_where(group, |note| note.digest == digest);
        note.map(|note| note.sender)
    }

    fn take_where(&self, group: &GroupName, wanted: impl Fn(&Note) -> bool) -> Option<Note> {
        let mut notes = self.notes.lock();
        let of_group = notes.get_mut(group)?;
        let at = of_group.iter().position(wanted)?;
        let taken = of_group.remove(at);
        if of_group.is_empty() {
            notes.remove(group);
        }
        self.count.fetch_sub(1, Ordering::Relaxed);
        taken
    }

    fn digest(&self, event: &Event) -> Option<u64> {
        let mut text = String::new();
        event.write_json(&mut text, false).ok()?;
        Some(self.digests.hash_one(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(n: i64) -> Event {
        Event::new("t", [("n", n.into())])
    }

    #[test]
    fn each_of_two_equal_events_is_met_once() {
        let (skips, group, now) = (Skips::default(), GroupName::from("g"), Instant::now());
        let ids = [ConnectionId(1), ConnectionId(2)];
        for id in ids {
            skips.note(&group, &event(1), id, now).unwrap();
        }
        assert_eq!(skips.sender(&group, &event(2)), None);
        assert_eq!(skips.sender(&"h".into(), &event(1)), None);
        assert_eq!(skips.sender(&group, &event(1)), Some(ids[0]));
        assert_eq!(skips.sender(&group, &event(1)), Some(ids[1]));
        assert_eq!(skips.sender(&group, &event(1)), None);
        assert!(skips.notes.lock().is_empty() && skips.count.into_inner() == 0);
    }

    #[test]
    fn notes_end_with_a_failed_publish_with_time_and_at_the_bound() {
        let (skips, group, start) = (Skips::default(), GroupName::from("g"), Instant::now());
        let note = skips.note(&group, &event(1), ConnectionId(1), start);
        skips.forget(&group, &note.unwrap());
        assert_eq!(skips.sender(&group, &event(1)), None);
        skips.note(&group, &event(1), ConnectionId(1), start);
        skips.note(&group, &event(2), ConnectionId(2), start + KEPT);
        assert_eq!(skips.sender(&group, &event(1)), None);
        for n in 0..MOST as i64 {
            skips.note(&group, &event(10 + n), ConnectionId(3), start + KEPT);
        }
        assert_eq!(skips.sender(&group, &event(2)), None);
        assert_eq!(skips.count.load(Ordering::Relaxed), MOST);
    }
}
