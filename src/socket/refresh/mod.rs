//! Puts a new token in the place of an open socket's own, without a reconnect.
//!
//! The token passes the checks of a connect from its signature to its user. It enters the index of revocations before
//! the denylist is read, and takes the old token's place in every index before the client is answered. Groups stay as
//! joined, and `authorize` is not asked: the checks of open sockets ask it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::{Common, JUDGEMENTS};
use crate::admission::Identity;
use crate::auth::{RawToken, VerifiedToken};
use crate::clock::UnixTime;
use crate::close_code::CloseFrame;
use crate::config::{OnExpiry, TokenConfig};
use crate::consumer::{Scope, shown_user};
use crate::error::{Check, Refusal};
use crate::frame::{Frame, Opcode};
use crate::hub::{CloseOrder, Member, NextToken, Renewed};
use crate::packed_json::PackedObject;
use crate::relay::Relay;
use crate::tenant::Tenant;
use crate::users::UserRecord;

mod frame;

pub(super) use frame::may_be_refresh;

/// The result in metrics of a refresh that is no refusal.
const REFRESHED: &str = "refreshed";
/// The longest refresh. Each step has a shorter deadline of its own.
const DEADLINE: Duration = Duration::from_secs(20);

/// A client's request for another token, and the parts that judge it.
pub(super) struct RefreshRequest {
    token: Result<RawToken, Refusal>,
    common: Arc<Common>,
    member: Arc<Member>,
    relay: Arc<Relay>,
}

/// The end of a refresh.
pub(super) enum RefreshOutcome {
    /// The socket has the new token.
    Done {
        /// The record of its user that the token was checked with.
        user: Arc<UserRecord>,
        /// The content of the token.
        token: Arc<VerifiedToken>,
    },
    /// The socket keeps its token, and the client is told why.
    Refused(Refusal),
    /// The socket closes with the code of the refusal.
    Closes(Refusal),
    /// The socket closes for another reason.
    Closing,
}

/// Returns the tenant that an open socket belongs to, which a reload may have replaced since its handshake.
fn tenant_of(common: &Common, relay: &Arc<Relay>, scope: &Scope) -> Option<Arc<Tenant>> {
    let all = common.tenants.all_of(scope.tenant().as_str());
    let own = |tenant: &Arc<Tenant>| Arc::ptr_eq(&tenant.relay, relay);
    all.into_iter().find(own)
}

impl RefreshRequest {
    /// Takes a text that may be a request. Returns the text if it is none.
    pub(super) fn take(
        text: String,
        member: &Arc<Member>,
        relay: &Arc<Relay>,
        common: &Arc<Common>,
    ) -> Result<Self, String> {
        let Some(token) = frame::read_refresh(&text) else {
            return Err(text);
        };
        drop(zeroize::Zeroizing::new(text));
        Ok(Self {
            token,
            common: common.clone(),
            member: member.clone(),
            relay: relay.clone(),
        })
    }

    /// Judges the token, and gives it to the socket if nothing stands against it.
    ///
    /// It may be dropped at any time: until the last step the socket has its own token.
    pub(super) async fn judge(self, scope: &Scope) -> RefreshOutcome {
        if !self.common.heartbeat.may_refresh(&self.member) {
            return RefreshOutcome::Refused(Refusal::RateLimited);
        }
        // An anonymous socket has no token that another could take the place of, and its consumer may hold that it has no user.
        if self.member.user().is_none() {
            return RefreshOutcome::Refused(Refusal::TokenNotValid(Check::UserId));
        }
        let raw = match &self.token {
            Ok(raw) => raw,
            Err(refusal) => return RefreshOutcome::Refused(*refusal),
        };
        let judged = timeout(DEADLINE, self.judge_by_the_newest(raw, scope)).await;
        judged.unwrap_or(RefreshOutcome::Refused(Refusal::Unavailable))
    }

    /// Judges the token again as long as a reload replaces the tenant meanwhile, so that no key that is gone counts.
    async fn judge_by_the_newest(&self, raw: &RawToken, scope: &Scope) -> RefreshOutcome {
        for _ in 0..JUDGEMENTS {
            let Some(tenant) = tenant_of(&self.common, &self.relay, scope) else {
                break;
            };
            let judged = self.judge_by(&tenant, raw).await;
            let newest = tenant_of(&self.common, &self.relay, scope);
            let is_newest = newest.is_none_or(|newest| Arc::ptr_eq(&newest, &tenant));
            if is_newest || matches!(judged, RefreshOutcome::Done { .. }) {
                return judged;
            }
        }
        RefreshOutcome::Refused(Refusal::Unavailable)
    }

    /// Makes the checks of a connect, in their order.
    async fn judge_by(&self, tenant: &Tenant, raw: &RawToken) -> RefreshOutcome {
        // As at a connect, the tenant hears its control channel before the denylist is read.
        if let Err(refusal) = tenant.opens().await {
            return RefreshOutcome::Refused(refusal);
        }
        let token = match tenant.authenticator.verify_raw(raw).await {
            Ok(token) if Some(&token.user_id) == self.member.user() => token,
            // Signed by a key of the tenant, for somebody else: the page has changed its user.
            Ok(_) | Err(Refusal::UserNotFound) => {
                return RefreshOutcome::Closes(Refusal::TokenNotValid(Check::UserId));
            }
            Err(refusal) => return RefreshOutcome::Refused(refusal),
        };
        let found = tenant.authenticator.look_up(token, Some(&self.member));
        let identity = match found.await {
            Ok(identity) => identity,
            Err(Refusal::Unavailable) => return RefreshOutcome::Refused(Refusal::Unavailable),
            Err(refusal) => return RefreshOutcome::Closes(refusal),
        };
        if let Err(refusal) = tenant.admits() {
            return RefreshOutcome::Refused(refusal);
        }
        self.give(tenant, identity).await
    }

    /// Puts the token in the place of the socket's own.
    async fn give(&self, tenant: &Tenant, identity: Identity) -> RefreshOutcome {
        let Identity {
            mut user,
            token,
            pending,
        } = identity;
        let Some(pending) = pending else {
            return RefreshOutcome::Closing;
        };
        let next = NextToken {
            jti: token.jti.clone(),
            issued_at: token.issued_at,
            expires_at: closes_at(&tenant.config.token, &token),
            password: user.password_digest,
        };
        let hub = self.relay.hub();
        let stale = match hub.renew(&self.member, next, pending.pending()) {
            Renewed::Done { stale } => stale,
            Renewed::Revoked => return RefreshOutcome::Closes(Refusal::TokenRevoked),
            Renewed::Closing => return RefreshOutcome::Closing,
        };
        drop(pending);
        self.common.heartbeat.token_replaced(&self.member);
        if stale {
            match tenant.authenticator.user_again(&token).await {
                Ok(newer) => user = newer,
                // The invalidation looks at the open sockets too, and closes this one if it has to.
                Err(Refusal::Unavailable) => {}
                Err(refusal) => return RefreshOutcome::Closes(refusal),
            }
        }
        RefreshOutcome::Done { user, token }
    }
}

/// Returns the time at which a token closes its socket; `None` if it does not.
pub(super) fn closes_at(config: &TokenConfig, token: &VerifiedToken) -> Option<UnixTime> {
    match config.on_expiry {
        OnExpiry::Close => token.expires_at.map(UnixTime),
        OnExpiry::Keep => None,
    }
}

impl RefreshOutcome {
    /// Shows the outcome: to the consumer in `scope`, to the client as a frame or a close, and to the operator as a count.
    pub(super) fn tell(self, scope: &mut Scope, member: &Member, relay: &Relay) {
        let outbound = member.outbound();
        let answer = |text: String| {
            let frame = Frame::encode(Opcode::Text, text.as_bytes(), relay.accounting());
            outbound.push_frame(&frame);
        };
        let result = match self {
            Self::Done { user, token } => {
                scope.user = Some(user);
                if let Some(claims) = &mut scope.claims {
                    **claims = PackedObject::new(&token.claims);
                }
                answer(frame::refreshed(token.expires_at));
                REFRESHED
            }
            Self::Refused(refusal) => {
                answer(frame::refused(refusal));
                frame::word(refusal)
            }
            Self::Closes(refusal) => {
                let close = refusal.close_frame().unwrap_or_else(CloseFrame::absent);
                outbound.close(close, CloseOrder::Now);
                frame::word(refusal)
            }
            Self::Closing => return,
        };
        relay.metrics().token_refreshed(result);
        tracing::debug!(
            tenant.id = %scope.tenant(), user.id = shown_user(scope), conn.id = %member.id(), result,
            "Judged the token of a refresh"
        );
    }
}
