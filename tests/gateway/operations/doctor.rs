//! `lockgate doctor`, and the watch over the denylist's Redis.

use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::support::replica::LOCKGATE;
use crate::support::{Database, PATIENCE, RedisServer, eventually, gateway, unique};

const AT_RISK: &str = "lockgate_denylist_at_risk";

/// The doctor's output and exit status.
pub(crate) struct Diagnosis {
    pub(crate) text: String,
    pub(crate) status: Option<i32>,
}

pub(crate) fn doctor(config: &Path, arguments: &[&str]) -> Diagnosis {
    let output = Command::new(LOCKGATE)
        .args(["doctor", "--config"])
        .arg(config)
        .args(arguments)
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!error.contains("panicked"), "{error}");
    Diagnosis {
        text: String::from_utf8(output.stdout).unwrap(),
        status: output.status.code(),
    }
}

/// The findings as JSON. A server may answer later than the doctor waits where the machine is busy, and is asked again then.
pub(crate) fn findings(config: &Path) -> Value {
    let mut found = looked(config);
    for _ in 0..5 {
        if !found.to_string().contains("not connected yet (io)") {
            break;
        }
        found = looked(config);
    }
    found
}

/// One look, whose exit status fits its findings.
fn looked(config: &Path) -> Value {
    let diagnosis = doctor(config, &["--json"]);
    let found: Value = serde_json::from_str(&diagnosis.text).unwrap();
    let fails = found["findings"]
        .as_array()
        .unwrap()
        .iter()
        .any(|f| f["verdict"] == "fail");
    assert_eq!(found["ok"], !fails, "{found}");
    assert_eq!(diagnosis.status, Some(i32::from(fails)), "{found}");
    found
}

/// The only finding of a check whose subject begins with `subject`.
fn finding<'a>(found: &'a Value, subject: &str, check: &str) -> &'a Value {
    let all = found["findings"].as_array().unwrap().iter();
    let of: Vec<_> = all
        .filter(|f| f["subject"].as_str().unwrap().starts_with(subject) && f["check"] == check)
        .collect();
    match of[..] {
        [one] => one,
        _ => panic!("{} findings of {check} on {subject}: {found}", of.len()),
    }
}

pub(crate) fn is(found: &Value, (subject, check): (&str, &str), verdict: &str, detail: &str) {
    let finding = finding(found, subject, check);
    assert_eq!(finding["verdict"], verdict, "{finding}");
    assert!(
        finding["detail"].as_str().unwrap().contains(detail),
        "{finding}"
    );
    let advised = !finding["advice"].as_str().unwrap().is_empty();
    if matches!(verdict, "warn" | "fail") {
        assert!(advised, "{finding}");
    }
}

#[tokio::test]
async fn a_healthy_deployment_passes_and_no_secret_is_printed() {
    let redis = RedisServer::start().await;
    let () = redis
        .command(&[
            "ACL", "SETUSER", "boss", "on", ">hunter2", "~*", "&*", "+@all",
        ])
        .await;
    let url = format!("redis://boss:hunter2@{}/0", redis.endpoint());
    let role = format!("reader_{}", unique().replace('-', "_"));
    let database = Database::postgres().await;
    for statement in [
        format!("CREATE ROLE {role} LOGIN PASSWORD 'swordfish'"),
        format!("GRANT SELECT ON auth_user TO {role}"),
    ] {
        database.execute(&statement).await;
    }
    let reader = database
        .url()
        .replace("lockgate@", &format!("{role}:swordfish@"));
    let gateway = gateway()
        .redis(&url)
        .tenant("acme")
        .users(&Database::at(reader))
        .write()
        .await;
    let found = findings(&gateway.config);
    assert_eq!(found["ok"], true, "{found}");
    let tenant = &gateway.tenant().name;
    let server = "redis boss@127.0.0.1:";
    is(
        &found,
        (server, "reach"),
        "ok",
        &format!("denylist of {tenant}"),
    );
    for (check, verdict, detail) in [
        ("version", "ok", "."),
        ("role", "ok", "master"),
        ("eviction", "ok", "no maxmemory"),
        ("persistence", "warn", "forgets every revocation"),
        ("failover", "ok", "no replica"),
        ("lost_data", "note", "unknown"),
        ("latency", "ok", "median"),
        ("clock", "ok", " s against"),
        ("write", "ok", "written"),
        ("pubsub", "ok", "came back"),
        ("permission", "ok", tenant),
    ] {
        is(&found, (server, check), verdict, detail);
    }
    is(&found, ("database 127.0.0.1:", "reach"), "ok", "no TLS");
    is(&found, ("database ", "columns"), "ok", tenant);
    is(&found, ("database ", "role"), "ok", "only read");
    is(&found, ("database ", "clock"), "ok", " s against");
    is(
        &found,
        ("this machine", "memory"),
        "ok",
        "max_queue_bytes is ",
    );
    finding(&found, "this machine", "descriptors");

    let printed = doctor(&gateway.config, &[]);
    assert_eq!(printed.status, Some(0), "{}", printed.text);
    assert!(
        printed.text.contains("\n  ok    pubsub"),
        "{}",
        printed.text
    );
    assert!(printed.text.ends_with(", 0 fail\n"), "{}", printed.text);
    for secret in ["hunter2", "swordfish", &gateway.tenant().key] {
        assert!(!printed.text.contains(secret), "{}", printed.text);
        assert!(!found.to_string().contains(secret), "{found}");
    }
    // Nothing stays behind but what goes by itself.
    eventually(PATIENCE, "the probes are gone", async || {
        match redis.command::<u64>(&["DBSIZE"]).await {
            0 => Ok(()),
            keys => Err(keys),
        }
    })
    .await;
}

#[tokio::test]
async fn a_denylist_that_may_forget_fails_and_says_what_to_do() {
    let (redis, master) = (RedisServer::start().await, RedisServer::start().await);
    let gateway = gateway().redis(&redis.url()).tenant("acme").write().await;
    let set = async |name: &str, value: &str| {
        let () = redis.command(&["CONFIG", "SET", name, value]).await;
    };
    set("maxmemory", "100mb").await;
    for policy in ["volatile-ttl", "allkeys-lru", "volatile-lfu"] {
        set("maxmemory-policy", policy).await;
        let found = findings(&gateway.config);
        is(&found, ("redis ", "eviction"), "fail", policy);
    }
    set("maxmemory-policy", "noeviction").await;
    set("appendonly", "yes").await;
    let found = findings(&gateway.config);
    is(&found, ("redis ", "eviction"), "ok", "noeviction");
    is(&found, ("redis ", "persistence"), "ok", "appendonly");
    assert_eq!(found["ok"], true, "{found}");

    let port = master.endpoint().replace("127.0.0.1:", "");
    let () = redis.command(&["REPLICAOF", "127.0.0.1", &port]).await;
    let found = findings(&gateway.config);
    is(&found, ("redis ", "role"), "fail", "replica");
    is(&found, ("redis ", "write"), "fail", "");
}

/// A replica gets a write a moment after the client has its answer.
#[tokio::test]
async fn a_denylist_whose_writes_a_failover_may_lose_is_told() {
    let redis = RedisServer::start().await;
    let with = async |replicas: u32| {
        let gateway = gateway().redis(&redis.url()).tenant("acme");
        gateway.set("denylist.replicas", replicas).write().await
    };
    let (confirmed_at_once, acknowledged) = (with(0).await, with(1).await);
    let found = findings(&confirmed_at_once.config);
    is(&found, ("redis ", "failover"), "ok", "no replica");
    let found = findings(&acknowledged.config);
    is(&found, ("redis ", "failover"), "fail", "is refused");

    let replica = RedisServer::start().await;
    let port = redis.port().to_string();
    let () = replica.command(&["REPLICAOF", "127.0.0.1", &port]).await;
    eventually(PATIENCE, "the failover is told", async || {
        let found = findings(&confirmed_at_once.config);
        match finding(&found, "redis ", "failover")["verdict"] == "warn" {
            true => Ok(()),
            false => Err(found),
        }
    })
    .await;
    let found = findings(&acknowledged.config);
    is(&found, ("redis ", "failover"), "ok", "acknowledges");
}

#[tokio::test]
async fn an_evicting_redis_without_a_denylist_is_no_risk() {
    let (redis, denylist) = (RedisServer::start().await, RedisServer::start().await);
    for (name, value) in [("maxmemory", "100mb"), ("maxmemory-policy", "allkeys-lru")] {
        let () = redis.command(&["CONFIG", "SET", name, value]).await;
    }
    let gateway = gateway()
        .redis(&redis.url())
        .set("denylist.redis", denylist.url())
        .tenant("acme")
        .start()
        .await;
    let (users, denied) = (
        format!("redis {}", redis.endpoint()),
        format!("redis {}", denylist.endpoint()),
    );
    // The mark lies where the denylist does.
    eventually(PATIENCE, "a mark", async || {
        let mark: Option<String> = denylist.command(&["GET", "lockgate::epoch"]).await;
        mark.ok_or("none")
    })
    .await;
    let mark: Option<String> = redis.command(&["GET", "lockgate::epoch"]).await;
    assert_eq!(mark, None);
    let found = findings(&gateway.config);
    is(&found, (&users, "eviction"), "ok", "no denylist");
    is(&found, (&denied, "lost_data"), "ok", "none since");
    assert_eq!(found["ok"], true, "{found}");
    gateway
        .replica()
        .metric(AT_RISK, &[], |value| value == 0.0)
        .await;
}

#[tokio::test]
async fn a_redis_that_evicts_is_at_risk_from_the_start() {
    let redis = RedisServer::start().await;
    for (name, value) in [("maxmemory", "100mb"), ("maxmemory-policy", "volatile-lru")] {
        let () = redis.command(&["CONFIG", "SET", name, value]).await;
    }
    let gateway = gateway().redis(&redis.url()).tenant("acme").start().await;
    let replica = gateway.replica();
    replica.metric(AT_RISK, &[], |value| value == 1.0).await;
    let line = replica.logged("evicts keys (volatile-lru)").await;
    assert!(line.contains("set maxmemory-policy noeviction"), "{line}");
    // Before: the log and the metric alone said it.
    let warnings = async || gateway.readyz().await.json()["warnings"].to_string();
    let told = warnings().await;
    assert!(told.contains("evicts keys (volatile-lru)"), "{told}");

    let () = redis
        .command(&["CONFIG", "SET", "maxmemory-policy", "noeviction"])
        .await;
    // A new link is a reason to look again.
    let _: u64 = redis.command(&["CLIENT", "KILL", "TYPE", "normal"]).await;
    replica.metric(AT_RISK, &[], |value| value == 0.0).await;
    replica.logged("Nothing is wrong with the denylist").await;
    eventually(PATIENCE, "no warning is left", async || {
        match warnings().await {
            none if none == "{}" => Ok(()),
            some => Err(some),
        }
    })
    .await;
}

#[tokio::test]
async fn lost_data_is_a_risk_until_an_operator_acknowledges_it() {
    let redis = RedisServer::start().await;
    let mut gateway = gateway()
        .replicas(2)
        .redis(&redis.url())
        .tenant("acme")
        .start()
        .await;
    for replica in &gateway.replicas {
        replica.metric(AT_RISK, &[], |value| value == 0.0).await;
    }
    let mark = eventually(PATIENCE, "a mark", async || {
        let mark: Option<String> = redis.command(&["GET", "lockgate::epoch"]).await;
        mark.ok_or("none")
    })
    .await;
    assert!(
        mark.len() == 16 && mark.bytes().all(|b| b.is_ascii_hexdigit()),
        "{mark}"
    );

    let () = redis.command(&["FLUSHALL"]).await;
    let _: u64 = redis.command(&["CLIENT", "KILL", "TYPE", "normal"]).await;
    for replica in &gateway.replicas {
        replica.metric(AT_RISK, &[], |value| value == 1.0).await;
        let line = replica.logged("lost its data").await;
        assert!(line.contains("redis-cli SET lockgate::epoch"), "{line}");
    }
    let mark: String = redis.command(&["GET", "lockgate::epoch"]).await;
    assert!(mark.starts_with("lost:"), "{mark}");
    let found = findings(&gateway.config);
    is(&found, ("redis ", "lost_data"), "fail", "was lost before");

    // A replica that starts now knows it from the mark.
    gateway.add_replica().await;
    let newest = &gateway.replicas[2];
    newest.metric(AT_RISK, &[], |value| value == 1.0).await;

    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let acknowledged = format!("ack:{}", now.as_secs());
    let () = redis
        .command(&["SET", "lockgate::epoch", &acknowledged])
        .await;
    let _: u64 = redis.command(&["CLIENT", "KILL", "TYPE", "normal"]).await;
    for replica in &gateway.replicas {
        replica.metric(AT_RISK, &[], |value| value == 0.0).await;
    }
    let found = findings(&gateway.config);
    is(&found, ("redis ", "lost_data"), "ok", "acknowledged");

    // A server that comes back empty is the same loss.
    redis.restart().await;
    for replica in &gateway.replicas {
        replica.metric(AT_RISK, &[], |value| value == 1.0).await;
    }
}

#[tokio::test]
async fn a_replica_of_redis_is_at_risk_and_its_mark_is_not_touched() {
    let (redis, master) = (RedisServer::start().await, RedisServer::start().await);
    let port = master.endpoint().replace("127.0.0.1:", "");
    let () = redis.command(&["REPLICAOF", "127.0.0.1", &port]).await;
    // It keeps no link to a replica, so it is not ready.
    let gateway = gateway().redis(&redis.url()).tenant("acme").spawn().await;
    let replica = gateway.replica();
    replica.metric(AT_RISK, &[], |value| value == 1.0).await;
    replica.logged("is a replica").await;
    let mark: Option<String> = redis.command(&["GET", "lockgate::epoch"]).await;
    assert_eq!(mark, None);
}

#[tokio::test]
async fn what_a_login_may_not_ask_is_unknown_and_what_it_lacks_is_named() {
    let redis = RedisServer::start().await;
    let rights = |more: &'static [&'static str]| {
        let user = ["ACL", "SETUSER", "shy", "reset", "on", ">shy-password"];
        let few = ["~lockgate:*", "resetchannels", "&lockgate:*", "+@all"];
        let hidden = ["-info", "-role", "-config", "-time"];
        [&user[..], &few, &hidden, more].concat()
    };
    let () = redis.command(&rights(&["allchannels"])).await;
    let url = format!("redis://shy:shy-password@{}/0", redis.endpoint());
    let gateway = gateway().redis(&url).tenant("acme").start().await;
    let found = findings(&gateway.config);
    assert_eq!(found["ok"], true, "{found}");
    for check in [
        "version",
        "role",
        "eviction",
        "persistence",
        "failover",
        "clock",
    ] {
        is(&found, ("redis ", check), "note", "unknown");
    }
    is(&found, ("redis ", "lost_data"), "ok", "none since");
    let replica = gateway.replica();
    replica.metric(AT_RISK, &[], |value| value == 0.0).await;

    let () = redis.command(&rights(&[])).await;
    let found = findings(&gateway.config);
    let group = format!("{}__group__lockgate.doctor.", gateway.tenant().prefix);
    is(&found, ("redis ", "permission"), "fail", &group);
    let advice = &finding(&found, "redis ", "permission")["advice"];
    assert!(advice.as_str().unwrap().contains("doctor --acl"), "{found}");
    let () = redis.command(&rights(&["allchannels", "-set"])).await;
    let found = findings(&gateway.config);
    is(&found, ("redis ", "write"), "fail", "(permission)");
    is(&found, ("redis ", "permission"), "fail", "may not write ");
}

#[tokio::test]
async fn a_missing_column_and_a_role_that_may_write_are_told() {
    let good = Database::postgres().await;
    let broken = Database::postgres().await;
    broken
        .execute("ALTER TABLE auth_user RENAME COLUMN is_active TO active")
        .await;
    let gateway = gateway()
        .tenant("good")
        .users(&good)
        .tenant("broken")
        .users(&broken)
        .write()
        .await;
    let found = findings(&gateway.config);
    let of = |word: &str, check: &str| {
        let name = &gateway.named(word).name;
        let all = found["findings"].as_array().unwrap().iter();
        let mut of = all.filter(|f| {
            f["check"] == check
                && f["subject"]
                    .as_str()
                    .unwrap()
                    .ends_with(&format!("of {name}"))
        });
        of.next().unwrap_or_else(|| panic!("{check}: {found}"))
    };
    assert_eq!(of("broken", "columns")["verdict"], "fail");
    let detail = of("broken", "columns")["detail"].as_str().unwrap();
    assert!(detail.contains("no column is_active"), "{detail}");
    assert_eq!(of("good", "columns")["verdict"], "ok");
    // The superuser of the tests.
    assert_eq!(of("good", "role")["verdict"], "warn");
}

#[tokio::test]
async fn mariadb_and_sqlite_are_looked_at_too() {
    let (mariadb, sqlite) = (Database::mariadb().await, Database::sqlite().await);
    let gateway = gateway()
        .tenant("maria")
        .users(&mariadb)
        .tenant("lite")
        .with(
            "users.database",
            format!("{}?mode=ro", sqlite.url()).as_str(),
        )
        .users(&sqlite)
        .write()
        .await;
    let found = findings(&gateway.config);
    assert_eq!(found["ok"], true, "{found}");
    is(&found, ("database sqlite", "columns"), "ok", "auth_user");
    is(&found, ("database sqlite", "role"), "ok", "only read");
    is(
        &found,
        ("database 127.0.0.1:", "columns"),
        "ok",
        "auth_user",
    );
    is(&found, ("database 127.0.0.1:", "role"), "warn", "may write");
    is(&found, ("database 127.0.0.1:", "clock"), "ok", "s against");
}

#[tokio::test]
async fn what_is_absent_fails_and_hides_nothing_else() {
    let redis = RedisServer::absent();
    let gateway = gateway()
        .redis(&redis.url())
        .tenant("acme")
        .tenant("other")
        .with("users.database", "postgres://u:hunter2@127.0.0.1:1/nothing")
        .tenant("third")
        .with("users.database", "sqlite://no-such-file.db")
        .write()
        .await;
    let found = findings(&gateway.config);
    is(&found, ("redis ", "reach"), "fail", "(io)");
    is(&found, ("database 127.0.0.1:1 ", "reach"), "fail", "");
    is(&found, ("database sqlite ", "reach"), "fail", "(io)");
    let good = &gateway.named("acme").name;
    let columns = found["findings"].as_array().unwrap().iter();
    let columns: Vec<_> = columns.filter(|f| f["check"] == "columns").collect();
    assert_eq!(columns.len(), 1, "{found}");
    assert!(
        columns[0]["detail"]
            .as_str()
            .unwrap()
            .starts_with(good.as_str())
    );
    assert!(!found.to_string().contains("hunter2"), "{found}");
    assert_eq!(doctor(&gateway.config, &["--nonsense"]).status, Some(2));
}
