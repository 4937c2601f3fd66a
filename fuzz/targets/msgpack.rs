//! The target of this name: `libFuzzer` calls the check.
#![no_main]

#[path = "../checks/msgpack.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| check::check(bytes));
