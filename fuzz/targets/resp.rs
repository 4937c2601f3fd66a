//! The target of this name: `libFuzzer` calls the check.
#![no_main]

// A file of the crate that the check takes in names these from the root.
use lockgate::{event, stores};

#[path = "../checks/resp.rs"]
mod channel_layer;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| channel_layer::check(bytes));
