//! The work of the command line on the tables: migrations, and the change of the key that seals.

use super::{RegistryProblem, document, now, parts, usable};
use crate::config::Config;
use crate::consumer::Registry;
use crate::ids::TenantId;
use crate::sealing::SealingKeys;
use crate::stores::database::tenant_table::{
    ExpectedVersion, NEWEST, TableChange, TenantRow, TenantTable, WriteOutcome,
};
use crate::validation::plain_secrets;

/// The name of the command line in the audit.
const AT_A_TERMINAL: &str = "the command line";
/// Tries to change a tenant that others change at the same time.
const TRIES: usize = 5;

/// Brings the tables up to date. Returns the versions before and after.
///
/// # Errors
/// [`RegistryProblem`]
pub async fn migrate(config: &Config) -> Result<(i64, i64), RegistryProblem> {
    let (table, _) = parts(config)?;
    let before = table.schema().await?;
    if before.readable_by > NEWEST {
        return Err(RegistryProblem::Ahead(before.version));
    }
    table.migrate(now()).await?;
    Ok((before.version, table.schema().await?.version))
}

/// The outcome of [`reseal`].
#[derive(Debug, Default)]
pub struct Resealed {
    /// The tenants whose secrets have all been sealed with the first key before.
    pub current: usize,
    /// The tenants whose secrets are sealed with the first key now.
    pub resealed: usize,
    /// The tenants that could not be resealed, with the reasons.
    pub failed: Vec<(String, String)>,
}

/// Seals the secrets of all tenants with the first key.
///
/// # Errors
/// [`RegistryProblem`]; tenants before it are resealed, and it can be tried again.
pub async fn reseal(config: &Config) -> Result<Resealed, RegistryProblem> {
    let (table, keys) = parts(config)?;
    usable(table.schema().await?)?;
    let mut outcome = Resealed::default();
    let mut rows = table.tenants();
    while let Some(part) = rows.next_part().await? {
        for row in part {
            let name = row.name.clone();
            match reseal_one(&table, (&keys, config), row).await? {
                Ok(true) => outcome.resealed += 1,
                Ok(false) => outcome.current += 1,
                Err(why) => outcome.failed.push((name, why)),
            }
        }
    }
    Ok(outcome)
}

/// Reseals one tenant. Returns false if its secrets were sealed with the first key already.
async fn reseal_one(
    table: &TenantTable,
    (keys, config): (&SealingKeys, &Config),
    mut row: TenantRow,
) -> Result<Result<bool, String>, RegistryProblem> {
    for _ in 0..TRIES {
        let Ok(id) = row.name.parse::<TenantId>() else {
            return Ok(Err("its name is not one of a tenant".to_owned()));
        };
        let Some(mut stored) = row.document() else {
            return Ok(Err(
                "its document is no JSON, or longer than 2 MiB".to_owned()
            ));
        };
        // Secrets that another program wrote as plain text.
        let plain = plain_secrets(config, &id, &stored, &Registry::default());
        document::seal(&mut stored, &plain, &id, keys);
        let document = match document::reseal(&stored, &id, keys) {
            Ok(Some(document)) => document.to_string(),
            Ok(None) if !plain.is_empty() => stored.to_string(),
            Ok(None) => return Ok(Ok(false)),
            Err(error) => return Ok(Err(error.to_string())),
        };
        let change = TableChange {
            name: id.as_str(),
            expected: ExpectedVersion::Is(row.version),
            seen: None,
            config: Some(&document),
            now: now(),
            actor: AT_A_TERMINAL,
            action: "reseal",
            detail: "",
        };
        if let WriteOutcome::Stored(_) = table.write(&change).await? {
            return Ok(Ok(true));
        }
        // The API has changed or deleted it meanwhile.
        match table.one(id.as_str()).await? {
            Some(newer) => row = newer,
            None => return Ok(Ok(false)),
        }
    }
    Ok(Err("it was changed again and again; try again".to_owned()))
}
