//! The choice of a layer's host for a name, as `channels_redis` 3.3.1 and later make it.

/// Computes the CRC-32 of IEEE 802.3, as zlib does. Four bits at a time: names are short, so a table of 16 entries that
/// stays in the cache is enough.
fn crc32(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0xedb8_8320;
    const TABLE: [u32; 16] = {
        let mut table = [0; 16];
        let mut at = 0;
        while at < 16 {
            let mut value = at as u32;
            let mut bit = 0;
            while bit < 4 {
                value = (value >> 1) ^ if value & 1 == 1 { POLYNOMIAL } else { 0 };
                bit += 1;
            }
            table[at] = value;
            at += 1;
        }
        table
    };
    let step = |crc: u32, bits: u32| (crc >> 4) ^ TABLE[((crc ^ bits) & 0xf) as usize];
    let crc = bytes.iter().fold(u32::MAX, |crc, byte| {
        let byte = u32::from(*byte);
        step(step(crc, byte), byte >> 4)
    });
    !crc
}

/// Returns the index of the host, among `hosts`, that `name` belongs to; 0 if there is one host, or none.
///
/// Computed in doubles, as `channels_redis.utils._consistent_hash` does: the integer form differs for 186 and 198 hosts.
pub fn shard_of(name: &[u8], hosts: usize) -> usize {
    if hosts <= 1 {
        return 0;
    }
    let bucket = f64::from(crc32(name) & 0xfff);
    (bucket / (4096.0 / hosts as f64)) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_zlib() {
        for (text, crc) in [
            ("", 0),
            ("123456789", 0xcbf4_3926),
            ("chat_lobby", 3_449_403_500),
        ] {
            assert_eq!(crc32(text.as_bytes()), crc, "{text}");
        }
    }

    #[test]
    fn the_pick_is_computed_in_doubles() {
        let name = (0..)
            .map(|n: u32| n.to_string())
            .find(|name| crc32(name.as_bytes()) & 0xfff == 2048)
            .unwrap();
        for hosts in [186, 198] {
            let in_integers = 2048 * hosts / 4096;
            assert_eq!(shard_of(name.as_bytes(), hosts), in_integers - 1, "{hosts}");
        }
        assert_eq!(shard_of(b"any", 0), 0);
    }
}
