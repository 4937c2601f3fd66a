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
//! A client says `count`, or `count in 60`, which counts so many seconds later, unless the socket is closed by then.
//!
//! ```text
//! cargo run --example consumer -- check lockgate.toml
//! cargo run --example consumer -- serve lockgate.toml
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lockgate::consumer::{Consumer, Context, Message, Refused, Registry, Scope};
use lockgate::event::{Event, Value};
use lockgate::server::{Options, Server, Signals};
use lockgate::telemetry::{LogOutput, Telemetry};
use lockgate::{CloseFrame, Config, LoadOptions};

/// One socket in a room.
struct Counter {
    group: String,
    name: String,
    step: i64,
    sent: i64,
}

impl Counter {
    fn new(scope: &Scope, step: i64) -> Self {
        let room = scope.path_parameter("room").unwrap_or_default();
        let name = scope.user_field("username");
        Self {
            group: format!("counter_{room}"),
            name: name
                .and_then(|name| name.as_str().map(str::to_owned))
                .unwrap_or_default(),
            step,
            sent: 0,
        }
    }
}

#[async_trait::async_trait]
impl Consumer for Counter {
    async fn connect(&mut self, context: &mut Context<'_>) -> Result<(), Refused> {
        if self.name.is_empty() {
            return Err(Refused::Forbidden);
        }
        context.send_text(&format!("welcome {}", self.name));
        Ok(())
    }

    async fn receive(&mut self, context: &mut Context<'_>, message: Message) {
        let Some(seconds) = seconds_to_wait(&message) else {
            return context.close(4400, "say count");
        };
        self.sent += self.step;
        let (socket, group, step) = (context.handle(), self.group.clone(), self.step);
        let count = async move {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            let event = Event::new("counter.moved", [("by", Value::from(step))]);
            if socket.group_send(&group, &event).await.is_err() {
                socket.close(1011, "not counted");
            }
        };
        match seconds {
            // No further frame of the client is read meanwhile, so its events keep their order.
            0 => count.await,
            // This call ends now; the task ends with the socket.
            _ => context.spawn(count),
        }
    }

    async fn event(&mut self, context: &mut Context<'_>, event: Arc<Event>) {
        if let Some(by) = event.get("by").and_then(Value::as_i64) {
            context.send_text(&format!("moved by {by}; I sent {}", self.sent));
        } else if let Some(name) = event.get("name").and_then(Value::as_str) {
            context.send_text(&format!("{name} left"));
        }
    }

    async fn disconnect(&mut self, context: &mut Context<'_>, close: &CloseFrame) {
        let event = Event::new("counter.left", [("name", Value::from(self.name.as_str()))]);
        if let Err(error) = context.group_send(&self.group, &event).await {
            eprintln!("{} left with {}: {error}", self.name, close.code);
        }
    }
}

/// Reads `count` and `count in SECONDS`.
fn seconds_to_wait(message: &Message) -> Option<u64> {
    match message {
        Message::Text(text) if text == "count" => Some(0),
        Message::Text(text) => text.strip_prefix("count in ")?.parse().ok(),
        Message::Binary(_) => None,
    }
}

/// The kinds that routes may name. An option that a kind does not take is a mistake in the configuration.
fn registry() -> Registry {
    let mut registry = Registry::default();
    registry.register_with_options("counter", |options| {
        let step = match options.get("step") {
            None => 1,
            Some(step) => step.as_integer().ok_or("step is a whole number")?,
        };
        Ok(move |scope: &Scope| Counter::new(scope, step))
    });
    registry
}

/// Serves until a signal. SIGHUP reads the file again.
pub(crate) async fn serve(file: PathBuf) -> anyhow::Result<()> {
    let signals = Signals::new()?;
    let options = LoadOptions {
        consumers: registry(),
        ..LoadOptions::default()
    };
    let loaded = Config::load(Some(&file), &options)?;
    let _telemetry = Telemetry::start(&loaded.config.log, LogOutput::Stdout)?;
    let options = Options {
        registry: registry(),
        sources: loaded.files,
        load: Some(Arc::new(move |_: &_| Config::load(Some(&file), &options))),
        ..Options::default()
    };
    let server = Server::start(loaded.config, options).await?;
    server.run(signals).await?;
    Ok(())
}

fn check(file: &Path) -> anyhow::Result<()> {
    for warning in Server::check(Some(file), &registry())? {
        println!("warning: {warning}");
    }
    println!("The configuration is valid");
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    match (arguments.next().as_deref(), arguments.next()) {
        (Some("check"), Some(file)) => check(file.as_ref()),
        (Some("serve"), Some(file)) => serve(file.into()).await,
        _ => anyhow::bail!("usage: consumer check|serve CONFIG"),
    }
}
