//! Tenants of the registry: they come, change and go on every replica, and the others notice nothing.

mod command_line;
mod extremes;
mod faults;
mod life;
mod on_demand;

use serde_json::{Value, json};

use crate::support::gateway::Builder;
use crate::support::http::{Response, request};
use crate::support::mariadb::MariaDbServer;
use crate::support::postgres::PostgresServer;
use crate::support::replica::Replica;
use crate::support::{Database, Gateway, RedisServer, Tenant, gateway, scratch, unique};
use tempfile::TempDir;

const CHAT: &str = "/ws/chat/lobby/";
/// Two keys that seal: 32 bytes each.
const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const NEXT_KEY: &str = "Hx4dHBsaGRgXFhUUExIREA8ODQwLCgkIBwYFBAMCAQA=";

/// An empty database for the registry, and what keeps its file.
pub(crate) struct Store {
    database: Database,
    _dir: Option<TempDir>,
}

impl Store {
    pub(crate) async fn postgres() -> Self {
        let server = PostgresServer::shared().await;
        let name = server.create_database("template0").await;
        Self::at(server.url(&name))
    }

    async fn mariadb() -> Self {
        let server = MariaDbServer::shared().await;
        let name = server.create_database().await;
        Self::at(server.url(&name))
    }

    pub(crate) fn sqlite() -> Self {
        let dir = scratch("registry");
        let url = format!("sqlite://{}?mode=rwc", dir.path().join("db").display());
        Self {
            database: Database::at(url),
            _dir: Some(dir),
        }
    }

    /// Has the tenants of a deployment in this registry.
    pub(crate) fn holds(&self, builder: Builder) -> Builder {
        builder.registry(self.database.url(), KEY).in_registry()
    }

    fn at(url: String) -> Self {
        Self {
            database: Database::at(url),
            _dir: None,
        }
    }

    /// A deployment with this registry and the tenant `file` of a file.
    fn gateway(&self) -> Builder {
        gateway()
            .registry(self.database.url(), KEY)
            // A busy replica answers late, and what it answers is judged, not when.
            .set("api.timeout", "10s")
            .tenant("file")
    }

    /// Changes a stored tenant as no call of the API would.
    async fn tamper(&self, tenant: &Tenant, set: &str) {
        let name = &tenant.name;
        let count = "UPDATE lockgate_registry SET serial = serial + 1";
        self.database.execute(count).await;
        let change = format!(
            "UPDATE lockgate_tenant SET {set}, version = version + 1, \
             serial = (SELECT serial FROM lockgate_registry) WHERE name = '{name}'"
        );
        self.database.execute(&change).await;
    }
}

/// A tenant that the registry may get, and its document.
async fn registered(word: &str) -> (Tenant, Value) {
    let name = format!("{word}-{}", unique());
    let tenant = Tenant {
        host: format!("{name}.test"),
        prefix: name.clone(),
        key: format!("the signing key of {name}, only for tests"),
        redis: RedisServer::shared().await.url(),
        database: Database::at(String::new()),
        name,
    };
    let document = json!({
        "hosts": [tenant.host],
        "token": {"algorithm": "HS256", "signing_key": tenant.key},
        "users": {"source": "claims"},
        "layer": {"kind": "pubsub", "prefix": tenant.prefix},
        "routes": [{"path": "ws/chat/<slug:room>/", "groups": ["chat_{room}"]}],
    });
    (tenant, document)
}

fn path(tenant: &Tenant) -> String {
    format!("/v1/tenants/{}", tenant.name)
}

/// A call of an operator on the first replica, with one header more.
async fn call_with(
    gateway: &Gateway,
    method: &str,
    tenant: &Tenant,
    header: (&str, &str),
    body: &Value,
) -> Response {
    let bearer = format!("Bearer {}", gateway.api_key);
    let headers = [("Authorization", bearer.as_str()), header];
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    let api = gateway.replica().api;
    request(api, method, &path(tenant), &headers, &body).await
}

async fn call(gateway: &Gateway, method: &str, tenant: &Tenant, body: &Value) -> Response {
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    let replica = gateway.replica();
    replica
        .api(&gateway.api_key, method, &path(tenant), &body)
        .await
}

/// Puts a tenant that must be right.
async fn put(gateway: &Gateway, tenant: &Tenant, document: &Value) -> Value {
    let answer = call(gateway, "PUT", tenant, document).await;
    assert!(matches!(answer.status, 200 | 201), "{answer:?}");
    answer.json()
}

async fn show(gateway: &Gateway, tenant: &Tenant) -> Value {
    let answer = call(gateway, "GET", tenant, &Value::Null).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

/// The reason for which the replica does not serve the tenant, as `/readyz` tells an operator.
async fn reason(gateway: &Gateway, replica: &Replica, tenant: &Tenant) -> Value {
    let bearer = format!("Bearer {}", gateway.api_key);
    let headers = [("Authorization", bearer.as_str())];
    let answer = request(replica.admin, "GET", "/readyz", &headers, "").await;
    answer.json()["tenants"][&tenant.name].clone()
}
