//! Checks of the tenants' databases and key sets: they must answer and hold what the gateway reads.

use std::sync::Arc;

use super::finding::{CERTIFICATE_ADVICE, Findings, Severity, certificate_fails, clock, with_kind};
use super::reach::UNCHECKED_ADVICE;
use crate::auth::TokenVerifier;
use crate::config::{Config, Secret, TenantConfig, Trust, UsersFrom, Verify};
use crate::error::{ErrorKind, StoreError};
use crate::ids::TenantId;
use crate::metrics::TenantMetrics;
use crate::stores::database::{ColumnProblem, ConnectionBudget, Database, DatabaseUrl, Dialect};
use crate::users::{Permissions, Users, missing_fields};

/// A database's URL, and the trust in its server.
type DatabaseAt<'c> = (&'c Secret, Trust);

/// Checks each database once, for all tenants that use it.
pub(super) async fn look_at_databases(config: &Config) -> Findings {
    let mut urls: Vec<(DatabaseAt<'_>, Vec<(&TenantId, &TenantConfig)>)> = Vec::new();
    for (id, tenant) in &config.tenants {
        let Some(url) = &tenant.users.database else {
            continue;
        };
        let at = (url, config.effective(tenant).trusts().database);
        match urls.iter_mut().find(|(known, _)| *known == at) {
            Some((_, tenants)) => tenants.push((id, tenant)),
            None => urls.push((at, vec![(id, tenant)])),
        }
    }
    let budget = ConnectionBudget::new(config.server.max_database_connections);
    let looks = urls
        .into_iter()
        .map(|(at, tenants)| look(at, tenants, &budget));
    let mut findings = Findings::default();
    for (id, tenant) in &config.tenants {
        if tenant.users.source == UsersFrom::Claims {
            let subject = format!("tenant {id}");
            let detail = "the claims of its tokens: no record is read, and is_active is not known";
            findings.add((&subject, "users"), Severity::Ok, detail, "");
        }
    }
    for found in futures_util::future::join_all(looks).await {
        findings.append(found);
    }
    findings
}

async fn look(
    (url, trust): DatabaseAt<'_>,
    tenants: Vec<(&TenantId, &TenantConfig)>,
    budget: &Arc<ConnectionBudget>,
) -> Findings {
    let mut findings = Findings::default();
    let names: Vec<_> = tenants.iter().map(|(id, _)| id.as_str()).collect();
    let names = names.join(", ");
    let Some((_, first)) = tenants.first() else {
        return findings;
    };
    let database = match Database::connect_lazy(url, &trust, &first.users.pool, budget) {
        Ok(database) => database,
        Err(error) => {
            let subject = format!("database of {names}");
            findings.add(
                (&subject, "reach"),
                Severity::Fail,
                with_kind(&error),
                "correct users.database",
            );
            return findings;
        }
    };
    let subject = format!("database {} of {names}", database.endpoint());
    let on = |check| (subject.as_str(), check);
    let facts = match database.facts().await {
        Ok(facts) => facts,
        Err(error) => {
            findings.add(
                on("reach"),
                Severity::Fail,
                with_kind(&error),
                unreachable(&error),
            );
            return findings;
        }
    };
    let link = match facts.tls {
        Some(true) => "answers (TLS)",
        Some(false) => "answers (no TLS)",
        None => "answers",
    };
    match trust.verify {
        Some(Verify::Nothing) => {
            let detail = format!("{link}; its certificate is not checked");
            findings.add(on("reach"), Severity::Warn, detail, UNCHECKED_ADVICE);
        }
        _ => findings.add(on("reach"), Severity::Ok, link, ""),
    }
    if database.is_pooled() {
        let detail =
            "PgBouncer or another transaction pooler: each query is a transaction of its own";
        findings.add(on("pooler"), Severity::Ok, detail, "");
    }
    for (id, tenant) in tenants {
        columns(&mut findings, on("columns"), id, tenant, &database).await;
    }
    let dialect = database.dialect();
    let may_write = match dialect {
        Dialect::Sqlite => Some(!DatabaseUrl::parse(url).is_ok_and(|url| url.is_read_only())),
        _ => facts.may_write,
    };
    role(&mut findings, on("role"), may_write, dialect);
    if let Some(offset) = facts.clock_offset {
        let (verdict, detail, advice) = clock(offset);
        findings.add(on("clock"), verdict, detail, advice);
    }
    findings
}

fn unreachable(error: &StoreError) -> &'static str {
    match error.kind {
        ErrorKind::Auth => "correct user and password in users.database",
        _ if certificate_fails(error) => CERTIFICATE_ADVICE,
        _ => "check that it runs, its address, and the network between",
    }
}

fn role(
    findings: &mut Findings,
    on: (&str, &'static str),
    may_write: Option<bool>,
    dialect: Dialect,
) {
    match may_write {
        Some(false) => findings.add(on, Severity::Ok, "may only read", ""),
        None => findings.add(
            on,
            Severity::Note,
            "unknown: the database does not tell the rights of its role",
            "",
        ),
        Some(true) => findings.add(
            on,
            Severity::Warn,
            "may write, which the gateway never does",
            match dialect {
                Dialect::Sqlite => "add ?mode=ro to its URL",
                _ => "give it a role with nothing but SELECT on the columns that are read",
            },
        ),
    }
}

async fn columns(
    findings: &mut Findings,
    on: (&str, &'static str),
    id: &TenantId,
    tenant: &TenantConfig,
    database: &Arc<Database>,
) {
    if tenant.users.source == UsersFrom::Claims {
        return routes(findings, on.0, (id, tenant), None, database).await;
    }
    let metrics = Arc::new(TenantMetrics::new(id));
    let users = Users::new(
        id,
        &tenant.users,
        &tenant.token,
        database.clone(),
        None,
        metrics,
    );
    let users = match users {
        Ok(users) => users,
        Err(error) => {
            findings.add(
                on,
                Severity::Fail,
                format!("{id}: {error}"),
                "correct [tenants.NAME.users]",
            );
            return;
        }
    };
    match users.ready().await {
        Ok(fields) => {
            routes(findings, on.0, (id, tenant), Some(&fields), database).await;
            let relation = match tenant.users.query {
                Some(_) => "users.query".to_owned(),
                None => format!("table {}", tenant.users.table),
            };
            findings.add(
                on,
                Severity::Ok,
                format!("{id}: {relation} has the columns that are read"),
                "",
            );
        }
        Err(ColumnProblem::Store(error)) => {
            findings.add(
                on,
                Severity::Fail,
                format!("{id}: {}", with_kind(&error)),
                "correct users.database or users.query",
            );
        }
        Err(problem) => {
            let advice = match problem {
                ColumnProblem::NotReadable { .. } => "grant SELECT on it",
                ColumnProblem::NotReturned { .. } => "let users.query return it",
                ColumnProblem::NotInSubquery(_) | ColumnProblem::TooMany { .. } => {
                    "correct users.query"
                }
                _ => "name the model's table in users.table, or write users.query",
            };
            findings.add(on, Severity::Fail, format!("{id}: {problem}"), advice);
        }
    }
}

/// Compares the routes of a tenant with the `fields` of its users, unless these are claims, and has the database read each
/// `authorize`.
async fn routes(
    findings: &mut Findings,
    subject: &str,
    (id, tenant): (&TenantId, &TenantConfig),
    fields: Option<&[String]>,
    database: &Arc<Database>,
) {
    let missing = fields.map(|fields| missing_fields(tenant, fields));
    for missing in missing.into_iter().flatten() {
        let detail = format!("{id}: {missing}");
        let advice = match tenant.users.query {
            Some(_) => "correct the name, or let users.query return it",
            None => "correct the name, or write users.query",
        };
        findings.add((subject, "fields"), Severity::Fail, detail, advice);
    }
    let permissions = Permissions::new(
        &tenant.routes,
        &tenant.users,
        &tenant.token,
        Some(database.clone()),
    );
    // `config check` reports statements that cannot be parsed.
    let Ok(permissions) = permissions else {
        return;
    };
    let refused = permissions.refused(&tenant.routes).await;
    for (route, error) in &refused {
        findings.add(
            (subject, "authorize"),
            Severity::Fail,
            format!(
                "{id}: the authorize of {:?} is refused: {}",
                tenant.routes[*route].path,
                with_kind(error)
            ),
            "correct the statement: until then its route answers 503",
        );
    }
    if permissions.are_asked() && refused.is_empty() {
        let detail = format!("{id}: the database can read every authorize");
        findings.add((subject, "authorize"), Severity::Ok, detail, "");
    }
}

/// Names the issuer of a key set, at the start of a text.
fn of_issuer(issuer: Option<&str>) -> String {
    issuer.map_or(String::new(), |issuer| format!("issuer {issuer:?}: "))
}

/// Checks each tenant's key sets by fetching them.
pub(super) async fn look_at_key_sets(config: &Config) -> Findings {
    let mut findings = Findings::default();
    for (id, tenant) in &config.tenants {
        let token = &tenant.token;
        let listed = token.issuers.iter().any(|entry| entry.jwk_url.is_some());
        if token.jwk_url.is_none() && !listed {
            continue;
        }
        let subject = format!("tenant {id}");
        let on = (subject.as_str(), "jwk_url");
        let trust = config.effective(tenant).trusts().key_set;
        let verifier = TokenVerifier::new(token, tenant.users.id_type);
        let verifier = match verifier.and_then(|verifier| verifier.trusting(&trust)) {
            Ok(verifier) => verifier,
            Err(error) => {
                let advice = "correct [tenants.NAME.token]";
                findings.add(on, Severity::Fail, error.to_string(), advice);
                continue;
            }
        };
        for issuer in verifier.insecure_sets() {
            let detail = format!(
                "{}over http, so that others can change them",
                of_issuer(issuer)
            );
            let advice = "serve the key set over https, and take token.insecure_jwk_url out";
            findings.add(on, Severity::Warn, detail, advice);
        }
        for (issuer, fetched) in verifier.fetch_each().await {
            let of = of_issuer(issuer);
            match fetched {
                Ok(()) => findings.add(on, Severity::Ok, format!("{of}its keys can be fetched"), ""),
                Err(error) => findings.add(
                    on,
                    Severity::Fail,
                    format!("{of}{}", with_kind(&error)),
                    "check the address and the certificate; the set must come within 3 s and have at most 256 KiB",
                ),
            }
        }
    }
    findings
}
