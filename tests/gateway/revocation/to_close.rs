//! A revocation, from the API or from a back end, to the sockets that it closes: everywhere, and no others.

use serde_json::{Value, json};

use crate::problem::Problem;
use crate::support::database::{ALICE, BOB};
use crate::support::gateway::Builder;
use crate::support::{Gateway, PATIENCE, RedisServer, eventually, gateway, token};
use crate::tenants::registry::Store;

const CHAT: &str = "/ws/chat/lobby/";

/// The answer to a revocation of the first tenant, at one replica.
async fn revoke(gateway: &Gateway, replica: usize, body: Value) -> Value {
    let path = format!("/v1/tenants/{}/revocations", gateway.tenant().name);
    let replica = &gateway.replicas[replica];
    let answer = replica
        .api(&gateway.api_key, "POST", &path, &body.to_string())
        .await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

/// Waits until every replica knows of the others, which it learns from their signs of life.
async fn acquainted(gateway: &Gateway) {
    let wanted = gateway.replicas.len();
    for replica in 0..wanted {
        // A replica takes part from when it has made the tenant, which one of the registry is when it is asked for.
        revoke(gateway, replica, json!({"jti": "nobody's", "exp": 1})).await;
    }
    for replica in 0..wanted {
        eventually(PATIENCE, "the replicas know each other", async || {
            let answer = revoke(gateway, replica, json!({"jti": "nobody's", "exp": 1})).await;
            let replicas = &answer["replicas"];
            let all = replicas["expected"] == wanted && replicas["confirmed"] == wanted;
            if all { Ok(()) } else { Err(answer) }
        })
        .await;
    }
}

/// Claims of a good token of alice, with this `jti` and `iat`.
fn claims(user: &str, jti: &str, issued_at: u64) -> Value {
    let mut claims = token::access(user);
    claims["jti"] = jti.into();
    claims["iat"] = issued_at.into();
    claims
}

fn now() -> u64 {
    std::time::UNIX_EPOCH.elapsed().unwrap().as_secs()
}

#[tokio::test]
async fn a_revoked_token_closes_its_sockets_on_every_replica_and_no_others() {
    closes_everywhere(gateway().replicas(3).tenant("acme")).await;
}

#[tokio::test]
async fn a_revoked_token_of_a_tenant_of_the_registry_closes_its_sockets_on_every_replica() {
    let (store, redis) = (Store::sqlite(), RedisServer::start().await);
    let builder = gateway().redis(&redis.url()).replicas(3).tenant("acme");
    closes_everywhere(store.holds(builder)).await;
}

async fn closes_everywhere(builder: Builder) {
    let gateway = builder.start().await;
    acquainted(&gateway).await;
    let tenant = gateway.tenant();
    let claims = claims(ALICE, "the-one", now());
    let (revoked, exp) = (tenant.sign(&claims), claims["exp"].clone());
    let mut theirs = Vec::new();
    let mut others = Vec::new();
    for replica in &gateway.replicas {
        for _ in 0..2 {
            theirs.push(replica.dial(tenant, CHAT).token(&revoked).open().await);
        }
        let other = tenant.token(ALICE);
        others.push(replica.dial(tenant, CHAT).token(&other).open().await);
    }
    let answer = revoke(&gateway, 1, json!({"jti": "the-one", "exp": exp})).await;
    let replicas = json!({"expected": 3, "confirmed": 3, "missing": []});
    assert_eq!(answer, json!({"closed": 6, "replicas": replicas}));
    for socket in &mut theirs {
        assert_eq!(socket.closed().await, (4501, "token_revoked".into()));
    }
    for socket in &mut others {
        assert!(socket.ping().await.is_empty());
    }
    for replica in &gateway.replicas {
        let refusal = replica.dial(tenant, CHAT).token(&revoked).refused().await;
        Problem::new(401, "token_revoked").is(&refusal, &tenant.name);
    }
    // Revoked by the token itself: its id and its end are read from it.
    let again = tenant.sign(&self::claims(ALICE, "another", now()));
    let mut socket = gateway
        .replica()
        .dial(tenant, CHAT)
        .token(&again)
        .open()
        .await;
    assert_eq!(
        revoke(&gateway, 2, json!({"token": again})).await["closed"],
        1
    );
    assert_eq!(socket.closed().await.0, 4501);
}

#[tokio::test]
async fn a_cut_off_takes_the_tokens_before_it_and_spares_those_after() {
    cuts_off(gateway().replicas(2).tenant("acme")).await;
}

#[tokio::test]
async fn a_cut_off_of_a_tenant_of_the_registry_spares_the_tokens_after_it() {
    let (store, redis) = (Store::sqlite(), RedisServer::start().await);
    let builder = gateway().redis(&redis.url()).replicas(2).tenant("acme");
    cuts_off(store.holds(builder)).await;
}

async fn cuts_off(builder: Builder) {
    let gateway = builder.start().await;
    acquainted(&gateway).await;
    let tenant = gateway.tenant();
    let dial = |replica: usize, user: &str, issued_at: u64| {
        let token = tenant.sign(&claims(user, &format!("{user}-{issued_at}"), issued_at));
        gateway.replicas[replica].dial(tenant, CHAT).token(&token)
    };
    let cut_off = now() - 100;
    let mut before = dial(0, ALICE, cut_off - 1).open().await;
    let mut at = dial(1, ALICE, cut_off).open().await;
    let mut after = dial(1, ALICE, cut_off + 1).open().await;
    let mut bob = dial(0, BOB, cut_off - 1).open().await;
    let user = json!({"user_id": ALICE, "issued_before": cut_off});
    assert_eq!(revoke(&gateway, 0, user).await["closed"], 2);
    assert_eq!(before.closed().await.0, 4501);
    assert_eq!(at.closed().await.0, 4501);
    assert!(after.ping().await.is_empty());
    assert!(bob.ping().await.is_empty());
    // An earlier cut-off changes nothing.
    let earlier = json!({"user_id": ALICE, "issued_before": cut_off - 50});
    assert_eq!(revoke(&gateway, 1, earlier).await["closed"], 0);
    let refusal = dial(0, ALICE, cut_off).refused().await;
    Problem::new(401, "token_revoked").is(&refusal, &tenant.name);
    dial(0, ALICE, cut_off + 1).open().await;

    let all = json!({"issued_before": cut_off});
    assert_eq!(revoke(&gateway, 1, all).await["closed"], 1);
    assert_eq!(bob.closed().await.0, 4501);
    assert!(after.ping().await.is_empty());
}

/// `{"user_id":null,"issued_before":N}` revoked the tokens of every user of the tenant.
#[tokio::test]
async fn a_member_that_is_null_revokes_nothing_and_is_named() {
    let gateway = gateway().tenant("acme").start().await;
    let tenant = gateway.tenant();
    let path = format!("/v1/tenants/{}/revocations", tenant.name);
    let token = tenant.sign(&claims(BOB, "bob's", now() - 50));
    let dial = gateway.replica().dial(tenant, CHAT);
    let mut socket = dial.token(&token).open().await;
    let cut_off = now();
    for (body, member) in [
        (
            json!({"user_id": null, "issued_before": cut_off}),
            "user_id",
        ),
        (json!({"user_id": null}), "user_id"),
        (json!({"jti": null, "issued_before": cut_off}), "jti"),
        (
            json!({"jti": null, "user_id": BOB, "issued_before": cut_off}),
            "jti",
        ),
        (
            json!({"user_id": BOB, "issued_before": null}),
            "issued_before",
        ),
        (json!({"token": null, "issued_before": cut_off}), "token"),
    ] {
        let replica = gateway.replica();
        let answer = replica
            .api(&gateway.api_key, "POST", &path, &body.to_string())
            .await;
        assert_eq!(answer.status, 400, "{body}: {answer:?}");
        let problem = answer.json();
        assert_eq!(problem["code"], "revocation_not_valid", "{body}: {problem}");
        let detail = problem["detail"].as_str().unwrap_or_default();
        assert!(
            detail.contains(member) && detail.contains("is null"),
            "{detail}"
        );
    }
    assert!(socket.ping().await.is_empty());
}

/// An id as an integer was 400, although tokens have it so.
#[tokio::test]
async fn the_user_of_a_revocation_may_be_an_integer() {
    let gateway = gateway().tenant("acme").start().await;
    let tenant = gateway.tenant();
    let token = tenant.token(ALICE);
    let dial = gateway.replica().dial(tenant, CHAT);
    let mut socket = dial.token(&token).open().await;
    let id: i64 = ALICE.parse().unwrap();
    let answer = revoke(&gateway, 0, json!({"user_id": id})).await;
    assert_eq!(answer["closed"], 1, "{answer}");
    assert_eq!(socket.closed().await.0, 4501);
}

#[tokio::test]
async fn a_back_end_revokes_with_two_commands_of_its_own() {
    let redis = RedisServer::shared().await;
    let gateway = gateway().replicas(2).tenant("acme").start().await;
    let tenant = gateway.tenant();
    let token = tenant.sign(&claims(ALICE, "django's", now()));
    let mut sockets = Vec::new();
    for replica in &gateway.replicas {
        sockets.push(replica.dial(tenant, CHAT).token(&token).open().await);
    }
    let key = tenant.redis_key("deny:jti:django's");
    let () = redis.command(&["SET", &key, "1", "EX", "60"]).await;
    let message = json!({"v": 1, "op": "revoke", "jti": "django's"}).to_string();
    let heard: u64 = redis
        .command(&["PUBLISH", &tenant.redis_key("control"), &message])
        .await;
    assert_eq!(heard, 2);
    for socket in &mut sockets {
        assert_eq!(socket.closed().await.0, 4501);
    }
}

#[tokio::test]
async fn what_was_not_announced_is_found_by_the_next_look() {
    let redis = RedisServer::shared().await;
    let gateway = gateway()
        .set("denylist.recheck", "1s")
        .tenant("acme")
        .start()
        .await;
    let tenant = gateway.tenant();
    let open = |jti: &str, user: &str| {
        let token = tenant.sign(&claims(user, jti, now()));
        gateway.replica().dial(tenant, CHAT).token(&token)
    };
    let mut quiet = open("quiet", ALICE).open().await;
    let mut cut = open("cut", BOB).open().await;
    let mut stays = open("stays", ALICE).open().await;
    let key = tenant.redis_key("deny:jti:quiet");
    let () = redis.command(&["SET", &key, "", "EX", "60"]).await;
    let key = tenant.redis_key(&format!("deny:user:{BOB}"));
    let cut_off = now().to_string();
    let () = redis.command(&["SET", &key, &cut_off, "EX", "60"]).await;
    assert_eq!(quiet.closed().await.0, 4501);
    assert_eq!(cut.closed().await.0, 4501);
    assert!(stays.ping().await.is_empty());
}

#[tokio::test]
async fn a_revocation_that_cannot_be_stored_is_503_and_closes_nothing() {
    let redis = RedisServer::start().await;
    let gateway = gateway().redis(&redis.url()).tenant("acme").start().await;
    let tenant = gateway.tenant();
    let token = tenant.sign(&claims(ALICE, "kept", now()));
    let mut socket = gateway
        .replica()
        .dial(tenant, CHAT)
        .token(&token)
        .open()
        .await;
    // Full, and evicting nothing: reads and publishes work, writes do not.
    let () = redis.command(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let path = format!("/v1/tenants/{}/revocations", tenant.name);
    let body = json!({"token": token}).to_string();
    let call = async || {
        let replica = gateway.replica();
        replica.api(&gateway.api_key, "POST", &path, &body).await
    };
    let answer = call().await;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(answer.json()["code"], "unavailable");
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert!(socket.ping().await.is_empty());
    let () = redis.command(&["CONFIG", "SET", "maxmemory", "0"]).await;
    assert_eq!(call().await.json()["closed"], 1);
    assert_eq!(socket.closed().await.0, 4501);
    redis.kill();
    assert_eq!(call().await.status, 503);
}

/// A replica that hears nothing while a token is revoked closes its socket when the link is back.
#[tokio::test]
async fn a_replica_that_was_cut_off_closes_the_socket_when_its_link_returns() {
    let redis = RedisServer::start().await;
    let gateway = gateway().redis(&redis.url()).tenant("acme").start().await;
    let tenant = gateway.tenant();
    let token = tenant.sign(&claims(ALICE, "missed", now()));
    let replica = gateway.replica();
    let mut socket = replica.dial(tenant, CHAT).token(&token).open().await;
    redis.kill();
    replica
        .metric("lockgate_dependency_up", &[("dependency", "redis")], |up| {
            up == 0.0
        })
        .await;
    redis.restart().await;
    // Stored before the gateway is back, or after. In both cases no replica hears the announcement.
    let key = tenant.redis_key("deny:jti:missed");
    let () = redis.command(&["SET", &key, "1", "EX", "60"]).await;
    assert_eq!(socket.closed().await.0, 4501);
}

/// A thousand connects, each with a revocation of its token under way: every socket that opened is closed.
#[tokio::test]
async fn no_socket_survives_a_race_of_its_connect_against_its_revocation() {
    const RACES: usize = 1000;
    const AT_ONCE: usize = 20;
    let redis = RedisServer::start().await;
    let gateway = gateway()
        .redis(&redis.url())
        .replicas(2)
        .tenant("acme")
        .start()
        .await;
    let tenant = gateway.tenant();
    let link = redis.connection().await.unwrap();
    let (mut opened, mut refused) = (0, 0);
    for round in 0..RACES / AT_ONCE {
        let races = (0..AT_ONCE).map(|n| {
            let (gateway, mut link) = (&gateway, link.clone());
            async move {
                let jti = format!("race-{round}-{n}");
                let token = tenant.sign(&claims(ALICE, &jti, now()));
                let dial = gateway.replicas[n % 2].dial(tenant, CHAT);
                let connect = dial.token(&token).attempt();
                let revoke = async {
                    // From before the handshake's first byte to after its last.
                    for _ in 0..(n * 7 + round) % 40 {
                        tokio::task::yield_now().await;
                    }
                    tenant.revoke_in_redis(&jti, &mut link).await;
                };
                match tokio::join!(connect, revoke).0 {
                    Ok(mut socket) => {
                        assert_eq!(socket.closed().await.0, 4501, "{jti}");
                        true
                    }
                    Err(refusal) => {
                        Problem::new(401, "token_revoked").is(&refusal, &tenant.name);
                        false
                    }
                }
            }
        });
        for survived_its_handshake in futures_util::future::join_all(races).await {
            match survived_its_handshake {
                true => opened += 1,
                false => refused += 1,
            }
        }
    }
    assert!(
        opened > 0 && refused > 0,
        "{opened} opened, {refused} refused"
    );
}

/// A writer to a control channel can neither stop a replica nor make it publish elsewhere.
#[tokio::test]
async fn what_a_control_channel_holds_harms_nobody() {
    let redis = RedisServer::shared().await;
    let gateway = gateway().tenant("acme").tenant("other").start().await;
    let (acme, other) = (gateway.named("acme"), gateway.named("other"));
    let replica = gateway.replica();
    let mut socket = gateway.open(CHAT).await;
    let dial = replica.dial(other, CHAT);
    let mut neighbour = dial.token(&other.token(ALICE)).open().await;
    let channel = acme.redis_key("control");
    let group = format!("{}__group__chat_lobby", other.prefix);
    let messages = [
        String::new(),
        "[".repeat(100_000),
        "x".repeat(3 * 1024 * 1024),
        "{}".to_owned(),
        json!({"v": 2, "op": "suspend"}).to_string(),
        json!({"v": 1, "op": "explode"}).to_string(),
        json!({"v": 1, "op": ["revoke"]}).to_string(),
        json!({"v": 1, "op": "revoke", "user_id": {"a": 1}, "issued_before": 1}).to_string(),
        json!({"v": 1, "op": "revoke", "issued_before": "now"}).to_string(),
        json!({"v": 1, "op": "disconnect", "user_id": "1", "code": 1006}).to_string(),
        json!({"v": 1, "op": "send", "user_id": "1", "event": "no object"}).to_string(),
        json!({"v": 1, "op": "reload"}).to_string(),
    ];
    for message in &messages {
        let () = redis.command(&["PUBLISH", &channel, message]).await;
    }
    // Answers go nowhere but to channels of answers.
    let count = json!({"v": 1, "op": "count", "id": "1", "reply": group}).to_string();
    let () = redis.command(&["PUBLISH", &channel, &count]).await;
    let dropped = [("tenant", &*acme.name), ("cause", "not_decoded")];
    let expected = messages.len() as f64;
    replica
        .metric("lockgate_events_dropped_total", &dropped, |n| n == expected)
        .await;
    assert!(socket.ping().await.is_empty());
    assert!(neighbour.ping().await.is_empty());
    let told = "Ignored a message on the tenant's control channel";
    assert_eq!(replica.process.output.text().matches(told).count(), 1);
    // The channel still works.
    let closing = json!({"v": 1, "op": "disconnect", "user_id": "1"}).to_string();
    let () = redis.command(&["PUBLISH", &channel, &closing]).await;
    assert_eq!(socket.closed().await.0, 4508);
    assert!(neighbour.ping().await.is_empty());
}

#[tokio::test]
async fn a_revocation_needs_as_many_replicas_of_redis_as_are_demanded() {
    let redis = RedisServer::start().await;
    let gateway = gateway()
        .redis(&redis.url())
        .set("denylist.replicas", 1)
        .tenant("acme")
        .start()
        .await;
    let path = format!("/v1/tenants/{}/revocations", gateway.tenant().name);
    let body = json!({"user_id": ALICE}).to_string();
    let call = async || {
        let replica = gateway.replica();
        replica.api(&gateway.api_key, "POST", &path, &body).await
    };
    assert_eq!(call().await.status, 503);
    let copy = RedisServer::start().await;
    let endpoint = redis.endpoint();
    let (host, port) = endpoint.split_once(':').unwrap();
    let () = copy.command(&["REPLICAOF", host, port]).await;
    eventually(PATIENCE, "the copy acknowledges", async || {
        let answer = call().await;
        if answer.status == 200 {
            Ok(())
        } else {
            Err(answer)
        }
    })
    .await;
}

#[tokio::test]
async fn sockets_that_cannot_be_verified_stay_as_long_as_is_allowed() {
    let (redis, denylist) = (RedisServer::start().await, RedisServer::start().await);
    let gateway = gateway()
        .redis(&redis.url())
        .set("denylist.redis", denylist.url())
        .set("denylist.on_outage", "allow")
        .set("denylist.max_unverified", "4s")
        .tenant("acme")
        .route("path = 'ws/chat/<slug:room>/'\ngroups = ['chat_{room}']")
        .route("path = 'ws/open/'\ngroups = ['open']\nanonymous = true")
        .start()
        .await;
    let mut socket = gateway.open(CHAT).await;
    denylist.kill();
    let mut let_in = gateway.open(CHAT).await;
    assert!(socket.ping().await.is_empty());
    // It has nothing to verify.
    let dial = gateway.replica().dial(gateway.tenant(), "/ws/open/");
    let mut stranger = dial.open().await;
    let (code, reason) = socket.closed().await;
    assert_eq!(code, 4014);
    assert!(
        reason.starts_with("unavailable retry_after_ms="),
        "{reason}"
    );
    assert_eq!(let_in.closed().await.0, 4014);
    assert!(stranger.ping().await.is_empty());
    denylist.restart().await;
    eventually(PATIENCE, "sockets stay again", async || {
        let mut socket = gateway.open(CHAT).await;
        let closed = tokio::time::timeout(std::time::Duration::from_secs(1), socket.closed());
        match closed.await {
            Err(_) => Ok(()),
            Ok(closed) => Err(closed),
        }
    })
    .await;
}
