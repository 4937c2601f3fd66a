//! Wrong and doubtful values of claim rules, cookies and issuers.

use super::wrong::Row;
use super::{Folder, TENANT, warnings};

const CLAIMS: &str = "tenants.acme.token.claims";
const TOKEN: &str = "tenants.acme.token";

/// The wrong values, for the table of [`super::wrong`].
pub(super) fn rows() -> Vec<Row> {
    [claims(), contradictions(), cookies(), issuers()].concat()
}

fn claims() -> Vec<Row> {
    let azp = "tenants.acme.token.claims.azp";
    vec![
        (
            CLAIMS,
            "'web'",
            "",
            "found text, expected a table such as { azp =",
        ),
        (CLAIMS, "['azp']", "", "found a list, expected a table"),
        (
            CLAIMS,
            "{ azp = '' }",
            azp,
            "found an empty text, expected text, a number",
        ),
        (
            CLAIMS,
            "{ azp = [] }",
            azp,
            "found a list of 0 values, expected 1 to 64 values",
        ),
        (
            CLAIMS,
            "{ azp = ['a', ['b']] }",
            "tenants.acme.token.claims.azp[1]",
            "found a list",
        ),
        (
            CLAIMS,
            "{ azp = ['a', { contains = 'b' }] }",
            "tenants.acme.token.claims.azp[1]",
            "found a table",
        ),
        (
            CLAIMS,
            "{ azp = {} }",
            azp,
            "found an empty table, expected a value, a list of values, or { contains",
        ),
        (
            CLAIMS,
            "{ azp = { contain = 'b' } }",
            azp,
            "found a table with \"contain\"",
        ),
        (
            CLAIMS,
            "{ azp = { contains = 'b', all = true } }",
            "tenants.acme.token.claims.azp.all",
            "found an unknown key",
        ),
        (
            CLAIMS,
            "{ azp = { contains = ['a', 'b'] } }",
            "tenants.acme.token.claims.azp.contains",
            "found a list",
        ),
        (CLAIMS, "{ azp = nan }", azp, "found NaN"),
        (CLAIMS, "{ azp = inf }", azp, "found inf"),
        (CLAIMS, "{ azp = 2026-01-01 }", azp, "a claim has no dates"),
        // TOML makes tables of a name with dots that has no quotes.
        (
            CLAIMS,
            "{ realm_access = { roles = { contains = 'user' } } }",
            "tenants.acme.token.claims.realm_access",
            "a path through objects is one key in quotes",
        ),
        (
            CLAIMS,
            "{ '' = 'x' }",
            "tenants.acme.token.claims.\"\"",
            "expected the name of a claim",
        ),
        (
            CLAIMS,
            "{ 'a..b' = 'x' }",
            "tenants.acme.token.claims.\"a..b\"",
            "one dot between two names",
        ),
        (
            CLAIMS,
            "{ 'a.' = 'x' }",
            "tenants.acme.token.claims.\"a.\"",
            "one dot between two names",
        ),
    ]
}

/// Rules that no accepted token can satisfy.
fn contradictions() -> Vec<Row> {
    vec![
        (
            CLAIMS,
            "{ exp = 'soon' }",
            "tenants.acme.token.claims.exp",
            "expected a number, which exp is in every token",
        ),
        (
            CLAIMS,
            "{ exp = { contains = 5 } }",
            "tenants.acme.token.claims.exp",
            "expected a number",
        ),
        (
            CLAIMS,
            "{ sub = 5 }",
            "tenants.acme.token.claims.sub",
            "found 5, expected text, which sub is in every token",
        ),
        (
            CLAIMS,
            "{ jti = [true, 5] }",
            "tenants.acme.token.claims.jti",
            "expected text",
        ),
        (
            CLAIMS,
            "{ token_type = 'refresh' }",
            "tenants.acme.token.claims.token_type",
            "expected one of [\"access\"], as another setting has it",
        ),
        (
            TOKEN,
            "{ algorithm = 'HS256', signing_key = 'hunter2-hunter2-hunter2-hunter2-', issuer = 'a', claims = { iss = ['b', 'c'] } }",
            "tenants.acme.token.claims.iss",
            "expected one of [\"a\"]",
        ),
        (
            TOKEN,
            "{ algorithm = 'HS256', signing_key = 'hunter2-hunter2-hunter2-hunter2-', audience = 'a', claims = { aud = 'b' } }",
            "tenants.acme.token.claims.aud",
            "expected one of [\"a\"]",
        ),
        (
            TOKEN,
            "{ algorithm = 'HS256', signing_key = 'hunter2-hunter2-hunter2-hunter2-', max_size = '64B', claims = { azp = '0123456789012345678901234567890123456789012345678901234567890123456789' } }",
            "tenants.acme.token.claims.azp",
            "expected a value that is shorter than token.max_size",
        ),
    ]
}

fn cookies() -> Vec<Row> {
    let cookie = "tenants.acme.token.cookie";
    vec![
        (cookie, "''", "", "found an empty text"),
        (
            cookie,
            "'a b'",
            "",
            "found \"a b\", expected the name of a cookie",
        ),
        (cookie, "'a=b'", "", "expected the name of a cookie"),
        (cookie, "'\"a\"'", "", "expected the name of a cookie"),
        (cookie, "'tôken'", "", "expected the name of a cookie"),
        (
            "tenants.acme.token.sources",
            "['cookies']",
            "tenants.acme.token.sources[0]",
            "found \"cookies\", expected \"query\" or",
        ),
        (
            "tenants.acme",
            "{ token = { sources = ['cookie'], algorithm = 'HS256', signing_key = 'hunter2-hunter2-hunter2-hunter2-' }, users = { database = 'sqlite::memory:' }, origins = ['https://a.example', '*'] }",
            "tenants.acme.origins[1]",
            "found \"*\" beside a cookie in token.sources",
        ),
        (
            "tenants.acme",
            "{ token = { sources = ['query', 'cookie'], algorithm = 'HS256', signing_key = 'hunter2-hunter2-hunter2-hunter2-' }, users = { database = 'sqlite::memory:' }, origins = ['null'] }",
            "tenants.acme.origins[0]",
            "found \"null\" beside a cookie",
        ),
    ]
}

fn issuers() -> Vec<Row> {
    let first = "tenants.acme.token.issuers[0]";
    vec![
        (
            TOKEN,
            "{ issuers = 'x' }",
            "tenants.acme.token.issuers",
            "expected a list, each a table such as { issuer =",
        ),
        (TOKEN, "{ issuers = [] }", TOKEN, "found no key"),
        (
            TOKEN,
            "{ issuers = [{ issuer = 'a' }] }",
            first,
            "found no key, expected algorithm with",
        ),
        (
            TOKEN,
            "{ issuers = [{ issuer = 'a', signing_key = 'hunter2' }] }",
            "tenants.acme.token.issuers[0].signing_key",
            "found a key without its algorithm",
        ),
        (
            TOKEN,
            "{ issuers = [{ issuer = 'a', algorithm = 'RS256', verifying_key = 'hunter2' }] }",
            "tenants.acme.token.issuers[0].verifying_key",
            "found text that is no PEM",
        ),
        (
            TOKEN,
            "{ issuers = [{ issuer = 'a', algorithm = 'RS256', verifying_key = 'ssh-rsa hunter2' }] }",
            "tenants.acme.token.issuers[0].verifying_key",
            "found an SSH key that cannot be read",
        ),
        (
            TOKEN,
            "{ issuers = [{ issuer = 'a', jwk_url = 'http://id.example/hunter2', algorithm = 'RS256' }] }",
            "tenants.acme.token.issuers[0].jwk_url",
            "found a URL over http",
        ),
        (
            TOKEN,
            "{ issuers = [{ issuer = 'a', jwk_url = 'https://id.example/' }] }",
            "tenants.acme.token.issuers[0].algorithm",
            "found jwk_url without algorithm",
        ),
        (
            TOKEN,
            "{ issuers = [{ algorithm = 'HS256', signing_key = 'hunter2-hunter2-hunter2-hunter2-' }] }",
            "tenants.acme.token.issuers[0].issuer",
            "found no issuer",
        ),
        (
            TOKEN,
            "{ issuers = [{ issuer = 'a', leeway = '5s', algorithm = 'HS256', signing_key = 'hunter2-hunter2-hunter2-hunter2-' }] }",
            "tenants.acme.token.issuers[0].leeway",
            "found an unknown key",
        ),
        (
            TOKEN,
            "{ issuers = [{ issuer = 'a', algorithm = 'HS256', signing_key = 'hunter2-hunter2-hunter2-hunter2-' }, { issuer = 'a', algorithm = 'HS256', signing_key = 'hunter2-hunter2-hunter2-hunter3-' }] }",
            "tenants.acme.token.issuers[1].issuer",
            "found \"a\", as in issuers[0], expected each issuer once",
        ),
        (
            TOKEN,
            "{ issuer = ['b', 'a'], algorithm = 'HS256', signing_key = 'hunter2-hunter2-hunter2-hunter2-', issuers = [{ issuer = 'a', algorithm = 'HS256', signing_key = 'hunter2-hunter2-hunter2-hunter3-' }] }",
            "tenants.acme.token.issuer",
            "found \"a\" beside issuers[0], expected one of the two",
        ),
        (
            TOKEN,
            "{ issuer = 'b', issuers = [{ issuer = 'a', algorithm = 'HS256', signing_key = 'hunter2-hunter2-hunter2-hunter3-' }] }",
            "tenants.acme.token.issuer",
            "found issuer beside issuers, without a key that it is for",
        ),
        (
            TOKEN,
            "{ algorithm = 'HS256', issuers = [{ issuer = 'a', algorithm = 'HS256', signing_key = 'hunter2-hunter2-hunter2-hunter3-' }] }",
            "tenants.acme.token.algorithm",
            "found algorithm beside issuers",
        ),
        (
            TOKEN,
            "{ jwk_url = 'ftp://id.example/hunter2', algorithm = 'RS256', insecure_jwk_url = true }",
            "tenants.acme.token.jwk_url",
            "found another URL, expected https://",
        ),
    ]
}

/// Valid settings of which an operator should know, each with a part of its warning.
#[test]
fn what_is_valid_and_doubtful_warns() {
    let issuer = "algorithm = 'HS256', signing_key = '0123456789abcdef0123456789abcdef'";
    for (token, groups, told) in [
        (
            "claims = { azp = 'web', n = 5, f = 1.5, b = true }",
            "",
            None,
        ),
        (
            "claims = { 'realm_access.roles' = { contains = 'user' } }",
            "{claims.realm_access.x}",
            None,
        ),
        ("sources = ['cookie']", "", None),
        (
            "cookie = 'jwt'",
            "",
            Some("token.cookie: not used: sources has no \"cookie\""),
        ),
        ("", "{claims.org.team}", None),
        (
            "",
            "{claims.exp.x}",
            Some("{claims.exp.x}: no accepted token has anything below exp"),
        ),
        ("", "{claims.sub.a.b}", Some("anything below sub")),
        ("", "{claims.a..b}", Some("a part of the path is empty")),
        (
            "claims = { org = 'a' }",
            "{claims.org.team}",
            Some("anything below org"),
        ),
        (
            "claims = { n = { contains = 5 } }",
            "{claims.n}",
            Some("takes a list alone"),
        ),
        (
            "claims = { 'user_id.x' = 'a' }",
            "",
            Some("claims.\"user_id.x\": no accepted token"),
        ),
        (
            &format!(
                "issuers = [{{ issuer = 'https://a/', {issuer} }}, {{ issuer = 'https://a', {issuer} }}]"
            ),
            "",
            Some("issuers[1].issuer: differs from issuers[0] by a slash at its end"),
        ),
        (
            "insecure_jwk_url = true\njwk_url = 'http://127.0.0.1:1/x'",
            "",
            None,
        ),
        (
            "insecure_jwk_url = true\njwk_url = 'https://id.example/x'",
            "",
            None,
        ),
    ] {
        let mut text = TENANT.replace(
            "hunter2-hunter2-hunter2-hunter2-",
            "0123456789abcdef0123456789abcdef",
        );
        if token.contains("jwk_url") {
            text = text.replace("signing_key = \"0123456789abcdef0123456789abcdef\"\n", "");
            text = text.replace("HS256", "RS256");
        }
        text = text.replacen(
            "[tenants.acme.users]",
            &format!("{token}\n[tenants.acme.users]"),
            1,
        );
        text = text.replace("[\"all\"]", &format!("[\"all_{groups}\"]"));
        let loaded = Folder::new(&text)
            .load(&[])
            .unwrap_or_else(|lines| panic!("{text}: {lines:#?}"));
        let warned = warnings(&loaded);
        match told {
            None => assert_eq!(warned, "", "{token}"),
            Some(told) => assert!(warned.contains(told), "{token} {groups}: {warned}"),
        }
    }
}

#[test]
fn keys_over_http_warn() {
    let text = TENANT
        .replace(
            "signing_key = \"hunter2-hunter2-hunter2-hunter2-\"",
            "jwk_url = \"http://id.example/jwks\"\ninsecure_jwk_url = true",
        )
        .replace("HS256", "RS256");
    let loaded = Folder::new(&text).load(&[]).expect("is valid");
    assert!(
        warnings(&loaded).contains("token.jwk_url: keys over http"),
        "{}",
        warnings(&loaded)
    );
}
