//! Headless Chromium, driven over its DevTools protocol.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use super::http::request;
use super::process::{Process, Program, find_program};
use super::{PATIENCE, eventually, scratch, within};

/// A browser with one page.
pub(crate) struct Page {
    // In this order: the process goes before its files do.
    _process: Process,
    _profile: TempDir,
    devtools: WebSocketStream<TcpStream>,
    next_id: u64,
}

impl Page {
    /// Starts a browser and opens `url`.
    pub(crate) async fn open(url: &str) -> Self {
        let profile = scratch("browser");
        let process = Program::new("chromium", find_program("chromium"))
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
            ])
            .args(["--no-first-run", "--disable-background-networking"])
            .args([
                "--disable-component-update",
                "--disable-sync",
                "--disable-dev-shm-usage",
            ])
            .args(["--no-proxy-server", "--remote-debugging-port=0"])
            .args([format!("--user-data-dir={}", profile.path().display())])
            .args([url])
            .start();
        // A cold start on a busy machine takes its time.
        let port: u16 = process
            .line("the port of DevTools", Duration::from_secs(60), |line| {
                let (_, rest) = line.split_once("DevTools listening on ws://127.0.0.1:")?;
                rest.split('/').next()?.parse().ok()
            })
            .await;
        let address = ([127, 0, 0, 1], port).into();
        let target = eventually(PATIENCE, "the page", async || {
            let list = request(address, "GET", "/json/list", &[], "").await.json();
            let page = list.as_array().and_then(|targets| {
                let page = targets.iter().find(|target| target["type"] == "page")?;
                page["webSocketDebuggerUrl"].as_str().map(str::to_owned)
            });
            page.ok_or(list)
        })
        .await;
        let stream = TcpStream::connect(address).await.expect("it listens");
        let (devtools, _) = tokio_tungstenite::client_async(target, stream)
            .await
            .expect("DevTools takes us");
        Self {
            _process: process,
            _profile: profile,
            devtools,
            next_id: 0,
        }
    }

    /// The value of a JavaScript expression, awaited if it is a promise.
    pub(crate) async fn evaluate(&mut self, expression: &str) -> Value {
        let parameters =
            json!({"expression": expression, "awaitPromise": true, "returnByValue": true});
        let mut answer = self.call("Runtime.evaluate", parameters).await;
        assert!(
            answer.get("exceptionDetails").is_none(),
            "{expression}: {answer}"
        );
        answer["result"]["value"].take()
    }

    /// Sets a cookie of the site of `url`.
    pub(crate) async fn set_cookie(&mut self, url: &str, name: &str, value: &str) {
        let cookie = json!({"url": url, "name": name, "value": value});
        let answer = self.call("Network.setCookie", cookie).await;
        assert_eq!(answer["success"], true, "{answer}");
    }

    /// Gives the page a size in CSS pixels, and the colours that its user prefers.
    pub(crate) async fn resize(&mut self, (width, height): (u32, u32), dark: bool) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600});
        self.call("Emulation.setDeviceMetricsOverride", size).await;
        let value = if dark { "dark" } else { "light" };
        let colours = json!({"features": [{"name": "prefers-color-scheme", "value": value}]});
        self.call("Emulation.setEmulatedMedia", colours).await;
    }

    /// A picture of what is seen, as PNG.
    pub(crate) async fn picture(&mut self) -> Vec<u8> {
        let taken = self
            .call("Page.captureScreenshot", json!({"format": "png"}))
            .await;
        let text = taken["data"].as_str().expect("a picture");
        STANDARD.decode(text).expect("base64")
    }

    /// Presses and releases Tab, which moves the focus.
    pub(crate) async fn press_tab(&mut self) {
        for kind in ["rawKeyDown", "keyUp"] {
            let key =
                json!({"type": kind, "key": "Tab", "code": "Tab", "windowsVirtualKeyCode": 9});
            self.call("Input.dispatchKeyEvent", key).await;
        }
    }

    /// The roles and names that assistive technology has for the page.
    pub(crate) async fn accessible_names(&mut self) -> Vec<(String, String)> {
        let tree = self.call("Accessibility.getFullAXTree", json!({})).await;
        let text = |node: &Value, key: &str| node[key]["value"].as_str().unwrap_or("").to_owned();
        let nodes = tree["nodes"].as_array().expect("nodes").iter();
        let seen = nodes.filter(|node| node["ignored"] != true);
        seen.map(|node| (text(node, "role"), text(node, "name")))
            .collect()
    }

    /// Opens another page in the tab.
    pub(crate) async fn go_to(&mut self, url: &str) {
        self.call("Page.navigate", json!({ "url": url })).await;
    }

    /// Waits until an expression is true.
    pub(crate) async fn wait_for(&mut self, expression: &str) {
        eventually(PATIENCE, expression, async || {
            match self.evaluate(expression).await {
                Value::Bool(true) => Ok(()),
                _ => Err(self.evaluate("document.body?.innerText").await),
            }
        })
        .await;
    }

    async fn call(&mut self, method: &str, params: Value) -> Value {
        self.next_id += 1;
        let id = self.next_id;
        let call = json!({"id": id, "method": method, "params": params});
        within(PATIENCE, method, async {
            let sent = self.devtools.send(Message::text(call.to_string())).await;
            sent.expect("the browser lives");
            loop {
                let message = self.devtools.next().await.expect("the browser lives");
                let text = message.expect("the browser lives").into_text();
                let mut answer: Value = serde_json::from_str(&text.expect("text")).expect("JSON");
                if answer["id"] == id {
                    return answer["result"].take();
                }
            }
        })
        .await
    }
}
