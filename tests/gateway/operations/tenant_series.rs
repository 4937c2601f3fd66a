//! The series of tenants: a bounded number in `/metrics`, all in `/metrics/tenants`.

use std::collections::BTreeSet;

use crate::support::database::ALICE;
use crate::support::metrics::Metrics;
use crate::support::{Gateway, gateway, http};

#[tokio::test]
async fn tenants_beyond_the_bound_share_one_series() {
    let gateway = gateway()
        .set("metrics.tenant_series", 1)
        .tenant("a")
        .tenant("b")
        .tenant("c")
        .start()
        .await;
    for word in ["a", "b", "c"] {
        let tenant = gateway.named(word);
        gateway
            .replica()
            .dial(tenant, "/ws/chat/lobby/")
            .token(&tenant.token(ALICE))
            .open()
            .await;
    }
    let metrics = gateway.replica().metrics().await;
    let tenants = metrics.label_values("tenant");
    assert!(tenants.contains("_other"), "{tenants:?}");
    let named = tenants.iter().filter(|tenant| !tenant.starts_with('_'));
    assert_eq!(named.count(), 1, "{tenants:?}");
    let others = [("tenant", "_other"), ("result", "accepted")];
    assert_eq!(metrics.value("lockgate_handshakes_total", &others), 2.0);
}

/// Three tenants with a socket each, and one place.
async fn three() -> Gateway {
    let builder = gateway().set("metrics.tenant_series", 1);
    let gateway = builder.tenant("a").tenant("b").tenant("c").start().await;
    for word in ["a", "b", "c"] {
        let tenant = gateway.named(word);
        let dial = gateway.replica().dial(tenant, "/ws/chat/lobby/");
        dial.token(&tenant.token(ALICE)).open().await;
    }
    gateway
}

async fn answer(gateway: &Gateway, path: &str) -> http::Response {
    http::request(gateway.replica().admin, "GET", path, &[], "").await
}

#[tokio::test]
async fn pages_have_the_series_of_all_tenants() {
    let gateway = three().await;
    let mut path = "/metrics/tenants?limit=1".to_owned();
    let mut seen = Vec::new();
    loop {
        let page = answer(&gateway, &path).await;
        assert_eq!(page.status, 200, "{path}");
        let metrics = Metrics::parse(&page.body);
        let named = metrics.label_values("tenant");
        let accepted = [("result", "accepted")];
        assert_eq!(metrics.value("lockgate_handshakes_total", &accepted), 1.0);
        assert_eq!(named.len(), 1, "{named:?}");
        seen.extend(named);
        let Some(link) = page.header("link") else {
            break;
        };
        let next = link.strip_prefix('<').unwrap().split_once('>').unwrap();
        assert_eq!(next.1, "; rel=\"next\"");
        path = next.0.to_owned();
    }
    let names: BTreeSet<_> = ["a", "b", "c"].map(|word| &gateway.named(word).name).into();
    assert!(seen.iter().eq(names), "{seen:?}");
    // Both together name each once.
    let scrape = gateway.replica().metrics().await;
    let heads = scrape
        .text()
        .lines()
        .filter(|line| line.starts_with("# TYPE"));
    assert_eq!(heads.count(), scrape.families().len());
}

#[tokio::test]
async fn one_tenant_can_be_scraped_by_its_name() {
    let gateway = three().await;
    for word in ["a", "b", "c"] {
        let name = &gateway.named(word).name;
        let scrape = answer(&gateway, &format!("/metrics/tenants?tenant={name}")).await;
        let metrics = Metrics::parse(&scrape.body);
        assert_eq!(metrics.label_values("tenant"), [name.clone()].into());
        let families = metrics.families();
        assert!(
            families.contains_key("lockgate_connections"),
            "{families:?}"
        );
    }
    let unknown = answer(&gateway, "/metrics/tenants?tenant=nobody").await;
    assert_eq!(
        (unknown.status, &unknown.json()["code"]),
        (404, &"tenant_not_found".into())
    );
    let name = &gateway.named("a").name;
    for query in [
        "limit=0".to_owned(),
        "limit=1001".to_owned(),
        "limit=many".to_owned(),
        "name=a".to_owned(),
        format!("tenant={name}&limit=1"),
        format!("tenant={name}&after=a"),
    ] {
        let refused = answer(&gateway, &format!("/metrics/tenants?{query}")).await;
        assert_eq!(refused.status, 400, "{query}");
        assert_eq!(refused.json()["code"], "query_not_valid", "{query}");
    }
}
