//! `ca` and `verify`: authorities as they come, each refused or named at its key, without its text.

use std::fs;

use super::{Folder, TENANT, warnings};

fn certificate(name: &str) -> String {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/certificates");
    fs::read_to_string(format!("{folder}/{name}")).expect("is there")
}

#[test]
fn an_authority_that_cannot_be_used_is_named_with_its_file() {
    let (ca, key) = (certificate("ca.pem"), certificate("server.key"));
    let broken = ca.replacen("MII", "hunter2!", 1);
    let no_x509 = "-----BEGIN CERTIFICATE-----\naHVudGVyMg==\n-----END CERTIFICATE-----\n";
    for (content, found) in [
        (key.clone(), "with a private key"),
        (format!("{ca}{key}"), "with a private key"),
        (String::new(), "that is empty"),
        (" \n".to_owned(), "that is empty"),
        ("hunter2".to_owned(), "without a certificate"),
        (broken, "that is no readable PEM"),
        (
            no_x509.to_owned(),
            "certificate 1 of a PEM, which cannot be read",
        ),
        (
            format!("{ca}{no_x509}"),
            "certificate 2 of a PEM, which cannot be read",
        ),
        ("0\u{1}hunter2".to_owned(), "that is no PEM but DER"),
    ] {
        let folder = Folder::new(format!("{TENANT}[tls]\nca = [{{ file = \"ca.pem\" }}]\n"));
        folder.write("ca.pem", content, 0o644);
        let lines = folder.load(&[]).expect_err(found);
        assert!(
            lines.len() == 1 && lines[0].contains("tls.ca[0]: found"),
            "{lines:?}"
        );
        assert!(lines[0].contains(found), "{lines:?}");
        let secret = key.lines().nth(1).expect("a line of the key");
        assert!(
            !lines[0].contains(secret) && !lines[0].contains("hunter2"),
            "{lines:?}"
        );
    }
}

#[test]
fn a_missing_authority_a_folder_and_an_unset_variable_are_named() {
    let folder = Folder::new(format!(
        "{TENANT}[redis]\nurl = \"rediss://h\"\nca = [{{ file = \"none.pem\" }}, {{ file = \"folder\" }}, {{ env = \"CA\" }}, 5]\n"
    ));
    folder.write("folder/x", "", 0o644);
    let lines = folder.load(&[]).expect_err("four mistakes");
    for (index, found) in [
        "none.pem: No such file",
        "folder: it is a directory",
        "the variable CA, which is not set",
        "an integer",
    ]
    .iter()
    .enumerate()
    {
        let key = format!("redis.ca[{index}]: found");
        let told = lines
            .iter()
            .any(|line| line.contains(&key) && line.contains(found));
        assert!(told, "{found}: {lines:?}");
    }
}

#[test]
fn authorities_are_read_from_files_variables_and_text() {
    let ca = certificate("ca.pem");
    let text = format!(
        "{TENANT}[tls]\nca = [{{ file = \"ca.pem\" }}, {{ env = \"CA\" }}, '''{ca}''']\n[tenants.acme.redis]\nurl = \"rediss://h\"\nverify = \"ca\"\n"
    );
    let folder = Folder::new(text);
    // Certificates are no secret, so a file that everyone can read is no reason to warn.
    folder.write("ca.pem", format!("# the company's\n{ca}{ca}"), 0o644);
    let loaded = folder.load(&[("CA", &ca)]).expect("is valid");
    let numbers: Vec<_> = { loaded.config.tls.ca.iter() }
        .map(|entry| entry.certificates().len())
        .collect();
    assert_eq!(numbers, [2, 1, 1]);
    assert_eq!(warnings(&loaded), "");
    assert_eq!(loaded.secret_files, [folder.0.path().join("ca.pem")]);
}

/// An expired authority is named, and does not end a start: a restart at night must not stop all tenants.
#[test]
fn an_expired_authority_and_an_unchecked_certificate_are_warned_of() {
    let folder = Folder::new(format!(
        "{TENANT}[redis]\nurl = \"rediss://h\"\nverify = \"none\"\nca = [{{ file = \"ca.pem\" }}]\n"
    ));
    folder.write(
        "ca.pem",
        certificate("ca.pem") + &certificate("expired.pem"),
        0o644,
    );
    let told = warnings(&folder.load(&[]).expect("is valid"));
    assert!(
        told.contains("redis.ca[0]: a certificate of this authority expired on 2020-01-31"),
        "{told}"
    );
    assert!(
        told.contains("redis.verify: the certificate of the server is not checked"),
        "{told}"
    );
}

/// The `ca` and `verify` of a table hold for more servers than its own. Before, a plain `redis.url` beside a denylist with TLS
/// left no way to name the denylist's authority.
#[test]
fn the_trust_of_a_table_needs_one_server_with_tls() {
    let memory = "kind = \"memory\"";
    for (redis, layer, wrong) in [
        (
            "[redis]\nurl = 'redis://h'\nverify = 'ca'\n[denylist]\nredis = 'rediss://d'\n",
            memory,
            "",
        ),
        (
            "[redis]\nurl = 'redis://h'\nverify = 'ca'\n",
            "hosts = ['rediss://l', 'redis://m']",
            "",
        ),
        (
            "[redis]\nverify = 'ca'\n[denylist]\nredis = 'rediss://d'\n",
            memory,
            "",
        ),
        (
            "[tenants.acme.redis]\nurl = 'redis://h'\nverify = 'ca'\n",
            "hosts = ['rediss://l']",
            "",
        ),
        (
            "[redis]\nurl = 'redis://h'\nverify = 'ca'\n[denylist]\nredis = 'redis://d'\n",
            memory,
            "redis.verify: found verify beside URLs without TLS",
        ),
        (
            "[redis]\nurl = 'redis://h'\nverify = 'ca'\n",
            "hosts = ['redis://l']",
            "redis.verify: found verify beside URLs without TLS",
        ),
        // The hosts of a tenant with a table of its own, and its URL, are not the deployment's.
        (
            "[redis]\nurl = 'redis://h'\nverify = 'ca'\n[tenants.acme.redis]\nurl = 'rediss://t'\n",
            "hosts = ['rediss://l']",
            "redis.verify: found verify beside URLs without TLS",
        ),
        (
            "[tenants.acme.redis]\nurl = 'rediss://t'\n[redis]\nverify = 'ca'\n",
            memory,
            "redis.verify: found verify without a url",
        ),
        (
            "[tenants.acme.redis]\nurl = 'redis://h'\nverify = 'ca'\n[denylist]\nredis = 'rediss://d'\n",
            memory,
            "tenants.acme.redis.verify: found verify beside URLs without TLS",
        ),
    ] {
        let text = TENANT.replace(memory, layer) + redis;
        match Folder::new(&text).load(&[]) {
            Ok(_) => assert_eq!(wrong, "", "{text}"),
            Err(lines) => assert!(
                !wrong.is_empty() && lines.len() == 1 && lines[0].contains(wrong),
                "{text}\n{lines:#?}"
            ),
        }
    }
}
