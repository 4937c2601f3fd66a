//! Messages that read back as they were written, those of back ends, and those that are refused.

use super::*;

fn read(json: &str) -> Result<Op, NotUnderstood> {
    Command::read(json.as_bytes()).map(|command| command.op)
}

#[test]
fn commands_read_back_as_they_were_written() {
    let event = Event::from_json(br#"{"type":"x","n":18446744073709551615,"a":{"b":[1.5,null]}}"#);
    let ops = [
        Op::Revoke(RevocationTarget::Token("a:b\"*\n".into())),
        Op::Revoke(RevocationTarget::User("7".into(), 1_700_000_000.0)),
        Op::Revoke(RevocationTarget::All(1_700_000_000.5)),
        Op::Invalidate("é".into()),
        Op::Disconnect {
            sockets: Sockets::OfUser("7".into()),
            close: RequestedClose::new(Some(4001), Some("bye".into())).unwrap(),
        },
        Op::Disconnect {
            sockets: Sockets::OfChannel("specific.x".into()),
            close: RequestedClose::default(),
        },
        Op::Send {
            user: "7".into(),
            event: Arc::new(event.unwrap()),
        },
        Op::Count,
        Op::List {
            of: ListScope::Group("g".into()),
            cursor: Some("c".into()),
            limit: 7,
        },
        Op::List {
            of: ListScope::User("7".into()),
            cursor: Some("c".into()),
            limit: 7,
        },
        Op::GroupAdd {
            sockets: Sockets::OfUser("7".into()),
            group: "g".into(),
        },
        Op::GroupDiscard {
            sockets: Sockets::OfChannel("specific.x".into()),
            group: "g".into(),
        },
        Op::Suspend,
        Op::Resume,
        Op::Reload,
        Op::Registry,
    ];
    for op in ops {
        let command = Command {
            op,
            id: Some("1".into()),
            reply: Some("lockgate::reply:x".into()),
        };
        let json = command.to_json().unwrap();
        assert_eq!(Command::read(&json), Ok(command));
    }
}

#[test]
fn what_back_ends_write_is_understood() {
    let revoke = read(r#"{"v":1,"op":"revoke","user_id":7,"issued_before":1700000000}"#);
    assert_eq!(
        revoke,
        Ok(Op::Revoke(RevocationTarget::User("7".into(), 1.7e9)))
    );
    let jti = read(r#"{"op":"revoke","jti":"","v":1,"later":[{}]}"#);
    assert_eq!(jti, Ok(Op::Revoke(RevocationTarget::Token("".into()))));
    let list = Op::List {
        of: ListScope::All,
        cursor: None,
        limit: PAGE,
    };
    assert_eq!(read(r#"{"v":1,"op":"list"}"#), Ok(list));
}

/// The reader used to refuse what the writer had written: an event grows where its numbers are written out.
#[test]
fn what_no_replica_would_read_is_not_written() {
    let send = |numbers: usize| {
        let text = format!("{{\"type\":\"x\",\"n\":[{}0]}}", "1e15,".repeat(numbers));
        assert!(text.len() <= 1024 * 1024);
        let command = Command {
            op: Op::Send {
                user: "7".into(),
                event: Arc::new(Event::from_json(text).unwrap()),
            },
            id: None,
            reply: None,
        };
        (command.to_json(), command)
    };
    let (written, command) = send(100_000);
    assert_eq!(Command::read(&written.unwrap()), Ok(command));
    assert_eq!(send(200_000).0, Err(NotCarried::TooLong));
}

#[test]
fn what_means_nothing_is_refused() {
    let deep = format!("{{\"v\":1,\"op\":\"count\",\"x\":{}", "[".repeat(100_000));
    let long = format!("{{\"v\":1,\"op\":\"{}\"}}", "x".repeat(MAX_MESSAGE));
    let address = "x".repeat(MAX_ADDRESS + 1);
    let long_id = format!("{{\"v\":1,\"op\":\"count\",\"id\":\"{address}\"}}");
    let long_reply = format!("{{\"v\":1,\"op\":\"count\",\"reply\":\"{address}\"}}");
    for (message, expected) in [
        ("", NotUnderstood::NotReadable),
        ("[]", NotUnderstood::NotReadable),
        (r#"[1,"count"]"#, NotUnderstood::NotReadable),
        ("{}", NotUnderstood::NotReadable),
        (&deep, NotUnderstood::NotReadable),
        (&long, NotUnderstood::TooLong),
        (r#"{"v":2,"op":7}"#, NotUnderstood::Version),
        (r#"{"v":2,"op":"count"}"#, NotUnderstood::Version),
        (&long_id, NotUnderstood::Member("id")),
        (&long_reply, NotUnderstood::Member("reply")),
        (r#"{"v":1,"op":7}"#, NotUnderstood::NotReadable),
        (r#"{"v":1,"op":"explode"}"#, NotUnderstood::Op),
        (
            r#"{"v":1,"op":"revoke"}"#,
            NotUnderstood::Member("issued_before"),
        ),
        (
            r#"{"v":1,"op":"revoke","user_id":"7"}"#,
            NotUnderstood::Member("issued_before"),
        ),
        (
            r#"{"v":1,"op":"revoke","jti":"x","user_id":"7"}"#,
            NotUnderstood::Member("user_id"),
        ),
        (
            r#"{"v":1,"op":"revoke","user_id":[],"issued_before":1}"#,
            NotUnderstood::NotReadable,
        ),
        (
            r#"{"v":1,"op":"revoke","issued_before":"1"}"#,
            NotUnderstood::NotReadable,
        ),
        (
            r#"{"v":1,"op":"invalidate"}"#,
            NotUnderstood::Member("user_id"),
        ),
        (
            r#"{"v":1,"op":"disconnect"}"#,
            NotUnderstood::Member("user_id"),
        ),
        (
            r#"{"v":1,"op":"disconnect","user_id":"7","channel":"c"}"#,
            NotUnderstood::Member("user_id"),
        ),
        (
            r#"{"v":1,"op":"disconnect","user_id":"7","code":1006}"#,
            NotUnderstood::Member("code"),
        ),
        (
            r#"{"v":1,"op":"send","user_id":"7"}"#,
            NotUnderstood::Member("event"),
        ),
        (
            r#"{"v":1,"op":"send","user_id":"7","event":[]}"#,
            NotUnderstood::Member("event"),
        ),
    ] {
        assert_eq!(
            read(message),
            Err(expected),
            "{}",
            &message[..message.len().min(80)]
        );
    }
}
