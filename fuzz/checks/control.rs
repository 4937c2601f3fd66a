//! Messages on a tenant's control channel, which its back ends write. What is read can be written and read again.

use lockgate::fleet::answer::Answer;
use lockgate::fleet::message::Command;

/// Checks one input.
pub(crate) fn check(bytes: &[u8]) {
    if let Ok(command) = Command::read(bytes) {
        // What is too long once it is written in full is told instead of sent.
        if let Ok(written) = command.to_json() {
            let again = Command::read(&written).expect("what we write can be read");
            assert_eq!(Ok(written), again.to_json());
        }
    }
    if let Ok(answer) = serde_json::from_slice::<Answer>(bytes) {
        let written = serde_json::to_vec(&answer).expect("it can be written");
        assert!(serde_json::from_slice::<Answer>(&written).is_ok());
    }
}
