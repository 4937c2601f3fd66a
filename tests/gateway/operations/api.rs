//! The management API from outside: who may call it, and what it answers.

use crate::support::gateway;

#[tokio::test]
async fn the_api_takes_keys_of_operators_only_for_what_they_may() {
    let gateway = gateway()
        .tenant("acme")
        .with("api_keys", vec!["acmes-own-key-which-is-long-enough"])
        .tenant("other")
        .start()
        .await;
    let path = |tenant: &str, group: &str| format!("/v1/tenants/{tenant}/groups/{group}/send");
    let event = r#"{"type": "x"}"#;
    let status = async |key: &str, path: &str, body: &str| {
        let answer = gateway.replica().api(key, "POST", path, body).await;
        (
            answer.status,
            answer.json()["code"].as_str().map(str::to_owned),
        )
    };
    let own = "acmes-own-key-which-is-long-enough";
    let (acme, other) = (&gateway.named("acme").name, &gateway.named("other").name);
    assert_eq!(status(own, &path(acme, "g"), event).await.0, 200);
    assert_eq!(
        status(&gateway.api_key, &path(other, "g"), event).await.0,
        200
    );
    assert_eq!(status(own, &path(other, "g"), event).await.0, 403);
    assert_eq!(status(own, &path("nobody", "g"), event).await.0, 403);
    assert_eq!(
        status(&gateway.api_key, &path("nobody", "g"), event)
            .await
            .0,
        404
    );
    assert_eq!(status("wrong", &path(acme, "g"), event).await.0, 401);
    assert_eq!(status(own, &path(acme, "a%20b"), event).await.0, 400);
    for body in ["[]", "{", "{}", r#"{"type": 1}"#] {
        assert_eq!(status(own, &path(acme, "g"), body).await.0, 400, "{body}");
    }
}
