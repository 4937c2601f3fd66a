//! Removes the client's mask from a payload (RFC 6455 §5.3), eight bytes at a time and without `unsafe`.

/// Unmasks `bytes`, whose first byte is at `offset` in its frame's payload.
pub(super) fn unmask(bytes: &mut [u8], mut mask: [u8; 4], offset: u64) {
    // The cast is safe on every platform, because `offset % 4` is below 4.
    mask.rotate_left((offset % 4) as usize);
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, rest) = bytes.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= key;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unmasks_like_the_rfc_for_every_length_and_offset() {
        let mask = [0x37, 0xfa, 0x21, 0x3d];
        for len in 0..40_usize {
            for offset in 0..9_usize {
                let mut bytes: Vec<u8> = (0..len as u8).collect();
                unmask(&mut bytes, mask, offset as u64);
                let expected: Vec<u8> =
                    (0..len).map(|i| i as u8 ^ mask[(i + offset) % 4]).collect();
                assert_eq!(bytes, expected, "length {len}, offset {offset}");
            }
        }
    }
}
