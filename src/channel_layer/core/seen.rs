//! The messages that were read last. After a lost link they may come back and must not be delivered twice.

use std::collections::VecDeque;
use std::hash::{BuildHasher as _, RandomState};

use hashbrown::HashSet;

/// The number of messages remembered. It is larger than one round, and covers the lag of a Redis replica after a failover
/// up to this number of messages.
const KEPT: usize = 4096;

/// Digests of the newest messages.
#[derive(Default)]
pub(super) struct Seen {
    hasher: RandomState,
    digests: HashSet<u64>,
    in_order: VecDeque<u64>,
}

impl Seen {
    /// Remembers a message; returns true if it was known.
    pub(super) fn insert(&mut self, key: &str, message: &[u8], score: &str) -> bool {
        let digest = self.hasher.hash_one((key, message, score));
        if !self.digests.insert(digest) {
            return true;
        }
        self.in_order.push_back(digest);
        if self.in_order.len() > KEPT
            && let Some(oldest) = self.in_order.pop_front()
        {
            self.digests.remove(&oldest);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_messages_are_known() {
        let mut seen = Seen::default();
        for n in 0..=KEPT {
            assert!(!seen.insert("k", &n.to_be_bytes(), "1"), "{n}");
        }
        assert!(seen.insert("k", &KEPT.to_be_bytes(), "1"));
        assert!(!seen.insert("k", &KEPT.to_be_bytes(), "2"), "another score");
        assert!(!seen.insert("l", &KEPT.to_be_bytes(), "1"), "another key");
        assert!(!seen.insert("k", &0usize.to_be_bytes(), "1"), "forgotten");
        assert_eq!(seen.digests.len(), KEPT);
    }
}
