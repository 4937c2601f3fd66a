//! The time for which Redis keeps a revocation.

use serde_json::{Value, json};

use crate::support::database::ALICE;
use crate::support::{Gateway, RedisServer, Tenant, gateway, token};

/// Seconds for which `denylist.keep` is set here.
const KEEP: i64 = 600;

/// Revokes one token of the tenant by this body, and returns the Unix second at which Redis forgets it.
async fn end_of(gateway: &Gateway, tenant: &Tenant, jti: &str, body: &Value) -> i64 {
    let path = format!("/v1/tenants/{}/revocations", tenant.name);
    let replica = gateway.replica();
    let answer = replica
        .api(&gateway.api_key, "POST", &path, &body.to_string())
        .await;
    assert_eq!(answer.status, 200, "{body}: {answer:?}");
    let key = tenant.redis_key(&format!("deny:jti:{jti}"));
    let redis = RedisServer::shared().await;
    redis.command(&["EXPIRETIME", &key]).await
}

/// A revocation by the token itself was kept for one leeway too long. No test had set `denylist.keep`.
#[tokio::test]
async fn a_revoked_token_is_kept_until_its_end_leeway_and_a_minute_or_for_denylist_keep() {
    let gateway = gateway()
        .set("denylist.keep", "10m")
        .tenant("close")
        .with("token.leeway", "20s")
        .tenant("keep")
        .with("token.leeway", "20s")
        .with("token.on_expiry", "keep")
        .start()
        .await;
    let exp = token::now() + 3000;
    let forms = |tenant: &Tenant| {
        let mut claims = token::access(ALICE);
        claims["exp"] = exp.into();
        claims["jti"] = "signed".into();
        let by_token = json!({"token": tenant.sign(&claims)});
        [
            ("named", json!({"jti": "named", "exp": exp})),
            ("signed", by_token),
        ]
    };
    let tenant = gateway.named("close");
    for (jti, body) in forms(tenant) {
        let end = end_of(&gateway, tenant, jti, &body).await;
        assert_eq!(end, exp + 20 + 60, "{jti}");
    }
    // Its sockets outlive `exp`, so the clock of the revocation counts and not the token's.
    let tenant = gateway.named("keep");
    for (jti, body) in forms(tenant) {
        let earliest = token::now() + KEEP;
        let end = end_of(&gateway, tenant, jti, &body).await;
        let latest = token::now() + KEEP + 1;
        assert!((earliest..=latest).contains(&end), "{jti}: {end}");
    }
}
