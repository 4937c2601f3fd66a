//! Wall-clock time in the unit of tokens: Unix seconds with a fraction.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Seconds since 1970-01-01T00:00:00Z (RFC 7519 §2, `NumericDate`).
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct UnixTime(pub f64);

/// The last second of the year 9999, in Unix seconds. Redis refuses much larger times, no token is valid for so long, and a larger
/// number is usually in milliseconds.
pub const LATEST: f64 = 253_402_300_799.0;

impl UnixTime {
    /// Returns the current time; 0 if the clock is set before 1970.
    pub fn now() -> Self {
        Self(
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or(Duration::ZERO)
                .as_secs_f64(),
        )
    }

    /// Returns the time left until `self`; zero if it has passed.
    pub fn until(self) -> Duration {
        Duration::try_from_secs_f64(self.0 - Self::now().0).unwrap_or(Duration::ZERO)
    }
}

/// Returns true if a token issued at `issued_at` falls under `cut_off`; both are Unix seconds.
///
/// The whole second of the cut-off is included. So is a token without a time of issue.
pub fn is_under_cut_off(issued_at: Option<f64>, cut_off: f64) -> bool {
    issued_at.is_none_or(|issued_at| issued_at.floor() <= cut_off)
}
