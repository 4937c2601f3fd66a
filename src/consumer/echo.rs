//! `kind = "echo"`: sends every message back unchanged.

use async_trait::async_trait;

use super::{Consumer, Context, Message};

/// Sends each message back.
pub struct Echo;

#[async_trait]
impl Consumer for Echo {
    async fn receive(&mut self, context: &mut Context<'_>, message: Message) {
        match message {
            Message::Text(text) => context.send_text(&text),
            Message::Binary(bytes) => context.send_binary(&bytes),
        }
    }
}
