//! Consumers: they handle a socket's connect, frames, events and disconnect.
//!
//! The built-in kinds are consumers like any other. A Rust program that uses Lockgate as a library registers its
//! own type under a name, and routes use that name as their `kind`.

use std::sync::Arc;

use async_trait::async_trait;
use hashbrown::HashMap;

use crate::close_code::CloseFrame;
use crate::config::{ConsumerConfig, Fault, Faults, RouteConfig};
use crate::event::Event;

pub use crate::relay::{Acceptance, AcceptanceError};
pub use broadcast::Broadcast;
pub use context::Context;
pub(crate) use context::Handshake;
pub use echo::Echo;
pub(crate) use guard::guarded;
pub use handle::{GroupError, SocketHandle};
pub use listen::Listen;
pub use scope::{Scope, TenantScope};
pub(crate) use scope::{member_channel, shown_user};

mod broadcast;
mod context;
mod echo;
mod guard;
mod handle;
mod listen;
mod scope;
mod worker;

/// A whole message from a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// A text message; it is valid UTF-8.
    Text(String),
    /// A binary message.
    Binary(Vec<u8>),
}

/// Handles one socket of a route. Each socket has its own consumer, whose methods are called one at a time.
///
/// All methods have a default, and a consumer that implements none of them only listens. A panic closes its socket
/// with 1011 and no other.
///
/// ```
/// use lockgate::consumer::{Consumer, Context, Message};
///
/// struct Shout;
///
/// #[async_trait::async_trait]
/// impl Consumer for Shout {
///     async fn receive(&mut self, context: &mut Context<'_>, message: Message) {
///         if let Message::Text(text) = message {
///             context.send_text(&text.to_uppercase());
///         }
///     }
/// }
/// # let _: Box<dyn Consumer> = Box::new(Shout);
/// ```
#[async_trait]
pub trait Consumer: Send {
    /// Called when the socket is authenticated and in its groups, while its client still waits for the 101.
    ///
    /// Frames that it sends leave right after the 101. [`Context::answer_with`] chooses the subprotocol and headers.
    ///
    /// # Errors
    /// [`Refused`] ends the handshake.
    async fn connect(&mut self, context: &mut Context<'_>) -> Result<(), Refused> {
        let _ = context;
        Ok(())
    }

    /// Called with a message of the client. The default drops and counts it.
    ///
    /// Frames, pings and closes leave while it runs, and a close does not wait for it; the client's pings are answered, and its
    /// further messages wait for their turn. If the client closes meanwhile, answers reach it no more. After 30 seconds the
    /// call is dropped and the socket closes with 1011. The same holds for [`Consumer::event`].
    async fn receive(&mut self, context: &mut Context<'_>, message: Message) {
        let _ = message;
        context.drop_frame();
    }

    /// Called with an event of a group. The default delivers it as the route's `deliver` and `events` say.
    async fn event(&mut self, context: &mut Context<'_>, event: Arc<Event>) {
        context.deliver(&event);
    }

    /// Called when the socket is closed; `close` is the frame that either side sent, or 1006.
    ///
    /// The socket has left its groups. Frames for it have no effect any more, and events can be published. The call may take
    /// 30 seconds, and less where the replica ends.
    async fn disconnect(&mut self, context: &mut Context<'_>, close: &CloseFrame) {
        let _ = (context, close);
    }
}

/// A consumer's refusal of a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// 403 `refused`, even with `refusal = "close"`, because no close code stands for it.
    Forbidden,
    /// 403 `refused`; with `refusal = "close"` the socket is accepted and closed with this frame.
    ClosedWith(CloseFrame),
    /// 503 `unavailable`: the process that decides does not answer.
    Unavailable,
}

/// Makes the consumer of one socket.
pub type MakeConsumer = Arc<dyn Fn(&Scope) -> Box<dyn Consumer> + Send + Sync>;

/// Makes the factory of one route from its `consumer` table, or returns the error in the table.
type Kind = Arc<dyn Fn(&ConsumerConfig) -> Result<MakeConsumer, String> + Send + Sync>;

/// The consumers that a program has registered, by the `kind` that routes use.
#[derive(Clone, Default)]
pub struct Registry {
    kinds: HashMap<String, Kind>,
}

impl Registry {
    /// Registers a consumer under `kind`; `make` is called for each socket of a route with that kind.
    ///
    /// The name of a built-in kind has no effect, because the built-in kinds are looked up first.
    pub fn register<C, F>(&mut self, kind: &str, make: F) -> &mut Self
    where
        C: Consumer + 'static,
        F: Fn(&Scope) -> C + Send + Sync + 'static,
    {
        let make: MakeConsumer = Arc::new(move |scope| Box::new(make(scope)));
        self.kinds
            .insert(kind.to_owned(), Arc::new(move |_| Ok(make.clone())));
        self
    }

    /// Registers a consumer with options under `kind`; see [`Registry::register`].
    ///
    /// `prepare` gets the route's `consumer` table once at start. An error that it returns is a configuration error.
    pub fn register_with_options<C, F, P>(&mut self, kind: &str, prepare: P) -> &mut Self
    where
        C: Consumer + 'static,
        F: Fn(&Scope) -> C + Send + Sync + 'static,
        P: Fn(&toml::Table) -> Result<F, String> + Send + Sync + 'static,
    {
        let kind_of = move |config: &ConsumerConfig| {
            let make = prepare(&config.options)?;
            let make: MakeConsumer = Arc::new(move |scope| Box::new(make(scope)));
            Ok(make)
        };
        self.kinds.insert(kind.to_owned(), Arc::new(kind_of));
        self
    }

    /// Returns the registered names.
    pub fn names(&self) -> Vec<&str> {
        self.kinds.keys().map(String::as_str).collect()
    }

    /// Returns the consumer of a route.
    ///
    /// # Errors
    /// The faults of its `consumer` table; their keys are relative to the route.
    pub fn consumer(&self, route: &RouteConfig) -> Result<RouteConsumer, Faults> {
        let make: MakeConsumer = match route.consumer.kind.as_str() {
            "listen" => listen::factory(&route.consumer),
            "echo" => Arc::new(|_| Box::new(Echo)),
            "broadcast" => broadcast::factory(route)?,
            "worker" => {
                return Ok(RouteConsumer {
                    make: worker::factory(&route.consumer)?,
                    sees_events: false,
                    tells_channel: true,
                    reads_claims: false,
                });
            }
            kind => match self.kinds.get(kind) {
                Some(prepare) => {
                    let make = prepare(&route.consumer).map_err(|text| {
                        let found = "options that the consumer does not take";
                        Fault::new("consumer", found, "those that it takes").advice(text)
                    })?;
                    return Ok(RouteConsumer {
                        make,
                        sees_events: true,
                        tells_channel: true,
                        reads_claims: true,
                    });
                }
                None => {
                    let expected = "a name under which a consumer is registered";
                    let fault = Fault::new("consumer.kind", format!("{kind:?}"), expected);
                    return Err(fault.into());
                }
            },
        };
        Ok(RouteConsumer {
            make,
            sees_events: false,
            tells_channel: false,
            reads_claims: false,
        })
    }
}

/// The consumer of one route.
#[derive(Clone)]
pub struct RouteConsumer {
    /// Makes the consumer of each socket.
    pub make: MakeConsumer,
    /// True if events go through [`Consumer::event`] of each socket; false if one rendering serves all sockets.
    pub sees_events: bool,
    /// True if it may give the socket's channel name to others, so that the socket must listen on that channel.
    pub tells_channel: bool,
    /// True if it may read the token's claims. The built-in kinds read none after the handshake has filled the templates, so
    /// their open sockets keep none.
    pub reads_claims: bool,
}
