//! Python's rules, each in one place: `str()`, `repr(float)`, `int()`, `uuid.UUID()`, dicts, and `json`.
//!
//! Django and Channels compare, print and parse with these rules, so names, user ids and payloads must come out the same
//! here. No crate offers them: crates read RFC 8259 and Rust's number formats, which differ in the cases of the golden
//! vectors. This module knows nothing of tokens, events or users.

pub use dict::Dict;
pub use int::{Int, MAX_STR_DIGITS};
pub use scalar::Scalar;

pub mod dict;
pub mod float;
pub mod int;
pub mod json;
pub mod scalar;
pub mod uuid;
