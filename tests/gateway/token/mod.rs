//! A request with a token becomes a socket with a user, or is refused.

mod claimed;
mod explain;
mod limits;
mod refusals;
mod requests;
mod sources;
mod to_user;
