//! The outside world: Redis, Sentinel, databases and a Django project, up and down.

mod authorities;
mod cluster;
mod django_project;
mod django_schemas;
mod guide;
mod locked_database;
mod managed_redis;
mod old_redis;
mod one_host;
mod pgbouncer;
mod proxies;
mod role_swap;
mod sentinel;
mod sign_up;
mod store_outage;
mod tls;
mod unusable_users;
mod user_models;
mod without_scripts;
