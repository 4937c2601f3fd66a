//! The bound around code of a consumer: its panic closes its socket and no other.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;

use crate::close_code::CloseReason;
use crate::hub::{CloseOrder, Member};

/// Runs code of a consumer. If it panics, only this socket closes, with 1011, and the result is `None`.
pub(crate) async fn guarded<T>(member: &Member, method: impl Future<Output = T>) -> Option<T> {
    let outcome = AssertUnwindSafe(method).catch_unwind().await;
    if outcome.is_err() {
        // The panic's text is not logged, because it may quote a client's data. The panic hook has logged the place.
        tracing::error!(conn.id = %member.id(), "A consumer panicked; its connection closes");
        member
            .outbound()
            .close(CloseReason::InternalError.frame(), CloseOrder::Now);
    }
    outcome.ok()
}
