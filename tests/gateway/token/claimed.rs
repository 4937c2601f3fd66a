//! `users.source = "claims"`: the verified claims are the user, and no record of it is read.

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::problem::Problem;
use crate::support::database::ALICE;
use crate::support::gateway::Builder;
use crate::support::replica::LOCKGATE;
use crate::support::socket::Socket;
use crate::support::worker::FakeWorker;
use crate::support::{
    Database, Gateway, PATIENCE, RedisServer, Tenant, gateway, token, unique, within,
};

/// Sends what the gateway knows of the user back, through a group that is named by a claim.
const WHO_AM_I: &str = r#"
    path     = "ws/me/"
    groups   = ["org_{user.org}", "in_{claims.org}", "user_{user.id}"]
    consumer = { kind = "broadcast", to = "user_{user.id}", type = "who", stamp = ["user_id", "id", "org", "name"] }
"#;

fn claimed() -> Builder {
    gateway().tenant("acme").with("users.source", "claims")
}

/// The claims of a user of an organisation.
fn claims(user: &str, org: &str) -> Value {
    let mut claims = token::access(user);
    claims["org"] = org.into();
    claims["name"] = "Zoë".into();
    claims
}

async fn open(gateway: &Gateway, path: &str, claims: &Value) -> Socket {
    let tenant = gateway.tenant();
    let dial = gateway.replica().dial(tenant, path);
    dial.token(&tenant.sign(claims)).open().await
}

async fn seen_by(socket: &mut Socket) -> Value {
    socket.send_text("{}").await;
    socket.next_json().await
}

#[tokio::test]
async fn the_claims_are_the_user_in_groups_stamps_and_presence() {
    let rule = "groups = [{ name = 'org_<slug:org>', presence = { fields = ['name', 'org'], notify = true } }]";
    let gateway = claimed().with_toml(rule).route(WHO_AM_I).start().await;
    let mut claims = claims("007", "a");
    // A claim of the field's name does not make another user of him.
    claims["id"] = 1.into();
    let mut socket = open(&gateway, "/ws/me/", &claims).await;
    let joined = json!({"type": "lockgate.join", "group": "org_a", "user": {"id": "7", "name": "Zoë", "org": "a"}});
    assert_eq!(socket.next_json().await, joined);
    assert_eq!(
        seen_by(&mut socket).await,
        json!({"user_id": "7", "id": 7, "org": "a", "name": "Zoë"})
    );
    gateway.send("in_a", &json!({"type": "x", "n": 1})).await;
    assert_eq!(socket.next_json().await, json!({"n": 1}));
    // A claim that a template needs, and that the token lacks.
    let tenant = gateway.tenant();
    let without = tenant.sign(&token::access("8"));
    let dial = gateway.replica().dial(tenant, "/ws/me/").token(&without);
    Problem::new(400, "group_name_not_valid").is(&dial.refused().await, &tenant.name);
}

/// Collects the commands that a Redis server gets for keys of one tenant.
struct Watch {
    lines: tokio::io::Lines<BufReader<TcpStream>>,
}

impl Watch {
    async fn of(redis: &RedisServer) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", redis.port()))
            .await
            .unwrap();
        stream.write_all(b"MONITOR\r\n").await.unwrap();
        let mut lines = BufReader::new(stream).lines();
        assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("+OK"));
        Self { lines }
    }

    /// Returns the commands up to this moment that name `key`.
    async fn commands(&mut self, redis: &RedisServer, key: &str) -> Vec<String> {
        let mark = format!("mark-{}", unique());
        let _: String = redis.command(&["ECHO", &mark]).await;
        within(PATIENCE, "the mark", async {
            let mut found = Vec::new();
            loop {
                let line = self
                    .lines
                    .next_line()
                    .await
                    .unwrap()
                    .expect("the link stays");
                if line.contains(&mark) {
                    return found;
                }
                if line.contains(key) {
                    found.push(line);
                }
            }
        })
        .await
    }
}

#[tokio::test]
async fn a_connect_asks_the_denylist_and_reads_no_record_of_the_user() {
    let redis = RedisServer::start().await;
    let gateway = gateway()
        .redis(&redis.url())
        .tenant("claimed")
        .with("users.source", "claims")
        .tenant("stored")
        .users(&Database::sqlite().await)
        .start()
        .await;
    let (claimed, stored) = (gateway.named("claimed"), gateway.named("stored"));
    let mut watch = Watch::of(&redis).await;
    let mut sockets = Vec::new();
    for (tenant, user) in [
        (claimed, "1"),
        (claimed, "2"),
        (claimed, "3"),
        (stored, "1"),
    ] {
        let dial = gateway.replica().dial(tenant, "/ws/chat/lobby/");
        sockets.push(dial.token(&tenant.token(user)).open().await);
    }
    let prefix = |tenant: &Tenant| tenant.redis_key("");
    let commands = watch.commands(&redis, "lockgate:").await;
    let of = |tenant: &Tenant, part: &str| {
        let key = format!("{}{part}", prefix(tenant));
        commands.iter().filter(|line| line.contains(&key)).count()
    };
    assert_eq!(of(claimed, "deny:user:"), 3, "{commands:#?}");
    assert_eq!((of(claimed, "user:"), of(claimed, "usergen:")), (0, 0));
    // The test would see the reads.
    assert!(
        of(stored, "user:") > 0 && of(stored, "usergen:") > 0,
        "{commands:#?}"
    );
}

/// The price of a connect in commands to Redis, beside a tenant whose record of the user is cached there.
#[tokio::test]
async fn a_connect_takes_two_commands_less_than_with_a_cached_record() {
    let redis = RedisServer::start().await;
    let gateway = gateway()
        .redis(&redis.url())
        .replicas(2)
        .tenant("claimed")
        .with("users.source", "claims")
        .tenant("stored")
        .users(&Database::sqlite().await)
        .start()
        .await;
    let mut watch = Watch::of(&redis).await;
    for (word, expected) in [("claimed", 0), ("stored", 2)] {
        let tenant = gateway.named(word);
        let dial = |replica: usize| {
            let dial = gateway.replicas[replica].dial(tenant, "/ws/chat/lobby/");
            dial.token(&tenant.token(ALICE))
        };
        // The first one finds the record in the database and caches it.
        let _first = dial(0).open().await;
        watch.commands(&redis, "-").await;
        let _second = dial(1).open().await;
        let commands = watch.commands(&redis, &tenant.redis_key("")).await;
        let asks = |kind: &str| commands.iter().filter(|line| line.contains(kind)).count();
        // One command asks the denylist about the token, its user and the tenant.
        let denylist = asks(&tenant.redis_key("deny:"));
        let record = asks(&tenant.redis_key("user"));
        assert_eq!((denylist, record), (1, expected), "{word}: {commands:#?}");
    }
}

#[tokio::test]
async fn a_worker_gets_the_claims_as_the_user() {
    let channel = format!("claims-{}", unique());
    let gateway = claimed()
        .with("layer.serializer_format", "json")
        .route(&format!(
            "path = 'ws/told/'\nconsumer = {{ kind = 'worker', channel = '{channel}' }}"
        ))
        .start()
        .await;
    let mut worker = FakeWorker::on(RedisServer::shared().await, &channel).await;
    let _socket = open(&gateway, "/ws/told/", &claims("007", "a")).await;
    let user = worker.next("websocket.connect").await["user"].clone();
    assert_eq!(
        (&user["id"], &user["org"], &user["name"]),
        (&json!(7), &json!("a"), &json!("Zoë")),
        "{user}"
    );
}

#[tokio::test]
async fn revocations_hold_and_there_is_nothing_to_invalidate() {
    let gateway = claimed().replicas(2).start().await;
    let (tenant, replica) = (gateway.tenant(), gateway.replica());
    let call = async |path: &str, body: Value| {
        let path = format!("/v1/tenants/{}/{path}", tenant.name);
        let other = &gateway.replicas[1];
        other
            .api(&gateway.api_key, "POST", &path, &body.to_string())
            .await
    };
    let mut claims = claims("7", "a");
    let mut first = open(&gateway, "/ws/chat/lobby/", &claims).await;
    let answer = call(
        "revocations",
        json!({"jti": claims["jti"], "exp": claims["exp"]}),
    )
    .await;
    assert_eq!(answer.json()["closed"], 1, "{answer:?}");
    assert_eq!(first.closed().await, (4501, "token_revoked".into()));
    let again = replica
        .dial(tenant, "/ws/chat/lobby/")
        .token(&tenant.sign(&claims));
    Problem::new(401, "token_revoked").is(&again.refused().await, &tenant.name);

    claims["jti"] = unique().into();
    let mut second = open(&gateway, "/ws/chat/lobby/", &claims).await;
    let answer = call("users/7/invalidate", json!({})).await;
    assert_eq!(
        (answer.status, &answer.json()["code"]),
        (404, &json!("users_not_kept"))
    );
    assert!(second.ping().await.is_empty());
    let answer = call("revocations", json!({"user_id": "7"})).await;
    assert_eq!(answer.json()["closed"], 1, "{answer:?}");
    assert_eq!(second.closed().await, (4501, "token_revoked".into()));
}

#[tokio::test]
async fn a_refreshed_token_brings_its_own_user() {
    let gateway = claimed()
        .with("token.refresh", true)
        .route(WHO_AM_I)
        .start()
        .await;
    let mut socket = open(&gateway, "/ws/me/", &claims("7", "a")).await;
    assert_eq!(seen_by(&mut socket).await["org"], "a");
    let next = gateway.tenant().sign(&claims("7", "b"));
    let request = json!({"type": "lockgate.refresh", "token": next});
    socket.send_text(&request.to_string()).await;
    assert_eq!(socket.next_json().await["type"], "lockgate.refreshed");
    assert_eq!(seen_by(&mut socket).await["org"], "b");
}

#[tokio::test]
async fn a_database_beside_it_answers_authorize_alone() {
    let database = Database::sqlite().await;
    let gateway = claimed()
        .users(&database)
        .with("users.cache_ttl", "10m")
        .route(
            "path = 'ws/chat/<slug:room>/'\n groups = ['chat_{room}']
             authorize = \"SELECT 1 FROM auth_user WHERE id = :user_id AND is_staff = 0\"",
        )
        .start()
        .await;
    let (tenant, replica) = (gateway.tenant(), gateway.replica());
    let dial = |user: &str| {
        replica
            .dial(tenant, "/ws/chat/lobby/")
            .token(&tenant.token(user))
    };
    let mut socket = dial(ALICE).open().await;
    // No row of the user's own is read: only the right is missing.
    Problem::new(403, "group_forbidden").is(&dial("4711").refused().await, &tenant.name);
    database
        .execute("UPDATE auth_user SET is_staff = 1 WHERE id = 1")
        .await;
    let path = format!("/v1/tenants/{}/users/{ALICE}/invalidate", tenant.name);
    let answer = replica.api(&gateway.api_key, "POST", &path, "").await;
    assert_eq!((answer.status, &answer.json()["closed"]), (200, &json!(1)));
    assert_eq!(socket.closed().await, (4507, "group_forbidden".into()));
}

#[tokio::test]
async fn the_terminal_says_where_users_come_from() {
    let gateway = claimed().start().await;
    let tenant = gateway.tenant();
    let said = |arguments: &[&str]| {
        let output = std::process::Command::new(LOCKGATE)
            .args(arguments)
            .arg("--config")
            .arg(&gateway.config)
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let token = tenant.token("9");
    let report = said(&[
        "token",
        "explain",
        "--json",
        "--tenant",
        &tenant.name,
        &token,
    ]);
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["accepted"], true, "{report}");
    for name in ["user", "is_active", "password"] {
        let checks = report["checks"].as_array().unwrap();
        let check = checks.iter().find(|check| check["name"] == name).unwrap();
        assert_eq!(check["verdict"], "pass");
        assert_eq!(check["detail"], "not checked: users.source is \"claims\"");
    }
    let findings: Value = serde_json::from_str(&said(&["doctor", "--json"])).unwrap();
    assert!(
        findings.to_string().contains("the claims of its tokens"),
        "{findings}"
    );
}
