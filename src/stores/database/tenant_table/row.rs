//! The rows of the registry's tables, read and written.

/// One tenant as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantRow {
    /// Its name; any text that fits, if others than Lockgate write the table.
    pub name: String,
    /// The document, which should be JSON. Its secrets are sealed.
    ///
    /// `None`: it is no text, or longer than 2 MiB.
    pub config: Option<String>,
    /// It rises with every change, and no later tenant of this name has it again.
    pub version: i64,
    /// The number of the change that made it.
    pub made: i64,
    /// The time of its first version, in Unix seconds.
    pub created_at: i64,
    /// The time of its last change, in Unix seconds.
    pub updated_at: i64,
}

impl TenantRow {
    /// Returns its document; `None` if it is no JSON.
    pub fn document(&self) -> Option<serde_json::Value> {
        serde_json::from_str(self.config.as_deref()?).ok()
    }
}

/// The bytes of the documents behind which a part ends early.
const PART_BYTES: usize = 16 * 1024 * 1024;

/// Some rows, as they are read.
#[derive(Debug, Default)]
pub(super) struct RowPart {
    pub(super) rows: Vec<TenantRow>,
    /// The number of rows, also of those that cannot be read.
    pub(super) found: usize,
    /// The number of the change that made the last one.
    pub(super) serial: i64,
    /// Bytes of the documents.
    bytes: usize,
}

impl RowPart {
    /// Takes a row, `None` if it cannot be read, and the number of the change that made it.
    pub(super) fn add(&mut self, row: Option<TenantRow>, serial: Option<i64>) {
        self.found += 1;
        self.serial = serial.unwrap_or(self.serial);
        let document = row.as_ref().and_then(|row| row.config.as_ref());
        self.bytes += document.map_or(0, String::len);
        self.rows.extend(row);
    }

    /// Returns true if no more rows should be read.
    pub(super) fn is_full(&self) -> bool {
        self.bytes > PART_BYTES
    }
}

/// The place of a reader that takes all rows in parts, in the order of their names.
#[derive(Debug)]
pub(super) struct RowPlace {
    /// The name after which the next part begins. `None`: there is none.
    pub after: Option<String>,
}

impl RowPlace {
    /// Returns the place before the first row.
    pub(super) fn first() -> Self {
        let after = Some(String::new());
        Self { after }
    }

    /// Moves behind a part whose last readable row has this name, and that has so many rows where at most so many were
    /// asked for.
    pub(super) fn pass(&mut self, last: Option<&String>, (found, most): (usize, i64)) {
        // A part without one readable name leads no further.
        self.after = last.filter(|_| found as i64 >= most).cloned();
    }
}

/// The version of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SchemaVersion {
    /// The newest migration that was made; 0: none.
    pub version: i64,
    /// The oldest version whose binaries can work with the tables.
    pub readable_by: i64,
}

/// The changes since a number.
#[derive(Debug, Default)]
pub struct TableChanges {
    /// The tenants that were added or changed, as they are now.
    pub rows: Vec<TenantRow>,
    /// The names of those that were deleted.
    pub deleted: Vec<String>,
    /// The number of the last change among them.
    pub until: i64,
}

/// The version that a change expects to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpectedVersion {
    /// There is no such tenant.
    Absent,
    /// This one.
    Is(i64),
}

/// One change of one tenant.
#[derive(Clone, Copy, Debug)]
pub struct TableChange<'c> {
    /// The tenant's name.
    pub name: &'c str,
    /// The version that it must have.
    pub expected: ExpectedVersion,
    /// The number of the last change that the writer knows of; `None` if it does not matter. A document that was checked
    /// beside others may not fit beside what has come since.
    pub seen: Option<i64>,
    /// The new document; `None` deletes the tenant.
    pub config: Option<&'c str>,
    /// The time, in Unix seconds.
    pub now: i64,
    /// The operator who changes it, for the audit.
    pub actor: &'c str,
    /// The word for the change in the audit.
    pub action: &'static str,
    /// The keys that change, without any secret, for the audit.
    pub detail: &'c str,
}

/// The result of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteOutcome {
    /// It is stored, and the tenant has this version now.
    Stored(i64),
    /// The tenant has another version than was expected, or others have changed since `seen`; nothing was changed.
    Outdated,
}
