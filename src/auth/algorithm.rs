//! The algorithms of signatures, by the names that headers and configurations have for them.

use jsonwebtoken::{Algorithm, AlgorithmFamily};

use crate::config::Fault;

/// The supported algorithms by their names in `alg` (RFC 7518 §3.1, RFC 8037 §3.1).
const ALGORITHMS: [(&str, Algorithm); 12] = [
    ("HS256", Algorithm::HS256),
    ("HS384", Algorithm::HS384),
    ("HS512", Algorithm::HS512),
    ("RS256", Algorithm::RS256),
    ("RS384", Algorithm::RS384),
    ("RS512", Algorithm::RS512),
    ("PS256", Algorithm::PS256),
    ("PS384", Algorithm::PS384),
    ("PS512", Algorithm::PS512),
    ("ES256", Algorithm::ES256),
    ("ES384", Algorithm::ES384),
    ("EdDSA", Algorithm::EdDSA),
];

/// An algorithm and its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Alg {
    pub(crate) name: &'static str,
    pub(crate) id: Algorithm,
}

impl Alg {
    /// Finds the algorithm of this name. The fault is at the key `algorithm`.
    pub(crate) fn named(name: &str) -> Result<Self, Fault> {
        let known = ALGORITHMS.iter().find(|(known, _)| *known == name);
        let Some((name, id)) = known else {
            let found = match name {
                "" => "no algorithm".to_owned(),
                // A longer text is no name and may be a key, so it is not shown.
                short if short.len() <= 16 => format!("{short:?}"),
                _ => "another text".to_owned(),
            };
            let names = ALGORITHMS.map(|(name, _)| name).join(", ");
            return Err(Fault::new("algorithm", found, format!("one of {names}")));
        };
        Ok(Self { name, id: *id })
    }

    pub(crate) fn is_hmac(self) -> bool {
        self.id.family() == AlgorithmFamily::Hmac
    }
}
