//! A revocation, or a change of the user, closes open sockets.

mod backup;
mod coherence;
mod kept;
mod to_close;
