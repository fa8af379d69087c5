//! Every refusal has its own code, and says what helps.

use std::path::PathBuf;
use std::time::Duration;

use backstay_database::{Database as _, Endpoint, Host, MySql, Options, Place, Probe, Tls, TlsMode};
use backstay_model::{Code, Error, Result, Secret};
use backstay_testing::{Certificates, MariaDb};

use crate::world::{OWNER, PASSWORD, dump, endpoint, options, shop};

fn probe(endpoint: Endpoint) -> Result<Probe> {
    MySql::new(endpoint, options()).probe()
}

#[track_caller]
fn refused(endpoint: Endpoint) -> Error {
    let error = probe(endpoint).unwrap_err();
    let told = format!("{error} {:?} {}", error.causes(), error.advice());
    assert!(!told.contains(PASSWORD) && !told.contains("IDENTIFIED"), "{told}");
    assert!(error.message().starts_with(char::is_uppercase), "{told}");
    error
}

/// `app` on `shop` with TLS of that mode, by that name of the host, believing that authority.
fn tls(server: &MariaDb, mode: TlsMode, host: &str, authority: Option<PathBuf>) -> Endpoint {
    let mut endpoint = endpoint(server, "app");
    endpoint.place = Place::Hosts(vec![Host { name: host.into(), port: server.port() }]);
    endpoint.tls = Tls { mode: Some(mode), authorities: authority, ..Tls::default() };
    endpoint
}

fn with_shop(server: MariaDb) -> MariaDb {
    server.sql(&format!(
        "CREATE DATABASE shop; CREATE TABLE shop.t (id INT); INSERT INTO shop.t VALUES (1); {OWNER}"
    ));
    server
}

#[test]
fn tls_is_what_was_asked_for_or_says_why_not() {
    let certificates = Certificates::new("app");
    let server = with_shop(MariaDb::start_tls(&certificates, "server", &["--require-secure-transport=ON"]));
    let ca = || Some(certificates.certificate("ca"));
    let other = || Some(certificates.certificate("other-ca"));

    // MariaDB says "wrong password" here.
    let error = refused(tls(&server, TlsMode::Off, "127.0.0.1", None));
    assert_eq!(error.code(), Code::DatabaseTlsRequired, "{error}");
    let mut wrong = tls(&server, TlsMode::Off, "127.0.0.1", None);
    wrong.password = Some(Secret::new("wrong"));
    assert_eq!(refused(wrong).code(), Code::DatabaseLoginFailed);

    for mode in [TlsMode::Preferred, TlsMode::Required, TlsMode::VerifyCa, TlsMode::VerifyFull] {
        let mut database = MySql::new(tls(&server, mode, "localhost", ca()), options());
        let seen = database.probe().unwrap().tls;
        assert_eq!((seen.version.as_deref(), seen.verified), (Some("TLSv1.3"), Some(mode)));
        // The tool gets there as well.
        let record = dump(&mut database).1;
        assert_eq!((record.tables[0].rows, record.tls), (1, seen));
    }
    let unknown = |mode, authority| refused(tls(&server, mode, "localhost", authority)).code();
    assert_eq!(unknown(TlsMode::VerifyCa, other()), Code::DatabaseCertificateUnknown);
    assert_eq!(unknown(TlsMode::VerifyFull, None), Code::DatabaseCertificateUnknown);
    assert_eq!(
        unknown(TlsMode::VerifyFull, Some("/no/such/ca.pem".into())),
        Code::DatabaseCertificateUnknown
    );

    // A user that needs a certificate of the client.
    server.sql("CREATE USER app2 IDENTIFIED BY 'x' REQUIRE X509; GRANT ALL ON shop.* TO app2;");
    let client = |certificate: &str, key: &str| {
        let mut endpoint = tls(&server, TlsMode::VerifyFull, "localhost", ca());
        endpoint.user = Some("app2".into());
        endpoint.password = Some(Secret::new("x"));
        endpoint.tls.certificate = Some(certificates.certificate(certificate));
        endpoint.tls.key = Some(certificates.key(key));
        endpoint
    };
    assert_eq!(dump(&mut MySql::new(client("client", "client"), options())).1.tables.len(), 1);
    let mut none = client("client", "client");
    (none.tls.certificate, none.tls.key) = (None, None);
    let error = refused(none);
    assert_eq!(error.code(), Code::DatabaseLoginFailed);
    assert!(error.advice().contains("SslCert="), "{}", error.advice());
    for broken in
        [client("client", "server"), client("other-client", "other-client"), client("client", "none")]
    {
        let error = refused(broken);
        assert_eq!(error.code(), Code::DatabaseClientCertificate, "{error:?}");
    }
}

#[test]
fn certificates_that_are_wrong_each_have_their_code() {
    let certificates = Certificates::new("app");
    let ca = || Some(certificates.certificate("ca"));
    for (name, code) in
        [("wrong-name", Code::DatabaseCertificateName), ("expired", Code::DatabaseCertificateExpired)]
    {
        let server = with_shop(MariaDb::start_tls(&certificates, name, &[]));
        assert_eq!(refused(tls(&server, TlsMode::VerifyFull, "localhost", ca())).code(), code);
        let by_ca = MySql::new(tls(&server, TlsMode::VerifyCa, "localhost", ca()), options()).probe();
        assert_eq!(by_ca.map_err(|e| e.code()).err(), (name == "expired").then_some(code));
        assert!(probe(tls(&server, TlsMode::Required, "localhost", None)).is_ok());
        if name == "wrong-name" {
            assert_eq!(
                dump(&mut MySql::new(tls(&server, TlsMode::VerifyCa, "localhost", ca()), options()))
                    .1
                    .tables
                    .len(),
                1
            );
        }
    }
    let plain = with_shop(MariaDb::start());
    for mode in [TlsMode::Required, TlsMode::VerifyCa, TlsMode::VerifyFull] {
        assert_eq!(refused(tls(&plain, mode, "localhost", ca())).code(), Code::DatabaseTlsUnavailable);
    }
    let seen = probe(tls(&plain, TlsMode::Preferred, "localhost", None)).unwrap().tls;
    assert_eq!((seen.version, seen.verified), (None, None));
}

#[test]
fn what_a_connection_string_gets_wrong_is_told_apart() {
    let server = with_shop(MariaDb::start());
    let root = || Endpoint { password: None, ..endpoint(&server, "root") };
    let app = || endpoint(&server, "app");
    let database = |endpoint: Endpoint, name: &str| Endpoint { database: Some(name.into()), ..endpoint };
    let at =
        |name: &str, port| Endpoint { place: Place::Hosts(vec![Host { name: name.into(), port }]), ..app() };
    let closed = backstay_testing::server::free_port();
    let cases = [
        (Endpoint { password: Some(Secret::new("x")), ..app() }, Code::DatabaseLoginFailed),
        (Endpoint { password: None, ..app() }, Code::DatabaseLoginFailed),
        (Endpoint { user: Some("nobody".into()), ..app() }, Code::DatabaseLoginFailed),
        (Endpoint { user: None, password: None, ..app() }, Code::DatabaseLoginFailed),
        (database(root(), "nodb"), Code::DatabaseNotFound),
        (database(app(), "nodb"), Code::DatabaseNotFound),
        (Endpoint { database: None, ..app() }, Code::DatabaseNotFound),
        (at("no-such-host.invalid", 3306), Code::DatabaseUnreachable),
        (at("127.0.0.1", closed), Code::DatabaseUnreachable),
        (Endpoint { place: Place::Socket("/no/such.sock".into(), 3306), ..app() }, Code::DatabaseUnreachable),
    ];
    for (endpoint, code) in cases {
        let what = endpoint.to_string();
        let error = refused(endpoint);
        assert_eq!(error.code(), code, "{what}: {error:?}");
    }
    // The first host that answers, and a socket.
    let mut several = app();
    several.place =
        Place::Hosts([closed, server.port()].map(|port| Host { name: "127.0.0.1".into(), port }).to_vec());
    assert_eq!(dump(&mut MySql::new(several, options())).1.tables.len(), 1);
    let socket = Endpoint { place: Place::Socket(server.socket(), 3306), ..app() };
    assert_eq!(dump(&mut MySql::new(socket, options())).1.tables.len(), 1);
}

#[test]
fn an_anonymous_user_is_not_taken_for_the_one_that_was_named() {
    let server = with_shop(MariaDb::start());
    server.sql(
        "CREATE USER ''@'127.0.0.1' IDENTIFIED BY 'x'; GRANT ALL ON shop.* TO ''@'127.0.0.1'; DROP USER app;",
    );
    let error = refused(Endpoint { password: Some(Secret::new("x")), ..endpoint(&server, "app") });
    assert_eq!(error.code(), Code::DatabaseLoginFailed);
    assert!(error.message().contains("takes us for `@127.0.0.1`"), "{error}");
}

#[test]
fn a_silent_server_is_given_up_and_a_full_one_is_busy() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let server = with_shop(MariaDb::start());
    let mut endpoint = endpoint(&server, "app");
    let port = silent.local_addr().unwrap().port();
    endpoint.place = Place::Hosts(vec![Host { name: "127.0.0.1".into(), port }]);
    let quick = Options { connect: Duration::from_millis(300), ..options() };
    assert_eq!(MySql::new(endpoint, quick).probe().unwrap_err().code(), Code::DatabaseUnreachable);

    server.sql("ALTER USER app WITH MAX_USER_CONNECTIONS 1");
    let mut first = shop(&server, "app");
    // The dump's own connection is the second.
    assert_eq!(first.dump().err().map(|e| e.code()), Some(Code::DatabaseBusy));
    server.sql(
        "SET GLOBAL max_connections = 10; ALTER USER app WITH MAX_QUERIES_PER_HOUR 1 MAX_USER_CONNECTIONS 0;",
    );
    assert_eq!(first.probe().unwrap_err().code(), Code::DatabaseBusy);
}

#[test]
fn what_a_dump_would_lack_in_silence_is_refused_with_the_grant_that_helps() {
    let server = MariaDb::start();
    server.sql(&format!(
        "CREATE USER app IDENTIFIED BY '{}'; CREATE DATABASE shop; USE shop; CREATE TABLE orders (id INT); CREATE TABLE posts (id INT); \
         CREATE VIEW v AS SELECT * FROM posts; CREATE PROCEDURE p () SELECT 1; CREATE TRIGGER t BEFORE INSERT ON posts FOR EACH ROW SET NEW.id = 1; \
         GRANT SELECT ON shop.orders TO app;",
        PASSWORD.replace('\\', "\\\\")
    ));
    let mut app = shop(&server, "app");
    let grants = [
        ("SELECT", "GRANT SELECT ON `shop`.* TO `app`@`%`"),
        ("SHOW VIEW", "GRANT SHOW VIEW ON `shop`.* TO `app`@`%`"),
        ("TRIGGER", "GRANT TRIGGER ON `shop`.* TO `app`@`%`"),
        ("EVENT", "GRANT EVENT ON `shop`.* TO `app`@`%`"),
        ("routines", "GRANT SELECT ON `mysql`.`proc` TO `app`@`%`"),
    ];
    for (what, grant) in grants {
        // What was granted does not help yet: this one lacks.
        let error = app.dump().err().unwrap_or_else(|| panic!("{what} is not missed"));
        assert_eq!(error.code(), Code::DatabaseIncomplete);
        let missing = app.probe().unwrap().missing;
        // A view is seen only with the right to read.
        if what != "SHOW VIEW" {
            assert!(missing.iter().any(|line| line.ends_with(grant)), "{what}: {missing:?}");
        }
        server.sql(grant);
        assert!(!app.probe().unwrap().missing.iter().any(|line| line.ends_with(grant)), "{what}");
    }
    let (bytes, record) = dump(&mut app);
    let text = String::from_utf8(bytes).unwrap();
    for there in ["PROCEDURE `p`", "VIEW `v`", "TRIGGER t", "`orders`", "`posts`"] {
        assert!(text.contains(there), "{there}");
    }
    assert_eq!(record.tables.len(), 2);
    // All rights on the database show the names of routines, not their bodies.
    server.sql("REVOKE SELECT ON mysql.proc FROM app; GRANT ALL ON shop.* TO app;");
    let missing = app.probe().unwrap().missing;
    assert!(missing.len() == 1 && missing[0].contains("`p`"), "{missing:?}");
    server.sql("DROP PROCEDURE shop.p");
    assert_eq!(app.probe().unwrap().missing, [""; 0]);
}

#[test]
fn a_restore_without_rights_says_the_grants_and_with_them_it_goes() {
    let server = MariaDb::start();
    server.sql("CREATE DATABASE shop; CREATE TABLE shop.t (id INT); CREATE USER app IDENTIFIED BY 'x'; GRANT SELECT, SHOW VIEW, TRIGGER, EVENT, EXECUTE ON shop.* TO app;");
    let endpoint = Endpoint { password: Some(Secret::new("x")), ..endpoint(&server, "app") };
    let mut app = MySql::new(endpoint, options());
    let taken = dump(&mut app);
    let exchange = app.exchange_names("0123abcd");
    let error = app.check_restore(&taken.1, &exchange).unwrap_err();
    assert_eq!(error.code(), Code::DatabasePrivileges);
    let (_, grants) = error.message().split_once("needs: ").unwrap();
    assert_eq!(grants.split("; ").count(), 2, "{grants}");
    // Nor does it go without asking.
    assert!(app.stage(&mut taken.0.as_slice(), &taken.1, &exchange).is_err());
    server.sql(grants);
    app.check_restore(&taken.1, &exchange).unwrap();
    app.stage(&mut taken.0.as_slice(), &taken.1, &exchange).unwrap();
    app.exchange(&exchange, backstay_database::Side::New).unwrap();
    app.discard(&exchange).unwrap();
}
