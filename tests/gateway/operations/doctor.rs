//! `lockgate doctor`, the watch over the denylist's Redis, and the ACL lines that keep tenants' back ends apart.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use redis::aio::MultiplexedConnection;
use redis::{Client, RedisResult, Value as RedisValue};
use serde_json::{Value, json};

use crate::problem::Problem;
use crate::support::database::ALICE;
use crate::support::replica::LOCKGATE;
use crate::support::{Database, PATIENCE, Publisher, RedisServer, eventually, gateway, unique};

const CHAT: &str = "/ws/chat/lobby/";
const AT_RISK: &str = "lockgate_denylist_at_risk";

/// The doctor's output and exit status.
struct Diagnosis {
    text: String,
    status: Option<i32>,
}

fn doctor(config: &Path, arguments: &[&str]) -> Diagnosis {
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

/// The findings as JSON, and whether the exit status fits them.
fn findings(config: &Path) -> Value {
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

fn is(found: &Value, (subject, check): (&str, &str), verdict: &str, detail: &str) {
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

    let () = redis
        .command(&["CONFIG", "SET", "maxmemory-policy", "noeviction"])
        .await;
    // A new link is a reason to look again.
    let _: u64 = redis.command(&["CLIENT", "KILL", "TYPE", "normal"]).await;
    replica.metric(AT_RISK, &[], |value| value == 0.0).await;
    replica.logged("keeps revocations again").await;
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
    let gateway = gateway().redis(&redis.url()).tenant("acme").start().await;
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
    for check in ["version", "role", "eviction", "persistence", "clock"] {
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

/// A connection as one of the users that the lines made.
async fn log_in(redis: &RedisServer, user: &str) -> MultiplexedConnection {
    let url = format!("redis://{user}:{user}-password@{}/0", redis.endpoint());
    let client = Client::open(url).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

async fn ask(connection: &MultiplexedConnection, command: &str) -> RedisResult<RedisValue> {
    let mut words = command.split(' ');
    let mut cmd = redis::cmd(words.next().unwrap());
    for word in words {
        cmd.arg(word);
    }
    cmd.query_async(&mut connection.clone()).await
}

#[tokio::test]
async fn acl_lines_confine_each_back_end_and_let_the_gateway_do_its_work() {
    let redis = RedisServer::start().await;
    let url = format!("redis://lockgate:lockgate-password@{}/0", redis.endpoint());
    let mut gateway = gateway()
        .redis(&url)
        .tenant("one")
        .tenant("other")
        .write()
        .await;
    // It asks no server, so that it can be run before the users exist.
    let printed = doctor(&gateway.config, &["--acl", "--json"]);
    assert_eq!(printed.status, Some(0), "{}", printed.text);
    let json: Value = serde_json::from_str(&printed.text).unwrap();
    let mut lines = BTreeMap::new();
    for user in json["users"].as_array().unwrap() {
        assert_eq!(user["endpoint"], redis.endpoint());
        let line = user["line"].as_str().unwrap();
        let name = line.split(' ').nth(2).unwrap().to_owned();
        lines.insert(name, line.to_owned());
    }
    let text = doctor(&gateway.config, &["--acl"]).text;
    for (name, line) in &lines {
        assert!(text.lines().any(|printed| printed == line), "{text}");
        let line = line.replace(">PASSWORD", &format!(">{name}-password"));
        let words: Vec<_> = line.split(' ').collect();
        let () = redis.command(&words).await;
    }
    let (one, other) = (gateway.named("one").clone(), gateway.named("other").clone());
    let names = [
        format!("{}-backend", one.name),
        format!("{}-backend", other.name),
    ];
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(
        names.iter().all(|name| lines.contains_key(name)),
        "{lines:?}"
    );

    // The gateway under its own line: everything that the doctor looks at, sockets, events, denylist.
    let found = findings(&gateway.config);
    assert_eq!(found["ok"], true, "{found}");
    is(&found, ("redis ", "pubsub"), "ok", "came back");
    is(&found, ("redis ", "version"), "ok", ".");
    is(&found, ("redis ", "role"), "ok", "master");
    gateway.add_replica().await;
    gateway.replica().ready().await;
    let dial = |user: &str| gateway.replica().dial(&one, CHAT).token(&one.token(user));
    let mut socket = dial(ALICE).open().await;

    let back_end = log_in(&redis, &names[0]).await;
    let publisher = Publisher::on(back_end.clone(), &one.prefix);
    publisher
        .send("chat_lobby", &json!({"type": "x", "from": "back end"}))
        .await;
    assert_eq!(socket.next_json().await, json!({"from": "back end"}));
    let path = format!("/v1/tenants/{}/groups/chat_lobby/send", one.name);
    let event = r#"{"type": "x", "from": "api"}"#;
    let sent = gateway
        .replica()
        .api(&gateway.api_key, "POST", &path, event)
        .await;
    assert_eq!(sent.status, 200, "{sent:?}");
    assert_eq!(socket.next_json().await, json!({"from": "api"}));
    eventually(
        PATIENCE,
        "the user is cached, the mark is set",
        async || {
            let (user, mark) = (one.redis_key("user:1"), "lockgate::epoch");
            match redis.command::<u64>(&["EXISTS", &user, mark]).await {
                2 => Ok(()),
                count => Err(count),
            }
        },
    )
    .await;
    assert!(!gateway.output().contains("NOPERM"), "{}", gateway.output());
    let refusals = [("kind", "permission")];
    let metrics = gateway.replica().metrics().await;
    let errors = metrics.value("lockgate_dependency_errors_total", &refusals);
    assert_eq!(errors, 0.0, "{}", metrics.text());

    // The rights of a back end.
    const SET: &str = "return(redis.call('SET',KEYS[1],ARGV[1]))";
    let (tenant, prefix) = (&one.name, &one.prefix);
    for command in [
        format!("PUBLISH {prefix}__group__news hello"),
        format!("PUBLISH {prefix}specific.0123 hello"),
        format!("PUBLISH lockgate:{tenant}:control {{}}"),
        format!("SET lockgate:{tenant}:deny:jti:a 1 EXAT 99999999999"),
        format!("SET lockgate:{tenant}:deny:user:1 99999999998 EX 600"),
        format!("GET lockgate:{tenant}:deny:user:1"),
        format!("EVAL {SET} 1 lockgate:{tenant}:deny:user:7 5"),
        format!("EVAL {SET} 1 lockgate:{tenant}:usergen:7 5"),
    ] {
        let answer = ask(&back_end, &command).await;
        assert!(answer.is_ok(), "{command}: {answer:?}");
    }
    Problem::new(401, "token_revoked").is(&dial(ALICE).refused().await, tenant);

    // The rights that it does not have.
    let (tenant, prefix) = (&other.name, &other.prefix);
    for command in [
        format!("PUBLISH {prefix}__group__news hello"),
        format!("PUBLISH {prefix}specific.0123 hello"),
        format!("PUBLISH lockgate:{tenant}:control {{}}"),
        "PUBLISH lockgate::control {}".to_owned(),
        "PUBLISH lockgate::canary:x 1".to_owned(),
        format!("SET lockgate:{tenant}:deny:all 1"),
        format!("SET lockgate:{tenant}:usergen:1 1"),
        format!("GET lockgate:{tenant}:deny:all"),
        format!("SET lockgate:{tenant}:user:1 {{}}"),
        format!("GET lockgate:{tenant}:user:1"),
        format!("GET lockgate:{}:user:1", one.name),
        format!("SET lockgate:{}:user:1 {{}}", one.name),
        format!("SET lockgate:{}:state suspended", one.name),
        format!("DEL lockgate:{}:deny:user:1", one.name),
        "GET lockgate::epoch".to_owned(),
        "SET lockgate::epoch ack:1".to_owned(),
        "SET anything 1".to_owned(),
        "KEYS *".to_owned(),
        "FLUSHALL".to_owned(),
        "CONFIG GET *".to_owned(),
        "ACL LIST".to_owned(),
        "MONITOR".to_owned(),
    ] {
        let answer = ask(&back_end, &command).await;
        let code = answer.as_ref().err().and_then(|error| error.code());
        assert_eq!(code, Some("NOPERM"), "{command}: {answer:?}");
    }
    let url = format!("redis://{0}:{0}-password@{1}/0", names[0], redis.endpoint());
    let mut listener = Client::open(url).unwrap().get_async_pubsub().await.unwrap();
    let own = format!("{}__group__news", one.prefix);
    listener.subscribe(own).await.unwrap();
    let foreign = format!("{prefix}__group__news");
    assert!(listener.subscribe(foreign).await.is_err());
    assert!(listener.psubscribe("*").await.is_err());

    // Nor may the gateway do what it never does.
    let own = log_in(&redis, "lockgate").await;
    for command in [
        "FLUSHALL",
        "CONFIG GET *",
        "ACL LIST",
        "SET anything 1",
        "KEYS *",
    ] {
        let answer = ask(&own, command).await;
        let code = answer.as_ref().err().and_then(|error| error.code());
        assert_eq!(code, Some("NOPERM"), "{command}: {answer:?}");
    }
}
