//! Tenants of the registry are made when they are first asked for, and let go some time after their last socket.

use std::collections::{BTreeSet, HashMap};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::MissedTickBehavior;

use super::reload::Reloader;
use crate::ids::TenantId;
use crate::registry::TenantRegistry;
use crate::tenant::Tenant;
use crate::tenant::build::NotBuilt;

/// Longest pause between two looks for tenants that are not in use.
const LOOK: Duration = Duration::from_secs(10);
/// Shortest pause.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// The most tenants that are let go in one look.
const MOST: usize = 500;

/// Makes the tenants that are asked for, a few at a time, so that a reload and the sockets of others get their turn.
pub(super) async fn make(reloader: Arc<Reloader>, registry: Arc<TenantRegistry>) -> Infallible {
    let demand = reloader.tenants.demand();
    loop {
        demand.wanted().await;
        loop {
            let step = demand.next();
            if step.is_empty() {
                break;
            }
            let wrong = make_each(&reloader, &step).await;
            for (id, why) in &wrong {
                let config = reloader.tenants.configured(id.as_str());
                let Some((_, config)) = config else { continue };
                registry.cannot_be_built(id, &config, why);
            }
            if !wrong.is_empty() {
                registry.was_not_served();
                reloader.serve_news(&registry).await;
            }
            step.iter().for_each(|id| demand.end(id));
            // The sockets of this step go on before the next one begins.
            tokio::task::yield_now().await;
        }
    }
}

/// Makes tenants, and serves them. Returns those that cannot be made, with the reasons.
async fn make_each(reloader: &Arc<Reloader>, ids: &[TenantId]) -> Vec<(TenantId, String)> {
    let _making = reloader.making.lock().await;
    let (builder, tenants) = (reloader.builder.clone(), reloader.tenants.clone());
    let config = tenants.config();
    let new = |id: &&TenantId| tenants.by_id(id.as_str()).is_none();
    let ids: Vec<TenantId> = ids.iter().filter(new).cloned().collect();
    let building = tokio::task::spawn_blocking(move || {
        let (mut made, mut wrong) = (Vec::new(), Vec::new());
        for id in ids {
            // It may have been deleted meanwhile.
            let Some(tenant) = config.tenants.get(&id) else {
                continue;
            };
            match builder.lock().make(&id, tenant, &config, &tenants) {
                Ok(tenant) => made.push(tenant),
                Err(NotBuilt { why, .. }) => wrong.push((id, format!("{why:#}"))),
            }
        }
        (made, wrong)
    });
    // A panic is logged, and those that wait are refused.
    let (made, wrong) = building.await.unwrap_or_default();
    if !made.is_empty() {
        reloader.tenancy.add(made, &reloader.builder.lock());
    }
    wrong
}

/// Lets tenants of the registry go that have had no socket, and were not asked for, for `keep`.
pub(super) async fn let_go(reloader: Arc<Reloader>, keep: Duration) -> Infallible {
    let mut tick = tokio::time::interval((keep / 10).clamp(LOOK_AGAIN, LOOK));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut idle_since = HashMap::new();
    loop {
        tick.tick().await;
        if find_idle(&reloader, &mut idle_since, keep).is_empty() {
            continue;
        }
        // Nothing is made or replaced meanwhile, and what was asked for before is not let go.
        let _making = reloader.making.lock().await;
        let idle = find_idle(&reloader, &mut idle_since, keep);
        let files = reloader.state.lock().config.clone();
        reloader.tenancy.let_go(&idle, &files);
        idle_since.retain(|id, _| !idle.contains(id));
        reloader.builder.lock().forget_unused();
        tracing::debug!(count = idle.len(), "Let go of tenants that are not in use");
    }
}

/// Returns tenants that were not in use for `keep`. `idle_since` holds the beginnings.
fn find_idle(
    reloader: &Reloader,
    idle_since: &mut HashMap<TenantId, Instant>,
    keep: Duration,
) -> BTreeSet<TenantId> {
    let now = Instant::now();
    let all = reloader.tenants.all();
    let state = reloader.state.lock();
    let is_on_demand = |tenant: &&Arc<Tenant>| {
        !state.config.tenants.contains_key(&tenant.id) && tenant.remembers_elsewhere()
    };
    let (mut idle, mut still) = (BTreeSet::new(), HashMap::new());
    for tenant in all.iter().filter(is_on_demand) {
        if tenant.was_used() {
            continue;
        }
        let since = idle_since.get(&tenant.id).copied().unwrap_or(now);
        still.insert(tenant.id.clone(), since);
        if now.duration_since(since) >= keep && idle.len() < MOST {
            idle.insert(tenant.id.clone());
        }
    }
    *idle_since = still;
    idle
}
