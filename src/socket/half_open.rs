//! The connections whose handshake is not over: their bound, and the order in which they go when it is reached.
//!
//! At the bound a new connection takes the place of one that has its answer, else of the oldest in the longest of three
//! lines: those that have sent nothing, those with a part of a request, and those whose token is not verified yet, because
//! a key set has to be fetched first. A request with a verified token keeps its place, because each of its steps has a
//! deadline. So clients that only connect keep out no client that asks for something, and neither do those that never end
//! their requests or have no valid token: a client that has just come is in a short line.

use std::sync::Arc;

use futures_util::future::{AbortHandle, AbortRegistration};
use parking_lot::Mutex;

use crate::ages::{AgeList, AgeTicket};
use crate::budget::{HeldBytes, HeldKind, MemoryBudget};
use crate::labels::PerLabel;
use crate::metrics::{self, HandshakeStage};

/// Connections without a whole request, above which the replica takes new ones one by one. A network that comes back brings
/// thousands at once, but most of them have sent their request when they are accepted.
const FLOOD: usize = 256;

/// The half-open connections of this replica.
pub struct HalfOpen {
    /// The most of them (`server.max_handshakes`).
    most: usize,
    /// The most connections, open ones included, that the descriptor limit leaves.
    most_connections: usize,
    lines: Mutex<PerLabel<HandshakeStage, AgeList<AbortHandle>>>,
    budget: Arc<MemoryBudget>,
}

/// The place of one half-open connection. Its drop frees it: the socket is open, or the connection is over.
pub struct HandshakePlace {
    half_open: Arc<HalfOpen>,
    stage: HandshakeStage,
    ticket: AgeTicket,
    /// The bytes of the request.
    held: HeldBytes,
}

impl HalfOpen {
    /// Creates the bound of `most` half-open connections, and of `most_connections` with the open ones. The bytes of
    /// their requests count in `budget`.
    pub fn new(most: usize, most_connections: usize, budget: Arc<MemoryBudget>) -> Arc<Self> {
        Arc::new(Self {
            most,
            most_connections,
            lines: Mutex::new(PerLabel::new(|_| AgeList::default())),
            budget,
        })
    }

    /// Gives a new connection a place, and what ends its handshake if the place is taken away; `connections` is the
    /// number of all connections now.
    ///
    /// Returns `None` if there is no place: each other connection is open or is being answered.
    pub fn begin(
        self: &Arc<Self>,
        connections: usize,
    ) -> Option<(HandshakePlace, AbortRegistration)> {
        let is_full = self.len() >= self.most || connections >= self.most_connections;
        if is_full && !self.shed() {
            metrics::handshake_dropped(HandshakeStage::Answering);
            return None;
        }
        let stage = HandshakeStage::Silent;
        let (handle, registration) = AbortHandle::new_pair();
        let place = HandshakePlace {
            half_open: self.clone(),
            stage,
            ticket: self.lines.lock().of_mut(stage).push(handle),
            held: HeldBytes::none(&self.budget, HeldKind::Heads),
        };
        Some((place, registration))
    }

    /// Ends the connection that can best be spared. Returns false if each is being answered.
    pub fn shed(&self) -> bool {
        self.shed_oldest(HandshakeStage::Answered) || self.shed_oldest(self.longest())
    }

    /// Returns the longest line of connections of strangers. A flood fills one line, and the few in the others are no part
    /// of it. Of equal lines the one that has sent least counts as longest: silence is worth less than a part of a request.
    fn longest(&self) -> HandshakeStage {
        use HandshakeStage::{Head, Silent, Unverified};
        let lines = self.lines.lock();
        // The last of equal ones is found.
        let stages = [Unverified, Head, Silent].into_iter();
        stages
            .max_by_key(|stage| lines.of(*stage).len())
            .unwrap_or(Silent)
    }

    /// Ends the oldest connection that has sent a part of a request, to free its memory.
    pub fn shed_head(&self) -> bool {
        self.shed_oldest(HandshakeStage::Head)
    }

    fn shed_oldest(&self, stage: HandshakeStage) -> bool {
        let Some(oldest) = self.pop_oldest(stage) else {
            return false;
        };
        oldest.abort();
        metrics::handshake_dropped(stage);
        true
    }

    fn pop_oldest(&self, stage: HandshakeStage) -> Option<AbortHandle> {
        self.lines.lock().of_mut(stage).pop_oldest()
    }

    /// Ends all but those that have their answer; for a replica that ends. What a handshake leaves behind is told then.
    pub fn end_all(&self) {
        use HandshakeStage::{Answering, Head, Silent, Unverified};
        for stage in [Silent, Head, Unverified, Answering] {
            while let Some(handle) = self.pop_oldest(stage) {
                handle.abort();
            }
        }
    }

    /// Returns the number of half-open connections.
    pub fn len(&self) -> usize {
        let lines = self.lines.lock();
        let lengths = HandshakeStage::ALL
            .iter()
            .map(|stage| lines.of(*stage).len());
        lengths.sum()
    }

    /// Returns true if many connections have sent no whole request. That is a flood: clients that come back send theirs as soon as
    /// they are connected.
    pub fn is_flooded(&self) -> bool {
        let lines = self.lines.lock();
        let unfinished = [HandshakeStage::Silent, HandshakeStage::Head];
        let lengths = unfinished.iter().map(|stage| lines.of(*stage).len());
        lengths.sum::<usize>() > FLOOD
    }

    /// Returns true if no connection is half open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the bound.
    pub fn most(&self) -> usize {
        self.most
    }
}

impl HandshakePlace {
    /// Notes that the handshake has come to `stage`.
    pub(super) fn enter(&mut self, stage: HandshakeStage) {
        if self.stage == stage {
            return;
        }
        let mut lines = self.half_open.lines.lock();
        // A connection that was shed is in no line; its future ends with the next poll.
        if let Some(handle) = lines.of_mut(self.stage).take(self.ticket) {
            self.ticket = lines.of_mut(stage).push(handle);
            self.stage = stage;
        }
    }

    /// Counts the bytes that the buffer of the request takes. Returns false if there is no room for so many.
    pub(super) fn hold(&mut self, bytes: usize) -> bool {
        if !self.half_open.budget.has_room_for(bytes) {
            return false;
        }
        self.held.set(bytes);
        true
    }
}

impl Drop for HandshakePlace {
    fn drop(&mut self) {
        let handle = self
            .half_open
            .lines
            .lock()
            .of_mut(self.stage)
            .take(self.ticket);
        drop(handle);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn half_open(most: usize) -> Arc<HalfOpen> {
        HalfOpen::new(most, usize::MAX, Arc::default())
    }

    /// A connection, and the handle that tells if it was shed.
    fn begin(half_open: &Arc<HalfOpen>) -> (HandshakePlace, AbortHandle) {
        let (place, registration) = half_open.begin(0).unwrap();
        (place, registration.handle())
    }

    #[test]
    fn requests_that_do_not_come_are_a_flood_and_those_under_way_are_none() {
        let half_open = half_open(2 * FLOOD);
        let mut places: Vec<_> = (0..=FLOOD).map(|_| begin(&half_open)).collect();
        assert!(half_open.is_flooded());
        for (place, _) in &mut places[..2] {
            place.enter(HandshakeStage::Head);
        }
        assert!(half_open.is_flooded());
        for (place, _) in &mut places {
            place.enter(HandshakeStage::Answering);
        }
        assert!(!half_open.is_flooded());
    }

    #[test]
    fn the_answered_go_first_then_the_oldest_silent_then_the_oldest_head() {
        let half_open = half_open(4);
        let (mut head, head_ends) = begin(&half_open);
        let (_older, older_ends) = begin(&half_open);
        let (mut answered, answered_ends) = begin(&half_open);
        let (_newer, newer_ends) = begin(&half_open);
        head.enter(HandshakeStage::Head);
        answered.enter(HandshakeStage::Answering);
        answered.enter(HandshakeStage::Answered);
        let ends = [answered_ends, older_ends, newer_ends, head_ends];
        let mut held = Vec::new();
        for gone in 0..ends.len() {
            let (mut place, _) = begin(&half_open);
            place.enter(HandshakeStage::Answering);
            held.push(place);
            let aborted: Vec<bool> = ends.iter().map(AbortHandle::is_aborted).collect();
            let expected: Vec<bool> = (0..ends.len()).map(|at| at <= gone).collect();
            assert_eq!(aborted, expected);
        }
        assert!(half_open.begin(0).is_none(), "each is being answered");
        drop(held.pop());
        assert!(half_open.begin(0).is_some());
    }

    /// Before: the newest went first, although only incomplete requests filled the places.
    #[test]
    fn a_client_that_has_just_come_outlives_old_incomplete_requests() {
        let half_open = half_open(4);
        let mut heads = Vec::new();
        for _ in 0..4 {
            let (mut head, ends) = begin(&half_open);
            head.enter(HandshakeStage::Head);
            heads.push((head, ends));
        }
        let (_new, new_ends) = begin(&half_open);
        let (_newer, newer_ends) = begin(&half_open);
        let gone: Vec<bool> = heads.iter().map(|(_, ends)| ends.is_aborted()).collect();
        assert_eq!(gone, [true, true, false, false]);
        assert!(!new_ends.is_aborted() && !newer_ends.is_aborted());
    }

    /// Before, requests that waited for a key set kept their places, and newcomers were cut.
    #[test]
    fn requests_without_a_verified_token_make_room_and_those_with_one_do_not() {
        let half_open = half_open(4);
        let mut asked = Vec::new();
        for _ in 0..4 {
            let (mut request, ends) = begin(&half_open);
            request.enter(HandshakeStage::Unverified);
            asked.push((request, ends));
        }
        asked[0].0.enter(HandshakeStage::Answering);
        let (_new, new_ends) = begin(&half_open);
        let (_newer, newer_ends) = begin(&half_open);
        let gone: Vec<bool> = asked.iter().map(|(_, ends)| ends.is_aborted()).collect();
        assert_eq!(gone, [false, true, true, false]);
        assert!(!new_ends.is_aborted() && !newer_ends.is_aborted());
    }

    #[test]
    fn a_place_that_was_taken_away_frees_no_other() {
        let half_open = half_open(1);
        let (mut shed, _) = begin(&half_open);
        let (place, ends) = begin(&half_open);
        shed.enter(HandshakeStage::Head);
        drop(shed);
        assert_eq!(half_open.len(), 1);
        assert!(!ends.is_aborted());
        drop(place);
        assert!(half_open.is_empty());
    }

    #[test]
    fn open_connections_leave_room_for_what_the_descriptors_allow() {
        let half_open = HalfOpen::new(10, 3, Arc::default());
        let (_silent, ends) = begin(&half_open);
        assert!(half_open.begin(3).is_some() && ends.is_aborted());
    }

    #[test]
    fn the_bytes_of_a_request_count_until_its_place_is_free() {
        let half_open = half_open(2);
        half_open.budget.set_most(1000);
        let (mut place, _) = begin(&half_open);
        assert!(place.hold(2048), "a usual request");
        assert!(!place.hold(8192));
        assert_eq!(half_open.budget.of(HeldKind::Heads), 2048);
        drop(place);
        assert_eq!(half_open.budget.bytes(), 0);
    }
}
