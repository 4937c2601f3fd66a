//! A request with a token becomes a socket with a user, or is refused.

mod anonymous;
mod claimed;
mod claims;
mod cookies;
mod explain;
mod issuers;
mod limits;
mod providers;
mod refusals;
mod requests;
mod sources;
mod to_user;
