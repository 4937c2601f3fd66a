//! A handshake that ends in a refusal, with what the answer needs of how far it came.

use std::sync::Arc;
use std::time::Duration;

use super::upgrade::Upgrade;
use crate::close_code::CloseFrame;
use crate::config::RefusalMode;
use crate::consumer::Refused;
use crate::error::Refusal;
use crate::metrics;
use crate::problem::Problem;
use crate::tenant::Tenant;

/// Why a step refuses.
#[derive(Debug)]
pub(super) struct Reason {
    refusal: Refusal,
    /// The frame that a consumer chose for the close, where the tenant's refusals are closes.
    close: Option<CloseFrame>,
}

impl From<Refusal> for Reason {
    fn from(refusal: Refusal) -> Self {
        Self {
            refusal,
            close: None,
        }
    }
}

impl From<Refused> for Reason {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Forbidden => Refusal::Refused.into(),
            Refused::Unavailable => Refusal::Unavailable.into(),
            Refused::ClosedWith(frame) => Self {
                refusal: Refusal::Refused,
                close: Some(frame),
            },
        }
    }
}

/// A refused handshake.
pub(super) struct Rejection {
    reason: Reason,
    /// Once it is known.
    tenant: Option<Arc<Tenant>>,
    /// Once it is known to be well-formed: the socket can be accepted in order to be closed.
    upgrade: Option<Upgrade>,
}

impl From<Refusal> for Rejection {
    fn from(refusal: Refusal) -> Self {
        Self {
            reason: refusal.into(),
            tenant: None,
            upgrade: None,
        }
    }
}

impl Rejection {
    /// A refusal in the name of `tenant`.
    pub(super) fn by(
        tenant: &Arc<Tenant>,
        upgrade: Option<&Upgrade>,
        reason: impl Into<Reason>,
    ) -> Self {
        Self {
            reason: reason.into(),
            tenant: Some(tenant.clone()),
            upgrade: upgrade.cloned(),
        }
    }

    /// Counts it among the handshakes of its tenant, or of none, and with it the time that it took.
    pub(super) fn count(&self, took: Duration) {
        let code = self.reason.refusal.code();
        match &self.tenant {
            Some(tenant) => {
                tenant.metrics.handshake_refused(code);
                tenant.metrics.handshake_took(took);
            }
            None => {
                metrics::handshake_without_tenant(code);
                metrics::handshake_without_tenant_took(took);
            }
        }
    }

    /// With `refusal = "close"`: the upgrade to accept, and the frame that closes the socket then.
    pub(super) fn as_close(&self) -> Option<(&Upgrade, CloseFrame)> {
        let Reason { refusal, close } = &self.reason;
        if self.tenant.as_ref()?.config.refusal == RefusalMode::Http {
            return None;
        }
        let frame = close.clone().or_else(|| refusal.close_frame())?;
        Some((self.upgrade.as_ref()?, frame))
    }

    /// The document of the refusal.
    pub(super) fn problem(&self) -> Problem<'_> {
        Problem {
            refusal: self.reason.refusal,
            tenant: self.tenant.as_ref().map(|tenant| &tenant.id),
        }
    }
}
