//! Reads the rows that have changed, and checks each tenant by itself.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::book::{ReadTenant, TenantPages};
use super::{RegistryProblem, TenantRegistry, document, in_one_line, now, usable};
use crate::clock::UnixTime;
use crate::error::{Dependency, ErrorKind, StoreError};
use crate::ids::TenantId;
use crate::metrics;
use crate::stores::database::tenant_table::{NEWEST, TenantRow};
use crate::validation::check_tenant;

/// Interval at which all names and versions are compared. It finds what no counted change tells: a restored backup, and rows
/// that another program has written.
const COMPARE: Duration = Duration::from_secs(300);
/// Differences above which everything is read again instead of row by row.
const MANY: usize = 100;

/// A row that was read.
struct ReadRow {
    id: TenantId,
    version: (i64, i64),
    read: ReadTenant,
    hosts: Vec<String>,
}

impl ReadRow {
    fn record(self, pages: &mut TenantPages) {
        pages.record(self.id, self.version, self.read, self.hosts);
    }
}

impl TenantRegistry {
    /// Reads what has changed; [`TenantRegistry::has_news`] tells whether something has. The first time it looks at the tables,
    /// brings them up to date where the configuration says so, and reads all tenants.
    ///
    /// # Errors
    /// [`RegistryProblem`]; an outage may end by itself. What is known stays.
    pub async fn refresh(self: &Arc<Self>) -> Result<(), RegistryProblem> {
        let _turn = self.turn.lock().await;
        let is_first = !*self.is_read.borrow();
        if is_first {
            let mut schema = self.table.schema().await?;
            if schema.version < NEWEST && self.migrate {
                self.table.migrate(now()).await?;
                schema = self.table.schema().await?;
            }
            usable(schema)?;
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
        let stay: BTreeSet<_> = changes.rows.iter().map(|row| row.name.clone()).collect();
        let read = self.read_each(changes.rows).await?;
        let mut known = self.known.lock();
        for name in changes.deleted.iter().filter(|name| !stay.contains(*name)) {
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
        let gone = known.pages.iter().map(|(id, _)| id);
        let gone: Vec<_> = gone.filter(|id| !there.contains(id)).cloned().collect();
        for id in gone {
            known.pages.forget(&id);
        }
        for read in read {
            read.record(&mut known.pages);
        }
        (known.seen, known.compared_at) = (serial, Some(Instant::now()));
        Ok(true)
    }

    /// Compares the versions of all tenants with those that are known, and reads what differs.
    async fn compare(self: &Arc<Self>) -> Result<bool, StoreError> {
        let stored = self.table.versions().await?;
        let (differ, gone) = {
            let known = self.known.lock();
            let version = |name: &String| {
                let id: TenantId = name.parse().ok()?;
                Some((known.pages.get(&id).map(|page| page.version), id))
            };
            let ids: BTreeSet<TenantId> = { stored.iter() }
                .filter_map(|(name, _)| name.parse().ok())
                .collect();
            let differs = |(name, stored): &(String, i64)| {
                version(name).and_then(|(known, id)| (known != Some(*stored)).then_some(id))
            };
            let differ: Vec<TenantId> = stored.iter().filter_map(differs).collect();
            let gone = known.pages.iter().map(|(id, _)| id);
            let gone: Vec<_> = gone.filter(|id| !ids.contains(*id)).cloned().collect();
            (differ, gone)
        };
        if differ.len() > MANY {
            return self.read_all().await;
        }
        let mut rows = Vec::new();
        for id in &differ {
            rows.extend(self.table.one(id.as_str()).await?);
        }
        let read = self.read_each(rows).await?;
        let mut known = self.known.lock();
        let changed = !read.is_empty() || !gone.is_empty();
        gone.iter().for_each(|id| known.pages.forget(id));
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
    fn read(&self, row: &TenantRow) -> Option<ReadRow> {
        let Ok(id) = row.name.parse::<TenantId>() else {
            tracing::warn!(
                name = row.name,
                "Ignored a row of the registry: its name is not one of a tenant"
            );
            return None;
        };
        let stored = serde_json::from_str::<Value>(&row.config);
        let (read, hosts) = match stored {
            Ok(stored) => {
                // A bug that one document meets must not keep the other tenants from being read. The panic is logged.
                let reading = AssertUnwindSafe(|| self.read_document(&id, &stored));
                let read = catch_unwind(reading);
                let read =
                    read.unwrap_or_else(|_| Err("the check of its document failed".to_owned()));
                (read, document::hosts(&stored))
            }
            Err(_) => (Err("its document is no JSON".to_owned()), Vec::new()),
        };
        Some(ReadRow {
            id,
            version: (row.version, row.created_at),
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
            .map_err(|errors| in_one_line(&errors))
    }
}
