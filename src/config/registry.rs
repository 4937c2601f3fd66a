//! `[registry]`: the database with tenants.

use super::collection::Optional;
use super::form::Flag;
use super::secret::{OneOrMoreSecrets, Secret, SecretText};
use super::table::table;

table! {
    /// Tenants in a database, beside those of the files. They come and go by the management API while the replicas run.
    #[derive(Clone, Debug, PartialEq)]
    pub struct RegistryConfig {
        /// The database: `postgres://`, `mysql://` or `sqlite://`. Unset: there is no registry.
        pub database: Option<Secret> as Optional(SecretText) => None,
        /// The keys that seal the secrets of its tenants, each 32 random bytes as base64: `openssl rand -base64 32`. The first one
        /// seals, all of them open. At most 8.
        pub key: Vec<Secret> as OneOrMoreSecrets => Vec::new(),
        /// Bring the tables up to date at the start. Without it `serve` refuses to start with older tables, and
        /// `lockgate registry migrate` brings them up to date.
        pub migrate: bool as Flag => false,
    }
}
