//! A client that sends on while its worker's Redis does not answer.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::proxy::{Line, Proxy};
use crate::support::worker::FakeWorker;
use crate::support::{PATIENCE, RedisServer, gateway, unique, within};

/// Frames with a mask of zeros: a text for the worker, a ping, a ping of the page.
const FRAMES: [&[u8]; 3] = [
    b"\x81\x83\0\0\0\0one",
    b"\x89\x82\0\0\0\0hi",
    b"\x81\x84\0\0\0\0ping",
];

/// Before: no pong came until the call had ended, with the close of the socket.
#[tokio::test]
async fn pings_are_answered_while_the_redis_of_a_worker_does_not_answer() {
    let redis = RedisServer::start().await;
    let way = Proxy::to(&redis.endpoint()).await;
    let prefix = format!("acme-{}", unique());
    let channel = format!("{prefix}.chat");
    let gateway = gateway()
        .redis(&redis.url())
        .tenant("acme")
        .with("users.source", "claims")
        .with("layer.hosts", vec![format!("redis://{}/0", way.endpoint())])
        .with("layer.prefix", prefix)
        .with("layer.serializer_format", "json")
        .route(&format!(
            "path = 'ws/'\non_ping = 'reply'\nconsumer = {{ kind = 'worker', channel = '{channel}' }}"
        ))
        .start()
        .await;
    let mut worker = FakeWorker::on(&redis, &channel).await;
    let mut stream = gateway.open("/ws/").await.into_stream();
    way.set(Line::Unanswered);
    // Together, so that they are read before the call gives up, however busy the machine is.
    stream.write_all(&FRAMES.concat()).await.unwrap();
    let mut answers = [0; 10];
    within(PATIENCE, "pongs", stream.read_exact(&mut answers))
        .await
        .unwrap();
    assert_eq!(&answers, b"\x8a\x02hi\x81\x04pong");
    // The frame is on its way, and the socket closes, since no answer came.
    let told = worker.next("websocket.receive").await;
    assert_eq!(told["text"], "one");
    let close = within(Duration::from_secs(30), "a close", stream.read_u8()).await;
    assert_eq!(close.unwrap(), 0x88);
}
