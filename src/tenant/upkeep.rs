//! The task that opens a tenant, and then keeps checking its open sockets.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::life::{Happening, Stage};
use super::{Tenant, Tenants, look, suspension};
use crate::stores::backoff::Backoff;

/// Pause after a failed recheck; also the interval of the outage watch.
const RETRY: Duration = Duration::from_secs(1);
/// The longest pause between attempts that fail.
const LONGEST_RETRY: Duration = Duration::from_secs(10);
/// Pause between attempts to hear the control channel or to read the state.
const OPEN_AGAIN: Duration = Duration::from_millis(500);
/// Silence after which a denylist counts as away. Open sockets are rechecked when it answers again.
const AWAY: Duration = Duration::from_secs(3);

/// Opens the tenant, and checks its sockets until the task is dropped.
pub(super) async fn run(tenant: Arc<Tenant>, tenants: Arc<Tenants>) -> Infallible {
    open(&tenant, &tenants).await;
    look_after(&tenant, &tenants).await
}

/// Prepares the first socket: hears the control channel, looks for tenants whose events could meet its own, and reads
/// the state. The state is read after the channel is heard, so that no announcement falls between.
async fn open(tenant: &Arc<Tenant>, tenants: &Tenants) {
    let is_opening = || tenant.life().stage() < Stage::Served;
    while is_opening() && tenant.control.open().await.is_err() {
        sleep(OPEN_AGAIN).await;
    }
    tenant.take(Happening::ControlHeard);
    if let Err(why) = look::compare(tenant, tenants).await {
        tenant.looked(Err(why));
    }
    while is_opening() && suspension::read_state(tenant, tenants).await.is_err() {
        sleep(OPEN_AGAIN).await;
    }
}

/// Rechecks the denylist, the users and the state, each at its own interval.
async fn look_after(tenant: &Arc<Tenant>, tenants: &Tenants) -> Infallible {
    let recheck = tenant.revocations.config().recheck;
    let revalidate = tenant.coherence.interval();
    // Random first times spread the checks of many tenants over their intervals.
    let spread = |interval: Duration| Instant::now() + interval.mul_f64(rand::random());
    let (mut recheck_at, mut revalidate_at) = (spread(recheck), spread(revalidate));
    let watches = watches_outages(tenant);
    let (mut second, mut away) = (Instant::now() + RETRY, false);
    let mut retry = Backoff::between(RETRY, LONGEST_RETRY);
    loop {
        tokio::select! {
            () = tenant.revocations.recheck_wanted() => recheck_at = Instant::now(),
            () = sleep_until(recheck_at) => {
                // A shard of a cluster may be down for hours, while each attempt reads all tokens from the others.
                let pause = match recheck_all(tenant, tenants).await {
                    true => {
                        retry.reset();
                        recheck
                    }
                    false => retry.pause(),
                };
                recheck_at = Instant::now() + pause.min(recheck);
            }
            () = sleep_until(revalidate_at) => {
                tenant.coherence.look_at_all().await;
                revalidate_at = Instant::now() + revalidate;
            }
            () = sleep_until(second), if watches => {
                let silent = tenant.revocations.silent_for() > AWAY;
                if away && !silent {
                    recheck_at = Instant::now();
                }
                away = silent;
                tenant.revocations.close_unverified(tenant.relay.hub()).await;
                second = Instant::now() + RETRY;
            }
        }
    }
}

/// Reads the state and checks every socket against the denylist. Returns true if both stores answered.
///
/// Sockets of a leaving tenant are checked against the denylist of the served one, where revocations are stored now.
async fn recheck_all(tenant: &Arc<Tenant>, tenants: &Tenants) -> bool {
    let newest = tenants.named(tenant.id.as_str());
    let newest = newest.as_ref().unwrap_or(tenant);
    let state = match Arc::ptr_eq(newest, tenant) {
        true => suspension::read_state(tenant, tenants).await,
        false => Ok(()),
    };
    // The revocations count and log their own failures.
    let rechecked = newest.revocations.recheck(tenant.relay.hub()).await;
    state.is_ok() && rechecked.is_ok()
}

/// Returns true if the denylist's outages need a watch of their own: they close sockets (`max_unverified`), or the
/// denylist has its own Redis, so that the link of the control channel does not show them.
fn watches_outages(tenant: &Tenant) -> bool {
    let own = !tenant
        .authenticator
        .denylist
        .store
        .is_same(&tenant.key_store);
    own || tenant.revocations.config().max_unverified.is_some()
}
