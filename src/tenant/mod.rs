//! One tenant, from its configuration to its last socket, whoever starts it.
//!
//! [`build`] makes its parts, [`Tenancy`] starts their tasks and sees them off, [`life`] says where it is in its life.
//! `upkeep` opens it and looks after its sockets, `look` finds what stands in its way, `obey` does what control messages
//! say, and [`Tenants`] finds it.
//! [`crate::server`] only says which configuration holds.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use crate::admission::Authenticator;
use crate::channel_layer::Control;
use crate::coherence::Coherence;
use crate::config::{Secret, TenantConfig};
use crate::consumer::{Place, RouteConsumer};
use crate::error::{Refusal, StoreError};
use crate::fleet::message::Op;
use crate::fleet::{Circle, Fleet, Gathered};
use crate::ids::TenantId;
use crate::metrics::TenantMetrics;
use crate::origin::OriginPolicy;
use crate::relay::{Relay, Settings};
use crate::revocation::Revocations;
use crate::stores::key_store::KeyStore;
use crate::stores::redis::RedisStore;
use crate::templates::Template;
use crate::users::Permissions;
use life::{Happening, Life, Stage};

pub mod build;
mod directory;
pub mod life;
mod look;
pub mod neighbours;
mod obey;
mod sockets;
mod suspension;
mod tasks;
mod tenancy;
mod upkeep;

pub use directory::Tenants;
pub use suspension::SUSPENDED;
pub use tenancy::Tenancy;

/// One tenant, ready to serve.
pub struct Tenant {
    /// Its name.
    pub id: TenantId,
    /// What its operator configured.
    pub config: Arc<TenantConfig>,
    /// The Redis of its users, events and control messages; `None`: this process's memory.
    pub redis: Option<Secret>,
    /// From path to route, and what else all its sockets share.
    pub place: Arc<Place>,
    /// What each route does, by the index that its routes give.
    pub parts: Vec<RouteParts>,
    /// Which pages may connect.
    pub origins: OriginPolicy,
    /// Tokens and users.
    pub authenticator: Arc<Authenticator>,
    /// Who may join which groups.
    pub permissions: Arc<Permissions>,
    /// Tokens that are taken back.
    pub revocations: Arc<Revocations>,
    /// What open sockets know of their users, held against the database.
    pub coherence: Arc<Coherence>,
    /// Messages between the replicas that serve the tenant.
    pub control: Arc<Control>,
    /// Where the tenant's keys other than the denylist's lie.
    pub keys: KeyStore,
    /// Groups and events.
    pub relay: Arc<Relay>,
    /// The servers that its layer stands on.
    servers: Arc<[Arc<RedisStore>]>,
    /// What its relay is set to once this tenant is the one that is served.
    pub settings: Arc<Settings>,
    /// Handles of its metrics.
    pub metrics: Arc<TenantMetrics>,
    /// Where it is in its life.
    life: watch::Sender<Life>,
}

/// How long a handshake waits for a tenant that is about to be served, as long as for a group that it joins.
const OPENS_WITHIN: Duration = Duration::from_secs(5);
/// A Redis that has been silent for so long is not waited for.
const SILENT: Duration = Duration::from_secs(3);

impl Tenant {
    /// Where it is in its life now. Held for a moment only.
    pub fn life(&self) -> impl Deref<Target = Life> + '_ {
        self.life.borrow()
    }

    /// Whether a socket may open now.
    ///
    /// # Errors
    /// The refusal of its handshake.
    pub fn admits(&self) -> Result<(), Refusal> {
        self.life().admits()
    }

    /// As [`Tenant::admits`], but waits for a tenant that is about to be served: one that a start or a reload has just
    /// brought hears its control channel and reads its state first.
    ///
    /// # Errors
    /// The refusal of the handshake.
    pub async fn opens(&self) -> Result<(), Refusal> {
        if self.life().is_opening() && self.keys.silent_for() < SILENT {
            let mut life = self.life.subscribe();
            let opened = life.wait_for(|life| !life.is_opening());
            // What it is after that time is looked at below.
            drop(timeout(OPENS_WITHIN, opened).await.map(drop));
        }
        self.admits()
    }

    /// Waits until it is served, or it is known why not.
    pub async fn settled(&self) {
        let mut life = self.life.subscribe();
        // Ends with a life: the sender is this tenant's.
        drop(life.wait_for(Life::is_settled).await.map(drop));
    }

    /// Takes note of what a look at its dependencies found, and logs a change once.
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

    /// Takes note of what happened.
    fn take(&self, happening: Happening) {
        self.life.send_if_modified(|life| life.take(happening));
    }

    /// Takes over the control channel of `before`, and what was heard there.
    fn inherit(&self, before: &Tenant) {
        let life = before.life().passed_on();
        self.life.send_replace(life);
    }

    /// Asks every replica that serves it, and gathers the answers.
    ///
    /// # Errors
    /// [`StoreError`] if the question could not be sent.
    pub async fn ask(&self, fleet: &Fleet, op: Op) -> Result<Gathered, StoreError> {
        let mut life = self.life.subscribe();
        let heard = life.wait_for(|life| life.stage() > Stage::Configured);
        // A replica that has just begun to serve it would not hear its own question.
        drop(timeout(fleet.timeout(), heard).await.map(drop));
        let circle = Circle::of_tenant(&self.id, &self.keys, &self.control);
        fleet.ask(circle, op).await
    }
}

/// What one route does with its sockets.
pub struct RouteParts {
    /// The groups that a socket joins.
    pub groups: Vec<Template>,
    /// What happens to frames and events.
    pub consumer: RouteConsumer,
    /// The route's index among the relay's deliveries.
    pub delivery: u16,
    /// Subprotocols that a client may choose from.
    pub subprotocols: Vec<String>,
}
