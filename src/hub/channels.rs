//! The sockets that listen on their own channels.

use std::sync::Arc;

use hashbrown::HashMap;
use parking_lot::Mutex;

use super::Member;

/// The sockets of one tenant by the 128 random bits of their channels.
#[derive(Debug, Default)]
pub struct Channels {
    by_bits: Mutex<HashMap<[u8; 16], Arc<Member>>>,
}

impl Channels {
    /// Adds the socket.
    pub fn insert(&self, bits: [u8; 16], member: &Arc<Member>) {
        self.by_bits.lock().insert(bits, member.clone());
    }

    /// Removes the socket.
    pub fn remove(&self, bits: [u8; 16]) {
        self.by_bits.lock().remove(&bits);
    }

    /// Returns the socket if it is on this replica and listens on its channel.
    pub fn get(&self, bits: [u8; 16]) -> Option<Arc<Member>> {
        self.by_bits.lock().get(&bits).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Profile;
    use super::*;

    #[test]
    fn a_socket_is_found_until_it_is_removed() {
        let (channels, member) = (Channels::default(), Member::new(Profile::default()));
        channels.insert([1; 16], &member);
        let found = channels.get([1; 16]).map(|found| found.id());
        assert_eq!(found, Some(member.id()));
        assert!(channels.get([2; 16]).is_none());
        channels.remove([1; 16]);
        assert!(channels.get([1; 16]).is_none());
    }
}
