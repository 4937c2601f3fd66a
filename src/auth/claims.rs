//! Checks the claims of a token with a valid signature, by the rules of simplejwt 5.5 and PyJWT 2.15.
//!
//! All checks run, even after a failure: `token explain` shows each, and a token of which only `exp` failed is refused
//! as expired. Numbers are read as by Python's `int()`.
//!
//! It replaces jsonwebtoken's `Validation`, which accepts an absent `aud` or `iss`, or one of a wrong type, and checks
//! neither `iat` nor `jti`.

use crate::clock::UnixTime;
use crate::config::{ExpectedClaim, IdType, TokenConfig};
use crate::error::Check;
use crate::ids::{Jti, UserId};
use crate::user_id::{self, UserIdError};

use super::claim_rules;
use super::explain::Verdict;
use super::issuers::Issuer;
use super::json::Json;
use super::segments::Claims;

/// 10000-01-01 in Unix seconds. Python's `datetime` ends before it, so simplejwt fails from here on. A time in
/// milliseconds lies beyond it.
const YEAR_10000: f64 = 253_402_300_800.0;

/// The number of checks that need neither Redis nor a database.
pub(crate) const TOKEN_CHECKS: usize = 15;

/// The results so far, in the order of [`Check::ALL`].
pub(crate) struct Checks([(Verdict, &'static str); TOKEN_CHECKS]);

impl Checks {
    pub(crate) fn new() -> Self {
        Self([(Verdict::NotReached, ""); TOKEN_CHECKS])
    }

    pub(crate) fn pass(&mut self, check: Check, detail: &'static str) {
        self.0[check as usize] = (Verdict::Pass, detail);
    }

    pub(crate) fn fail(&mut self, check: Check, detail: &'static str) {
        self.0[check as usize] = (Verdict::Fail, detail);
    }

    pub(crate) fn unknown(&mut self, check: Check, detail: &'static str) {
        self.0[check as usize] = (Verdict::Unknown, detail);
    }

    pub(crate) fn has_passed(&self, check: Check) -> bool {
        self.0[check as usize].0 == Verdict::Pass
    }

    fn record(&mut self, check: Check, outcome: Result<&'static str, &'static str>) {
        match outcome {
            Ok(detail) => self.pass(check, detail),
            Err(detail) => self.fail(check, detail),
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Check, Verdict, &'static str)> {
        let named = Check::ALL.iter().zip(&self.0);
        named.map(|(check, (verdict, detail))| (*check, *verdict, *detail))
    }

    pub(crate) fn failed(&self) -> impl Iterator<Item = Check> {
        self.iter()
            .filter(|(_, verdict, _)| *verdict == Verdict::Fail)
            .map(|(check, ..)| check)
    }
}

/// The values that the checks have read from the claims.
pub(crate) struct ClaimFacts {
    pub(crate) issued_at: Option<f64>,
    /// `exp` in Unix seconds. `None`: it is not a valid time.
    pub(crate) exp: Option<f64>,
    /// `exp` is a valid time in the past.
    pub(crate) expired: bool,
    pub(crate) jti: Option<Jti>,
    pub(crate) user_id: Result<UserId, UserIdError>,
    pub(crate) revoke_digest: Option<String>,
}

/// The settings of one tenant, prepared for the checks.
#[derive(Debug)]
pub(crate) struct ClaimRules {
    leeway: f64,
    issuer: Vec<String>,
    audience: Vec<String>,
    jti_claim: Option<String>,
    token_type_claim: Option<String>,
    token_types: Vec<String>,
    expected: Vec<ExpectedClaim>,
    user_id_claim: String,
    id_type: IdType,
    revoke_claim: Option<String>,
}

impl ClaimRules {
    pub(crate) fn new(config: &TokenConfig, id_type: IdType) -> Self {
        Self {
            leeway: config.leeway.as_secs_f64(),
            issuer: config.issuer.clone(),
            audience: config.audience.clone(),
            jti_claim: config.jti_claim.clone(),
            token_type_claim: config.token_type_claim.clone(),
            token_types: config.token_types.clone(),
            expected: config.claims.clone(),
            user_id_claim: config.user_id_claim.clone(),
            id_type: user_id::id_type_of(config, id_type),
            revoke_claim: config
                .check_revoke_token
                .then(|| config.revoke_token_claim.clone()),
        }
    }

    /// Returns the time until which a token of this `exp` is accepted, in Unix seconds: `exp` plus leeway.
    pub(crate) fn accepted_until(&self, exp: f64) -> f64 {
        exp + self.leeway
    }

    /// Returns the accepted issuers of keys beside the list of issuers.
    pub(crate) fn issuers(&self) -> impl Iterator<Item = &str> {
        self.issuer.iter().map(String::as_str)
    }

    /// Returns the name of the claim that a check reads, for a report.
    pub(crate) fn claim_of(&self, check: Check) -> Option<&str> {
        match check {
            Check::Iat => Some("iat"),
            Check::Nbf => Some("nbf"),
            Check::Exp => Some("exp"),
            Check::Issuer => Some("iss"),
            Check::Audience => Some("aud"),
            Check::Sub => Some("sub"),
            Check::Jti => self.jti_claim.as_deref().or(Some("jti")),
            Check::TokenType => self.token_type_claim.as_deref(),
            Check::UserId => Some(&self.user_id_claim),
            _ => None,
        }
    }

    /// Runs every check from `iat` to `user_id`.
    ///
    /// `issuer` is the entry of `issuers` whose key has signed the token, if it is one of them.
    pub(crate) fn check(
        &self,
        claims: &Claims,
        issuer: Option<&Issuer>,
        now: UnixTime,
        checks: &mut Checks,
    ) -> ClaimFacts {
        let (exp, expired) = self.exp(claims, now);
        let user_id = self.user_id(claims);
        checks.record(Check::Iat, self.not_in_the_future(claims.get("iat"), now));
        checks.record(Check::Nbf, self.not_in_the_future(claims.get("nbf"), now));
        checks.record(Check::Exp, exp);
        checks.record(Check::Issuer, self.issuer(claims, issuer));
        checks.record(Check::Audience, self.audience(claims, issuer));
        checks.record(Check::Sub, text_or_absent(claims.get("sub")));
        checks.record(Check::Jti, self.jti(claims));
        checks.record(Check::TokenType, self.token_type(claims));
        checks.record(Check::Claims, self.expected(claims));
        checks.record(Check::UserId, user_id.0);
        ClaimFacts {
            expired,
            user_id: user_id.1,
            ..self.facts(claims)
        }
    }

    /// Reads the claims without checks, for a token whose signature alone matters.
    pub(crate) fn facts(&self, claims: &Claims) -> ClaimFacts {
        let revoke = self.revoke_claim.as_deref();
        ClaimFacts {
            issued_at: claims.get("iat").and_then(integer),
            exp: claims.get("exp").and_then(integer),
            expired: false,
            jti: self
                .jti_claim
                .as_deref()
                .and_then(|name| claims.get(name))
                .map(jti_text),
            user_id: self.user_id(claims).1,
            revoke_digest: revoke
                .and_then(|name| claims.get(name))
                .and_then(|digest| digest.as_text().map(Into::into)),
        }
    }

    fn not_in_the_future(
        &self,
        claim: Option<&Json>,
        now: UnixTime,
    ) -> Result<&'static str, &'static str> {
        let Some(claim) = claim else {
            return Ok("not in the token");
        };
        match integer(claim) {
            None => Err("not a whole number of seconds"),
            Some(time) if time > now.0 + self.leeway => {
                Err("lies in the future; do the clocks agree?")
            }
            Some(_) => Ok(""),
        }
    }

    /// Checks `exp`. The flag is true if it is a valid time in the past.
    fn exp(&self, claims: &Claims, now: UnixTime) -> (Result<&'static str, &'static str>, bool) {
        let Some(claim) = claims.get("exp") else {
            return (Err("not in the token"), false);
        };
        match integer(claim) {
            None => (Err("not a whole number of seconds"), false),
            Some(exp) if exp <= now.0 - self.leeway => (Err("has passed"), true),
            Some(exp) if exp >= YEAR_10000 => (
                Err("lies after the year 9999; are these milliseconds?"),
                false,
            ),
            Some(_) if claim.is_text() => (Err("a number as text"), false),
            Some(_) => (Ok(""), false),
        }
    }

    fn issuer(
        &self,
        claims: &Claims,
        signer: Option<&Issuer>,
    ) -> Result<&'static str, &'static str> {
        if signer.is_some() {
            return Ok("");
        }
        if self.issuer.is_empty() {
            return Ok("not checked: no issuer is configured");
        }
        match claims.get("iss").map(Json::as_text) {
            None => Err("not in the token"),
            Some(Some(issuer)) if self.issuer.iter().any(|known| known == issuer) => Ok(""),
            Some(_) => Err("not the configured issuer"),
        }
    }

    fn audience(
        &self,
        claims: &Claims,
        signer: Option<&Issuer>,
    ) -> Result<&'static str, &'static str> {
        let own = signer.map(|signer| &signer.audience);
        let accepted = own.filter(|own| !own.is_empty()).unwrap_or(&self.audience);
        if accepted.is_empty() {
            return Ok("not checked: no audience is configured");
        }
        let ours = |name: &Json| {
            name.as_text()
                .is_some_and(|name| accepted.iter().any(|own| own == name))
        };
        let shared = match claims.get("aud") {
            None => return Err("not in the token"),
            Some(Json::Array(names)) if names.iter().all(Json::is_text) => names.iter().any(ours),
            Some(Json::Array(_)) => return Err("holds something else than text"),
            Some(name) => ours(name),
        };
        shared.then_some("").ok_or("not the configured audience")
    }

    fn jti(&self, claims: &Claims) -> Result<&'static str, &'static str> {
        // PyJWT checks the type of `jti` even if another claim is configured as the id.
        text_or_absent(claims.get("jti"))?;
        match &self.jti_claim {
            None => Ok("not checked: jti_claim is false"),
            Some(name) if claims.get(name).is_some() => Ok(""),
            Some(_) => Err("not in the token"),
        }
    }

    fn token_type(&self, claims: &Claims) -> Result<&'static str, &'static str> {
        let Some(name) = &self.token_type_claim else {
            return Ok("not checked: token_type_claim is false");
        };
        match claims.get(name).map(Json::as_text) {
            None => Err("not in the token"),
            Some(Some(kind)) if self.token_types.iter().any(|known| known == kind) => Ok(""),
            Some(_) => Err("not one of the configured token types"),
        }
    }

    fn expected(&self, claims: &Claims) -> Result<&'static str, &'static str> {
        match claim_rules::all_hold(&self.expected, claims) {
            true => Ok(""),
            false => Err("a rule does not hold"),
        }
    }

    /// Returns false if the tenant has no rules for claims, so that a report leaves their check out.
    pub(crate) fn expects_claims(&self) -> bool {
        !self.expected.is_empty()
    }

    /// Describes the rules that do not hold, for a report.
    pub(crate) fn failed_rules(&self, claims: &Claims) -> String {
        claim_rules::failures(&self.expected, claims)
    }

    #[allow(
        clippy::type_complexity,
        reason = "the verdict and the fact it is about"
    )]
    fn user_id(
        &self,
        claims: &Claims,
    ) -> (
        Result<&'static str, &'static str>,
        Result<UserId, UserIdError>,
    ) {
        let Some(claim) = claims.get(&self.user_id_claim) else {
            return (Err("not in the token"), Err(UserIdError::NotReadable));
        };
        let user_id = user_id::from_claim(claim.scalar(), self.id_type);
        let verdict = match &user_id {
            Ok(_) => Ok(""),
            Err(UserIdError::OutOfRange) => Ok("no user can have this id"),
            Err(UserIdError::NotReadable) => Err("cannot be read as an id of the configured type"),
        };
        (verdict, user_id)
    }
}

fn text_or_absent(claim: Option<&Json>) -> Result<&'static str, &'static str> {
    match claim {
        None => Ok("not in the token"),
        Some(claim) if claim.is_text() => Ok(""),
        Some(_) => Err("not text"),
    }
}

/// Returns `int(value)` as a float, which compares like Python's integer. `None`: Python raises an error.
fn integer(claim: &Json) -> Option<f64> {
    claim.scalar().int().map(|int| int.to_f64())
}

/// Returns the text of the id claim. A claim that is no text is identified by its JSON.
fn jti_text(claim: &Json) -> Jti {
    match claim {
        Json::Text(text) | Json::BrokenText(text) => Jti::from(&**text),
        other => {
            let mut text = String::new();
            other.write(&mut text);
            Jti::from(text)
        }
    }
}
