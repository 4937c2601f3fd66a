//! Messages that come twice while a channel moves to another master of its shard.
//!
//! A node of a cluster delivers a message and passes it on to the other nodes of its shard a moment later. When one of these
//! takes over, its new link may be subscribed before the message is there, and would deliver it again. A master that stands still
//! (SIGSTOP, a frozen machine) may even pass it on when it moves again. Messages have no numbers, so the link before
//! remembers the last ones by a digest, and the next link passes over each of them once. A new message with the same bytes is
//! passed over as well: so the clients are told of a gap, and nothing is lost unsaid.

use std::collections::VecDeque;
use std::hash::BuildHasher as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hashbrown::DefaultHashBuilder;
use parking_lot::Mutex;

/// Time by which a node hears a message of its shard later, at most: a turn of two event loops, and on a busy machine the time
/// until they run.
const LATE: Duration = Duration::from_secs(1);
/// Messages that a link remembers at most. A link of more in [`LATE`] remembers the last ones.
const REMEMBERED: usize = 8_192;
/// Time in which a message may come again, after the channel has moved. A master that stood still longer was replaced long
/// before, and repeats what it had no time to pass on.
const AGAIN_WITHIN: Duration = Duration::from_secs(60);

struct RecentMessage {
    at: Instant,
    channel: u64,
    digest: u64,
}

/// The last messages that a link to a shard has delivered. At most [`REMEMBERED`], 200 KiB a link.
pub(super) struct RecentMessages {
    hasher: DefaultHashBuilder,
    messages: Mutex<VecDeque<RecentMessage>>,
}

impl RecentMessages {
    /// The links of one cluster share the seed of the digests.
    pub(super) fn new(hasher: &DefaultHashBuilder) -> Self {
        Self {
            hasher: hasher.clone(),
            messages: Mutex::default(),
        }
    }

    /// Notes a message that was delivered, or heard on the link's own channel.
    pub(super) fn note(&self, channel: &[u8], payload: &[u8], at: Instant) {
        let message = RecentMessage {
            at,
            channel: self.hasher.hash_one(channel),
            digest: self.hasher.hash_one(payload),
        };
        let mut messages = self.messages.lock();
        let is_old = |oldest: &RecentMessage| at.saturating_duration_since(oldest.at) > LATE;
        while messages.len() >= REMEMBERED || messages.front().is_some_and(is_old) {
            messages.pop_front();
        }
        messages.push_back(message);
    }

    /// Returns the channel's messages that may come again on its next link, and those that `earlier` links left; `None` if there
    /// are none. While nodes learn of a change, a channel may move more than once.
    pub(super) fn may_repeat(
        &self,
        channel: &[u8],
        earlier: Option<&Repeats>,
        now: Instant,
    ) -> Option<Arc<Repeats>> {
        let channel = self.hasher.hash_one(channel);
        let mut left = earlier.map_or_else(VecDeque::new, |earlier| earlier.left_at(now));
        let is_due = |message: &&RecentMessage| {
            message.channel == channel && now.saturating_duration_since(message.at) <= AGAIN_WITHIN
        };
        let messages = self.messages.lock();
        left.extend(
            { messages.iter() }
                .filter(is_due)
                .map(|message| message.digest),
        );
        let is_any = !left.is_empty();
        is_any.then(|| {
            Arc::new(Repeats {
                hasher: self.hasher.clone(),
                until: now + AGAIN_WITHIN,
                left: Mutex::new(left),
            })
        })
    }
}

/// The messages of one channel that may come again on its new link, in their order.
pub(super) struct Repeats {
    hasher: DefaultHashBuilder,
    until: Instant,
    left: Mutex<VecDeque<u64>>,
}

impl Repeats {
    fn left_at(&self, now: Instant) -> VecDeque<u64> {
        match now > self.until {
            true => VecDeque::new(),
            false => self.left.lock().clone(),
        }
    }

    /// Returns true if the message was delivered by the link before. Nodes pass messages on in order, so those before it
    /// will not come any more.
    pub(super) fn take(&self, payload: &[u8], now: Instant) -> bool {
        let mut left = self.left.lock();
        if now > self.until {
            *left = VecDeque::new();
        }
        if left.is_empty() {
            return false;
        }
        let digest = self.hasher.hash_one(payload);
        let at = left.iter().position(|known| *known == digest);
        at.inspect(|at| drop(left.drain(..=*at))).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recent() -> RecentMessages {
        RecentMessages::new(&DefaultHashBuilder::default())
    }

    #[test]
    fn a_message_is_passed_over_once_and_those_before_it_no_more() {
        let (recent, now) = (recent(), Instant::now());
        for payload in [&b"one"[..], b"two", b"two", b"three"] {
            recent.note(b"a", payload, now);
        }
        recent.note(b"b", b"of another channel", now);
        let repeats = recent.may_repeat(b"a", None, now).unwrap();
        let takes = |payload: &[u8]| repeats.take(payload, now);
        assert!(!takes(b"new"));
        assert!(!takes(b"of another channel"));
        assert!(takes(b"two"));
        assert!(!takes(b"one"), "nodes pass on in order");
        assert!(takes(b"two"), "it was delivered twice");
        assert!(takes(b"three"));
        assert!(!takes(b"three"), "once");
    }

    #[test]
    fn only_the_last_moment_of_the_link_before_may_come_again() {
        let (recent, start) = (recent(), Instant::now());
        recent.note(b"a", b"early", start);
        recent.note(b"a", b"late", start + LATE);
        // The link was heard last at this time, by a message of another channel.
        let last = start + LATE + Duration::from_millis(1);
        recent.note(b"canary", b"1", last);
        let moved = last + Duration::from_secs(20);
        let repeats = recent.may_repeat(b"a", None, moved).unwrap();
        assert!(!repeats.take(b"early", moved));
        assert!(repeats.take(b"late", moved));

        assert!(recent.may_repeat(b"c", None, moved).is_none());
        let late = last + AGAIN_WITHIN;
        assert!(recent.may_repeat(b"a", None, late).is_none());
    }

    #[test]
    fn a_channel_that_moves_twice_keeps_what_may_still_come() {
        let (first, now) = (recent(), Instant::now());
        first.note(b"a", b"one", now);
        first.note(b"a", b"two", now);
        let repeats = first.may_repeat(b"a", None, now).unwrap();
        assert!(repeats.take(b"one", now));
        let second = RecentMessages::new(&first.hasher);
        let repeats = second.may_repeat(b"a", Some(&repeats), now).unwrap();
        assert!(!repeats.take(b"one", now));
        assert!(repeats.take(b"two", now));
        let late = now + AGAIN_WITHIN + Duration::from_millis(1);
        assert!(second.may_repeat(b"a", Some(&repeats), late).is_none());
    }

    #[test]
    fn after_a_minute_a_message_is_new() {
        let (recent, now) = (recent(), Instant::now());
        recent.note(b"a", b"one", now);
        let repeats = recent.may_repeat(b"a", None, now).unwrap();
        assert!(!repeats.take(b"one", now + AGAIN_WITHIN + Duration::from_millis(1)));
        assert_eq!(repeats.left.lock().capacity(), 0);
    }

    #[test]
    fn a_link_remembers_no_more_than_its_bound() {
        let (recent, now) = (recent(), Instant::now());
        for number in 0..=REMEMBERED {
            recent.note(b"a", number.to_string().as_bytes(), now);
        }
        assert_eq!(recent.messages.lock().len(), REMEMBERED);
        let repeats = recent.may_repeat(b"a", None, now).unwrap();
        assert!(!repeats.take(b"0", now));
        assert!(repeats.take(b"1", now));
    }
}
