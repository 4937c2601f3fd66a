//! The settings that `docs/identity-providers.md` names beside the tenants that it shows.

use serde_json::{Value, json};
use toml::Table;

use super::providers::{CHAT, PAGE, Provider, providers};
use crate::problem::Problem;
use crate::support::socket::{Dial, Socket};
use crate::support::{Gateway, unique};

const APP: &str = "https://app.acme.example";

/// A change of a tenant of the page, and the tokens that it takes and refuses.
struct Variation {
    of: &'static str,
    /// The settings of `token` in the place of the page's.
    token: &'static str,
    /// The settings of `token` that are left out.
    without: &'static [&'static str],
    /// One more group of the route.
    group: Option<(&'static str, &'static str)>,
    /// Claims beside those of the page, `null` for one that is left out.
    claims: Value,
    /// Changes of the claims, each with the check that fails.
    refused: Vec<(Value, &'static str)>,
}

fn variations() -> Vec<Variation> {
    let plain = |of, token, claims, refused| Variation {
        of,
        token,
        without: &[],
        group: None,
        claims,
        refused,
    };
    vec![
        Variation {
            without: &["jti_claim"],
            ..plain(
                "Auth0",
                r#"claims = { client_id = "my_client_id", scope = { contains = "chat" } }"#,
                json!({"azp": null, "client_id": "my_client_id", "jti": "x7"}),
                vec![
                    (json!({"client_id": null}), "claims"),
                    (json!({"jti": null}), "jti"),
                ],
            )
        },
        Variation {
            group: Some(("team_{claims.https://acme.example/team}", "team_red")),
            ..plain(
                "Auth0",
                r#"claims = { permissions = { contains = "read:chat" }, "https://acme.example/team" = ["red", "blue"] }"#,
                json!({"permissions": ["read:chat", "x"], "https://acme.example/team": "red"}),
                vec![
                    (json!({"permissions": ["read:chats"]}), "claims"),
                    (json!({"https://acme.example/team": "green"}), "claims"),
                ],
            )
        },
        plain(
            "Keycloak",
            r#"audience = "chat""#,
            json!({"aud": ["account", "chat"]}),
            vec![(json!({"aud": "account"}), "audience")],
        ),
        plain(
            "Amazon Cognito",
            r#"audience = "https://api.acme.example""#,
            json!({"aud": "https://api.acme.example"}),
            vec![(json!({"aud": null}), "audience")],
        ),
        plain(
            "Firebase",
            r#"claims = { "firebase.tenant" = "blue" }"#,
            json!({"firebase": {"sign_in_provider": "password", "tenant": "blue"}}),
            vec![
                (
                    json!({"firebase": {"sign_in_provider": "password"}}),
                    "claims",
                ),
                (json!({"firebase": {"tenant": "red"}}), "claims"),
            ],
        ),
        plain(
            "Clerk",
            r#"claims = { azp = "https://app.acme.example", v = 2, sts = "active" }"#,
            json!({}),
            vec![(json!({"sts": "pending"}), "claims")],
        ),
        Variation {
            without: &["jti_claim"],
            ..plain(
                "Clerk",
                "",
                json!({"jti": "0123456789abcdef"}),
                vec![(json!({"jti": null}), "jti")],
            )
        },
    ]
}

fn provider(name: &str) -> Provider {
    let mut all = providers().into_iter();
    all.find(|provider| provider.name == name)
        .unwrap_or_else(|| panic!("the page has no {name}"))
}

/// Puts members of one object into another; `null` takes a member out.
fn changed(mut claims: Value, changes: &Value) -> Value {
    let members = claims.as_object_mut().unwrap();
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => drop(members.remove(name)),
            value => drop(members.insert(name.clone(), value.clone())),
        }
    }
    claims
}

fn token_of(tenant: &mut Table) -> &mut Table {
    tenant["token"].as_table_mut().unwrap()
}

fn dial(gateway: &Gateway) -> Dial {
    let dial = gateway.replica().dial(gateway.tenant(), CHAT);
    dial.header("Origin", APP)
}

/// Fails unless events of each group reach the socket.
async fn hears(gateway: &Gateway, socket: &mut Socket, groups: &[&str]) {
    for group in groups {
        let event = json!({"type": "x", "group": group});
        gateway.send(group, &event).await;
        assert_eq!(socket.next_json().await["group"], *group);
    }
}

#[tokio::test]
async fn the_settings_that_the_page_names_beside_its_tenants_do_what_it_says() {
    for variation in variations() {
        println!("{}: {}", variation.of, variation.token);
        let provider = provider(variation.of);
        let jwks = provider.serve_keys().await;
        let mut groups = provider.groups.to_vec();
        let gateway = provider.start_with(&jwks, |tenant| {
            let own: Table = variation.token.parse().unwrap();
            token_of(tenant).extend(own);
            for name in variation.without {
                assert!(token_of(tenant).remove(*name).is_some());
            }
            if let Some((template, group)) = variation.group {
                let of_route = tenant["routes"][0]["groups"].as_array_mut().unwrap();
                of_route.push(template.into());
                groups.push(group);
            }
        });
        let gateway = gateway.await;
        let claims = changed(provider.claims(), &variation.claims);
        let mut socket = dial(&gateway).token(&jwks.sign(&claims)).open().await;
        hears(&gateway, &mut socket, &groups).await;
        for (changes, check) in variation.refused {
            let token = jwks.sign(&changed(claims.clone(), &changes));
            let refusal = dial(&gateway).token(&token).refused().await;
            Problem::token(check).is(&refusal, &gateway.tenant().name);
        }
    }
}

/// The first block of the page has the users in the place of a table of members.
#[tokio::test]
async fn the_claims_of_each_provider_can_be_the_user() {
    let (introduction, _) = PAGE.split_once("\n## ").unwrap();
    let (_, block) = introduction.split_once("```toml\n").unwrap();
    let (block, _) = block.split_once("\n```").unwrap();
    let page: Table = block.parse().unwrap();
    let users = &page["tenants"]["acme"]["users"];
    for provider in providers() {
        println!("{}", provider.name);
        let jwks = provider.serve_keys().await;
        // The id of Auth0 holds a character that no group of Channels may have.
        let is_any = provider.name == "Auth0";
        let claimed = |tenant: &mut Table| {
            tenant["users"] = users.clone();
            assert!(token_of(tenant).remove("user_id_field").is_some());
            if is_any {
                let layer: Table = "group_names = 'any'".parse().unwrap();
                tenant.insert("layer".into(), layer.into());
            }
        };
        let gateway = provider.start_with(&jwks, claimed).await;
        let claims = provider.claims();
        let mut socket = dial(&gateway).token(&jwks.sign(&claims)).open().await;
        let claim = if claims["oid"].is_null() {
            "sub"
        } else {
            "oid"
        };
        let id = claims[claim].as_str().unwrap();
        let own = format!("user_{id}").replace('|', "%7C");
        let groups = provider.groups.iter().map(|group| match *group {
            "user_1" => &*own,
            group => group,
        });
        hears(&gateway, &mut socket, &groups.collect::<Vec<_>>()).await;
        drop(gateway);
        if is_any {
            let strict = provider.start_with(&jwks, |tenant| {
                claimed(tenant);
                tenant.remove("layer");
            });
            let strict = strict.await;
            let refusal = dial(&strict).token(&jwks.sign(&claims)).refused().await;
            Problem::new(400, "group_name_not_valid").is(&refusal, &strict.tenant().name);
        }
    }
}

/// A project with the older secret, whose public keys for the API are tokens of that secret too.
#[tokio::test]
async fn a_project_of_supabase_with_its_older_secret_refuses_its_api_keys() {
    let provider = provider("Supabase");
    let jwks = provider.serve_keys().await;
    let gateway = provider.start_with(&jwks, |tenant| {
        // The test's own key and HS256 take their place.
        for name in ["jwk_url", "algorithm"] {
            assert!(token_of(tenant).remove(name).is_some());
        }
    });
    let gateway = gateway.await;
    let tenant = gateway.tenant();
    let token = tenant.sign(&provider.claims());
    let mut socket = dial(&gateway).token(&token).open().await;
    hears(&gateway, &mut socket, provider.groups).await;
    for role in ["anon", "service_role"] {
        let like_a_user = changed(provider.claims(), &json!({"role": role}));
        let refusal = dial(&gateway)
            .token(&tenant.sign(&like_a_user))
            .refused()
            .await;
        Problem::token("claims").is(&refusal, &tenant.name);
        let mut key = json!({"iss": "supabase", "ref": "abcdefghijklmnop", "role": role});
        (key["iat"], key["exp"]) = (1_700_000_000.into(), 4_000_000_000_i64.into());
        let refusal = dial(&gateway).token(&tenant.sign(&key)).refused().await;
        assert_eq!(refusal.status, 401, "{role}: {refusal:?}");
    }
}

async fn revoke(gateway: &Gateway, body: &Value) -> Value {
    let path = format!("/v1/tenants/{}/revocations", gateway.tenant().name);
    let (replica, body) = (gateway.replica(), body.to_string());
    let answer = replica.api(&gateway.api_key, "POST", &path, &body).await;
    answer.json()
}

/// All tokens of one login have the claim, so that its revocation ends them all.
#[tokio::test]
async fn a_revocation_by_the_id_of_a_login_ends_all_its_tokens() {
    for (name, claim, set) in [
        ("Amazon Cognito", "origin_jti", true),
        ("Supabase", "session_id", false),
        ("Clerk", "sid", false),
    ] {
        let provider = provider(name);
        let jwks = provider.serve_keys().await;
        let gateway = provider.start_with(&jwks, |tenant| {
            if set {
                token_of(tenant).insert("jti_claim".into(), claim.into());
            }
        });
        let gateway = gateway.await;
        let login = changed(provider.claims(), &json!({ claim: unique() }));
        let tokens = ["first", "next"].map(|jti| changed(login.clone(), &json!({"jti": jti})));
        let mut sockets = Vec::new();
        for claims in &tokens {
            sockets.push(dial(&gateway).token(&jwks.sign(claims)).open().await);
        }
        let body = json!({"jti": login[claim], "exp": login["exp"]});
        let revoked = revoke(&gateway, &body).await;
        assert_eq!(revoked["closed"], 2, "{name}: {revoked}");
        for socket in &mut sockets {
            assert_eq!(socket.closed().await.0, 4501, "{name}");
        }
        let refusal = dial(&gateway).token(&jwks.sign(&tokens[1])).refused().await;
        Problem::new(401, "token_revoked").is(&refusal, &gateway.tenant().name);
    }
}

#[tokio::test]
async fn the_session_cookie_of_clerk_opens_a_socket_of_its_page() {
    let provider = provider("Clerk");
    let jwks = provider.serve_keys().await;
    let gateway = provider.start_with(&jwks, |tenant| {
        let own = "sources = ['query', 'cookie']\ncookie = '__session'";
        token_of(tenant).extend(own.parse::<Table>().unwrap());
    });
    let gateway = gateway.await;
    let cookie = format!(
        "__client_uat=1; __session={}",
        jwks.sign(&provider.claims())
    );
    let mut socket = dial(&gateway).header("Cookie", &cookie).open().await;
    hears(&gateway, &mut socket, provider.groups).await;
}

/// An application of many directories: one issuer for each, with the same keys.
#[tokio::test]
async fn directories_of_entra_are_issuers_with_the_same_keys() {
    let provider = provider("Microsoft Entra ID");
    let jwks = provider.serve_keys().await;
    let issuer = |directory: u32| {
        format!("https://login.microsoftonline.com/{directory:08}-0000-0000-0000-000000000000/v2.0")
    };
    let gateway = provider.start_with(&jwks, |tenant| {
        let token = token_of(tenant);
        let moved: Vec<_> = ["jwk_url", "algorithm", "audience"]
            .map(|name| (name.to_owned(), token.remove(name).unwrap()))
            .into();
        token.remove("issuer");
        let entry = |directory| {
            let mut entry: Table = moved.iter().cloned().collect();
            entry.insert("issuer".into(), issuer(directory).into());
            entry
        };
        token.insert("issuers".into(), vec![entry(1), entry(2)].into());
    });
    let gateway = gateway.await;
    for directory in 1..=3 {
        let claims = changed(provider.claims(), &json!({"iss": issuer(directory)}));
        let dial = dial(&gateway).token(&jwks.sign(&claims));
        match directory {
            3 => Problem::token("issuer").is(&dial.refused().await, &gateway.tenant().name),
            _ => hears(&gateway, &mut dial.open().await, provider.groups).await,
        }
    }
}
