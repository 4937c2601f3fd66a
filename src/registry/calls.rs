//! The calls of the management API for one tenant: show it, check and store its document, delete it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde_json::Value;

use super::{TenantRegistry, document, now};
use crate::api::{
    BookProblem, ChangeOrder, Precondition, RegisteredTenant, StoredTenant, TenantMistake,
};
use crate::config::ConfigErrors;
use crate::error::{Dependency, ErrorKind, StoreError};
use crate::heavy::spawn_nicely;
use crate::ids::TenantId;
use crate::stores::database::tenant_table::{
    ExpectedVersion, TableChange, TenantRow, WriteOutcome,
};
use crate::validation::{CheckedTenant, check_tenant_beside, plain_secrets};

/// The most mistakes that an answer lists: a document of 1 MiB can have half a million.
const MOST_MISTAKES: usize = 100;

/// A document that may be stored.
struct Storable {
    /// The document with sealed secrets.
    sealed: String,
    warnings: Vec<String>,
    /// The keys that change.
    changed: String,
}

impl From<StoreError> for BookProblem {
    fn from(error: StoreError) -> Self {
        Self::Unavailable(error)
    }
}

impl TenantRegistry {
    /// Reads a tenant, and hides its secrets.
    ///
    /// # Errors
    /// [`BookProblem`]
    pub async fn show(&self, id: &TenantId) -> Result<RegisteredTenant, BookProblem> {
        let row = self.row(id).await?.ok_or(BookProblem::NotFound)?;
        let stored = self.sealed_document(id, &row);
        Ok(RegisteredTenant {
            config: stored.map(|stored| document::hide(&stored)),
            version: row.version,
            created_at: row.created_at,
            updated_at: row.updated_at,
        })
    }

    /// Checks a document beside all tenants that are served, and stores it. `None`: others have changed something meanwhile;
    /// it is to be tried again once that is served.
    ///
    /// # Errors
    /// [`BookProblem`]
    pub async fn put(
        self: &Arc<Self>,
        id: &TenantId,
        document: Value,
        order: &ChangeOrder,
    ) -> Result<Option<StoredTenant>, BookProblem> {
        // Before anything is read, so that the check is not newer than what it claims to know.
        let seen = self.served_at.load(Ordering::Acquire);
        let row = self.row(id).await?;
        let expected = expected(&order.condition, row.as_ref())?;
        let storable = self.storable(id, document, row).await?;
        let change = TableChange {
            name: id.as_str(),
            expected,
            seen: Some(seen),
            config: Some(&storable.sealed),
            now: now(),
            actor: &order.actor,
            action: match expected {
                ExpectedVersion::Absent => "create",
                ExpectedVersion::Is(_) => "change",
            },
            detail: &storable.changed,
        };
        Ok(match self.table.write(&change).await? {
            WriteOutcome::Outdated => None,
            WriteOutcome::Stored(version) => Some(StoredTenant {
                version,
                is_new: expected == ExpectedVersion::Absent,
                warnings: storable.warnings,
            }),
        })
    }

    /// Deletes a tenant. Returns false if others have changed it meanwhile, and it is to be tried again.
    ///
    /// # Errors
    /// [`BookProblem`]
    pub async fn delete(&self, id: &TenantId, order: &ChangeOrder) -> Result<bool, BookProblem> {
        let row = self.row(id).await?.ok_or(BookProblem::NotFound)?;
        let change = TableChange {
            name: id.as_str(),
            expected: expected(&order.condition, Some(&row))?,
            // What is gone can be in no other's way.
            seen: None,
            config: None,
            now: now(),
            actor: &order.actor,
            action: "delete",
            detail: "",
        };
        Ok(self.table.write(&change).await? != WriteOutcome::Outdated)
    }

    /// Reads the row of a tenant that no file has.
    async fn row(&self, id: &TenantId) -> Result<Option<TenantRow>, BookProblem> {
        if self.is_of_files(id) {
            return Err(BookProblem::InFiles);
        }
        Ok(self.table.one(id.as_str()).await?)
    }

    /// Returns the document of a row. A secret that another program wrote there as plain text is sealed like the others.
    fn sealed_document(&self, id: &TenantId, row: &TenantRow) -> Option<Value> {
        let mut stored = row.document()?;
        let deployment = self.deployment.lock().clone();
        let plain = plain_secrets(&deployment, id, &stored, &self.consumers);
        document::seal(&mut stored, &plain, id, &self.keys);
        Some(stored)
    }

    /// Checks a document, and seals its secrets. `row` is what it replaces.
    async fn storable(
        self: &Arc<Self>,
        id: &TenantId,
        mut plain: Value,
        row: Option<TenantRow>,
    ) -> Result<Storable, BookProblem> {
        if let Some(key) = document::forged("", &plain) {
            return Err(BookProblem::Mistakes(vec![TenantMistake {
                key,
                found: "a name that marks a sealed secret".to_owned(),
                expected: "another name; secrets as texts".to_owned(),
                advice: String::new(),
            }]));
        }
        let stored = row.and_then(|row| self.sealed_document(id, &row));
        let stored = stored.unwrap_or_default();
        // Secrets that do not open cannot be kept: the caller learns where by the mistakes.
        let before = document::open(&stored, id, &self.keys).unwrap_or_default();
        document::keep(&mut plain, &stored, &before);
        let changed = match before.is_null() {
            true => String::new(),
            false => document::changed_keys(&before, &plain).join(", "),
        };
        let (registry, own) = (self.clone(), id.clone());
        let checking = spawn_nicely(move || {
            let checked = registry.check(&own, &plain);
            (checked, plain)
        });
        let (checked, mut plain) = checking.await.map_err(|_| failed())?;
        let checked = checked.map_err(|errors| BookProblem::Mistakes(mistakes(id, &errors)))?;
        document::seal(&mut plain, &checked.secret_keys, id, &self.keys);
        let warnings = checked.warnings.iter();
        let below = format!("tenants.{id}.");
        let warnings = warnings
            .map(|warning| format!("{}: {}", warning.key.replace(&below, ""), warning.text));
        Ok(Storable {
            sealed: plain.to_string(),
            warnings: warnings.collect(),
            changed,
        })
    }

    /// Checks a plain document by itself, and beside the tenants that are served.
    fn check(&self, id: &TenantId, plain: &Value) -> Result<CheckedTenant, ConfigErrors> {
        let deployment = self.deployment.lock().clone();
        let served = self.served.load();
        check_tenant_beside(&served, &deployment, (id, plain), &self.consumers)
    }
}

/// Returns the version that a change must find.
fn expected(
    condition: &Precondition,
    row: Option<&TenantRow>,
) -> Result<ExpectedVersion, BookProblem> {
    match (condition, row) {
        (Precondition::None | Precondition::Exists, Some(row)) => {
            Ok(ExpectedVersion::Is(row.version))
        }
        (Precondition::Versions(versions), Some(row)) if versions.contains(&row.version) => {
            Ok(ExpectedVersion::Is(row.version))
        }
        (Precondition::None | Precondition::Absent, None) => Ok(ExpectedVersion::Absent),
        _ => Err(BookProblem::NotAsExpected),
    }
}

/// Returns the mistakes with keys as the document has them.
fn mistakes(id: &TenantId, errors: &ConfigErrors) -> Vec<TenantMistake> {
    let own = format!("tenants.{id}");
    let relative = |key: &str| match key.strip_prefix(&own) {
        Some("") => String::new(),
        Some(below) if below.starts_with('.') => below[1..].to_owned(),
        _ => key.to_owned(),
    };
    let all = errors.mistakes();
    let told = all.iter().take(MOST_MISTAKES).map(|mistake| TenantMistake {
        key: relative(&mistake.key),
        found: mistake.found.clone(),
        expected: mistake.expected.clone(),
        advice: mistake.advice.clone(),
    });
    let more = all.len().saturating_sub(MOST_MISTAKES);
    let more = (more > 0).then(|| TenantMistake {
        key: String::new(),
        found: format!("{more} more mistakes"),
        expected: "a document without mistakes".to_owned(),
        advice: "mend these first".to_owned(),
    });
    told.chain(more).collect()
}

fn failed() -> StoreError {
    let text = "the check of the document failed";
    StoreError::new(Dependency::Database, ErrorKind::Other, text)
}
