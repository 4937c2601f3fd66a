//! A gateway with a custom consumer: a counter that all sockets of a room share.
//!
//! A route uses the consumer by its registered name:
//!
//! ```toml
//! [[tenants.acme.routes]]
//! path     = "ws/counter/<slug:room>/"
//! groups   = ["counter_{room}"]
//! consumer = { kind = "counter", step = 2 }
//! ```
//!
//! ```text
//! cargo run --example consumer -- lockgate.toml
//! ```

use std::sync::Arc;

use anyhow::Context as _;
use lockgate::consumer::{Consumer, Context, Message, Refused, Registry, Scope};
use lockgate::event::{Event, Value};
use lockgate::server::{Options, Server, Signals};
use lockgate::{CloseFrame, Config, LoadOptions};

/// One socket in a room.
struct Counter {
    group: String,
    step: i64,
    sent: i64,
}

impl Counter {
    fn new(scope: &Scope, step: i64) -> Self {
        let room = scope.path_parameter("room").unwrap_or_default();
        Self {
            group: format!("counter_{room}"),
            step,
            sent: 0,
        }
    }
}

#[async_trait::async_trait]
impl Consumer for Counter {
    async fn connect(&mut self, context: &mut Context<'_>) -> Result<(), Refused> {
        let name = context.scope().user_field("username");
        let Some(name) = name.as_ref().and_then(|name| name.as_str()) else {
            return Err(Refused::Forbidden);
        };
        context.send_text(&format!("welcome {name}"));
        Ok(())
    }

    async fn receive(&mut self, context: &mut Context<'_>, message: Message) {
        match message {
            Message::Text(text) if text == "count" => {
                self.sent += self.step;
                let event = Event::new("counter.moved", [("by", Value::from(self.step))]);
                if context.group_send(&self.group, &event).await.is_err() {
                    context.close(1011, "not counted");
                }
            }
            _ => context.close(4400, "say count"),
        }
    }

    async fn event(&mut self, context: &mut Context<'_>, event: Arc<Event>) {
        if let Some(by) = event.get("by").and_then(Value::as_i64) {
            context.send_text(&format!("moved by {by}; I sent {}", self.sent));
        }
    }

    async fn disconnect(&mut self, scope: &Scope, close: &CloseFrame) {
        println!(
            "{} left with {} after {}",
            scope.user_id().map_or("a guest", |id| id.as_str()),
            close.code,
            self.sent
        );
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let file = std::env::args().nth(1).context("usage: consumer CONFIG")?;
    let mut registry = Registry::default();
    registry.register_with_options("counter", |options| {
        let step = match options.get("step") {
            None => 1,
            Some(step) => step.as_integer().ok_or("step is a whole number")?,
        };
        Ok(move |scope: &Scope| Counter::new(scope, step))
    });
    let options = LoadOptions {
        consumers: registry.clone(),
        ..LoadOptions::default()
    };
    let loaded = Config::load(Some(file.as_ref()), &options)?;

    let signals = Signals::new()?;
    let server = Server::start(
        loaded.config,
        Options {
            registry,
            ..Options::default()
        },
    )
    .await?;
    println!("listening on {}", server.addresses().server);
    server.run(signals).await?;
    Ok(())
}
