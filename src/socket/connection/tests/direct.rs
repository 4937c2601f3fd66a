//! Frames that a fan-out writes itself, beside those of the socket's task.

use super::*;
use crate::hub::PassedFrames;

/// Gives a socket frames as the fan-out of a quiet tenant does. Returns the number of those that it has written.
fn pass(pair: &Pair, frames: &[Frame]) -> u64 {
    let mut written = PassedFrames::default();
    let outbound = pair.member.outbound();
    outbound.pass(&mut written, || {
        for frame in frames {
            assert!(outbound.push_frame(frame).is_queued());
        }
    });
    written.frames
}

/// Waits until the task of the socket has nothing to write.
async fn rests(pair: &Pair) {
    let rests = async {
        while !pair.member.outbound().rests() {
            tokio::task::yield_now().await;
        }
    };
    let rests = tokio::time::timeout(PATIENCE, rests).await;
    rests.expect("the task has run");
}

#[tokio::test]
async fn frames_are_passed_only_while_the_task_has_nothing_to_write() {
    let mut pair = Pair::open().await;
    // Its task has not run, so that the 101 might be on its way.
    assert_eq!(pass(&pair, &[Frame::text("1")]), 0);
    pair.reads(b"\x81\x011").await;

    rests(&pair).await;
    assert_eq!(pass(&pair, &[Frame::text("2"), Frame::text("3")]), 2);
    assert_eq!(pair.member.outbound().queued_bytes(), 0);
    pair.member.outbound().ask_ping();
    assert_eq!(pass(&pair, &[Frame::text("4")]), 0, "a ping goes first");
    pair.reads(b"\x81\x012\x81\x013").await;
    let ping = pair.ping.clone();
    pair.reads(&ping).await;
    pair.reads(b"\x81\x014").await;

    rests(&pair).await;
    let many: Vec<_> = (0..9).map(|_| Frame::text("5")).collect();
    assert_eq!(pass(&pair, &many), 0, "the task writes many at once");
    pair.reads(&b"\x81\x015".repeat(9)).await;
}

/// What another thread has queued goes first.
#[tokio::test]
async fn frames_that_are_passed_overtake_none() {
    let mut pair = Pair::open().await;
    rests(&pair).await;
    let first = Frame::text("1");
    assert!(pair.member.outbound().push_frame(&first).is_queued());
    pass(&pair, &[Frame::text("2")]);
    pair.reads(b"\x81\x011\x81\x012").await;
}

/// A close must not cut the frame of which the stream took a part, and must not overtake it.
#[tokio::test]
async fn what_a_stream_takes_in_part_is_finished_before_all_that_follows() {
    let frame = |letter: u8| Frame::binary(&vec![letter; 60_000]);
    for order in [CloseOrder::AfterQueued, CloseOrder::Now] {
        let mut pair = Pair::open().await;
        rests(&pair).await;
        let mut passed = 0;
        // Without an end of the turn the task of the socket does not run.
        while pass(&pair, &[frame(passed)]) == 1 {
            passed += 1;
        }
        assert!(passed > 0, "the stream takes some");
        assert!(pair.member.outbound().queued_bytes() >= 60_000);
        assert_eq!(pass(&pair, &[frame(passed + 1)]), 0);
        let close = CloseReason::Draining.frame();
        assert!(pair.member.outbound().close(close.clone(), order));
        for letter in 0..=passed {
            pair.reads(frame(letter).as_bytes()).await;
        }
        if order == CloseOrder::AfterQueued {
            pair.reads(frame(passed + 1).as_bytes()).await;
        }
        pair.reads(Frame::close(&close).as_bytes()).await;
    }
}

#[tokio::test]
async fn the_end_of_a_socket_leaves_it_to_its_task_to_finish_a_frame() {
    let pair = Pair::open().await;
    rests(&pair).await;
    let frame = Frame::binary(&vec![7; 60_000]);
    while pass(&pair, std::slice::from_ref(&frame)) == 1 {}
    let outbound = pair.member.outbound();
    let begun = outbound.end_direct();
    assert!(begun.is_some_and(|begun| begun.sent < begun.frame.len()));
    assert_eq!(pass(&pair, &[frame]), 0);
    outbound.finish();
    assert!(outbound.take_stream().is_none(), "its descriptor is free");
}
