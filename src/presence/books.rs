//! The state that the keeper of a tenant's presence and its writer share.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::board::Board;
use super::notice::Notice;
use super::present::PresentSockets;
use crate::ids::{GroupName, TenantId};
use crate::metrics::TenantMetrics;

/// The presence of one tenant as this replica knows it.
pub(super) struct PresenceBooks {
    pub(super) tenant: TenantId,
    pub(super) metrics: Arc<TenantMetrics>,
    /// The sockets here.
    pub(super) present: Mutex<PresentSockets>,
    /// The groups of a layer without Redis.
    pub(super) board: Mutex<Board>,
    /// Takes the notices of these groups.
    pub(super) told: mpsc::UnboundedSender<(GroupName, Notice)>,
}
