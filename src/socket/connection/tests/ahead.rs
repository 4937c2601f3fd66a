//! A client that sends while its consumer is at work.

use socket2::SockRef;

use super::*;
use crate::budget::{HeldBytes, HeldKind};
use crate::socket::connection::beside::MOST;

/// A frame of a client, with a mask of zeros.
fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = match u8::try_from(payload.len()) {
        Ok(len) if len < 126 => vec![first, 0x80 | len],
        _ => {
            let len = u16::try_from(payload.len()).unwrap().to_be_bytes();
            vec![first, 0xfe, len[0], len[1]]
        }
    };
    frame.extend([0; 4]);
    frame.extend(payload);
    frame
}

impl Pair {
    /// A pair whose consumer is at work on the text `a`.
    async fn at_work() -> Self {
        let mut pair = Self::open().await;
        pair.say(b'a').await;
        pair.began(1).await;
        pair
    }

    async fn write(&mut self, frame: &[u8]) {
        self.client.write_all(frame).await.unwrap();
    }

    /// Waits until so many bytes of input wait.
    async fn reads_ahead(&self, bytes: u64) {
        let filled = async {
            while self.input() < bytes {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, filled)
            .await
            .expect("it reads");
    }

    fn input(&self) -> u64 {
        self.unfinished.budget().of(HeldKind::Input)
    }
}

/// Before: the pong left when the call had ended.
#[tokio::test]
async fn a_clients_pings_are_answered_while_its_consumer_is_at_work() {
    let mut pair = Pair::at_work().await;
    pair.write(&masked(0x89, b"one")).await;
    pair.reads(b"\x8a\x03one").await;
    // A ping behind a message, and one within a message.
    pair.say(b'b').await;
    pair.write(&masked(0x89, b"two")).await;
    pair.reads(b"\x8a\x03two").await;
    pair.write(&masked(0x01, b"c")).await;
    pair.write(&masked(0x89, b"three")).await;
    pair.reads(b"\x8a\x05three").await;
    pair.write(&masked(0x80, b"d")).await;
    for (calls, answer) in [
        (1, &b"\x81\x01a"[..]),
        (2, b"\x81\x01b"),
        (3, b"\x81\x02cd"),
    ] {
        pair.began(calls).await;
        pair.desk.ends.notify_one();
        pair.reads(answer).await;
    }
    assert_eq!(pair.desk.began.load(Ordering::SeqCst), 3);
    assert_eq!(pair.input(), 0);
}

/// Before: the close was seen when the call had ended.
#[tokio::test]
async fn a_clients_close_is_answered_while_its_consumer_is_at_work() {
    let mut pair = Pair::at_work().await;
    pair.write(&masked(0x88, &1000_u16.to_be_bytes())).await;
    pair.reads(b"\x88\x02\x03\xe8").await;
    pair.left_hub().await;
    pair.gone_after_the_call().await;
}

/// Before: the socket stayed in the hub until the call had ended.
#[tokio::test]
async fn a_client_that_is_gone_leaves_the_hub_while_its_consumer_is_at_work() {
    let mut pair = Pair::at_work().await;
    pair.client.shutdown().await.unwrap();
    pair.left_hub().await;
    pair.gone_after_the_call().await;
}

/// The close waits for messages that wait, and not for the one at work.
#[tokio::test]
async fn a_clients_close_waits_for_the_messages_before_it() {
    let mut pair = Pair::at_work().await;
    pair.say(b'b').await;
    pair.write(&masked(0x88, &1000_u16.to_be_bytes())).await;
    pair.desk.ends.notify_one();
    pair.reads(b"\x81\x01a").await;
    pair.began(2).await;
    pair.reads(b"\x88\x02\x03\xe8").await;
    pair.left_hub().await;
    pair.gone_after_the_call().await;
}

#[tokio::test]
async fn an_error_of_the_client_waits_for_the_answers_to_earlier_messages() {
    let reason = CloseReason::ProtocolError.frame();
    for more in [&b""[..], b"b"] {
        let mut pair = Pair::at_work().await;
        for letter in more {
            pair.say(*letter).await;
        }
        // A frame without a mask.
        pair.write(b"\x81\x01x").await;
        for (calls, letter) in (1..).zip([b"a", more].concat()) {
            pair.began(calls).await;
            pair.desk.ends.notify_one();
            pair.reads(&[0x81, 1, letter]).await;
        }
        pair.reads(Frame::close(&reason).as_bytes()).await;
    }
}

#[tokio::test]
async fn messages_that_wait_for_the_consumer_are_bounded_and_stay_in_order() {
    const EACH: usize = 4000;
    const COUNT: usize = 48;
    let mut pair = Pair::at_work().await;
    SockRef::from(&pair.client)
        .set_send_buffer_size(2 * COUNT * EACH)
        .unwrap();
    for n in 0..COUNT {
        pair.write(&masked(0x82, &[n as u8; EACH])).await;
    }
    pair.reads_ahead(MOST as u64).await;
    // A frame that leaves shows that the connection's task has run beside the call.
    pair.member.outbound().push_frame(&Frame::text("x"));
    pair.reads(b"\x81\x01x").await;
    let most = MOST + 2 * 64 * 1024;
    assert!(pair.input() <= most as u64, "{}", pair.input());
    // Before, the socket did not answer for them, and others were closed in its place.
    let held = pair.member.outbound().held_bytes();
    assert_eq!(held as u64, pair.input());
    for calls in 1..=COUNT + 1 {
        pair.began(calls).await;
        pair.desk.ends.notify_one();
    }
    pair.began(COUNT + 1).await;
    let expected = (0..COUNT).map(|n| n as u8);
    let seen = pair.desk.seen.lock().clone();
    assert!(seen.into_iter().eq(expected));
    assert_eq!((pair.input(), pair.member.outbound().held_bytes()), (0, 0));
}

/// Before, each socket of a slow consumer took its part still.
#[tokio::test]
async fn nothing_is_read_ahead_once_the_memory_for_clients_is_used_up() {
    let mut pair = Pair::at_work().await;
    let budget = pair.unfinished.budget().clone();
    budget.set_most(1);
    let others = HeldBytes::of(&budget, HeldKind::Frames, 2);
    pair.say(b'b').await;
    pair.write(&masked(0x89, b"one")).await;
    // The second frame leaves when the connection's task has run beside the call, and knew of the bytes.
    for _ in 0..2 {
        pair.member.outbound().push_frame(&Frame::text("x"));
        pair.reads(b"\x81\x01x").await;
    }
    assert_eq!(pair.input(), 0);
    drop(others);
    budget.set_most(u64::MAX);
    pair.desk.ends.notify_one();
    pair.reads(b"\x81\x01a").await;
    pair.began(2).await;
    pair.reads(b"\x8a\x03one").await;
}

/// Before, each was searched for a ping, and judged when its turn came.
#[tokio::test]
async fn messages_over_the_rate_are_not_read_ahead_and_close_behind_the_answers() {
    const COUNT: usize = 100;
    let mut pair = Pair::open().await;
    let relay = &pair.socket.relay;
    let mut settings = Settings::clone(&relay.settings());
    settings.limits.messages_per_second = 1;
    relay.reconfigure(Arc::new(settings));
    pair.say(b'a').await;
    pair.began(1).await;
    pair.write(&masked(0x81, b"b").repeat(COUNT)).await;
    pair.reads_ahead(1).await;
    // Two seconds' worth, and some more on a slow machine.
    let half = COUNT as u64 / 2 * 64;
    assert!((1..half).contains(&pair.input()), "{}", pair.input());
    let (mut answers, mut head) = (0, [0; 3]);
    while head[0] != 0x88 {
        pair.desk.ends.notify_one();
        let read = pair.client.read_exact(&mut head);
        let read = tokio::time::timeout(PATIENCE, read).await;
        read.expect("an answer or the close").unwrap();
        answers += usize::from(head[0] == 0x81);
    }
    assert!((2..COUNT / 2).contains(&answers), "{answers}");
    assert_eq!(head[2], 4013_u16.to_be_bytes()[0]);
}
