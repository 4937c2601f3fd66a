//! `examples/django_schemas`: a project of django-tenants whose schemas are tenants in namespaces of one prefix, set up by the
//! commands of `docs/django-schemas.md`.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::event::resume::position_of;
use crate::problem::Problem;
use crate::support::django::python;
use crate::support::postgres::PostgresServer;
use crate::support::process::{Process, Program};
use crate::support::replica::{LOCKGATE, Replica};
use crate::support::socket::{Dial, Socket};
use crate::support::{Database, PATIENCE, RedisServer, eventually, scratch};
use crate::tenants::reload::APPLIED;

const PAGE: &str = include_str!("../../../docs/django-schemas.md");
const README: &str = include_str!("../../../examples/django_schemas/README.md");
const KEY: &str = "the signing key of all schemas, only for tests";
/// Migrations of three schemas, and the start of a Django project, on a busy machine.
const DEADLINE: Duration = Duration::from_secs(120);

/// Answers each line on standard input, a request, as a view of the project does.
const CLIENT: &str = "
import json, sys
from django.test import Client
for line in sys.stdin:
    ask = json.loads(line)
    headers = {'host': ask['host']}
    if ask['token']:
        headers['authorization'] = 'Bearer ' + ask['token']
    answer = Client().post(ask['path'], ask['body'], 'application/json', headers=headers)
    print(json.dumps({'turn': ask['turn'], 'status': answer.status_code, 'body': answer.content.decode()}), flush=True)
";

/// The blocks of a page in a language.
fn blocks<'p>(page: &'p str, language: &str) -> Vec<&'p str> {
    let fence = format!("```{language}\n");
    let parts = page.split(&fence[..]).skip(1);
    parts.filter_map(|part| part.split("```").next()).collect()
}

/// The example in a folder of its own, on this database and Redis.
struct Project<'p> {
    folder: PathBuf,
    layer: &'p str,
    database: String,
    redis: &'p RedisServer,
}

impl Project<'_> {
    fn program(&self, name: &str, program: impl AsRef<std::ffi::OsStr>) -> Program {
        let url = url_parts(&self.database);
        let programs = [python(), LOCKGATE.into()];
        let mut path = { programs.iter() }
            .filter_map(|program| program.parent())
            .map(Path::to_owned)
            .collect::<Vec<_>>();
        let own = std::env::var_os("PATH").unwrap_or_default();
        path.extend(std::env::split_paths(&own));
        Program::new(name, program)
            .dir(&self.folder)
            .env("PATH", std::env::join_paths(path).unwrap())
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("PGHOST", url.0)
            .env("PGPORT", url.1)
            .env("PGUSER", url.2)
            .env("PGDATABASE", url.3)
            .env("SHOP_SIGNING_KEY", KEY)
            .env("SHOP_DATABASE_URL", &self.database)
            .env("REDIS_URL", self.redis.url())
            .env("LAYER", self.layer)
    }

    /// Runs a block of a page, word by word.
    fn run(&self, block: &str) {
        let program = self.program("sh", "sh");
        program.args(["-e", "-c", block]).run();
    }

    /// Copies the example and the app, as its page says.
    fn copy(&self) {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        for (from, to) in [
            ("examples/django_schemas/.", "."),
            ("deploy/django/lockgate", "."),
        ] {
            let copy = format!("cp -r '{}' {to}", root.join(from).display());
            self.run(&copy);
        }
    }

    /// The gateway with the example's file, on ports and a Redis of the test.
    async fn serve(&self) -> Replica {
        let file = self.folder.join("lockgate.toml");
        let mut text = std::fs::read_to_string(&file).unwrap();
        for (from, to) in [
            ("127.0.0.1:8001", "127.0.0.1:0".to_owned()),
            ("redis://127.0.0.1:6379/0", self.redis.url()),
        ] {
            assert!(text.contains(from), "{text}");
            text = text.replace(from, &to);
        }
        // A socket that waits for Django does not read, and answers no ping.
        text += "\n[server.heartbeat]\ninterval = \"10m\"\n\n[admin]\nlisten = \"127.0.0.1:0\"\n\n[api]\nlisten = \"127.0.0.1:0\"\n";
        text += "api_keys = [\"an-operators-key-that-only-this-test-has\"]\n";
        std::fs::write(&file, text).unwrap();
        let program = Replica::program(&file).dir(&self.folder);
        let program = program.env("SHOP_SIGNING_KEY", KEY);
        let replica = Replica::run(program.env("SHOP_DATABASE_URL", &self.database)).await;
        replica.ready().await;
        replica
    }

    fn requests(&self) -> Requests {
        let shell = ["-B", "manage.py", "shell", "--command", CLIENT];
        let program = self.program("requests", python());
        Requests {
            process: program.args(shell).start(),
            turns: AtomicUsize::new(0),
        }
    }
}

/// Host, port, user and database of a URL.
fn url_parts(url: &str) -> (String, String, String, String) {
    let rest = url.strip_prefix("postgres://").unwrap();
    let (user, rest) = rest.split_once('@').unwrap();
    let (place, database) = rest.split_once('/').unwrap();
    let (host, port) = place.split_once(':').unwrap();
    (host.into(), port.into(), user.into(), database.into())
}

/// A process of the project that is asked for its views.
struct Requests {
    process: Process,
    turns: AtomicUsize,
}

impl Requests {
    /// `POST` to a view of a schema's domain.
    async fn post(&self, schema: &str, path: &str, token: &str, body: Value) -> (u64, Value) {
        let turn = self.turns.fetch_add(1, Ordering::Relaxed);
        let host = format!("{schema}.example.com");
        let ask = json!({"turn": turn, "host": host, "path": path, "token": token, "body": body});
        self.process.write_line(&ask.to_string());
        let answer = self.process.line(path, DEADLINE, |line| {
            let answer: Value = serde_json::from_str(line).ok()?;
            (answer["turn"] == turn).then_some(answer)
        });
        let answer = answer.await;
        let body = serde_json::from_str(answer["body"].as_str().unwrap());
        (answer["status"].as_u64().unwrap(), body.unwrap_or_default())
    }

    /// The same, of a call that succeeds.
    async fn call(&self, schema: &str, path: &str, token: &str, body: Value) -> Value {
        let (status, answer) = self.post(schema, path, token, body).await;
        assert!([200, 204].contains(&status), "{path}: {status} {answer}");
        answer
    }

    async fn token(&self, schema: &str) -> String {
        let login = json!({"username": "alice", "password": "secret"});
        let tokens = self.call(schema, "/api/token/", "", login).await;
        tokens["access"].as_str().unwrap().to_owned()
    }
}

fn dial(replica: &Replica, schema: &str, token: &str) -> Dial {
    let host = format!("{schema}.example.com");
    Dial::new(replica.server, &host, "/ws/chat/lobby/").token(token)
}

/// A socket whose group has told its position.
async fn open(replica: &Replica, schema: &str, token: &str) -> Socket {
    let mut socket = dial(replica, schema, token).open().await;
    let first = socket.next_json().await;
    assert!(position_of(&first).starts_with("chat_lobby~"), "{first}");
    socket
}

/// The rules tell the pub/sub layer of Django which groups are recorded.
async fn rules_are_there(redis: &RedisServer, tenants: &[&str]) {
    for tenant in tenants {
        let key = format!("lockgate:{tenant}:groups");
        eventually(PATIENCE, &key, async || {
            let found: u64 = redis.command(&["EXISTS", &key]).await;
            if found == 1 { Ok(()) } else { Err(found) }
        })
        .await;
    }
}

/// Everything that the page says of two schemas, on one kind of layer.
async fn two_schemas(project: &Project<'_>) {
    project.copy();
    let [set_up] = blocks(PAGE, "sh")[..] else {
        panic!("the page has one block of commands");
    };
    project.run(set_up);
    let written = std::fs::read_to_string(project.folder.join("tenants.d/acme.toml")).unwrap();
    for line in [
        "hosts = [\"acme.example.com\"]",
        "table = \"acme.auth_user\"",
    ] {
        assert!(written.lines().any(|written| written == line), "{written}");
    }
    if project.layer == "pubsub" {
        assert!(written.contains(blocks(PAGE, "toml")[1]), "{written}");
    }
    let (replica, django) = (project.serve().await, project.requests());
    assert!(
        !replica
            .process
            .output
            .text()
            .contains("takes tokens of the other")
    );

    // Both are user 1 of their schema, and the key is the same.
    let (acme, globex) = (django.token("acme").await, django.token("globex").await);
    for (schema, token) in [("acme", &globex), ("globex", &acme)] {
        let refused = dial(&replica, schema, token).refused().await;
        Problem::token("claims").is(&refused, schema);
        let (status, _) = django.post(schema, "/api/logout/", token, json!({})).await;
        assert_eq!(status, 401);
    }
    let mut ours = open(&replica, "acme", &acme).await;
    let mut theirs = open(&replica, "globex", &globex).await;

    if project.layer == "pubsub" {
        rules_are_there(project.redis, &["acme", "globex"]).await;
    }

    // `group_send` of one schema reaches its own sockets, is recorded there, and no other hears of it.
    let path = "/api/rooms/lobby/send/";
    for n in 1..=2 {
        let body = json!({"message": n});
        django.call("acme", path, &acme, body).await;
        let heard = ours.next_json().await;
        assert_eq!(heard["message"], n);
        let position = position_of(&heard);
        assert!(position.starts_with("chat_lobby~"), "{heard}");
        assert!(position.ends_with(&format!("~{n}")), "{heard}");
    }
    assert!(theirs.ping().await.is_empty());
    django
        .call("globex", path, &globex, json!({"message": 3}))
        .await;
    let heard = theirs.next_json().await;
    assert!(
        heard["message"] == 3 && position_of(&heard).ends_with("~1"),
        "{heard}"
    );
    assert!(ours.ping().await.is_empty());

    // A changed password and a logout concern the user of their schema.
    let again = django.token("globex").await;
    let mut second = open(&replica, "globex", &again).await;
    django
        .call("globex", "/api/logout/", &globex, json!({}))
        .await;
    assert_eq!(theirs.closed().await.0, 4501);
    assert!(second.ping().await.is_empty());
    let body = json!({"password": "secret"});
    django.call("globex", "/api/password/", &again, body).await;
    assert_eq!(second.closed().await.0, 4501);
    assert!(ours.ping().await.is_empty());
    dial(&replica, "acme", &acme).open().await;
    if project.layer == "pubsub" {
        one_more(project, &replica).await;
        assert!(ours.ping().await.is_empty(), "its tenant did not change");
    }
}

/// A new schema is a new file and a reload. Its name has an underscore, which names of tenants and hosts do not have. Before, the
/// page's commands wrote a file that the check refused, and its groups were not recorded.
async fn one_more(project: &Project<'_>, replica: &Replica) {
    let all = |block: &str| {
        assert!(block.contains("in acme globex;"), "{block}");
        block.replace("in acme globex;", "in initech_labs;")
    };
    project.run(&all(blocks(README, "sh")[1]));
    project.run(&all(blocks(PAGE, "sh")[0]).replace("mkdir tenants.d\n", ""));
    replica.process.signal(Signal::HUP);
    replica.logged(APPLIED).await;
    let django = project.requests();
    let token = django.token("initech-labs").await;
    let mut socket = open(replica, "initech-labs", &token).await;
    rules_are_there(project.redis, &["initech-labs"]).await;
    let path = "/api/rooms/lobby/send/";
    let send = json!({"message": 4});
    django.call("initech-labs", path, &token, send).await;
    let heard = socket.next_json().await;
    assert_eq!(heard["message"], 4);
    assert!(position_of(&heard).ends_with("~1"), "{heard}");

    // Users of a schema that all share are found where they are.
    let database = Database::at(project.database.clone());
    let moved = "ALTER TABLE initech_labs.auth_user SET SCHEMA public";
    database.execute(moved).await;
    project
        .run("python manage.py tenant_command lockgate_config --schema=initech_labs > shared.toml");
    let written = std::fs::read_to_string(project.folder.join("shared.toml")).unwrap();
    assert!(
        written.contains("table = \"public.auth_user\"\n"),
        "{written}"
    );
}

#[tokio::test]
async fn the_schemas_of_one_project_are_tenants_as_the_page_says() {
    let (postgres, redis) = (PostgresServer::shared().await, RedisServer::start().await);
    let database = postgres.url(&postgres.create_database("template0").await);
    let folders = [scratch("schemas"), scratch("schemas")];
    let [pubsub, core] =
        [("pubsub", &folders[0]), ("core", &folders[1])].map(|(layer, folder)| Project {
            folder: folder.path().to_owned(),
            layer,
            database: database.clone(),
            redis: &redis,
        });
    pubsub.copy();
    pubsub.run(blocks(README, "sh")[1]);
    two_schemas(&pubsub).await;
    // Without the revocations of the first round.
    redis.restart().await;
    two_schemas(&core).await;
}

/// The page shows the files of the example as they are.
#[test]
fn the_page_shows_the_project() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/django_schemas");
    let read = |name: &str| std::fs::read_to_string(root.join(name)).unwrap();
    let python = ["shop/tokens.py", "shop/settings.py", "shop/views.py"].map(read);
    let shown = blocks(PAGE, "python");
    assert_eq!(shown.len(), python.len());
    for (shown, file) in shown.iter().zip(&python) {
        assert!(file.contains(shown), "{shown}");
    }
    assert_eq!(read("tenant.toml").trim(), blocks(PAGE, "toml")[0].trim());
}
