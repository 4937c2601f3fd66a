//! The part that every subscriber link to Redis shares, whichever commands it waits with: the way in, the canary, and
//! the state that others see.

use std::future::pending;
use std::pin::Pin;
use std::sync::atomic::AtomicBool;

use parking_lot::Mutex;

use crate::error::{ErrorKind, StoreError};

pub(super) mod canary;
pub(super) mod command;
pub(super) mod dial;
pub(super) mod resp;

/// What the task lets others see.
#[derive(Default)]
pub(super) struct Status {
    /// Connected, and everything wished for at that time is answered.
    pub(super) ready: AtomicBool,
    /// Why there is no link; `None` while there is one, and before the first attempt.
    pub(super) failure: Mutex<Option<ErrorKind>>,
}

pub(super) type Publishing = Pin<Box<dyn Future<Output = Result<u64, StoreError>> + Send>>;

pub(super) async fn poll_some(publishing: &mut Option<Publishing>) -> Result<u64, StoreError> {
    match publishing {
        Some(future) => future.await,
        None => pending().await,
    }
}
