//! The TLS settings of links to Redis, in the terms of the redis crate, which makes them of PEM alone: they are kept for the next
//! connection. With Sentinels one follows another, and each would encode and parse all authorities of the machine.

use std::collections::VecDeque;

use parking_lot::Mutex;
use redis::{Client, ConnectionAddr, IntoConnectionInfo as _, RedisResult, TlsCertificates};

use crate::config::{Trust, Verify};
use crate::stores::trust;

/// The most settings that are kept. A deployment has few: tenants with equal authorities share them.
const MOST: usize = 32;

/// Addresses with settings that were made, the newest first.
static MADE: Mutex<VecDeque<(Trust, ConnectionAddr)>> = Mutex::new(VecDeque::new());

/// Returns the address of a server with the settings of a trust in its certificate.
pub(super) fn address(trust: &Trust, host: &str, port: u16) -> RedisResult<ConnectionAddr> {
    let made = MADE.lock().iter().find(|(of, _)| of == trust).cloned();
    let template = match made {
        Some((_, template)) => template,
        None => {
            let template = make(trust)?;
            let mut made = MADE.lock();
            made.truncate(MOST - 1);
            made.push_front((trust.clone(), template.clone()));
            template
        }
    };
    Ok(match template {
        ConnectionAddr::TcpTls {
            insecure,
            tls_params,
            ..
        } => ConnectionAddr::TcpTls {
            host: host.to_owned(),
            port,
            insecure,
            tls_params,
        },
        other => other,
    })
}

fn make(trust: &Trust) -> RedisResult<ConnectionAddr> {
    let plain = ConnectionAddr::TcpTls {
        host: "localhost".to_owned(),
        port: 0,
        insecure: false,
        tls_params: None,
    };
    // The crate makes its TLS parameters only of a whole client.
    let certificates = TlsCertificates {
        client_tls: None,
        root_cert: Some(trust::pem(trust)),
    };
    let client = Client::build_with_tls(plain.into_connection_info()?, certificates)?;
    let mut address = client.get_connection_info().addr().clone();
    let verify = trust.verify.unwrap_or_default();
    address.set_danger_accept_invalid_hostnames(verify == Verify::Chain);
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Before, each connection to a server or a Sentinel made them.
    #[test]
    fn settings_are_made_once_for_each_trust() {
        let trust = Trust {
            verify: Some(Verify::Chain),
            ..Trust::default()
        };
        let made = || MADE.lock().iter().filter(|(of, _)| *of == trust).count();
        for (host, port) in [("a", 1), ("b", 2), ("c", 3)] {
            let address = address(&trust, host, port).unwrap();
            let ConnectionAddr::TcpTls {
                host: of,
                port: at,
                insecure: false,
                tls_params: Some(_),
            } = address
            else {
                panic!("{address:?}");
            };
            assert_eq!((of.as_str(), at, made()), (host, port, 1));
        }
        assert!(MADE.lock().len() <= MOST);
    }
}
