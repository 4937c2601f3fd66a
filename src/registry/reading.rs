//! Reads the rows that have changed, and checks each tenant by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::book::{ReadTenant, StoredState, TenantPages};
use super::{RegistryProblem, TenantRegistry, document, now, usable};
use crate::clock::UnixTime;
use crate::error::{Dependency, ErrorKind, StoreError};
use crate::ids::TenantId;
use crate::metrics;
use crate::stores::database::tenant_table::{NEWEST, TenantRow};
use crate::tenant::Making;
use crate::validation::check_tenant;

/// Interval at which all names and versions are compared. It finds what no counted change tells: a restored backup, and rows
/// that another program has written.
const COMPARE: Duration = Duration::from_secs(300);
/// Differences above which everything is read again instead of row by row.
const MANY: usize = 100;

/// A row that was read.
pub(super) struct ReadRow {
    pub(super) id: TenantId,
    stored: StoredState,
    pub(super) read: ReadTenant,
    hosts: Vec<String>,
}

impl ReadRow {
    fn record(self, pages: &mut TenantPages) {
        pages.record(self.id, self.stored, self.read, self.hosts);
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
    /// [`RegistryProblem`]; an outage may end by itself. What is known stays.
    pub async fn refresh(self: &Arc<Self>) -> Result<(), RegistryProblem> {
        let _turn = self.turn.lock().await;
        let is_first = !*self.is_read.borrow();
        if is_first {
            self.prepare().await?;
        }
        let (seen, compared_at) = {
            let known = self.known.lock();
            (known.seen, known.compared_at)
        };
        let changed = match compared_at {
            Some(at) if at.elapsed() < COMPARE => self.read_changes(seen).await?,
            Some(_) => self.read_changes(seen).await? | self.compare().await?,
            None => self.read_all().await?,
        };
        self.is_read.send_replace(true);
        metrics::registry_read(UnixTime::now().0);
        let mut known = self.known.lock();
        known.is_new |= changed || is_first;
        Ok(())
    }

    async fn read_changes(self: &Arc<Self>, seen: i64) -> Result<bool, StoreError> {
        let Some(changes) = self.table.changes(seen).await? else {
            return Ok(false);
        };
        if changes.serial < seen {
            tracing::warn!(
                "The registry has an older state than a moment ago; it is read as a whole"
            );
            return self.read_all().await;
        }
        let read = self.read_each(changes.rows).await?;
        let mut known = self.known.lock();
        // Also those that were made again since: the makings of their rows say so.
        let there: BTreeSet<_> = read.iter().map(|read| read.id.as_str()).collect();
        for name in { changes.deleted.iter() }.filter(|name| !there.contains(name.as_str())) {
            if let Ok(id) = name.parse() {
                known.pages.forget(&id);
            }
        }
        for read in read {
            read.record(&mut known.pages);
        }
        known.seen = changes.serial;
        Ok(true)
    }

    async fn read_all(self: &Arc<Self>) -> Result<bool, StoreError> {
        let (rows, serial) = self.table.all().await?;
        let read = self.read_each(rows).await?;
        let mut known = self.known.lock();
        let there: BTreeSet<_> = read.iter().map(|read| &read.id).collect();
        known.pages.keep(|id| there.contains(id));
        for read in read {
            read.record(&mut known.pages);
        }
        (known.seen, known.compared_at) = (serial, Some(Instant::now()));
        Ok(true)
    }

    /// Compares the versions of all tenants with those that are known, and reads what differs.
    async fn compare(self: &Arc<Self>) -> Result<bool, StoreError> {
        let stored = self.table.versions().await?;
        let named = stored.into_iter();
        let named = named.filter_map(|(name, version)| Some((name.parse().ok()?, version)));
        let there: BTreeMap<TenantId, i64> = named.collect();
        let differ: Vec<&TenantId> = {
            let known = self.known.lock();
            let version = |id: &TenantId| known.pages.get(id).map(|page| page.stored.version);
            let differs = |(id, stored): &(&TenantId, &i64)| version(id) != Some(**stored);
            there.iter().filter(differs).map(|(id, _)| id).collect()
        };
        if differ.len() > MANY {
            return self.read_all().await;
        }
        let mut rows = Vec::new();
        for id in differ {
            rows.extend(self.table.one(id.as_str()).await?);
        }
        let read = self.read_each(rows).await?;
        let mut known = self.known.lock();
        let changed = known.pages.keep(|id| there.contains_key(id)) || !read.is_empty();
        read.into_iter()
            .for_each(|read| read.record(&mut known.pages));
        known.compared_at = Some(Instant::now());
        Ok(changed)
    }

    /// Reads and checks rows, beside the threads that serve sockets: ten thousand take seconds.
    async fn read_each(self: &Arc<Self>, rows: Vec<TenantRow>) -> Result<Vec<ReadRow>, StoreError> {
        let registry = self.clone();
        let read = tokio::task::spawn_blocking(move || {
            rows.iter().filter_map(|row| registry.read(row)).collect()
        });
        read.await.map_err(|_| {
            let text = "the rows were not read";
            StoreError::new(Dependency::Database, ErrorKind::Other, text)
        })
    }

    /// Reads and checks one row. `None`, and a line in the log, for a name that no tenant can have.
    pub(super) fn read(&self, row: &TenantRow) -> Option<ReadRow> {
        let Ok(id) = row.name.parse::<TenantId>() else {
            tracing::warn!(
                name = row.name,
                "Ignored a row of the registry: its name is not one of a tenant"
            );
            return None;
        };
        let stored = row.document();
        let (read, hosts) = match stored {
            Some(stored) => {
                // A bug that one document meets must not keep the other tenants from being read. The panic is logged.
                let reading = AssertUnwindSafe(|| self.read_document(&id, &stored));
                let read = catch_unwind(reading);
                let read =
                    read.unwrap_or_else(|_| Err("the check of its document failed".to_owned()));
                (read, document::hosts(&stored))
            }
            None => (Err("its document is no JSON".to_owned()), Vec::new()),
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
            hosts,
        })
    }

    fn read_document(&self, id: &TenantId, stored: &Value) -> ReadTenant {
        let plain = document::open(stored, id, &self.keys);
        let plain = plain.map_err(|error| format!("a secret does not open: {error}"))?;
        let deployment = self.deployment.lock().clone();
        let checked = check_tenant(&deployment, id, &plain, &self.consumers);
        checked
            .map(|checked| checked.config)
            .map_err(|errors| errors.in_one_line())
    }
}
