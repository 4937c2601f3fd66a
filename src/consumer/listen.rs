//! `kind = "listen"`: the socket gets events only. A frame of its client is dropped or closes the socket.

use std::sync::Arc;

use async_trait::async_trait;

use super::{Consumer, Context, MakeConsumer, Message};
use crate::close_code::CloseReason;
use crate::config::{ConsumerConfig, OnFrame};

/// Drops and counts the client's frames.
pub struct Listen;

/// Closes a socket whose client sends a frame (`on_frame = "close"`).
struct ListenOnly;

pub(super) fn factory(config: &ConsumerConfig) -> MakeConsumer {
    // Neither type has fields, so that the boxes cost no memory.
    match config.on_frame {
        OnFrame::Drop => Arc::new(|_| Box::new(Listen)),
        OnFrame::Close => Arc::new(|_| Box::new(ListenOnly)),
    }
}

#[async_trait]
impl Consumer for Listen {}

#[async_trait]
impl Consumer for ListenOnly {
    async fn receive(&mut self, context: &mut Context<'_>, _message: Message) {
        context.drop_frame();
        context.close_for(CloseReason::UnsupportedData);
    }
}
