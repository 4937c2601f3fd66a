//! The users of `lockgate doctor --acl` where tenants in namespaces share a prefix, on a real Redis 7: one for each tenant,
//! which may not read what is the others', and one for the project that acts for all of them.

use redis::Client;
use serde_json::{Value, json};

use super::acl::{Confined, ask, back_end};
use crate::support::database::ALICE;
use crate::support::django::{Django, Setup};
use crate::support::socket::Socket;
use crate::support::{Database, RedisServer, Tenant, gateway, unique};

const WORDS: [&str; 2] = ["one", "other"];

/// Two schemas of one project with histories, a replica of theirs, and the name of the project's user.
async fn schemas(kind: &str, database: &Database) -> (Confined, String) {
    let prefix = format!("shop-{}", unique());
    // A socket that waits for Django does not read, and answers no ping.
    let mut builder = gateway().set("server.heartbeat.interval", "10m");
    for word in WORDS {
        builder = builder
            .tenant(word)
            .users(database)
            .with("layer.kind", kind)
            .with("layer.prefix", prefix.as_str())
            .with("layer.namespace", format!("{word}."))
            .with_toml("groups = [{ name = 'chat_<slug:room>', history = {} }]");
    }
    let mut confined = Confined::made(RedisServer::start().await, builder).await;
    confined.gateway.add_replica().await;
    confined.gateway.replica().ready().await;
    (confined, format!("{prefix}-project"))
}

async fn open(confined: &Confined, tenant: &Tenant) -> Socket {
    let dial = confined.gateway.replica().dial(tenant, "/ws/chat/lobby/");
    dial.token(&tenant.token(ALICE)).open().await
}

async fn may(confined: &Confined, user: &str, command: &str) -> bool {
    let connection = confined.log_in(user).await;
    let answer = ask(&connection, command).await;
    match answer.as_ref().map_err(redis::RedisError::code) {
        Ok(_) => true,
        Err(Some("NOPERM")) => false,
        Err(_) => panic!("{command}: {answer:?}"),
    }
}

/// The keys of the messages of all members of a group, as Channels makes them from the members' names.
async fn message_keys(confined: &Confined, tenant: &Tenant, group: &str) -> Vec<String> {
    let key = format!("{}:group:{group}", tenant.prefix);
    let members: Vec<String> = confined.redis.command(&["ZRANGE", &key, "0", "-1"]).await;
    let key = |name: &String| format!("{}{}!", tenant.prefix, name.split('!').next().unwrap());
    members.iter().map(key).collect()
}

#[tokio::test]
async fn a_back_end_of_a_namespace_reads_nothing_of_another_on_pubsub() {
    let database = Database::sqlite().await;
    let (confined, project) = schemas("pubsub", &database).await;
    let [one, other] = WORDS.map(|word| confined.gateway.named(word).clone());
    let mut socket = open(&confined, &one).await;
    let (own, prefix) = (back_end(&one), &one.prefix);
    assert_eq!(confined.lines.len(), 4, "{:?}", confined.lines);
    for (command, own_may, project_may) in [
        (format!("PUBLISH {prefix}__group__one.news x"), true, true),
        (
            format!("PUBLISH {prefix}__group__other.news x"),
            false,
            true,
        ),
        (format!("PUBLISH {prefix}__group__news x"), false, true),
        // A channel of a socket is known to those alone who were told its 128 random bits.
        (format!("PUBLISH {prefix}specific.0123 x"), true, true),
        ("PUBSUB CHANNELS".to_owned(), false, false),
        (
            format!("SET {} 1", other.redis_key("deny:user:1")),
            false,
            true,
        ),
        (
            format!("GETRANGE {} 0 9", other.redis_key("groups")),
            false,
            true,
        ),
        (
            format!("XRANGE {} - +", other.redis_key("history:{x}")),
            false,
            true,
        ),
        ("KEYS *".to_owned(), false, false),
        ("SCAN 0".to_owned(), false, false),
    ] {
        assert_eq!(may(&confined, &own, &command).await, own_may, "{command}");
        let project_can = may(&confined, &project, &command).await;
        assert_eq!(project_can, project_may, "{project}: {command}");
    }
    let listener = Client::open(confined.url(&own)).unwrap();
    let mut listener = listener.get_async_pubsub().await.unwrap();
    let channel = |name: &str| format!("{prefix}__group__{name}.chat_lobby");
    listener.subscribe(channel("one")).await.unwrap();
    assert!(listener.subscribe(channel("other")).await.is_err());
    for pattern in ["*", "specific.*", "__group__one.*"] {
        let pattern = format!("{prefix}{pattern}");
        assert!(listener.psubscribe(&pattern).await.is_err(), "{pattern}");
    }
    // The layer of Channels works as this user, and records.
    let setup = Django::at(database.url())
        .layer(&confined.url(&own), prefix)
        .recording_for(&one.name)
        .layer_config(&json!({"tenants": {"one.": one.name}}));
    sends(setup, &mut socket, &["one"]).await;
    is_recorded(&confined, &one, &format!("{prefix}__group__one.chat_lobby")).await;
    works_for_all(&confined, &project, "pubsub", &database).await;
}

#[tokio::test]
async fn a_back_end_of_a_namespace_reads_nothing_of_another_on_core() {
    let database = Database::sqlite().await;
    let (confined, project) = schemas("core", &database).await;
    let [one, other] = WORDS.map(|word| confined.gateway.named(word).clone());
    let mut socket = open(&confined, &one).await;
    let _other = open(&confined, &other).await;
    let (own, prefix) = (back_end(&one), &one.prefix);
    assert_eq!(confined.lines.len(), 4, "{:?}", confined.lines);
    for (command, own_may) in [
        (format!("ZRANGE {prefix}:group:one.chat_lobby 0 -1"), true),
        (
            format!("ZRANGE {prefix}:group:other.chat_lobby 0 -1"),
            false,
        ),
        (format!("ZRANGE {prefix}:group:chat_lobby 0 -1"), false),
        (format!("DEL {prefix}:group:other.news"), false),
        (format!("ZADD {prefix}:group:other.news 1 x"), false),
        (format!("ZRANGE {prefix}news 0 -1"), false),
        ("KEYS *".to_owned(), false),
        ("SCAN 0".to_owned(), false),
    ] {
        assert_eq!(may(&confined, &own, &command).await, own_may, "{command}");
    }
    // Nor may a script of it.
    let connection = confined.log_in(&own).await;
    for (name, allowed) in [("one", true), ("other", false)] {
        let mut script = redis::cmd("EVAL");
        script
            .arg("return redis.call('ZRANGE', KEYS[1], 0, -1)")
            .arg(1);
        script.arg(format!("{prefix}:group:{name}.chat_lobby"));
        let read: redis::RedisResult<Vec<String>> =
            script.query_async(&mut connection.clone()).await;
        assert_eq!(read.is_ok(), allowed, "{name}: {read:?}");
    }
    // The member that stands for a history has a name that can be computed, so its messages are told apart by name.
    for (tenant, name, allowed) in [(&one, "one", true), (&other, "other", false)] {
        let keys = message_keys(&confined, tenant, &format!("{name}.chat_lobby")).await;
        let histories: Vec<_> = keys
            .iter()
            .filter(|key| key.contains("lockgate.history."))
            .collect();
        assert_eq!(histories.len(), 1, "{keys:?}");
        let command = format!("ZRANGE {} 0 -1", histories[0]);
        assert_eq!(may(&confined, &own, &command).await, allowed, "{command}");
    }
    let setup = Django::at(database.url()).layer(&confined.url(&own), prefix);
    sends(setup.core(&json!({})), &mut socket, &["one"]).await;
    is_recorded(&confined, &one, &format!("{prefix}:group:one.chat_lobby")).await;
    works_for_all(&confined, &project, "core", &database).await;
}

/// A project sends to the lobby of each of these namespaces; the socket is in that of `one`.
async fn sends(setup: Setup, socket: &mut Socket, words: &[&str]) -> Django {
    let django = setup.start().await;
    for word in words {
        let event = json!({"type": "t", "to": word});
        django
            .group_send(&format!("{word}.chat_lobby"), &[event])
            .await;
    }
    assert_eq!(socket.next_json().await, json!({"to": "one"}));
    django
}

async fn is_recorded(confined: &Confined, tenant: &Tenant, channel: &str) {
    let history = tenant.redis_key(&format!("history:{{{channel}}}"));
    let kept: u64 = confined.redis.command(&["XLEN", &history]).await;
    assert_eq!(kept, 1, "{history}");
}

/// The project's user may send to all of them and has consumers of its own.
async fn works_for_all(confined: &Confined, project: &str, kind: &str, database: &Database) {
    let [one, other] = WORDS.map(|word| confined.gateway.named(word).clone());
    let (mut first, mut second) = (open(confined, &one).await, open(confined, &other).await);
    let setup = Django::at(database.url()).layer(&confined.url(project), &one.prefix);
    let setup = match kind {
        "core" => setup.core(&json!({})),
        _ => {
            let tenants: Value = json!({"one.": one.name, "other.": other.name});
            let setup = setup.recording_for(&one.name);
            setup.layer_config(&json!({"tenants": tenants}))
        }
    };
    let django = sends(setup, &mut first, &WORDS).await;
    assert_eq!(second.next_json().await, json!({"to": "other"}));
    let channel = django.listen("other.chat_lobby").await;
    let event = json!({"type": "t", "to": "all"});
    django
        .group_send("other.chat_lobby", std::slice::from_ref(&event))
        .await;
    assert_eq!(django.receive(&channel).await, event);
    assert_eq!(second.next_json().await, json!({"to": "all"}));
    let output = confined.gateway.output();
    assert!(!output.contains("NOPERM"), "{output}");
}
