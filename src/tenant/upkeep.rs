//! What has to be looked at again and again while a tenant's sockets are open: the denylist, their users, and whether
//! the tenant is suspended.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::Tenant;

/// From a look that failed to the next.
const RETRY: Duration = Duration::from_secs(1);
/// A denylist that has not answered for so long was away, and what it holds is looked at anew.
const AWAY: Duration = Duration::from_secs(3);

/// Looks after the sockets of one tenant for ever.
pub(super) async fn run(tenant: Arc<Tenant>) -> Infallible {
    let revocations = &tenant.revocations;
    let recheck = revocations.config().recheck;
    let revalidate = tenant.coherence.interval();
    // The first looks of many tenants are spread over their intervals.
    let spread = |interval: Duration| Instant::now() + interval.mul_f64(rand::random());
    let (mut recheck_at, mut revalidate_at) = (spread(recheck), spread(revalidate));
    let watches = watches_outages(&tenant);
    let (mut second, mut away) = (Instant::now() + RETRY, false);
    // One that a reload brings was not looked at by the start of the replica.
    tenant.read_state().await;
    loop {
        tokio::select! {
            () = revocations.recheck_wanted() => recheck_at = Instant::now(),
            () = sleep_until(recheck_at) => {
                tenant.read_state().await;
                recheck_at = Instant::now() + match revocations.recheck().await {
                    Ok(_) => recheck,
                    // Counted where it failed, and told there.
                    Err(_) => RETRY.min(recheck),
                };
            }
            () = sleep_until(revalidate_at) => {
                tenant.coherence.look_at_all().await;
                revalidate_at = Instant::now() + revalidate;
            }
            () = sleep_until(second), if watches => {
                let silent = revocations.silent_for() > AWAY;
                if away && !silent {
                    recheck_at = Instant::now();
                }
                away = silent;
                revocations.close_unverified().await;
                second = Instant::now() + RETRY;
            }
        }
    }
}

/// Whether the denylist's outages are of interest by themselves: they close sockets, or no lost link of the control
/// channel tells of them.
fn watches_outages(tenant: &Tenant) -> bool {
    let own = !tenant.authenticator.denylist.store.is_same(&tenant.keys);
    own || tenant.revocations.config().max_unverified.is_some()
}
