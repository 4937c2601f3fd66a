//! The page of `docs/moving-from-channels.md` in a browser, while the site that gives out its tokens is down, fails, and logs its
//! user out.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::browser::Page;
use crate::support::database::ALICE;
use crate::support::{Database, Gateway, PATIENCE, eventually, gateway};

const GUIDE: &str = include_str!("../../../docs/moving-from-channels.md");
const CLIENT: &str = include_str!("../../../clients/js/index.js");
const ROOM: &str = "/chat/lobby/";
const LOGIN: &str = "/admin/login/";

/// The answer of the site to a request for a token.
#[derive(Clone, Debug)]
enum TokenView {
    /// The connection ends without an answer, as where the back end is down.
    Down,
    Status(u16),
    /// What `login_required` does.
    Redirect,
    Token(String),
}

/// The Django site of the guide: its room, its static files, and a view for tokens that the test changes.
struct Site {
    address: SocketAddr,
    view: Arc<Mutex<TokenView>>,
    asked: Arc<Mutex<usize>>,
}

impl Site {
    /// Serves the guide's page, whose sockets go to `socket_url`.
    fn serve(listener: TcpListener, socket_url: String) -> Self {
        let site = Self {
            address: listener.local_addr().unwrap(),
            view: Arc::new(Mutex::new(TokenView::Down)),
            asked: Arc::default(),
        };
        let (view, asked) = (site.view.clone(), site.asked.clone());
        let room = room(&socket_url);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (view, asked, room) = (view.clone(), asked.clone(), room.clone());
                tokio::spawn(async move {
                    answer(stream, &room, || {
                        *asked.lock().unwrap() += 1;
                        view.lock().unwrap().clone()
                    })
                    .await;
                });
            }
        });
        site
    }

    fn set(&self, view: TokenView) {
        *self.view.lock().unwrap() = view;
        *self.asked.lock().unwrap() = 0;
    }

    /// Waits until the page has asked so often since the view was set.
    async fn is_asked(&self, times: usize) {
        let what = format!("the page asks for a token {times} times");
        eventually(PATIENCE * 2, &what, async || {
            let asked = *self.asked.lock().unwrap();
            if asked >= times { Ok(()) } else { Err(asked) }
        })
        .await;
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

/// The tutorial's `room.html` with the script of the guide.
fn room(socket_url: &str) -> String {
    let (_, rest) = GUIDE.split_once("```html\n").expect("the guide has a page");
    let (script, _) = rest.split_once("```").expect("it ends");
    assert!(script.contains("ws://127.0.0.1:8001"), "{script}");
    format!(
        "<!DOCTYPE html><title>Room</title><textarea id=\"chat-log\"></textarea>
        <input id=\"chat-message-input\"><input id=\"chat-message-submit\" type=\"button\">
        <script id=\"room-name\" type=\"application/json\">\"lobby\"</script>{}",
        script.replace("ws://127.0.0.1:8001", socket_url)
    )
}

/// Answers one request.
async fn answer(mut stream: TcpStream, room: &str, view: impl FnOnce() -> TokenView) {
    let mut head = [0; 8192];
    let Ok(length) = stream.read(&mut head).await else {
        return;
    };
    let head = String::from_utf8_lossy(&head[..length]).into_owned();
    let path = head.split(' ').nth(1).unwrap_or_default();
    let (status, kind, body) = match path {
        ROOM => ("200 OK".to_owned(), "text/html", room.to_owned()),
        LOGIN => ("200 OK".to_owned(), "text/html", "Log in".to_owned()),
        "/static/chat/lockgate.js" => ("200 OK".to_owned(), "text/javascript", CLIENT.to_owned()),
        "/chat/token/" => match view() {
            TokenView::Down => return,
            TokenView::Status(status) => (format!("{status} No"), "text/html", String::new()),
            TokenView::Redirect => {
                let status = format!("302 Found\r\nLocation: {LOGIN}");
                (status, "text/html", String::new())
            }
            TokenView::Token(token) => {
                let body = json!({ "access": token }).to_string();
                ("200 OK".to_owned(), "application/json", body)
            }
        },
        _ => ("404 Not Found".to_owned(), "text/html", String::new()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    drop(stream.write_all(head.as_bytes()).await);
    drop(stream.write_all(body.as_bytes()).await);
}

/// A deployment whose page is on another port, and its site.
async fn started() -> (Gateway, Site) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    let gateway = gateway()
        .tenant("acme")
        .users(&Database::postgres().await)
        .with("hosts", vec!["127.0.0.1".to_owned()])
        .with("origins", vec![origin])
        .start()
        .await;
    let url = format!("ws://{}", gateway.replica().server);
    let site = Site::serve(listener, url);
    (gateway, site)
}

/// Closes the sockets of `alice` as if their token had expired: the page needs another one.
async fn expire(gateway: &Gateway) {
    let tenant = gateway.tenant();
    let path = format!("/v1/tenants/{}/users/{ALICE}/send", tenant.name);
    let event = json!({"type": "websocket.close", "code": 4001, "reason": "token_expired"});
    let sent = gateway
        .replica()
        .api(&gateway.api_key, "POST", &path, &event.to_string())
        .await;
    assert_eq!(sent.status, 200, "{sent:?}");
}

/// Waits until the page is open, and shows what it gets.
async fn is_open(gateway: &Gateway, page: &mut Page, words: &str) {
    let seen = format!("document.querySelector('#chat-log')?.value.includes('{words}') === true");
    eventually(PATIENCE * 2, words, async || {
        // Sent again and again: the socket of the page before may be the one that is open.
        let event = json!({"type": "chat.message", "message": words});
        gateway.send("chat_lobby", &event).await;
        match page.evaluate(&seen).await.as_bool() {
            Some(true) => Ok(()),
            other => Err(other),
        }
    })
    .await;
}

/// Before: a 401 was tried again for ever, and the page said nothing.
#[tokio::test]
async fn the_page_of_the_guide_comes_back_when_its_site_does_and_ends_at_the_login() {
    let (gateway, site) = started().await;
    let token = TokenView::Token(gateway.tenant().token(ALICE));

    // The site is down, then fails, while the page loads.
    let mut page = Page::open(&site.url(ROOM)).await;
    site.is_asked(1).await;
    site.set(TokenView::Status(502));
    site.is_asked(1).await;
    site.set(token.clone());
    is_open(&gateway, &mut page, "the first").await;

    // The same with a socket that was open, and that needs another token. A page that is loaded again has short waits.
    for failure in [TokenView::Down, TokenView::Status(502)] {
        page.go_to(&site.url(ROOM)).await;
        is_open(&gateway, &mut page, "before").await;
        site.set(failure);
        expire(&gateway).await;
        site.is_asked(2).await;
        let place = page.evaluate("location.pathname").await;
        assert_eq!(place, ROOM, "a failure is no logout");
        site.set(token.clone());
        is_open(&gateway, &mut page, "once more").await;
    }

    // 401, 403 and a redirect to the login are one.
    let at_login = format!("location.pathname === '{LOGIN}'");
    for end in [
        TokenView::Status(401),
        TokenView::Status(403),
        TokenView::Redirect,
    ] {
        page.go_to(&site.url(ROOM)).await;
        is_open(&gateway, &mut page, "here again").await;
        site.set(end);
        expire(&gateway).await;
        page.wait_for(&at_login).await;
        site.set(token.clone());
    }
}
