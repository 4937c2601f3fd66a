//! What is wrong with a part of the configuration, as the type that is made from it says so.
//!
//! A constructor (a key, a URL, a route) knows neither file nor line. It names the key below its own table, and the check
//! of the whole configuration adds the place. No fault shows a secret.

use std::fmt;

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The key, relative to the table or value that was read; may be empty.
    pub key: String,
    /// What stands there; never a secret.
    pub found: String,
    /// What may stand there.
    pub expected: String,
    /// What to do; may be empty.
    pub advice: String,
}

impl Fault {
    /// A fault without advice.
    pub fn new(
        key: impl Into<String>,
        found: impl Into<String>,
        expected: impl Into<String>,
    ) -> Self {
        Self {
            key: key.into(),
            found: found.into(),
            expected: expected.into(),
            advice: String::new(),
        }
    }

    /// The same, with what to do.
    pub fn advice(self, advice: impl Into<String>) -> Self {
        Self {
            advice: advice.into(),
            ..self
        }
    }

    /// The same, seen from further up: its key stands below `key`.
    pub fn below(self, key: &str) -> Self {
        Self {
            key: join(key, &self.key),
            ..self
        }
    }
}

/// The path of a key below another; either may be empty.
fn join(outer: &str, inner: &str) -> String {
    let dot = match outer.is_empty() || inner.is_empty() || inner.starts_with('[') {
        true => "",
        false => ".",
    };
    format!("{outer}{dot}{inner}")
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        write!(f, "found {}, expected {}", self.found, self.expected)?;
        if !self.advice.is_empty() {
            write!(f, "; {}", self.advice)?;
        }
        Ok(())
    }
}

impl std::error::Error for Fault {}

/// Everything that is wrong with a table; at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faults(pub Vec<Fault>);

impl Faults {
    /// `value`, or the faults if there are any.
    ///
    /// # Errors
    /// The faults.
    pub fn or<T>(faults: Vec<Fault>, value: T) -> Result<T, Self> {
        match faults.is_empty() {
            true => Ok(value),
            false => Err(Self(faults)),
        }
    }

    /// Splits what was read from what could not be.
    pub fn collect<T>(read: impl IntoIterator<Item = Result<T, Fault>>) -> Result<Vec<T>, Self> {
        let mut faults = Vec::new();
        let values = read
            .into_iter()
            .filter_map(|read| read.map_err(|fault| faults.push(fault)).ok())
            .collect();
        Self::or(faults, values)
    }
}

impl From<Fault> for Faults {
    fn from(fault: Fault) -> Self {
        Self(vec![fault])
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("; ")?;
            }
            write!(f, "{fault}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_seen_from_further_up() {
        let fault = |key: &str| Fault::new(key, "a", "b");
        assert_eq!(
            fault("x").below("keys[0]").below("token").key,
            "token.keys[0].x"
        );
        assert_eq!(fault("[1]").below("origins").key, "origins[1]");
        assert_eq!(fault("").below("url").key, "url");
        assert_eq!(fault("x").below("").key, "x");
        let text = fault("x").advice("c").to_string();
        assert_eq!(text, "x: found a, expected b; c");
    }
}
