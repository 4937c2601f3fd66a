//! `kind = "listen"`: the socket only gets events; what its client sends is dropped, or closes it.

use std::sync::Arc;

use async_trait::async_trait;

use super::{Consumer, Context, MakeConsumer, Message};
use crate::close_code::CloseReason;
use crate::config::{ConsumerConfig, OnFrame};

/// Takes no frames.
pub struct Listen;

/// Takes no frames, and ends a socket that sends one (`on_frame = "close"`).
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
