//! The database server of the tests itself.

use std::time::Instant;

use backstay_testing::{Certificates, Postgres, PostgresSetup};

#[test]
fn a_server_is_private_and_gone_with_the_test() {
    let begin = Instant::now();
    let server = Postgres::start();
    println!("started after {:?}", begin.elapsed());
    assert_eq!(server.psql("postgres", "SELECT current_user"), "postgres\n");
    let begin = Instant::now();
    let second = Postgres::start();
    println!("the second started after {:?}", begin.elapsed());
    assert_ne!(second.port(), server.port());
    let (port, dir) = (server.port(), server.socket().to_owned());
    drop(server);
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err());
    assert!(!dir.exists());
}

#[test]
fn a_server_with_tls_takes_nobody_in_the_clear_where_it_says_so() {
    let certificates = Certificates::new("app");
    let server = Postgres::with(&PostgresSetup {
        tls: Some((certificates.certificate("server"), certificates.key("server"))),
        access: vec!["hostssl all all all scram-sha-256".to_owned()],
        ..PostgresSetup::default()
    });
    let psql = |mode: &str| {
        let mut command = server.client("psql");
        command.env("PGHOST", "localhost").env("PGSSLMODE", mode);
        command.env("PGSSLROOTCERT", certificates.certificate("ca"));
        backstay_testing::program::run(command.args(["-XAtqc", "SELECT 1", "postgres"]))
    };
    assert_eq!(psql("verify-full").ok().stdout, "1\n");
    assert!(psql("disable").stderr.contains("no encryption"));
}
