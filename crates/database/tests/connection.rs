//! Connection strings as they stand in real settings, and anything else.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use backstay_database::connection::parse;
use backstay_database::{ConnectionType, Endpoint, Host, Kind, Place, TlsMode};
use backstay_model::Secret;
use proptest::prelude::*;

/// What a string says, on one line: kind, place, database, user, password, TLS.
fn said(text: &str, typed: ConnectionType) -> String {
    match parse(text, typed) {
        Ok(endpoint) => line(&endpoint),
        Err(e) => e.message().to_owned(),
    }
}

fn line(endpoint: &Endpoint) -> String {
    let place = match &endpoint.place {
        Place::Hosts(hosts) => {
            hosts.iter().map(|h| format!("{}:{}", h.name, h.port)).collect::<Vec<_>>().join(",")
        }
        Place::Socket(path, port) => format!("socket {} {port}", path.display()),
        Place::File(path) => format!("file {}", path.display()),
    };
    let or = |text: Option<&str>| text.unwrap_or("-").to_owned();
    format!(
        "{} {place} {} {} {} {}",
        endpoint.kind.name(),
        or(endpoint.database.as_deref()),
        or(endpoint.user.as_deref()),
        or(endpoint.password.as_ref().map(|p| p.reveal())),
        endpoint.tls.mode.map_or("-".to_owned(), |mode| format!("{mode:?}")),
    )
}

#[test]
fn the_forms_that_settings_hold() {
    use ConnectionType::{Custom, MySql, PostgreSql, SqlAzure, SqlServer};
    let cases = [
        // Addresses.
        (Custom, "postgres://u:p@db.example:5433/app", "PostgreSQL db.example:5433 app u p -"),
        (
            PostgreSql,
            "postgresql://u:p%40%2F%3A@[::1]/app?sslmode=verify-full",
            "PostgreSQL ::1:5432 app u p@/: VerifyFull",
        ),
        (Custom, "postgresql://u@a:1,b:2/app?target_session_attrs=any", "PostgreSQL a:1,b:2 app u - -"),
        (
            Custom,
            "postgresql:///app?host=/var/run/postgresql&port=5433",
            "PostgreSQL socket /var/run/postgresql 5433 app - - -",
        ),
        (
            Custom,
            "postgres://u@%2Fvar%2Frun%2Fpostgresql/app",
            "PostgreSQL socket /var/run/postgresql 5432 app u - -",
        ),
        (Custom, "postgresql+psycopg2://u:p@h/app", "PostgreSQL h:5432 app u p -"),
        (
            Custom,
            "jdbc:postgresql://h:5432/app?user=u&password=p&ssl=true",
            "PostgreSQL h:5432 app u p Required",
        ),
        (MySql, "mysql://u:p@h/app?ssl-mode=REQUIRED", "MySQL h:3306 app u p Required"),
        (
            Custom,
            "mysql2://root@localhost/app?socket=/run/mysqld/mysqld.sock",
            "MySQL socket /run/mysqld/mysqld.sock 3306 app root - -",
        ),
        (Custom, "mariadb://u:a+b@h:3307/app", "MySQL h:3307 app u a+b -"),
        (Custom, "sqlite:///srv/app/data.db", "SQLite file /srv/app/data.db - - - -"),
        (Custom, "sqlite:////srv/app/data.db", "SQLite file /srv/app/data.db - - - -"),
        (Custom, "sqlite:data/app.db?mode=rwc", "SQLite file data/app.db - - - -"),
        (
            SqlServer,
            "jdbc:sqlserver://h:1433;databaseName=app;user=u;password=p;encrypt=true",
            "SQL Server h:1433 app u p VerifyFull",
        ),
        // libpq.
        (
            Custom,
            r"host=h port=5433 dbname=app user=u password='it\'s; \\x' sslmode=require",
            r"PostgreSQL h:5433 app u it's; \x Required",
        ),
        (Custom, "host = /run/pg dbname = app", "PostgreSQL socket /run/pg 5432 app - - -"),
        // ADO.NET.
        (
            PostgreSql,
            "Host=h;Port=5433;Database=app;Username=u;Password=p;SSL Mode=VerifyCA",
            "PostgreSQL h:5433 app u p VerifyCa",
        ),
        (Custom, "Host=h;Database=app;Username=u;Password=p", "PostgreSQL h:5432 app u p -"),
        (
            Custom,
            "Server=h.postgres.database.azure.example;Port=5432;User Id=u;Password=p;Database=app",
            "PostgreSQL h.postgres.database.azure.example:5432 app u p -",
        ),
        (
            MySql,
            "Database=localdb;Data Source=127.0.0.1:54306;User Id=azure;Password=6#vWHD_$",
            "MySQL 127.0.0.1:54306 localdb azure 6#vWHD_$ -",
        ),
        (
            Custom,
            "Database=localdb;Data Source=127.0.0.1:54306;User Id=azure;Password=p",
            "MySQL 127.0.0.1:54306 localdb azure p -",
        ),
        (Custom, "Server=h;Uid=u;Pwd=\"a;b\"\"c\";Database=app;", "MySQL h:3306 app u a;b\"c -"),
        (
            Custom,
            "Server=h;Port=3306;User ID=u;Password=a=b==c;Database=app;SslMode=Required",
            "MySQL h:3306 app u a=b==c Required",
        ),
        (
            SqlAzure,
            "Server=tcp:h.database.windows.example,1433;Initial Catalog=app;User ID=u@h;Password='p;q';Encrypt=True;TrustServerCertificate=False;",
            "SQL Server h.database.windows.example:1433 app u@h p;q VerifyFull",
        ),
        (
            SqlServer,
            r"Data Source=.\SQLEXPRESS,14330;Database=app;Trusted_Connection=yes",
            "SQL Server localhost:14330 app - - -",
        ),
        (
            Custom,
            "Server=h;Database=app;User Id=u;Password=p;Encrypt=yes;TrustServerCertificate=yes",
            "SQL Server h:1433 app u p Required",
        ),
        (Custom, "Data Source=app.db;Cache=Shared", "SQLite file app.db - - - -"),
        // More of each.
        (Custom, "postgresql://u:p@a:1,b/app?port=7", "PostgreSQL a:7,b:7 app u p -"),
        (Custom, "host=a,b port=1,2 dbname=app", "PostgreSQL a:1,b:2 app - - -"),
        (Custom, "host=a,b port=1, dbname=app", "PostgreSQL a:1,b:5432 app - - -"),
        (
            Custom,
            "host=a,b port=1,2,3 dbname=app",
            "The connection string cannot be used: it names several ports, and not one for each server",
        ),
        (Custom, "POSTGRESQL://u:p@h/app", "PostgreSQL h:5432 app u p -"),
        (Custom, "postgresql://u:p@h", "PostgreSQL h:5432 - u p -"),
        (Custom, "mysqli://u:p@h/app", "MySQL h:3306 app u p -"),
        (Custom, "mysql+pymysql://u:p@h/app?charset=utf8mb4", "MySQL h:3306 app u p -"),
        (Custom, "mysql://u:p@s@h/app", "MySQL h:3306 app u p@s -"),
        (Custom, "jdbc:mysql://h:3307/app?user=u&password=p%26q&useSSL=false", "MySQL h:3307 app u p&q Off"),
        (Custom, "jdbc:mariadb://h/app?user=u", "MySQL h:3306 app u - -"),
        (Custom, "jdbc:sqlite:/srv/app.db", "SQLite file /srv/app.db - - - -"),
        (Custom, "sqlite3:data/app%20one.db", "SQLite file data/app one.db - - - -"),
        (Custom, "file:data/app.db?cache=shared", "SQLite file data/app.db - - - -"),
        (Custom, "mssql://sa:p@h:14330/app", "SQL Server h:14330 app sa p -"),
        (Custom, "sqlserver://h;database=app;user=u;password={p}", "SQL Server h:1433 app u {p} -"),
        (SqlServer, r"Server=h\SQLEXPRESS;Database=app;User Id=u;Password=p", "SQL Server h:1433 app u p -"),
        (SqlServer, "Server=tcp:[::1],1434;Database=app", "SQL Server ::1:1434 app - - -"),
        (SqlServer, "addr=(local);initial catalog=app;uid=u;pwd=p", "SQL Server localhost:1433 app u p -"),
        (MySql, "Data Source=[::1]:3307;Database=app", "MySQL ::1:3307 app - - -"),
        (MySql, "Server=a, b;Database=app", "MySQL a:3306,b:3306 app - - -"),
        (MySql, "Server=/run/m.sock;Database=app", "MySQL socket /run/m.sock 3306 app - - -"),
        (
            PostgreSql,
            " Host = h ; Database = a b ; Password = ' x ' ; ",
            "PostgreSQL h:5432 a b - \u{20}x\u{20} -",
        ),
        (MySql, "Server=h;Database=x;Pwd='it''s';;Uid=\"\"", "MySQL h:3306 x - it's -"),
        (MySql, "Server=h;a==b=c;Database=x", "MySQL h:3306 x - - -"),
        (MySql, "Server=h;Database=x;Pwd=;Uid=u", "MySQL h:3306 x u  -"),
        (
            Custom,
            "Server=my.mysql.database.azure.example;Database=a;Uid=u;Pwd=p",
            "MySQL my.mysql.database.azure.example:3306 a u p -",
        ),
        (Custom, "Data Source=h,1433;Database=a;User Id=u", "SQL Server h:1433 a u - -"),
        (Custom, "Filename=./data/x.bin", "SQLite file ./data/x.bin - - - -"),
        // The last of equal keys counts.
        (MySql, "Server=h;Uid=a;User Id=b;Password=1;PWD=2;Database=x", "MySQL h:3306 x b 2 -"),
        (MySql, "Server=a;Server=b;Database=x", "MySQL b:3306 x - - -"),
        // What cannot be used.
        (
            MySql,
            "postgres://h/app",
            "The connection string cannot be used: its type says MySQL, it is one of PostgreSQL",
        ),
        (MySql, "Database=app", "The connection string cannot be used: it names no server"),
        (
            MySql,
            "Server=h:99999;Database=app",
            "The connection string cannot be used: its port is no number from 1 to 65535",
        ),
        (MySql, "Server=h;Password='p", "The connection string cannot be used: a quoted value has no end"),
        (
            Custom,
            "hunter2",
            "The connection string cannot be used: a part of it is not of the form `key=value`",
        ),
        (
            SqlServer,
            r"Server=np:\\.\pipe\sql;Database=app",
            "The connection string cannot be used: it names a server of this Windows machine",
        ),
        (Custom, "Server=h;=x;Database=app", "The connection string cannot be used: a value has no key"),
        (
            Custom,
            "Server=h;Password='p'x;Database=app",
            "The connection string cannot be used: something stands behind a quoted value",
        ),
        (
            Custom,
            "postgres://h:x/app",
            "The connection string cannot be used: its port is no number from 1 to 65535",
        ),
        (Custom, "postgres://u:%ff@h/app", "The connection string cannot be used: a part of it is not UTF-8"),
        (Custom, "postgres://", "The connection string cannot be used: it names no server"),
        (
            Custom,
            "redis://h:6379",
            "The connection string cannot be used: a part of it is not of the form `key=value`",
        ),
        (Custom, "", "The connection string cannot be used: it is empty"),
        (Custom, "sqlite::memory:", "The connection string cannot be used: it names a database in memory"),
        (
            SqlServer,
            r"Server=(localdb)\v11.0;Database=app",
            "The connection string cannot be used: it names a server of this Windows machine",
        ),
        (
            Custom,
            "Server=h;Database=app",
            "The connection string cannot be used: nothing in it tells the kind of database; give it the type MySql, PostgreSQL, SQLServer or SQLAzure",
        ),
    ];
    for (typed, text, expected) in cases {
        assert_eq!(said(text, typed), expected, "{typed} {text}");
    }
}

#[test]
fn what_is_shown_holds_no_password() {
    let endpoint = parse("postgres://u:hunter2@[::1]:5433/app", ConnectionType::Custom).unwrap();
    assert_eq!(endpoint.to_string(), "PostgreSQL `app` on [::1]:5433 as `u`");
    assert!(!format!("{endpoint:?}").contains("hunter2"));
    assert!(!serde_json::to_string(&endpoint).unwrap().contains("hunter2"));
}

#[test]
fn certificates_and_unused_options_are_seen() {
    let text = "postgres://h/app?sslmode=verify-ca&sslrootcert=/ca.pem&sslcert=/c.pem&sslkey=/k.pem&application_name=x";
    let endpoint = parse(text, ConnectionType::PostgreSql).unwrap();
    assert_eq!(endpoint.tls.mode, Some(TlsMode::VerifyCa));
    assert_eq!(endpoint.tls.authorities.unwrap().to_str(), Some("/ca.pem"));
    assert_eq!(endpoint.tls.certificate.unwrap().to_str(), Some("/c.pem"));
    assert_eq!(endpoint.tls.key.unwrap().to_str(), Some("/k.pem"));
    assert_eq!(endpoint.unused.into_iter().collect::<Vec<_>>(), ["applicationname"]);
}

#[test]
fn types_are_read_in_any_case() {
    for typed in ConnectionType::ALL {
        assert_eq!(typed.as_str().to_lowercase().parse::<ConnectionType>().unwrap(), typed);
    }
    assert!("Oracle".parse::<ConnectionType>().is_err());
}

const SAMPLES: [&str; 7] = [
    "postgresql://u:Zk9p%40@a:1,[::1]/app?sslmode=verify-full&host=b",
    "host=a,b port=1,2 dbname=app user=u password='Zk9 \\' x'",
    "Server=tcp:h,1433;Database=app;User Id=u;Password=\"Zk9;\"\"x\";Encrypt=true",
    "Database=localdb;Data Source=127.0.0.1:54306;User Id=azure;Password='Zk9''x'",
    "jdbc:sqlserver://h:1433;databaseName=app;user=u;password=Zk9",
    "mysql2://u:Zk9@h/app?socket=/run/m.sock&ssl-mode=REQUIRED",
    "sqlite:///srv/app%20x.db?mode=rwc",
];

fn quoted(value: &str) -> String {
    format!("\"{}\"", value.replace('"', "\"\""))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    /// No text makes it panic, and no error repeats what may be a password.
    #[test]
    fn any_text(text in "(.{0,60}|[a-zA-Z]{1,10}=.{0,30};?){0,4}", n in 0usize..5) {
        let typed = ConnectionType::ALL[n];
        if let Err(e) = parse(&format!("{text}Zk9-secret"), typed) {
            prop_assert!(!e.to_string().contains("Zk9-secret"));
        }
    }

    /// What is written by the rules comes back.
    #[test]
    fn ado_round_trip(user in "[^\\x00]{1,20}", password in "[^\\x00]{0,20}", database in "[^\\x00]{1,20}", port in 1u16..) {
        let text = format!("Server=h;Port={port};User Id={};Password={};Database={}", quoted(&user), quoted(&password), quoted(&database));
        let endpoint = parse(&text, ConnectionType::MySql).unwrap();
        prop_assert_eq!(endpoint.user, Some(user));
        prop_assert_eq!(endpoint.password.as_ref().map(Secret::reveal), Some(password.as_str()));
        prop_assert_eq!(endpoint.database, Some(database));
        prop_assert_eq!(endpoint.kind, Kind::MySql);
    }

    /// Samples with bytes changed, put in and taken out: no panic, and no password in an error.
    #[test]
    fn damaged_strings(
        n in 0..SAMPLES.len(), typed in 0usize..5,
        changes in prop::collection::vec((any::<prop::sample::Index>(), 0..3, prop::sample::select(vec!['\'', '"', ';', '=', ' ', '\\', '/', ':', '@', '%', '?', '&', '[', ']', ',', '#', '\0', 'é'])), 1..8),
    ) {
        let mut text: Vec<char> = SAMPLES[n].chars().collect();
        for (at, what, c) in changes {
            let at = at.index(text.len());
            match what {
                0 => text[at] = c,
                1 => text.insert(at, c),
                _ => drop((text.len() > 1).then(|| text.remove(at))),
            }
        }
        let text: String = text.into_iter().collect();
        if let Err(e) = parse(&text, ConnectionType::ALL[typed]) {
            prop_assert!(!e.to_string().contains("Zk9"));
        }
    }

    /// Port and name of a server, wherever a form has room for them.
    #[test]
    fn servers_and_ports(name in "[a-z]([a-z0-9-]{0,8}\\.){0,2}[a-z]{1,4}", port in 1u16..) {
        let forms = [
            (ConnectionType::MySql, format!("Database=x;Data Source={name}:{port};User Id=u")),
            (ConnectionType::MySql, format!("Server=tcp:{name}:{port};Database=x")),
            (ConnectionType::MySql, format!("Server={name};Port={port};Database=x")),
            (ConnectionType::SqlAzure, format!("Server=tcp:{name},{port};Database=x")),
            (ConnectionType::SqlServer, format!("Data Source={name}\\INSTANCE,{port};Database=x")),
            (ConnectionType::Custom, format!("postgres://{name}:{port}/x")),
            (ConnectionType::Custom, format!("host={name} port={port} dbname=x")),
            (ConnectionType::Custom, format!("jdbc:mysql://{name}:{port}/x")),
            (ConnectionType::Custom, format!("jdbc:sqlserver://{name}:{port};databaseName=x")),
            (ConnectionType::Custom, format!("postgresql:///x?host={name}&port={port}")),
        ];
        for (typed, text) in forms {
            let endpoint = parse(&text, typed).unwrap();
            let expected = Place::Hosts(vec![Host { name: name.clone(), port }]);
            prop_assert_eq!((endpoint.place, endpoint.database.as_deref()), (expected, Some("x")), "{}", text);
        }
    }

    /// The same as an address.
    #[test]
    fn uri_round_trip(user in "[^\\x00]{1,20}", password in "[^\\x00]{1,20}", database in "[^\\x00]{1,20}", port in 1u16..) {
        let encode = |text: &str| text.bytes().map(|b| format!("%{b:02X}")).collect::<String>();
        let text = format!("postgres://{}:{}@h:{port}/{}", encode(&user), encode(&password), encode(&database));
        let endpoint = parse(&text, ConnectionType::PostgreSql).unwrap();
        prop_assert_eq!(endpoint.user, Some(user));
        prop_assert_eq!(endpoint.password.as_ref().map(Secret::reveal), Some(password.as_str()));
        prop_assert_eq!(endpoint.database, Some(database));
    }

    /// And as libpq writes it.
    #[test]
    fn libpq_round_trip(user in "[^\\x00]{1,20}", password in "[^\\x00;]{1,20}") {
        let quote = |text: &str| format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"));
        let text = format!("host=h dbname=app password={}", quote(&password));
        let endpoint = parse(&text, ConnectionType::PostgreSql).unwrap();
        prop_assert_eq!(endpoint.password.as_ref().map(Secret::reveal), Some(password.as_str()));
        let _ = user;
    }
}
