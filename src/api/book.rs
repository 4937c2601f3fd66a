//! The registry of tenants as the management API knows it. [`crate::server`] puts the registry behind it.

use std::sync::{Arc, Weak};

use async_trait::async_trait;
use serde::Serialize;
use serde_json::Value;

use crate::error::StoreError;
use crate::ids::TenantId;

/// The state of a tenant that a change asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Precondition {
    /// Any.
    None,
    /// There is one.
    Exists,
    /// There is none.
    Absent,
    /// It has one of these versions.
    Versions(Vec<i64>),
}

/// The condition of a change, its author, and the wait of its caller.
#[derive(Clone, Debug)]
pub struct ChangeOrder {
    /// The state of the tenant that it asks for.
    pub condition: Precondition,
    /// The key of its caller, for the audit.
    pub actor: String,
    /// Ends with the caller's wait. A change that has not begun by then is not made: the caller may have made another since.
    pub caller: Weak<()>,
}

impl ChangeOrder {
    /// Returns true if its caller has gone away.
    pub fn is_abandoned(&self) -> bool {
        self.caller.strong_count() == 0
    }
}

/// A mistake in the document of a tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct TenantMistake {
    /// The key, like `routes[0].path`; empty if the tenant as a whole is concerned.
    pub key: String,
    /// A description of the value; never a secret.
    pub found: String,
    /// The values that are allowed.
    pub expected: String,
    /// The action to take. May be empty.
    pub advice: String,
}

/// The reason for which a call on the registry was not carried out.
#[derive(Debug)]
pub enum BookProblem {
    /// The registry has no such tenant.
    NotFound,
    /// A file has a tenant of this name.
    InFiles,
    /// The tenant is not in the state that the caller expects.
    NotAsExpected,
    /// The document has mistakes.
    Mistakes(Vec<TenantMistake>),
    /// The database does not answer.
    Unavailable(StoreError),
}

/// A tenant of the registry.
#[derive(Clone, Debug)]
pub struct RegisteredTenant {
    /// Its document, without its secrets; `None` if what is stored is no JSON.
    pub config: Option<Value>,
    /// It rises with every change, also where the tenant is deleted and made again.
    pub version: i64,
    /// The time of its first version, in Unix seconds.
    pub created_at: i64,
    /// The time of its last change, in Unix seconds.
    pub updated_at: i64,
}

/// The result of a change.
#[derive(Clone, Debug)]
pub struct StoredTenant {
    /// The version that it has now.
    pub version: i64,
    /// True if there was none before.
    pub is_new: bool,
    /// Valid settings that an operator should know of.
    pub warnings: Vec<String>,
}

/// The registry's view of one tenant on this replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantOfBook {
    /// The tenant.
    pub id: TenantId,
    /// True if this replica serves it, as it is stored or as it was before.
    pub is_served: bool,
    /// The reason why it is not served as it is stored.
    pub trouble: Option<String>,
}

/// The tenants of the registry.
#[async_trait]
pub trait TenantBook: Send + Sync {
    /// Reads a tenant.
    async fn show(&self, id: &TenantId) -> Result<RegisteredTenant, BookProblem>;

    /// Checks and stores a document, and serves it on this replica.
    async fn put(
        &self,
        id: &TenantId,
        document: Value,
        order: ChangeOrder,
    ) -> Result<StoredTenant, BookProblem>;

    /// Deletes a tenant, and serves it no more on this replica.
    async fn delete(&self, id: &TenantId, order: ChangeOrder) -> Result<(), BookProblem>;

    /// Returns the tenants of the registry that this replica knows, by name.
    fn tenants(&self) -> Arc<Vec<TenantOfBook>>;
}
