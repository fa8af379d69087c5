//! Messages arrive at real servers, and what does not arrive is told without secrets.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use backstay_engine::{Delivery, Engine, Setup};
use backstay_testing::{Answer, HttpEndpoint, SmtpServer};

/// Sends the test message with a configuration.
fn test(folder: &Path, configuration: &str) -> Vec<Delivery> {
    std::fs::write(folder.join("backstay.toml"), configuration).unwrap();
    let setup = Setup { state: Some(folder.to_owned()), ..Setup::default() };
    let told = Engine::new(setup).unwrap().notify_test();
    let shown = serde_json::to_string(&told).unwrap();
    assert!(!shown.contains("s3cret"), "a secret is shown: {shown}");
    told
}

fn delivered(told: &[Delivery]) -> Vec<(&str, bool)> {
    told.iter().map(|d| (d.channel.as_str(), d.delivered)).collect()
}

fn error(told: &[Delivery]) -> &str {
    told[0].error.as_deref().unwrap_or_else(|| panic!("it was delivered: {told:?}"))
}

fn mail(server: &SmtpServer, tls: &str, more: &str) -> String {
    let authority = match tls {
        "none" => String::new(),
        _ => format!("ca_file = \"{}\"\n", server.authority().display()),
    };
    format!(
        "[notify.mail]\nhost = \"localhost\"\nport = {}\ntls = \"{tls}\"\n{authority}\
         from = \"Backstay <backstay@example.org>\"\nto = [\"ops@example.org\", \"me@example.org\"]\n{more}",
        server.port(),
    )
}

fn login(folder: &Path, password: &str) -> String {
    let file = folder.join("password");
    std::fs::write(&file, format!("{password}\n")).unwrap();
    format!("user = \"backstay\"\npassword_file = \"{}\"\n", file.display())
}

#[test]
fn mail_arrives_over_every_kind_of_connection() {
    let dir = tempfile::tempdir().unwrap();
    let servers = [
        (SmtpServer::plain(), "none", String::new(), false),
        (SmtpServer::starttls(), "starttls", login(dir.path(), SmtpServer::PASSWORD), true),
        (SmtpServer::implicit(), "implicit", login(dir.path(), SmtpServer::PASSWORD), true),
    ];
    for (server, tls, more, protected) in &servers {
        let told = test(dir.path(), &mail(server, tls, more));
        assert_eq!(delivered(&told), [("mail", true)], "{tls}: {told:?}");
        let mails = server.wait_for(1);
        let mail = &mails[0];
        assert_eq!((mails.len(), mail["tls"].as_bool()), (1, Some(*protected)), "{mail:#}");
        assert_eq!(mail["to"], serde_json::json!(["ops@example.org", "me@example.org"]));
        assert_eq!(mail["user"].as_str(), protected.then_some("backstay"));
        assert!(mail["subject"].as_str().unwrap().starts_with("[backstay "), "{mail:#}");
        assert!(mail["text"].as_str().unwrap().contains("This is a test"), "{mail:#}");
        assert_eq!(mail["headers"]["auto-submitted"], "auto-generated");
        for header in ["date", "message-id"] {
            assert!(mail["headers"][header].is_string(), "no {header}: {mail:#}");
        }
    }
}

#[test]
fn mail_that_cannot_be_sent_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let server = SmtpServer::starttls();
    let wrong = login(dir.path(), "wrong s3cret");
    let told = test(dir.path(), &mail(&server, "starttls", &wrong));
    assert!(error(&told).contains("refused the message"), "{told:?}");
    // A certificate that nobody known has signed.
    let config = mail(&server, "starttls", &login(dir.path(), SmtpServer::PASSWORD));
    let unknown: String =
        config.lines().filter(|l| !l.starts_with("ca_file")).fold(String::new(), |a, l| a + l + "\n");
    assert!(error(&test(dir.path(), &unknown)).contains("did not take the message"));
    // A server that cannot do what is asked of it gets no password.
    let plain = SmtpServer::plain();
    let config = mail(&plain, "starttls", &login(dir.path(), SmtpServer::PASSWORD));
    assert!(!delivered(&test(dir.path(), &config))[0].1);
    assert_eq!((server.mails().len(), plain.mails().len()), (0, 0));
    let config = mail(&server, "starttls", &login(dir.path(), SmtpServer::PASSWORD));
    let free = plain.port().to_string();
    drop(plain);
    let gone = config.replace(&server.port().to_string(), &free);
    assert!(error(&test(dir.path(), &gone)).contains("did not take the message"));
    let lost = config.replace("/password\"", "/nothing\"");
    assert!(error(&test(dir.path(), &lost)).contains("/nothing"), "the file is named");
    assert!(server.mails().is_empty());
}

#[test]
fn webhooks_and_pings_are_called_and_failures_name_hosts_only() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = HttpEndpoint::start();
    std::fs::write(dir.path().join("token"), "t0ken\n").unwrap();
    let config = format!(
        "[[notify.webhook]]\nname = \"chat\"\nurl = \"{}\"\nbearer_file = \"{}\"\n[[notify.webhook]]\nurl = \"{}\"\n\
         [notify.ping]\nurl = \"{}\"\n[notify.ping.apps]\nblog = \"{}\"\n",
        endpoint.url("/hook?key=s3cret"),
        dir.path().join("token").display(),
        endpoint.url("/other-s3cret"),
        endpoint.url("/ping/s3cret"),
        endpoint.url("/blog/s3cret"),
    );
    let told = test(dir.path(), &config);
    assert_eq!(
        delivered(&told),
        [("chat", true), ("webhook-2", true), ("ping", true), ("ping blog", true)],
        "{told:?}"
    );
    let came = endpoint.requests();
    let lines: Vec<&str> = came.iter().map(|r| r.line.as_str()).collect();
    assert_eq!(
        lines,
        ["POST /hook?key=s3cret", "POST /other-s3cret", "GET /ping/s3cret", "GET /blog/s3cret"]
    );
    assert_eq!(came[0].header("authorization"), Some("Bearer t0ken"));
    assert_eq!(came[1].header("authorization"), None);
    let body: serde_json::Value = serde_json::from_str(&came[0].body).unwrap();
    assert_eq!((&body["format"], &body["event"], &body["kind"]), (&1.into(), &"test".into(), &"test".into()));
    for field in ["app", "host", "since", "time", "code", "message", "advice", "subject", "text"] {
        assert!(body.get(field).is_some(), "no {field}: {body:#}");
    }

    for status in [500, 404, 302] {
        endpoint.answer(Answer::Status(status));
        let told = test(dir.path(), &config);
        assert!(told.iter().all(|d| !d.delivered), "{status}: {told:?}");
        assert!(error(&told).starts_with("127.0.0.1:"), "{told:?}");
    }
    let refused = config.replace(&endpoint.url(""), "http://127.0.0.1:1");
    assert!(error(&test(dir.path(), &refused)).contains("cannot be reached"));
}

#[test]
fn nobody_is_waited_for_longer_than_the_limit_and_the_next_is_told_nevertheless() {
    let dir = tempfile::tempdir().unwrap();
    let (silent, well) = (HttpEndpoint::start(), HttpEndpoint::start());
    silent.answer(Answer::Silence);
    let config = format!(
        "[[notify.webhook]]\nurl = \"{}\"\n[[notify.command]]\nrun = [\"sleep\", \"60\"]\n[[notify.webhook]]\nurl = \"{}\"\n",
        silent.url("/s3cret"),
        well.url("/")
    );
    let started = Instant::now();
    let told = test(dir.path(), &config);
    assert_eq!(delivered(&told), [("webhook-1", false), ("webhook-2", true), ("command-1", false)]);
    assert!(error(&told).contains("did not answer in time"), "{told:?}");
    assert!(told[2].error.as_ref().unwrap().contains("longer than 10 s"), "{told:?}");
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
}

#[test]
fn a_program_is_given_the_message_and_nothing_of_ours() {
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("tell");
    let out = dir.path().join("out");
    let text = format!("#!/bin/sh\n(env; cat) > '{}'\nexit ${{1:-0}}\n", out.display());
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o700)).unwrap();
    let config = format!("[[notify.command]]\nrun = [\"{}\"]\n", script.display());
    assert_eq!(delivered(&test(dir.path(), &config)), [("command-1", true)]);
    let told = std::fs::read_to_string(&out).unwrap();
    assert!(told.contains("BACKSTAY_EVENT=test\n") && told.contains("BACKSTAY_KIND=test\n"), "{told}");
    assert!(told.contains("\"format\":1") && !told.contains("CARGO"), "{told}");
    let failing = config.replace("\"]", "\", \"3\"]");
    assert!(error(&test(dir.path(), &failing)).contains("exit status: 3"));
    let missing = "[[notify.command]]\nrun = [\"/nowhere/to/be/found\"]\n";
    assert!(error(&test(dir.path(), missing)).contains("cannot be started"));
}
