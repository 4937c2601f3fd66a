//! Messages on a tenant's control channel, which its back ends write. What is read can be written and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lockgate::fleet::message::{Answer, Command};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(command) = Command::read(bytes) {
        let written = command.to_json();
        let again = Command::read(&written).expect("what we write can be read");
        assert_eq!(written, again.to_json());
    }
    if let Ok(answer) = serde_json::from_slice::<Answer>(bytes) {
        let written = serde_json::to_vec(&answer).expect("it can be written");
        assert!(serde_json::from_slice::<Answer>(&written).is_ok());
    }
});
