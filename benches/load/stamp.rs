//! Time stamps in events, from which the reading loop takes the age of each frame.

use std::sync::OnceLock;
use std::time::Instant;

/// The decimal digits of a stamp, enough for any `u64`.
pub(crate) const DIGITS: usize = 20;

fn start() -> Instant {
    static START: OnceLock<Instant> = OnceLock::new();
    *START.get_or_init(Instant::now)
}

/// Returns the nanoseconds since the first call.
pub(crate) fn now() -> u64 {
    u64::try_from(start().elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// Returns the nanoseconds since the stamp at the end of `payload` (JSON that ends there, or the bare text).
///
/// Returns `None` if the end of the payload is cut.
pub(crate) fn age(payload: &[u8]) -> Option<u64> {
    let text = payload.strip_suffix(b"\"}").unwrap_or(payload);
    let digits = text.get(text.len().checked_sub(DIGITS)?..)?;
    let mut stamp = 0_u64;
    for &digit in digits {
        let value = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        stamp = stamp.checked_mul(10)?.checked_add(value)?;
    }
    now().checked_sub(stamp)
}
