//! TLS as servers have it, and every way in which it goes wrong.

use backstay_database::{ConnectionType, Database, Options, TlsMode, connection};
use backstay_model::Code;
use backstay_testing::{Certificates, Postgres, PostgresSetup};

use crate::bench::{PASSWORD, dump, role};

/// A server with that certificate, that access list and the tables of one database.
fn server(certificates: &Certificates, leaf: &str, access: &str, clients: bool) -> Postgres {
    let server = Postgres::with(&PostgresSetup {
        tls: Some((certificates.certificate(leaf), certificates.key(leaf))),
        client_authority: clients.then(|| certificates.certificate("ca")),
        access: access.lines().map(str::to_owned).collect(),
        settings: Vec::new(),
    });
    role(&server, "app", "CREATEDB");
    server.psql("postgres", "CREATE DATABASE tls OWNER app");
    server.psql("tls", "SET ROLE app; CREATE TABLE t AS SELECT generate_series(1, 10) i");
    server
}

fn database(server: &Postgres, host: &str, words: &str) -> Box<dyn Database> {
    let password = PASSWORD.replace('\\', r"\\").replace('\'', r"\'");
    let text =
        format!("host={host} port={} user=app password='{password}' dbname=tls {words}", server.port());
    let endpoint = connection::parse(&text, ConnectionType::PostgreSql).unwrap();
    backstay_database::open(&endpoint, Options::default()).unwrap()
}

/// What came of it: TLS and how far it was verified, or the code. What the driver can the tool must, and a dump shows it.
fn outcome(server: &Postgres, host: &str, words: &str) -> Result<(bool, Option<TlsMode>), Code> {
    let mut database = database(server, host, words);
    let probe = database.probe();
    let dumped = database.dump().map(drop);
    match probe {
        Ok(probe) => {
            dumped.unwrap();
            let (bytes, record) = dump(&mut *database);
            assert!(!bytes.is_empty());
            assert_eq!(record.tls, probe.tls);
            Ok((probe.tls.version.is_some(), probe.tls.verified))
        }
        Err(e) => {
            assert_eq!(dumped.unwrap_err().code(), e.code());
            assert!(!format!("{e:?}").contains("p:a"), "a secret in {e:?}");
            Err(e.code())
        }
    }
}

#[test]
fn a_server_that_wants_tls() {
    let certificates = Certificates::new("app");
    let server = server(&certificates, "server", "hostssl all all all scram-sha-256", false);
    let ca = certificates.certificate("ca");
    let other = certificates.certificate("other-ca");
    let with = |mode: &str, ca: &std::path::Path| format!("sslmode={mode} sslrootcert={}", ca.display());
    let got = |host: &str, words: &str| outcome(&server, host, words);
    assert_eq!(got("localhost", ""), Ok((true, None)));
    assert_eq!(got("localhost", "sslmode=prefer"), Ok((true, None)));
    assert_eq!(got("localhost", "sslmode=require"), Ok((true, None)));
    assert_eq!(got("localhost", &with("require", &ca)), Ok((true, Some(TlsMode::VerifyCa))));
    assert_eq!(got("localhost", &with("verify-ca", &ca)), Ok((true, Some(TlsMode::VerifyCa))));
    assert_eq!(got("localhost", &with("verify-full", &ca)), Ok((true, Some(TlsMode::VerifyFull))));
    assert_eq!(got("127.0.0.1", &with("verify-full", &ca)), Ok((true, Some(TlsMode::VerifyFull))));
    assert_eq!(got("localhost", "sslmode=disable"), Err(Code::DatabaseTlsRequired));
    assert_eq!(got("localhost", &with("verify-ca", &other)), Err(Code::DatabaseCertificateUnknown));
    assert_eq!(got("localhost", &with("verify-full", &other)), Err(Code::DatabaseCertificateUnknown));
    // Nobody whom the system believes has signed it.
    assert_eq!(got("localhost", "sslmode=verify-full"), Err(Code::DatabaseCertificateUnknown));
    let missing = with("verify-full", std::path::Path::new("/no/such/ca.pem"));
    assert_eq!(got("localhost", &missing), Err(Code::DatabaseCertificateUnknown));
}

#[test]
fn certificates_of_another_name_and_of_another_time() {
    let certificates = Certificates::new("app");
    let ca = certificates.certificate("ca");
    let with = |mode: &str| format!("sslmode={mode} sslrootcert={}", ca.display());
    let wrong = server(&certificates, "wrong-name", "", false);
    assert_eq!(outcome(&wrong, "localhost", &with("verify-full")), Err(Code::DatabaseCertificateName));
    assert_eq!(outcome(&wrong, "localhost", &with("verify-ca")), Ok((true, Some(TlsMode::VerifyCa))));
    drop(wrong);
    let expired = server(&certificates, "expired", "", false);
    assert_eq!(outcome(&expired, "localhost", &with("verify-full")), Err(Code::DatabaseCertificateExpired));
    assert_eq!(outcome(&expired, "localhost", &with("verify-ca")), Err(Code::DatabaseCertificateExpired));
    assert_eq!(outcome(&expired, "localhost", "sslmode=require"), Ok((true, None)));
    drop(expired);
    // A server whose certificate signed itself is believed where it is named as the authority.
    let itself = server(&certificates, "ca", "", false);
    assert_eq!(outcome(&itself, "localhost", &with("verify-ca")), Ok((true, Some(TlsMode::VerifyCa))));
    assert_eq!(outcome(&itself, "localhost", &with("verify-full")), Err(Code::DatabaseCertificateName));
}

#[test]
fn certificates_of_the_client() {
    let certificates = Certificates::new("app");
    let server = server(&certificates, "server", "hostssl all all all cert", true);
    let with = |name: &str, key: &str| {
        format!(
            "sslmode=verify-full sslrootcert={} sslcert={} sslkey={}",
            certificates.certificate("ca").display(),
            certificates.certificate(name).display(),
            certificates.key(key).display()
        )
    };
    let got = |words: &str| outcome(&server, "localhost", words);
    assert_eq!(got(&with("client", "client")), Ok((true, Some(TlsMode::VerifyFull))));
    assert_eq!(got("sslmode=require"), Err(Code::DatabaseClientCertificate));
    assert_eq!(got(&with("other-client", "other-client")), Err(Code::DatabaseClientCertificate));
    assert_eq!(got(&with("client", "other-client")), Err(Code::DatabaseClientCertificate));
    assert_eq!(got(&with("client", "no-such")), Err(Code::DatabaseClientCertificate));
    // That of the server is of the right authority and of another user.
    assert_eq!(got(&with("server", "server")), Err(Code::DatabaseClientCertificate));
}

#[test]
fn a_server_without_tls() {
    let server = Postgres::start();
    role(&server, "app", "");
    server.psql("postgres", "CREATE DATABASE tls OWNER app");
    assert_eq!(outcome(&server, "localhost", "sslmode=require"), Err(Code::DatabaseTlsUnavailable));
    assert_eq!(outcome(&server, "localhost", ""), Ok((false, None)));
    assert_eq!(outcome(&server, "localhost", "sslmode=disable"), Ok((false, None)));
    let socket = server.socket().display().to_string();
    assert_eq!(outcome(&server, &socket, ""), Ok((false, None)));
    // The first of several servers is not there.
    assert_eq!(outcome(&server, "127.0.0.2,localhost", ""), Ok((false, None)));
}
