//! `[tenants.NAME.token]`: the names of Django's `SIMPLE_JWT`, in lower case.

use std::time::Duration;

use super::KIB;
use super::claim::{ClaimTable, ExpectedClaim};
use super::collection::{List, OneOrMore, Optional, nested};
use super::document::{Node, Table};
use super::form::{ANY_SPAN, Flag, Size, Text, choice, or_false, quote};
use super::key::Inner;
use super::read::{Form, Reader};
use super::secret::{Secret, SecretText};
use super::table::{Keyed, table, words};

table! {
    /// The tokens that are accepted: the settings of `SIMPLE_JWT`, in lower case. A single key is written as `algorithm` with
    /// `signing_key` or `verifying_key`, several as `keys`.
    #[derive(Clone, Debug, PartialEq)]
    pub struct TokenConfig {
        /// Several keys at once, for rotation: `[{ algorithm, kid?, signing_key?, verifying_key? }, …]`, at most 8. With a
        /// `kid` in the token, entries with that kid come first, then those without one.
        pub keys: Vec<KeyConfig> as List(nested()) => Vec::new(),
        /// The URL of a key set (JWKS): https, or http on a loopback address.
        pub jwk_url: Option<String> as Optional(Text) => None,
        /// Allow a `jwk_url` over http on any address. Anyone who can change what comes from there can sign tokens.
        pub insecure_jwk_url: bool as Flag => false,
        /// Issuers with keys of their own. The `iss` of a token chooses the entry, character by character; keys beside the list
        /// are for all other tokens. At most 16.
        pub issuers: Vec<IssuerConfig> as List(IssuerTable) => Vec::new(),
        /// The algorithm of the single key, or with `jwk_url` the only one that is accepted: HS256, HS384, HS512, RS256, RS384,
        /// RS512, PS256, PS384, PS512, ES256, ES384 or EdDSA.
        pub algorithm: Option<String> as Optional(Text) => None,
        /// The claim with the user's id.
        pub user_id_claim: String as Text => "user_id".to_owned(),
        /// The column that the claim is compared with. Any other than `id` must be a column of `users.table`, or one that
        /// `users.query` returns; it is compared as text, or with `id_type = "uuid"` as a UUID.
        pub user_id_field: String as Text => "id".to_owned(),
        /// The claim with the token's id. With `false` only cut-offs revoke.
        pub jti_claim: Option<String> as or_false(Text) => Some("jti".to_owned()),
        /// The claim with the token's type.
        pub token_type_claim: Option<String> as or_false(Text) => Some("token_type".to_owned()),
        /// The types that are accepted.
        pub token_types: Vec<String> as List(Text) => vec!["access".to_owned()],
        /// The accepted audiences. A token must name one of them. Empty: not checked.
        pub audience: Vec<String> as OneOrMore => Vec::new(),
        /// The accepted issuers of the keys beside `issuers`. A token must name one of them. Empty: not checked.
        pub issuer: Vec<String> as OneOrMore => Vec::new(),
        /// Claims that a token must have, with their values: `{ azp = "web" }` equals, `{ client_id = ["a", "b"] }` is one of
        /// them, `{ scope = { contains = "chat" } }` is an element of a list, or a word between spaces of a text. A name is looked for
        /// whole, then as a path through objects: `"realm_access.roles"`. At most 32.
        pub claims: Vec<ExpectedClaim> as ClaimTable => Vec::new(),
        /// The largest difference between clocks.
        pub leeway: Duration as ANY_SPAN => Duration::ZERO,
        /// End a token when its user's password changes.
        pub check_revoke_token: bool as Flag => false,
        /// With `check_revoke_token`: the claim with the digest of the password's hash.
        pub revoke_token_claim: String as Text => "hash_password".to_owned(),
        /// Refuse users that are not active.
        pub check_user_is_active: bool as Flag => true,
        /// The longest token that is accepted.
        pub max_size: u64 as Size(64) => 8 * KIB,
        /// The places that may hold a token. Tokens from two places must be equal. A cookie, which browsers add by themselves,
        /// counts only where no place before it in the list has a token, and then alone.
        pub sources: Vec<TokenSource> as List(choice()) => vec![
            TokenSource::Query,
            TokenSource::Header,
            TokenSource::Subprotocol,
        ],
        /// With `"cookie"` in `sources`: the name of the cookie. A token from a cookie is taken from pages of `origins` alone, so
        /// that a request without an `Origin` is refused.
        pub cookie: String as CookieName => "access_token".to_owned(),
        /// The name of the query parameter.
        pub query_parameter: String as Text => "token".to_owned(),
        /// The effect of a token's expiry on its socket: closed with 4001, or kept.
        pub on_expiry: OnExpiry as choice() => OnExpiry::Close,
        /// Take the text frame `{"type":"lockgate.refresh","token":"…"}` of a client, on every route, as a new token for its open
        /// socket. With `false` it goes to the consumer like any frame.
        pub refresh: bool as Flag => false,
    }
}

table! {
    /// One issuer of tokens, with the keys that verify its tokens and no others. A single key is written as `algorithm` with
    /// `signing_key` or `verifying_key`, several as `keys`.
    #[derive(Clone, Debug, PartialEq)]
    pub struct IssuerConfig {
        /// The claim `iss` of its tokens, to the last character.
        pub issuer: String as Text => String::new(),
        /// Several keys, as beside `issuers`.
        pub keys: Vec<KeyConfig> as List(nested()) => Vec::new(),
        /// The URL of its key set, as beside `issuers`.
        pub jwk_url: Option<String> as Optional(Text) => None,
        /// The algorithm of its single key, or with `jwk_url` the only one that is accepted.
        pub algorithm: Option<String> as Optional(Text) => None,
        /// The accepted audiences of its tokens. Empty: those beside `issuers`.
        pub audience: Vec<String> as OneOrMore => Vec::new(),
    }
}

table! {
    /// One key that tokens are verified with.
    #[derive(Clone, Debug, PartialEq)]
    pub struct KeyConfig {
        /// The only algorithm that this key is used with.
        pub algorithm: String as Text => String::new(),
        /// The id by which a token's header may name the key.
        pub kid: Option<String> as Optional(Text) => None,
        /// For HS256, HS384 and HS512: the shared key, used as UTF-8 text. Under 32 bytes is a warning, because such a
        /// key can be guessed from a token.
        pub signing_key: Option<Secret> as Optional(SecretText) => None,
        /// For all other algorithms: the public key as PEM.
        pub verifying_key: Option<Secret> as Optional(SecretText) => None,
    }
}

table! {
    /// The keys of the single form, which stand beside those of [`TokenConfig`].
    #[derive(Clone, Debug, PartialEq)]
    pub(super) struct SingleKey {
        /// The shared key of HS256, HS384 and HS512, used as UTF-8 text. Under 32 bytes is a warning, because such a
        /// key can be guessed from a token.
        pub signing_key: Option<Secret> as Optional(SecretText) => None,
        /// The public key of all other algorithms, as PEM.
        pub verifying_key: Option<Secret> as Optional(SecretText) => None,
    }
}

impl TokenConfig {
    /// Returns true if keys stand beside `issuers`, or what is meant to be some.
    pub(crate) fn has_own_keys(&self) -> bool {
        !self.keys.is_empty() || self.jwk_url.is_some()
    }
}

/// The written form of a [`TokenConfig`], which holds a single key in the same table.
pub(super) struct TokenTable;

impl Form for TokenTable {
    type Value = TokenConfig;

    fn expected(&self) -> String {
        "a table".to_owned()
    }

    fn read(&self, node: &Node, reader: &mut Reader<'_>) -> Option<TokenConfig> {
        let Some(table) = node.as_table() else {
            return reader.wrong_type(node, self, "");
        };
        reader.refuse_unknown(table, &[TokenConfig::NAMES, SingleKey::NAMES].concat());
        let mut token = TokenConfig::read_keys(table, reader);
        let single = read_single(table, token.algorithm.as_ref(), reader)?;
        token.keys.extend(single);
        Some(token)
    }

    fn print(&self, _: &TokenConfig) -> Option<String> {
        None
    }

    fn inner(&self) -> Inner {
        let mut keys = TokenConfig::keys();
        keys.extend(SingleKey::keys());
        Inner::Table(TokenConfig::ABOUT, keys)
    }
}

/// The written form of an [`IssuerConfig`], which holds a single key in the same table.
struct IssuerTable;

impl Form for IssuerTable {
    type Value = IssuerConfig;

    fn expected(&self) -> String {
        "a table such as { issuer = \"https://…\", jwk_url = \"https://…\", algorithm = \"RS256\" }"
            .to_owned()
    }

    fn read(&self, node: &Node, reader: &mut Reader<'_>) -> Option<IssuerConfig> {
        let Some(table) = node.as_table() else {
            return reader.wrong_type(node, self, "");
        };
        reader.refuse_unknown(table, &[IssuerConfig::NAMES, SingleKey::NAMES].concat());
        let mut entry = IssuerConfig::read_keys(table, reader);
        let single = read_single(table, entry.algorithm.as_ref(), reader)?;
        entry.keys.extend(single);
        Some(entry)
    }

    fn print(&self, _: &IssuerConfig) -> Option<String> {
        None
    }

    fn inner(&self) -> Inner {
        let mut keys = IssuerConfig::keys();
        keys.extend(SingleKey::keys());
        Inner::Table(IssuerConfig::ABOUT, keys)
    }
}

/// Reads the single key of a table, if it has one. `None`: a key stands there without its algorithm, and was reported.
fn read_single(
    table: &Table,
    algorithm: Option<&String>,
    reader: &mut Reader<'_>,
) -> Option<Option<KeyConfig>> {
    let single = SingleKey::read_keys(table, reader);
    let mut names = SingleKey::NAMES.iter();
    let Some(name) = names.find(|name| table.contains_key(**name)) else {
        return Some(None);
    };
    if let Some(keys) = table.get("keys") {
        reader.below("keys", |reader| {
            let found = format!("the list beside {name}");
            let expected = "either keys = [ … ] or algorithm with one key";
            reader.mistake::<()>(keys, found, expected, "move the single key into the list")
        });
        return Some(None);
    }
    match algorithm {
        Some(algorithm) => Some(Some(KeyConfig {
            algorithm: algorithm.clone(),
            kid: None,
            signing_key: single.signing_key,
            verifying_key: single.verifying_key,
        })),
        None if !table.contains_key("algorithm") => {
            let expected = "algorithm beside it";
            reader.below(*name, |reader| {
                reader.mistake(&table[*name], "a key without its algorithm", expected, "")
            })
        }
        None => Some(None),
    }
}

/// The name of a cookie: a token of RFC 9110 §5.6.2, as RFC 6265 §4.1.1 wants it.
struct CookieName;

impl Form for CookieName {
    type Value = String;

    fn expected(&self) -> String {
        "the name of a cookie".to_owned()
    }

    fn read(&self, node: &Node, reader: &mut Reader<'_>) -> Option<String> {
        let name = Text.read(node, reader)?;
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        match name.bytes().all(allowed) {
            true => Some(name),
            false => reader.wrong(node, self, "it has no spaces, quotes, commas or \"=\""),
        }
    }

    fn print(&self, value: &String) -> Option<String> {
        Some(quote(value))
    }
}

words! {
    /// A place that may hold a token.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum TokenSource {
        /// The query parameter.
        Query = "query",
        /// `Authorization: Bearer`.
        Header = "header",
        /// The pair `bearer` (or `Bearer`, `token`, `Token`), token in `Sec-WebSocket-Protocol`.
        Subprotocol = "subprotocol",
        /// A cookie (RFC 6265).
        Cookie = "cookie",
    }
}

words! {
    /// The effect of a token's expiry on its socket.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum OnExpiry {
        /// 4001 at `exp` plus leeway.
        Close = "close",
        /// It stays.
        Keep = "keep",
    }
}
