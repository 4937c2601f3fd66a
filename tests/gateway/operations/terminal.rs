//! What a person at a terminal sees. Each test tells what was printed before.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::process::{Command, Output, Stdio};

use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::Value;
use tokio::task::JoinSet;

use crate::support::process::Program;
use crate::support::replica::LOCKGATE;
use crate::support::{PATIENCE, gateway, scratch};

/// Runs a command to its end and returns what it wrote to a terminal.
fn at_a_terminal(arguments: &[&str], environment: &[(&str, &str)]) -> String {
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap();
    let open = || {
        let mut options = File::options();
        let side = options.read(true).write(true).open(name.to_str().unwrap());
        Stdio::from(OwnedFd::from(side.unwrap()))
    };
    let mut command = Command::new(LOCKGATE);
    command.args(arguments).env_clear().env("TERM", "xterm");
    command.envs(environment.iter().copied());
    command.stdin(Stdio::null()).stdout(open()).stderr(open());
    let mut child = command.spawn().unwrap();
    // Our copies of the other side are closed with it, so that reading ends with the process.
    drop(command);
    let mut written = Vec::new();
    // Linux ends a terminal without another side with EIO.
    drop(File::from(terminal).read_to_end(&mut written));
    child.wait().unwrap();
    String::from_utf8_lossy(&written).into_owned()
}

fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(LOCKGATE);
    command.args(arguments).env_clear().stdin(Stdio::null());
    command.output().unwrap()
}

fn text(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    String::from_utf8_lossy(out).into_owned() + &String::from_utf8_lossy(err)
}

/// Before: without colours everywhere.
#[test]
fn mistakes_have_a_colour_at_a_terminal_unless_it_is_not_wanted() {
    let check = ["config", "check", "-c", "/no/such/lockgate.toml"];
    let painted = at_a_terminal(&check, &[]);
    assert!(
        painted.contains("\u{1b}[") && painted.contains("error:"),
        "{painted:?}"
    );
    let plain = at_a_terminal(&check, &[("NO_COLOR", "1")]);
    assert!(
        !plain.contains('\u{1b}') && plain.contains("error: "),
        "{plain:?}"
    );
    let piped = text(&run(&check));
    assert!(
        !piped.contains('\u{1b}') && piped.contains("error: "),
        "{piped:?}"
    );
}

/// Before: JSON at a terminal too. The strict start ends by itself, since its table does not exist.
#[tokio::test]
async fn the_log_is_text_at_a_terminal_and_json_elsewhere() {
    let gateway = gateway()
        .set("server.listen", "localhost:0")
        .set("admin.listen", "localhost:0")
        .tenant("acme")
        .with("users.table", "no_such_table")
        .write()
        .await;
    let config = gateway.config.to_str().unwrap().to_owned();
    let strict = move |color: &'static [(&str, &str)]| {
        let config = config.clone();
        tokio::task::spawn_blocking(move || {
            let shown = at_a_terminal(&["serve", "--strict", "-c", &config], color);
            let piped = text(&run(&["serve", "--strict", "-c", &config]));
            (shown, piped)
        })
    };
    let (shown, piped) = strict(&[("NO_COLOR", "1")]).await.unwrap();
    let line = shown.lines().find(|line| line.contains("listening"));
    let line = line.unwrap_or_else(|| panic!("{shown}"));
    assert!(line.contains(" INFO ") && !line.contains('{'), "{line}");
    assert!(!shown.contains('\u{1b}'), "{shown:?}");
    let json = |line: &&str| serde_json::from_str::<serde_json::Value>(line).is_ok();
    let line = piped.lines().find(|line| line.contains("listening"));
    assert!(line.is_some_and(|line| json(&line)), "{piped}");
    let (shown, _) = strict(&[]).await.unwrap();
    assert!(shown.contains("\u{1b}["), "{shown:?}");
}

/// Before: Ctrl-C in front of no socket waited for `drain.delay` and said nothing of it.
#[tokio::test]
async fn ctrl_c_without_sockets_ends_at_once() {
    let gateway = gateway()
        .set("server.drain.delay", "10m")
        .tenant("acme")
        .start()
        .await;
    let replica = gateway.replica();
    replica.process.signal(Signal::INT);
    replica.logged("Stopping: no socket is open").await;
    assert_eq!(replica.exited(PATIENCE).await.code(), Some(0));
}

/// Before: the line said how many were left, and not that a second Ctrl-C ends the wait.
#[tokio::test]
async fn ctrl_c_says_how_many_are_left_and_again_stops_now() {
    let gateway = gateway()
        .set("server.drain.delay", "10m")
        .tenant("acme")
        .start()
        .await;
    let replica = gateway.replica();
    let mut socket = gateway.open("/ws/chat/lobby/").await;
    replica.process.signal(Signal::INT);
    let line = replica.logged("Ctrl-C again").await;
    assert!(line.contains("\"count\":1"), "{line}");
    // The delay holds while a socket is open.
    assert!(socket.ping().await.is_empty());
    replica.process.signal(Signal::INT);
    replica.logged("A second signal").await;
    assert_eq!(socket.closed().await.0, 1012);
    assert_eq!(replica.exited(PATIENCE).await.code(), Some(1));
}

/// Before: nothing between the first and the last line of a drain, which may take minutes.
#[tokio::test]
async fn a_drain_tells_its_progress() {
    let gateway = gateway()
        .set("server.drain.delay", "10m")
        .tenant("acme")
        .start()
        .await;
    let replica = gateway.replica();
    let _socket = gateway.open("/ws/chat/lobby/").await;
    replica.terminate();
    let line = replica.logged("waiting for the load balancer").await;
    assert!(line.contains("\"count\":1"), "{line}");
}

/// Once the delay is over, the lines count the sockets that are still to be closed.
#[tokio::test]
async fn a_drain_tells_how_many_sockets_are_left() {
    let gateway = gateway()
        .set("server.drain.delay", "0s")
        .set("server.drain.rate", 3)
        .set("server.drain.window", "10m")
        .tenant("acme")
        .start()
        .await;
    let replica = gateway.replica();
    let mut clients = JoinSet::new();
    for _ in 0..50 {
        let mut socket = gateway.open("/ws/chat/lobby/").await;
        clients.spawn(async move { socket.closed().await });
    }
    replica.terminate();
    let told = async |fewer_than: u64| {
        let line = replica.process.line("fewer sockets", PATIENCE, |line| {
            let line: Value = serde_json::from_str(line).ok()?;
            let count = line["count"].as_u64()?;
            (line["message"] == "Draining: closing sockets" && count < fewer_than).then_some(count)
        });
        line.await
    };
    let first = told(50).await;
    let second = told(first).await;
    assert!(second > 0, "{first}, {second}");
}

/// Before: "unrecognized subcommand".
#[test]
fn completions_and_manual_pages_know_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let script = text(&run(&["completions", shell]));
        for word in ["doctor", "healthcheck", "explain"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    let page = text(&run(&["man"]));
    assert!(
        page.starts_with(".ie") || page.contains(".TH lockgate 1"),
        "{page}"
    );
    let folder = scratch("man");
    let at = folder.path().to_str().unwrap();
    assert_eq!(run(&["man", at]).status.code(), Some(0));
    for page in ["lockgate.1", "lockgate-serve.1", "lockgate-token-explain.1"] {
        let text = std::fs::read_to_string(folder.path().join(page)).unwrap();
        assert!(text.contains(".TH"), "{page}");
    }
    let nowhere = run(&["man", "/no/such/folder"]);
    assert_eq!(nowhere.status.code(), Some(1));
    assert!(text(&nowhere).contains("/no/such/folder"));
}

/// Before: "Connection refused (os error 111)", and "builder error" for a URL without a scheme.
#[tokio::test]
async fn a_refused_connection_asks_whether_serve_runs_and_a_url_needs_no_scheme() {
    let told = text(&run(&["healthcheck", "--url", "127.0.0.1:1"]));
    assert!(told.contains("http://127.0.0.1:1/livez"), "{told}");
    assert!(told.contains("does `lockgate serve` run?"), "{told}");
    let gateway = gateway().tenant("acme").start().await;
    let admin = gateway.replica().admin.to_string();
    assert_eq!(
        run(&["healthcheck", "--url", &admin]).status.code(),
        Some(0)
    );
    let api = gateway.replica().api.to_string();
    let connections = run(&[
        "connections",
        "--url",
        &api,
        "--tenant",
        &gateway.tenant().name,
        "--api-key-file",
        gateway.key_file.to_str().unwrap(),
    ]);
    assert_eq!(connections.status.code(), Some(0), "{}", text(&connections));
}

/// Before: "Address already in use" alone, and `localhost:8001` was no address.
#[tokio::test]
async fn a_busy_port_names_the_option_and_localhost_is_an_address() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = format!("localhost:{}", taken.local_addr().unwrap().port());
    for (option, arguments) in [
        ("--listen", ["--listen", &busy, "--admin", "localhost:0"]),
        ("--admin", ["--listen", "localhost:0", "--admin", &busy]),
    ] {
        let dev = Program::new("lockgate dev", LOCKGATE)
            .args(["dev"])
            .args(arguments)
            .start();
        assert_eq!(dev.exited(PATIENCE).await.code(), Some(1));
        let told = dev.output.text();
        assert!(
            told.contains(&format!("choose another one with {option} ")),
            "{told}"
        );
    }
    let wrong = run(&["dev", "--listen", "nowhere:8001"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(text(&wrong).contains("localhost"), "{}", text(&wrong));
}

/// Before: dev ended in silence.
#[tokio::test]
async fn dev_says_what_ctrl_c_does() {
    let dev = Program::new("lockgate dev", LOCKGATE)
        .args(["dev", "--listen", "localhost:0", "--admin", "localhost:0"])
        .start();
    let ready = dev.line("that it is ready", PATIENCE, |line| {
        line.contains("Lockgate is ready").then_some(())
    });
    ready.await;
    dev.signal(Signal::INT);
    assert_eq!(dev.exited(PATIENCE).await.code(), Some(0));
    let told = dev.output.text();
    assert!(told.contains("Stopping: no socket is open"), "{told}");
}
