//! Verifies a token by one tenant's keys and settings, from its raw text to its claims.
//!
//! It asks neither Redis nor a database: [`denylist`] only decides over values that admission reads, and
//! [`crate::users`] finds the user. `verify` and `explain` run the same checks, so that the report matches the server.

use std::borrow::Cow;
use std::fmt;

use crate::clock::UnixTime;
use crate::config::{Faults, IdType, TokenConfig, Trust};
use crate::error::{Check, Refusal, StoreError};
use crate::ids::{Jti, UserId};
use crate::user_id::UserIdError;

use claims::{Checks, ClaimFacts, ClaimRules};
use issuers::{Issuer, Issuers, Signer, near_miss};
use segments::Segments;

pub use explain::{Asked, CheckReport, Explained, Later, Report, Verdict};
pub(crate) use issuers::listed_issuer;
pub use mint::{MintError, MintRequest, mint};
pub use query_token::{RawToken, TokenPresence, find_token};

mod algorithm;
mod claim_rules;
mod claims;
pub mod denylist;
pub mod explain;
pub(crate) mod issuers;
mod json;
mod jwks;
mod key_set;
pub(crate) mod key_source;
pub mod keys;
pub mod mint;
mod public_key;
pub mod query_token;
mod segments;
mod ssh_key;

/// The keys and settings of one tenant, never of another.
pub struct TokenVerifier {
    rules: ClaimRules,
    issuers: Issuers,
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
    /// Unix seconds, as the token has it: without the leeway. `None`: it is not a valid time.
    pub exp: Option<f64>,
}

impl TokenVerifier {
    /// Parses every key. Fetches nothing.
    ///
    /// `id_type` is the type of the tenant's user ids.
    ///
    /// # Errors
    /// The faults of the keys, relative to `[tenants.NAME.token]`. They never show a key.
    pub fn new(config: &TokenConfig, id_type: IdType) -> Result<Self, Faults> {
        Ok(Self {
            rules: ClaimRules::new(config, id_type),
            issuers: Issuers::new(config)?,
            max_size: usize::try_from(config.max_size).unwrap_or(usize::MAX),
        })
    }

    /// Sets the trust in the server of `jwk_url`; without a call it is the default.
    ///
    /// # Errors
    /// The fault of a client that cannot be made.
    pub fn trusting(mut self, trust: &Trust) -> Result<Self, Faults> {
        self.issuers.set_trust(trust)?;
        Ok(self)
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
        let (segments, issuer) = self.open(token.expose(), &mut checks).await?;
        self.judge(segments, issuer, now, &mut checks)
    }

    /// Verifies a token and reports the result of every check.
    pub async fn explain(&self, token: &RawToken, now: UnixTime) -> Explained {
        let mut checks = Checks::new();
        let text = token.expose();
        let outcome = match self.open(text, &mut checks).await {
            Ok((segments, issuer)) => self.judge(segments, issuer, now, &mut checks),
            Err(error) => Err(error),
        };
        // Parsed a second time for the report, so that `verify` need not keep the values.
        let segments = match text.len() <= self.max_size {
            true => Segments::read(text).ok(),
            false => None,
        };
        let is_signed = checks.has_passed(Check::Signature);
        let report = |(check, verdict, detail): (Check, Verdict, &'static str)| CheckReport {
            name: check.label(),
            verdict,
            value: match verdict {
                Verdict::NotReached => serde_json::Value::Null,
                // No key may verify the token, so that its claims are anybody's.
                _ if check == Check::Issuer && !is_signed => serde_json::Value::Null,
                _ => self.value_of(check, text, segments.as_ref()),
            },
            detail: self.detail_of(check, verdict, segments.as_ref(), detail),
        };
        let is_made = |check: Check| check != Check::Claims || self.rules.expects_claims();
        let made = checks.iter().filter(|(check, ..)| is_made(*check));
        Explained {
            checks: made.map(report).collect(),
            outcome,
        }
    }

    /// Verifies the signature alone and ignores the claims: enough to revoke a token.
    ///
    /// # Errors
    /// [`TokenError`], with the check that failed among `size` to `signature`.
    pub async fn verify_signed_only(&self, token: &RawToken) -> Result<SignedToken, TokenError> {
        let (segments, _) = self.open(token.expose(), &mut Checks::new()).await?;
        let facts = self.rules.facts(&segments.claims);
        Ok(SignedToken {
            jti: facts.jti,
            exp: facts.exp,
        })
    }

    /// Returns `Ok` once the keys are available. Configured keys are at once; a key set may have to be fetched.
    ///
    /// # Errors
    /// The [`StoreError`] of the first key set that cannot be fetched. The others are fetched all the same.
    pub async fn ready(&self) -> Result<(), StoreError> {
        let fetched = self.issuers.ready().await;
        fetched.into_iter().try_for_each(|(_, fetched)| fetched)
    }

    /// Fetches each key set that is not there yet. The texts are the issuers of the sets, `None` for the set of `jwk_url` beside
    /// the list of issuers.
    pub async fn fetch_each(&self) -> Vec<(Option<&str>, Result<(), StoreError>)> {
        self.issuers.ready().await
    }

    /// Returns the issuers, as in [`TokenVerifier::fetch_each`], whose key sets come over a connection that others may change.
    pub fn insecure_sets(&self) -> impl Iterator<Item = Option<&str>> {
        let insecure = self.issuers.sets().filter(|(_, jwks)| jwks.is_insecure);
        insecure.map(|(issuer, _)| issuer)
    }

    /// Runs the checks from `size` to `signature`.
    async fn open<'t>(
        &self,
        token: &'t str,
        checks: &mut Checks,
    ) -> Result<(Segments<'t>, Option<&Issuer>), TokenError> {
        if token.len() > self.max_size {
            return refuse(checks, Check::Size, "longer than max_size");
        }
        checks.pass(Check::Size, "");
        let segments = match Segments::read(token) {
            Ok(segments) => segments,
            Err(why) => return refuse(checks, Check::Format, why),
        };
        checks.pass(Check::Format, "");
        let iss = segments.claims.get("iss").and_then(json::Json::as_text);
        let Some((keys, issuer)) = self.issuers.of(iss) else {
            return refuse(checks, Check::Issuer, "not one of the configured issuers");
        };
        let alg = segments.alg.as_deref();
        let Some(alg) = alg.filter(|alg| keys.has_algorithm(alg)) else {
            return refuse(
                checks,
                Check::Algorithm,
                "not an algorithm of the tenant's keys",
            );
        };
        checks.pass(Check::Algorithm, "");

        match keys.find_signer(alg, &segments).await {
            Ok(Signer::Found) => {
                checks.pass(Check::Key, "");
                checks.pass(Check::Signature, "");
                Ok((segments, issuer))
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

    /// Runs the checks from `iat` to `user_id`, and decides.
    fn judge(
        &self,
        segments: Segments<'_>,
        issuer: Option<&Issuer>,
        now: UnixTime,
        checks: &mut Checks,
    ) -> Result<VerifiedToken, TokenError> {
        let facts = self.rules.check(&segments.claims, issuer, now, checks);
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
            expires_at: facts.exp.map(|exp| self.rules.accepted_until(exp)),
            claims: segments.claims_text,
            revoke_digest: facts.revoke_digest,
        })
    }

    /// Returns the detail of a check for a report, which may take longer than the check.
    fn detail_of(
        &self,
        check: Check,
        verdict: Verdict,
        segments: Option<&Segments<'_>>,
        fixed: &'static str,
    ) -> Cow<'static, str> {
        match (check, verdict, segments) {
            (Check::Claims, Verdict::Fail, Some(parts)) => {
                self.rules.failed_rules(&parts.claims).into()
            }
            (
                Check::Algorithm | Check::Key | Check::Signature | Check::Issuer,
                Verdict::Fail,
                Some(parts),
            ) => {
                let iss = parts.claims.get("iss").and_then(json::Json::as_text);
                let known = self.issuers.names().chain(self.rules.issuers());
                match iss.and_then(|iss| near_miss(iss, known)) {
                    Some(miss) => format!("{fixed}; {miss}").into(),
                    None => fixed.into(),
                }
            }
            _ => fixed.into(),
        }
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
