//! A request with a token becomes a socket with a user, or is refused.

mod anonymous;
mod anonymous_seen;
mod claimed;
mod claims;
mod cookies;
mod explain;
mod issuers;
mod limits;
mod provider_variations;
mod providers;
mod refusals;
mod requests;
mod sources;
mod to_user;
