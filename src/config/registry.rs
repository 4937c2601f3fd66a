//! `[registry]`: the database with tenants.

use std::time::Duration;

use super::collection::Optional;
use super::form::{Flag, SECONDS};
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
        /// Time after which a replica lets go of a tenant of the registry that has no socket here and is not asked for: its
        /// links, subscriptions, pools and series. It is made again at its next handshake or call.
        pub keep: Duration as SECONDS => Duration::from_secs(300),
    }
}
