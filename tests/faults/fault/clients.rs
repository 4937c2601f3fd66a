//! Faults of clients: they all come at once, go silent, or do not read.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::field::HURT;
use crate::stage::Stage;
use crate::support::Publisher;
use crate::support::database::ALICE;
use crate::support::socket::Dial;

/// What clients do.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ClientFault {
    /// Every client of both tenants connects again at once.
    Storm,
    /// So many connections send half a request, or nothing.
    HalfOpen(usize),
    /// So many sockets in a group with much traffic never read.
    DoNotRead(usize),
}

/// The bytes of an event that fills the queues of sockets that do not read, and the time between two.
const BULK: usize = 64 * 1024;
const BULK_PACE: Duration = Duration::from_millis(15);

impl ClientFault {
    pub(super) async fn begin(self, stage: &mut Stage) {
        match self {
            Self::Storm => stage.field.storms.send_modify(|count| *count += 1),
            Self::HalfOpen(count) => half_open(stage, count).await,
            Self::DoNotRead(count) => do_not_read(stage, count).await,
        }
    }
}

async fn half_open(stage: &mut Stage, count: usize) {
    let server = stage.gateway.replicas[0].server;
    let open = |n: usize| async move {
        let mut stream = TcpStream::connect(server).await.ok()?;
        if n.is_multiple_of(2) {
            // The rest of the head never comes.
            let half = stream.write_all(b"GET /ws/0/ HTTP/1.1\r\nHost: ");
            half.await.ok()?;
        }
        Some(stream)
    };
    let streams = join_all((0..count).map(open)).await;
    assert!(
        streams.iter().flatten().count() > count / 2,
        "they connect at first"
    );
    stage.kept.spawn(async move {
        let _streams = streams;
        std::future::pending::<()>().await;
    });
}

/// Sockets in the first group of `hurt` that do not read, and so many bytes for them that their queues are full.
async fn do_not_read(stage: &mut Stage, count: usize) {
    let tenant = stage.gateway.named("hurt").clone();
    let mut streams = Vec::new();
    for n in 0..count {
        let replica = &stage.gateway.replicas[n % 2];
        let dial = Dial::new(replica.server, &tenant.host, "/all/0/");
        streams.push(dial.token(&tenant.token(ALICE)).open().await.into_stream());
    }
    let url = stage.field.addresses.lock().redis[HURT].clone();
    let client = redis::Client::open(url).expect("a valid URL");
    let link = client.get_multiplexed_async_connection().await;
    let publisher = Publisher::on(link.expect("Redis answers"), &tenant.prefix);
    let bulk = json!({"type": "bulk", "bulk": "x".repeat(BULK)});
    stage.kept.spawn(async move {
        let _streams = streams;
        let mut tick = tokio::time::interval(BULK_PACE);
        loop {
            tick.tick().await;
            // Redis may be under a fault of its own in a soak.
            drop(publisher.try_send("g_0", &bulk).await);
        }
    });
}
