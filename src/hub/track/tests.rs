//! Cases that the model of the relay does not reach: bounds, and histories that lie.

use super::*;
use crate::position::Epoch;

fn at(epoch: &str, offset: u64) -> Position {
    Position {
        epoch: Epoch::parse(epoch).unwrap(),
        offset,
    }
}

/// No offsets.
const NONE: std::ops::RangeInclusive<u64> = std::ops::RangeInclusive::new(1, 0);

fn page(end: Position, offsets: std::ops::RangeInclusive<u64>, more: bool) -> TrackPage<u64> {
    TrackPage {
        end,
        past: PastEpochs::default(),
        entries: offsets.map(|offset| (offset, offset)).collect(),
        more,
    }
}

/// Returns the steps as texts: `e3` for an event, `gap 3` for a gap before the place after 3.
fn steps(track: &mut Track<u64>, page: TrackPage<u64>) -> (Vec<String>, AfterPage) {
    let mut out = Vec::new();
    let after = track.page(page, &mut out);
    let text = |step| match step {
        TrackStep::Event(at, event) => format!("{}{event}", at.epoch),
        TrackStep::Gap(at) => format!("gap {}", at.offset),
    };
    (out.into_iter().map(text).collect(), after)
}

fn live_at(position: Position) -> Track<u64> {
    Track::Live(position)
}

#[test]
fn a_hole_is_read_and_what_came_meanwhile_follows() {
    let mut track = live_at(at("e", 1));
    assert_eq!(track.live(at("e", 1), 1, 1), LiveOutcome::Old);
    assert_eq!(track.live(at("e", 2), 2, 1), LiveOutcome::Deliver(2));
    assert_eq!(
        track.live(at("e", 5), 5, 1),
        LiveOutcome::Kept { reads: true }
    );
    assert_eq!(track.begin_read(), Some(at("e", 2)));
    assert_eq!(
        track.live(at("e", 6), 6, 1),
        LiveOutcome::Kept { reads: false }
    );
    assert_eq!(
        track.live(at("e", 8), 8, 1),
        LiveOutcome::Kept { reads: false }
    );
    let (told, after) = steps(&mut track, page(at("e", 5), 3..=5, false));
    assert_eq!(
        (told.join(" "), after),
        ("e3 e4 e5 e6".to_owned(), AfterPage::ReadOn)
    );
    assert_eq!(track.begin_read(), Some(at("e", 6)));
    let (told, after) = steps(&mut track, page(at("e", 8), 7..=8, false));
    assert_eq!(
        (told.join(" "), after),
        ("e7 e8".to_owned(), AfterPage::Live)
    );
}

#[test]
fn kept_events_are_bounded_and_read_again() {
    let mut track = live_at(at("e", 0));
    let most = MOST_KEPT as u64;
    for offset in 2..most + 10 {
        track.live(at("e", offset), offset, 1);
    }
    track.begin_read();
    let (told, after) = steps(&mut track, page(at("e", 1), 1..=1, false));
    assert_eq!((told, after), (vec!["e1".to_owned()], AfterPage::Live));
    // The events that were forgotten before the read began are missing in this page by a lie of the test alone.
    let mut track = live_at(at("e", 0));
    track.live(at("e", 2), 2, 1);
    track.begin_read();
    track.live(at("e", 3), 3, MOST_KEPT_BYTES);
    assert_eq!(
        track.live(at("e", 4), 4, 1),
        LiveOutcome::Kept { reads: false }
    );
    let (told, after) = steps(&mut track, page(at("e", 2), 1..=2, false));
    assert_eq!(
        (told.join(" "), after),
        ("e1 e2".to_owned(), AfterPage::ReadOn)
    );
    assert_eq!(track.begin_read(), Some(at("e", 2)));
}

/// The history shows all that came before its read: what it does not show is no event of it.
#[test]
fn an_event_that_the_history_does_not_have_is_a_gap() {
    let mut track = live_at(at("e", 5));
    track.live(at("e", u64::MAX), 7, 1);
    track.live(at("f", 1), 8, 1);
    track.begin_read();
    let (told, after) = steps(&mut track, page(at("e", 5), NONE, false));
    assert_eq!(
        (told.join(" "), after),
        ("gap 5".to_owned(), AfterPage::Live)
    );
    assert_eq!(track.live(at("e", 6), 6, 1), LiveOutcome::Deliver(6));
}

#[test]
fn a_new_epoch_is_a_gap_and_there_is_no_way_back() {
    let mut track = live_at(at("e", 5));
    assert_eq!(
        track.live(at("e", 7), 7, 1),
        LiveOutcome::Kept { reads: true }
    );
    assert_eq!(
        track.live(at("g", 1), 1, 1),
        LiveOutcome::Kept { reads: false }
    );
    track.begin_read();
    let (told, after) = steps(&mut track, page(at("e", 7), 6..=7, false));
    assert_eq!(
        (told.join(" "), after),
        ("e6 e7 gap 7".to_owned(), AfterPage::Live)
    );
    track.live(at("g", 3), 3, 1);
    // An event of the old epoch behind one of the new epoch is in no history.
    track.live(at("e", 8), 8, 1);
    track.begin_read();
    let (told, after) = steps(&mut track, page(at("g", 3), 1..=3, false));
    assert_eq!(
        (told.join(" "), after),
        ("gap 0 g1 g2 g3 gap 3".to_owned(), AfterPage::Live)
    );
    assert_eq!(
        track.live(at("e", 1), 1, 1),
        LiveOutcome::Kept { reads: true }
    );
    track.begin_read();
    let (told, _) = steps(&mut track, page(at("g", 3), 1..=3, false));
    assert_eq!(told.join(" "), "gap 3", "no way back to an older epoch");
    assert!(track.doubt() && !track.doubt());
    track.begin_read();
    let (told, after) = steps(&mut track, page(at("h", 2), 1..=2, false));
    assert_eq!(
        (told.join(" "), after),
        ("gap 0 h1 h2".to_owned(), AfterPage::Live)
    );
}

#[test]
fn what_was_trimmed_is_a_gap_before_what_is_left() {
    let mut track = live_at(at("e", 5));
    track.doubt();
    track.begin_read();
    let (told, after) = steps(&mut track, page(at("e", 12), 8..=9, true));
    assert_eq!(
        (told.join(" "), after),
        ("gap 7 e8 e9".to_owned(), AfterPage::ReadOn)
    );
    track.begin_read();
    let (told, after) = steps(&mut track, page(at("e", 12), NONE, false));
    assert_eq!(
        (told.join(" "), after),
        ("gap 12".to_owned(), AfterPage::Live)
    );
}

#[test]
fn a_history_that_lost_its_newest_events_gets_a_new_epoch() {
    let mut track = live_at(at("e", 5));
    track.doubt();
    track.begin_read();
    let lost = || page(at("e", 3), 1..=3, false);
    assert_eq!(steps(&mut track, lost()).1, AfterPage::EndEpoch(at("e", 5)));
    track.epoch_ended();
    track.begin_read();
    let (told, after) = steps(&mut track, page(at("f", 1), 1..=1, false));
    assert_eq!(
        (told.join(" "), after),
        ("gap 0 f1".to_owned(), AfterPage::Live)
    );
    // A layer that cannot begin another one.
    let mut track = live_at(at("e", 5));
    track.doubt();
    track.epoch_ended();
    track.begin_read();
    let (told, after) = steps(&mut track, lost());
    assert_eq!(
        (told.join(" "), after),
        ("gap 3".to_owned(), AfterPage::Live)
    );
}

#[test]
fn an_event_that_did_not_come_itself_is_read() {
    let mut track: Track<u64> = Track::default();
    assert!(track.hole(&at("e", 4)));
    assert_eq!(track.begin_read(), Some(at("e", 3)));
    let (told, _) = steps(&mut track, page(at("e", 4), 4..=4, false));
    assert_eq!(told.join(" "), "e4");
    assert!(!track.hole(&at("e", 4)) && track.hole(&at("e", 5)));
    assert!(!track.expects(&at("e", 6)), "it reads already");
}

/// As [`page`], of a history that goes on from epochs before.
fn page_after(
    past: &str,
    end: Position,
    offsets: std::ops::RangeInclusive<u64>,
    more: bool,
) -> TrackPage<u64> {
    TrackPage {
        past: PastEpochs::parse(past),
        ..page(end, offsets, more)
    }
}

#[test]
fn another_process_with_all_events_is_no_gap() {
    let mut track = live_at(at("e", 5));
    // The next event shows the new epoch, or the link was lost.
    track.live(at("e", 7), 7, 1);
    track.live(at("f", 8), 8, 1);
    track.begin_read();
    let (told, after) = steps(&mut track, page_after("e 7", at("f", 7), 6..=6, true));
    assert_eq!(
        (told.join(" "), after),
        ("f6".to_owned(), AfterPage::ReadOn)
    );
    track.begin_read();
    let (told, after) = steps(&mut track, page_after("e 7", at("f", 7), 7..=7, false));
    assert_eq!(
        (told.join(" "), after),
        ("f7 f8".to_owned(), AfterPage::Live)
    );
    // What was kept goes beyond a page that was read before.
    let mut late = live_at(at("e", 1));
    late.doubt();
    for offset in 2..=4 {
        late.live(at("e", offset), offset, 1);
    }
    late.begin_read();
    let (told, after) = steps(&mut late, page_after("e 9", at("f", 9), 2..=3, true));
    assert_eq!(
        (told.join(" "), after),
        ("e2 e3 e4".to_owned(), AfterPage::ReadOn)
    );
    // Silence.
    track.doubt();
    track.begin_read();
    let (told, after) = steps(&mut track, page_after("f 8,e 7", at("g", 8), NONE, false));
    assert_eq!((told.len(), after), (0, AfterPage::Live));
    // Two of them while it did not look.
    let mut track = live_at(at("e", 6));
    track.doubt();
    track.begin_read();
    let (told, after) = steps(&mut track, page_after("f 8,e 7", at("g", 9), 7..=9, false));
    assert_eq!(
        (told.join(" "), after),
        ("g7 g8 g9".to_owned(), AfterPage::Live)
    );
}

#[test]
fn another_process_without_the_newest_events_is_a_gap() {
    let mut track = live_at(at("e", 5));
    track.doubt();
    track.begin_read();
    // Offsets go beyond those that were delivered.
    let lost = |past| page_after(past, at("f", 7), 4..=7, false);
    assert_eq!(
        steps(&mut track, lost("e 3")).1,
        AfterPage::EndEpoch(at("e", 5))
    );
    track.epoch_ended();
    track.begin_read();
    let (told, after) = steps(&mut track, lost("e 3 lost"));
    assert_eq!(
        (told.join(" "), after),
        ("gap 3 f4 f5 f6 f7".to_owned(), AfterPage::Live)
    );
    // A third process takes over while the second one is read: its loss is noted, too.
    let mut track = live_at(at("e", 5));
    track.doubt();
    track.begin_read();
    steps(&mut track, lost("e 3"));
    track.epoch_ended();
    track.begin_read();
    let more = page_after("e 3 lost", at("f", 9), 4..=7, true);
    assert_eq!(steps(&mut track, more).1, AfterPage::ReadOn);
    track.begin_read();
    let less = page_after("f 6,e 3 lost", at("g", 8), 7..=8, false);
    assert_eq!(steps(&mut track, less).1, AfterPage::EndEpoch(at("f", 7)));
    // Nothing has followed yet.
    let mut track = live_at(at("e", 5));
    track.doubt();
    track.epoch_ended();
    track.begin_read();
    let (told, after) = steps(&mut track, page_after("e 3", at("f", 3), NONE, false));
    assert_eq!(
        (told.join(" "), after),
        ("gap 3".to_owned(), AfterPage::Live)
    );
}

/// Another replica has noted it.
#[test]
fn a_loss_that_others_know_is_told_at_its_place() {
    let mut track = live_at(at("e", 1));
    track.doubt();
    track.begin_read();
    let (told, after) = steps(&mut track, page_after("e 3 lost", at("f", 5), 2..=2, true));
    assert_eq!(
        (told.join(" "), after),
        ("e2".to_owned(), AfterPage::ReadOn)
    );
    track.begin_read();
    let (told, after) = steps(&mut track, page_after("e 3 lost", at("f", 5), 3..=5, false));
    assert_eq!(
        (told.join(" "), after),
        ("e3 gap 3 f4 f5".to_owned(), AfterPage::Live)
    );
    let mut track = live_at(at("e", 3));
    track.doubt();
    track.begin_read();
    let (told, after) = steps(&mut track, page_after("e 3 lost", at("f", 3), NONE, false));
    assert_eq!(
        (told.join(" "), after),
        ("gap 3".to_owned(), AfterPage::Live)
    );
    // It was told, and is not told again.
    track.doubt();
    track.begin_read();
    let (told, after) = steps(&mut track, page_after("e 3 lost", at("f", 4), 4..=4, false));
    assert_eq!((told.join(" "), after), ("f4".to_owned(), AfterPage::Live));
}
