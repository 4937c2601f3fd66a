//! A refused handshake, with the tenant and upgrade that were known by then; the form of the answer depends on them.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::http::request::Parts;

use super::refusal_log::RefusedHandshake;
use super::upgrade::Upgrade;
use crate::close_code::CloseFrame;
use crate::config::RefusalMode;
use crate::consumer::Refused;
use crate::error::Refusal;
use crate::metrics;
use crate::problem::Problem;
use crate::tenant::Tenant;
use crate::tenant::life::Stage;

/// The reason of a step that refuses.
#[derive(Debug)]
pub(super) struct Reason {
    refusal: Refusal,
    /// The parts that few reasons have; boxed, so that a result of a step is small.
    more: Option<Box<ReasonDetail>>,
}

#[derive(Debug, Default)]
struct ReasonDetail {
    /// The close frame that a consumer chose; it is sent if the tenant has `refusal = "close"`.
    close: Option<CloseFrame>,
    /// The exact reason, for the log.
    why: Option<String>,
}

impl Reason {
    /// Makes the reason of a step that can say more than its word. `why` goes to the log, never to the client.
    pub(super) fn because(refusal: Refusal, why: String) -> Self {
        let (close, why) = (None, Some(why));
        Self {
            refusal,
            more: Some(Box::new(ReasonDetail { close, why })),
        }
    }
}

impl Reason {
    /// Adds what exactly refused, if it is known.
    pub(super) fn or_because(mut self, why: Option<String>) -> Self {
        if why.is_some() {
            let detail = self.more.get_or_insert_default();
            detail.why = detail.why.take().or(why);
        }
        self
    }
}

impl From<Refusal> for Reason {
    fn from(refusal: Refusal) -> Self {
        Self {
            refusal,
            more: None,
        }
    }
}

impl From<Refused> for Reason {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Forbidden => Refusal::Refused.into(),
            Refused::Unavailable => Refusal::Unavailable.into(),
            Refused::ClosedWith(frame) => {
                let (close, why) = (Some(frame), None);
                Self {
                    refusal: Refusal::Refused,
                    more: Some(Box::new(ReasonDetail { close, why })),
                }
            }
        }
    }
}

/// A refused handshake.
pub(super) struct Rejection {
    reason: Reason,
    /// The tenant, once it is known.
    tenant: Option<Arc<Tenant>>,
    /// The upgrade, once it is known to be well-formed. With it the socket can be accepted in order to be closed.
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
    /// Creates a rejection by `tenant`.
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

    /// Returns true if a reload has replaced or removed the tenant that refused.
    pub(super) fn is_outdated(&self) -> bool {
        let tenant = self.tenant.as_ref();
        tenant.is_some_and(|tenant| tenant.life().stage() >= Stage::Leaving)
    }

    /// Counts the refusal and its time, for its tenant or for none.
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

    /// Describes the refusal of the request `head` of `client` for the log.
    pub(super) fn described<'a>(&'a self, head: &'a Parts, client: IpAddr) -> RefusedHandshake<'a> {
        RefusedHandshake {
            refusal: self.reason.refusal,
            tenant: self.tenant.as_deref(),
            why: self
                .reason
                .more
                .as_ref()
                .and_then(|more| more.why.as_deref()),
            head: Some(head),
            client,
        }
    }

    /// Returns the upgrade to accept and the close frame to send, if the tenant has `refusal = "close"`.
    pub(super) fn as_close(&self) -> Option<(&Upgrade, CloseFrame)> {
        let Reason { refusal, more } = &self.reason;
        if self.tenant.as_ref()?.config.refusal == RefusalMode::Http {
            return None;
        }
        let close = more.as_ref().and_then(|more| more.close.clone());
        let frame = close.or_else(|| refusal.close_frame())?;
        Some((self.upgrade.as_ref()?, frame))
    }

    /// Returns the problem document of the refusal.
    pub(super) fn problem(&self) -> Problem<'_> {
        Problem {
            refusal: self.reason.refusal,
            tenant: self.tenant.as_ref().map(|tenant| &tenant.id),
        }
    }
}
