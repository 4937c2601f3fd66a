//! The registry beside the server: its changes are looked for and served, and the management API changes it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;
use tokio::time::sleep;

use super::reload::Reloader;
use crate::api::{
    BookProblem, Precondition, RegisteredTenant, StoredTenant, TenantBook, TenantOfBook,
};
use crate::error::{Dependency, ErrorKind, StoreError};
use crate::ids::TenantId;
use crate::registry::{RegistryProblem, TenantRegistry};

/// Interval at which the registry is looked at. An announcement is faster; this is for those that were missed.
const LOOK: Duration = Duration::from_secs(10);
/// Pause after a registry that could not be read.
const RETRY: Duration = Duration::from_secs(2);

/// Looks for changes of the registry again and again, and serves them.
pub(super) async fn run(reloader: Arc<Reloader>) -> Infallible {
    let mut told: Option<String> = None;
    loop {
        match reloader.look().await {
            Ok(()) => {
                if told.take().is_some() {
                    tracing::info!("The registry of tenants can be read again");
                }
                // Random pauses keep the replicas apart.
                sleep(LOOK.mul_f64(0.9 + 0.2 * rand::random::<f64>())).await;
            }
            Err(problem) => {
                let text = problem.to_string();
                if told.as_ref() != Some(&text) {
                    tracing::error!(
                        error = text,
                        "The registry of tenants cannot be read; the tenants that are known are served"
                    );
                    told = Some(text);
                }
                sleep(RETRY).await;
            }
        }
    }
}

/// Tries to make a change while other replicas make theirs.
const TRIES: u32 = 10;
/// Pause after the first try; the later ones are longer.
const AGAIN: Duration = Duration::from_millis(20);

/// The registry for the management API.
pub(super) struct ServedRegistry {
    pub(super) registry: Arc<TenantRegistry>,
    pub(super) reloader: Arc<Reloader>,
    /// Serializes the changes of this replica, so that they do not outdate each other.
    pub(super) changing: tokio::sync::Mutex<()>,
}

impl ServedRegistry {
    /// Reads what others have changed, and serves it.
    async fn look(&self) -> Result<(), BookProblem> {
        self.reloader.look().await.map_err(|problem| {
            BookProblem::Unavailable(match problem {
                RegistryProblem::Store(error) => error,
                other => StoreError::new(Dependency::Database, ErrorKind::Other, other.to_string()),
            })
        })
    }
}

#[async_trait]
impl TenantBook for ServedRegistry {
    async fn show(&self, id: &TenantId) -> Result<RegisteredTenant, BookProblem> {
        self.registry.show(id).await
    }

    async fn put(
        &self,
        id: &TenantId,
        document: Value,
        condition: Precondition,
        actor: &str,
    ) -> Result<StoredTenant, BookProblem> {
        let _turn = self.changing.lock().await;
        for tried in 0..TRIES {
            // The document is checked beside what the others have stored so far.
            self.look().await?;
            let put = self.registry.put(id, document.clone(), condition, actor);
            if let Some(stored) = put.await? {
                self.look().await?;
                return Ok(stored);
            }
            wait(tried).await;
        }
        Err(busy())
    }

    async fn delete(
        &self,
        id: &TenantId,
        condition: Precondition,
        actor: &str,
    ) -> Result<(), BookProblem> {
        let _turn = self.changing.lock().await;
        for tried in 0..TRIES {
            if self.registry.delete(id, condition, actor).await? {
                return self.look().await;
            }
            wait(tried).await;
        }
        Err(busy())
    }

    fn tenants(&self) -> Arc<Vec<TenantOfBook>> {
        self.registry.standings()
    }
}

/// Lets the others finish. Random pauses keep replicas from outdating each other again and again.
async fn wait(tried: u32) {
    sleep(AGAIN.mul_f64(f64::from(tried + 1) * rand::random::<f64>())).await;
}

fn busy() -> BookProblem {
    let text = "the registry is changed again and again by others";
    let error = StoreError::new(Dependency::Database, ErrorKind::Other, text);
    BookProblem::Unavailable(error)
}
