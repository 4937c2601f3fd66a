//! Public keys in the form of OpenSSH, which PyJWT takes beside PEM. Keys and tokens were made by cryptography and PyJWT 2.15.1,
//! which accepts each of these tokens by its key.

use lockgate::auth::TokenVerifier;
use lockgate::config::{IdType, TokenConfig};

use super::support::*;

/// `(algorithm, key, token)`
const MADE_BY_PYJWT: [(&str, &str, &str); 5] = [
    (
        "RS256",
        "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQDe9+Yt/3ENfIQCSmWfIfjbTc7nmbnOKvWlize6btjkLbfNPCbygV9Mc1UE5c8t4Ono96XI4wOPzwjeWTaf8TYiycp3R99MSyz3Kal4eqOvbDB8X6gm+vrbfyJb6a4H6IFUtdzTgVmAHcjkFLdJN78PUl0YwRzcXRRR57NkVcJndjXFxC3WBgRugTQr5O4/y/Lw5eHpfPmJaXe5LxXTHFP60+4hYZJv+7msRv97P9Uj+GIeqJIWyMBTOGsqJ/2A00fKcKWlcGIHHqv596goK2wh8tXHn8XwS5huK3ic3WGw7sRfFd/d58xcQl/WwsM8NbZJzAh240fU7T4jc1R75tNL",
        "eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCJ9.eyJ0b2tlbl90eXBlIjoiYWNjZXNzIiwiZXhwIjo0MTAyNDQ0ODAwLCJpYXQiOjE3MDAwMDAwMDAsImp0aSI6ImoiLCJ1c2VyX2lkIjoiMSJ9.XDy84MwGtUQhdTbeouEcmi9pY4aK3pJyrEaJ4XyBD4bFWl2Z3q7xch7bl9Jqeue9BC2Zee5_16xfP7qBakjxIkw2i3JMjErUoo-8mjhLgU1D6Dk0oPa2HLnV9NbESOx529ZVjlgHZ1uJEZ40Ew7CyE586aBZm00dZl83yUagB_z97-J1bVhkMcb6VxWlcvTgVHrl_ncmaLmhBorHIVlFlwwkwhCWkxIdDzndMWSfGWFCpAjj4inUHUaghEr_JLtIAmPjI5O6KTsI1VJ8bhQziorKVz1jMOQcSLLjixYnrUXLxGBWn2PTwA8hm5iLRhynAHhv0zvPZLK2S4KQn1y3FA",
    ),
    (
        "PS384",
        "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQDe9+Yt/3ENfIQCSmWfIfjbTc7nmbnOKvWlize6btjkLbfNPCbygV9Mc1UE5c8t4Ono96XI4wOPzwjeWTaf8TYiycp3R99MSyz3Kal4eqOvbDB8X6gm+vrbfyJb6a4H6IFUtdzTgVmAHcjkFLdJN78PUl0YwRzcXRRR57NkVcJndjXFxC3WBgRugTQr5O4/y/Lw5eHpfPmJaXe5LxXTHFP60+4hYZJv+7msRv97P9Uj+GIeqJIWyMBTOGsqJ/2A00fKcKWlcGIHHqv596goK2wh8tXHn8XwS5huK3ic3WGw7sRfFd/d58xcQl/WwsM8NbZJzAh240fU7T4jc1R75tNL",
        "eyJhbGciOiJQUzM4NCIsInR5cCI6IkpXVCJ9.eyJ0b2tlbl90eXBlIjoiYWNjZXNzIiwiZXhwIjo0MTAyNDQ0ODAwLCJpYXQiOjE3MDAwMDAwMDAsImp0aSI6ImoiLCJ1c2VyX2lkIjoiMSJ9.KeVgRrLdh8u3xK725ZwDnhDO8uOWeeAGo6UwEoIxlT6MsT_LDJ3bPgZf7ZdgqgMMOLk26xYBBjRsCi2lS5Tse2QHip6NXY3_S3GOHotKR_twAdm2ksWvR08lXN52Brog3H6cusyQDzoXLgz9e1ApkjCheTEV_ZjNkkU47vgvsK7D77gR__Bfk_CuaIDFLHBHgPiYsXVPVgFh2Jv1o-klrwxP-WvlrJM5KLV9GIxGcj1Od1qqFvC2S0UDJJm55SEqElVHL1wkZN0rOowqo6_NPMi0RH4zPiVzdDlfm-57rX-2PV3asEQ6eaTtPiYatvHT1y0DmtAltzeTWgrffMjfHA",
    ),
    (
        "ES256",
        "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBMqs6tPZbO6J9Vaz4xQz+Zsx/h+yoGS+ov9FSgD1qd037RwaXcaRQfiIf2OZ/dwY8zBzq706YKahT5CDCX9JdVk=",
        "eyJhbGciOiJFUzI1NiIsInR5cCI6IkpXVCJ9.eyJ0b2tlbl90eXBlIjoiYWNjZXNzIiwiZXhwIjo0MTAyNDQ0ODAwLCJpYXQiOjE3MDAwMDAwMDAsImp0aSI6ImoiLCJ1c2VyX2lkIjoiMSJ9.XH1ssBduSV22kA95MHrl73_eVtOu6LObAcgn3x4-bpYOVQ0udbq0aqNjjkHv2PILG44AuBtB2kutU4sH9AcEAA",
    ),
    (
        "ES384",
        "ecdsa-sha2-nistp384 AAAAE2VjZHNhLXNoYTItbmlzdHAzODQAAAAIbmlzdHAzODQAAABhBKMdVOy+Uvhllj2eSr1z04CMUJMHkkgs7LRRAE5vAg0BmfcdNLEZ4eHV4qONDRDbX6rdUbs9UY+SNousjlnv+IfY+8sjtMG0M0FpfWfQq2+s1UKKpU1aVBSI78B1OWZGkg==",
        "eyJhbGciOiJFUzM4NCIsInR5cCI6IkpXVCJ9.eyJ0b2tlbl90eXBlIjoiYWNjZXNzIiwiZXhwIjo0MTAyNDQ0ODAwLCJpYXQiOjE3MDAwMDAwMDAsImp0aSI6ImoiLCJ1c2VyX2lkIjoiMSJ9.PIRTtdwYkYmJPZXc4qcUlOiL--W3HmLlxu0ckb3NdZHag1qngFIoeRziBZNSOdJvJRqpdDkAjoefXqdIfwvkdJiw7hG38-h10k4w5y8MqPTiA_crhHbbqczTvTITY_OA",
    ),
    (
        "EdDSA",
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDvPqBMFQENQrVCRUYmg2Kap265ayTDbIhsgIXXefRTE",
        "eyJhbGciOiJFZERTQSIsInR5cCI6IkpXVCJ9.eyJ0b2tlbl90eXBlIjoiYWNjZXNzIiwiZXhwIjo0MTAyNDQ0ODAwLCJpYXQiOjE3MDAwMDAwMDAsImp0aSI6ImoiLCJ1c2VyX2lkIjoiMSJ9.QtrbggB0IgX7pGojE4zsztl5X1mvrGvTz2zlAzWZgkTu5bf6sV7eyuoj8krZhSpN6N-F_qbih21rzpKX3iQFDA",
    ),
];

fn config(algorithm: &str, verifying: &str) -> TokenConfig {
    TokenConfig {
        keys: vec![key(algorithm, None, None, Some(verifying))],
        ..TokenConfig::default()
    }
}

#[tokio::test]
async fn a_key_of_openssh_verifies_as_in_pyjwt() {
    for (algorithm, ssh, token) in MADE_BY_PYJWT {
        for text in [ssh.to_owned(), format!("{ssh} you@host\n")] {
            let verifier = verifier(&config(algorithm, &text));
            assert_eq!(judge(&verifier, token).await, Ok("1".into()), "{algorithm}");
        }
        // The signature of another algorithm is none of this key.
        let other = MADE_BY_PYJWT.iter().find(|row| row.0 != algorithm).unwrap();
        let verifier = verifier(&config(algorithm, ssh));
        assert!(judge(&verifier, other.2).await.is_err(), "{algorithm}");
    }
}

#[test]
fn a_key_of_openssh_is_for_its_own_algorithm() {
    for (algorithm, ssh, _) in MADE_BY_PYJWT {
        for other in ["RS256", "PS384", "ES256", "ES384", "EdDSA"] {
            let family = |name: &str| match name {
                "RS256" | "PS384" => "RSA".to_owned(),
                name => name.to_owned(),
            };
            let made = TokenVerifier::new(&config(other, ssh), IdType::Int);
            assert_eq!(
                made.is_ok(),
                family(algorithm) == family(other),
                "{other}: {algorithm}"
            );
        }
        let cut = &ssh[..ssh.len() - 8];
        assert!(
            TokenVerifier::new(&config(algorithm, cut), IdType::Int).is_err(),
            "{cut}"
        );
    }
}
