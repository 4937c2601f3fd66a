//! The bounded read of a key: the bytes that Redis may send of its value, and the meaning of the answer.
//!
//! A back end may write keys that the gateway reads over a link that tenants share. So no value is fetched whole: GETRANGE
//! asks for the longest value of the key's form and one byte more, which tells a longer value.

use std::sync::Arc;

use redis::{Cmd, Pipeline, RedisError, RedisResult, Value, from_redis_value};

/// A key, and the form of its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRead {
    key: String,
    /// Further keys of a read of presence.
    others: Vec<String>,
    form: ValueForm,
}

/// The form of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ValueForm {
    /// Only the presence of the key has a meaning, whatever its type and value.
    Presence,
    /// A string of at most this many bytes. An empty one means the same as none.
    Text(usize),
    /// A string of at most this many bytes, which is never empty. An absent key means something else than an empty one.
    Certain(usize),
}

/// The value of a key; `None` for an absent key. The value of a key whose presence was asked is empty.
pub type KeyValue = Result<Option<Vec<u8>>, Unreadable>;

/// The reason why the value of a key has no meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// The key holds a list, a hash, a set or another type: `-WRONGTYPE`.
    #[error("the key does not hold a string")]
    WrongType,
    /// The value is longer than its form allows.
    #[error("the value is too long")]
    TooLong,
    /// The value is empty, but its form is not.
    #[error("the value is empty")]
    Empty,
}

impl KeyRead {
    /// Reads the presence of a key.
    pub fn presence(key: String) -> Self {
        Self::new(key, ValueForm::Presence)
    }

    /// Reads whether any of these keys is present, with one command.
    pub fn any_presence(first: String, others: Vec<String>) -> Self {
        Self {
            others,
            ..Self::presence(first)
        }
    }

    fn new(key: String, form: ValueForm) -> Self {
        Self {
            key,
            others: Vec::new(),
            form,
        }
    }

    /// Reads a string of at most `limit` bytes, where an empty one means the same as none.
    pub fn text(key: String, limit: usize) -> Self {
        Self::new(key, ValueForm::Text(limit))
    }

    /// Reads a string of at most `limit` bytes, where an empty one is unreadable.
    ///
    /// GETRANGE answers an absent key with an empty string, so the round also counts the existing keys: one EXISTS for
    /// successive reads of this kind. If it counts more than have a value, all of them without a value are unreadable.
    pub fn certain(key: String, limit: usize) -> Self {
        Self::new(key, ValueForm::Certain(limit))
    }

    /// Returns the keys; one, but for a read of presence.
    pub fn keys(&self) -> impl Iterator<Item = &str> + Clone {
        std::iter::once(&self.key)
            .chain(&self.others)
            .map(String::as_str)
    }

    /// Returns a read of each key by itself.
    pub(super) fn each_key(&self) -> impl Iterator<Item = Self> + '_ {
        self.keys().map(|key| Self::new(key.to_owned(), self.form))
    }

    /// Returns the value as the form demands it.
    pub(super) fn judge(&self, value: Option<Vec<u8>>) -> KeyValue {
        match (self.form, value) {
            (_, None) => Ok(None),
            (ValueForm::Presence, Some(_)) => Ok(Some(Vec::new())),
            (ValueForm::Text(limit) | ValueForm::Certain(limit), Some(value))
                if value.len() > limit =>
            {
                Err(Unreadable::TooLong)
            }
            (ValueForm::Text(_), Some(value)) if value.is_empty() => Ok(None),
            (ValueForm::Certain(_), Some(value)) if value.is_empty() => Err(Unreadable::Empty),
            (_, Some(value)) => Ok(Some(value)),
        }
    }

    fn is_certain(&self) -> bool {
        matches!(self.form, ValueForm::Certain(_))
    }
}

/// The reads of one caller. A round shares them with the caller, which needs them if it must ask again.
pub(super) type CallerReads = Arc<Vec<KeyRead>>;

/// Returns the successive reads of one caller that share a count of existing keys, or one other read.
fn runs(callers: &[CallerReads]) -> impl Iterator<Item = &[KeyRead]> {
    let together = |a: &KeyRead, b: &KeyRead| a.is_certain() && b.is_certain();
    { callers.iter() }.flat_map(move |reads| reads.chunk_by(together))
}

/// Returns the commands that read for all callers in one round. [`values`] reads their answers.
pub(super) fn commands(callers: &[CallerReads]) -> Pipeline {
    let count: usize = callers.iter().map(|reads| reads.len()).sum();
    let mut pipe = Pipeline::with_capacity(count + callers.len());
    for run in runs(callers) {
        for read in run {
            pipe.add_command(match read.form {
                ValueForm::Presence => exists(read.keys()),
                ValueForm::Text(limit) | ValueForm::Certain(limit) => range(&read.key, limit),
            });
        }
        if run[0].is_certain() {
            pipe.add_command(exists(run.iter().flat_map(KeyRead::keys)));
        }
    }
    pipe.ignore_errors();
    pipe
}

// Each handshake sends three of these commands, so their memory is asked for once.

fn exists<'k>(keys: impl Iterator<Item = &'k str> + Clone) -> Cmd {
    const NAME: &str = "EXISTS";
    let (count, bytes) = keys
        .clone()
        .fold((1, NAME.len()), |(n, sum), key| (n + 1, sum + key.len()));
    let mut command = Cmd::with_capacity(count, bytes);
    command.arg(NAME);
    for key in keys {
        command.arg(key);
    }
    command
}

fn range(key: &str, limit: usize) -> Cmd {
    /// The command's name, the zero, and the digits of the largest limit.
    const BESIDE_THE_KEY: usize = 8 + 1 + 20;
    let mut command = Cmd::with_capacity(4, BESIDE_THE_KEY + key.len());
    command.arg("GETRANGE").arg(key).arg(0).arg(limit);
    command
}

/// Returns the value of each read of all callers, from the answers to [`commands`].
pub(super) fn values(
    callers: &[CallerReads],
    answers: Vec<RedisResult<Value>>,
) -> Vec<RedisResult<KeyValue>> {
    let mut values = Vec::with_capacity(answers.len());
    let mut answers = answers.into_iter();
    let mut next = || answers.next().unwrap_or_else(|| Err(missing()));
    for run in runs(callers) {
        let begin = values.len();
        values.extend(run.iter().map(|read| read.value_of(next())));
        if !run[0].is_certain() {
            continue;
        }
        let run = &mut values[begin..];
        let seen = run.iter().filter(|value| !matches!(value, Ok(Ok(None))));
        let seen = seen.count();
        match next().and_then(|count| Ok(from_redis_value::<usize>(count)?)) {
            Ok(count) if count <= seen => {}
            counted => {
                let without = run.iter_mut().filter(|value| matches!(value, Ok(Ok(None))));
                for value in without {
                    *value = match &counted {
                        Ok(_) => Ok(Err(Unreadable::Empty)),
                        Err(error) => Err(error.clone()),
                    };
                }
            }
        }
    }
    values
}

impl KeyRead {
    fn value_of(&self, answer: RedisResult<Value>) -> RedisResult<KeyValue> {
        let value = match answer {
            Ok(value) => value,
            Err(error) if error.code() == Some("WRONGTYPE") => {
                return Ok(Err(Unreadable::WrongType));
            }
            Err(error) => return Err(error),
        };
        if self.form == ValueForm::Presence {
            let exists = from_redis_value::<bool>(value)?;
            return Ok(Ok(exists.then(Vec::new)));
        }
        let value: Vec<u8> = from_redis_value(value)?;
        // An empty value may be an absent key; the count of existing keys tells where it matters.
        Ok(self.judge((!value.is_empty()).then_some(value)))
    }
}

fn missing() -> RedisError {
    std::io::Error::from(std::io::ErrorKind::InvalidData).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reads() -> CallerReads {
        Arc::new(vec![
            KeyRead::presence("jti".into()),
            KeyRead::certain("user".into(), 3),
            KeyRead::certain("all".into(), 3),
            KeyRead::text("record".into(), 4),
        ])
    }

    /// Another caller, whose count is its own.
    fn other() -> CallerReads {
        Arc::new(vec![KeyRead::certain("more".into(), 3)])
    }

    fn text(value: &str) -> RedisResult<Value> {
        Ok(Value::BulkString(value.into()))
    }

    /// Returns the values of both callers from the answers to their commands.
    fn read(answers: [RedisResult<Value>; 7]) -> Vec<KeyValue> {
        let values = values(&[reads(), other()], answers.into());
        values.into_iter().map(Result::unwrap).collect()
    }

    #[test]
    fn no_command_asks_for_more_than_the_form_and_a_byte() {
        let sent = commands(&[reads(), other()]).get_packed_pipeline();
        let sent = String::from_utf8(sent).unwrap();
        let words: Vec<&str> = sent
            .split("\r\n")
            .filter(|word| !word.starts_with(['*', '$']) && !word.is_empty())
            .collect();
        let expected = "EXISTS jti GETRANGE user 0 3 GETRANGE all 0 3 EXISTS user all \
                        GETRANGE record 0 4 GETRANGE more 0 3 EXISTS more";
        assert_eq!(words, expected.split_whitespace().collect::<Vec<_>>());
    }

    #[test]
    fn absent_empty_long_and_of_another_type_are_told_apart() {
        let (int, no) = (|n| Ok(Value::Int(n)), || text(""));
        let absent = read([int(0), no(), no(), int(0), no(), no(), int(0)]);
        assert_eq!(absent, vec![Ok(None); 5]);
        let full = [int(1), text("123"), text("12"), int(2), text("abcd"), no()];
        let [a, b, c, d, e, f] = full;
        assert_eq!(
            read([a, b, c, d, e, f, int(1)]),
            [
                Ok(Some(Vec::new())),
                Ok(Some(b"123".to_vec())),
                Ok(Some(b"12".to_vec())),
                Ok(Some(b"abcd".to_vec())),
                Err(Unreadable::Empty),
            ]
        );
        let long = read([
            int(0),
            text("1234"),
            no(),
            int(1),
            text("abcde"),
            no(),
            int(0),
        ]);
        assert_eq!(long[1], Err(Unreadable::TooLong));
        assert_eq!((&long[2], &long[4]), (&Ok(None), &Ok(None)));
        assert_eq!(long[3], Err(Unreadable::TooLong));
        // One of two is empty: neither may count as absent.
        let empty = read([int(0), no(), no(), int(1), no(), no(), int(0)]);
        assert_eq!(empty[1..3], vec![Err(Unreadable::Empty); 2]);
    }

    #[test]
    fn a_value_in_memory_obeys_the_same_form() {
        let reads = reads();
        let [jti, user, _, record] = &reads[..] else {
            panic!("{reads:?}");
        };
        assert_eq!(jti.judge(Some(b"x".to_vec())), Ok(Some(Vec::new())));
        assert_eq!(user.judge(Some(Vec::new())), Err(Unreadable::Empty));
        assert_eq!(user.judge(Some(b"1234".to_vec())), Err(Unreadable::TooLong));
        assert_eq!(record.judge(Some(Vec::new())), Ok(None));
        assert_eq!(record.judge(None), Ok(None));
    }
}
