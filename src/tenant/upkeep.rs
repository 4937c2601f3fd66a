//! The task behind a tenant that hears and is served: first it opens, then its open sockets are looked after.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::life::{Happening, Stage};
use super::{Tenant, Tenants, look, suspension};

/// From a look that failed to the next.
const RETRY: Duration = Duration::from_secs(1);
/// From an attempt to hear the control channel, or to read the state, to the next.
const OPEN_AGAIN: Duration = Duration::from_millis(500);
/// A denylist that has not answered for so long was away, and what it holds is looked at anew.
const AWAY: Duration = Duration::from_secs(3);

/// Opens the tenant, and looks after its sockets until the task is dropped.
pub(super) async fn run(tenant: Arc<Tenant>, tenants: Arc<Tenants>) -> Infallible {
    open(&tenant, &tenants).await;
    look_after(&tenant, &tenants).await
}

/// Does what must be done before the first socket opens: hears the control channel, finds tenants whose events its own
/// could meet, and reads the state, after the channel is heard, so that no announcement falls between.
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

/// Looks at the denylist, the users and the state again and again.
async fn look_after(tenant: &Arc<Tenant>, tenants: &Tenants) -> Infallible {
    let recheck = tenant.revocations.config().recheck;
    let revalidate = tenant.coherence.interval();
    // The first looks of many tenants are spread over their intervals.
    let spread = |interval: Duration| Instant::now() + interval.mul_f64(rand::random());
    let (mut recheck_at, mut revalidate_at) = (spread(recheck), spread(revalidate));
    let watches = watches_outages(tenant);
    let (mut second, mut away) = (Instant::now() + RETRY, false);
    loop {
        tokio::select! {
            () = tenant.revocations.recheck_wanted() => recheck_at = Instant::now(),
            () = sleep_until(recheck_at) => {
                let pause = match recheck_all(tenant, tenants).await {
                    true => recheck,
                    false => RETRY.min(recheck),
                };
                recheck_at = Instant::now() + pause;
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

/// Reads the state, and holds every socket against the denylist; answers whether both could be asked.
///
/// Sockets of a tenant that leaves are held against the denylist that holds now: that is where revocations are stored.
async fn recheck_all(tenant: &Arc<Tenant>, tenants: &Tenants) -> bool {
    let newest = tenants.named(tenant.id.as_str());
    let newest = newest.as_ref().unwrap_or(tenant);
    let state = match Arc::ptr_eq(newest, tenant) {
        true => suspension::read_state(tenant, tenants).await,
        false => Ok(()),
    };
    // Counted where they fail, and told there.
    let rechecked = newest.revocations.recheck(tenant.relay.hub()).await;
    state.is_ok() && rechecked.is_ok()
}

/// Whether the denylist's outages are of interest by themselves: they close sockets, or no lost link of the control
/// channel tells of them.
fn watches_outages(tenant: &Tenant) -> bool {
    let own = !tenant.authenticator.denylist.store.is_same(&tenant.keys);
    own || tenant.revocations.config().max_unverified.is_some()
}
