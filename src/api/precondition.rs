//! The precondition of a change, from its headers: `If-Match` (RFC 9110 13.1.1), or `If-None-Match: *` (13.1.2).

use axum::http::header::{IF_MATCH, IF_NONE_MATCH};
use axum::http::{HeaderMap, HeaderName};

use super::book::Precondition;
use super::problem::ApiProblem;

/// Reads the precondition of a change. Several fields of a name are one list.
pub(super) fn of(headers: &HeaderMap) -> Result<Precondition, ApiProblem> {
    let field = |name: HeaderName| {
        let lines = headers.get_all(name).iter();
        let lines: Result<Vec<&str>, _> = lines.map(|line| line.to_str()).collect();
        let lines = lines.map_err(|_| ApiProblem::PreconditionNotValid)?;
        let text = lines.join(",");
        Ok((!lines.is_empty()).then(|| text.trim().to_owned()))
    };
    let (matches, none_matches) = (field(IF_MATCH)?, field(IF_NONE_MATCH)?);
    match (matches.as_deref(), none_matches.as_deref()) {
        (None, None) => Ok(Precondition::None),
        (None, Some("*")) => Ok(Precondition::Absent),
        (Some("*"), None) => Ok(Precondition::Exists),
        (Some(list), None) => match versions(list) {
            Some(versions) => Ok(Precondition::Versions(versions)),
            None => Err(ApiProblem::PreconditionNotValid),
        },
        _ => Err(ApiProblem::PreconditionNotValid),
    }
}

/// Returns the versions of a list of entity tags; `None` if it is no such list. A weak tag, and one that no tenant has, names
/// no version: such a condition fails, and is not malformed (8.8.3, 8.8.3.2).
fn versions(list: &str) -> Option<Vec<i64>> {
    let mut versions = Vec::new();
    let mut rest = list;
    let mut is_empty = true;
    loop {
        // An empty element counts for nothing (5.6.1.2).
        rest = rest.trim_start_matches([' ', '\t', ',']);
        if rest.is_empty() {
            return (!is_empty).then_some(versions);
        }
        is_empty = false;
        let strong = rest.strip_prefix("W/");
        let tag = strong.unwrap_or(rest).strip_prefix('"')?;
        let (tag, behind) = tag.split_once('"')?;
        // A tag holds any visible character but a quote.
        if !tag.bytes().all(|byte| byte.is_ascii_graphic()) {
            return None;
        }
        rest = behind.trim_start_matches([' ', '\t']);
        if !rest.is_empty() && !rest.starts_with(',') {
            return None;
        }
        if strong.is_none() {
            // Tags are compared as they are written.
            let version = tag.parse::<i64>().ok();
            versions.extend(version.filter(|version| version.to_string() == tag));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn read(headers: &[(HeaderName, &str)]) -> Result<Precondition, ApiProblem> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name.clone(), HeaderValue::from_str(value).unwrap());
        }
        of(&map)
    }

    #[test]
    fn a_precondition_is_one_of_the_two_headers() {
        for (headers, expected) in [
            (&[][..], Some(Precondition::None)),
            (&[(IF_MATCH, "*")], Some(Precondition::Exists)),
            (&[(IF_NONE_MATCH, "*")], Some(Precondition::Absent)),
            (&[(IF_NONE_MATCH, "\"12\"")], None),
            (&[(IF_MATCH, "*"), (IF_NONE_MATCH, "*")], None),
            (&[(IF_MATCH, "*"), (IF_MATCH, "\"1\"")], None),
            (&[(IF_NONE_MATCH, "*"), (IF_NONE_MATCH, "*")], None),
        ] {
            let expected = expected.ok_or(ApiProblem::PreconditionNotValid);
            assert_eq!(read(headers), expected, "{headers:?}");
        }
    }

    #[test]
    fn if_match_is_a_list_of_entity_tags() {
        for (list, expected) in [
            ("\"12\"", Some(&[12][..])),
            ("\"1\", \"2\"", Some(&[1, 2])),
            (" , \"1\",\t,\"2\" ,", Some(&[1, 2])),
            ("W/\"12\"", Some(&[])),
            ("W/\"1\", \"2\"", Some(&[2])),
            ("\"a,b\", \"3\"", Some(&[3])),
            ("\"\"", Some(&[])),
            ("\"+7\", \"007\", \"7\"", Some(&[7])),
            ("12", None),
            ("", None),
            (",", None),
            ("\"1", None),
            ("\"1\" \"2\"", None),
            ("\"1\"\"2\"", None),
            ("\"1\", *", None),
            ("w/\"1\"", None),
            ("\"a b\"", None),
        ] {
            let expected = expected.map(|versions| Precondition::Versions(versions.to_vec()));
            let expected = expected.ok_or(ApiProblem::PreconditionNotValid);
            assert_eq!(read(&[(IF_MATCH, list)]), expected, "{list:?}");
        }
        let two = read(&[(IF_MATCH, "\"1\""), (IF_MATCH, "\"2\"")]);
        assert_eq!(two, Ok(Precondition::Versions(vec![1, 2])));
    }
}
