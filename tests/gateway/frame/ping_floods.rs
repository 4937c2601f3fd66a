//! Pings and pongs of a client count against its rate, and others have their turn between.

use tokio_tungstenite::tungstenite::{Bytes, Message};

use crate::support::database::ALICE;
use crate::support::gateway;
use crate::support::gateway::Builder;
use crate::support::socket::Socket;

const CHAT: &str = "/ws/chat/lobby/";
/// Control frames that count as one message, as `docs/limits.md` says.
const PER_MESSAGE: usize = 64;
const RATE: usize = 5;

fn tenant() -> Builder {
    let builder = gateway().tenant("acme");
    builder.with("limits.messages_per_second", RATE as u32)
}

async fn flood(socket: &mut Socket, frame: fn(Bytes) -> Message, count: usize) {
    for number in 0..count {
        let payload = Bytes::from(number.to_string());
        if !socket.try_send(frame(payload)).await {
            return;
        }
    }
}

/// Before, the rate was of messages alone, and a client with pings took a thread of the runtime for seconds.
#[tokio::test]
async fn a_flood_of_pings_or_pongs_is_over_the_rate() {
    let gateway = tenant().start().await;
    for frame in [Message::Ping, Message::Pong] {
        let mut flooding = gateway.open(CHAT).await;
        flood(&mut flooding, frame, 40 * RATE * PER_MESSAGE).await;
        assert_eq!(flooding.closed().await.0, 4013);
    }
    let labels = [
        ("tenant", &*gateway.tenant().name),
        ("limit", "messages_per_second"),
    ];
    let metrics = gateway.replica().metrics().await;
    assert_eq!(metrics.value("lockgate_rate_limited_total", &labels), 2.0);
}

#[tokio::test]
async fn pings_within_the_rate_are_answered_in_order_between_messages() {
    let gateway = tenant().start().await;
    let tenant = gateway.tenant();
    let dial = gateway.replica().dial(tenant, CHAT);
    let mut socket = dial.token(&tenant.token(ALICE)).open().await;
    flood(&mut socket, Message::Ping, RATE * PER_MESSAGE).await;
    for number in 0..RATE * PER_MESSAGE {
        match socket.read().await {
            Some(Ok(Message::Pong(payload))) => assert_eq!(payload, number.to_string()),
            other => panic!("not a pong: {other:?}"),
        }
    }
    socket.ping().await;
}
