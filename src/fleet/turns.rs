//! The turns of a task that takes messages: all other work gets its turn after some of them, so that a flood on a channel holds
//! nothing up.

/// Messages that are read and dropped in one turn.
const TURN: usize = 16;
/// Bytes that take as long to read as a short message.
const STEP: usize = 1024;

/// The rest of a task's turn, in short messages.
#[derive(Debug)]
pub struct MessageTurn(usize);

impl Default for MessageTurn {
    fn default() -> Self {
        Self(Self::WHOLE)
    }
}

impl MessageTurn {
    /// The cost of work that ends the turn.
    pub const WHOLE: usize = TURN;

    /// Returns the cost of reading a message of so many bytes.
    pub fn cost_of(bytes: usize) -> usize {
        1 + bytes / STEP
    }

    /// Takes a cost off the turn. At its end it lets all other work run.
    pub async fn spend(&mut self, cost: usize) {
        self.0 = self.0.saturating_sub(cost);
        if self.0 == 0 {
            *self = Self::default();
            tokio::task::yield_now().await;
        }
    }
}
