//! The tenants of `docs/identity-providers.md`, as the page shows them, with tokens and key sets of the shapes that it shows.
//!
//! A tenant keeps all of its configuration but for the URL of its key set, its database and its host.

use serde_json::{Value, json};
use toml::Table;

use crate::problem::Problem;
use crate::support::jwks::{Jwks, KID, rsa_set};
use crate::support::{Database, Gateway, gateway, token};

pub(super) const PAGE: &str = include_str!("../../../docs/identity-providers.md");

/// The path of every route of the page.
pub(super) const CHAT: &str = "/ws/chat/lobby/";

/// One section of the page.
pub(super) struct Provider {
    pub(super) name: &'static str,
    /// The algorithm of its keys.
    algorithm: &'static str,
    /// Its key set has this beside `kty`, `kid` and the numbers of the key.
    key: Value,
    /// The groups that a socket joins.
    pub(super) groups: &'static [&'static str],
    /// Changes of the token, `null` for a claim that is missing, and the check that fails.
    refused: Vec<(&'static str, Value, &'static str)>,
}

pub(super) fn providers() -> Vec<Provider> {
    let rsa = json!({"alg": "RS256", "use": "sig"});
    let common = &["chat_lobby", "user_1"][..];
    vec![
        Provider {
            name: "Auth0",
            algorithm: "RS256",
            key: json!({"alg": "RS256", "use": "sig", "x5t": "eA", "x5c": ["MIID"]}),
            groups: common,
            refused: vec![
                ("iss", json!("https://acme.eu.auth0.com"), "issuer"),
                ("aud", json!("https://other.example"), "audience"),
                ("azp", json!("another_client"), "claims"),
                ("scope", json!("openid profile"), "claims"),
            ],
        },
        Provider {
            name: "Keycloak",
            algorithm: "RS256",
            key: rsa.clone(),
            groups: common,
            refused: vec![
                (
                    "iss",
                    json!("https://sso.acme.example/realms/other"),
                    "issuer",
                ),
                ("typ", json!("Refresh"), "token_type"),
                ("azp", json!("admin-cli"), "claims"),
                (
                    "realm_access",
                    json!({"roles": ["offline_access"]}),
                    "claims",
                ),
                (
                    "resource_access",
                    json!({"chat": {"api": {"roles": []}}}),
                    "claims",
                ),
                ("jti", Value::Null, "jti"),
            ],
        },
        Provider {
            name: "Amazon Cognito",
            algorithm: "RS256",
            key: rsa.clone(),
            groups: common,
            refused: vec![
                ("token_use", json!("id"), "token_type"),
                ("client_id", json!("another"), "claims"),
                ("client_id", Value::Null, "claims"),
                ("cognito:groups", json!(["others"]), "claims"),
            ],
        },
        Provider {
            name: "Microsoft Entra ID",
            algorithm: "RS256",
            key: json!({"use": "sig", "x5t": KID, "x5c": ["MIID"], "issuer": "https://login.microsoftonline.com/…/v2.0"}),
            groups: common,
            refused: vec![
                (
                    "iss",
                    json!("https://sts.windows.net/72f988bf-86f1-41af-91ab-2d7cd011db47/"),
                    "issuer",
                ),
                (
                    "aud",
                    json!("00000003-0000-0000-c000-000000000000"),
                    "audience",
                ),
                ("scp", Value::Null, "claims"),
                ("ver", json!("1.0"), "claims"),
                ("uti", Value::Null, "jti"),
            ],
        },
        Provider {
            name: "Firebase",
            algorithm: "RS256",
            key: rsa.clone(),
            groups: common,
            refused: vec![
                (
                    "iss",
                    json!("https://securetoken.google.com/other"),
                    "issuer",
                ),
                ("aud", json!("other"), "audience"),
                ("email_verified", json!(false), "claims"),
                (
                    "firebase",
                    json!({"sign_in_provider": "anonymous"}),
                    "claims",
                ),
            ],
        },
        Provider {
            name: "Supabase",
            algorithm: "ES256",
            key: json!({"alg": "ES256", "use": "sig", "ext": true, "key_ops": ["verify"]}),
            groups: &["chat_lobby", "user_1", "team_red"],
            refused: vec![
                ("aud", json!("anon"), "audience"),
                ("role", json!("service_role"), "claims"),
                ("is_anonymous", json!(true), "claims"),
            ],
        },
        Provider {
            name: "Clerk",
            algorithm: "RS256",
            key: rsa,
            groups: &["chat_lobby", "user_1", "org_red"],
            refused: vec![
                ("azp", json!("https://other.example"), "claims"),
                ("azp", Value::Null, "claims"),
                ("v", json!(1), "claims"),
                ("sid", Value::Null, "jti"),
            ],
        },
    ]
}

impl Provider {
    /// A block of its section.
    fn block(&self, language: &str) -> &'static str {
        let (_, section) = PAGE.split_once(&format!("\n## {}\n", self.name)).unwrap();
        let section = section.split("\n## ").next().unwrap();
        let (_, block) = section.split_once(&format!("```{language}\n")).unwrap();
        block.split("\n```").next().unwrap()
    }

    /// A token of its shape that is valid now.
    pub(super) fn claims(&self) -> Value {
        let mut claims: Value = serde_json::from_str(self.block("json")).unwrap();
        let lifetime = claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap();
        claims["exp"] = (token::now() + lifetime).into();
        for name in ["iat", "nbf", "auth_time"] {
            if claims.get(name).is_some() {
                claims[name] = (token::now() - 1).into();
            }
        }
        claims
    }

    /// A set of two keys, of which the second one signs.
    pub(super) async fn serve_keys(&self) -> Jwks {
        let mut signs = match self.algorithm {
            "RS256" => {
                let own = &rsa_set()["keys"][0];
                json!({"kty": "RSA", "n": own["n"], "e": own["e"]})
            }
            _ => json!({
                "kty": "EC",
                "crv": "P-256",
                "x": "yqzq09ls7on1VrPjFDP5mzH-H7KgZL6i_0VKAPWp3Tc",
                "y": "7RwaXcaRQfiIf2OZ_dwY8zBzq706YKahT5CDCX9JdVk",
            }),
        };
        for (name, value) in self.key.as_object().unwrap() {
            signs[name] = value.clone();
        }
        signs["kid"] = KID.into();
        let mut other = rsa_set()["keys"][1].clone();
        (other["kid"], other["use"], other["alg"]) =
            ("enc".into(), "enc".into(), "RSA-OAEP".into());
        Jwks::serve(self.algorithm, &json!({"keys": [other, signs]})).await
    }

    async fn start(&self, jwks: &Jwks) -> Gateway {
        self.start_with(jwks, |_| {}).await
    }

    /// Starts its tenant after a change of the page's configuration.
    pub(super) async fn start_with(&self, jwks: &Jwks, edit: impl FnOnce(&mut Table)) -> Gateway {
        let page: Table = self.block("toml").parse().unwrap();
        let mut tenant = page["tenants"]["acme"].as_table().unwrap().clone();
        let token = tenant["token"].as_table_mut().unwrap();
        token.insert("jwk_url".into(), jwks.url.clone().into());
        tenant["users"].as_table_mut().unwrap().remove("database");
        for name in ["hosts", "layer"] {
            tenant.remove(name);
        }
        edit(&mut tenant);
        let mut builder = gateway().tenant("acme");
        if !tenant["users"].as_table().unwrap().contains_key("source") {
            builder = builder.users(&self.members(&tenant["token"]).await);
        }
        let routes = tenant.remove("routes").unwrap();
        builder = builder.with_toml(&tenant.to_string());
        for route in routes.as_array().unwrap() {
            builder = builder.route(&route.as_table().unwrap().to_string());
        }
        builder.start().await
    }

    /// A table of members, of whom the user of the token is one.
    async fn members(&self, token: &toml::Value) -> Database {
        let user = self.claims();
        let claim = token["user_id_claim"].as_str().unwrap();
        let database = Database::sqlite().await;
        for statement in [
            "CREATE TABLE members (id integer PRIMARY KEY, auth_id text UNIQUE, is_active bool)",
            &format!(
                "INSERT INTO members VALUES (1, {}, 1)",
                quoted(&user[claim])
            ),
        ] {
            database.execute(statement).await;
        }
        database
    }
}

fn quoted(text: &Value) -> String {
    format!("'{}'", text.as_str().unwrap())
}

#[tokio::test]
async fn the_tenants_of_the_page_take_the_tokens_of_their_providers() {
    for provider in providers() {
        println!("{}", provider.name);
        let jwks = provider.serve_keys().await;
        let gateway = provider.start(&jwks).await;
        let tenant = gateway.tenant();
        let dial = |claims: &Value| {
            let dial = gateway.replica().dial(tenant, CHAT);
            dial.header("Origin", "https://app.acme.example")
                .token(&jwks.sign(claims))
        };
        let mut socket = dial(&provider.claims()).open().await;
        for group in provider.groups {
            gateway
                .send(group, &json!({"type": "x", "group": group}))
                .await;
            assert_eq!(
                socket.next_json().await["group"],
                *group,
                "{}",
                provider.name
            );
        }
        for (claim, value, check) in &provider.refused {
            let mut claims = provider.claims();
            match value {
                Value::Null => drop(claims.as_object_mut().unwrap().remove(*claim)),
                value => claims[*claim] = value.clone(),
            }
            println!("{}: {claim} {value}", provider.name);
            let refusal = dial(&claims).refused().await;
            Problem::token(check).is(&refusal, &tenant.name);
        }
        let mut stranger = provider.claims();
        for claim in ["sub", "oid"] {
            if stranger.get(claim).is_some() {
                stranger[claim] = "another".into();
            }
        }
        let refusal = dial(&stranger).refused().await;
        Problem::new(401, "user_not_found").is(&refusal, &tenant.name);
    }
}

/// The table of the page has a line for each section, and no section is left out here.
#[test]
fn every_section_of_the_page_is_tried() {
    let sections: Vec<_> = PAGE
        .lines()
        .filter_map(|line| line.strip_prefix("## "))
        .collect();
    let tried: Vec<_> = providers().iter().map(|provider| provider.name).collect();
    assert_eq!(sections, tried);
}
