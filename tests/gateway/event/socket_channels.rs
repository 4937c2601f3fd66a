//! What is sent to a socket's own channel, on both Redis layers: a gateway in this process, with a consumer that tells
//! its socket's channel name.

use lockgate::consumer::{Consumer, Context, Refused, Registry};
use lockgate::server::{Options, Server};
use lockgate::{Config, LoadOptions};
use serde_json::json;

use crate::support::database::ALICE;
use crate::support::django::Django;
use crate::support::socket::{Dial, Socket};
use crate::support::{Database, Gateway, RedisServer, gateway};

struct Told;

#[async_trait::async_trait]
impl Consumer for Told {
    async fn connect(&mut self, context: &mut Context<'_>) -> Result<(), Refused> {
        context.send_text(context.scope().channel_name().as_str());
        Ok(())
    }
}

const ROUTE: &str = r#"
    path     = "told/"
    groups   = ["everybody"]
    deliver  = "event"
    consumer = { kind = "told" }
"#;

/// The gateway of `gateway`'s configuration, in this process: it installs metrics, so there can be one.
async fn serve(gateway: &Gateway) -> Server {
    let mut registry = Registry::default();
    registry.register("told", |_| Told);
    let options = LoadOptions {
        consumers: registry.clone(),
        ..LoadOptions::default()
    };
    let loaded = Config::load(Some(&gateway.config), &options).expect("it is valid");
    let options = Options {
        registry,
        ..Options::default()
    };
    let server = Server::start(loaded.config, options)
        .await
        .expect("it starts");
    server.ready().await;
    server
}

async fn told(server: &Server, gateway: &Gateway, word: &str) -> (Socket, String) {
    let tenant = gateway.named(word);
    let dial = Dial::new(server.addresses().server, &tenant.host, "/told/");
    let mut socket = dial.token(&tenant.token(ALICE)).open().await;
    let name = socket.next_text().await;
    (socket, name)
}

#[tokio::test]
async fn django_reaches_one_socket_and_puts_it_into_groups() {
    let database = Database::postgres().await;
    let redis = RedisServer::start().await;
    let gateway = gateway()
        .redis(&redis.url())
        .tenant("core")
        .users(&database)
        .with("layer.kind", "core")
        .with("limits.groups_per_socket", 2)
        .route(ROUTE)
        .tenant("pubsub")
        .users(&database)
        .with("limits.groups_per_socket", 2)
        .route(ROUTE)
        .write()
        .await;
    let server = serve(&gateway).await;
    for word in ["core", "pubsub"] {
        let tenant = gateway.named(word);
        let django = Django::at(database.url()).layer(&redis.url(), &tenant.prefix);
        let django = match word {
            "core" => django.core(&json!({})).start().await,
            _ => django.start().await,
        };
        let (mut one, name) = told(&server, &gateway, word).await;
        let (mut other, other_name) = told(&server, &gateway, word).await;
        assert_ne!(name, other_name);
        let begins = match word {
            "core" => "specific.".to_owned(),
            _ => format!("{}specific.", tenant.prefix),
        };
        assert!(name.starts_with(&begins), "{name}");

        // To one socket alone, like an event from a group; and as an ASGI message.
        let event = json!({"type": "chat.message", "n": 1});
        django.send(&name, &event).await;
        assert_eq!(one.next_json().await, event);
        django
            .send(
                &name,
                &json!({"type": "websocket.send", "text": "as it is"}),
            )
            .await;
        assert_eq!(one.next_text().await, "as it is");
        assert!(other.ping().await.is_empty());

        // Orders act on the socket they are sent to.
        let order = |kind: &str, group: &str| json!({"type": kind, "group": group});
        django
            .send(&name, &order("lockgate.group_add", "extra"))
            .await;
        // Over `groups_per_socket`, and no name: dropped.
        django
            .send(&name, &order("lockgate.group_add", "more"))
            .await;
        django
            .send(&name, &order("lockgate.group_add", "no name"))
            .await;
        django.send(&name, &event).await;
        assert_eq!(one.next_json().await, event, "after the orders");
        let in_group = async |group: &str, n: u32| {
            let event = json!({"type": "x", "group": group, "n": n});
            django.group_send(group, std::slice::from_ref(&event)).await;
            event
        };
        crate::support::eventually(
            crate::support::PATIENCE,
            "the group is joined",
            async || {
                let probe = match word {
                    "core" => vec![
                        "EXISTS".to_owned(),
                        format!("{}:group:extra", tenant.prefix),
                    ],
                    _ => {
                        let channel = format!("{}__group__extra", tenant.prefix);
                        vec!["PUBSUB".to_owned(), "CHANNELS".to_owned(), channel]
                    }
                };
                let probe: Vec<&str> = probe.iter().map(String::as_str).collect();
                match redis.command::<redis::Value>(&probe).await {
                    redis::Value::Int(1) => Ok(()),
                    redis::Value::Array(found) if !found.is_empty() => Ok(()),
                    other => Err(other),
                }
            },
        )
        .await;
        let extra = in_group("extra", 1).await;
        assert_eq!(one.next_json().await, extra);
        in_group("more", 1).await;
        // Through a group an order is none.
        django
            .group_send("everybody", &[order("lockgate.group_add", "more")])
            .await;
        let everybody = in_group("everybody", 1).await;
        assert_eq!(one.next_json().await, everybody);
        assert_eq!(other.next_json().await, everybody);
        django
            .send(&name, &order("lockgate.group_discard", "extra"))
            .await;
        django.send(&name, &event).await;
        assert_eq!(one.next_json().await, event);
        in_group("extra", 2).await;
        assert!(one.ping().await.is_empty() && other.ping().await.is_empty());

        if word == "core" {
            // Django's own group_add of a socket: once, also where the socket is in the group anyway.
            django.group_add("everybody", &name).await;
            django.group_add("django", &name).await;
            let everybody = in_group("everybody", 2).await;
            assert_eq!(one.next_json().await, everybody);
            assert_eq!(other.next_json().await, everybody);
            let event = in_group("django", 1).await;
            assert_eq!(one.next_json().await, event);
            assert!(one.ping().await.is_empty() && other.ping().await.is_empty());
        }
        django
            .send(&name, &json!({"type": "websocket.close", "code": 4321}))
            .await;
        assert_eq!(one.closed().await.0, 4321);
        assert!(other.ping().await.is_empty());
    }
}
