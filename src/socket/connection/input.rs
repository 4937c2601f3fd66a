//! The account of a client's input that waits: in the budget of all, and at its socket, which goes if it holds too much.

use std::sync::Arc;

use crate::budget::{HeldBytes, HeldKind, MemoryBudget};
use crate::hub::Member;

/// Bytes of input that wait at a socket. Its drop takes them off.
pub(super) struct HeldInput {
    held: HeldBytes,
    member: Arc<Member>,
}

impl HeldInput {
    /// Makes a holder of no bytes.
    pub(super) fn none(member: &Arc<Member>, budget: &Arc<MemoryBudget>) -> Self {
        Self {
            held: HeldBytes::none(budget, HeldKind::Input),
            member: member.clone(),
        }
    }

    /// Changes the bytes that it holds.
    pub(super) fn set(&mut self, bytes: usize) {
        if bytes == self.bytes() {
            return;
        }
        self.member.outbound().change_input(self.bytes(), bytes);
        self.held.set(bytes);
    }

    /// Returns the bytes that it holds.
    pub(super) fn bytes(&self) -> usize {
        self.held.bytes() as usize
    }
}

impl Drop for HeldInput {
    fn drop(&mut self) {
        self.set(0);
    }
}
