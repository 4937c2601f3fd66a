//! The outside world: Redis, Sentinel, databases and a Django project, up and down.

mod django_project;
mod django_schemas;
mod guide;
mod locked_database;
mod one_host;
mod proxies;
mod role_swap;
mod sentinel;
mod store_outage;
mod unusable_users;
mod user_models;
