//! The other direction: the input of a socket that waits, which counts with its queue where the fullest socket has to go.

use super::{Outbound, State};

impl Outbound {
    /// Notes that `from` bytes of the input that waits at the socket have become `to`.
    pub fn change_input(&self, from: usize, to: usize) {
        let mut state = self.state.lock();
        let rare = state.rare.get_or_insert_default();
        rare.input = rare.input + to - from;
        state.rest();
    }

    /// Returns the bytes that the end of the socket frees: the queued ones, and those of input that waits.
    pub fn held_bytes(&self) -> usize {
        let state = self.state.lock();
        let input = state.rare.as_ref().map_or(0, |rare| rare.input);
        state.bytes + state.in_hand() + input
    }
}

impl State {
    /// Frees the place of what no ordinary socket has, once it has none of it.
    pub(super) fn rest(&mut self) {
        self.rare.take_if(|rare| {
            let is_open = rare.closing.is_none() && rare.begun.is_none();
            is_open && rare.held.is_none() && rare.input + rare.in_hand == 0
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_counts_while_it_waits_and_takes_no_memory_then() {
        let queue = Outbound::new(0);
        queue.change_input(0, 100);
        queue.change_input(0, 20);
        queue.change_input(100, 60);
        assert_eq!((queue.held_bytes(), queue.queued_bytes()), (80, 0));
        queue.change_input(20, 0);
        queue.finish();
        assert_eq!(queue.held_bytes(), 60, "the task drops it");
        queue.change_input(60, 0);
        assert_eq!(queue.held_bytes(), 0);
        assert!(queue.state.lock().rare.is_none());
    }
}
