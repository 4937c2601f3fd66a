//! The command line from outside: exit statuses, what is printed where, and that no key is printed.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::thread::JoinHandle;

const VALID: &str = "\
[tenants.acme.token]
algorithm = \"HS256\"
signing_key = \"hunter2-hunter2-hunter2-hunter2-\"
[tenants.acme.users]
database = \"sqlite://users.db\"
[tenants.acme.layer]
kind = \"memory\"
[[tenants.acme.routes]]
path = \"ws/\"
";

const KEY: &str = "hunter2-operator-key-hunter2-operator-key";

/// The program, without the environment variables of the test run.
fn lockgate(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lockgate"));
    command.args(arguments).env_clear().stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    lockgate(arguments).output().expect("runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("lockgate.toml");
    std::fs::write(&path, text).expect("writes");
    (folder, path)
}

/// Answers one request with `response`, and hands the request over.
fn one_answer(response: String) -> (SocketAddr, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let address = listener.local_addr().expect("has an address");
    let answering = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("accepts");
        let mut request = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let read = stream.read(&mut buffer).expect("reads");
            request.extend_from_slice(&buffer[..read]);
            let seen = text(&request);
            let Some((head, body)) = seen.split_once("\r\n\r\n") else {
                continue;
            };
            let length = head.to_ascii_lowercase();
            let length = length.split("content-length: ").nth(1);
            let length = length.and_then(|rest| rest.split("\r\n").next()?.parse().ok());
            if body.len() >= length.unwrap_or(0) || read == 0 {
                break;
            }
        }
        stream.write_all(response.as_bytes()).expect("writes");
        text(&request)
    });
    (address, answering)
}

fn response(status: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}")
}

/// `explain` and others take a token behind an option. The whole of it was printed where the option was forgotten.
#[test]
fn a_token_in_the_wrong_place_is_not_printed() {
    let token = "eyJhbGciOiJIUzI1NiJ9.eyJ1c2VyX2lkIjo3fQ.c2lnbmF0dXJl-_x";
    let url = format!("wss://acme.example.com/ws/?token={token}&x=1");
    for arguments in [
        &["explain", &url] as &[&str],
        &["explain", "--tokn", token],
        &["revoke", "--tenant", "acme", token],
        &["connections", "--tenant", "acme", &format!("--{token}")],
        &["presence", "--limit", token],
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let told = text(&output.stderr);
        assert!(told.starts_with("error: "), "{told}");
        assert!(output.stdout.is_empty());
        for part in token.split('.') {
            assert!(!told.contains(part), "{told}");
        }
    }
    let told = text(&run(&["explain", &url]).stderr);
    assert!(
        told.contains("argument 'wss://acme.example.com/ws/?token=[token]&x=1'"),
        "{told}"
    );
}

#[test]
fn wrong_usage_is_2_and_help_is_0() {
    for arguments in [
        &[][..],
        &["nonsense"],
        &["serve", "--nonsense"],
        &["config"],
        &["config", "check", "--grace", "30"],
        &["send", "--tenant", "NOT A TENANT", "--group", "g", "{}"],
        &["token", "explain", "x"],
    ] {
        assert_eq!(run(arguments).status.code(), Some(2), "{arguments:?}");
    }
    for arguments in [
        &["--help"][..],
        &["--version"],
        &["dev", "--help"],
        &["serve", "--help"],
        &["config", "check", "--help"],
        &["token", "mint", "--help"],
        &["token", "explain", "--help"],
        &["send", "--help"],
        &["healthcheck", "--help"],
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        if arguments[0] != "--version" {
            assert!(text(&output.stdout).contains("Example"), "{arguments:?}");
        }
    }
}

#[test]
fn config_check_tells_what_is_wrong() {
    let (_folder, path) = file(VALID);
    let path = path.to_str().expect("is UTF-8");
    let output = run(&["config", "check", "--config", path]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(text(&output.stdout).contains("valid: 1 tenant"));
    for (variable, status) in [(path, 0), ("", 1)] {
        let output = lockgate(&["config", "check"])
            .env("LOCKGATE_CONFIG", variable)
            .output();
        assert_eq!(
            output.expect("runs").status.code(),
            Some(status),
            "{variable:?}"
        );
    }
    let grace = |time| run(&["--config", path, "config", "check", "--grace", time]);
    assert_eq!(grace("70s").status.code(), Some(0));
    let output = grace("69s");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("server.drain: found delay 5s + window 60s + 5s = 70s"));

    let (_folder, path) = file(&format!(
        "wach = 1\n[redis]\nurl = \"http://:hunter2@h\"\n{VALID}"
    ));
    let path = path.to_str().expect("is UTF-8");
    let output = run(&["config", "check", "--config", path]);
    assert_eq!(output.status.code(), Some(1));
    let told = text(&output.stderr);
    assert_eq!(told.lines().count(), 2, "{told}");
    assert!(
        told.contains(":1:1: wach: ") && told.contains(":3:1: redis.url: "),
        "{told}"
    );
    assert!(!told.contains("hunter2"), "{told}");
    let output = run(&["config", "check", "--json", "--config", path]);
    assert_eq!(output.status.code(), Some(1));
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).expect("is JSON");
    assert_eq!(answer["valid"], false);
    assert_eq!(answer["mistakes"][1]["key"], "redis.url");
    let output = run(&["serve", "--config", path]);
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn defaults_and_reference_survive_a_reader_that_goes_away() {
    for verb in ["default", "reference"] {
        let output = run(&["config", verb]);
        assert_eq!(output.status.code(), Some(0));
        assert!(text(&output.stdout).contains("handshake_timeout"));
        let mut child = lockgate(&["config", verb])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("ends");
        assert_eq!(
            (output.status.code(), text(&output.stderr)),
            (Some(0), String::new())
        );
    }
}

#[test]
fn healthcheck_asks_the_admin_listener() {
    for (ready, page, status, code) in [
        (false, "/livez", "200 OK", 0),
        (true, "/readyz", "200 OK", 0),
        (true, "/readyz", "503 Service Unavailable", 1),
    ] {
        let (address, answering) = one_answer(response(status, "{}"));
        // A mistake elsewhere in the file does not make a replica unhealthy.
        let (_folder, path) = file(&format!("wach = 1\n[admin]\nlisten = \"{address}\"\n"));
        let mut arguments = vec!["healthcheck", "--config", path.to_str().expect("is UTF-8")];
        arguments.extend(ready.then_some("--ready"));
        assert_eq!(run(&arguments).status.code(), Some(code), "{page} {status}");
        assert!(
            answering
                .join()
                .expect("answers")
                .starts_with(&format!("GET {page} "))
        );
    }
    // Accepts (the backlog does) and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").expect("binds");
    let url = format!("http://{}", silent.local_addr().expect("has an address"));
    let output = run(&["healthcheck", "--url", &url, "--timeout", "100ms"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("it took too long"),
        "{output:?}"
    );
}

/// Before, these commands refused `--json` as an unknown option, though they print JSON.
#[test]
fn every_command_of_the_api_takes_json() {
    let (folder, _) = file(VALID);
    let (key, document) = (folder.path().join("key"), folder.path().join("acme.json"));
    std::fs::write(&key, KEY).expect("writes");
    std::fs::write(&document, "{}").expect("writes");
    let (key, document) = (key.display().to_string(), document.display().to_string());
    let group = ["--tenant", "acme", "--group", "g"];
    let user = ["--user", "7"];
    let calls: [Vec<&str>; 10] = [
        [&["send"][..], &group, &["{\"type\":\"t\"}"]].concat(),
        [&["revoke", "--tenant", "acme"][..], &user].concat(),
        vec!["reload"],
        [&["group", "add"][..], &group, &user].concat(),
        [&["group", "remove"][..], &group, &user].concat(),
        vec!["tenant", "show", "acme"],
        vec!["tenant", "put", "acme", &document],
        vec!["tenant", "delete", "acme"],
        vec!["tenant", "suspend", "acme"],
        vec!["tenant", "resume", "acme"],
    ];
    for call in calls {
        for json in [&[][..], &["--json"]] {
            let (address, answering) = one_answer(response("200 OK", "{\"closed\":1}"));
            let url = format!("http://{address}");
            let remote = ["--url", &url, "--api-key-file", &key];
            let output = run(&[&call[..], &remote, json].concat());
            assert_eq!(output.status.code(), Some(0), "{call:?}: {output:?}");
            answering.join().expect("answers");
            let printed: serde_json::Value =
                serde_json::from_slice(&output.stdout).expect("prints JSON");
            assert_eq!(printed["closed"], 1, "{call:?}");
        }
    }
}

#[test]
fn send_publishes_with_the_first_operator_key_and_never_prints_it() {
    for (status, body, code) in [
        ("200 OK", "{\"published\":1}", 0),
        ("404 Not Found", "{\"code\":\"tenant_not_found\"}", 1),
    ] {
        let (address, answering) = one_answer(response(status, body));
        let api = format!("[api]\nlisten = \"{address}\"\napi_keys = [\"{KEY}\"]\n");
        let (_folder, path) = file(&format!("{api}{VALID}"));
        let mut child = lockgate(&[
            "send", "--tenant", "acme", "--group", "a/b c", "-", "--config",
        ])
        .arg(&path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
        let event = "{\"type\": \"t\", \"n\": 1.0}";
        let mut stdin = child.stdin.take().expect("has a standard input");
        stdin.write_all(event.as_bytes()).expect("writes");
        drop(stdin);
        let output = child.wait_with_output().expect("ends");
        let request = answering.join().expect("answers");
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        let printed = text(&output.stdout) + &text(&output.stderr);
        assert!(
            printed.contains(body) && !printed.contains("hunter2"),
            "{printed}"
        );
        assert!(
            request.starts_with("POST /v1/tenants/acme/groups/a%2Fb%20c/send HTTP/1.1\r\n"),
            "{request}"
        );
        let head = request.to_ascii_lowercase();
        assert!(
            head.contains(&format!("authorization: bearer {KEY}\r\n")),
            "{request}"
        );
        assert!(request.ends_with(event), "{request}");
    }
}

#[test]
fn send_refuses_what_is_no_event_and_needs_a_key() {
    let (folder, path) = file(VALID);
    let key = folder.path().join("key");
    std::fs::write(&key, format!("{KEY}\n")).expect("writes");
    let key = key.to_str().expect("is UTF-8");
    let send = |more: &[&str]| {
        let path = path.to_str().expect("is UTF-8");
        let mut arguments = vec!["send", "--tenant", "acme", "--group", "g", "--config", path];
        arguments.extend(more);
        let output = run(&arguments);
        assert_eq!(output.status.code(), Some(1), "{more:?}");
        text(&output.stderr)
    };
    let url = "http://127.0.0.1:1";
    assert!(send(&["--url", url, "{\"type\":\"t\"}"]).contains("no api.api_keys"));
    assert!(send(&["--api-key-file", key, "{\"type\":\"t\"}"]).contains("no api.listen"));
    assert!(send(&["--url", url, "--api-key-file", key, "[]"]).contains("not a JSON object"));
    assert!(send(&["--url", url, "--api-key-file", key, "{}"]).contains("no \"type\""));
    let told = send(&["--url", url, "--api-key-file", key, "{\"type\":\"t\"}"]);
    assert!(
        told.contains("no answer") && !told.contains("hunter2"),
        "{told}"
    );
}

#[test]
fn dev_needs_leave_for_other_machines() {
    let output = run(&["dev", "--listen", "0.0.0.0:0", "--admin", "127.0.0.1:0"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("--allow-remote"));
}

/// Before: a file with a kind of a program's own could be checked by no command of `lockgate`.
#[test]
fn the_check_takes_kinds_that_a_program_registers() {
    let route = VALID.replace(
        "path = \"ws/\"",
        "path = \"ws/\"\nconsumer = { kind = \"counter\", step = \"two\" }",
    );
    let (_folder, path) = file(&route);
    let path = path.to_str().expect("text");
    let check = |more: &[&str]| run(&[&["config", "check", "--config", path], more].concat());
    let unknown = check(&[]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(
        text(&unknown.stderr).contains("consumer.kind: found \"counter\""),
        "{unknown:?}"
    );
    let other = check(&["--consumer", "shout"]);
    assert_eq!(other.status.code(), Some(1));
    let known = check(&["--consumer", "shout", "--consumer", "counter"]);
    assert_eq!(known.status.code(), Some(0), "{known:?}");
    let json = check(&["--consumer", "counter", "--json"]);
    assert!(text(&json.stdout).contains("\"valid\":true"), "{json:?}");
}

/// The program itself also knows the options of its kinds.
#[test]
fn a_program_checks_its_own_consumers_and_their_options() {
    use lockgate::consumer::{Echo, Registry, Scope};
    use lockgate::server::Server;

    let mut registry = Registry::default();
    registry.register_with_options("counter", |options| match options.get("step") {
        None | Some(toml::Value::Integer(_)) => Ok(|_: &Scope| Echo),
        Some(_) => Err("step is a whole number".to_owned()),
    });
    for (step, mistake) in [("2", None), ("\"two\"", Some("step is a whole number"))] {
        let consumer =
            format!("path = \"ws/\"\nconsumer = {{ kind = \"counter\", step = {step} }}");
        let (_folder, path) = file(&VALID.replace("path = \"ws/\"", &consumer));
        let told = Server::check(Some(&path), &registry).map_err(|errors| errors.to_string());
        match mistake {
            None => assert!(told.is_ok(), "{told:?}"),
            Some(text) => {
                let told = told.expect_err("the option is wrong");
                assert!(
                    told.contains(text) && told.contains("lockgate.toml:10"),
                    "{told}"
                );
            }
        }
    }
}
