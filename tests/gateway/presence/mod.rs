//! Who is in a group: what members are told, what the API says, and what the two make of killed replicas and lost data.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::gateway::Builder;
use crate::support::http::Response;
use crate::support::socket::Socket;
use crate::support::{Database, Gateway, eventually, gateway};

mod accounting;
mod clock;
mod failures;
mod members;
mod pages;

/// The kinds of layers that lie on a Redis.
const LAYERS: [&str; 2] = ["pubsub", "core"];
/// The time within which a killed replica's sockets are gone, and lost data is there again.
const HEALED: Duration = Duration::from_secs(30);
/// Users of the databases of these tests, beside those that every test has: from 100 on.
const USERS: u32 = 60;

/// Begins a deployment whose rooms keep presence.
fn house(replicas: usize, layer: &str, rule: &str) -> Builder {
    gateway()
        .replicas(replicas)
        // Sockets that wait for the API do not read, and answer no ping.
        .set("server.heartbeat.interval", "10m")
        .tenant("acme")
        .with("layer.kind", layer)
        .with_toml(&format!(
            "groups = [{{ name = 'chat_<slug:room>', presence = {{ {rule} }} }}]"
        ))
}

/// A database with many users, whose names are `user` and their id.
async fn many_users() -> Database {
    let database = Database::sqlite().await;
    let last = 99 + USERS;
    database
        .execute(&format!(
            "INSERT INTO auth_user (id, password, is_superuser, username, first_name, last_name, email, is_staff, is_active, date_joined) \
             WITH RECURSIVE n(i) AS (SELECT 100 UNION ALL SELECT i + 1 FROM n WHERE i < {last}) \
             SELECT i, 'x', 0, 'user' || i, '', '', '', 0, 1, '2026-01-01 00:00:00' FROM n"
        ))
        .await;
    database
}

/// Opens a socket of a user in a room, on one of the replicas.
async fn enter(gateway: &Gateway, replica: usize, room: &str, user: &str) -> Socket {
    let tenant = gateway.tenant();
    let dial = gateway.replicas[replica].dial(tenant, &format!("/ws/chat/{room}/"));
    dial.token(&tenant.token(user)).open().await
}

/// Asks for the presence of a room, on one of the replicas. An error while Redis is away.
async fn try_ask(
    gateway: &Gateway,
    replica: usize,
    room: &str,
    rest: &str,
) -> Result<Value, Response> {
    let tenant = &gateway.tenant().name;
    let path = format!("/v1/tenants/{tenant}/groups/chat_{room}/presence{rest}");
    let answer = gateway.replicas[replica].api(&gateway.api_key, "GET", &path, "");
    let answer = answer.await;
    match answer.status {
        200 => Ok(answer.json()),
        503 => Err(answer),
        _ => panic!("{answer:?}"),
    }
}

/// Asks for the presence of a room, on one of the replicas.
async fn ask(gateway: &Gateway, replica: usize, room: &str, rest: &str) -> Value {
    let answer = try_ask(gateway, replica, room, rest).await;
    answer.expect("Redis answers")
}

/// The users in a room with the number of their sockets, and the number of all sockets.
type Found = (BTreeMap<String, u64>, u64);

async fn found(gateway: &Gateway, replica: usize, room: &str) -> Result<Found, Response> {
    let page = try_ask(gateway, replica, room, "?limit=1000").await?;
    let users = page["users"].as_array().expect("users");
    let user = |user: &Value| {
        let id = user["id"].as_str().expect("an id").to_owned();
        (id, user["sockets"].as_u64().expect("a number"))
    };
    let sockets = page["sockets"].as_u64().expect("a number");
    Ok((users.iter().map(user).collect(), sockets))
}

/// Waits until a replica says that these users are in a room, each with the number of their sockets.
async fn present(
    gateway: &Gateway,
    (replica, room): (usize, &str),
    users: &[(&str, u64)],
    deadline: Duration,
) {
    let users: BTreeMap<String, u64> = { users.iter() }
        .map(|(user, sockets)| ((*user).to_owned(), *sockets))
        .collect();
    let truth = (users.clone(), users.values().sum::<u64>());
    eventually(deadline, "the users of the room", async || {
        match found(gateway, replica, room).await {
            Ok(found) if found == truth => Ok(()),
            other => Err(other),
        }
    })
    .await;
    let count = json!({"sockets": truth.1, "users": users.len()});
    assert_eq!(ask(gateway, replica, room, "/count").await, count);
}

/// The frame that tells of a user who joined or left.
fn told(kind: &str, room: &str, user: Value) -> Value {
    json!({"type": format!("lockgate.{kind}"), "group": format!("chat_{room}"), "user": user})
}
