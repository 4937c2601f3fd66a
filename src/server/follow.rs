//! The registry beside the server: its changes are looked for and served, and the management API changes it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;
use tokio::sync::{MutexGuard, Semaphore, SemaphorePermit};
use tokio::time::sleep;

use super::reload::Reloader;
use crate::api::{
    BookProblem, ChangeOrder, RegisteredTenant, StoredTenant, TenantBook, TenantOfBook,
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
    pub(super) changing: ChangeTurn,
}

/// The changes that wait for their turn. Each holds a document of up to 1 MiB.
const MOST_CHANGES: usize = 64;

/// The turn of the changes of this replica.
pub(super) struct ChangeTurn {
    turn: tokio::sync::Mutex<()>,
    places: Semaphore,
}

impl Default for ChangeTurn {
    fn default() -> Self {
        Self {
            turn: tokio::sync::Mutex::default(),
            places: Semaphore::new(MOST_CHANGES),
        }
    }
}

impl ChangeTurn {
    /// Waits for the turn of a change.
    ///
    /// # Errors
    /// Too many others wait, or the caller has gone meanwhile: a newer change may have been made elsewhere.
    async fn take(
        &self,
        order: &ChangeOrder,
    ) -> Result<(SemaphorePermit<'_>, MutexGuard<'_, ()>), BookProblem> {
        let place = self.places.try_acquire();
        let place = place.map_err(|_| not_made("too many changes of the registry wait"))?;
        let turn = self.turn.lock().await;
        order.must_be_wanted()?;
        Ok((place, turn))
    }
}

impl ChangeOrder {
    /// # Errors
    /// The caller has gone.
    fn must_be_wanted(&self) -> Result<(), BookProblem> {
        match self.is_abandoned() {
            true => Err(not_made("the caller went away before its change began")),
            false => Ok(()),
        }
    }
}

impl ServedRegistry {
    /// A change that waited for the first reading could be one that its caller has given up.
    ///
    /// # Errors
    /// The registry was never read.
    fn must_be_read(&self) -> Result<(), BookProblem> {
        match self.registry.is_read() {
            true => Ok(()),
            false => Err(not_made("the registry was not read yet")),
        }
    }

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
        order: ChangeOrder,
    ) -> Result<StoredTenant, BookProblem> {
        let _turn = self.changing.take(&order).await?;
        self.must_be_read()?;
        for tried in 0..TRIES {
            // The document is checked beside what the others have stored so far.
            self.look().await?;
            order.must_be_wanted()?;
            let put = self.registry.put(id, document.clone(), &order);
            if let Some(stored) = put.await? {
                self.look().await?;
                return Ok(stored);
            }
            wait(tried).await;
        }
        Err(busy())
    }

    async fn delete(&self, id: &TenantId, order: ChangeOrder) -> Result<(), BookProblem> {
        let _turn = self.changing.take(&order).await?;
        self.must_be_read()?;
        for tried in 0..TRIES {
            order.must_be_wanted()?;
            if self.registry.delete(id, &order).await? {
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
    not_made("the registry is changed again and again by others")
}

fn not_made(why: &'static str) -> BookProblem {
    BookProblem::Unavailable(StoreError::new(Dependency::Database, ErrorKind::Other, why))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Precondition;

    fn order(caller: &Arc<()>) -> ChangeOrder {
        ChangeOrder {
            condition: Precondition::None,
            actor: "test".to_owned(),
            caller: Arc::downgrade(caller),
        }
    }

    /// Changes whose callers had given up were made once the database answered, over newer ones of other replicas.
    #[tokio::test]
    async fn a_change_without_a_caller_is_not_begun_and_few_wait() {
        let turn = ChangeTurn::default();
        let caller = Arc::new(());
        let first = turn.take(&order(&caller)).await;
        assert!(first.is_ok());
        let given_up = Arc::new(());
        let abandoned = order(&given_up);
        let mut waiting = Box::pin(turn.take(&abandoned));
        assert!(futures_util::poll!(waiting.as_mut()).is_pending());
        drop((given_up, first));
        assert!(waiting.await.is_err());
        let _all = turn.places.acquire_many(MOST_CHANGES as u32).await;
        assert!(turn.take(&order(&caller)).await.is_err(), "no place");
    }
}
