//! Durations and sizes as people write them: `250ms`, `5m`, `64KiB`; and back.

use std::time::Duration;

/// Units of time, largest first, in milliseconds.
const TIMES: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];

/// Units of size, largest first within their kind, in bytes.
const SIZES: [(&str, u64); 7] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

/// Reads a duration: digits and one of `ms`, `s`, `m`, `h`, `d`. `None` for anything else, and beyond 64 bits of
/// milliseconds.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let (number, factor) = split(text, &TIMES)?;
    number.checked_mul(factor).map(Duration::from_millis)
}

/// Reads a size: digits and one of `B`, `KiB`, `MiB`, `GiB` (1024) or `KB`, `MB`, `GB` (1000), in any case.
pub fn parse_size(text: &str) -> Option<u64> {
    let (number, factor) = split(text, &SIZES)?;
    number.checked_mul(factor)
}

fn split(text: &str, units: &[(&str, u64)]) -> Option<(u64, u64)> {
    let end = text.find(|c: char| !c.is_ascii_digit())?;
    let unit = text[end..].trim_start();
    let (_, factor) = units
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(unit))?;
    Some((text[..end].parse().ok()?, *factor))
}

/// The shortest text that reads back as the same duration, with whole milliseconds.
pub fn print_duration(duration: Duration) -> String {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if millis == 0 {
        return "0s".to_owned();
    }
    // Up to 119 s print as seconds, so that a default of "60s" stays as documented.
    print(
        millis,
        TIMES
            .iter()
            .filter(|(_, f)| matches!(f, 1 | 1_000 | 3_600_000) || millis >= 2 * f),
    )
}

/// The shortest text that reads back as the same size.
pub fn print_size(bytes: u64) -> String {
    if bytes == 0 {
        return "0B".to_owned();
    }
    print(bytes, SIZES.iter())
}

fn print<'a>(amount: u64, mut units: impl Iterator<Item = &'a (&'a str, u64)>) -> String {
    units
        .find(|(_, factor)| amount.is_multiple_of(*factor))
        .map_or_else(
            || amount.to_string(),
            |(name, factor)| format!("{}{name}", amount / factor),
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_unit() {
        for (text, millis) in [
            ("250ms", 250),
            ("5s", 5_000),
            ("5m", 300_000),
            ("1h", 3_600_000),
            ("30d", 2_592_000_000),
            ("10 s", 10_000),
            ("0s", 0),
        ] {
            assert_eq!(parse_duration(text), Some(Duration::from_millis(millis)));
        }
        for text in [
            "",
            "5",
            "s",
            "-5s",
            "5.5s",
            "5y",
            "5s5",
            "99999999999999999d",
            "５s",
        ] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    #[test]
    fn sizes_need_a_unit() {
        for (text, bytes) in [
            ("64KiB", 65_536),
            ("1MiB", 1 << 20),
            ("8MB", 8_000_000),
            ("0B", 0),
        ] {
            assert_eq!(parse_size(text), Some(bytes));
        }
        for text in [
            "",
            "64",
            "KiB",
            "-1B",
            "1.5MiB",
            "64 elephants",
            "99999999999999GiB",
        ] {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }

    #[test]
    fn printing_reads_back() {
        for (millis, text) in [
            (0, "0s"),
            (250, "250ms"),
            (60_000, "60s"),
            (90_000, "90s"),
            (300_000, "5m"),
            (3_600_000, "1h"),
            (7_200_000, "2h"),
            (2_592_000_000, "30d"),
        ] {
            let duration = Duration::from_millis(millis);
            assert_eq!(print_duration(duration), text);
            assert_eq!(parse_duration(text), Some(duration));
        }
        for (bytes, text) in [
            (65_536, "64KiB"),
            (1 << 20, "1MiB"),
            (8_000_000, "8MB"),
            (7, "7B"),
        ] {
            assert_eq!(print_size(bytes), text);
        }
    }
}
