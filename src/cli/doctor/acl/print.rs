//! The lines of `doctor --acl` as text and as JSON.

use serde_json::json;

use super::AclLine;

/// Returns the lines as text for a person, with instructions.
pub(in crate::cli::doctor) fn text(lines: &[AclLine]) -> String {
    let mut text = String::from(
        "# Redis users for the gateway and for each tenant's back end. Copy the lines into a file, replace each PASSWORD with\n\
         # a separate password, then: grep ^ACL FILE | redis-cli -h HOST. In an ACL file write \"user NAME …\" instead of \"ACL SETUSER\".\n\
         # A restart forgets users that are not saved. A server with an aclfile saves them by ACL SAVE, one with only a\n\
         # configuration file by CONFIG REWRITE; without either they cannot be saved. `lockgate doctor` says which it is.\n\
         # When every client has a user, disable the default user: ACL SETUSER default off\n\
         # No rule bounds the size of values, of messages and of transactions, or the number of keys. On a Redis that tenants\n\
         # share, set: CONFIG SET proto-max-bulk-len 8mb, CONFIG SET lazyfree-lazy-expire yes, CONFIG SET maxmemory-clients 64mb\n\
         # (Redis 7), maxmemory with noeviction, and watch used_memory: in a full Redis no token can be revoked. A Redis for\n\
         # each tenant is the only full separation.\n",
    );
    if lines.iter().any(|line| line.line.contains("+fcall")) {
        text.push_str(
            "# %R~ and what stands in parentheses need Redis 7.0. Before that leave them out: the back end then sends without recording.\n",
        );
    }
    if lines.iter().any(|line| line.tenants.len() > 1) {
        text.push_str(
            "# Tenants with a layer.namespace share a prefix. A PREFIX-project is for the one project that acts for all of them; the\n\
             # -backend of such a tenant is for a process that acts for it alone, and may not use the groups of the others.\n",
        );
    }
    let mut endpoints: Vec<&str> = lines.iter().map(|line| line.endpoint.as_str()).collect();
    endpoints.dedup();
    if lines.iter().any(|line| line.is_cluster) {
        text.push_str(
            "# A cluster keeps the users of each node apart: send its lines to every node, replicas and new nodes too.\n",
        );
    }
    if lines
        .iter()
        .any(|line| line.is_cluster && line.endpoint.contains(", "))
    {
        text.push_str(
            "# Several URLs of clusters may name one cluster, so their lines are one block. Where they are several clusters, it is for each.\n",
        );
    }
    if endpoints.len() > 1 {
        text.push_str(
            "# A server that has two blocks, because two URLs name it in different ways, keeps the last line of each user alone: name it\n\
             # in one way, and print the lines again.\n",
        );
    }
    let mut endpoint = None;
    for line in lines {
        if endpoint != Some(&line.endpoint) {
            text.push_str(&format!("\n# {}\n", line.endpoint));
            endpoint = Some(&line.endpoint);
        }
        for warning in &line.warnings {
            text.push_str(&format!("# Warning: {warning}\n"));
        }
        text.push_str(&line.line);
        text.push('\n');
    }
    if lines.is_empty() {
        text.push_str("\n# No Redis is configured.\n");
    }
    text
}

/// Returns `{"users":[{"endpoint","tenant","tenants","line","warning"}]}`; `tenant` is null but for the back end of one tenant,
/// `warning` mostly. `endpoint` names all clusters, with commas between.
pub(in crate::cli::doctor) fn json(lines: &[AclLine]) -> serde_json::Value {
    let users = lines.iter().map(|line| {
        let AclLine {
            endpoint,
            tenants,
            line,
            warnings,
            ..
        } = line;
        let warning = (!warnings.is_empty()).then(|| warnings.join("; "));
        let tenant = tenants.first().filter(|_| tenants.len() == 1);
        json!({ "endpoint": endpoint, "tenant": tenant, "tenants": tenants, "line": line, "warning": warning })
    });
    json!({ "users": users.collect::<Vec<_>>() })
}
