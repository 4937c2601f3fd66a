//! The keys that a JSON body repeats. A map would take the last of them and drop the others without a word.

use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::heavy::give_way;

/// The most keys that are told of one body.
const MOST: usize = 100;
/// The most bytes of a path that is told. A body could make hundreds of paths of a key that is half of it.
const LONGEST: usize = 1024;

/// Returns the paths of keys that stand again in their object, at every depth and in the order of the text: `token.claims`,
/// `routes[1].path`. A text that is not JSON is looked through as far as it can be read.
pub(super) fn repeated_keys(json: &[u8]) -> Vec<String> {
    let (mut path, mut found) = (String::new(), Vec::new());
    let walk = Walk {
        path: &mut path,
        found: &mut found,
    };
    // The reader of the body tells what is no JSON.
    drop(walk.deserialize(&mut serde_json::Deserializer::from_slice(json)));
    found
}

/// Looks at one value. `path` is its own, and is the same again afterwards.
struct Walk<'w> {
    path: &'w mut String,
    found: &'w mut Vec<String>,
}

impl Walk<'_> {
    fn below(&mut self) -> Walk<'_> {
        Walk {
            path: self.path,
            found: self.found,
        }
    }

    fn tell(&mut self) {
        if self.found.len() < MOST {
            let end = self.path.floor_char_boundary(LONGEST);
            let rest = if end < self.path.len() { "…" } else { "" };
            self.found.push(format!("{}{rest}", &self.path[..end]));
        }
    }
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

/// Writes the visits to values that have no keys.
macro_rules! without_keys {
    ($($visit:ident($value:ty);)*) => {
        $(fn $visit<E>(self, _: $value) -> Result<(), E> {
            Ok(())
        })*
    };
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    without_keys! {
        visit_bool(bool);
        visit_i64(i64);
        visit_u64(u64);
        visit_f64(f64);
        visit_str(&str);
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<(), A::Error> {
        let length = self.path.len();
        let mut index = 0;
        loop {
            give_way();
            self.path.push_str(&format!("[{index}]"));
            let more = items.next_element_seed(self.below());
            self.path.truncate(length);
            if more?.is_none() {
                return Ok(());
            }
            index += 1;
        }
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut members: A) -> Result<(), A::Error> {
        let length = self.path.len();
        let mut seen = HashSet::new();
        while let Some(key) = members.next_key::<String>()? {
            give_way();
            let dot = if length == 0 { "" } else { "." };
            self.path.push_str(&format!("{dot}{key}"));
            let value = match seen.insert(key) {
                true => members.next_value_seed(self.below()),
                false => {
                    self.tell();
                    members.next_value::<IgnoredAny>().map(drop)
                }
            };
            self.path.truncate(length);
            value?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_stands_again_is_told_with_its_path_at_every_depth() {
        for (json, expected) in [
            (r#"{"a":1,"b":[1,2.5,"x",null,true,-1]}"#, &[][..]),
            (r#"{"a":{"c":1},"b":{"c":1}}"#, &[]),
            (r#"{"a":1,"a":1}"#, &["a"]),
            (r#"{"a":1,"\u0061":2,"a":3}"#, &["a", "a"]),
            (
                r#"{"x":{"y":[{},{"z":0,"z":{"q":1}}]},"b":0,"b":0}"#,
                &["x.y[1].z", "b"],
            ),
            (r#"{"a":1,"a":2"#, &["a"]),
            ("not JSON", &[]),
        ] {
            assert_eq!(repeated_keys(json.as_bytes()), expected, "{json}");
        }
    }

    #[test]
    fn many_and_long_keys_are_told_within_bounds() {
        let members = r#","a":1"#.repeat(MOST + 5);
        let many = format!(r#"{{"a":1{members}}}"#);
        assert_eq!(repeated_keys(many.as_bytes()).len(), MOST);
        let long = "é".repeat(LONGEST);
        let long = format!(r#"{{"{long}":1,"{long}":1}}"#);
        assert_eq!(
            repeated_keys(long.as_bytes()),
            [format!("{}…", "é".repeat(LONGEST / 2))]
        );
    }
}
