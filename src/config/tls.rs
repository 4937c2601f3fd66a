//! `[tls]`, and the keys `ca` and `verify` of a Redis or a database: the trust in the certificates of servers.
//!
//! This module reads certificates and checks their form. [`crate::stores::trust`] makes TLS settings of them.

use std::fmt;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::collection::List;
use super::document::{Node, TomlValue};
use super::read::{Form, Reader};
use super::secret::{self, Elsewhere, elsewhere};
use super::table::{table, words};

table! {
    /// The trust in the certificates of all servers: Redis, databases, key sets (`jwk_url`).
    #[derive(Clone, Debug, PartialEq)]
    pub struct TlsConfig {
        /// Certificate authorities that are trusted besides the system's, as PEM: `{ file = "…" }`, `{ env = "…" }` or text.
        pub ca: Vec<Authorities> as List(AuthorityPem) => Vec::new(),
    }
}

words! {
    /// The part of a server's certificate that is checked.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub enum Verify {
        /// The chain up to a trusted authority, and the name of the server.
        #[default]
        Full = "full",
        /// The chain, and not the name.
        Chain = "ca",
        /// Nothing.
        Nothing = "none",
    }
}

/// The certificates of one entry of `ca`; at least one. `Debug` shows only their number.
#[derive(Clone, PartialEq, Eq)]
pub struct Authorities(Arc<[CertificateDer<'static>]>);

impl Authorities {
    /// Returns the certificates in the order of the PEM.
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.0
    }
}

impl fmt::Debug for Authorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Authorities({})", self.0.len())
    }
}

/// The trust in one server's certificate. The default trusts the system's authorities and checks everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trust {
    /// The authorities of `[tls]`.
    pub everywhere: Vec<Authorities>,
    /// The authorities of the server's own table.
    pub own: Vec<Authorities>,
    /// The part that is checked; `None` if the table of the server does not say it.
    pub verify: Option<Verify>,
}

impl Trust {
    /// Returns the certificates of all configured authorities.
    pub fn certificates(&self) -> impl Iterator<Item = &CertificateDer<'static>> {
        let entries = self.everywhere.iter().chain(&self.own);
        entries.flat_map(Authorities::certificates)
    }

    /// Returns true if `ca` or `verify` of the server's own table is set.
    pub fn is_own(&self) -> bool {
        !self.own.is_empty() || self.verify.is_some()
    }
}

/// Largest file of certificates, in bytes. The bundle of a system has some 200 KiB.
const LARGEST_FILE: u64 = 4 << 20;

/// The written form of an entry of `ca`.
pub(super) struct AuthorityPem;

impl Form for AuthorityPem {
    type Value = Authorities;

    fn expected(&self) -> String {
        "certificates as PEM: { file = \"…\" }, { env = \"…\" } or text".to_owned()
    }

    fn read(&self, node: &Node, reader: &mut Reader<'_>) -> Option<Authorities> {
        let (pem, shown) = match &node.value {
            TomlValue::Text(text) => (text.clone().into_bytes(), "text".to_owned()),
            TomlValue::Table(_) if reader.is_registered(node) => {
                let expected = "the certificates as PEM text";
                let advice = "files and variables differ between machines";
                return reader.mistake(node, "an object", expected, advice);
            }
            TomlValue::Table(table) => {
                match elsewhere(node, table, (EXPECTED, self.expected()), reader)? {
                    Elsewhere::File(name) => {
                        let path = secret::located(node, name, reader);
                        let shown = format!("the file {}", path.display());
                        match super::file::read(&path, LARGEST_FILE) {
                            Ok((_, pem)) => (pem, shown),
                            Err(error) => {
                                let found = format!("{shown}: {error}");
                                return reader.mistake(node, found, EXPECTED, "");
                            }
                        }
                    }
                    Elsewhere::Variable(name, value) => {
                        (value.into_bytes(), format!("the variable {name}"))
                    }
                }
            }
            _ => return reader.wrong_type(node, self, ""),
        };
        match authorities(&pem) {
            Ok(authorities) => Some(authorities),
            Err((wrong, advice)) => {
                reader.mistake(node, format!("{shown} {wrong}"), EXPECTED, advice)
            }
        }
    }

    fn print(&self, _: &Authorities) -> Option<String> {
        None
    }
}

const EXPECTED: &str = "a PEM with the certificates of authorities";

/// Reads the certificates of a PEM. An error says in two texts what is wrong with it and what to do, and shows none of it.
fn authorities(pem: &[u8]) -> Result<Authorities, (&'static str, &'static str)> {
    const MARK: &[u8] = b"PRIVATE KEY-----";
    if pem.iter().all(u8::is_ascii_whitespace) {
        return Err(("that is empty", ""));
    }
    if pem.windows(MARK.len()).any(|part| part == MARK) {
        return Err((
            "with a private key",
            "name the authority's certificate; the gateway needs no key of it, and the key should not be here",
        ));
    }
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match read {
        Ok(read) if !read.is_empty() => Ok(Authorities(read.into())),
        // A certificate in DER begins with a sequence.
        _ if pem.starts_with(&[0x30]) => Err((
            "that is no PEM but DER",
            "convert it: openssl x509 -inform der -in FILE -out FILE.pem",
        )),
        Ok(_) => Err((
            "without a certificate",
            "a certificate begins with -----BEGIN CERTIFICATE-----",
        )),
        Err(_) => Err((
            "that is no readable PEM",
            "look at it with: openssl x509 -noout -text -in FILE",
        )),
    }
}
