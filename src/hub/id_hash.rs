//! Hashing of connection ids.

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
