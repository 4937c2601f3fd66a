//! Keys whose members, fields or names the gateway reads, with members of 20 MB that a tenant wrote.

use serde_json::json;

use crate::support::database::ALICE;
use crate::support::http::Response;
use crate::support::socket::Socket;
use crate::support::{Gateway, PATIENCE, RedisServer, Tenant, eventually, gateway, http};

const CHAT: &str = "/ws/chat/lobby/";
/// Two members of this length are longer than what the process may grow by.
const LONG: usize = 20 << 20;
/// Memory by which the process may grow.
const GROWTH: u64 = 32 << 20;

/// Runs a script on one key. Redis takes a while for long members.
async fn write(server: &RedisServer, key: &str, script: &str) {
    let client = redis::Client::open(server.url()).unwrap();
    let patient = redis::AsyncConnectionConfig::new().set_response_timeout(Some(4 * PATIENCE));
    let connection = client.get_multiplexed_async_connection_with_config(&patient);
    let mut connection = connection.await.unwrap();
    let script = format!(
        "local now, long = redis.call('TIME')[1], function(i) return i .. string.rep('a', {LONG}) end {script}"
    );
    let mut write = redis::cmd("EVAL");
    write.arg(script).arg(1).arg(key);
    let _: redis::Value = write.query_async(&mut connection).await.unwrap();
}

async fn open(gateway: &Gateway, tenant: &Tenant) -> Socket {
    let dial = gateway.replica().dial(tenant, CHAT);
    dial.token(&tenant.token(ALICE)).open().await
}

/// Makes the gateway read every key of the tenant. An error while Redis, which one long member stops for a while, does not answer.
async fn use_all(gateway: &Gateway, tenant: &Tenant) -> Result<(), Response> {
    let api = async |method: &str, path: &str, body: &str| {
        let path = format!("/v1/tenants{path}");
        let answer = gateway
            .replica()
            .api(&gateway.api_key, method, &path, body)
            .await;
        if answer.status == 200 {
            Ok(())
        } else {
            Err(answer)
        }
    };
    let group = format!("/{}/groups/chat_lobby", tenant.name);
    for path in [
        "",
        &format!("/{}/connections", tenant.name),
        &format!("{group}/presence"),
        &format!("{group}/presence/count"),
    ] {
        api("GET", path, "").await?;
    }
    let event = json!({"type": "x"}).to_string();
    api("POST", &format!("{group}/send"), &event).await?;
    // It asks the replicas of the deployment.
    let replica = gateway.replica();
    let reloaded = replica.api(&gateway.api_key, "POST", "/v1/reload", "");
    let reloaded = reloaded.await;
    if reloaded.status != 200 {
        return Err(reloaded);
    }
    let dial = gateway.replica().dial(tenant, CHAT);
    let mut socket = dial.token(&tenant.token(ALICE)).attempt().await?;
    socket.ping().await;
    Ok(())
}

/// Before, each of these grew by the length of the members: redis-rs holds an answer whole.
#[tokio::test]
async fn members_of_20_mb_take_no_memory_and_no_connect_of_a_neighbour() {
    let redis = RedisServer::start().await;
    let gateway = gateway()
        .redis(&redis.url())
        // The sockets do not answer pings meanwhile.
        .set("server.heartbeat.interval", "24h")
        .set("server.heartbeat.timeout", "1h")
        .tenant("acme")
        .with("layer.kind", "core")
        .with_toml(
            "groups = [{ name = 'chat_<slug:room>', presence = { notify = true, linger = '5s' } }]",
        )
        .tenant("other")
        .with("layer.kind", "core")
        .start()
        .await;
    let (acme, other) = (gateway.named("acme"), gateway.named("other"));
    let _present = open(&gateway, acme).await;
    let mut neighbour = open(&gateway, other).await;
    use_all(&gateway, acme).await.unwrap();
    let group = format!("{}:group:chat_lobby", acme.prefix);
    let presence = acme.redis_key(&format!("presence:{{{group}}}"));
    for (key, script) in [
        (
            group.clone(),
            "for i = 1, 2 do redis.call('ZADD', KEYS[1], now, long(i)) end",
        ),
        (
            format!("{presence}:users"),
            "for i = 1, 2 do redis.call('ZADD', KEYS[1], 0, long(i)) end",
        ),
        (
            format!("{presence}:users"),
            "for i = 1, 2 do redis.call('ZADD', KEYS[1], i, long(i)) end",
        ),
        (
            format!("{presence}:leaving"),
            "for i = 0, 1 do redis.call('ZADD', KEYS[1], now * 1000 + 2000 + 60000 * i, long(i)) end",
        ),
        (
            presence.clone(),
            "redis.call('HSET', KEYS[1], 'epoch', long(1) .. long(2))",
        ),
        (
            presence.clone(),
            "for i = 1, 2 do redis.call('HSET', KEYS[1], long(i), long(i)) end",
        ),
        (
            acme.redis_key("presence-replicas"),
            "for i = 1, 2 do redis.call('ZADD', KEYS[1], now * 1000 + 60000, long(i)) end",
        ),
        (
            acme.redis_key("replicas"),
            "for i = 1, 2 do redis.call('SADD', KEYS[1], long(i)) end",
        ),
        (
            "lockgate::replicas".to_owned(),
            "for i = 1, 2 do redis.call('SADD', KEYS[1], long(i)) end",
        ),
    ] {
        let before = gateway.replica().process.peak_memory();
        write(&redis, &key, script).await;
        // What is met goes, so that Redis does not read it again.
        eventually(4 * PATIENCE, "the long members go", async || {
            let used = use_all(&gateway, acme).await;
            let ask = ["MEMORY", "USAGE", &key, "SAMPLES", "0"];
            let size: Option<u64> = redis.command(&ask).await;
            match size {
                Some(size) if size > 1 << 20 => Err(format!("{size} bytes")),
                _ => used.map_err(|refused| format!("{refused:?}")),
            }
        })
        .await;
        neighbour.ping().await;
        open(&gateway, other).await.ping().await;
        grown_little(&gateway, before, &key);
    }
    the_mark_is_not_read(&redis, &gateway, acme).await;
    neighbour.ping().await;
}

fn grown_little(gateway: &Gateway, before: u64, key: &str) {
    let grown = gateway.replica().process.peak_memory();
    let grown = grown.saturating_sub(before);
    println!("{key}: {} MiB more memory", grown >> 20);
    assert!(grown < GROWTH, "{key}: {} MiB", grown >> 20);
}

async fn the_mark_is_not_read(redis: &RedisServer, gateway: &Gateway, tenant: &Tenant) {
    let pattern = format!("{}*$alive", tenant.prefix);
    let marks: Vec<String> = redis.command(&["KEYS", &pattern]).await;
    let before = gateway.replica().process.peak_memory();
    for mark in &marks {
        write(
            redis,
            mark,
            "redis.call('SET', KEYS[1], long(1) .. long(2), 'EX', 60)",
        )
        .await;
        eventually(PATIENCE, "the mark lives longer", async || {
            let left: u64 = redis.command(&["TTL", mark]).await;
            if left > 100 { Ok(()) } else { Err(left) }
        })
        .await;
    }
    assert_eq!(marks.len(), 1);
    grown_little(gateway, before, &marks[0]);
    // It is still noticed that a mark is gone.
    let (gaps, labels) = ("lockgate_gaps_total", [("tenant", &*tenant.name)]);
    let before = gateway.replica().metrics().await.value(gaps, &labels);
    eventually(2 * PATIENCE, "a gap is counted", async || {
        // A link that is made again in this moment sets its mark, and does not miss the one before.
        let _: u64 = redis.command(&["DEL", &marks[0]]).await;
        let now = gateway.replica().metrics().await.value(gaps, &labels);
        if now > before { Ok(()) } else { Err(now) }
    })
    .await;
}

/// Before: the gateway removed each key that the list named, so that a revoked token of another tenant was good again.
#[tokio::test]
async fn a_list_of_answers_names_no_key_of_another_tenant() {
    let redis = RedisServer::start().await;
    let gateway = gateway()
        .redis(&redis.url())
        .tenant("acme")
        .tenant("other")
        .start()
        .await;
    let (acme, other) = (gateway.named("acme"), gateway.named("other"));
    let denied = other.redis_key(&format!("deny:user:{ALICE}"));
    let (old, new) = (acme.redis_key("idem:old"), acme.redis_key("idem:new"));
    for key in [&denied, &old, &new] {
        let _: redis::Value = redis.command(&["SET", key, "99999999999"]).await;
    }
    let before = gateway.replica().process.peak_memory();
    let script = format!(
        "redis.call('ZADD', KEYS[1], 1, '{denied}', 2, '{old}', 3, 'new') \
         for i = 4, 5 do redis.call('ZADD', KEYS[1], i, long(i)) end \
         for i = 1, 100001 do redis.call('ZADD', KEYS[1], 10 + i, 'x' .. i) end"
    );
    let list = acme.redis_key("answers");
    write(&redis, &list, &script).await;
    let path = format!("/v1/tenants/{}/groups/chat_lobby/send", acme.name);
    let bearer = format!("Bearer {}", gateway.api_key);
    let once = [("Authorization", bearer.as_str()), ("Idempotency-Key", "k")];
    let sent = http::request(
        gateway.replica().api,
        "POST",
        &path,
        &once,
        r#"{"type": "x"}"#,
    );
    let sent = sent.await;
    assert_eq!(sent.status, 200, "{sent:?}");
    let left: u64 = redis.command(&["ZCARD", &list]).await;
    assert_eq!(left, 100_000);
    let dial = gateway.replica().dial(other, CHAT);
    let refused = dial.token(&other.token(ALICE)).refused().await;
    assert_eq!(refused.status, 401, "{refused:?}");
    // Those of its own answers go, as this version and earlier ones note them.
    let gone = async || match redis.command::<u64>(&["EXISTS", &old, &new]).await {
        0 => Ok(()),
        left => Err(left),
    };
    eventually(PATIENCE, "the oldest answers are gone", gone).await;
    let noted: Option<f64> = redis.command(&["ZSCORE", &list, "k"]).await;
    assert!(noted.is_some());
    grown_little(&gateway, before, &list);
}
