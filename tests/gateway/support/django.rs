//! The Django project of `tests/django/` as a process that answers line by line.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use super::process::{Process, Program};

/// Migrations of a new database take some seconds on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// The settings of a project: its database, layer and keys.
pub(crate) struct Setup {
    database: String,
    env: Vec<(&'static str, String)>,
}

impl Setup {
    /// Signs with `key`.
    pub(crate) fn signing_key(self, key: &str) -> Self {
        self.with("LOCKGATE_TEST_SIGNING_KEY", key)
    }

    /// Sends through this Redis, or through several with commas between, under this prefix.
    pub(crate) fn layer(self, redis: &str, prefix: &str) -> Self {
        self.with("LOCKGATE_TEST_REDIS_URL", redis)
            .with("LOCKGATE_TEST_LAYER_PREFIX", prefix)
    }

    /// Uses the core layer, with more of its `CONFIG`.
    pub(crate) fn core(self, config: &Value) -> Self {
        self.with("LOCKGATE_TEST_LAYER", "core")
            .with("LOCKGATE_TEST_LAYER_CONFIG", &config.to_string())
    }

    /// Sends through the layer class of deploy/django, which records for this tenant's groups with a memory.
    pub(crate) fn recording_for(self, tenant: &str) -> Self {
        self.with("LOCKGATE_TEST_LAYER", "recording")
            .with("LOCKGATE_TEST_TENANT", tenant)
    }

    /// Sends through the layer class of deploy/django for clusters.
    pub(crate) fn sharded_for(self, tenant: &str) -> Self {
        self.with("LOCKGATE_TEST_LAYER", "sharded")
            .with("LOCKGATE_TEST_TENANT", tenant)
    }

    /// More of the layer's `CONFIG`.
    pub(crate) fn layer_config(self, config: &Value) -> Self {
        self.with("LOCKGATE_TEST_LAYER_CONFIG", &config.to_string())
    }

    /// Users have UUIDs, in the table `accounts_uuiduser`.
    pub(crate) fn uuid_users(self) -> Self {
        self.with("LOCKGATE_TEST_USER_MODEL", "accounts.UuidUser")
    }

    /// Tokens carry the digest of the password (`CHECK_REVOKE_TOKEN`).
    pub(crate) fn revoke_tokens(self) -> Self {
        self.with("LOCKGATE_TEST_REVOKE_TOKEN", "1")
    }

    /// Has the models of `models_of_users`, and the commands of deploy/django.
    pub(crate) fn user_models(self) -> Self {
        self.with("LOCKGATE_TEST_USER_MODELS", "1")
    }

    fn with(mut self, name: &'static str, value: &str) -> Self {
        self.env.push((name, value.to_owned()));
        self
    }

    /// Takes tokens of this tenant back, also at once where a user's password changes.
    pub(crate) fn revokes_for(self, tenant: &str) -> Self {
        self.with("LOCKGATE_TEST_TENANT", tenant)
            .with("LOCKGATE_TEST_SIGNALS", "1")
    }

    /// An older version of channels_redis, as `tests/run` puts it beside the others.
    pub(crate) fn channels_redis(self, version: &str) -> Self {
        let target = std::env::var_os("LOCKGATE_TEST_CHANNELS_REDIS").map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/channels_redis"),
            PathBuf::from,
        );
        let path = target.join(version);
        assert!(
            path.exists(),
            "missing: {} - `tests/run deps` installs it",
            path.display()
        );
        self.with("PYTHONPATH", &path.display().to_string())
    }

    /// Starts the process; it connects to nothing before it is asked to.
    pub(crate) async fn start(self) -> Django {
        Django {
            process: self.program("django", &["helper.py"]).start(),
            answered: AtomicUsize::new(0),
        }
    }

    /// The channels that workers of this project know.
    pub(crate) fn worker_channels(self, channels: &[&str]) -> Self {
        self.with("LOCKGATE_TEST_WORKERS", &channels.join(","))
    }

    /// `manage.py runworker` on these channels.
    pub(crate) fn worker(self, channels: &[&str]) -> Process {
        let setup = self.worker_channels(channels);
        let arguments = [&["manage.py", "runworker"], channels].concat();
        setup.program("runworker", &arguments).start()
    }

    fn program(self, name: &str, arguments: &[&str]) -> Program {
        let mut program = Program::new(name, python())
            .args([&["-B"], arguments].concat())
            .dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/django"))
            .env("LOCKGATE_TEST_DATABASE_URL", self.database);
        for (name, value) in self.env {
            program = program.env(name, value);
        }
        program
    }
}

/// A user as Django made it.
pub(crate) struct User {
    /// The primary key as text.
    pub(crate) id: String,
}

/// The running project.
pub(crate) struct Django {
    process: Process,
    answered: AtomicUsize,
}

impl Django {
    /// A project on the database at `url`.
    pub(crate) fn at(url: &str) -> Setup {
        Setup {
            database: url.to_owned(),
            env: Vec::new(),
        }
    }

    /// `manage.py migrate`.
    pub(crate) async fn migrate(&self) {
        self.ask(json!({"op": "migrate"})).await;
    }

    /// A user whose password is `NAME's password`.
    pub(crate) async fn create_user(&self, name: &str, active: bool) -> User {
        let request = json!({
            "op": "create_user", "username": name, "password": password_of(name), "is_active": active,
            "email": format!("{name}@example.com"),
        });
        user(&self.ask(request).await)
    }

    /// Sets fields of a user; `password` is hashed.
    pub(crate) async fn update_user(&self, name: &str, fields: Value) -> User {
        let mut request = json!({"op": "update_user", "username": name});
        for (field, value) in fields.as_object().expect("an object") {
            request[field] = value.clone();
        }
        user(&self.ask(request).await)
    }

    /// The access token that the token view of simplejwt gives to a user.
    pub(crate) async fn access_token(&self, name: &str) -> String {
        self.tokens(name).await["access"]
            .as_str()
            .expect("the view answers with one")
            .to_owned()
    }

    /// Both tokens of the token view.
    pub(crate) async fn tokens(&self, name: &str) -> Value {
        self.ask(json!({"op": "token", "username": name, "password": password_of(name)}))
            .await
    }

    /// `group_send` of events one after another.
    pub(crate) async fn group_send(&self, group: &str, events: &[Value]) {
        self.ask(json!({"op": "group_send", "group": group, "events": events}))
            .await;
    }

    /// The same from code without async: `async_to_sync(layer.group_send)`.
    pub(crate) async fn group_send_sync(&self, group: &str, events: &[Value]) {
        self.ask(json!({"op": "group_send_sync", "group": group, "events": events}))
            .await;
    }

    /// `group_add` of any channel, also of one that is at home elsewhere.
    pub(crate) async fn group_add(&self, group: &str, channel: &str) {
        self.ask(json!({"op": "group_add", "group": group, "channel": channel}))
            .await;
    }

    /// Lets the core layer connect again; its channels are lost.
    pub(crate) async fn forget_connections(&self) {
        self.ask(json!({"op": "forget_connections"})).await;
    }

    /// `send` of an event to one channel.
    pub(crate) async fn send(&self, channel: &str, event: &Value) {
        self.ask(json!({"op": "send", "channel": channel, "message": event}))
            .await;
    }

    /// A consumer of this project in a group; `receive` waits for what it gets.
    pub(crate) async fn listen(&self, group: &str) -> String {
        let channel = self.ask(json!({"op": "listen", "group": group})).await;
        channel.as_str().expect("a channel name").to_owned()
    }

    /// The next message of a channel from `listen`.
    pub(crate) async fn receive(&self, channel: &str) -> Value {
        self.ask(json!({"op": "receive", "channel": channel})).await
    }

    /// The logout view, with this access token; the view takes the token back itself.
    pub(crate) async fn logout(&self, access: &str) {
        self.ask(json!({"op": "logout", "token": access})).await;
    }

    /// `POST /api/groups/GROUP/send/` with this access token.
    pub(crate) async fn send_view(&self, access: &str, group: &str, event: &Value) {
        self.ask(json!({"op": "send_view", "token": access, "group": group, "event": event}))
            .await;
    }

    /// Runs a worker on the channels beside everything else, as `runworker` does.
    pub(crate) async fn work(&self, channels: &[&str]) {
        self.ask(json!({"op": "work", "channels": channels})).await;
    }

    /// Makes the tables of `models_of_users`. Returns each model with its users' tokens and what `lockgate_config` prints.
    pub(crate) async fn make_user_models(&self) -> Vec<Value> {
        let answer = self.ask(json!({"op": "user_models"})).await;
        answer.as_array().expect("a list").clone()
    }

    /// Lets go of the database.
    pub(crate) async fn disconnect(&self) {
        self.ask(json!({"op": "disconnect"})).await;
    }

    /// One operation of `helper.py`, and what it returns.
    pub(crate) async fn ask(&self, request: Value) -> Value {
        self.process.write_line(&request.to_string());
        // Standard error shares the output: an answer is a JSON object with one of two keys.
        let turn = self.answered.fetch_add(1, Ordering::Relaxed);
        let mut seen = 0;
        let mut answer = self
            .process
            .line(&request.to_string(), DEADLINE, |line| {
                let answer: Value = serde_json::from_str(line).ok()?;
                (answer.get("ok").is_some() || answer.get("error").is_some())
                    .then(|| {
                        seen += 1;
                        (seen == turn + 1).then_some(answer)
                    })
                    .flatten()
            })
            .await;
        if let Some(error) = answer.get("error") {
            panic!("django: {request}: {error}\n{}", self.process.output.text());
        }
        answer["ok"].take()
    }
}

fn password_of(name: &str) -> String {
    format!("{name}'s password")
}

fn user(answer: &Value) -> User {
    let id = answer["id"].as_str().expect("text").to_owned();
    User { id }
}

/// Python with the packages of `tests/requirements.txt`.
pub(crate) fn python() -> PathBuf {
    let python = std::env::var_os("LOCKGATE_TEST_PYTHON").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/venv/bin/python"),
        PathBuf::from,
    );
    assert!(
        python.exists(),
        "missing: {} - `tests/run deps` installs it",
        python.display()
    );
    python
}
