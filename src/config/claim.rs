//! `[tenants.NAME.token.claims]`: the values that claims of a token must have.

use std::fmt;

use super::document::{Node, Table, TomlValue};
use super::form::quote;
use super::read::{Form, Reader, bare};

/// Most rules of a tenant. Each is looked at in every handshake.
const MOST_RULES: usize = 32;
/// Most values of one rule.
const MOST_VALUES: usize = 64;

/// A claim and the values that it may have.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpectedClaim {
    /// The claim's name, or its path through objects: `realm_access.roles`.
    pub name: String,
    /// The rule for its value.
    pub rule: ClaimRule,
}

/// A rule for the value of a claim.
#[derive(Clone, Debug, PartialEq)]
pub enum ClaimRule {
    /// The claim equals the value.
    Equals(ClaimValue),
    /// The claim equals one of the values.
    OneOf(Vec<ClaimValue>),
    /// The claim is a list with the value as an element, or a text with the value as a word between spaces.
    Contains(ClaimValue),
}

impl ClaimRule {
    /// Returns the values of the rule.
    pub fn values(&self) -> &[ClaimValue] {
        match self {
            Self::Equals(value) | Self::Contains(value) => std::slice::from_ref(value),
            Self::OneOf(values) => values,
        }
    }
}

/// A value of a rule. It equals values of its own type alone; an integer and a fraction are both numbers.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the types of JSON that are no containers")]
pub enum ClaimValue {
    Text(String),
    Integer(i64),
    Number(f64),
    Flag(bool),
}

impl fmt::Display for ClaimValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(&quote(text)),
            Self::Integer(number) => number.fmt(f),
            Self::Number(number) => number.fmt(f),
            Self::Flag(flag) => flag.fmt(f),
        }
    }
}

impl fmt::Display for ClaimRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Equals(value) => value.fmt(f),
            Self::Contains(value) => write!(f, "{{ contains = {value} }}"),
            Self::OneOf(values) => {
                let values: Vec<_> = values.iter().map(ToString::to_string).collect();
                write!(f, "[{}]", values.join(", "))
            }
        }
    }
}

impl ExpectedClaim {
    /// Returns the name as TOML writes it.
    pub fn key(&self) -> String {
        bare(&self.name)
    }
}

impl fmt::Display for ExpectedClaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {}", self.key(), self.rule)
    }
}

/// The written form of a tenant's rules: a table from names of claims to values.
pub(super) struct ClaimTable;

impl Form for ClaimTable {
    type Value = Vec<ExpectedClaim>;

    fn expected(&self) -> String {
        "a table such as { azp = \"web\", client_id = [\"a\", \"b\"], scope = { contains = \"chat\" } }".to_owned()
    }

    fn read(&self, node: &Node, reader: &mut Reader<'_>) -> Option<Self::Value> {
        let Some(table) = node.as_table() else {
            return reader.wrong_type(node, self, "");
        };
        if table.len() > MOST_RULES {
            let found = format!("{} rules", table.len());
            return reader.mistake(node, found, format!("at most {MOST_RULES}"), "");
        }
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(_, node)| node.place);
        let read = entries.iter().filter_map(|(name, node)| {
            reader.below(bare(name), |reader| {
                if !is_path(name) {
                    let expected = "the name of a claim, or a path with one dot between two names";
                    return reader.mistake(node, format!("{name:?}"), expected, "");
                }
                let rule = ClaimRuleForm.read(node, reader)?;
                let name = (*name).clone();
                Some(ExpectedClaim { name, rule })
            })
        });
        let read: Vec<_> = read.collect();
        // A wrong rule was reported. The others alone would let more tokens in.
        (read.len() == entries.len()).then_some(read)
    }

    fn print(&self, value: &Self::Value) -> Option<String> {
        let rules: Vec<_> = value.iter().map(ToString::to_string).collect();
        Some(match rules.is_empty() {
            true => "{}".to_owned(),
            false => format!("{{ {} }}", rules.join(", ")),
        })
    }
}

/// Returns true if no part of a path is empty.
fn is_path(name: &str) -> bool {
    !name.split('.').any(str::is_empty)
}

/// The written form of one rule.
struct ClaimRuleForm;

impl Form for ClaimRuleForm {
    type Value = ClaimRule;

    fn expected(&self) -> String {
        "a value, a list of values, or { contains = … }".to_owned()
    }

    fn read(&self, node: &Node, reader: &mut Reader<'_>) -> Option<ClaimRule> {
        match &node.value {
            TomlValue::List(items) => one_of(node, items, reader).map(ClaimRule::OneOf),
            TomlValue::Table(table) => contains(node, table, reader).map(ClaimRule::Contains),
            _ => ClaimValueForm.read(node, reader).map(ClaimRule::Equals),
        }
    }

    fn print(&self, value: &ClaimRule) -> Option<String> {
        Some(value.to_string())
    }
}

fn one_of(node: &Node, items: &[Node], reader: &mut Reader<'_>) -> Option<Vec<ClaimValue>> {
    if items.is_empty() || items.len() > MOST_VALUES {
        let found = format!("a list of {} values", items.len());
        let advice = match items.is_empty() {
            true => "no token could hold it; without the key the claim is not checked",
            false => "",
        };
        return reader.mistake(node, found, format!("1 to {MOST_VALUES} values"), advice);
    }
    let read = items.iter().enumerate().filter_map(|(index, item)| {
        reader.below(format!("[{index}]"), |reader| {
            ClaimValueForm.read(item, reader)
        })
    });
    let read: Vec<_> = read.collect();
    (read.len() == items.len()).then_some(read)
}

fn contains(node: &Node, table: &Table, reader: &mut Reader<'_>) -> Option<ClaimValue> {
    if !table.contains_key("contains") {
        let found = match table.keys().next() {
            Some(name) => format!("a table with {name:?}"),
            None => "an empty table".to_owned(),
        };
        let advice = "a path through objects is one key in quotes: \"realm_access.roles\" = …";
        return reader.mistake(node, found, ClaimRuleForm.expected(), advice);
    }
    reader.refuse_unknown(table, &["contains"]);
    reader.key(table, "contains", &ClaimValueForm)
}

/// The written form of one value.
struct ClaimValueForm;

impl Form for ClaimValueForm {
    type Value = ClaimValue;

    fn expected(&self) -> String {
        "text, a number, true or false".to_owned()
    }

    fn read(&self, node: &Node, reader: &mut Reader<'_>) -> Option<ClaimValue> {
        match &node.value {
            TomlValue::Text(text) if !text.is_empty() => Some(ClaimValue::Text(text.clone())),
            TomlValue::Integer(number) => Some(ClaimValue::Integer(*number)),
            TomlValue::Float(number) if number.is_finite() => Some(ClaimValue::Number(*number)),
            TomlValue::Flag(flag) => Some(ClaimValue::Flag(*flag)),
            TomlValue::Date(_) => {
                reader.wrong(node, self, "a claim has no dates; write it as text")
            }
            _ => reader.wrong(node, self, ""),
        }
    }

    fn print(&self, value: &ClaimValue) -> Option<String> {
        Some(value.to_string())
    }
}
