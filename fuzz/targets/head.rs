//! The target of this name: `libFuzzer` calls the check.
#![no_main]

// A file of the crate that the check takes in names it from the root.
use lockgate::error;

#[path = "../checks/head.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| check::check(bytes));
