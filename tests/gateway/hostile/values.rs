//! Foreign values under Lockgate's keys in Redis: cached users, denials, states. After each of them a healthy socket
//! receives an event.

use serde_json::{Value, json};

use crate::problem::Problem;
use crate::support::database::{ALICE, BOB, CAROL};
use crate::support::socket::Socket;
use crate::support::{
    Database, Gateway, PATIENCE, Publisher, RedisServer, Tenant, eventually, gateway, token,
};

const CHAT: &str = "/ws/chat/lobby/";
/// A path of another group than `chat_lobby`.
const DEN: &str = "/ws/chat/den/";

/// A socket that stays open through a whole test and shows it with events.
pub(crate) struct Healthy {
    socket: Socket,
    publisher: Publisher,
    count: u64,
}

impl Healthy {
    /// Opens a socket of alice at the first tenant, in `chat_lobby`.
    pub(crate) async fn open(gateway: &Gateway) -> Self {
        Self::on(gateway, RedisServer::shared().await).await
    }

    /// As [`Healthy::open`], for a gateway with a Redis of its own.
    pub(crate) async fn on(gateway: &Gateway, redis: &RedisServer) -> Self {
        Self {
            socket: gateway.open(CHAT).await,
            publisher: Publisher::new(redis, &gateway.tenant().prefix).await,
            count: 0,
        }
    }

    /// Sends an event and checks that it is the next one that the socket receives.
    pub(crate) async fn hears(&mut self, after: &str) {
        self.count += 1;
        let event = json!({"type": "x", "healthy": self.count});
        assert_eq!(
            self.publisher.send("chat_lobby", &event).await,
            1,
            "{after}"
        );
        let heard = self.socket.next_json().await;
        assert_eq!(heard, json!({"healthy": self.count}), "{after}");
    }
}

/// The value of a key.
enum Put {
    Text(Vec<u8>),
    /// A value of another type than string, made by this command.
    Made(&'static str),
}

impl Put {
    async fn under(&self, key: &str) {
        let mut link = RedisServer::shared().await.connection().await.unwrap();
        let mut command = match self {
            Put::Text(_) => redis::cmd("SET"),
            Put::Made(word) => redis::cmd(word),
        };
        command.arg(key);
        match self {
            Put::Text(text) => drop(command.arg(text)),
            Put::Made("HSET") => drop(command.arg("field").arg("1")),
            Put::Made("ZADD") => drop(command.arg(1).arg("1")),
            Put::Made(_) => drop(command.arg("1")),
        }
        let _: redis::Value = command.query_async(&mut link).await.unwrap();
    }
}

fn text(text: impl Into<Vec<u8>>) -> Put {
    Put::Text(text.into())
}

async fn forget(key: &str) {
    let _: u32 = RedisServer::shared().await.command(&["DEL", key]).await;
}

/// Returns the number of answers of a dependency that could not be read.
async fn unreadable(gateway: &Gateway, dependency: &str) -> f64 {
    let labels = [("dependency", dependency), ("kind", "protocol")];
    let metrics = gateway.replica().metrics().await;
    metrics.value("lockgate_dependency_errors_total", &labels)
}

fn logged(gateway: &Gateway, what: &str) -> usize {
    gateway.output().matches(what).count()
}

/// Waits until the log has a line so many times. The pipe of a busy machine brings it behind the answer.
async fn is_logged(gateway: &Gateway, what: &str, times: usize) {
    eventually(PATIENCE, what, async || match logged(gateway, what) {
        count if count == times => Ok(()),
        count => Err(count),
    })
    .await;
}

/// Returns a record that would admit carol, who is not active in the database.
fn record(tenant: &Tenant) -> Value {
    json!({"v": 1, "tenant": tenant.name, "id": CAROL, "fetched_at": token::now(), "gen": "",
        "user": {"id": 3, "username": "carol", "is_active": true}})
}

/// Values that must not be used. With one of them in use, a writer to Redis could admit any user.
fn not_believed(tenant: &Tenant) -> Vec<(&'static str, Put)> {
    let good = record(tenant).to_string();
    let with = |key: &str, value: Value| {
        let mut record = record(tenant);
        record[key] = value;
        text(record.to_string())
    };
    let without = |key: &str| {
        let mut record = record(tenant);
        record.as_object_mut().unwrap().shift_remove(key);
        text(record.to_string())
    };
    let user = |user: Value| with("user", user);
    let (head, tail) = good.split_once("carol").unwrap();
    vec![
        ("not JSON", text("nonsense")),
        ("truncated", text(&good[..good.len() - 1])),
        ("empty", text("")),
        ("a list", text(format!("[{good}]"))),
        ("something behind it", text(format!("{good}{{}}"))),
        ("deep", text("[".repeat(100_000))),
        (
            "MessagePack",
            text(b"\x83\xa1v\x01\xa6tenant\xa4acme".to_vec()),
        ),
        (
            "a pickle",
            text(b"\x80\x04\x95\x1e\0\0\0\0\0\0\0\x8c\x05posix\x8c\x06system\x93.".to_vec()),
        ),
        (
            "not UTF-8",
            text([head.as_bytes(), b"\xff", tail.as_bytes()].concat()),
        ),
        ("another version", with("v", json!(2))),
        ("a version as text", with("v", json!("1"))),
        ("no gen", without("gen")),
        ("no user", without("user")),
        ("no time", without("fetched_at")),
        ("no is_active", user(json!({"id": 3}))),
        ("the user is a list", user(json!([true]))),
        (
            "10 MiB",
            user(json!({"id": 3, "is_active": true, "more": "x".repeat(10 << 20)})),
        ),
        ("a list", Put::Made("LPUSH")),
        ("a hash", Put::Made("HSET")),
        ("a set", Put::Made("SADD")),
        ("a sorted set", Put::Made("ZADD")),
        ("another user", with("id", json!(ALICE))),
        ("a number as id", with("id", json!(3))),
        ("written otherwise", with("id", json!("03"))),
        ("another tenant", with("tenant", json!("other"))),
        (
            "a longer name",
            with("tenant", json!(format!("{}2", tenant.name))),
        ),
        ("no tenant", with("tenant", json!(null))),
    ]
}

/// A value that is not a record of this user is counted, logged once, and replaced by the answer of the database.
#[tokio::test]
async fn no_value_in_the_cache_admits_a_user_that_the_database_keeps_out() {
    const TOLD: &str = "A cached user record is ignored";
    let redis = RedisServer::shared().await;
    let gateway = gateway()
        .tenant("acme")
        .users(&Database::sqlite().await)
        .with("users.local_ttl", "0s")
        .start()
        .await;
    let (tenant, replica) = (gateway.tenant(), gateway.replica());
    let mut healthy = Healthy::open(&gateway).await;
    let dial = || replica.dial(tenant, CHAT).token(&tenant.token(CAROL));
    let inactive = Problem::new(401, "user_inactive");
    let (key, generation) = (tenant.redis_key("user:3"), tenant.redis_key("usergen:3"));
    let rewritten = async |row: &str| {
        eventually(PATIENCE, row, async || {
            let record: redis::RedisResult<Option<String>> = redis.ask(&["GET", &key]).await;
            let record = record.ok().flatten().unwrap_or_default();
            let ttl: i64 = redis.command(&["TTL", &key]).await;
            let record: Value = serde_json::from_str(&record).unwrap_or_default();
            let right = record["tenant"] == tenant.name && record["user"]["is_active"] == false;
            if right && ttl > 0 {
                Ok(())
            } else {
                Err((record, ttl))
            }
        })
        .await;
    };
    let rows = not_believed(tenant);
    for (row, put) in &rows {
        forget(&key).await;
        put.under(&key).await;
        let before = unreadable(&gateway, "redis").await;
        inactive.is(&dial().refused().await, &tenant.name);
        // An empty value means the same as none.
        let counted = before + f64::from(u8::from(*row != "empty"));
        assert_eq!(unreadable(&gateway, "redis").await, counted, "{row}");
        rewritten(row).await;
        healthy.hears(row).await;
    }
    // One line for all of them, because no usable record came between.
    is_logged(&gateway, TOLD, 1).await;
    assert!(!gateway.output().contains(&"x".repeat(100)));

    // Records that the tenant's back end may write.
    let mut newer = record(tenant);
    newer["written_by"] = json!({"version": 9});
    newer["user"]["more"] = json!([1]);
    let mut ahead = record(tenant);
    ahead["fetched_at"] = json!(token::now() + 86_400);
    for (row, believed) in [("further fields", &newer), ("time ahead", &ahead)] {
        text(believed.to_string()).under(&key).await;
        let before = unreadable(&gateway, "redis").await;
        dial().open().await;
        assert_eq!(unreadable(&gateway, "redis").await, before, "{row}");
        healthy.hears(row).await;
    }
    // Without an expiry of the key the record's own time counts, and the next record has an expiry again.
    let mut old = record(tenant);
    old["fetched_at"] = json!(token::now() - 100_000);
    text(old.to_string()).under(&key).await;
    inactive.is(&dial().refused().await, &tenant.name);
    rewritten("no expiry").await;

    // With a generation that cannot be read, the record beside it is not used.
    text(record(tenant).to_string()).under(&key).await;
    Put::Made("LPUSH").under(&generation).await;
    let before = unreadable(&gateway, "redis").await;
    inactive.is(&dial().refused().await, &tenant.name);
    assert_eq!(unreadable(&gateway, "redis").await, before + 1.0);
    is_logged(&gateway, TOLD, 2).await;
    healthy.hears("a generation that is a list").await;
}

/// Any value under a token's own key denies the token. A cut-off that cannot be read refuses new sockets and leaves open
/// ones; it is counted, and logged once until it can be read again.
#[tokio::test]
async fn every_value_under_the_denylists_keys_counts() {
    const TOLD: &str = "A cut-off in the denylist cannot be read";
    const OVER: &str = "The cut-offs in the denylist can be read again";
    let gateway = gateway()
        .set("denylist.recheck", "1s")
        .tenant("acme")
        .users(&Database::sqlite().await)
        .start()
        .await;
    let (tenant, replica) = (gateway.tenant(), gateway.replica());
    let mut healthy = Healthy::open(&gateway).await;
    let revoked = Problem::new(401, "token_revoked");
    let values = || {
        [
            ("0", text("0")),
            ("empty", text("")),
            ("1 MiB", text("1".repeat(1 << 20))),
            ("a list", Put::Made("LPUSH")),
            ("a hash", Put::Made("HSET")),
            ("a set", Put::Made("SADD")),
        ]
    };
    for (row, put) in values() {
        let claims = token::access(BOB);
        let dial = || replica.dial(tenant, DEN).token(&tenant.sign(&claims));
        let mut socket = dial().open().await;
        let jti = claims["jti"].as_str().unwrap();
        put.under(&tenant.redis_key(&format!("deny:jti:{jti}")))
            .await;
        revoked.is(&dial().refused().await, &tenant.name);
        assert_eq!(
            socket.closed().await,
            (4501, "token_revoked".into()),
            "{row}"
        );
        healthy.hears(row).await;
    }
    assert_eq!(unreadable(&gateway, "denylist").await, 0.0);

    let unavailable = Problem::new(503, "unavailable");
    let mut told = 0;
    let of_user = [
        ("a word", text("soon")),
        ("empty", text("")),
        ("1 MiB", text("1".repeat(1 << 20))),
        ("a list", Put::Made("LPUSH")),
    ];
    let of_tenant = [("a hash", Put::Made("HSET"))];
    let until = r#"{"user_id":"2","issued_before":1}"#;
    for (key, rows, body) in [
        ("deny:user:2", &of_user[..], until),
        ("deny:all", &of_tenant[..], r#"{"issued_before":1}"#),
    ] {
        let key = tenant.redis_key(key);
        let mut socket = replica
            .dial(tenant, DEN)
            .token(&tenant.token(BOB))
            .open()
            .await;
        for (row, put) in rows {
            forget(&key).await;
            put.under(&key).await;
            let before = unreadable(&gateway, "denylist").await;
            let dial = replica.dial(tenant, DEN).token(&tenant.token(BOB));
            unavailable.is(&dial.refused().await, &tenant.name);
            // One error of this handshake, and one of the recheck of all open sockets.
            let labels = [("dependency", "denylist"), ("kind", "protocol")];
            replica
                .metric("lockgate_dependency_errors_total", &labels, |n| {
                    n >= before + 2.0
                })
                .await;
            assert!(socket.ping().await.is_empty(), "{key} {row}");
            healthy.hears(row).await;
            // A revocation replaces the value; its cut-off is older than any token.
            let revocations = format!("/v1/tenants/{}/revocations", tenant.name);
            let answer = replica
                .api(&gateway.api_key, "POST", &revocations, body)
                .await;
            assert_eq!(answer.status, 200, "{key} {row}: {answer:?}");
            told += 1;
            is_logged(&gateway, OVER, told).await;
            is_logged(&gateway, TOLD, told).await;
        }
        replica
            .dial(tenant, DEN)
            .token(&tenant.token(BOB))
            .open()
            .await;
    }
}

/// Only the word `suspended` suspends a tenant, also if it was there before the start; a value of another type does not.
#[tokio::test]
async fn a_state_that_is_kept_holds_from_the_start_and_no_other_value_does() {
    let mut gateway = gateway()
        .set("denylist.recheck", "1s")
        .tenant("acme")
        .users(&Database::sqlite().await)
        .tenant("other")
        .users(&Database::sqlite().await)
        .write()
        .await;
    let (acme, other) = (
        gateway.named("acme").clone(),
        gateway.named("other").clone(),
    );
    let key = acme.redis_key("state");
    text("suspended").under(&key).await;
    Put::Made("LPUSH").under(&other.redis_key("state")).await;
    gateway.add_replica().await;
    let replica = gateway.replica();
    replica.ready().await;
    let dial = |tenant: &Tenant| replica.dial(tenant, CHAT).token(&tenant.token(ALICE));
    let suspended = Problem::new(403, "tenant_suspended");
    suspended.is(&dial(&acme).refused().await, &acme.name);
    let mut socket = dial(&other).open().await;
    for value in ["Suspended", ""] {
        text(value).under(&key).await;
        eventually(PATIENCE, value, async || {
            dial(&acme).attempt().await.map(drop)
        })
        .await;
        text("suspended").under(&key).await;
        eventually(PATIENCE, value, async || {
            match dial(&acme).attempt().await {
                Err(refusal) if refusal.status == 403 => Ok(()),
                other => Err(other.map(drop)),
            }
        })
        .await;
    }
    assert!(socket.ping().await.is_empty());
}
