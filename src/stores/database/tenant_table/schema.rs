//! The tables of the registry, as a list of migrations that the binary carries.
//!
//! It replaces sqlx's migrator, which takes one text for one kind of database and cannot say that an older binary may go
//! on with newer tables, as it does during a rollout.

use super::super::statement::Dialect;

/// One step from the tables of a version to those of the next.
pub(super) struct Migration {
    /// The version that it makes.
    pub(super) version: i64,
    /// The oldest version whose binaries can work with the new tables.
    pub(super) readable_by: i64,
    /// Statements, each of which may run again: MySQL does not undo a `CREATE` whose migration fails later.
    pub(super) statements: &'static [&'static str],
}

/// The version that this binary makes and works with.
pub const NEWEST: i64 = 1;

/// All migrations, oldest first. A released one never changes.
///
/// `{text}` is a text of any length, `{index}` an index within the table, which only MySQL needs there.
pub(super) const MIGRATIONS: &[Migration] = &[Migration {
    version: 1,
    readable_by: 1,
    statements: &[
        "CREATE TABLE IF NOT EXISTS lockgate_tenant (\
         name VARCHAR(63) NOT NULL PRIMARY KEY, \
         config {text} NOT NULL, \
         version BIGINT NOT NULL, \
         created_at BIGINT NOT NULL, \
         updated_at BIGINT NOT NULL, \
         serial BIGINT NOT NULL{index lockgate_tenant_serial (serial)})",
        "{create index}lockgate_tenant_serial ON lockgate_tenant (serial)",
        "CREATE TABLE IF NOT EXISTS lockgate_tenant_audit (\
         serial BIGINT NOT NULL PRIMARY KEY, \
         changed_at BIGINT NOT NULL, \
         tenant VARCHAR(63) NOT NULL, \
         actor VARCHAR(100) NOT NULL, \
         action VARCHAR(16) NOT NULL, \
         detail {text} NOT NULL)",
        "CREATE TABLE IF NOT EXISTS lockgate_registry (\
         id BIGINT NOT NULL PRIMARY KEY, \
         serial BIGINT NOT NULL)",
        "DELETE FROM lockgate_registry",
        "INSERT INTO lockgate_registry (id, serial) \
         SELECT 1, COALESCE(MAX(serial), 0) FROM lockgate_tenant_audit",
    ],
}];

/// The table that says which migrations were made.
pub(super) const SCHEMA_TABLE: &str = "CREATE TABLE IF NOT EXISTS lockgate_registry_schema (\
     version BIGINT NOT NULL PRIMARY KEY, \
     readable_by BIGINT NOT NULL, \
     applied_at BIGINT NOT NULL)";

/// Returns a statement in the words of a database; `None` if the database does not need it.
pub(super) fn worded(statement: &str, dialect: Dialect) -> Option<String> {
    let is_mysql = dialect == Dialect::MySql;
    if is_mysql && statement.starts_with("{create index}") {
        return None;
    }
    let text = match is_mysql {
        true => "MEDIUMTEXT CHARACTER SET utf8mb4",
        false => "TEXT",
    };
    let statement = statement.replace("{text}", text);
    let statement = statement.replace("{create index}", "CREATE INDEX IF NOT EXISTS ");
    let Some((before, rest)) = statement.split_once("{index ") else {
        return Some(statement);
    };
    let (index, after) = rest.split_once('}')?;
    Some(match is_mysql {
        true => format!("{before}, INDEX {index}{after}"),
        false => format!("{before}{after}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_migrations_lead_to_the_newest_version_one_by_one() {
        let versions: Vec<_> = MIGRATIONS.iter().map(|step| step.version).collect();
        assert_eq!(versions, (1..=NEWEST).collect::<Vec<_>>());
        for step in MIGRATIONS {
            assert!(step.readable_by <= step.version);
            for dialect in [Dialect::Postgres, Dialect::MySql, Dialect::Sqlite] {
                let worded = step.statements.iter().filter_map(|s| worded(s, dialect));
                assert!(worded.into_iter().all(|s| !s.contains(['{', '}'])));
            }
        }
    }
}
