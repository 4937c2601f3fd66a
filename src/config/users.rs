//! `[tenants.NAME.users]`: the source of users, and the lifetime of cached records.

use std::time::Duration;

use super::collection::{List, Optional, nested};
use super::form::{ANY_SPAN, SECONDS, Text, choice, count};
use super::secret::{Secret, SecretText};
use super::table::{table, words};
use super::tls::{Authorities, AuthorityPem, Verify};

table! {
    /// The source of users, and the lifetime of cached records.
    #[derive(Clone, Debug, PartialEq)]
    pub struct UsersConfig {
        /// `"database"`, or `"claims"`: the verified claims of the token are the user's fields, `id` is the user-id claim, and neither a
        /// database nor a cached record is read. `is_active` is then not known and not checked. A database is set only for `authorize`.
        pub source: UsersFrom as choice() => UsersFrom::Database,
        /// The database: `postgres://`, `mysql://` or `sqlite://`.
        pub database: Option<Secret> as Optional(SecretText) => None,
        /// Certificate authorities of the database, besides the system's and those of `[tls]`. With them alone `verify` is `"full"`,
        /// unless the URL has an `sslmode` that verifies.
        pub ca: Vec<Authorities> as List(AuthorityPem) => Vec::new(),
        /// The part of the server's certificate that is checked: the chain and the name, the chain alone, or nothing. Each encrypts.
        /// Unset: as `sslmode` of the URL says, which checks nothing unless it is `verify-ca` or `verify-full`.
        pub verify: Option<Verify> as Optional(choice()) => None,
        /// A table with the columns of Django's `auth_user`; `query` replaces it.
        pub table: String as Text => "auth_user".to_owned(),
        /// A statement with `:user_ids` (`… WHERE id IN (:user_ids)`) that returns at least `id` and `is_active`. On PostgreSQL, MySQL and
        /// MariaDB it stands in a subquery, where `SQL_NO_CACHE` and `SQL_CALC_FOUND_ROWS` cannot. Two columns of one name take MySQL 8.0
        /// or MariaDB 10.2. It has at most 1,024 columns.
        pub query: Option<String> as Optional(Text) => None,
        /// The type of ids.
        pub id_type: IdType as choice() => IdType::Int,
        /// The connections to the database.
        pub pool: PoolConfig as nested() => PoolConfig::default(),
        /// Time for which a record is fresh. A longer one spares the database, but a disabled user stays in for up to this time.
        pub cache_ttl: Duration as SECONDS => Duration::from_secs(300),
        /// Time for which a record may be used while the database is down, or does not answer within half a second.
        pub stale_ttl: Duration as SECONDS => Duration::from_secs(3600),
        /// Time for which the absence of a user is remembered, and that a row cannot be used: two rows, or over 64 KiB of columns.
        pub negative_ttl: Duration as SECONDS => Duration::from_secs(10),
        /// Time for which this process uses a record without asking Redis. `0s`: it always asks.
        pub local_ttl: Duration as ANY_SPAN => Duration::from_secs(5),
        /// Time for which the result of a route's `authorize` is kept. `0s`: it is asked every time.
        pub authorize_ttl: Duration as ANY_SPAN => Duration::from_secs(10),
    }
}

table! {
    /// The connections to one tenant's database.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct PoolConfig {
        /// Most connections at the same time.
        pub max: u32 as count(1) => 4,
        /// Idle time after which a connection is closed.
        pub idle: Duration as SECONDS => Duration::from_secs(30),
    }
}

words! {
    /// The place that holds users.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum UsersFrom {
        /// The tenant's database.
        Database = "database",
        /// The claims of the token.
        Claims = "claims",
    }
}

words! {
    /// The type of the ids of users.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum IdType {
        /// Integers.
        Int = "int",
        /// UUIDs.
        Uuid = "uuid",
        /// Any text.
        Text = "text",
    }
}
