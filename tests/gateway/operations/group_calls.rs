//! Groups that a back end puts open sockets into by the API, on every kind of layer and on two replicas.

use std::time::Duration;

use serde_json::{Value, json};

use crate::event::resume::{position, position_of};
use crate::support::database::{ALICE, BOB};
use crate::support::gateway::Builder;
use crate::support::http::Response;
use crate::support::socket::Socket;
use crate::support::{Database, Gateway, PATIENCE, RedisServer, eventually, gateway};

const CHAT: &str = "/ws/chat/lobby/";

async fn call(gateway: &Gateway, method: &str, path: &str, body: &str) -> Response {
    let path = format!("/v1/tenants/{}/{path}", gateway.tenant().name);
    let replica = &gateway.replicas[gateway.replicas.len() - 1];
    replica.api(&gateway.api_key, method, &path, body).await
}

async fn json_of(gateway: &Gateway, method: &str, path: &str) -> Value {
    let answer = call(gateway, method, path, "").await;
    assert_eq!(answer.status, 200, "{method} {path}: {answer:?}");
    answer.json()
}

async fn send(gateway: &Gateway, group: &str, n: u64) {
    let event = json!({"type": "note", "n": n}).to_string();
    let answer = call(gateway, "POST", &format!("groups/{group}/send"), &event).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// Starts the replicas, and waits until each of them is known.
async fn known(builder: Builder) -> Gateway {
    let gateway = builder.start().await;
    let count = gateway.replicas.len();
    eventually(PATIENCE, "the replicas know each other", async || {
        let answer = json_of(&gateway, "GET", "connections").await;
        let confirmed = answer["replicas"]["confirmed"] == count;
        if confirmed { Ok(()) } else { Err(answer) }
    })
    .await;
    gateway
}

async fn open(gateway: &Gateway, replica: usize, user: &str) -> Socket {
    let tenant = gateway.tenant();
    let dial = gateway.replicas[replica].dial(tenant, CHAT);
    dial.token(&tenant.token(user)).open().await
}

/// The users of the sockets in a list.
fn users(list: &Value) -> Vec<String> {
    let sockets = list["sockets"].as_array().expect("a list");
    let user = |socket: &Value| socket["user_id"].as_str().expect("an id").to_owned();
    sockets.iter().map(user).collect()
}

#[tokio::test]
async fn the_sockets_of_a_user_join_and_leave_on_every_layer() {
    for (kind, replicas) in [("memory", 1), ("pubsub", 2), ("core", 2)] {
        let builder = match kind {
            "memory" => gateway().without_redis(),
            _ => gateway().replicas(replicas),
        };
        let database = Database::sqlite().await;
        let builder = builder.tenant("acme").users(&database);
        let gateway = known(builder.with("layer.kind", kind)).await;
        let everybody = json!({"expected": replicas, "confirmed": replicas, "missing": []});
        let mut alice = Vec::new();
        for replica in 0..replicas {
            alice.push(open(&gateway, replica, ALICE).await);
        }
        let mut bob = open(&gateway, 0, BOB).await;

        let here = json_of(&gateway, "GET", "users/1/connections").await;
        assert_eq!(here["connections"], replicas, "{kind}: {here}");
        assert_eq!(users(&here), vec![ALICE; replicas], "{kind}");
        let nobody = json_of(&gateway, "GET", "users/77/connections").await;
        assert_eq!(nobody["connections"], 0, "{kind}");

        let joined = json_of(&gateway, "POST", "users/1/groups/room_7").await;
        let expected = json!({"changed": replicas, "replicas": everybody});
        assert_eq!(joined, expected, "{kind}");
        let again = json_of(&gateway, "POST", "users/1/groups/room_7").await;
        assert_eq!(again["changed"], 0, "{kind}");
        // Joined when the call is answered: the event is not waited for.
        send(&gateway, "room_7", 1).await;
        send(&gateway, "chat_lobby", 2).await;
        for socket in &mut alice {
            assert_eq!(socket.next_json().await, json!({"n": 1}), "{kind}");
            assert_eq!(socket.next_json().await, json!({"n": 2}), "{kind}");
        }
        assert_eq!(bob.next_json().await, json!({"n": 2}), "{kind}");
        let members = json_of(&gateway, "GET", "groups/room_7").await;
        assert_eq!(members["connections"], replicas, "{kind}");

        let left = json_of(&gateway, "DELETE", "users/1/groups/room_7").await;
        assert_eq!(left, expected, "{kind}");
        let again = json_of(&gateway, "DELETE", "users/1/groups/room_7").await;
        assert_eq!(again["changed"], 0, "{kind}");
        // A group of its route, too.
        json_of(&gateway, "DELETE", "users/2/groups/chat_lobby").await;
        send(&gateway, "room_7", 3).await;
        send(&gateway, "chat_lobby", 4).await;
        for socket in &mut alice {
            assert_eq!(socket.next_json().await, json!({"n": 4}), "{kind}");
        }
        assert!(bob.ping().await.is_empty(), "{kind}");
    }
}

#[tokio::test]
async fn one_socket_is_named_by_its_channel() {
    let builder = gateway().replicas(2).tenant("acme").tenant("other");
    let gateway = known(builder).await;
    let mut first = open(&gateway, 0, ALICE).await;
    let list = json_of(&gateway, "GET", "users/1/connections").await;
    let channel = list["sockets"][0]["channel"].as_str().unwrap().to_owned();
    let mut second = open(&gateway, 0, ALICE).await;

    // The replica that is asked does not have the socket.
    let path = format!("connections/{channel}/groups/room_7");
    assert_eq!(json_of(&gateway, "POST", &path).await["changed"], 1);
    send(&gateway, "room_7", 1).await;
    assert_eq!(first.next_json().await, json!({"n": 1}));
    assert!(second.ping().await.is_empty());

    let other = gateway.named("other");
    let dial = gateway.replica().dial(other, CHAT);
    let _theirs = dial.token(&other.token(ALICE)).open().await;
    let list = format!("/v1/tenants/{}/connections", other.name);
    let list = gateway.replica().api(&gateway.api_key, "GET", &list, "");
    let theirs = list.await.json()["sockets"][0]["channel"].clone();
    let theirs = format!("connections/{}/groups/room_7", theirs.as_str().unwrap());
    let unknown = path.replace(&channel[channel.len() - 4..], "zzzz");
    for (path, status, code) in [
        (&*theirs, 404, "connection_not_found"),
        (&unknown, 404, "connection_not_found"),
        ("connections/x/groups/room_7", 404, "connection_not_found"),
        ("users/1/groups/a%20b", 400, "group_name_not_valid"),
        ("users/one/groups/room_7", 400, "user_id_not_valid"),
    ] {
        for method in ["POST", "DELETE"] {
            let answer = call(&gateway, method, path, "").await;
            let told = (answer.status, answer.json()["code"].clone());
            assert_eq!(told, (status, code.into()), "{method} {path}");
        }
    }
    let body = call(&gateway, "POST", &path, r#"{"group":"x"}"#).await;
    assert_eq!(body.json()["code"], "body_not_valid");

    assert_eq!(json_of(&gateway, "DELETE", &path).await["changed"], 1);
    first.close(1000, "").await;
    first.closed().await;
    eventually(PATIENCE, "the socket has left", async || {
        let answer = call(&gateway, "POST", &path, "").await;
        if answer.status == 404 {
            Ok(())
        } else {
            Err(answer)
        }
    })
    .await;
}

#[tokio::test]
async fn a_socket_has_no_room_over_its_limit_and_a_silent_replica_is_named() {
    let limits = gateway().replicas(2).tenant("acme");
    let gateway = known(limits.with("limits.groups_per_socket", 2)).await;
    let _alice = open(&gateway, 0, ALICE).await;
    let mut bob = open(&gateway, 1, BOB).await;
    let list = json_of(&gateway, "GET", "users/1/connections").await;
    let channel = list["sockets"][0]["channel"].as_str().unwrap().to_owned();
    json_of(&gateway, "POST", "users/1/groups/room_1").await;
    let full = json_of(&gateway, "POST", "users/1/groups/room_2").await;
    assert_eq!(
        (&full["changed"], &full["over_limit"]),
        (&0.into(), &1.into())
    );
    let names = [("tenant", &*gateway.tenant().name), ("cause", "limit")];
    let dropped = "lockgate_events_dropped_total";
    let counted = gateway.replica().metric(dropped, &names, |n| n == 1.0);
    counted.await;
    // As a drop alone, it did not show whose limit it was.
    let names = [("tenant", names[0].1), ("limit", "groups_per_socket")];
    let limited = gateway.replica().metrics().await;
    assert_eq!(limited.value("lockgate_rate_limited_total", &names), 1.0);

    gateway.replicas[0].process.freeze().await;
    for path in [
        format!("connections/{channel}/groups/room_3"),
        "users/2/groups/room_3".into(),
    ] {
        let answer = json_of(&gateway, "POST", &path).await;
        let replicas = &answer["replicas"];
        assert_eq!(
            (&replicas["expected"], &replicas["confirmed"]),
            (&2.into(), &1.into())
        );
        assert_eq!(
            replicas["missing"].as_array().map(Vec::len),
            Some(1),
            "{path}"
        );
    }
    send(&gateway, "room_3", 1).await;
    assert_eq!(bob.next_json().await, json!({"n": 1}));
    gateway.replicas[0]
        .process
        .signal(rustix::process::Signal::CONT);
}

/// A change that meets the goodbye of its socket finds it or does not. Nothing of it stays behind.
#[tokio::test]
async fn a_socket_that_leaves_meanwhile_leaves_nothing_in_a_group() {
    const ROUNDS: usize = 40;
    for kind in ["pubsub", "core"] {
        let redis = RedisServer::start().await;
        let builder = gateway().redis(&redis.url()).replicas(2).tenant("acme");
        let groups = "groups = [{ name = 'room_<int:n>', presence = {} }]";
        let gateway = known(builder.with("layer.kind", kind).with_toml(groups)).await;
        let mut changed = 0;
        for round in 0..ROUNDS {
            let mut socket = open(&gateway, round % 2, ALICE).await;
            let path = format!("users/1/groups/room_{}", round / 2);
            // Each part of a goodbye meets the call once in a while.
            let pause = Duration::from_micros(200 * (round as u64 % 10));
            let (answer, ()) = tokio::join!(json_of(&gateway, "POST", &path), async {
                tokio::time::sleep(pause).await;
                socket.close(1000, "").await;
                socket.closed().await;
            });
            assert_eq!(answer["replicas"]["confirmed"], 2, "{kind}: {answer}");
            changed += answer["changed"].as_u64().expect("a number");
        }
        println!("{kind}: {changed} of {ROUNDS} were found");
        let names = [("tenant", &*gateway.tenant().name)];
        for replica in &gateway.replicas {
            for gauge in ["lockgate_connections", "lockgate_subscriptions"] {
                replica.metric(gauge, &names, |n| n == 0.0).await;
            }
        }
        for n in 0..ROUNDS / 2 {
            eventually(PATIENCE, "nobody is in the group", async || {
                let path = format!("groups/room_{n}/presence/count");
                let count = json_of(&gateway, "GET", &path).await;
                let channels: Vec<String> = redis.command(&["PUBSUB", "CHANNELS", "*room_*"]).await;
                if count["sockets"] == 0 && channels.is_empty() {
                    Ok(())
                } else {
                    Err((count, channels))
                }
            })
            .await;
        }
    }
}

/// A group with a memory says its position to a client that comes back; its members see who joins; a reload keeps it.
#[tokio::test]
async fn a_group_that_is_joined_so_has_its_history_and_its_presence() {
    for kind in ["memory", "pubsub", "core"] {
        let builder = match kind {
            "memory" => gateway().without_redis(),
            _ => gateway(),
        };
        let groups = "groups = [{ name = 'room_<int:n>', history = {}, presence = {} }]";
        let gateway = known(
            builder
                .tenant("acme")
                .users(&Database::sqlite().await)
                .with("layer.kind", kind)
                .with_toml(groups)
                .route("path = 'ws/chat/<slug:room>/'\n groups = ['chat_{room}']\n resume = true"),
        )
        .await;
        let mut alice = open(&gateway, 0, ALICE).await;
        send(&gateway, "room_7", 1).await;
        json_of(&gateway, "POST", "users/1/groups/room_7").await;
        let at = position(&mut alice).await;
        assert!(position_of(&at).starts_with("room_7~"), "{kind}: {at}");
        assert!(at.get("recovered").is_none(), "{kind}: {at}");
        send(&gateway, "room_7", 2).await;
        let event = alice.next_json().await;
        assert_eq!(
            event["n"], 2,
            "{kind}: what was sent before the join is not its event"
        );
        assert!(position_of(&event).ends_with("~2"), "{kind}: {event}");
        let present = json!({"sockets": 1, "users": 1});
        eventually(PATIENCE, "the user is in the group", async || {
            let count = json_of(&gateway, "GET", "groups/room_7/presence/count").await;
            if count == present { Ok(()) } else { Err(count) }
        })
        .await;

        let text = std::fs::read_to_string(&gateway.config).unwrap();
        let mut config: toml::Table = text.parse().unwrap();
        let tenant = config["tenants"][&gateway.tenant().name].as_table_mut();
        let limits = "messages_per_second = 7".parse::<toml::Table>().unwrap();
        tenant.unwrap().insert("limits".into(), limits.into());
        std::fs::write(&gateway.config, config.to_string()).unwrap();
        let replica = gateway.replica();
        let reloaded = replica
            .api(&gateway.api_key, "POST", "/v1/reload", "")
            .await;
        assert_eq!(reloaded.status, 200, "{kind}: {reloaded:?}");
        send(&gateway, "room_7", 3).await;
        assert_eq!(alice.next_json().await["n"], 3, "{kind}");

        json_of(&gateway, "DELETE", "users/1/groups/room_7").await;
        send(&gateway, "room_7", 4).await;
        assert!(alice.ping().await.is_empty(), "{kind}");
        eventually(PATIENCE, "the user has left the group", async || {
            let count = json_of(&gateway, "GET", "groups/room_7/presence/count").await;
            if count == json!({"sockets": 0, "users": 0}) {
                Ok(())
            } else {
                Err(count)
            }
        })
        .await;
        // Again, now that the replica knows the history.
        json_of(&gateway, "POST", "users/1/groups/room_7").await;
        let at = position(&mut alice).await;
        assert!(position_of(&at).ends_with("~4"), "{kind}: {at}");
    }
}
