//! `examples/sign_up`: a customer signs up in a browser, and its socket is open; set up by the commands of its page.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::support::browser::Page;
use crate::support::django::python;
use crate::support::ports::free_port;
use crate::support::process::{Process, Program};
use crate::support::replica::{LOCKGATE, Replica};
use crate::support::{Database, PATIENCE, RedisServer, Tenant, eventually, scratch, within};

const README: &str = include_str!("../../../examples/sign_up/README.md");
const CHAT: &str = "/ws/chat/lobby/";

/// The example in a folder of its own.
struct Project {
    folder: PathBuf,
    env: Vec<(&'static str, String)>,
}

impl Project {
    fn program(&self, name: &str, program: impl AsRef<std::ffi::OsStr>) -> Program {
        let programs = [python(), LOCKGATE.into()];
        let folders = programs.iter().filter_map(|program| program.parent());
        let own = std::env::var_os("PATH").unwrap_or_default();
        let path = folders
            .map(Path::to_owned)
            .chain(std::env::split_paths(&own));
        let mut program = Program::new(name, program)
            .dir(&self.folder)
            .env("PATH", std::env::join_paths(path).unwrap())
            .env("PYTHONDONTWRITEBYTECODE", "1");
        for (name, value) in &self.env {
            program = program.env(name, value);
        }
        program
    }

    /// Runs a block of the page, without its first line if that installs packages.
    fn run(&self, block: &str) {
        let lines = block
            .lines()
            .filter(|line| !line.starts_with("pip install"));
        let block = lines.collect::<Vec<_>>().join("\n");
        self.program("sh", "sh").args(["-e", "-c", &block]).run();
    }

    /// Runs a statement of Django's shell.
    fn django(&self, statement: &str) {
        let shell = ["-B", "manage.py", "shell", "--verbosity", "0", "--command"];
        let text = format!("from customers.models import Customer\n{statement}");
        self.program("shell", python())
            .args(shell)
            .args([&text])
            .run();
    }

    fn site(&self, port: u16) -> Process {
        let address = format!("127.0.0.1:{port}");
        let run = ["-B", "manage.py", "runserver", "--noreload", &address];
        self.program("runserver", python()).args(run).start()
    }
}

/// The example, served by a gateway on ports and a Redis of the test.
async fn project(redis: &RedisServer, dir: &Path) -> (Project, Replica) {
    let folder = dir.join("sign_up");
    let mut project = Project {
        folder: folder.clone(),
        env: Vec::new(),
    };
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/sign_up");
    let copy = format!("cp -r '{}' '{}'", example.display(), folder.display());
    Program::new("sh", "sh").args(["-e", "-c", &copy]).run();
    let file = folder.join("lockgate.toml");
    let mut text = std::fs::read_to_string(&file).unwrap();
    for (from, to) in [
        ("127.0.0.1:8001", "127.0.0.1:0".to_owned()),
        ("127.0.0.1:9001", "127.0.0.1:0".to_owned()),
        ("redis://127.0.0.1:6379/0", redis.url()),
    ] {
        assert!(text.contains(from), "{text}");
        text = text.replace(from, &to);
    }
    text += "\n[admin]\nlisten = \"127.0.0.1:0\"\n";
    std::fs::write(&file, text).unwrap();
    let mut blocks = README.split("```sh\n").skip(1);
    let set_up = blocks.next().unwrap().split("```").next().unwrap();
    project.run(set_up);
    let replica = Replica::run(Replica::program(&file).dir(&folder)).await;
    replica.ready().await;
    let sockets = format!("ws://{{host}}:{}", replica.server.port());
    project.env = vec![
        ("SOCKET_URL", sockets),
        ("LOCKGATE_API", format!("http://{}", replica.api)),
    ];
    (project, replica)
}

/// What a client and a back end know of a customer.
fn customer(name: &str, redis: &RedisServer) -> Tenant {
    Tenant {
        name: name.to_owned(),
        host: format!("{name}.localhost"),
        prefix: format!("{name}."),
        key: String::new(),
        redis: redis.url(),
        database: Database::at(String::new()),
    }
}

#[tokio::test]
async fn a_customer_signs_up_and_its_browser_is_connected() {
    let (redis, dir) = (RedisServer::start().await, scratch("sign-up"));
    let (mut project, replica) = project(&redis, dir.path()).await;
    let port = free_port();
    let site = format!("http://127.0.0.1:{port}");
    project.env.push(("SITE_ORIGIN", site.clone()));
    let _site = project.site(port);
    eventually(4 * PATIENCE, "the site answers", async || {
        tokio::net::TcpStream::connect(("127.0.0.1", port))
            .await
            .map(drop)
    })
    .await;
    let mut page = Page::open(&site).await;
    page.wait_for("document.getElementById('state')?.textContent === 'not signed up'")
        .await;
    let began = Instant::now();
    page.evaluate("void signUp('acme')").await;
    // It is in the group, and hears itself.
    let heard = "document.getElementById('state').textContent === 'heard: hello from acme'";
    within(Duration::from_secs(10), "a socket", page.wait_for(heard)).await;
    println!("connected {:?} after signing up", began.elapsed());

    // One whose name begins with it is another tenant, and a name is taken once.
    page.evaluate("void signUp('acme-corp')").await;
    page.wait_for("document.getElementById('state').textContent === 'heard: hello from acme-corp'")
        .await;
    page.evaluate("void signUp('acme')").await;
    page.wait_for("document.getElementById('state').textContent.includes('already exists')")
        .await;

    // A stranger is told what a stranger may know: not who has the host.
    project.django(
        "from customers import tenants; \
         tenants.call('PUT', 'other', tenants.document(Customer(name='taken')))",
    );
    page.evaluate("void signUp('taken')").await;
    page.wait_for("document.getElementById('state').textContent === 'This name cannot be taken.'")
        .await;
    page.evaluate("void signUp('line\\n')").await;
    page.wait_for("document.getElementById('state').textContent.includes('Small letters')")
        .await;
    for body in ["no JSON", "[]", r#"{"name": 1}"#] {
        let post = format!(
            "void fetch('/signup/', {{method: 'POST', body: '{body}'}}).then(answer => {{ \
             document.getElementById('state').textContent = '{body}: ' + answer.status }})"
        );
        page.evaluate(&post).await;
        let told = format!("document.getElementById('state').textContent === '{body}: 400'");
        page.wait_for(&told).await;
    }

    // Another key: tokens of both verify until the old one is forgotten.
    let acme = customer("acme", &redis);
    let token_file = project.folder.join("token");
    let keep = "open('token', 'w').write(acme.token('2'))";
    project.django(&format!(
        "acme = Customer.objects.get(name='acme'); {keep}; acme.rotate_key()"
    ));
    let old = std::fs::read_to_string(&token_file).unwrap();
    let dial = |token: &str| {
        let dial = replica.dial(&acme, CHAT).token(token);
        dial.header("Origin", &site)
    };
    let mut socket = dial(&old).open().await;
    project.django(&format!(
        "acme = Customer.objects.get(name='acme'); {keep}; acme.forget_previous_key()"
    ));
    let new = std::fs::read_to_string(&token_file).unwrap();
    assert_eq!(dial(&old).refused().await.status, 401);
    dial(&new).open().await;

    project.run("python manage.py put_tenants");
    socket.ping().await;
    project.django("Customer.objects.get(name='acme').delete()");
    assert_eq!(socket.closed().await.0, 4017);
    assert_eq!(dial(&new).refused().await.status, 404);
}
