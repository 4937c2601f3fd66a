//! A request with a token becomes a socket with a user, or is refused.

mod explain;
mod limits;
mod refusals;
mod requests;
mod sources;
mod to_user;
