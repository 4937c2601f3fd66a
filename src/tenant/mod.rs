//! One tenant, from its configuration to its last socket, whoever starts it.
//!
//! [`build`] makes its parts, [`Tenancy`] starts their tasks and sees them off, `look` finds what stands in its way,
//! `upkeep` looks after its open sockets, `obey` does what control messages say, and [`Tenants`] finds it.
//! [`crate::server`] only says which configuration holds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::admission::Authenticator;
use crate::channel_layer::Control;
use crate::coherence::Coherence;
use crate::config::{Secret, TenantConfig};
use crate::consumer::{Place, RouteConsumer};
use crate::error::StoreError;
use crate::fleet::message::Op;
use crate::fleet::{Circle, Fleet, Gathered};
use crate::ids::TenantId;
use crate::metrics::TenantMetrics;
use crate::origin::OriginPolicy;
use crate::relay::{Relay, Settings};
use crate::revocation::Revocations;
use crate::stores::key_store::KeyStore;
use crate::templates::Template;
use crate::users::Permissions;

pub mod build;
mod directory;
pub mod look;
mod obey;
mod sockets;
mod suspension;
mod tenancy;
mod upkeep;

pub use directory::{Serving, Tenants, tenant_of};
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
    /// What its relay is set to once this tenant is the one that is served.
    pub settings: Arc<Settings>,
    /// Handles of its metrics.
    pub metrics: Arc<TenantMetrics>,
    /// Why it cannot be served at the moment.
    pub degraded: Mutex<Option<String>>,
    /// Whether it is suspended; outlives a reload.
    pub suspended: Arc<AtomicBool>,
    /// A reload has put another one in its place, or none: no socket may open on it any more.
    pub retired: AtomicBool,
}

impl Tenant {
    /// Whether an operator has suspended it.
    pub fn is_suspended(&self) -> bool {
        self.suspended.load(Ordering::Acquire)
    }

    /// Whether it cannot be served at the moment.
    pub fn is_degraded(&self) -> bool {
        self.degraded.lock().is_some()
    }

    /// Asks every replica that serves it, and gathers the answers.
    ///
    /// # Errors
    /// [`StoreError`] if the question could not be sent.
    pub async fn ask(&self, fleet: &Fleet, op: Op) -> Result<Gathered, StoreError> {
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
