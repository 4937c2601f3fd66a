//! Reads the rows that have changed, and checks each tenant by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::task::{JoinHandle, spawn_blocking};

use super::book::{ReadTenant, StoredState, TenantPages};
use super::{KnownTenants, RegistryProblem, TenantRegistry, document, now, usable};
use crate::clock::UnixTime;
use crate::config::{Config, TenantConfig};
use crate::error::{Dependency, ErrorKind, StoreError};
use crate::heavy::spawn_nicely;
use crate::ids::TenantId;
use crate::metrics;
use crate::stores::database::tenant_table::{NEWEST, TenantRow};
use crate::tenant::Making;
use crate::validation::{WrongTenant, check_tenant};

/// Interval at which all names and versions are compared. It finds what no counted change tells: a restored backup, and rows
/// that another program has written.
const COMPARE: Duration = Duration::from_secs(300);
/// Differences above which everything is read again instead of row by row.
const MANY: usize = 100;
/// The most changes that are read at once. Everything is read again above them, where there are more changes than tenants.
const MOST_CHANGES: i64 = 2_000;

/// A row that was read.
pub(super) struct ReadRow {
    pub(super) id: TenantId,
    stored: StoredState,
    pub(super) read: ReadTenant,
}

impl ReadRow {
    fn record(self, pages: &mut TenantPages) {
        pages.record(self.id, self.stored, self.read);
    }
}

impl TenantRegistry {
    /// Looks at the tables, and brings them up to date where the configuration says so.
    ///
    /// # Errors
    /// [`RegistryProblem`]; an outage may end by itself.
    pub async fn prepare(&self) -> Result<(), RegistryProblem> {
        let mut schema = self.table.schema().await?;
        if schema.version < NEWEST && self.migrate {
            self.table.migrate(now()).await?;
            schema = self.table.schema().await?;
        }
        usable(schema)
    }

    /// Reads what has changed; [`TenantRegistry::has_news`] tells whether something has. The first time it prepares the
    /// tables, and reads all tenants.
    ///
    /// # Errors
    /// [`RegistryProblem`]; an outage may end by itself. What is known stays, and what was read before the error is news.
    pub async fn refresh(self: &Arc<Self>) -> Result<(), RegistryProblem> {
        let _turn = self.turn.lock().await;
        if !self.is_read() {
            self.prepare().await?;
        }
        let (seen, compared_at) = {
            let known = self.known.lock();
            (known.seen, known.compared_at)
        };
        match compared_at {
            None => self.read_all().await?,
            Some(at) => {
                self.read_changes(seen).await?;
                if at.elapsed() >= COMPARE {
                    self.compare().await?;
                }
            }
        }
        metrics::registry_read(UnixTime::now().0);
        Ok(())
    }

    async fn read_changes(self: &Arc<Self>, seen: i64) -> Result<(), StoreError> {
        let serial = self.table.serial().await?;
        if serial < seen {
            tracing::warn!(
                "The registry has an older state than a moment ago; it is read as a whole"
            );
        }
        let tenants = self.known.lock().pages.iter().count() as i64;
        if serial < seen || serial - seen > MOST_CHANGES.max(tenants) {
            return self.read_all().await;
        }
        let mut seen = seen;
        while seen < serial {
            let changes = self.table.changes(seen, serial.min(seen + MOST_CHANGES));
            let changes = changes.await?;
            let until = changes.until;
            let deployment = self.deployment.lock().clone();
            let read = self.read_rows(changes.rows, &deployment).await?;
            let taken = self.take_in(read, move |known, read| {
                // Also those that were made again since: the makings of their rows say so.
                let there: BTreeSet<_> = read.iter().map(|read| read.id.as_str()).collect();
                let gone = { changes.deleted.iter() }.filter(|name| !there.contains(name.as_str()));
                for id in gone.filter_map(|name| name.parse().ok()) {
                    known.pages.forget(&id);
                }
                known.seen = until;
                true
            });
            taken.await?;
            seen = until;
        }
        Ok(())
    }

    async fn read_all(self: &Arc<Self>) -> Result<(), StoreError> {
        // Read first: what changes meanwhile has a higher number and is read again.
        let serial = self.table.serial().await?;
        let deployment = self.deployment.lock().clone();
        let (mut read, mut rows) = (Vec::new(), self.table.tenants());
        // Each part's documents go before the next one comes: those of ten thousand tenants take as much memory as the tenants.
        while let Some(part) = rows.next_part().await? {
            read.extend(self.read_rows(part, &deployment).await?);
        }
        let registry = self.clone();
        self.take_in(read, move |known, read| {
            let there: BTreeSet<_> = read.iter().map(|read| &read.id).collect();
            known.pages.keep(|id| there.contains(id));
            known.seen = serial;
            // Rows that were checked beside another deployment than the present one are read again.
            let is_same = **registry.deployment.lock() == *deployment;
            known.compared_at = is_same.then(Instant::now);
            // Under the lock under which the pages are taken, so that none of them counts as complete without these.
            registry.is_read.send_replace(true);
            true
        })
        .await
    }

    /// Compares the versions of all tenants with those that are known, and reads what differs.
    async fn compare(self: &Arc<Self>) -> Result<(), StoreError> {
        let stored = self.table.versions().await?;
        let registry = self.clone();
        let compared = beside_sockets(move || {
            let named = stored.into_iter();
            let named = named.filter_map(|(name, version)| Some((name.parse().ok()?, version)));
            let there: BTreeMap<TenantId, i64> = named.collect();
            let known = registry.known.lock();
            let version = |id: &TenantId| known.pages.get(id).map(|page| page.stored.version);
            let differs = |(id, stored): &(&TenantId, &i64)| version(id) != Some(**stored);
            let differ = there.iter().filter(differs);
            let differ: Vec<TenantId> = differ.map(|(id, _)| id.clone()).collect();
            drop(known);
            (there, differ)
        });
        let (there, differ) = compared.await?;
        if differ.len() > MANY {
            return self.read_all().await;
        }
        let deployment = self.deployment.lock().clone();
        let mut read = Vec::new();
        // One document at a time: a hundred of 2 MiB are much beside the tenants that they make.
        for id in differ {
            let row = self.table.one(id.as_str()).await?;
            read.extend(
                self.read_rows(row.into_iter().collect(), &deployment)
                    .await?,
            );
        }
        self.take_in(read, move |known, read| {
            // `None`: the deployment has changed meanwhile, and everything is read again.
            known.compared_at = known.compared_at.map(|_| Instant::now());
            known.pages.keep(|id| there.contains_key(id)) || !read.is_empty()
        })
        .await
    }

    /// Reads and checks rows, beside the threads that serve sockets: ten thousand take seconds.
    async fn read_rows(
        self: &Arc<Self>,
        rows: Vec<TenantRow>,
        deployment: &Arc<Config>,
    ) -> Result<Vec<ReadRow>, StoreError> {
        let (registry, deployment) = (self.clone(), deployment.clone());
        let reading = spawn_nicely(move || {
            let rows = rows.iter();
            rows.filter_map(|row| registry.read(row, &deployment))
                .collect()
        });
        end_of(reading).await
    }

    /// Takes in what was read, after `note`, which returns true where something has changed.
    async fn take_in(
        self: &Arc<Self>,
        read: Vec<ReadRow>,
        note: impl FnOnce(&mut KnownTenants, &[ReadRow]) -> bool + Send + 'static,
    ) -> Result<(), StoreError> {
        let registry = self.clone();
        beside_sockets(move || {
            let mut known = registry.known.lock();
            let is_news = note(&mut known, &read);
            known.is_new |= is_news;
            read.into_iter()
                .for_each(|read| read.record(&mut known.pages));
        })
        .await
    }

    /// Reads and checks one row. `None`, and a line in the log, for a name that no tenant can have.
    pub(super) fn read(&self, row: &TenantRow, deployment: &Config) -> Option<ReadRow> {
        let Ok(id) = row.name.parse::<TenantId>() else {
            tracing::warn!(
                name = row.name,
                "Ignored a row of the registry: its name is not one of a tenant"
            );
            return None;
        };
        let stored = row.document();
        let read = match stored {
            Some(stored) => {
                // A bug that one document meets must not keep the other tenants from being read. The panic is logged.
                let reading = AssertUnwindSafe(|| self.read_document(&id, &stored, deployment));
                let read = catch_unwind(reading);
                let read =
                    read.unwrap_or_else(|_| Err("the check of its document failed".to_owned()));
                read.map_err(|why| WrongTenant {
                    why,
                    hosts: document::hosts(&stored),
                })
            }
            None => Err(WrongTenant {
                why: "its document is no JSON, or longer than 2 MiB".to_owned(),
                hosts: Vec::new(),
            }),
        };
        Some(ReadRow {
            id,
            stored: StoredState {
                version: row.version,
                making: Making {
                    serial: row.made,
                    created_at: row.created_at,
                },
            },
            read,
        })
    }

    fn read_document(
        &self,
        id: &TenantId,
        stored: &Value,
        deployment: &Config,
    ) -> Result<Arc<TenantConfig>, String> {
        let plain = document::open(stored, id, &self.keys);
        let plain = plain.map_err(|error| format!("a secret does not open: {error}"))?;
        let checked = check_tenant(deployment, id, &plain, &self.consumers);
        checked
            .map(|checked| checked.config)
            .map_err(|errors| errors.in_one_line())
    }
}

/// Does work of milliseconds beside the threads that serve sockets. It has their priority, since calls of the API wait for its lock.
async fn beside_sockets<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, StoreError> {
    end_of(spawn_blocking(work)).await
}

async fn end_of<T>(work: JoinHandle<T>) -> Result<T, StoreError> {
    work.await.map_err(|_| {
        let text = "the rows were not read";
        StoreError::new(Dependency::Database, ErrorKind::Other, text)
    })
}
