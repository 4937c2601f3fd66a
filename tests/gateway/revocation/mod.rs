//! A revocation, or a change of the user, closes open sockets.

mod backup;
mod coherence;
mod to_close;
