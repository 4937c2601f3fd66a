//! A worker without Django: it hears the events of sockets on a `pubsub` layer in JSON, and answers what a test tells it.

use futures_util::StreamExt;
use redis::aio::{MultiplexedConnection, PubSub};
use serde_json::Value;

use super::redis::RedisServer;
use super::{PATIENCE, within};

/// One subscriber of a worker's channel.
pub(crate) struct FakeWorker {
    events: PubSub,
    answers: MultiplexedConnection,
}

impl FakeWorker {
    /// Listens to `channel`; events come in from here on.
    pub(crate) async fn on(redis: &RedisServer, channel: &str) -> Self {
        let client = redis::Client::open(redis.url()).expect("its URL is valid");
        let events = client.get_async_pubsub().await;
        let mut events = events.expect("redis-server answers");
        events
            .subscribe(channel)
            .await
            .expect("redis-server answers");
        let answers = redis.connection().await.expect("redis-server answers");
        Self { events, answers }
    }

    /// The next event of this type; others are passed over.
    pub(crate) async fn next(&mut self, event_type: &str) -> Value {
        let mut messages = self.events.on_message();
        within(PATIENCE, event_type, async {
            loop {
                let message = messages.next().await.expect("the link stays");
                let event: Value =
                    serde_json::from_slice(message.get_payload_bytes()).expect("the layer is JSON");
                if event["type"] == event_type {
                    return event;
                }
            }
        })
        .await
    }

    /// Answers an event on its reply channel; returns how many replicas heard it.
    pub(crate) async fn answer(&self, event: &Value, answer: &Value) -> u32 {
        let channel = event["reply_channel"].as_str().expect("each event has one");
        redis::cmd("PUBLISH")
            .arg(channel)
            .arg(answer.to_string())
            .query_async(&mut self.answers.clone())
            .await
            .expect("redis-server answers")
    }
}
