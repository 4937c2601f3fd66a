//! Seeded faults: the checker notices one event lost, one swapped, one doubled and one foreign, among thousands.

use super::*;

const EVENTS: usize = 1_000;
const GROUP: usize = 3;

/// A millisecond for each event, and half of one on the way.
fn sent() -> Vec<Sent> {
    let sent = |number| Sent {
        at: 1_000 + number as Micros * 1_000,
        answered: true,
    };
    (0..EVENTS).map(sent).collect()
}

fn event(number: usize) -> (Micros, Seen) {
    let seen = Seen::Event {
        group: GROUP,
        number,
    };
    (1_500 + number as Micros * 1_000, seen)
}

/// A socket that was open before the first event and saw all.
fn session() -> Session {
    Session {
        client: 7,
        tenant: 0,
        replica: 1,
        group: GROUP,
        jti: "j".into(),
        opened: 10,
        seen: (0..EVENTS).map(event).collect(),
        ended: None,
    }
}

fn judged(change: impl FnOnce(&mut Session)) -> Account {
    let mut session = session();
    change(&mut session);
    account(&session, &sent())
}

/// The gap frame arrives right before the event that now stands at `place`.
fn tell(session: &mut Session, place: usize) {
    let at = session.seen[place].0;
    session.seen.insert(place, (at, Seen::Gap));
}

#[test]
fn a_whole_run_is_clean() {
    let account = judged(|_| {});
    let all = EVENTS as u64;
    assert_eq!((account.expected, account.delivered), (all, all));
    assert!(account.is_clean() && account.breach.is_none());
}

#[test]
fn one_lost_event_of_a_thousand_is_noticed_wherever_it_was() {
    for number in [0, 1, 500, EVENTS - 2, EVENTS - 1] {
        let account = judged(|session| {
            session.seen.remove(number);
        });
        assert_eq!((account.silent, account.announced), (1, 0), "{number}");
        assert!(!account.is_clean() && account.breach.is_some());
    }
}

#[test]
fn one_swapped_pair_is_noticed() {
    let account = judged(|session| {
        let (one, other) = (session.seen[500].1, session.seen[501].1);
        session.seen[500].1 = other;
        session.seen[501] = (session.seen[501].0, one);
        session.seen[500].0 = session.seen[501].0;
    });
    assert_eq!(
        (account.swapped, account.silent, account.foreign),
        (1, 0, 0)
    );
}

#[test]
fn one_doubled_event_is_noticed_near_and_far() {
    for place in [501, EVENTS] {
        let account = judged(|session| {
            let late = (9_000_000, session.seen[500].1);
            session.seen.insert(place, late);
        });
        assert_eq!((account.doubled, account.swapped), (1, 0));
    }
}

#[test]
fn one_foreign_event_is_noticed() {
    let of_another_group = Seen::Event {
        group: GROUP + 1,
        number: 5,
    };
    let of_the_future = event(EVENTS - 1).1;
    let unknown = event(EVENTS).1;
    for (at, seen) in [
        (9_000_000, of_another_group),
        (1_600, of_the_future),
        (9_000_000, unknown),
    ] {
        let account = judged(|session| session.seen.insert(1, (at, seen)));
        assert_eq!(account.foreign, 1, "{seen:?}");
    }
}

#[test]
fn a_loss_counts_as_told_only_where_the_gap_stands() {
    let lost = |session: &mut Session| drop(session.seen.drain(500..510));
    let in_place = judged(|session| {
        lost(session);
        tell(session, 500);
    });
    assert_eq!((in_place.announced, in_place.silent), (10, 0));
    let soon_after = judged(|session| {
        lost(session);
        tell(session, 505);
    });
    assert_eq!((soon_after.announced, soon_after.silent), (10, 0));
    let before = judged(|session| {
        lost(session);
        tell(session, 499);
    });
    assert_eq!((before.announced, before.silent), (0, 10));
    let too_late = judged(|session| {
        lost(session);
        let at = session.seen[500].0 + TOLD_WITHIN + 1;
        session.seen.push((at, Seen::Gap));
    });
    assert_eq!((too_late.announced, too_late.silent), (0, 10));
    let another = judged(|session| {
        lost(session);
        tell(session, 500);
        session.seen.remove(700);
    });
    assert_eq!((another.announced, another.silent), (10, 1));
}

#[test]
fn the_rest_of_a_socket_that_closed_is_not_expected_but_its_middle_is() {
    let after = |last: Micros| Some((last + TOLD_WITHIN + 1, End::Closed(1012)));
    let end = after(event(500).0);
    let rest = judged(|session| {
        session.seen.truncate(500);
        session.ended = end;
    });
    assert_eq!((rest.expected, rest.silent), (500, 0));
    let middle = judged(|session| {
        session.seen.truncate(500);
        session.seen.remove(250);
        session.ended = end;
    });
    assert_eq!((middle.expected, middle.silent), (500, 1));
    let too_early_to_be_told = judged(|session| {
        session.seen.truncate(500);
        session.seen.remove(498);
        session.ended = Some((event(499).0 + TOLD_WITHIN, End::Closed(1012)));
    });
    let told = too_early_to_be_told;
    assert_eq!((told.expected, told.announced, told.silent), (500, 1, 0));
    let open = judged(|session| session.seen.truncate(500));
    assert_eq!(open.silent, 500);
}

#[test]
fn events_before_the_open_and_those_that_no_one_confirmed_may_be_missing() {
    let late = judged(|session| {
        session.opened = event(99).0;
        session.seen.drain(..100);
    });
    assert_eq!((late.expected, late.silent), (900, 0));
    let mut sent = sent();
    sent[500].answered = false;
    let mut missing = session();
    missing.seen.remove(500);
    assert!(account(&missing, &sent).is_clean());
    // It may come late, but not twice.
    let (_, unconfirmed) = event(500);
    missing.seen.push((9_000_000, unconfirmed));
    assert!(account(&missing, &sent).is_clean());
    missing.seen.push((9_000_000, unconfirmed));
    assert_eq!(account(&missing, &sent).doubled, 1);
}

#[test]
fn a_revoked_socket_that_stays_or_opens_is_noticed() {
    let revoked = [Revocation {
        jti: "j".into(),
        confirmed: 1_000,
    }];
    let found = |change: fn(&mut Session)| {
        let mut session = session();
        change(&mut session);
        survivors(&revoked, &[session], 2_000, 500).len()
    };
    assert_eq!(found(|_| {}), 1);
    assert_eq!(found(|s| s.ended = Some((2_501, End::Closed(REVOKED)))), 1);
    assert_eq!(found(|s| s.ended = Some((2_500, End::Closed(REVOKED)))), 0);
    assert_eq!(found(|s| s.jti = "another".into()), 0);
    let again = |s: &mut Session| {
        s.opened = 1_001;
        s.ended = Some((1_100, End::Cut));
    };
    assert_eq!(found(again), 1);
}

#[test]
fn an_end_is_wanted_only_where_the_fault_or_a_revocation_allows_it() {
    let ended = |end| {
        let mut session = session();
        session.ended = Some((5, end));
        [session]
    };
    let revoked = BTreeSet::from(["j"]);
    let none = BTreeSet::new();
    let found = |end, revoked: &_| unwanted_ends(&ended(end), revoked, &[End::Closed(1012)]).len();
    assert_eq!(found(End::Closed(1012), &none), 0);
    assert_eq!(found(End::Closed(REVOKED), &revoked), 0);
    assert_eq!(found(End::Closed(REVOKED), &none), 1);
    assert_eq!(found(End::Cut, &revoked), 1);
}

#[test]
fn recovery_is_the_first_event_that_was_sent_after_the_fault() {
    let mut groups = vec![Vec::new(); GROUP];
    groups.push(sent());
    let mut session = session();
    session.seen.drain(..600);
    // Sent after the fault, and lost.
    let since = 500_000;
    let found = recoveries(&[session], &groups, since);
    assert_eq!(found, BTreeMap::from([(7, event(600).0 - since)]));
}

#[test]
fn latencies_are_those_of_their_phase() {
    let mut groups = vec![Vec::new(); GROUP];
    groups.push(sent());
    let session = session();
    let found = latencies([&session], &groups, 1_000, 11_000);
    assert_eq!(found, [500; 10]);
    assert_eq!(quantile(&[1, 2, 3, 4], 1.0), 4);
    assert_eq!(quantile(&[], 0.99), 0);
}
