//! The bound of the memory that clients and back ends can make this replica hold (`server.max_queue_bytes`).
//!
//! Over the bound the oldest incomplete requests go first, since no one is known to stand behind them. Then the sockets
//! with the most bytes go, those that wait for the client, those of its unfinished message and those of its input that
//! waits together, until the rest fits. So a client that holds little is closed for no other. Events that wait for fan-out
//! are none of theirs: a quarter over the bound an inbox takes no more than a run of them, and the rest is a gap of its
//! tenant.

use std::collections::HashMap;
use std::sync::Arc;

use crate::budget::{HeldKind, MemoryBudget};
use crate::close_code::CloseReason;
use crate::hub::{CloseOrder, Member, TOO_SLOW_WAIT};
use crate::ids::ConnectionId;
use crate::metrics;
use crate::socket::half_open::HalfOpen;
use crate::socket::unfinished::UnfinishedMessages;
use crate::tenant::Tenants;

/// Ends the holders of memory over its bound.
pub(super) struct Shedder {
    /// The tenants whose sockets hold memory.
    pub(super) tenants: Arc<Tenants>,
    /// The connections whose requests hold memory.
    pub(super) half_open: Arc<HalfOpen>,
    /// The messages that are not complete.
    pub(super) unfinished: Arc<UnfinishedMessages>,
    /// The account of all bytes.
    pub(super) budget: Arc<MemoryBudget>,
}

/// A socket, and the bytes that go with it.
struct Holder {
    member: Arc<Member>,
    bytes: u64,
}

impl Holder {
    /// Takes a socket with the bytes of its unfinished message.
    fn of(member: Arc<Member>, unfinished: u64) -> Self {
        Self {
            bytes: member.outbound().held_bytes() as u64 + unfinished,
            member,
        }
    }
}

impl Shedder {
    /// Reports the account, and sheds over its bound.
    pub(super) fn step(&self) {
        metrics::half_open(self.half_open.len(), self.half_open.most());
        metrics::held(&self.budget);
        if self.over() == 0 {
            return;
        }
        let (heads, leaving) = self.drop_heads();
        let closed = match self.over().saturating_sub(leaving) {
            0 => 0,
            _ => self.close_fullest(self.holders(), leaving),
        };
        if heads + closed > 0 {
            tracing::warn!(
                requests = heads,
                count = closed,
                "Dropped incomplete requests and closed the fullest connections: server.max_queue_bytes was passed"
            );
        }
    }

    /// Returns the bytes over the bound that clients can free.
    fn over(&self) -> u64 {
        let held = self.budget.bytes_of_clients();
        held.saturating_sub(self.budget.most())
    }

    /// Drops the oldest incomplete requests until the rest fits. Returns their number, and the bytes that are free once
    /// their tasks have run.
    fn drop_heads(&self) -> (usize, u64) {
        let heads = self.budget.of(HeldKind::Heads);
        // The requests are taken as equally long.
        let each = (heads / self.half_open.len().max(1) as u64).max(1);
        let most = self.over().min(heads).div_ceil(each);
        let dropped = (0..most).take_while(|_| self.half_open.shed_head()).count();
        (dropped, dropped as u64 * each)
    }

    /// Closes the sockets with the most bytes until the rest fits, and returns their number.
    ///
    /// A shared frame is freed only with the last socket that holds it, so the account decides when enough is closed.
    /// `leaving` bytes are as good as freed, and so are those of sockets that already close.
    fn close_fullest(&self, holders: Vec<Holder>, leaving: u64) -> usize {
        let (closing, mut open): (Vec<_>, Vec<_>) = holders
            .into_iter()
            .partition(|holder| holder.member.outbound().is_closing());
        let closing: u64 = closing.iter().map(|holder| holder.bytes).sum();
        open.sort_unstable_by_key(|holder| std::cmp::Reverse(holder.bytes));
        let (mut closed, mut freed) = (0, closing + leaving);
        for Holder { member, bytes } in &open {
            if self.over().saturating_sub(freed) == 0 {
                break;
            }
            let queued = member.outbound().queued_bytes() as u64;
            let frame = CloseReason::TooSlow.frame_with_retry(TOO_SLOW_WAIT);
            if member.outbound().close(frame, CloseOrder::Now) {
                // A partly written frame, an unfinished message and input stay in memory until the socket's task has run.
                let stays = member.outbound().queued_bytes() as u64;
                freed += bytes.saturating_sub(queued) + stays.min(queued);
                closed += 1;
            }
        }
        closed
    }

    /// Returns the sockets that hold bytes.
    fn holders(&self) -> Vec<Holder> {
        let unfinished = self.unfinished.holders();
        let mut unfinished: HashMap<ConnectionId, u64> = unfinished
            .into_iter()
            .map(|(member, bytes)| (member.id(), bytes))
            .collect();
        let tenants = self.tenants.with_sockets();
        let members = tenants
            .iter()
            .flat_map(|tenant| tenant.relay.hub().holders());
        members
            .map(|member| {
                let unfinished = unfinished.remove(&member.id());
                Holder::of(member, unfinished.unwrap_or_default())
            })
            .filter(|holder| holder.bytes > 0)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::budget::HeldBytes;
    use crate::frame::Frame;
    use crate::hub::Profile;

    /// Before, no socket answered for input that waits: others were closed, which freed none of it.
    #[test]
    fn a_socket_whose_input_waits_goes_before_one_with_a_short_queue() {
        const INPUT: usize = 80 * 1024;
        let budget = Arc::<MemoryBudget>::default();
        budget.set_most(1024);
        let shedder = Shedder {
            tenants: Arc::default(),
            half_open: HalfOpen::new(1, 1, budget.clone()),
            unfinished: UnfinishedMessages::new(Duration::from_secs(1), budget.clone()),
            budget: budget.clone(),
        };
        let [calm, full] = [(); 2].map(|()| Member::new(Profile::default()));
        calm.outbound().push_frame(&Frame::text("x"));
        full.outbound().change_input(0, INPUT);
        let _input = HeldBytes::of(&budget, HeldKind::Input, INPUT);
        let holders = [&calm, &full].map(|member| Holder::of(member.clone(), 0));
        assert_eq!(shedder.close_fullest(holders.into(), 0), 1);
        assert!(full.outbound().is_closing() && !calm.outbound().is_closing());
    }
}
