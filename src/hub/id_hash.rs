//! Hashing of connection ids.

use crate::ids::ConnectionId;

/// A fast hasher for connection ids. They are consecutive numbers that clients do not choose, so a multiplication by a
/// large odd number spreads them well enough.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct IdHasher(u64);

/// Builds [`IdHasher`]s.
pub(super) type BuildIdHasher = std::hash::BuildHasherDefault<IdHasher>;

impl std::hash::Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        // 2^64 divided by the golden ratio. The upper bits are folded down because hash tables use the lower ones.
        let mixed = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 32);
    }
}

/// Returns the hash of an id for a table of members.
///
/// The table's position comes from the lower bits, so consecutive ids lie side by side and a walk over a group goes
/// through memory in the order in which its sockets opened. Blocks of ids are spread, so that a group of every
/// thousandth socket has no row of equal positions. The upper seven bits, which tell ids of one position apart, are
/// mixed.
pub(super) fn hash_of(id: ConnectionId) -> u64 {
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    const POSITION: u64 = u64::MAX >> 7;
    let position = id.0.wrapping_add((id.0 >> 12).wrapping_mul(GOLDEN >> 8));
    (position & POSITION) | (id.0.wrapping_mul(GOLDEN) & !POSITION)
}
