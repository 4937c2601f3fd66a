//! What happens while a refresh is under way: revocations, the end of the old token, a drain, a reload, a suspension.
//!
//! The denylist has a Redis of its own behind a proxy that lets nothing pass, so that a refresh waits there. It waits a
//! second at most and is then answered `unavailable`; a test that was too slow tries again.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use super::{
    CHAT, CHAT_ROUTE, ECHO_ROUTE, claims, error, open, refresh, refreshed, refreshing, request,
};
use crate::support::database::ALICE;
use crate::support::gateway::Builder;
use crate::support::proxy::{Line, Proxy};
use crate::support::socket::Socket;
use crate::support::{Gateway, PATIENCE, RedisServer, eventually, gateway, token};
use crate::tenants::reload::{APPLIED, change, hang_up, tenant_table};

/// The attempts of a test whose refresh must still be under way at a certain moment.
const ATTEMPTS: usize = 20;

struct Held {
    gateway: Gateway,
    _denylist: RedisServer,
    proxy: Proxy,
}

impl Held {
    async fn start(edit: impl FnOnce(Builder) -> Builder) -> Self {
        let denylist = RedisServer::start().await;
        let proxy = Proxy::to(&denylist.endpoint()).await;
        let url = format!("redis://{}/0", proxy.endpoint());
        let gateway = edit(refreshing().set("denylist.redis", url)).start().await;
        Self {
            gateway,
            _denylist: denylist,
            proxy,
        }
    }

    /// Sends a refresh that waits for the denylist. Returns once the gateway has taken the frame.
    async fn begin(&self, socket: &mut Socket, claims: &Value) {
        let replica = self.gateway.replica();
        let labels = [("kind", "text")];
        let name = "lockgate_frames_received_total";
        let before = replica.metrics().await.value(name, &labels);
        self.proxy.set(Line::Clogged);
        let token = self.gateway.tenant().sign(claims);
        socket.send_text(&request(&token)).await;
        replica.metric(name, &labels, |now| now > before).await;
    }

    /// Lets the denylist answer again, and waits until the gateway has noticed.
    async fn release(&self) {
        self.proxy.set(Line::Open);
        let tenant = self.gateway.tenant();
        eventually(PATIENCE, "a socket opens", async || {
            let dial = self.gateway.replica().dial(tenant, CHAT);
            dial.token(&tenant.token(ALICE)).attempt().await.map(drop)
        })
        .await;
    }

    /// Says that alice has changed, and returns once all replicas have looked at her sockets.
    async fn invalidate(&self) {
        let path = format!(
            "/v1/tenants/{}/users/{ALICE}/invalidate",
            self.gateway.tenant().name
        );
        let (replica, key) = (self.gateway.replica(), &self.gateway.api_key);
        let answer = replica.api(key, "POST", &path, "").await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }

    async fn publish(&self, message: &Value) {
        let redis = RedisServer::shared().await;
        let channel = self.gateway.tenant().redis_key("control");
        let heard: u64 = redis
            .command(&["PUBLISH", &channel, &message.to_string()])
            .await;
        assert_eq!(heard, 1);
    }
}

fn unavailable() -> Value {
    error("unavailable", json!({"retry_after_ms": 1000}))
}

/// The announcement alone closes the socket: the key that a denial would store is not there.
#[tokio::test]
async fn a_revocation_finds_a_socket_by_its_own_token_and_by_the_one_under_way() {
    let held = Held::start(|gateway| gateway).await;
    let now = token::now();
    for (n, target) in [
        json!({"jti": "own"}),
        json!({"jti": "next"}),
        json!({"user_id": ALICE, "issued_before": now - 60}),
        json!({"issued_before": now - 60}),
    ]
    .into_iter()
    .enumerate()
    {
        // The cut-offs concern the own token in one half of the cases, and the next one in the other.
        for (own, next) in [(now - 100, now), (now, now - 100)] {
            let mut found = false;
            for _ in 0..ATTEMPTS {
                let mut socket = open(&held.gateway, CHAT, &claims("own", own)).await;
                held.begin(&mut socket, &claims("next", next)).await;
                let mut message = json!({"v": 1, "op": "revoke"});
                let fields = message.as_object_mut().unwrap();
                fields.extend(target.as_object().unwrap().clone());
                held.publish(&message).await;
                let (before, close) = answers_to_the_end(&mut socket).await;
                found = before.is_empty() && close == Some(4501);
                // It came too late, and the refresh had been given up.
                assert!(
                    found || before == [unavailable()],
                    "{n}: {before:?} {close:?}"
                );
                held.release().await;
                if found {
                    break;
                }
            }
            assert!(found, "{target} {own} {next}");
        }
    }
}

/// Reads answers up to the close; `None` if the socket stays open.
async fn answers_to_the_end(socket: &mut Socket) -> (Vec<Value>, Option<u16>) {
    let mut answers = Vec::new();
    loop {
        match socket.next().await {
            Message::Text(text) => answers.push(serde_json::from_str(text.as_str()).unwrap()),
            Message::Close(Some(frame)) => return (answers, Some(frame.code.into())),
            other => panic!("{other:?}"),
        }
        if answers.last() == Some(&unavailable()) {
            return (answers, None);
        }
    }
}

#[tokio::test]
async fn a_token_that_ends_while_its_successor_is_judged_closes_the_socket() {
    let held = Held::start(|gateway| gateway).await;
    for _ in 0..ATTEMPTS {
        let mut own = claims("own", token::now());
        let end = token::now() + 2;
        own["exp"] = end.into();
        let mut socket = open(&held.gateway, CHAT, &own).await;
        // Half a second before the end, since a refresh waits a second.
        let begins = UNIX_EPOCH + Duration::from_millis(end as u64 * 1000 - 500);
        let wait = begins.duration_since(SystemTime::now());
        tokio::time::sleep(wait.unwrap_or_default()).await;
        held.begin(&mut socket, &claims("next", token::now())).await;
        let (answers, (code, _)) = socket.drained().await;
        assert_eq!(code, 4001);
        held.release().await;
        if answers.is_empty() {
            return;
        }
        let late = Message::text(unavailable().to_string());
        assert_eq!(answers, [late]);
    }
    panic!("no refresh was under way at the end of its socket's token");
}

#[tokio::test]
async fn a_drain_does_not_wait_for_a_refresh() {
    let held = Held::start(|gateway| gateway.set("server.drain.delay", "0s")).await;
    let mut socket = open(&held.gateway, CHAT, &claims("own", token::now())).await;
    held.begin(&mut socket, &claims("next", token::now())).await;
    held.gateway.replica().terminate();
    let (before, (code, reason)) = socket.drained().await;
    assert_eq!(code, 1012, "{reason}");
    assert!(before.len() <= 1, "{before:?}");
    let exit = held.gateway.replica().exited(PATIENCE).await;
    assert_eq!(exit.code(), Some(0));
}

#[tokio::test]
async fn a_suspension_closes_a_socket_whose_refresh_is_under_way() {
    let held = Held::start(|gateway| gateway).await;
    let mut socket = open(&held.gateway, CHAT, &claims("own", token::now())).await;
    held.begin(&mut socket, &claims("next", token::now())).await;
    held.publish(&json!({"v": 1, "op": "suspend"})).await;
    let (before, (code, _)) = socket.drained().await;
    assert_eq!(code, 4016);
    assert!(before.len() <= 1, "{before:?}");
}

/// The user is invalidated while a refresh waits. One who may stay keeps the socket, with the token that was answered; one who
/// may not loses it, and the refresh does not bring it back.
#[tokio::test]
async fn an_invalidation_of_the_user_meanwhile_judges_the_socket_by_the_new_record() {
    let held = Held::start(|gateway| gateway).await;
    let tenant = held.gateway.tenant();
    let set_active = async |active: bool| {
        let change = format!("UPDATE auth_user SET is_active = {active} WHERE id = 1");
        tenant.database.execute(&change).await;
    };
    let mut stays = open(&held.gateway, CHAT, &claims("own", token::now())).await;
    held.begin(&mut stays, &claims("next", token::now())).await;
    held.invalidate().await;
    held.proxy.set(Line::Open);
    let answer = stays.next_json().await;
    assert!(
        answer == unavailable() || answer["type"] == "lockgate.refreshed",
        "{answer}"
    );
    held.release().await;
    refreshed(&mut stays, tenant, &claims("after", token::now())).await;
    assert!(stays.ping().await.is_empty());

    held.begin(&mut stays, &claims("late", token::now())).await;
    set_active(false).await;
    held.invalidate().await;
    held.proxy.set(Line::Open);
    let (before, close) = stays.drained().await;
    assert_eq!(close, (4502, "user_inactive".to_owned()));
    assert!(before.len() <= 1, "{before:?}");
    set_active(true).await;
}

/// What came behind a refresh waits for it, and a client that leaves meanwhile leaves nothing behind.
#[tokio::test]
async fn frames_wait_behind_a_refresh_and_a_client_may_leave() {
    let held = Held::start(|gateway| gateway).await;
    let tenant = held.gateway.tenant();
    for _ in 0..5 {
        let mut leaves = open(&held.gateway, CHAT, &claims("own", token::now())).await;
        held.begin(&mut leaves, &claims("next", token::now())).await;
        drop(leaves);
        held.proxy.set(Line::Open);
    }
    let name = [("tenant", tenant.name.as_str())];
    let replica = held.gateway.replica();
    replica
        .metric("lockgate_connections", &name, |open| open == 0.0)
        .await;
    held.release().await;
    let mut socket = open(&held.gateway, super::ECHO, &claims("own", token::now())).await;
    held.begin(&mut socket, &claims("next", token::now())).await;
    socket.send_text("behind").await;
    held.proxy.set(Line::Open);
    let answer = socket.next_json().await;
    assert!(
        answer == unavailable() || answer["type"] == "lockgate.refreshed",
        "{answer}"
    );
    assert_eq!(socket.next_text().await, "behind");
}

/// A refresh that was verified by a key which a reload has removed meanwhile is judged again, by the new keys.
#[tokio::test]
async fn a_reload_meanwhile_judges_the_token_by_the_new_keys() {
    let held = Held::start(|gateway| gateway).await;
    let tenant = held.gateway.tenant();
    let keys = [tenant.key.clone(), format!("another {}", tenant.key)];
    let mut judged_again = false;
    for attempt in 0..ATTEMPTS {
        // The served key is the first in even attempts.
        let (old, new) = (&keys[attempt % 2], &keys[(attempt + 1) % 2]);
        let dial = held.gateway.replica().dial(tenant, CHAT);
        let mut socket = dial
            .token(&token::sign(old, &claims("own", token::now())))
            .open()
            .await;
        let next = token::sign(old, &claims("next", token::now()));
        held.proxy.set(Line::Clogged);
        socket.send_text(&request(&next)).await;
        change(&held.gateway, |table| {
            let token = tenant_table(table, tenant)["token"].as_table_mut().unwrap();
            token.insert("signing_key".into(), new.as_str().into());
        });
        hang_up(&held.gateway, APPLIED).await;
        held.proxy.set(Line::Open);
        let answer = socket.next_json().await;
        let by_the_new = error("token_not_valid", json!({"check": "signature"}));
        assert!(answer == by_the_new || answer == unavailable(), "{answer}");
        judged_again = answer == by_the_new;
        // The open socket takes a token of the new key.
        let good = token::sign(new, &claims("good", token::now()));
        eventually(PATIENCE, "the new key counts", async || {
            let answer = refresh(&mut socket, &good).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
            if answer["type"] == "lockgate.refreshed" {
                Ok(())
            } else {
                Err(answer)
            }
        })
        .await;
        if judged_again {
            break;
        }
    }
    assert!(judged_again);
}

/// A thousand refreshes, each with a revocation under way, from before its first byte to after its answer.
#[tokio::test]
async fn no_socket_survives_a_race_of_its_refresh_against_the_revocation_of_its_next_token() {
    const RACES: usize = 600;
    const AT_ONCE: usize = 20;
    let redis = RedisServer::start().await;
    let gateway = gateway()
        .redis(&redis.url())
        .tenant("acme")
        .with("token.refresh", true)
        .route(CHAT_ROUTE)
        .route(ECHO_ROUTE)
        .start()
        .await;
    let tenant = gateway.tenant();
    let link = redis.connection().await.unwrap();
    let (mut before, mut after, mut spared) = (0, 0, 0);
    for round in 0..RACES / AT_ONCE {
        let races = (0..AT_ONCE).map(|n| {
            let (gateway, mut link) = (&gateway, link.clone());
            async move {
                let name = |part: &str| format!("{part}-{round}-{n}");
                // One in four revokes the old token, which concerns the socket only until the new one is in place.
                let revokes_old = n % 4 == 0;
                let revoked = name(if revokes_old { "old" } else { "new" });
                let mut socket = open(gateway, CHAT, &claims(&name("old"), token::now())).await;
                let next = tenant.sign(&claims(&name("new"), token::now()));
                let request = request(&next);
                let refreshing = socket.send_text(&request);
                let revoke = async {
                    for _ in 0..(n * 7 + round) % 40 {
                        tokio::task::yield_now().await;
                    }
                    tenant.revoke_in_redis(&revoked, &mut link).await;
                };
                tokio::join!(refreshing, revoke);
                let mut answered = false;
                loop {
                    match socket.next().await {
                        Message::Close(Some(frame)) => {
                            assert_eq!(u16::from(frame.code), 4501, "{revoked}");
                            return if answered { "after" } else { "before" };
                        }
                        Message::Text(text) => {
                            assert!(text.as_str().contains("lockgate.refreshed"), "{text}");
                            answered = true;
                            if revokes_old {
                                // Its revocation may still be on its way, and then closes nothing.
                                return "spared";
                            }
                        }
                        other => panic!("{other:?}"),
                    }
                }
            }
        });
        for end in futures_util::future::join_all(races).await {
            match end {
                "before" => before += 1,
                "after" => after += 1,
                _ => spared += 1,
            }
        }
    }
    assert!(
        before > 0 && after > 0 && spared > 0,
        "{before} {after} {spared}"
    );
}

/// The answer and the revocation are told apart: nothing closes a socket for the token that it no longer has.
#[tokio::test]
async fn after_the_answer_the_old_token_is_no_longer_the_sockets() {
    let gateway = refreshing().start().await;
    let tenant = gateway.tenant();
    let redis = RedisServer::shared().await;
    for n in 0..50 {
        let old = format!("old-{n}");
        let mut socket = open(&gateway, CHAT, &claims(&old, token::now())).await;
        refreshed(
            &mut socket,
            tenant,
            &claims(&format!("new-{n}"), token::now()),
        )
        .await;
        let message = json!({"v": 1, "op": "revoke", "jti": old}).to_string();
        let channel = tenant.redis_key("control");
        let () = redis.command(&["PUBLISH", &channel, &message]).await;
        // What follows on the same channel has been obeyed after it.
        let message = json!({"v": 1, "op": "send", "user_id": ALICE, "event": {"type": "x"}});
        let () = redis
            .command(&["PUBLISH", &channel, &message.to_string()])
            .await;
        assert_eq!(socket.next_json().await, json!({}));
    }
}
