//! Our own lines for proxies, on a port that is not the scheme's: a page that the proxy serves may open sockets through it.

use std::path::Path;

use crate::problem::Problem;
use crate::support::process::{Process, Program, find_program};
use crate::support::socket::Dial;
use crate::support::{Gateway, PATIENCE, eventually, gateway, ports, scratch};

const LOBBY: &str = "/ws/chat/lobby/";

/// A tenant of one host, with the policy for pages that is named here.
async fn tenant(origins: &[&str]) -> Gateway {
    let origins: Vec<String> = origins.iter().map(|&origin| origin.to_owned()).collect();
    gateway()
        .tenant("acme")
        .with("users.source", "claims")
        .with("hosts", vec!["127.0.0.1".to_owned()])
        .with("origins", origins)
        .start()
        .await
}

/// Reads a file of `deploy/`.
fn shipped(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("deploy")
        .join(path);
    std::fs::read_to_string(&path).unwrap()
}

/// Replaces a text that must be there.
fn put(text: &str, there: &str, instead: &str) -> String {
    assert!(text.contains(there), "{there:?} is gone");
    text.replace(there, instead)
}

fn nginx(gateway: &Gateway, dir: &Path, port: u16) -> Process {
    let replica = gateway.replica().server;
    let folder = dir.display().to_string();
    let config = put(&shipped("nginx/nginx.conf"), "/tmp/", &format!("{folder}/"));
    let config = put(&config, "listen 8080", &format!("listen 127.0.0.1:{port}"));
    let config = put(&config, "lockgate-1:8000", &replica.to_string());
    let config = put(&config, "        server lockgate-2:8000 max_fails=0;\n", "");
    let config = put(
        &config,
        "worker_processes auto;",
        "daemon off; master_process off;",
    );
    let config = put(&config, "worker_rlimit_nofile 20000;", "");
    let config = put(
        &config,
        "worker_connections 9000;",
        "worker_connections 64;",
    );
    let config = put(
        &config,
        "access_log /dev/stdout path_only;",
        "access_log off;",
    );
    let others =
        ["fastcgi", "uwsgi", "scgi"].map(|name| format!("{name}_temp_path {folder}/{name};"));
    let config = put(&config, "http {", &format!("http {{ {}", others.join(" ")));
    let file = dir.join("nginx.conf");
    std::fs::write(&file, config).unwrap();
    Program::new("nginx", find_program("nginx"))
        .args(["-e", "stderr", "-c", &file.display().to_string()])
        .start()
}

fn haproxy(gateway: &Gateway, dir: &Path, port: u16) -> Process {
    let replica = gateway.replica();
    let config = put(
        &shipped("haproxy/haproxy.cfg"),
        "bind :8080",
        &format!("bind 127.0.0.1:{port}"),
    );
    let first = format!(
        "lockgate-1 {} port {}",
        replica.server,
        replica.admin.port()
    );
    let config = put(&config, "lockgate-1 lockgate-1:8000 port 9000", &first);
    let second = config
        .lines()
        .find(|line| line.contains("server lockgate-2"))
        .unwrap()
        .to_owned();
    let config = put(&config, &second, "");
    let file = dir.join("haproxy.cfg");
    std::fs::write(&file, config).unwrap();
    Program::new("haproxy", find_program("haproxy"))
        .args(["-db", "-f", &file.display().to_string()])
        .start()
}

/// Dials through a proxy as a browser does whose page came from `origin`.
fn dial(gateway: &Gateway, port: u16, origin: &str) -> Dial {
    let host = format!("127.0.0.1:{port}");
    let dial = Dial::new(([127, 0, 0, 1], port).into(), &host, LOBBY);
    dial.token(&gateway.tenant().token("1"))
        .header("Origin", origin)
}

/// Before: nginx handed on the host without its port, and the site's own page was refused.
#[tokio::test]
async fn the_own_page_of_a_site_on_another_port_opens_sockets_through_our_lines() {
    let dir = scratch("proxies");
    for origins in [&[][..], &["https://app.example", "self"]] {
        let gateway = tenant(origins).await;
        let ports = [ports::free_port(), ports::free_port()];
        let _proxies = [
            nginx(&gateway, dir.path(), ports[0]),
            haproxy(&gateway, dir.path(), ports[1]),
        ];
        for port in ports {
            let own = format!("http://127.0.0.1:{port}");
            let opened = eventually(PATIENCE, "the proxy has found the replica", async || {
                tokio::net::TcpStream::connect(("127.0.0.1", port))
                    .await
                    .map_err(|e| e.to_string())?;
                match dial(&gateway, port, &own).attempt_or_cut().await {
                    Some(Ok(socket)) => Ok(socket),
                    Some(Err(refusal)) if refusal.status == 403 => panic!("{port}: {refusal:?}"),
                    other => Err(format!("{:?}", other.map(|outcome| outcome.err()))),
                }
            });
            let mut socket = opened.await;
            assert!(socket.ping().await.is_empty());
            for stranger in [
                "http://127.0.0.1",
                "http://127.0.0.1:1",
                "http://[::1]",
                "null",
            ] {
                let refused = dial(&gateway, port, stranger).refused().await;
                Problem::new(403, "origin_not_allowed").is(&refused, &gateway.tenant().name);
            }
        }
    }
}
