//! Faults in a part of the configuration, as reported by the constructor of that part.
//!
//! The constructor of a key, a URL or a route does not know file and line. It names the key relative to its own table,
//! and the check of the whole configuration adds the place. No fault shows a secret.

use std::fmt;

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The key, relative to the table or value that was read. May be empty.
    pub key: String,
    /// A description of the value; never a secret.
    pub found: String,
    /// The values that are allowed.
    pub expected: String,
    /// The action to take. May be empty.
    pub advice: String,
}

impl Fault {
    /// Makes a fault without advice.
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

    /// Adds the action to take.
    pub fn advice(self, advice: impl Into<String>) -> Self {
        Self {
            advice: advice.into(),
            ..self
        }
    }

    /// Moves the fault below `key`, for the caller that reads the outer table.
    pub fn below(self, key: &str) -> Self {
        Self {
            key: join(key, &self.key),
            ..self
        }
    }
}

/// Joins two key paths. Either may be empty.
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

/// All faults of a table, at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faults(pub Vec<Fault>);

impl Faults {
    /// Returns `value` if there are no faults.
    ///
    /// # Errors
    /// The faults.
    pub fn or<T>(faults: Vec<Fault>, value: T) -> Result<T, Self> {
        match faults.is_empty() {
            true => Ok(value),
            false => Err(Self(faults)),
        }
    }

    /// Collects the values, or else every fault.
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
