//! Checks every dependency of a tenant, and reports what keeps it from being served.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::sleep;

use super::life::Stage;
use super::neighbours::Stand;
use super::{Tenant, Tenants, scripts};
use crate::channel_layer::LayerError;
use crate::close_code::CloseReason;
use crate::config::names_meet;
use crate::error::ErrorKind;
use crate::hub::close_paced;
use crate::ids::{GroupName, TenantId};
use crate::stores::backoff::Backoff;
use crate::stores::redis_keys;
use crate::stores::server_identity::ServerIdentity;
use crate::tasks;
use crate::users::{UsersProblem, missing_fields};

/// First pause after a failed check. It doubles with each failure, up to [`LONGEST_RETRY`].
const RETRY: Duration = Duration::from_millis(500);
/// Longest pause between failed checks. A tenant whose dependencies are back is served within this time.
const LONGEST_RETRY: Duration = Duration::from_secs(2);
/// Pause between checks of a served tenant: a database column or a grant may disappear later.
const RECHECK: Duration = Duration::from_secs(30);

/// The group that a check joins for a moment to see whether Redis allows it. No socket can be in a group without a name, so the
/// end of the check ends no subscription that is in use.
const PROBE: &str = "";

/// The action on a Redis that does not know the command of a subscription.
const UNKNOWN_COMMAND: &str = "it does not know the command: in a cluster every node needs Redis 7.0 or newer, and no server may hide SUBSCRIBE";

/// The reason why a tenant cannot be served.
enum Obstacle {
    /// A dependency does not answer. It may answer later without any action.
    NotReached(String),
    /// A dependency answered and refused. An operator has to act.
    Degraded(String),
}

/// Checks the tenant repeatedly. Each tenant has its own task, so that a dead dependency of one delays no other. The
/// number of concurrent checks needs no limit: commands to one Redis share a link, and statements wait for their pool.
pub(super) async fn run(tenant: Arc<Tenant>, tenants: Arc<Tenants>) -> Infallible {
    let (mut told, mut retry) = (Vec::new(), Backoff::between(RETRY, LONGEST_RETRY));
    let (mut routes, mut is_compared) = (Vec::new(), false);
    loop {
        match look_at(&tenant, &tenants).await {
            Ok(fields) => {
                tenant.looked(Ok(()));
                // A route that fails is looked at until it is mended. The others are read once, since there may be a thousand.
                if !is_compared || !routes.is_empty() {
                    routes = faults_of_routes(&tenant, fields.as_deref()).await;
                    is_compared = true;
                }
                let mut remarks = scripts::faults(&tenant).await;
                remarks.extend(routes.iter().cloned());
                tenant.remark(remarks);
            }
            Err(Obstacle::Degraded(why)) => tenant.looked(Err(why)),
            // An outage after the start is no obstacle: handshakes meet it themselves, and cached users are still served.
            Err(Obstacle::NotReached(_)) if tenant.life().is_settled() => {}
            Err(Obstacle::NotReached(what)) if told.contains(&what) => {}
            Err(Obstacle::NotReached(what)) => {
                tracing::warn!(tenant.id = %tenant.id, error = what, "Waiting for a dependency");
                told.push(what);
            }
        }
        if tenant.life().is_settled() && tenant.life().obstacle().is_none() {
            retry.reset();
            // Random pauses spread the checks of tenants that started together.
            sleep(RECHECK.mul_f64(0.75 + 0.25 * rand::random::<f64>())).await;
        } else {
            sleep(retry.pause()).await;
        }
    }
}

/// Compares the routes with the database. Returns the fields that it does not return, and the statements of `authorize` that
/// it refuses.
async fn faults_of_routes(tenant: &Tenant, fields: Option<&[String]>) -> Vec<String> {
    let config = &tenant.config;
    let missing = fields.map(|fields| missing_fields(config, fields));
    let missing = missing.iter().flatten();
    let mut faults: Vec<_> = missing.map(ToString::to_string).collect();
    let refused = tenant.permissions.refused(&config.routes).await;
    faults.extend(refused.iter().map(|(route, error)| {
        format!(
            "the database refuses routes[{route}].authorize: {}",
            error.source
        )
    }));
    faults
}

/// Checks each dependency once. Returns the fields of user records; `None` if the claims are the user.
async fn look_at(tenant: &Tenant, tenants: &Tenants) -> Result<Option<Vec<String>>, Obstacle> {
    let authenticator = &tenant.authenticator;
    for redis in authenticator.redis_servers() {
        redis.ping().await.map_err(|error| match error.kind {
            ErrorKind::Permission | ErrorKind::Protocol => Obstacle::Degraded(error.to_string()),
            _ => Obstacle::NotReached(error.to_string()),
        })?;
    }
    if let Some(why) = misfit(tenant).await {
        return Err(Obstacle::Degraded(why));
    }
    let fields = match authenticator.users.stored() {
        None => None,
        Some(users) => Some(users.ready().await.map_err(|problem| match problem {
            UsersProblem::Store(error) if error.kind != ErrorKind::Permission => {
                Obstacle::NotReached(error.to_string())
            }
            problem => Obstacle::Degraded(problem.to_string()),
        })?),
    };
    if let Err(error) = authenticator.verifier.ready().await {
        return Err(Obstacle::NotReached(error.to_string()));
    }
    tenant.control.open().await.map_err(|error| {
        not_subscribed(&error, "its control channel", || {
            format!(
                "its Redis user may not subscribe to its control channel; grant the channels {}",
                redis_keys::all_of(&tenant.id)
            )
        })
    })?;
    if let Some(why) = scripts::obstacle(tenant).await {
        return Err(Obstacle::Degraded(why));
    }
    let layer = tenant.relay.layer();
    if !layer.ready().await {
        return Err(Obstacle::NotReached(
            "the channel layer is not connected".into(),
        ));
    }
    let compared = compare(tenant, tenants).await;
    compared.map_err(Obstacle::Degraded)?;
    // Redis reports a missing grant for groups only when one is subscribed.
    let probe = GroupName::from(PROBE);
    let subscribed = layer.subscribe(&probe).await;
    layer.unsubscribe(&probe);
    subscribed.map_err(|error| {
        not_subscribed(&error, "its groups", || {
            format!(
                "its Redis user may not join its groups; grant the channels, with the layer core the keys, {}*",
                tenant.config.layer.prefix
            )
        })
    })?;
    Ok(fields)
}

/// Returns the obstacle that a subscription of `what` has met; `refused` is the reason where a right is missing.
fn not_subscribed(error: &LayerError, what: &str, refused: impl FnOnce() -> String) -> Obstacle {
    match error.kind() {
        Some(ErrorKind::Permission) => Obstacle::Degraded(refused()),
        Some(ErrorKind::Protocol) => Obstacle::Degraded(format!(
            "its Redis takes no subscription of {what}; {UNKNOWN_COMMAND}"
        )),
        _ => Obstacle::NotReached(error.to_string()),
    }
}

/// Returns the reason why a server of the tenant cannot be used by its URL.
async fn misfit(tenant: &Tenant) -> Option<String> {
    let servers = tenant.authenticator.redis_servers().into_iter();
    // All at once: each that does not answer takes its time limit.
    let looks = servers.chain(tenant.servers.iter());
    let misfits = join_all(looks.map(|server| server.misfit())).await;
    let misfit = misfits.into_iter().flatten().next()?;
    Some(format!("{misfit}; {}", misfit.remedy()))
}

/// Compares the servers of the tenant's layer with those of all other tenants. `Err` holds the reason not to serve it.
pub(super) async fn compare(tenant: &Tenant, tenants: &Tenants) -> Result<(), String> {
    let servers = join_all(tenant.servers.iter().map(|store| store.identity())).await;
    if servers.is_empty() {
        return Ok(());
    }
    let others = unrecorded(tenant, tenants).await;
    let stand = stand_of(tenant, servers);
    let mut own = Ok(());
    let is_served = || tenant.life().stage() < Stage::Leaving;
    let unserved = tenants
        .neighbours
        .enter(&tenant.id, stand, others, is_served);
    for (id, why) in unserved {
        if id == tenant.id {
            shut(tenant, tenants, why.clone());
            own = Err(why);
        } else if let Some(later) = tenants.by_id(id.as_str()) {
            shut(&later, tenants, why);
        }
    }
    own
}

fn stand_of(tenant: &Tenant, servers: Vec<Arc<ServerIdentity>>) -> Stand {
    Stand {
        making: tenant.making,
        prefix: tenant.config.layer.prefix.clone(),
        namespace: tenant.config.layer.namespace.clone(),
        servers,
    }
}

/// Identifies the servers of tenants whose names a newcomer from the registry could share, and that have not recorded theirs
/// yet: a socket of the newcomer would get their events meanwhile. One whose server is down counts by its addresses.
async fn unrecorded(tenant: &Tenant, tenants: &Tenants) -> BTreeMap<TenantId, Stand> {
    if tenant.making.is_none() {
        return BTreeMap::new();
    }
    let own = &tenant.config.layer;
    let meets = |other: &Arc<Tenant>| {
        let theirs = &other.config.layer;
        let names = (theirs.prefix.as_str(), theirs.namespace.as_str());
        other.id != tenant.id && names_meet((&own.prefix, &own.namespace), names)
    };
    let all = tenants.all();
    let servers = all.iter().filter(|other| !other.servers.is_empty());
    let left = tenants
        .neighbours
        .unrecorded(&all, servers.map(|other| &other.id));
    let left = left.iter().filter_map(|id| tenants.by_id(id.as_str()));
    let stands = left.filter(meets).map(async |other| {
        let servers = join_all(other.servers.iter().map(|store| store.identity())).await;
        (other.id.clone(), stand_of(&other, servers))
    });
    join_all(stands).await.into_iter().collect()
}

/// Ends the sockets of a tenant that is found to meet another: they would get its events.
fn shut(tenant: &Tenant, tenants: &Tenants, why: String) {
    let was_open = tenant.life().obstacle().is_none();
    tenant.looked(Err(why));
    let members = tenant.relay.hub().members();
    if was_open && !members.is_empty() {
        let rate = f64::from(tenants.config().server.drain.rate);
        tasks::brief(close_paced(members, rate, CloseReason::Draining));
    }
}
