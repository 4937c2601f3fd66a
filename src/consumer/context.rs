//! The socket of a call, and the handshake that may wait for it.

use std::ops::Deref;

use super::{Scope, SocketHandle};
use crate::metrics::DropCause;
use crate::relay::{Acceptance, AcceptanceError};

/// The socket for which a consumer is called, with all methods of its [`SocketHandle`]. No method waits for the client.
pub struct Context<'a> {
    pub(crate) scope: &'a Scope,
    pub(crate) socket: &'a SocketHandle,
    /// The handshake that waits for [`super::Consumer::connect`]; `None` once the socket is open.
    pub(crate) handshake: Option<&'a mut Handshake>,
}

/// The part of a handshake that a consumer can see and answer.
#[derive(Debug, Default)]
pub(crate) struct Handshake {
    /// The subprotocols that the client offered, without its token.
    pub(crate) offered: Vec<Box<str>>,
    /// The answer of the consumer, if it gave one.
    pub(crate) answer: Option<Acceptance>,
    /// The exact reason, for the log.
    pub(crate) why: Option<String>,
}

impl Deref for Context<'_> {
    type Target = SocketHandle;

    fn deref(&self) -> &SocketHandle {
        self.socket
    }
}

impl<'a> Context<'a> {
    /// Returns the properties of the socket.
    pub fn scope(&self) -> &'a Scope {
        self.scope
    }

    /// Returns the socket by itself, for code that runs after this call: timers, and work in the background.
    pub fn handle(&self) -> SocketHandle {
        self.socket.clone()
    }

    /// Says what exactly refuses the handshake, for the log. The caller refuses it then.
    pub(super) fn refuses_because(&mut self, why: String) {
        if let Some(handshake) = self.handshake.as_deref_mut() {
            handshake.why = Some(why);
        }
    }

    /// Returns the subprotocols that the client offered, without those that carried its token. Empty once the socket is
    /// open.
    pub fn offered_subprotocols(&self) -> &[Box<str>] {
        self.handshake
            .as_ref()
            .map_or(&[], |handshake| &handshake.offered)
    }

    /// Chooses the subprotocol and further headers of the 101. Has no effect once the socket is open. Without a subprotocol
    /// the route's `subprotocols` decide.
    ///
    /// # Errors
    /// [`AcceptanceError::NotOffered`] if the client did not offer the subprotocol.
    pub fn answer_with(&mut self, acceptance: Acceptance) -> Result<(), AcceptanceError> {
        let Some(handshake) = &mut self.handshake else {
            return Ok(());
        };
        let offered = |chosen: &str| handshake.offered.iter().any(|name| **name == *chosen);
        if !acceptance.subprotocol().is_none_or(offered) {
            return Err(AcceptanceError::NotOffered);
        }
        handshake.answer = Some(acceptance);
        Ok(())
    }

    /// Counts a frame that the consumer does not accept.
    pub fn drop_frame(&self) {
        self.relay.metrics().dropped(DropCause::NoConsumer);
    }

    /// Counts a frame that the consumer does not accept in this form.
    pub(crate) fn drop_invalid_frame(&self) {
        self.relay.metrics().dropped(DropCause::NotValid);
    }
}
