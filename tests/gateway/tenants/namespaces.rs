//! Tenants of one prefix, each with a namespace, as the schemas of one Django project.

use serde_json::{Value, json};

use crate::event::resume::{position, position_of};
use crate::support::database::ALICE;
use crate::support::django::Django;
use crate::support::http::Response;
use crate::support::socket::Socket;
use crate::support::{
    Database, Gateway, PATIENCE, Publisher, RedisServer, Tenant, eventually, gateway,
};

use super::reload::{APPLIED, REFUSED, change, hang_up, tenant_table};

const GROUPS: &str = "groups = [{ name = 'kept_<slug:room>', history = {}, presence = {} }]";
/// The worker's channel begins with the prefix, and serves both tenants.
fn routes(prefix: &str) -> [String; 3] {
    [
        "path = 'ws/chat/<slug:room>/'\n groups = ['chat_{room}']".to_owned(),
        "path = 'ws/kept/<slug:room>/'\n groups = ['kept_{room}']\n resume = true".to_owned(),
        format!("path = 'ws/work/'\n consumer = {{ kind = 'worker', channel = '{prefix}.work' }}"),
    ]
}

/// Two tenants on one Redis, prefix and database.
async fn schemas(kind: &str, database: &Database) -> Gateway {
    let prefix = format!("project-{}", crate::support::unique());
    let mut builder = gateway();
    for word in ["acme", "globex"] {
        builder = builder
            .tenant(word)
            .users(database)
            .with("layer.kind", kind)
            .with("layer.prefix", prefix.as_str())
            .with("layer.namespace", format!("{word}."))
            .with_toml(GROUPS);
        for route in routes(&prefix) {
            builder = builder.route(&route);
        }
    }
    builder.start().await
}

async fn call(gateway: &Gateway, tenant: &Tenant, call: (&str, &str), body: &Value) -> Response {
    let path = format!("/v1/tenants/{}/{}", tenant.name, call.1);
    let body = match body {
        Value::Null => String::new(),
        body => body.to_string(),
    };
    let replica = gateway.replica();
    let answer = replica.api(&gateway.api_key, call.0, &path, &body).await;
    assert_eq!(answer.status, 200, "{path}: {answer:?}");
    answer
}

async fn open(gateway: &Gateway, tenant: &Tenant, path: &str) -> Socket {
    let dial = gateway.replica().dial(tenant, path);
    dial.token(&tenant.token(ALICE)).open().await
}

#[tokio::test]
async fn tenants_of_one_prefix_hear_the_groups_of_their_namespaces_alone() {
    let database = Database::sqlite().await;
    for kind in ["pubsub", "core"] {
        let gateway = schemas(kind, &database).await;
        let (acme, globex) = (gateway.named("acme"), gateway.named("globex"));
        let setup = Django::at(database.url()).layer(&acme.redis, &acme.prefix);
        let django = match kind {
            "core" => setup.core(&json!({})).start().await,
            _ => setup.start().await,
        };
        let mut ours = open(&gateway, acme, "/ws/chat/lobby/").await;
        let mut theirs = open(&gateway, globex, "/ws/chat/lobby/").await;

        // A name without a namespace is nobody's, and that of one tenant is not the other's.
        for (n, group) in ["chat_lobby", "acme.chat_lobby", "globex.chat_lobby"]
            .into_iter()
            .enumerate()
        {
            django
                .group_send(group, &[json!({"type": "t", "n": n})])
                .await;
        }
        assert_eq!(ours.next_json().await, json!({"n": 1}), "{kind}");
        assert_eq!(theirs.next_json().await, json!({"n": 2}), "{kind}");

        // The API knows the names of the routes, and a consumer of Django hears the whole name.
        let channel = django.listen("acme.chat_lobby").await;
        let event = json!({"type": "t", "n": 3});
        call(&gateway, acme, ("POST", "groups/chat_lobby/send"), &event).await;
        assert_eq!(ours.next_json().await, json!({"n": 3}), "{kind}");
        assert_eq!(django.receive(&channel).await["n"], 3, "{kind}");
        let list = call(&gateway, acme, ("GET", "groups/chat_lobby"), &Value::Null).await;
        assert_eq!(list.json()["connections"], 1, "{kind}");
        let joined = call(
            &gateway,
            globex,
            ("POST", "users/1/groups/room_7"),
            &Value::Null,
        )
        .await;
        assert_eq!(joined.json()["changed"], 1, "{kind}");
        for group in ["acme.room_7", "globex.room_7"] {
            django
                .group_send(group, &[json!({"type": "t", "group": group})])
                .await;
        }
        assert_eq!(
            theirs.next_json().await,
            json!({"group": "globex.room_7"}),
            "{kind}"
        );
        assert!(
            ours.ping().await.is_empty() && theirs.ping().await.is_empty(),
            "{kind}"
        );
    }
}

/// Equal groups of both tenants have histories and presence of their own.
#[tokio::test]
async fn groups_with_a_memory_are_kept_apart_too() {
    let database = Database::sqlite().await;
    for kind in ["pubsub", "core"] {
        let gateway = schemas(kind, &database).await;
        let (acme, globex) = (gateway.named("acme"), gateway.named("globex"));
        let setup = Django::at(database.url()).layer(&acme.redis, &acme.prefix);
        let django = match kind {
            "core" => setup.core(&json!({})).start().await,
            _ => {
                let tenants = json!({"tenants": {"acme.": acme.name, "globex.": globex.name}});
                let setup = setup.recording_for(&acme.name);
                setup.layer_config(&tenants).start().await
            }
        };
        let mut ours = open(&gateway, acme, "/ws/kept/a/").await;
        let mut theirs = open(&gateway, globex, "/ws/kept/a/").await;
        for socket in [&mut ours, &mut theirs] {
            assert!(position_of(&position(socket).await).starts_with("kept_a~"));
        }
        // The gateway's own event first: from it on the layer of Django has the rules.
        let event = json!({"type": "t", "n": 1});
        call(&gateway, acme, ("POST", "groups/kept_a/send"), &event).await;
        let first = ours.next_json().await;
        assert!(position_of(&first).ends_with("~1"), "{kind}: {first}");
        django
            .group_send("acme.kept_a", &[json!({"type": "t", "n": 2})])
            .await;
        let second = ours.next_json().await;
        assert_eq!(second["n"], 2, "{kind}");
        assert!(position_of(&second).ends_with("~2"), "{kind}: {second}");
        let page = call(
            &gateway,
            acme,
            ("GET", "groups/kept_a/history"),
            &Value::Null,
        )
        .await;
        assert_eq!(
            page.json()["events"].as_array().map(Vec::len),
            Some(2),
            "{kind}"
        );
        let page = call(
            &gateway,
            globex,
            ("GET", "groups/kept_a/history"),
            &Value::Null,
        )
        .await;
        assert_eq!(page.json()["events"], json!([]), "{kind}");
        assert!(theirs.ping().await.is_empty(), "{kind}");
        is_no_position_of(&gateway, globex, &position_of(&first)).await;
        for tenant in [acme, globex] {
            eventually(PATIENCE, "presence", async || {
                let count = ("GET", "groups/kept_a/presence/count");
                let count = call(&gateway, tenant, count, &Value::Null).await.json();
                match count == json!({"sockets": 1, "users": 1}) {
                    true => Ok(()),
                    false => Err(count),
                }
            })
            .await;
        }
    }
}

/// A position in one tenant's group means nothing in the equal group of another.
async fn is_no_position_of(gateway: &Gateway, tenant: &Tenant, since: &str) {
    let dial = gateway.replica().dial(tenant, "/ws/kept/a/");
    let query = format!("token={}&since={since}", tenant.token(ALICE));
    let mut socket = dial.query(&query).open().await;
    let gap = socket.next_json().await;
    assert_eq!(gap, json!({"type": "lockgate.gap", "group": "kept_a"}));
    let now = position(&mut socket).await;
    assert_eq!(now["recovered"], false, "{now}");
    assert!(socket.ping().await.is_empty());
}

/// A worker of the project serves sockets of every schema. The groups that it orders are those of the socket's tenant.
#[tokio::test]
async fn one_worker_serves_the_sockets_of_every_schema() {
    let database = Database::sqlite().await;
    for kind in ["pubsub", "core"] {
        let gateway = schemas(kind, &database).await;
        let (acme, globex) = (gateway.named("acme"), gateway.named("globex"));
        let channel = format!("{}.work", acme.prefix);
        let setup = Django::at(database.url()).layer(&acme.redis, &acme.prefix);
        let setup = setup.worker_channels(&[&channel]);
        let django = match kind {
            "core" => setup.core(&json!({})).start().await,
            _ => setup.start().await,
        };
        django.work(&[&channel]).await;
        if kind == "pubsub" {
            is_heard(&["PUBSUB", "NUMSUB", &channel]).await;
        }
        let mut ours = open(&gateway, acme, "/ws/work/").await;
        let mut theirs = open(&gateway, globex, "/ws/work/").await;
        for (socket, tenant) in [(&mut ours, acme), (&mut theirs, globex)] {
            socket.send_text(r#"{"do": "scope"}"#).await;
            assert_eq!(socket.next_json().await["tenant"], *tenant.name, "{kind}");
        }
        // The worker has put each into the lobby of its own tenant.
        for namespace in ["acme", "globex"] {
            let prefix = &acme.prefix;
            let name = match kind {
                "core" => format!("{prefix}:group:{namespace}.chat_lobby"),
                _ => format!("{prefix}__group__{namespace}.chat_lobby"),
            };
            match kind {
                "core" => is_heard(&["ZCARD", &name]).await,
                _ => is_heard(&["PUBSUB", "NUMSUB", &name]).await,
            }
            let event = json!({"type": "t", "to": namespace});
            let group = format!("{namespace}.chat_lobby");
            django.group_send(&group, &[event]).await;
        }
        assert_eq!(ours.next_json().await, json!({"to": "acme"}), "{kind}");
        assert_eq!(theirs.next_json().await, json!({"to": "globex"}), "{kind}");
        for socket in [&mut ours, &mut theirs] {
            assert!(socket.ping().await.is_empty(), "{kind}");
        }
    }
}

/// Waits until a command that counts listeners or members answers 1.
async fn is_heard(command: &[&str]) {
    let redis = RedisServer::shared().await;
    eventually(PATIENCE, &command.join(" "), async || {
        let answer: redis::Value = redis.command(command).await;
        let count = match &answer {
            redis::Value::Array(named) => named.get(1),
            single => Some(single),
        };
        match count {
            Some(redis::Value::Int(1)) => Ok(()),
            _ => Err(answer),
        }
    })
    .await;
}

/// A namespace is part of a layer: sockets of the old name would hear nothing any more.
#[tokio::test]
async fn a_changed_namespace_closes_the_sockets_of_its_tenant_alone() {
    let database = Database::sqlite().await;
    let gateway = schemas("pubsub", &database).await;
    let (acme, globex) = (gateway.named("acme"), gateway.named("globex"));
    let mut ours = open(&gateway, acme, "/ws/chat/lobby/").await;
    let mut theirs = open(&gateway, globex, "/ws/chat/lobby/").await;
    // A name that meets another is refused as a whole, and loses nothing.
    let rename = |namespace: &str| {
        change(&gateway, |table| {
            let layer = tenant_table(table, acme)["layer"].as_table_mut().unwrap();
            layer.insert("namespace".to_owned(), namespace.into());
        });
    };
    rename("glob");
    hang_up(&gateway, REFUSED).await;
    assert!(ours.ping().await.is_empty() && theirs.ping().await.is_empty());
    rename("initech.");
    hang_up(&gateway, APPLIED).await;
    assert_eq!(ours.closed().await.0, 1012);
    let mut ours = open(&gateway, acme, "/ws/chat/lobby/").await;
    let publisher = Publisher::new(RedisServer::shared().await, &acme.prefix).await;
    for group in ["acme.chat_lobby", "initech.chat_lobby", "globex.chat_lobby"] {
        let event = json!({"type": "t", "to": group});
        publisher.send(group, &event).await;
    }
    assert_eq!(ours.next_json().await, json!({"to": "initech.chat_lobby"}));
    assert_eq!(theirs.next_json().await, json!({"to": "globex.chat_lobby"}));
    assert!(ours.ping().await.is_empty() && theirs.ping().await.is_empty());
}

/// Together with the namespace a name has at most 99 characters, as Channels demands of Django.
#[tokio::test]
async fn the_namespace_counts_in_the_length_of_a_name() {
    let database = Database::sqlite().await;
    let gateway = schemas("core", &database).await;
    let acme = gateway.named("acme");
    for (length, fits) in [(94, true), (95, false)] {
        let group = "g".repeat(length);
        let path = format!("/v1/tenants/{}/groups/{group}/send", acme.name);
        let replica = gateway.replica();
        let key = &gateway.api_key;
        let answer = replica.api(key, "POST", &path, r#"{"type":"t"}"#).await;
        assert_eq!(answer.status, if fits { 200 } else { 400 }, "{answer:?}");
        let path = format!("/v1/tenants/{}/users/1/groups/{group}", acme.name);
        let answer = replica.api(key, "POST", &path, "").await;
        assert_eq!(answer.status, if fits { 200 } else { 400 }, "{answer:?}");
    }
}
