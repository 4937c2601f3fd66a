//! The ends of sockets that tasks of their consumers wait for.

use std::sync::atomic::{AtomicUsize, Ordering};

use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::hub::Member;
use crate::ids::ConnectionId;

/// One entry for each open socket whose end is waited for. The end of any other socket costs a look at a number.
#[derive(Default)]
pub(super) struct Lifetimes {
    ends: Mutex<HashMap<ConnectionId, CancellationToken>>,
    /// The number of entries.
    watched: AtomicUsize,
}

impl Lifetimes {
    /// Returns the token that is cancelled when the socket is closed. It is cancelled already if the socket is.
    pub(super) fn of(&self, member: &Member) -> CancellationToken {
        let mut ends = self.ends.lock();
        self.watched.fetch_add(1, Ordering::Relaxed);
        // A socket finishes its queue before it ends here. One that has not finished yet sees the number of before.
        let end = match member.outbound().is_finished() {
            true => {
                let end = CancellationToken::new();
                end.cancel();
                end
            }
            false => ends.entry(member.id()).or_default().clone(),
        };
        self.watched.store(ends.len(), Ordering::Relaxed);
        end
    }

    /// Ends what waits for this socket, which is closing. Called again once its queue is finished, for what came meanwhile.
    pub(super) fn end(&self, member: &Member) {
        if self.watched.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut ends = self.ends.lock();
        let end = ends.remove(&member.id());
        self.watched.store(ends.len(), Ordering::Relaxed);
        drop(ends);
        if let Some(end) = end {
            end.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::Profile;

    #[test]
    fn an_end_is_told_once_and_leaves_no_entry() {
        let lifetimes = Lifetimes::default();
        let (one, other) = (
            Member::new(Profile::default()),
            Member::new(Profile::default()),
        );
        let ends = [lifetimes.of(&one), lifetimes.of(&one), lifetimes.of(&other)];
        one.outbound().finish();
        lifetimes.end(&one);
        let told = ends.each_ref().map(CancellationToken::is_cancelled);
        assert_eq!(told, [true, true, false]);
        assert!(lifetimes.of(&one).is_cancelled(), "it is closed");
        assert_eq!(lifetimes.ends.lock().len(), 1);
        other.outbound().finish();
        lifetimes.end(&other);
        assert_eq!(lifetimes.watched.load(Ordering::Relaxed), 0);
        assert!(lifetimes.ends.lock().is_empty());
    }
}
