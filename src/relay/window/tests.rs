//! The places of sockets in what was read.

use super::*;
use crate::budget::{HeldKind, MemoryBudget};
use crate::hub::{HoldId, Member, Profile};
use crate::position::{Epoch, PastEpochs};

fn at(epoch: &str, offset: u64) -> Position {
    Position {
        epoch: Epoch::parse(epoch).unwrap(),
        offset,
    }
}

fn page(
    end: u64,
    after: u64,
    offsets: impl IntoIterator<Item = u64>,
    more: bool,
    budget: &Arc<MemoryBudget>,
) -> OpenedPage {
    let event = |offset| {
        let held = HeldBytes::of(budget, HeldKind::History, 100 * 1024);
        ReplayedEvent::new(offset, None, held)
    };
    OpenedPage {
        end: at("e", end).into(),
        after,
        events: offsets.into_iter().map(event).collect(),
        more,
    }
}

fn socket(has: Position, whole_from: u64) -> Returning {
    Returning {
        hold: HoldId::default(),
        member: Member::new(Profile::default()),
        has,
        told: false,
        asked: tokio::time::Instant::now(),
        whole_from: Some(whole_from),
    }
}

#[test]
fn a_socket_has_its_place_in_what_was_read() {
    let budget = Arc::default();
    let mut window = ReplayWindow::of(page(9, 2, 3..=5, true, &budget), 1);
    let place = |window: &ReplayWindow, has, from| window.place(&socket(has, from));
    for (has, expected) in [
        (1, ReplayPlace::Unread),
        (2, ReplayPlace::Before(0)),
        (4, ReplayPlace::Before(2)),
        (5, ReplayPlace::Unread),
        (7, ReplayPlace::Unread),
        (9, ReplayPlace::AtEnd),
        (10, ReplayPlace::Lost(RecoveryResult::Epoch)),
    ] {
        assert_eq!(place(&window, at("e", has), 1), expected, "{has}");
    }
    let epoch = ReplayPlace::Lost(RecoveryResult::Epoch);
    assert_eq!(place(&window, at("f", 4), 1), epoch);
    // One that has joined since needs another read to know.
    for has in [at("f", 4), at("e", 9), at("e", 10)] {
        assert_eq!(place(&window, has, 2), ReplayPlace::Unsure);
    }
    let next = page(10, 5, 6..=10, false, &budget);
    assert!(window.is_followed_by(&next));
    window.append(next, 2);
    assert_eq!(place(&window, at("e", 5), 2), ReplayPlace::Before(3));
    assert_eq!(place(&window, at("e", 10), 2), ReplayPlace::AtEnd);
    window.forget_to(5);
    assert_eq!(place(&window, at("e", 4), 2), ReplayPlace::Unread);
    assert_eq!(place(&window, at("e", 5), 2), ReplayPlace::Before(0));
}

#[test]
fn a_socket_of_an_epoch_before_goes_on_unless_events_were_lost() {
    let budget = Arc::default();
    let mut end = page(9, 2, 3..=9, false, &budget);
    end.end.past = PastEpochs::parse("d 5,c 4 lost");
    let window = ReplayWindow::of(end, 1);
    for (mut has, expected) in [
        (at("d", 4), ReplayPlace::Before(2)),
        (at("d", 5), ReplayPlace::Before(3)),
        (at("d", 6), ReplayPlace::Lost(RecoveryResult::Epoch)),
        (at("c", 4), ReplayPlace::Lost(RecoveryResult::Epoch)),
        (at("e", 3), ReplayPlace::Lost(RecoveryResult::Epoch)),
        (at("e", 4), ReplayPlace::Before(2)),
    ] {
        window.rename(&mut has);
        assert_eq!(window.place(&socket(has.clone(), 1)), expected, "{has:?}");
    }
}

#[test]
fn offsets_that_are_missing_are_told_to_those_before_them() {
    let budget = Arc::default();
    let too_old = || ReplayPlace::Lost(RecoveryResult::TooOld);
    let place = |window: &ReplayWindow, has| window.place(&socket(at("e", has), 1));
    let window = ReplayWindow::of(page(9, 2, [4, 5, 7, 8, 9], false, &budget), 1);
    for (has, expected) in [(2, too_old()), (5, too_old()), (6, ReplayPlace::Before(2))] {
        assert_eq!(place(&window, has), expected, "{has}");
    }
    // The newest ones, and all.
    let window = ReplayWindow::of(page(9, 2, [3, 4], false, &budget), 1);
    assert_eq!(
        (place(&window, 2), place(&window, 4)),
        (too_old(), too_old())
    );
    let window = ReplayWindow::of(page(9, 2, [], false, &budget), 1);
    assert_eq!(
        (place(&window, 2), place(&window, 9)),
        (too_old(), ReplayPlace::AtEnd)
    );
}

#[test]
fn what_stays_is_bounded_and_counted() {
    let budget = Arc::new(MemoryBudget::default());
    let mut window = ReplayWindow::of(page(50, 0, 1..=50, false, &budget), 1);
    window.forget_to(0);
    let most = budget.of(HeldKind::History);
    assert!(most <= MOST_BYTES && most > MOST_BYTES / 2, "{most}");
    assert_eq!(window.place(&socket(at("e", 0), 1)), ReplayPlace::Unread);
    drop(window);
    assert_eq!(budget.of(HeldKind::History), 0);
}
