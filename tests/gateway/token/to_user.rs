//! From a token in the URL to a user: every way for a token to come in, every kind of table to know its user from.

use std::time::Duration;

use serde_json::{Value, json};

use crate::problem::{Problem, word};
use crate::support::database::{ALICE, BOB, CAROL};
use crate::support::django::Django;
use crate::support::mariadb::MariaDbServer;
use crate::support::postgres::PostgresServer;
use crate::support::{Database, PATIENCE, Tenant, gateway, scratch, token, within};

const CHAT: &str = "/ws/chat/lobby/";

/// Sends what the gateway knows of the user back to him, through his own group.
const WHO_AM_I: &str = r#"
    path     = "ws/me/"
    groups   = ["user_{user.id}"]
    consumer = { kind = "broadcast", type = "who", stamp = ["user_id", "username"] }
"#;

#[tokio::test]
async fn the_user_comes_from_djangos_table_on_every_engine() {
    let (postgres, mariadb, sqlite) = tokio::join!(
        Database::postgres(),
        Database::mariadb(),
        Database::sqlite()
    );
    let gateway = gateway()
        .tenant("postgres")
        .users(&postgres)
        .route(WHO_AM_I)
        .tenant("mariadb")
        .users(&mariadb)
        .route(WHO_AM_I)
        .tenant("sqlite")
        .users(&sqlite)
        .route(WHO_AM_I)
        .start()
        .await;
    for engine in ["postgres", "mariadb", "sqlite"] {
        let tenant = gateway.named(engine);
        println!("{engine}");
        for (id, name) in [(ALICE, "alice"), (BOB, "bob")] {
            let dial = gateway
                .replica()
                .dial(tenant, "/ws/me/")
                .token(&tenant.token(id));
            let mut socket = dial.open().await;
            socket.send_text(r#"{"hello": 1}"#).await;
            let seen = socket.next_json().await;
            assert_eq!(seen, json!({"hello": 1, "user_id": id, "username": name}));
        }
        for (id, refusal) in [(CAROL, "user_inactive"), ("4", "user_not_found")] {
            let dial = gateway
                .replica()
                .dial(tenant, "/ws/me/")
                .token(&tenant.token(id));
            Problem::new(401, refusal).is(&dial.refused().await, &tenant.name);
        }
    }
}

/// A new database with users that have UUIDs, and the id of one of them.
async fn uuid_users(url: String) -> (Database, String) {
    let django = Django::at(&url).uuid_users().start().await;
    django.migrate().await;
    let user = django.create_user("dora", true).await;
    django.disconnect().await;
    (Database::at(url), user.id)
}

#[tokio::test]
async fn a_uuid_names_its_user_however_it_is_written_on_every_engine() {
    const QUERY: &str =
        "SELECT id, username, plan, is_active FROM accounts_uuiduser WHERE id IN (:user_ids)";
    const ROUTE: &str = r#"
        path     = "ws/me/"
        groups   = ["user_{user.id}", "plan_{user.plan}"]
        consumer = { kind = "broadcast", to = "plan_{user.plan}", type = "who", stamp = ["user_id", "plan"] }
    "#;
    let postgres = PostgresServer::shared().await;
    let mariadb = MariaDbServer::shared().await;
    let dir = scratch("uuid");
    let urls = [
        (
            "postgres",
            postgres.url(&postgres.create_database("template0").await),
        ),
        ("mariadb", mariadb.url(&mariadb.create_database().await)),
        (
            "sqlite",
            format!("sqlite://{}", dir.path().join("db").display()),
        ),
    ];
    let mut builder = gateway();
    let mut ids = Vec::new();
    for (engine, url) in urls {
        let (database, id) = uuid_users(url).await;
        builder = builder
            .tenant(engine)
            .users(&database)
            .with("users.id_type", "uuid")
            .with("users.query", QUERY)
            .route(ROUTE);
        ids.push((engine, id));
    }
    let gateway = builder.start().await;
    for (engine, id) in ids {
        let tenant = gateway.named(engine);
        println!("{engine}");
        for written in [
            id.clone(),
            id.to_uppercase(),
            id.replace('-', ""),
            format!("urn:uuid:{id}"),
        ] {
            let dial = gateway
                .replica()
                .dial(tenant, "/ws/me/")
                .token(&tenant.token(&written));
            let mut socket = dial.open().await;
            socket.send_text("{}").await;
            assert_eq!(
                socket.next_json().await,
                json!({"user_id": id, "plan": "free"}),
                "{written}"
            );
        }
        let unknown = tenant.token("00000000-0000-4000-8000-000000000000");
        let refusal = gateway
            .replica()
            .dial(tenant, "/ws/me/")
            .token(&unknown)
            .refused()
            .await;
        Problem::new(401, "user_not_found").is(&refusal, &tenant.name);
    }
}

#[tokio::test]
async fn a_number_names_its_user_as_djangos_int_reads_it() {
    let gateway = gateway().tenant("acme").route(WHO_AM_I).start().await;
    let tenant = gateway.tenant();
    for written in [
        json!("1"),
        json!(1),
        json!(" 1 "),
        json!("+1"),
        json!("0001"),
        json!(1.0),
        json!(true),
    ] {
        let mut claims = token::access(ALICE);
        claims["user_id"] = written.clone();
        let token = tenant.sign(&claims);
        let mut socket = gateway
            .replica()
            .dial(tenant, "/ws/me/")
            .token(&token)
            .open()
            .await;
        socket.send_text("{}").await;
        let seen = socket.next_json().await;
        assert_eq!(
            seen,
            json!({"user_id": ALICE, "username": "alice"}),
            "{written}"
        );
    }
}

#[tokio::test]
async fn a_real_simplejwt_token_opens_a_socket_until_its_password_changes() {
    let database = Database::postgres().await;
    let key = "a signing key of thirty-two bytes or more";
    let django = Django::at(database.url())
        .signing_key(key)
        .revoke_tokens()
        .start()
        .await;
    let gateway = gateway()
        .tenant("acme")
        .users(&database)
        .with("token.signing_key", key)
        .with("token.check_revoke_token", true)
        .start()
        .await;
    let tenant = gateway.tenant();
    let dial = |token: &str| gateway.replica().dial(tenant, CHAT).token(token);
    dial(&django.access_token("alice").await).open().await;
    // Bob is not in any cache when his password changes.
    let token = django.access_token("bob").await;
    django
        .update_user("bob", json!({"password": "another"}))
        .await;
    Problem::new(401, "password_changed").is(&dial(&token).refused().await, &tenant.name);
    let refresh = django.tokens("alice").await["refresh"]
        .as_str()
        .unwrap()
        .to_owned();
    Problem::token("token_type").is(&dial(&refresh).refused().await, &tenant.name);
}

/// A token of alice that expires in two seconds.
fn short_lived(tenant: &Tenant) -> String {
    let mut claims = token::access(ALICE);
    claims["exp"] = json!(token::now() + 2);
    tenant.sign(&claims)
}

#[tokio::test]
async fn a_socket_closes_when_its_token_expires_unless_the_tenant_keeps_it() {
    let gateway = gateway()
        .tenant("close")
        .tenant("leeway")
        .with("token.leeway", "2s")
        .tenant("keep")
        .with("token.on_expiry", "keep")
        .start()
        .await;
    let open = async |word: &str| {
        let tenant = gateway.named(word);
        gateway
            .replica()
            .dial(tenant, CHAT)
            .token(&short_lived(tenant))
            .open()
            .await
    };
    let mut kept = open("keep").await;
    let mut closed = open("close").await;
    let mut late = open("leeway").await;
    let started = std::time::Instant::now();
    let (code, reason) = closed.closed().await;
    assert_eq!((code, word(&reason)), (4001, "token_expired"));
    let waited = started.elapsed();
    assert!(waited < Duration::from_secs(4), "{waited:?}");
    let (code, reason) = late.closed().await;
    assert_eq!((code, word(&reason)), (4001, "token_expired"));
    let later = started.elapsed() - waited;
    assert!(
        later > Duration::from_secs(1),
        "{later:?} after the one without leeway"
    );
    assert!(kept.ping().await.is_empty());
}

#[tokio::test]
async fn many_sockets_of_one_user_cost_one_query() {
    let gateway = gateway().tenant("acme").start().await;
    let queries = async || {
        gateway
            .replica()
            .metrics()
            .await
            .value("lockgate_user_queries_total", &[])
    };
    let before = queries().await;
    let sockets = (0..20).map(|_| gateway.open(CHAT));
    let sockets = within(
        PATIENCE,
        "twenty sockets",
        futures_util::future::join_all(sockets),
    )
    .await;
    assert_eq!(queries().await - before, 1.0);
    drop(sockets);
    let tenant = gateway.tenant().name.clone();
    let open = [("tenant", tenant.as_str())];
    gateway
        .replica()
        .metric("lockgate_connections", &open, |open| open == 0.0)
        .await;
}

#[tokio::test]
async fn an_absent_user_is_remembered_for_a_while_only() {
    let database = Database::postgres().await;
    let gateway = gateway()
        .tenant("acme")
        .users(&database)
        .with("users.negative_ttl", "1s")
        .with("users.local_ttl", "1s")
        .start()
        .await;
    let tenant = gateway.tenant();
    let token = tenant.token("4");
    let dial = || gateway.replica().dial(tenant, CHAT).token(&token);
    Problem::new(401, "user_not_found").is(&dial().refused().await, &tenant.name);
    let django = Django::at(database.url()).start().await;
    assert_eq!(django.create_user("dave", true).await.id, "4");
    crate::support::eventually(PATIENCE, "the new user is served", async || {
        dial().attempt().await.map(drop)
    })
    .await;
}

#[tokio::test]
async fn a_cached_record_is_the_documented_json() {
    let redis = crate::support::RedisServer::shared().await;
    let gateway = gateway().tenant("acme").start().await;
    let tenant = gateway.tenant();
    gateway.open(CHAT).await;
    let key = tenant.redis_key(&format!("user:{ALICE}"));
    let record = crate::support::eventually(PATIENCE, "the record is in Redis", async || {
        redis
            .command::<Option<String>>(&["GET", &key])
            .await
            .ok_or(())
    })
    .await;
    let record: Value = serde_json::from_str(&record).unwrap();
    assert_eq!(record["v"], 1);
    assert_eq!(record["tenant"], tenant.name.as_str());
    assert_eq!(record["id"], ALICE);
    assert_eq!(record["gen"], "");
    assert_eq!(record["user"]["username"], "alice");
    assert!(record["user"].get("password").is_none(), "{record}");
    assert!(!record.to_string().contains("md5$"), "{record}");
    let ttl: i64 = redis.command(&["TTL", &key]).await;
    assert!((3500..=3600).contains(&ttl), "{ttl}");
}
