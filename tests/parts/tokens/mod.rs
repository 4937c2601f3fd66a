//! The verification of tokens: golden vectors of simplejwt, hostile tokens, and hostile keys and key sets.

mod hostile_keys;
mod hostile_tokens;
mod issuers;
mod ssh_keys;
mod support;
mod vectors;
