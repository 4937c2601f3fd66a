//! An axum application whose routes are behind Lockgate's token check.
//!
//! The user comes from the tenant's database, with the cache and the checks of the gateway. The example needs a
//! configuration with a tenant `acme`, such as the one in the README:
//!
//! ```text
//! cargo run --example axum_auth -- lockgate.toml
//! curl "http://127.0.0.1:3000/whoami?token=$(lockgate token mint --tenant acme --user 1)"
//! ```

use anyhow::Context;
use axum::routing::get;
use axum::{Extension, Json, Router};
use lockgate::{Config, Identity, LoadOptions, TokenAuth};
use serde_json::{Value, json};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let file = arguments
        .next()
        .context("usage: axum_auth CONFIG [ADDRESS]")?;
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:3000".into());
    let loaded = Config::load(Some(file.as_ref()), &LoadOptions::default())?;

    let guarded = Router::new()
        .route("/whoami", get(whoami))
        .layer(TokenAuth::for_tenant(&loaded.config, "acme")?);
    let app = Router::new()
        .route("/", get(|| async { "open to all\n" }))
        .merge(guarded);

    let listener = tokio::net::TcpListener::bind(&address).await?;
    println!("listening on {}", listener.local_addr()?);
    axum::serve(listener, app).await?;
    Ok(())
}

/// Answers with the user of the token. Only requests with a valid token reach this handler.
async fn whoami(Extension(identity): Extension<Identity>) -> Json<Value> {
    Json(json!({
        "id": identity.user.id.as_str(),
        "username": identity.user.field("username"),
    }))
}
