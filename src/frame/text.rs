//! The text of a message that is still arriving.
//!
//! Blocks are unmasked, checked and appended one by one. Bad UTF-8 is therefore found at its first byte, and no block
//! needs a second check, although there is no `unsafe`.

use simdutf8::compat::from_utf8;

use super::mask::unmask;

/// Bytes unmasked at once, on the stack: enough for most messages, and few enough to stay in the L1 cache.
const BLOCK: usize = 1024;

/// The complete characters as a `String`, and the first bytes of the next character.
#[derive(Debug, Default)]
pub(super) struct TextBuffer {
    text: String,
    /// The bytes of an incomplete character, at most three.
    carry: [u8; 3],
    carry_len: u8,
}

/// The bytes are not UTF-8, and no further bytes could complete them.
#[derive(Debug)]
pub(super) struct NotUtf8;

impl TextBuffer {
    /// Reserves room for exactly `additional` more bytes.
    pub(super) fn reserve(&mut self, additional: usize) {
        self.text.reserve_exact(additional);
    }

    /// Returns the bytes that it has reserved.
    pub(super) fn capacity(&self) -> usize {
        self.text.capacity()
    }

    /// Returns the reserved bytes that are free.
    pub(super) fn room(&self) -> usize {
        self.text.capacity() - self.text.len()
    }

    /// Appends `masked`, whose first byte is at `offset` in its frame's payload.
    pub(super) fn push(
        &mut self,
        mut masked: &[u8],
        mask: [u8; 4],
        mut offset: u64,
    ) -> Result<(), NotUtf8> {
        let mut block = [0; BLOCK];
        while !masked.is_empty() {
            let carried = usize::from(self.carry_len);
            block[..carried].copy_from_slice(&self.carry[..carried]);
            // The carried bytes are unmasked already and stand in front of the new ones.
            let take = masked.len().min(BLOCK - carried);
            let (chunk, rest) = masked.split_at(take);
            let filled = carried + take;
            block[carried..filled].copy_from_slice(chunk);
            unmask(&mut block[carried..filled], mask, offset);
            self.append(&block[..filled])?;
            offset += take as u64;
            masked = rest;
        }
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), NotUtf8> {
        let error = match from_utf8(bytes) {
            Ok(text) => {
                self.text.push_str(text);
                self.carry_len = 0;
                return Ok(());
            }
            Err(error) if error.error_len().is_some() => return Err(NotUtf8),
            Err(error) => error,
        };
        // The block ends within a character. Only then is its valid part checked a second time.
        let (valid, open) = bytes.split_at(error.valid_up_to());
        self.text.push_str(from_utf8(valid).map_err(|_| NotUtf8)?);
        self.carry[..open.len()].copy_from_slice(open);
        // An open character has one to three bytes.
        self.carry_len = open.len() as u8;
        Ok(())
    }

    /// Returns the text, or an error if it ends within a character.
    pub(super) fn finish(self) -> Result<String, NotUtf8> {
        if self.carry_len == 0 {
            Ok(self.text)
        } else {
            Err(NotUtf8)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(bytes: &[u8], split: usize) -> Option<String> {
        let mut text = TextBuffer::default();
        let (a, b) = bytes.split_at(split);
        text.push(a, [0; 4], 0).ok()?;
        text.push(b, [0; 4], a.len() as u64).ok()?;
        text.finish().ok()
    }

    #[test]
    fn the_mask_goes_on_from_block_to_block() {
        let mask = [0x37, 0xfa, 0x21, 0x3d];
        for text in ["a", "é", "a€", "😀b"] {
            let text = text.repeat(3 * BLOCK);
            let masked: Vec<u8> = text
                .bytes()
                .zip(mask.iter().cycle())
                .map(|(byte, key)| byte ^ key)
                .collect();
            let (a, b) = masked.split_at(BLOCK + 7);
            let mut buffer = TextBuffer::default();
            buffer.push(a, mask, 0).unwrap();
            buffer.push(b, mask, a.len() as u64).unwrap();
            assert_eq!(buffer.finish().unwrap(), text);
        }
    }

    #[test]
    fn text_survives_any_split_and_block_border() {
        let long = "aé€😀".repeat(400);
        for split in 0..long.len() {
            assert_eq!(whole(long.as_bytes(), split).as_deref(), Some(&*long));
        }
    }

    #[test]
    fn bad_bytes_are_refused_as_soon_as_they_come() {
        let bad: [&[u8]; 5] = [b"\xc0", b"a\xff", b"\xed\xa0", b"\xf4\x90", b"\xe2\x82\x28"];
        for bytes in bad {
            let mut text = TextBuffer::default();
            assert!(text.push(bytes, [0; 4], 0).is_err(), "{bytes:?}");
        }
        assert!(whole(b"\xe2\x82", 1).is_none());
    }
}
