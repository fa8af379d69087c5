//! A server with a database `shop`, and what is asked of it.

use std::io::Read as _;
use std::time::Duration;

use backstay_database::{
    Database, DumpRecord, Endpoint, Exchange, Hashes, Host, Kind, MySql, Options, Place, Tls, TlsMode,
};
use backstay_model::Secret;
use backstay_testing::MariaDb;

/// The user that owns `shop` and may do in it and beside it what a restore needs.
pub const OWNER: &str = "CREATE USER app IDENTIFIED BY 'a p;#\\\\\"w';\
    GRANT ALL PRIVILEGES ON `shop`.* TO app; GRANT ALL PRIVILEGES ON `shop\\_bs\\_%`.* TO app;";
pub const PASSWORD: &str = "a p;#\\\"w";

/// The endpoint of `shop` for a user of the server.
pub fn endpoint(server: &MariaDb, user: &str) -> Endpoint {
    Endpoint {
        kind: Kind::MySql,
        place: Place::Hosts(vec![Host { name: "127.0.0.1".into(), port: server.port() }]),
        database: Some("shop".into()),
        user: Some(user.into()),
        password: (user != "root").then(|| Secret::new(PASSWORD)),
        integrated: false,
        tls: Tls { mode: Some(TlsMode::Off), ..Tls::default() },
        unused: Default::default(),
    }
}

pub fn options() -> Options {
    Options {
        connect: Duration::from_secs(20),
        lock_wait: Duration::from_secs(20),
        idle: Duration::from_secs(60),
        hashes: Hashes::All,
        ..Options::default()
    }
}

/// `shop` as that user.
pub fn shop(server: &MariaDb, user: &str) -> MySql {
    MySql::new(endpoint(server, user), options())
}

/// A whole dump.
#[track_caller]
pub fn dump(database: &mut MySql) -> (Vec<u8>, DumpRecord) {
    let mut dump = database.dump().unwrap();
    let mut bytes = Vec::new();
    dump.read_to_end(&mut bytes).unwrap();
    let record = dump.finish().unwrap();
    assert_eq!(record.bytes, bytes.len() as u64);
    (bytes, record)
}

/// What a database holds, by the server's own tool: structure and content, but the marker and counters.
#[track_caller]
pub fn all_of(server: &MariaDb, database: &str) -> String {
    let output = server
        .client("mariadb-dump")
        .args(["--routines", "--triggers", "--events", "--hex-blob", "--skip-dump-date", "--skip-comments"])
        .args(["--default-character-set=utf8mb4", "--order-by-primary"])
        .arg(format!("--ignore-table={database}._backstay_objects"))
        .arg(database)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    // The name of the database in a trigger's head does not come back, on purpose.
    text.replace("shop . `on_words`", "`on_words`").replace("on shop.words", "on words")
}

/// Compares two of those; shows the first line that differs, not all.
#[track_caller]
pub fn same(found: &str, expected: &str) {
    let short = |line: Option<&str>| line.map(|line| line.chars().take(300).collect::<String>());
    let (mut found, mut expected) = (found.lines(), expected.lines());
    loop {
        let (a, b) = (found.next(), expected.next());
        assert!(a == b, "found:    {:?}\nexpected: {:?}", short(a), short(b));
        if a.is_none() {
            return;
        }
    }
}

/// The databases that an exchange may have.
pub fn databases(server: &MariaDb) -> Vec<String> {
    let shown = server.sql("SHOW DATABASES LIKE 'shop%'");
    shown.lines().map(str::to_owned).collect()
}

/// Stages a dump.
#[track_caller]
pub fn stage(database: &mut MySql, dump: &(Vec<u8>, DumpRecord)) -> Exchange {
    let exchange = database.exchange_names("0123abcd");
    database.stage(&mut dump.0.as_slice(), &dump.1, &exchange).unwrap();
    exchange
}
