//! A Django project behind two replicas: what its views, signals and pages do to the sockets of its users.

use serde_json::json;

use crate::problem::Problem;
use crate::support::browser::Page;
use crate::support::django::Django;
use crate::support::postgres::PostgresServer;
use crate::support::process::{Process, Program, find_program};
use crate::support::{Database, Gateway, PATIENCE, eventually, gateway, ports, scratch};

/// The chat of the tutorial of Channels.
const CHAT: &str = r#"path = "ws/chat/<slug:room>/"
    groups   = ["chat_{room}"]
    consumer = { kind = "broadcast", type = "chat.message", fields = ["message"] }"#;
const LOBBY: &str = "/ws/chat/lobby/";

/// A new database, migrated by a project on the layer of two replicas.
async fn project(uuid: bool) -> (Gateway, Django) {
    const UUIDS: &str =
        "SELECT id, username, is_active FROM accounts_uuiduser WHERE id IN (:user_ids)";
    let server = PostgresServer::shared().await;
    let database = Database::at(server.url(&server.create_database("template0").await));
    let builder = gateway().tenant("acme").users(&database).route(CHAT);
    let builder = match uuid {
        true => builder
            .with("users.query", UUIDS)
            .with("users.id_type", "uuid"),
        false => builder,
    };
    let mut gateway = builder.write().await;
    let tenant = gateway.tenant();
    let django = Django::at(database.url())
        .layer(&tenant.redis, &tenant.prefix)
        .signing_key(&tenant.key)
        .revokes_for(&tenant.name);
    let django = if uuid { django.uuid_users() } else { django };
    let django = django.start().await;
    django.migrate().await;
    for n in 0..2 {
        gateway.add_replica().await;
        gateway.replicas[n].ready().await;
    }
    (gateway, django)
}

#[tokio::test]
async fn a_logout_and_a_changed_password_close_the_sockets_on_every_replica() {
    for uuid in [false, true] {
        let (gateway, django) = project(uuid).await;
        let (name, other) = ("dora", "emil");
        for name in [name, other] {
            django.create_user(name, true).await;
        }
        let open = async |token: &str| {
            let [first, second] = [0, 1].map(|n| {
                gateway.replicas[n]
                    .dial(gateway.tenant(), LOBBY)
                    .token(token)
                    .open()
            });
            tokio::join!(first, second)
        };
        let token = django.access_token(name).await;
        let elsewhere = django.access_token(name).await;
        let (mut one, mut two) = open(&token).await;
        let (mut three, _four) = open(&elsewhere).await;
        let (mut neighbour, _) = open(&django.access_token(other).await).await;

        // A view sends to everybody, whichever replica they are on.
        let event = json!({"type": "chat.message", "message": "from a view"});
        django.send_view(&token, "chat_lobby", &event).await;
        for socket in [&mut one, &mut two, &mut three, &mut neighbour] {
            assert_eq!(socket.next_json().await, json!({"message": "from a view"}));
        }

        django.logout(&token).await;
        for socket in [&mut one, &mut two] {
            assert_eq!(socket.closed().await, (4501, "token_revoked".to_owned()));
        }
        let again = gateway.replicas[1]
            .dial(gateway.tenant(), LOBBY)
            .token(&token);
        Problem::new(401, "token_revoked").is(&again.refused().await, &gateway.tenant().name);
        assert!(three.ping().await.is_empty(), "another token of the user");

        django
            .update_user(name, json!({"password": "another"}))
            .await;
        assert_eq!(three.closed().await.0, 4501, "uuid: {uuid}");
        let again = gateway.replicas[0]
            .dial(gateway.tenant(), LOBBY)
            .token(&elsewhere);
        Problem::new(401, "token_revoked").is(&again.refused().await, &gateway.tenant().name);
        assert!(neighbour.ping().await.is_empty());
    }
}

/// A page as the tutorial of Channels has one: it knows nothing of tokens, and connects to wherever it came from.
const PAGE: &str = r#"<!DOCTYPE html>
<title>Room</title>
<textarea id="chat-log"></textarea>
<input id="chat-message-input"> <input id="chat-message-submit" type="button" value="Send">
<script>
  const at = (id) => document.getElementById(id);
  const socket = new WebSocket(`ws://${location.host}/ws/chat/lobby/`);
  socket.onopen = () => { window.isOpen = true; };
  socket.onmessage = (event) => { at("chat-log").value += JSON.parse(event.data).message + "\n"; };
  at("chat-message-submit").onclick = () => {
    socket.send(JSON.stringify({ message: at("chat-message-input").value }));
    at("chat-message-input").value = "";
  };
</script>
"#;

/// The proxy in front: pages from files, sockets from a replica, with the token of the cookie in the header.
fn nginx(gateway: &Gateway, dir: &std::path::Path, ports: [u16; 2]) -> Process {
    std::fs::write(dir.join("index.html"), PAGE).unwrap();
    let dir = dir.display();
    let server = |n: usize| {
        format!(
            "server {{
                listen 127.0.0.1:{port};
                location / {{ root {dir}; }}
                location /ws/ {{
                    proxy_pass http://{replica};
                    proxy_http_version 1.1;
                    proxy_set_header Host {host};
                    proxy_set_header Upgrade $http_upgrade;
                    proxy_set_header Connection Upgrade;
                    proxy_set_header Authorization \"Bearer $cookie_access\";
                }}
            }}",
            port = ports[n],
            replica = gateway.replicas[n].server,
            host = gateway.tenant().host,
        )
    };
    let paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {dir}/{name};"))
        .join(" ");
    let config = format!(
        "daemon off; master_process off; pid {dir}/pid; error_log stderr;
         events {{ worker_connections 64; }}
         http {{ access_log off; types {{ text/html html; }} {paths} {} {} }}",
        server(0),
        server(1)
    );
    let file = format!("{dir}/nginx.conf");
    std::fs::write(&file, config).unwrap();
    Program::new("nginx", find_program("nginx"))
        .args(["-e", "stderr", "-c", &file])
        .start()
}

#[tokio::test]
async fn a_page_of_the_tutorial_chats_in_two_tabs_on_two_replicas() {
    let database = Database::postgres().await;
    let ports = [ports::free_port(), ports::free_port()];
    let origins: Vec<String> = ports.map(|port| format!("http://127.0.0.1:{port}")).into();
    let gateway = gateway()
        .replicas(2)
        .tenant("acme")
        .users(&database)
        .with_toml("token.sources = ['header']")
        .with("origins", origins)
        .route(CHAT)
        .start()
        .await;
    let dir = scratch("nginx");
    let _nginx = nginx(&gateway, dir.path(), ports);
    let mut tabs = Vec::new();
    for (port, user) in ports.into_iter().zip(["1", "2"]) {
        let url = format!("http://127.0.0.1:{port}/index.html");
        let mut tab = Page::open("about:blank").await;
        // The cookie that a site's login view sets.
        tab.set_cookie(&url, "access", &gateway.tenant().token(user))
            .await;
        eventually(PATIENCE, "nginx listens", async || {
            tokio::net::TcpStream::connect(("127.0.0.1", port)).await
        })
        .await;
        tab.go_to(&url).await;
        tab.wait_for("window.isOpen === true").await;
        tabs.push(tab);
    }
    for replica in &gateway.replicas {
        replica
            .metric("lockgate_connections", &[], |n| n == 1.0)
            .await;
    }
    for (n, words) in ["hello from the first", "and from the second"]
        .into_iter()
        .enumerate()
    {
        let say = format!(
            "document.querySelector('#chat-message-input').value = '{words}';
             document.querySelector('#chat-message-submit').click();"
        );
        tabs[n].evaluate(&say).await;
        for tab in &mut tabs {
            let seen = format!("document.querySelector('#chat-log').value.endsWith('{words}\\n')");
            tab.wait_for(&seen).await;
        }
    }
}
