//! TLS settings from the trust that is configured: the authorities of the system and of `ca`, and the checks of `verify`.
//!
//! Every TLS client of the gateway takes its settings from here: the links to Redis, the databases and the key sets.

use std::sync::{Arc, OnceLock};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{self, WebPkiSupportedAlgorithms};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};
use time::OffsetDateTime;

use crate::config::{Authorities, Fault, Trust, Verify};

/// Returns the settings of a TLS client that trusts as `trust` says. `with_system` adds the authorities of this machine.
///
/// # Errors
/// If there is no authority, and the certificate is to be checked.
pub(crate) fn client_config(trust: &Trust, with_system: bool) -> Result<ClientConfig, Error> {
    let provider = Arc::new(crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone());
    let builder = builder.with_safe_default_protocol_versions()?;
    let algorithms = provider.signature_verification_algorithms;
    let verify = trust.verify.unwrap_or_default();
    let chain = match verify {
        Verify::Nothing => None,
        Verify::Full | Verify::Chain => {
            let roots = roots(trust, with_system);
            if with_system && roots.is_empty() {
                let text = "the system has no certificate authorities, and none is configured (ca)";
                return Err(Error::General(text.to_owned()));
            }
            if verify == Verify::Full {
                return Ok(builder.with_root_certificates(roots).with_no_client_auth());
            }
            let chain = WebPkiServerVerifier::builder_with_provider(roots.into(), provider).build();
            Some(chain.map_err(|error| Error::General(error.to_string()))?)
        }
    };
    let any_name = Arc::new(AnyName { chain, algorithms });
    let builder = builder.dangerous();
    let builder = builder.with_custom_certificate_verifier(any_name);
    Ok(builder.with_no_client_auth())
}

fn roots(trust: &Trust, with_system: bool) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    if with_system {
        roots.add_parsable_certificates(system().iter().cloned());
    }
    roots.add_parsable_certificates(trust.certificates().cloned());
    roots
}

/// Returns the authorities that this machine trusts, read once.
fn system() -> &'static [CertificateDer<'static>] {
    static SYSTEM: OnceLock<Vec<CertificateDer<'static>>> = OnceLock::new();
    SYSTEM.get_or_init(|| rustls_native_certs::load_native_certs().certs)
}

/// Returns the authorities of this machine and of `trust` as PEM, for a driver that takes nothing else. Certificates that
/// are no authorities are left out, because the drivers would fail at them.
pub(crate) fn pem(trust: &Trust) -> Vec<u8> {
    let mut pem = String::new();
    for certificate in system().iter().chain(trust.certificates()) {
        if RootCertStore::empty().add(certificate.clone()).is_err() {
            continue;
        }
        pem.push_str("-----BEGIN CERTIFICATE-----\n");
        for (index, letter) in BASE64_STANDARD.encode(certificate).chars().enumerate() {
            if index % 64 == 0 && index > 0 {
                pem.push('\n');
            }
            pem.push(letter);
        }
        pem.push_str("\n-----END CERTIFICATE-----\n");
    }
    pem.into_bytes()
}

/// Checks that every certificate of an entry can be trusted as an authority.
///
/// # Errors
/// The fault of the first that cannot.
pub fn check(authorities: &Authorities) -> Result<(), Fault> {
    for (index, certificate) in authorities.certificates().iter().enumerate() {
        if RootCertStore::empty().add(certificate.clone()).is_err() {
            let found = format!("certificate {} of a PEM, which cannot be read", index + 1);
            let fault = Fault::new("", found, "certificates of authorities (X.509)");
            return Err(fault.advice("look at it with: openssl x509 -noout -text -in FILE"));
        }
    }
    Ok(())
}

/// Returns the day on which the first certificate of an entry expired, if one has.
pub fn expired(authorities: &Authorities) -> Option<String> {
    authorities.certificates().iter().find_map(expired_on)
}

/// An authority that has expired is still an authority to rustls, which is silent about it. So its certificate is checked
/// as if a server had presented it: the first check of all is that of its times.
fn expired_on(certificate: &CertificateDer<'static>) -> Option<String> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).ok()?;
    let certificate = ParsedCertificate::try_from(certificate).ok()?;
    let algorithms = crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
    let checked = verify_server_cert_signed_by_trust_anchor(
        &certificate,
        &roots,
        &[],
        UnixTime::now(),
        algorithms.all,
    );
    match checked {
        Err(Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. })) => {
            let seconds = i64::try_from(not_after.as_secs()).ok()?;
            let day = OffsetDateTime::from_unix_timestamp(seconds).ok()?.date();
            Some(day.to_string())
        }
        Err(Error::InvalidCertificate(CertificateError::Expired)) => Some("an earlier day".into()),
        _ => None,
    }
}

/// Checks the chain of a certificate, or nothing of it, and not the name of the server. The server proves in any case that it
/// has the certificate's key.
#[derive(Debug)]
struct AnyName {
    /// `None` accepts every certificate.
    chain: Option<Arc<WebPkiServerVerifier>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        use CertificateError::{NotValidForName, NotValidForNameContext};
        let Some(chain) = &self.chain else {
            return Ok(ServerCertVerified::assertion());
        };
        // The name is the last check.
        match chain.verify_server_cert(certificate, intermediates, name, ocsp, now) {
            Err(Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. })) => {
                Ok(ServerCertVerified::assertion())
            }
            checked => checked,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        crypto::verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        crypto::verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
