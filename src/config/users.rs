//! `[tenants.NAME.users]`: where users are looked up, and how long what was found is believed.

use std::time::Duration;

use super::collection::{Optional, nested};
use super::form::{ANY_SPAN, SECONDS, Text, choice, count};
use super::secret::{Secret, SecretText};
use super::table::{table, words};

table! {
    /// The source of users, and how long a record is believed.
    #[derive(Clone, Debug, PartialEq)]
    pub struct UsersConfig {
        /// The database: `postgres://`, `mysql://` or `sqlite://`.
        pub database: Option<Secret> as Optional(SecretText) => None,
        /// A table with the columns of Django's `auth_user`; `query` replaces it.
        pub table: String as Text => "auth_user".to_owned(),
        /// A statement with `:user_ids` (`… WHERE id IN (:user_ids)`) that returns at least `id` and `is_active`.
        pub query: Option<String> as Optional(Text) => None,
        /// The type of ids.
        pub id_type: IdType as choice() => IdType::Int,
        /// The connections to the database.
        pub pool: PoolConfig as nested() => PoolConfig::default(),
        /// How long a record is fresh. Longer spares the database; a disabled user stays in for up to this long.
        pub cache_ttl: Duration as SECONDS => Duration::from_secs(300),
        /// How long a record may serve when the database is down.
        pub stale_ttl: Duration as SECONDS => Duration::from_secs(3600),
        /// How long it is remembered that a user does not exist.
        pub negative_ttl: Duration as SECONDS => Duration::from_secs(10),
        /// How long this process remembers a record without asking Redis. `0s`: not at all.
        pub local_ttl: Duration as ANY_SPAN => Duration::from_secs(5),
        /// How long the verdict of a route's `authorize` holds. `0s`: asked every time.
        pub authorize_ttl: Duration as ANY_SPAN => Duration::from_secs(10),
    }
}

table! {
    /// The connections to one tenant's database.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct PoolConfig {
        /// The most at the same time.
        pub max: u32 as count(1) => 4,
        /// How long one may be idle before it is closed.
        pub idle: Duration as SECONDS => Duration::from_secs(30),
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
