//! One tenant, from its configuration to its last socket.
//!
//! [`build`] makes a tenant's parts. [`Tenancy`] starts and ends their tasks. [`life`] holds the tenant's stage.
//! `upkeep` opens the tenant and checks its sockets, `look` checks its dependencies, `workers` what waits for its workers,
//! `obey` carries out control messages, and [`Tenants`] finds a tenant by host or name. One that is not in use is made on
//! [`Demand`].
//! [`crate::server`] only chooses the configuration that is served.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::admission::Authenticator;
use crate::channel_layer::Control;
use crate::coherence::Coherence;
use crate::config::{Secret, TenantConfig, Trusts};
use crate::consumer::{RouteConsumer, TenantScope};
use crate::error::Refusal;
use crate::fleet::message::Op;
use crate::fleet::{Circle, Fleet, Gathered, NotAsked};
use crate::ids::TenantId;
use crate::metrics::{GaugeGuard, TenantMetrics};
use crate::origin::OriginPolicy;
use crate::relay::{Relay, Settings};
use crate::revocation::Revocations;
use crate::stores::key_store::KeyStore;
use crate::stores::redis::RedisStore;
use crate::templates::Template;
use crate::users::Permissions;
use life::{Happening, Stage, TenantLife};

pub mod build;
mod demand;
mod directory;
mod errands;
mod eviction;
mod groups;
mod later;
pub mod life;
mod look;
pub mod neighbours;
mod obey;
pub mod scripts;
mod sockets;
mod suspension;
mod tenancy;
mod upkeep;
mod workers;

pub use demand::Demand;
pub use directory::{FileTrouble, Tenants};
pub use suspension::{SUSPENDED, stored_suspension};
pub use tenancy::Tenancy;

/// The making of a tenant of the registry. One that was deleted and made again has another making, and is another tenant.
/// They sort by time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Making {
    /// The number of the change that made it.
    pub serial: i64,
    /// The time, in Unix seconds. A registry that was restored from a backup counts its changes on from there, and may have
    /// one number twice.
    pub created_at: i64,
}

impl Making {
    /// Returns true if these are two tenants of one name. One that moves between the files and the registry stays the same.
    fn differs(new: Option<Self>, old: Option<Self>) -> bool {
        new.zip(old).is_some_and(|(new, old)| new != old)
    }
}

/// The makings of the tenants of the registry. Those of files have none.
pub type Makings = BTreeMap<TenantId, Making>;

/// One tenant, ready to serve.
pub struct Tenant {
    /// Its name.
    pub id: TenantId,
    /// Its making; `None` for a tenant of the files.
    pub making: Option<Making>,
    /// Its configuration.
    pub config: Arc<TenantConfig>,
    /// The Redis of its cached users, events and control messages. `None`: the memory of this process.
    pub redis: Option<Secret>,
    /// The trust in the certificates of its servers.
    pub trusts: Trusts,
    /// The routes by path, and the other parts that all its sockets share.
    pub scope: Arc<TenantScope>,
    /// The parts of each route, by the route's index.
    pub parts: Vec<RouteParts>,
    /// The pages that may connect.
    pub origins: OriginPolicy,
    /// Checks tokens and finds their users.
    pub authenticator: Arc<Authenticator>,
    /// The statements that decide which groups a user may join.
    pub permissions: Arc<Permissions>,
    /// The revoked tokens.
    pub revocations: Arc<Revocations>,
    /// Compares the users of open sockets with the database.
    pub coherence: Arc<Coherence>,
    /// Messages between the replicas that serve the tenant.
    pub control: Arc<Control>,
    /// The store of the tenant's keys, the denylist's excepted.
    pub key_store: KeyStore,
    /// Carries events from the channel layer to the sockets of their groups.
    pub relay: Arc<Relay>,
    /// The Redis servers of its channel layer.
    servers: Arc<[Arc<RedisStore>]>,
    /// The settings of its relay. They take effect when this tenant is served.
    pub settings: Arc<Settings>,
    /// Handles of its metrics.
    pub metrics: Arc<TenantMetrics>,
    /// Remarks that an operator should mend although the tenant is served.
    remarks: Mutex<Vec<String>>,
    /// The stage of its life.
    life: watch::Sender<TenantLife>,
    /// Held while its life says that it is degraded.
    degraded: Mutex<Option<GaugeGuard>>,
    /// True if it was asked for since the last [`Tenant::was_used`].
    used: AtomicBool,
}

/// Longest wait of a handshake for a tenant that is about to be served. A group to join is waited for as long.
const OPENS_WITHIN: Duration = Duration::from_secs(5);
/// Silence of a Redis after which a handshake does not wait for it.
const SILENT: Duration = Duration::from_secs(3);

impl Tenant {
    /// Returns the current stage of its life. Drop the guard soon: it blocks every change.
    pub fn life(&self) -> impl Deref<Target = TenantLife> + '_ {
        self.life.borrow()
    }

    /// Notes that it was asked for.
    fn note_use(&self) {
        // One cache line of all handshakes of the tenant is read more often than written.
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
    }

    /// Returns true if it has sockets, or was asked for since the last call.
    pub fn was_used(&self) -> bool {
        self.used.swap(false, Ordering::Relaxed) || !self.relay.hub().is_quiet()
    }

    /// Returns true if all that it remembers lies in Redis, so that it can be let go and made again.
    pub fn remembers_elsewhere(&self) -> bool {
        self.key_store.redis().is_some() && !self.servers.is_empty()
    }

    /// Returns `Ok` if a socket may open now.
    ///
    /// # Errors
    /// The refusal of its handshake.
    pub fn admits(&self) -> Result<(), Refusal> {
        self.life().admits()
    }

    /// Waits for a tenant that is about to be served, then answers as [`Tenant::admits`]. A tenant that a start or a
    /// reload has just brought hears its control channel and reads its state first.
    ///
    /// # Errors
    /// The refusal of the handshake.
    pub async fn opens(&self) -> Result<(), Refusal> {
        if self.life().is_opening() && self.key_store.silent_for() < SILENT {
            let mut life = self.life.subscribe();
            let opened = life.wait_for(|life| !life.is_opening());
            // A timeout needs no case of its own: `admits` reads the stage below.
            drop(timeout(OPENS_WITHIN, opened).await.map(drop));
        }
        self.admits()
    }

    /// Waits until the tenant is served or an obstacle is known.
    pub async fn settled(&self) {
        let mut life = self.life.subscribe();
        // Cannot fail: `self` holds the sender.
        drop(life.wait_for(TenantLife::is_settled).await.map(drop));
    }

    /// Records the result of a check of its dependencies, and logs each change once.
    fn looked(&self, found: Result<(), String>) {
        let before = self.life().obstacle().map(str::to_owned);
        match &found {
            Err(why) if before.as_ref() != Some(why) => {
                tracing::error!(tenant.id = %self.id, error = why, "The tenant cannot be served");
            }
            Ok(()) if before.is_some() => {
                tracing::info!(tenant.id = %self.id, "The tenant is served again");
            }
            _ => {}
        }
        self.take(Happening::Looked(found));
    }

    /// Returns what an operator should mend although the tenant is served.
    pub fn remarks(&self) -> Vec<String> {
        self.remarks.lock().clone()
    }

    /// Replaces the remarks, and logs those that are new.
    fn remark(&self, remarks: Vec<String>) {
        let mut before = self.remarks.lock();
        for remark in remarks.iter().filter(|remark| !before.contains(remark)) {
            tracing::warn!(tenant.id = %self.id, error = remark, "The tenant is served, and something does not work as configured");
        }
        *before = remarks;
    }

    /// Records what happened.
    fn take(&self, happening: Happening) {
        self.change(|life| life.take(happening));
    }

    /// Changes the life, and the gauge with it. `change` returns false if nothing has changed.
    fn change(&self, change: impl FnOnce(&mut TenantLife) -> bool) {
        self.life.send_if_modified(|life| {
            let is_changed = change(life);
            // Under the lock of the life, so that of two changes at once the gauge shows the later one.
            let mut degraded = self.degraded.lock();
            if life.is_degraded() != degraded.is_some() {
                *degraded = life.is_degraded().then(|| self.metrics.is_degraded());
            }
            is_changed
        });
    }

    /// Takes over the stage and the suspension of `before`, whose control channel it shares.
    fn inherit(&self, before: &Tenant) {
        // A tenant of the registry opens on another layer only once its servers are known.
        let is_known = self.making.is_none() || Arc::ptr_eq(&self.relay, &before.relay);
        let life = before.life().passed_on(is_known);
        self.change(|own| {
            *own = life;
            true
        });
    }

    /// Asks every replica that serves the tenant, and gathers the answers.
    ///
    /// # Errors
    /// [`NotAsked`]
    pub async fn ask(&self, fleet: &Fleet, op: Op) -> Result<Gathered, NotAsked> {
        let mut life = self.life.subscribe();
        let heard = life.wait_for(|life| life.stage() > Stage::Configured);
        // A replica that has just begun to serve the tenant would miss its own question.
        drop(timeout(fleet.timeout(), heard).await.map(drop));
        let circle = Circle::of_tenant(&self.id, &self.key_store, &self.control);
        let gathered = fleet.ask(circle, op).await?;
        if gathered.replicas.expected.is_none() {
            self.metrics.replicas_unknown();
        }
        Ok(gathered)
    }
}

/// The parts of one route.
pub struct RouteParts {
    /// The groups that a socket joins.
    pub groups: Vec<Template>,
    /// The consumer of its frames and events.
    pub consumer: RouteConsumer,
    /// The route's index among the relay's deliveries.
    pub delivery: u16,
    /// Subprotocols that a client may choose from.
    pub subprotocols: Vec<String>,
    /// True if clients are told positions and may come back for what they missed.
    pub resume: bool,
    /// True if a token is optional.
    pub anonymous: bool,
}

impl RouteParts {
    /// Returns true if a handshake needs the token's claims after they were checked.
    pub fn needs_claims(&self) -> bool {
        self.consumer.reads_claims || self.groups.iter().any(Template::has_user_values)
    }
}
