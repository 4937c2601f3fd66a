//! Verifies a token by one tenant's keys and settings, from its raw text to its claims.
//!
//! It asks neither Redis nor a database: [`denylist`] only decides over values that admission reads, and
//! [`crate::users`] finds the user. `verify` and `explain` run the same checks, so that the report matches the server.

use std::fmt;

use crate::clock::UnixTime;
use crate::config::{Faults, IdType, TokenConfig};
use crate::error::{Check, Refusal, StoreError};
use crate::ids::{Jti, UserId};
use crate::user_id::UserIdError;

use claims::{Checks, ClaimFacts, ClaimRules};
use jwks::Jwks;
use key_source::KeySource;
use keys::KeyRing;
use segments::Segments;

pub use explain::{Asked, CheckReport, Explained, Later, Report, Verdict};
pub use mint::{MintError, MintRequest, mint};
pub use query_token::{RawToken, TokenPresence, find_token};

mod claims;
pub mod denylist;
pub mod explain;
mod json;
mod jwks;
mod key_set;
pub(crate) mod key_source;
pub mod keys;
pub mod mint;
pub mod query_token;
mod segments;

/// The keys and settings of one tenant, never of another.
pub struct TokenVerifier {
    rules: ClaimRules,
    keys: KeyRing,
    jwks: Option<Jwks>,
    max_size: usize,
}

impl fmt::Debug for TokenVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenVerifier").finish_non_exhaustive()
    }
}

/// The reason why a token was not verified.
#[derive(Debug)]
pub enum TokenError {
    /// The token is refused: `TokenNotValid`, `TokenExpired`, or `UserNotFound` for an id that no user can have.
    Refused(Refusal),
    /// The keys could not be fetched, so the token is neither valid nor invalid.
    Unavailable(StoreError),
}

/// A token with valid signature and claims. Its revocation and its user are not checked yet.
#[derive(Clone, Debug)]
pub struct VerifiedToken {
    /// Canonical (see [`crate::user_id`]).
    pub user_id: UserId,
    /// `None`: the tenant's `jti_claim` is `false`.
    pub jti: Option<Jti>,
    /// Unix seconds, without a fraction.
    pub issued_at: Option<f64>,
    /// `exp` plus leeway, in Unix seconds.
    pub expires_at: Option<f64>,
    /// The claims as a JSON object that every reader accepts.
    pub claims: Box<str>,
    /// The text of `revoke_token_claim`, if `check_revoke_token` is on and the token has the claim.
    pub revoke_digest: Option<String>,
}

/// The contents of a token with a valid signature, expired or not: enough to revoke it.
#[derive(Clone, Debug, PartialEq)]
pub struct SignedToken {
    /// `None`: the token has none, or the tenant's `jti_claim` is `false`.
    pub jti: Option<Jti>,
    /// `exp` plus leeway, in Unix seconds. `None`: it is not a valid time.
    pub expires_at: Option<f64>,
}

impl TokenVerifier {
    /// Parses every key. Fetches nothing.
    ///
    /// `id_type` is the type of the tenant's user ids.
    ///
    /// # Errors
    /// The faults of the keys, relative to `[tenants.NAME.token]`. They never show a key.
    pub fn new(config: &TokenConfig, id_type: IdType) -> Result<Self, Faults> {
        let KeySource { ring, set } = KeySource::read(config)?;
        let jwks = set.map(|(url, alg)| Jwks::new(url, alg)).transpose()?;
        Ok(Self {
            rules: ClaimRules::new(config, id_type),
            keys: ring,
            jwks,
            max_size: usize::try_from(config.max_size).unwrap_or(usize::MAX),
        })
    }

    /// Verifies a token like simplejwt's authentication by access token, up to its user.
    ///
    /// Waits only while a key is fetched from the tenant's `jwk_url`, at most 3 s.
    ///
    /// # Errors
    /// [`TokenError`].
    pub async fn verify(
        &self,
        token: &RawToken,
        now: UnixTime,
    ) -> Result<VerifiedToken, TokenError> {
        let mut checks = Checks::new();
        let segments = self.open(token.expose(), &mut checks).await?;
        self.judge(segments, now, &mut checks)
    }

    /// Verifies a token and reports the result of every check.
    pub async fn explain(&self, token: &RawToken, now: UnixTime) -> Explained {
        let mut checks = Checks::new();
        let text = token.expose();
        let outcome = match self.open(text, &mut checks).await {
            Ok(segments) => self.judge(segments, now, &mut checks),
            Err(error) => Err(error),
        };
        // Parsed a second time for the report, so that `verify` need not keep the values.
        let segments = match text.len() <= self.max_size {
            true => Segments::read(text).ok(),
            false => None,
        };
        let report = |(check, verdict, detail): (Check, Verdict, &'static str)| CheckReport {
            name: check.label(),
            verdict,
            value: match verdict {
                Verdict::NotReached => serde_json::Value::Null,
                _ => self.value_of(check, text, segments.as_ref()),
            },
            detail,
        };
        Explained {
            checks: checks.iter().map(report).collect(),
            outcome,
        }
    }

    /// Verifies the signature alone and ignores the claims: enough to revoke a token.
    ///
    /// # Errors
    /// [`TokenError`], with the check that failed among `size` to `signature`.
    pub async fn verify_signed_only(&self, token: &RawToken) -> Result<SignedToken, TokenError> {
        let segments = self.open(token.expose(), &mut Checks::new()).await?;
        let facts = self.rules.facts(&segments.claims);
        Ok(SignedToken {
            jti: facts.jti,
            expires_at: facts.expires_at,
        })
    }

    /// Returns `Ok` once the keys are available. Configured keys are at once; a key set may have to be fetched.
    ///
    /// # Errors
    /// [`StoreError`] if the key set at the tenant's `jwk_url` cannot be fetched.
    pub async fn ready(&self) -> Result<(), StoreError> {
        match &self.jwks {
            None => Ok(()),
            Some(jwks) => jwks.ready().await,
        }
    }

    /// Runs the checks from `size` to `signature`.
    async fn open<'t>(
        &self,
        token: &'t str,
        checks: &mut Checks,
    ) -> Result<Segments<'t>, TokenError> {
        if token.len() > self.max_size {
            return refuse(checks, Check::Size, "longer than max_size");
        }
        checks.pass(Check::Size, "");
        let segments = match Segments::read(token) {
            Ok(segments) => segments,
            Err(why) => return refuse(checks, Check::Format, why),
        };
        checks.pass(Check::Format, "");
        let alg = segments.alg.as_deref();
        let Some(alg) = alg.filter(|alg| self.has_algorithm(alg)) else {
            return refuse(
                checks,
                Check::Algorithm,
                "not an algorithm of the tenant's keys",
            );
        };
        checks.pass(Check::Algorithm, "");

        match self.find_signer(alg, &segments).await {
            Ok(Signer::Found) => {
                checks.pass(Check::Key, "");
                checks.pass(Check::Signature, "");
                Ok(segments)
            }
            Ok(Signer::NoKey) => refuse(checks, Check::Key, "no key of the tenant has this kid"),
            Ok(Signer::NotByThese) => {
                checks.pass(Check::Key, "");
                refuse(checks, Check::Signature, "not made by a key of the tenant")
            }
            Err(error) => {
                checks.unknown(Check::Key, "the tenant's jwk_url cannot be read");
                Err(TokenError::Unavailable(error))
            }
        }
    }

    fn has_algorithm(&self, name: &str) -> bool {
        let fetched = self.jwks.as_ref().map(|jwks| jwks.algorithm().name);
        self.keys.has_algorithm(name) || fetched == Some(name)
    }

    /// Finds the key of a token. Configured keys come first, so that a key set is fetched only for other keys.
    async fn find_signer(&self, alg: &str, segments: &Segments<'_>) -> Result<Signer, StoreError> {
        let kid = segments.kid.as_deref();
        let mut signer = Signer::NoKey;
        for key in self.keys.candidates(alg, kid) {
            if key.verifies(segments.signing_input, &segments.signature) {
                return Ok(Signer::Found);
            }
            signer = Signer::NotByThese;
        }
        if let (Some(jwks), Some(kid)) = (&self.jwks, kid)
            && jwks.algorithm().name == alg
            && let Some(key) = jwks.key(kid).await?
        {
            signer = match key.verifies(segments.signing_input, &segments.signature) {
                true => Signer::Found,
                false => Signer::NotByThese,
            };
        }
        Ok(signer)
    }

    /// Runs the checks from `iat` to `user_id`, and decides.
    fn judge(
        &self,
        segments: Segments<'_>,
        now: UnixTime,
        checks: &mut Checks,
    ) -> Result<VerifiedToken, TokenError> {
        let facts = self.rules.check(&segments.claims, now, checks);
        if let Some(refusal) = refusal_of(checks, &facts) {
            return Err(TokenError::Refused(refusal));
        }
        let user_id = match facts.user_id {
            Ok(user_id) => user_id,
            Err(UserIdError::OutOfRange) => {
                return Err(TokenError::Refused(Refusal::UserNotFound));
            }
            Err(UserIdError::NotReadable) => {
                return Err(TokenError::Refused(Refusal::TokenNotValid(Check::UserId)));
            }
        };
        Ok(VerifiedToken {
            user_id,
            jti: facts.jti,
            issued_at: facts.issued_at,
            expires_at: facts.expires_at,
            claims: segments.claims_text,
            revoke_digest: facts.revoke_digest,
        })
    }

    fn value_of(
        &self,
        check: Check,
        token: &str,
        segments: Option<&Segments<'_>>,
    ) -> serde_json::Value {
        let value = match check {
            Check::Size => return token.len().into(),
            Check::Algorithm => segments
                .and_then(|parts| parts.alg.as_deref())
                .map(Into::into),
            Check::Key => segments
                .and_then(|parts| parts.kid.as_deref())
                .map(Into::into),
            check => segments.and_then(|parts| {
                let claim = parts.claims.get(self.rules.claim_of(check)?);
                claim.map(json::Json::to_value)
            }),
        };
        value.unwrap_or_default()
    }
}

enum Signer {
    Found,
    NoKey,
    NotByThese,
}

fn refuse<T>(checks: &mut Checks, check: Check, detail: &'static str) -> Result<T, TokenError> {
    checks.fail(check, detail);
    Err(TokenError::Refused(Refusal::TokenNotValid(check)))
}

/// Returns the refusal of the first failed check. `TokenExpired` requires that a valid `exp` is the only failure.
fn refusal_of(checks: &Checks, facts: &ClaimFacts) -> Option<Refusal> {
    let mut failed = checks.failed();
    let first = failed.next()?;
    let is_all = failed.next().is_none();
    Some(match first {
        Check::Exp if facts.expired && is_all => Refusal::TokenExpired,
        check => Refusal::TokenNotValid(check),
    })
}
