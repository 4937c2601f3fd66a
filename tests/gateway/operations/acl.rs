//! The users of `lockgate doctor --acl`, on a real Redis 7: what they may do, and that back ends and gateway work with them.

use std::collections::{BTreeMap, BTreeSet};

use redis::aio::MultiplexedConnection;
use redis::{Client, RedisResult, Value as RedisValue};
use serde_json::{Value, json};

use super::doctor::{doctor, findings, is};
use crate::problem::Problem;
use crate::support::database::ALICE;
use crate::support::django::Django;
use crate::support::gateway::Builder;
use crate::support::postgres::PostgresServer;
use crate::support::{
    Database, Gateway, PATIENCE, Publisher, RedisServer, Tenant, eventually, gateway,
};

const CHAT: &str = "/ws/chat/lobby/";
const HISTORY: &str = "groups = [{ name = 'chat_<slug:room>', history = {} }]";

/// A server that knows the users of a deployment, and the deployment, whose gateway logs in as one of them.
pub(super) struct Confined {
    pub(super) redis: RedisServer,
    pub(super) gateway: Gateway,
    /// The line of each user, by its name.
    pub(super) lines: BTreeMap<String, String>,
    /// The warning above each line that has one.
    warnings: BTreeMap<String, String>,
}

impl Confined {
    /// Two tenants whose layers are of this kind; with a database, their rooms have a history. No replica runs yet.
    async fn new(kind: &str, database: Option<&Database>) -> Self {
        let groups = database.map_or("", |_| HISTORY);
        Self::with_groups(kind, groups, database).await
    }

    async fn with_groups(kind: &str, groups: &str, database: Option<&Database>) -> Self {
        // These two are off by default, and would be refused whatever the rights.
        let dangerous = [
            "--enable-debug-command",
            "yes",
            "--enable-module-command",
            "yes",
        ];
        let redis = RedisServer::with(&dangerous).await;
        let mut builder = gateway();
        for word in ["one", "other"] {
            let tenant = builder.tenant(word).with("layer.kind", kind);
            builder = tenant.with_toml(groups);
            if let Some(database) = database {
                builder = builder.users(database);
            }
        }
        Self::made(redis, builder).await
    }

    /// The deployment on this server, which gets its users. No replica runs yet.
    pub(super) async fn made(redis: RedisServer, builder: Builder) -> Self {
        let url = format!("redis://lockgate:lockgate-password@{}/0", redis.endpoint());
        let gateway = builder.redis(&url).write().await;
        // It asks no server, so that it can be run before the users exist.
        let printed = doctor(&gateway.config, &["--acl", "--json"]);
        assert_eq!(printed.status, Some(0), "{}", printed.text);
        let json: Value = serde_json::from_str(&printed.text).unwrap();
        let text = doctor(&gateway.config, &["--acl"]).text;
        let (mut lines, mut warnings) = (BTreeMap::new(), BTreeMap::new());
        for user in json["users"].as_array().unwrap() {
            assert_eq!(user["endpoint"], redis.endpoint());
            let line = user["line"].as_str().unwrap();
            assert!(text.lines().any(|printed| printed == line), "{text}");
            let name = line.split(' ').nth(2).unwrap().to_owned();
            if let Some(warning) = user["warning"].as_str() {
                assert!(text.contains(warning), "{text}");
                warnings.insert(name.clone(), warning.to_owned());
            }
            let set = line.replace(">PASSWORD", &format!(">{name}-password"));
            let words: Vec<_> = set.split(' ').collect();
            let () = redis.command(&words).await;
            lines.insert(name, line.to_owned());
        }
        for word in [
            "aclfile",
            "ACL SAVE",
            "CONFIG REWRITE",
            "proto-max-bulk-len",
            "lazyfree-lazy-expire",
        ] {
            assert!(text.contains(word), "{text}");
        }
        Self {
            redis,
            gateway,
            lines,
            warnings,
        }
    }

    /// The URL of one of the users.
    pub(super) fn url(&self, user: &str) -> String {
        format!("redis://{user}:{user}-password@{}/0", self.redis.endpoint())
    }

    /// A connection as one of the users.
    pub(super) async fn log_in(&self, user: &str) -> MultiplexedConnection {
        let client = Client::open(self.url(user)).unwrap();
        client.get_multiplexed_async_connection().await.unwrap()
    }
}

pub(super) fn back_end(tenant: &Tenant) -> String {
    format!("{}-backend", tenant.name)
}

pub(super) async fn ask(
    connection: &MultiplexedConnection,
    command: &str,
) -> RedisResult<RedisValue> {
    let mut words = command.split(' ');
    let mut cmd = redis::cmd(words.next().unwrap());
    for word in words {
        cmd.arg(word);
    }
    cmd.query_async(&mut connection.clone()).await
}

/// Redis refuses the command for the lack of a right.
async fn refused(connection: &MultiplexedConnection, command: &str) {
    let answer = ask(connection, command).await;
    let code = answer.as_ref().err().and_then(|error| error.code());
    assert_eq!(code, Some("NOPERM"), "{command}: {answer:?}");
}

/// The names of all commands in a category, and the number of arguments that each needs.
async fn commands_of(redis: &RedisServer, category: &str) -> Vec<(String, usize)> {
    let names: Vec<String> = redis.command(&["ACL", "CAT", category]).await;
    let mut commands = Vec::new();
    for name in names {
        let info: Vec<RedisValue> = redis.command(&["COMMAND", "INFO", &name]).await;
        let RedisValue::Array(info) = &info[0] else {
            panic!("{name}: {info:?}");
        };
        let subcommands = info.get(9);
        if matches!(subcommands, Some(RedisValue::Array(list)) if !list.is_empty()) {
            // The category lists the subcommands by themselves.
            continue;
        }
        let RedisValue::Int(arity) = info[1] else {
            panic!("{name}: {info:?}");
        };
        let words = usize::try_from(arity.unsigned_abs()).unwrap();
        commands.push((name.clone(), words - name.split('|').count()));
    }
    commands
}

/// Returns the commands of the harmful categories that a back end may run: those that are not refused, on some key of its
/// patterns, for lack of the right to the command. WAIT is not among them, where a version counts it as blocking: it blocks its own connection alone.
async fn permitted(confined: &Confined, tenant: &Tenant) -> BTreeSet<String> {
    let own_keys = ["deny:user:7", "history:{x}", "position:{x}"].map(|key| tenant.redis_key(key));
    let mut permitted = BTreeSet::new();
    let mut tried = BTreeSet::new();
    for category in ["dangerous", "scripting", "admin", "blocking", "keyspace"] {
        for (name, arguments) in commands_of(&confined.redis, category).await {
            if !tried.insert(name.clone()) {
                continue;
            }
            for key in &own_keys {
                // Each has a connection of its own: some commands change what the next one may do.
                let mut connection = confined.log_in(&back_end(tenant)).await;
                let mut command = redis::Cmd::new();
                for word in name.split('|') {
                    command.arg(word);
                }
                for _ in 0..arguments {
                    command.arg(key);
                }
                let answer: RedisResult<RedisValue> = command.query_async(&mut connection).await;
                let refused = answer.as_ref().err().is_some_and(|error| {
                    error.code() == Some("NOPERM") && error.to_string().contains("to run the")
                });
                if !refused {
                    println!("{name} {key}: {answer:?}");
                    permitted.insert(name.clone());
                }
            }
        }
    }
    assert!(tried.len() > 100, "{tried:?}");
    permitted.remove("wait");
    permitted
}

fn names<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_owned).into()
}

/// A back end could run any script, and so stop Redis for all tenants. Before: `eval` was granted on `pubsub`, too.
#[tokio::test]
async fn a_back_end_on_pubsub_may_run_no_harmful_command() {
    // On keys of histories alone, a back end that records has these as well. UNLINK clears a large key beside the server's work.
    let recording = ["fcall", "object|encoding", "pexpire", "unlink"];
    for (groups, expected) in [("", names([])), (HISTORY, names(recording))] {
        let confined = Confined::with_groups("pubsub", groups, None).await;
        assert!(confined.warnings.is_empty(), "{:?}", confined.warnings);
        for word in ["one", "other"] {
            let permitted = permitted(&confined, confined.gateway.named(word)).await;
            assert_eq!(permitted, expected);
        }
        let one = confined.gateway.named("one");
        let connection = confined.log_in(&back_end(one)).await;
        for command in [
            "EVAL return(1) 0",
            "KEYS *",
            "SCAN 0",
            "FLUSHALL",
            "DEBUG SLEEP 1",
        ] {
            refused(&connection, command).await;
        }
    }
}

/// Channels' own layer `core` runs scripts. The lines say what that means.
#[tokio::test]
async fn a_back_end_on_core_may_run_what_channels_needs_and_the_lines_warn_of_it() {
    let confined = Confined::new("core", None).await;
    for word in ["one", "other"] {
        let tenant = confined.gateway.named(word);
        let warning = &confined.warnings[&back_end(tenant)];
        for word in ["EVAL", "SCRIPT KILL", "a Redis of its own"] {
            assert!(warning.contains(word), "{warning}");
        }
        let permitted = permitted(&confined, tenant).await;
        assert_eq!(
            permitted,
            names([
                // Channels' scripts; a script that does not end stops the server, hence the warning.
                "eval",
                "evalsha",
                "script|load",
                // Channels' receiving side; it blocks its own connection alone.
                "bzpopmin",
                // On keys of the tenant's own patterns alone.
                "del",
                "expire",
            ])
        );
    }
    let gateway = &confined.lines["lockgate"];
    assert!(!gateway.contains("allkeys"), "{gateway}");
}

/// Django with Channels and the app of `deploy/django`, and the gateway, each as its own user.
#[tokio::test]
async fn a_django_project_and_the_gateway_work_as_these_users() {
    for kind in ["pubsub", "core"] {
        let server = PostgresServer::shared().await;
        let database = Database::at(server.url(&server.create_database("template0").await));
        let mut confined = Confined::new(kind, Some(&database)).await;
        let tenant = confined.gateway.named("one").clone();
        let url = confined.url(&back_end(&tenant));
        let django = Django::at(database.url())
            .layer(&url, &tenant.prefix)
            .signing_key(&tenant.key)
            .revokes_for(&tenant.name);
        let django = match kind {
            "core" => django.core(&json!({})),
            _ => django.recording_for(&tenant.name),
        };
        let django = django.start().await;
        django.migrate().await;
        django.create_user("dora", true).await;
        confined.gateway.add_replica().await;
        confined.gateway.replica().ready().await;
        let gateway = &confined.gateway;
        let token = django.access_token("dora").await;
        let elsewhere = django.access_token("dora").await;
        let open = async |token: &str| {
            let dial = gateway.replica().dial(&tenant, CHAT);
            dial.token(token).open().await
        };
        let (mut first, mut second) = (open(&token).await, open(&elsewhere).await);

        let event = json!({"type": "chat.message", "message": "from a view"});
        django.send_view(&token, "chat_lobby", &event).await;
        for socket in [&mut first, &mut second] {
            assert_eq!(socket.next_json().await["message"], "from a view", "{kind}");
        }
        let channel = match kind {
            "core" => format!("{}:group:chat_lobby", tenant.prefix),
            _ => format!("{}__group__chat_lobby", tenant.prefix),
        };
        let history = tenant.redis_key(&format!("history:{{{channel}}}"));
        let kept: u64 = confined.redis.command(&["XLEN", &history]).await;
        assert_eq!(kept, 1, "{kind}: the event is recorded");
        if kind == "pubsub" {
            // The rights to record are rights to histories alone.
            let own = confined.log_in(&back_end(&tenant)).await;
            for command in ["UNLINK KEY", "PEXPIRE KEY 1", "SET RULES x", "DEL RULES"] {
                let command = command
                    .replace("KEY", &tenant.redis_key("deny:user:1"))
                    .replace("RULES", &tenant.redis_key("groups"));
                refused(&own, &command).await;
            }
        }
        django.logout(&token).await;
        assert_eq!(first.closed().await.0, 4501, "{kind}");
        assert!(second.ping().await.is_empty(), "{kind}");
        django
            .update_user("dora", json!({"password": "another"}))
            .await;
        assert_eq!(second.closed().await.0, 4501, "{kind}");
        let refused = gateway.replica().dial(&tenant, CHAT).token(&elsewhere);
        Problem::new(401, "token_revoked").is(&refused.refused().await, &tenant.name);
        assert!(!gateway.output().contains("NOPERM"), "{}", gateway.output());
    }
}

#[tokio::test]
async fn acl_lines_confine_each_back_end_and_let_the_gateway_do_its_work() {
    let mut confined = Confined::new("pubsub", None).await;
    confined.gateway.add_replica().await;
    let Confined {
        redis,
        gateway,
        lines,
        ..
    } = &confined;
    let (one, other) = (gateway.named("one").clone(), gateway.named("other").clone());
    let names = [back_end(&one), back_end(&other)];
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(
        names.iter().all(|name| lines.contains_key(name)),
        "{lines:?}"
    );

    // The line of one back end, and not that of the gateway, which would lose the other tenant's names.
    let printed = doctor(&gateway.config, &["--acl", "--json", "--tenant", &one.name]);
    let printed: Value = serde_json::from_str(&printed.text).unwrap();
    let users = printed["users"].as_array().unwrap();
    assert_eq!(users.len(), 1, "{printed}");
    assert_eq!(users[0]["line"], lines[&names[0]], "{printed}");

    // The gateway under its own line: everything that the doctor looks at, sockets, events, denylist.
    let found = findings(&gateway.config);
    assert_eq!(found["ok"], true, "{found}");
    is(&found, ("redis ", "pubsub"), "ok", "came back");
    is(&found, ("redis ", "version"), "ok", ".");
    is(&found, ("redis ", "role"), "ok", "master");
    gateway.replica().ready().await;
    let dial = |user: &str| gateway.replica().dial(&one, CHAT).token(&one.token(user));
    let mut socket = dial(ALICE).open().await;

    let back_end = confined.log_in(&names[0]).await;
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
    let (tenant, prefix) = (&one.name, &one.prefix);
    for command in [
        format!("PUBLISH {prefix}__group__news hello"),
        format!("PUBLISH {prefix}specific.0123 hello"),
        format!("PUBLISH lockgate:{tenant}:control {{}}"),
        format!("SET lockgate:{tenant}:deny:jti:a 1 EXAT 99999999999"),
        format!("SET lockgate:{tenant}:deny:user:1 99999999998 EX 600"),
        format!("SET lockgate:{tenant}:deny:user:7 5"),
        format!("SET lockgate:{tenant}:usergen:7 5 EX 7200"),
        format!("WATCH lockgate:{tenant}:deny:user:1"),
        format!("GETRANGE lockgate:{tenant}:deny:user:1 0 64"),
        "MULTI".to_owned(),
        "EXEC".to_owned(),
        "WAIT 0 1".to_owned(),
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
        refused(&back_end, &command).await;
    }
    let mut listener = Client::open(confined.url(&names[0]))
        .unwrap()
        .get_async_pubsub()
        .await
        .unwrap();
    let own = format!("{}__group__news", one.prefix);
    listener.subscribe(own).await.unwrap();
    let foreign = format!("{prefix}__group__news");
    assert!(listener.subscribe(foreign).await.is_err());
    assert!(listener.psubscribe("*").await.is_err());

    // Nor may the gateway do what it never does.
    let own = confined.log_in("lockgate").await;
    for command in [
        "FLUSHALL",
        "CONFIG GET *",
        "ACL LIST",
        "SET anything 1",
        "KEYS *",
    ] {
        refused(&own, command).await;
    }
}
