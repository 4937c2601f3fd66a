//! Floods on the channels of commands, from a writer that has access to Redis: they hold up no other tenant, take nothing from
//! the tenant's own revocations, and make no flood of answers. The replica has one thread, so that nothing runs beside the
//! flood by chance.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use serde_json::{Value, json};

use crate::support::database::{ALICE, BOB};
use crate::support::replica::Replica;
use crate::support::socket::Socket;
use crate::support::{Database, Gateway, PATIENCE, RedisServer, gateway};

const CHAT: &str = "/ws/chat/lobby/";
/// The messages of a flood of questions.
const FLOOD: usize = 20_000;
/// The messages of a flood of orders, each of which is carried out or merged.
const ORDERS: usize = 5_000;
/// `limits.control_per_second`: far below what the slowest build takes.
const RATE: u32 = 50;
/// Open sockets of the tenant whose channel is flooded.
const SOCKETS: usize = 100;
/// The longest stall of another tenant's echo that is taken for the machine's and not for the flood's.
const STALL: Duration = Duration::from_secs(8);

/// A replica with one thread, a tenant `loud` with sockets and a tenant `quiet` that echoes.
async fn one_thread() -> (RedisServer, Gateway, Vec<Socket>) {
    let redis = RedisServer::start().await;
    let users = Database::sqlite().await;
    let mut gateway = gateway()
        .redis(&redis.url())
        // The sockets of the tests do not answer pings.
        .set("server.heartbeat.interval", "24h")
        .set("server.heartbeat.timeout", "1h")
        .tenant("loud")
        .users(&users)
        .with("limits.control_per_second", RATE)
        .tenant("quiet")
        .users(&users)
        .with("limits.messages_per_second", 0)
        .route("path = \"ws/echo/\"\nconsumer = { kind = \"echo\" }")
        .write()
        .await;
    let program = Replica::program(&gateway.config).env("TOKIO_WORKER_THREADS", "1");
    gateway.replicas.push(Replica::run(program).await);
    gateway.replica().ready().await;
    let mut sockets = Vec::new();
    for _ in 0..SOCKETS {
        sockets.push(gateway.open(CHAT).await);
    }
    (redis, gateway, sockets)
}

/// Publishes messages to a channel as fast as Redis takes them.
async fn flood(redis: &RedisServer, channel: &str, messages: impl Iterator<Item = Vec<u8>>) {
    let mut link = redis.connection().await.unwrap();
    let mut messages = messages.peekable();
    while messages.peek().is_some() {
        let mut pipe = ::redis::Pipeline::new();
        for message in messages.by_ref().take(500) {
            pipe.cmd("PUBLISH").arg(channel).arg(message).ignore();
        }
        // On a busy machine an answer may take longer than the client waits; the messages are on their way all the same.
        let sent: ::redis::RedisResult<()> = pipe.query_async(&mut link).await;
        assert!(sent.as_ref().is_ok_and(|()| true) || sent.is_err_and(|e| e.is_timeout()));
    }
}

/// Echoes until `end` is there; returns the longest time that one took.
async fn longest_echo(echo: &mut Socket, end: impl Future<Output = ()>) -> Duration {
    let mut end = std::pin::pin!(end);
    let mut longest = Duration::ZERO;
    loop {
        let began = Instant::now();
        echo.send_text("x").await;
        assert_eq!(echo.next_text_within(2 * PATIENCE).await, "x");
        longest = longest.max(began.elapsed());
        let ended = tokio::time::timeout(Duration::from_millis(1), &mut end);
        if ended.await.is_ok() {
            return longest;
        }
    }
}

fn claims(jti: &str) -> Value {
    let mut claims = crate::support::token::access(BOB);
    claims["jti"] = jti.into();
    claims
}

/// The message that revokes one token.
fn revoke(jti: &str) -> Vec<u8> {
    json!({"v": 1, "op": "revoke", "jti": jti})
        .to_string()
        .into_bytes()
}

/// The stall used to be 12.2 s: each `list` walked over all sockets, and nothing else ran until the last one was served.
#[tokio::test]
async fn a_flood_of_questions_holds_up_no_neighbour_and_no_revocation() {
    let (redis, gateway, _sockets) = one_thread().await;
    let (loud, quiet) = (gateway.named("loud"), gateway.named("quiet"));
    let replica = gateway.replica();
    let dial = replica.dial(quiet, "/ws/echo/").token(&quiet.token(ALICE));
    let mut echo = dial.open().await;
    let open = async |jti: &str| {
        let dial = replica.dial(loud, CHAT).token(&loud.sign(&claims(jti)));
        dial.open().await
    };
    let (mut middle, mut last) = (open("middle").await, open("last").await);
    let list = || json!({"v": 1, "op": "list", "limit": 1}).to_string();
    let messages = (0..FLOOD).map(|number| match number {
        10_000 => revoke("middle"),
        number if number + 1 == FLOOD => revoke("last"),
        _ => list().into_bytes(),
    });
    let channel = loud.redis_key("control");
    let served = async {
        flood(&redis, &channel, messages).await;
        for socket in [&mut middle, &mut last] {
            assert_eq!(socket.closed_within(4 * PATIENCE).await.0, 4501);
        }
    };
    let longest = longest_echo(&mut echo, served).await;
    println!("the longest echo took {longest:?}");
    assert!(longest < STALL, "{longest:?}");
    let labels = [("tenant", loud.name.as_str()), ("reason", "rate")];
    let dropped = replica.metrics().await;
    let dropped = dropped.value("lockgate_control_dropped_total", &labels);
    assert!(dropped > 0.0 && dropped < FLOOD as f64, "{dropped}");
}

/// Each of these used to start a task that publishes: one replica could publish without end, to a channel that the sender chose.
#[tokio::test]
async fn a_flood_with_forged_addresses_makes_no_flood_of_answers() {
    let (redis, gateway, _sockets) = one_thread().await;
    let loud = gateway.named("loud");
    let client = ::redis::Client::open(redis.url()).unwrap();
    let mut heard = client.get_async_pubsub().await.unwrap();
    heard.subscribe("lockgate::reply:forged").await.unwrap();
    let began = Instant::now();
    let dial = gateway.replica().dial(loud, CHAT);
    let mut last = dial.token(&loud.sign(&claims("last"))).open().await;
    let messages = (0..ORDERS).map(|number| {
        let message = match number % 4 {
            _ if number + 1 == ORDERS => return revoke("last"),
            0 => json!({"v": 1, "op": "list"}),
            1 => json!({"v": 1, "op": "revoke", "jti": number.to_string()}),
            2 => json!({"v": 1, "op": "revoke", "issued_before": 1}),
            _ => json!({"v": 1, "op": "invalidate", "user_id": number}),
        };
        let mut message = message;
        message["id"] = "x".into();
        message["reply"] = "lockgate::reply:forged".into();
        message.to_string().into_bytes()
    });
    flood(&redis, &loud.redis_key("control"), messages).await;
    assert_eq!(last.closed_within(4 * PATIENCE).await.0, 4501);
    let mut answers = 0u64;
    let mut stream = heard.on_message();
    // The bound is per second. Merged orders are answered later: the count ends when a second brings none.
    while let Ok(Some(_)) = tokio::time::timeout(Duration::from_secs(1), stream.next()).await {
        answers += 1;
    }
    let most = 1000 * (3 + began.elapsed().as_secs());
    println!("{answers} answers, at most {most}");
    assert!(
        answers <= most.min(ORDERS as u64 * 3 / 4),
        "{answers} > {most}"
    );
    let labels = [("tenant", loud.name.as_str()), ("reason", "answers")];
    let metrics = gateway.replica().metrics().await;
    let dropped = metrics.value("lockgate_control_dropped_total", &labels);
    assert!(dropped > 0.0, "no answer was dropped");
}

/// Orders that take long are merged. Each used to start a task, or a walk over all sockets.
#[tokio::test]
async fn a_flood_of_orders_that_take_long_loses_none_of_them() {
    let (redis, gateway, mut sockets) = one_thread().await;
    let (loud, quiet) = (gateway.named("loud"), gateway.named("quiet"));
    let replica = gateway.replica();
    let dial = replica.dial(quiet, "/ws/echo/").token(&quiet.token(ALICE));
    let mut echo = dial.open().await;
    let dial = replica.dial(loud, CHAT).token(&loud.token(BOB));
    let mut bob = dial.open().await;
    loud.database
        .execute("UPDATE auth_user SET is_active = false WHERE id = 2")
        .await;
    let messages = (0..ORDERS).map(|number| {
        let message = match number % 4 {
            _ if number == ORDERS / 2 => json!({"v": 1, "op": "invalidate", "user_id": BOB}),
            _ if number + 1 == ORDERS => json!({"v": 1, "op": "suspend"}),
            0 => json!({"v": 1, "op": "revoke", "issued_before": number % 1000}),
            1 => json!({"v": 1, "op": "resume"}),
            _ => json!({"v": 1, "op": "invalidate", "user_id": 1000 + number}),
        };
        message.to_string().into_bytes()
    });
    let channel = loud.redis_key("control");
    let served = async {
        flood(&redis, &channel, messages).await;
        // By the invalidation or, where it takes longer, by the suspension at the end.
        let code = bob.closed_within(4 * PATIENCE).await.0;
        assert!([4502, 4016].contains(&code), "{code}");
        for socket in &mut sockets {
            assert_eq!(socket.closed_within(4 * PATIENCE).await.0, 4016);
        }
    };
    let longest = longest_echo(&mut echo, served).await;
    println!("the longest echo took {longest:?}");
    assert!(longest < STALL, "{longest:?}");
}

/// Messages that are no commands, short and long, and the deployment's own channel.
#[tokio::test]
async fn a_flood_of_rubbish_holds_up_no_neighbour() {
    let (redis, gateway, _sockets) = one_thread().await;
    let (loud, quiet) = (gateway.named("loud"), gateway.named("quiet"));
    let replica = gateway.replica();
    let dial = replica.dial(quiet, "/ws/echo/").token(&quiet.token(ALICE));
    let mut echo = dial.open().await;
    let dial = replica.dial(loud, CHAT).token(&loud.sign(&claims("last")));
    let mut last = dial.open().await;
    let numbers = "1e15,".repeat(20_000);
    let large = json!({"v": 1, "op": "send", "user_id": ALICE, "event": "EVENT"}).to_string();
    let large = large.replace(
        "\"EVENT\"",
        &format!("{{\"type\":\"x\",\"n\":[{numbers}1]}}"),
    );
    let channel = loud.redis_key("control");
    let served = async {
        let reloads = (0..FLOOD).map(|_| b"{\"v\":1,\"op\":\"reload\"}".to_vec());
        flood(&redis, "lockgate::control", reloads).await;
        let rubbish = (0..FLOOD).map(|number| vec![b'{'; number % 100]);
        flood(&redis, &channel, rubbish).await;
        flood(
            &redis,
            &channel,
            (0..300).map(|_| large.clone().into_bytes()),
        )
        .await;
        // What did not fit into the queue is found in the denylist.
        let key = loud.redis_key("deny:jti:last");
        let _: () = redis.command(&["SET", &key, "1", "EX", "60"]).await;
        flood(&redis, &channel, [revoke("last")].into_iter()).await;
        assert_eq!(last.closed_within(4 * PATIENCE).await.0, 4501);
    };
    let longest = longest_echo(&mut echo, served).await;
    println!("the longest echo took {longest:?}");
    assert!(longest < STALL, "{longest:?}");
}
