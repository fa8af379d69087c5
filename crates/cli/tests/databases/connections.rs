//! Connections that are checked, and those that are found in the files of apps.

use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};

use backstay_testing::{Certificates, Postgres, PostgresSetup, temp_dir};
use serde_json::Value;

use crate::shop::{PASSWORDS, encoded};
use crate::{Ran, Shop, World};

/// No output may hold a password, as it is or as it stands in an address.
#[track_caller]
fn without_passwords(ran: Ran) -> Ran {
    for text in PASSWORDS.iter().map(|p| (*p).to_owned()).chain(PASSWORDS.map(encoded)) {
        assert!(!ran.stdout.contains(&text) && !ran.stderr.contains(&text), "{text}: {ran:?}");
    }
    ran
}

fn parsed(ran: &Ran) -> Value {
    serde_json::from_str(&ran.stdout).unwrap()
}

fn named<'v>(all: &'v Value, list: &str, name: &str) -> &'v Value {
    let found = all[list].as_array().unwrap().iter().find(|one| one["name"] == name);
    found.unwrap_or_else(|| panic!("{name} in {all}"))
}

#[test]
fn a_check_says_of_each_connection_whether_it_can_be_dumped_and_why_not() {
    let shop = Shop::new();
    let check = |args: &[&str]| without_passwords(shop.world.run(&[&["connection", "check"], args].concat()));
    let ran = check(&["shop"]).ends(0);
    assert!(ran.stdout.contains("main: well, PostgreSQL `shop` on 127.0.0.1:"), "{}", ran.stdout);
    assert!(
        ran.stdout.contains("server: PostgreSQL 15.") && ran.stdout.contains("pg_dump"),
        "{}",
        ran.stdout
    );
    check(&["shop", "nothing"]).fails("ConnectionNotFound", 4);
    check(&["nobody"]).fails("AppNotFound", 4);

    shop.maria.sql("CREATE USER poor@'%' IDENTIFIED BY 'x'; GRANT SELECT ON shop.version TO poor@'%';");
    shop.world.write("shop/data.db", b"");
    shop.world.write("text", b"no database");
    let (pg, maria) = (shop.pg_address("shop"), shop.maria_address("shop"));
    let (pg_port, maria_port) = (shop.pg.port(), shop.maria.port());
    let text = format!("sqlite:///{}", shop.world.path("text").display());
    let wrong = [
        (
            "pg-login",
            "PostgreSQL",
            format!("postgres://web:wrong@127.0.0.1:{pg_port}/shop"),
            "DatabaseLoginFailed",
        ),
        ("pg-name", "PostgreSQL", shop.pg_address("nothing"), "DatabaseNotFound"),
        ("pg-port", "PostgreSQL", "postgres://web:wrong@127.0.0.1:1/shop".to_owned(), "DatabaseUnreachable"),
        ("pg-tls", "PostgreSQL", format!("{pg}?sslmode=require"), "DatabaseTlsUnavailable"),
        (
            "my-login",
            "MySql",
            format!("mysql://web:wrong@127.0.0.1:{maria_port}/shop"),
            "DatabaseLoginFailed",
        ),
        ("my-port", "MySql", "mysql://web:wrong@127.0.0.1:1/shop".to_owned(), "DatabaseUnreachable"),
        ("my-tls", "MySql", format!("{maria}?ssl-mode=REQUIRED"), "DatabaseTlsUnavailable"),
        ("ms", "SQLServer", "Server=db;Database=shop;User Id=sa;Password=x".to_owned(), "DatabaseFailed"),
        ("file", "Custom", text, "DatabaseDumpUnusable"),
    ];
    for (name, kind, address, _) in &wrong {
        shop.connect(name, kind, address).ok();
    }
    shop.connect("poor", "MySql", &format!("mysql://poor:x@127.0.0.1:{maria_port}/shop")).ok();
    shop.connect("cache", "Custom", "redis://cache:6379").ok();
    shop.connect("inside", "Custom", "sqlite:data.db").ok();

    let ran = check(&["shop", "--json"]).ends(1);
    let all = parsed(&ran);
    for (name, _, _, code) in &wrong {
        let check = named(&all, "connections", name);
        assert_eq!(
            (&check["result"], &check["error"]["code"]),
            (&"failed".into(), &(*code).into()),
            "{check}"
        );
        assert!(!check["error"]["advice"].as_str().unwrap().is_empty());
    }
    let well = named(&all, "connections", "orders");
    assert_eq!(
        (&well["result"], &well["error"], &well["in_points"]),
        (&"well".into(), &Value::Null, &true.into())
    );
    assert!(well["version"].as_str().unwrap().starts_with("MariaDB 10.11"), "{well}");
    assert!(well["user"].as_str().unwrap().starts_with("web@"), "{well}");
    assert!(well["estimated_bytes"].as_u64().unwrap() > 1_000, "{well}");
    assert!(well["tool"]["path"].as_str().unwrap().contains("dump"), "{well}");
    assert_eq!((&well["tls"], &well["tls_verified"]), (&Value::Null, &Value::Null));
    let poor = named(&all, "connections", "poor");
    assert_eq!(poor["result"], "incomplete");
    assert!(poor["missing"].to_string().contains("GRANT TRIGGER ON"), "{poor}");
    for (name, result) in [("cache", "no-database"), ("inside", "content")] {
        let check = named(&all, "connections", name);
        assert_eq!((&check["result"], &check["in_points"]), (&result.into(), &false.into()), "{check}");
    }

    // Only incomplete is another status than failed, and neither hides what is well.
    let ran = check(&["shop", "poor"]).ends(3);
    assert!(ran.stdout.contains("poor: INCOMPLETE") && ran.stdout.contains("missing: "), "{}", ran.stdout);
    let ran = check(&["shop", "pg-name"]).ends(1);
    assert!(
        ran.stdout.contains("  code: DatabaseNotFound\n") && ran.stdout.contains("  do: "),
        "{}",
        ran.stdout
    );
    for name in ["cache", "inside", "main"] {
        check(&["shop", name]).ends(0);
    }
    shop.world.ok(&["app", "set", "shop", "--without-database", "main"]);
    let ran = check(&["shop", "main"]).ends(0);
    assert!(ran.stdout.contains("left out of points"), "{}", ran.stdout);
}

#[test]
fn a_check_tells_tls_as_it_is() {
    let certificates = Certificates::new("app");
    let tls = Some((certificates.certificate("server"), certificates.key("server")));
    let server = Postgres::with(&PostgresSetup { tls, ..PostgresSetup::default() });
    server.psql("postgres", "CREATE ROLE web LOGIN PASSWORD 'x'; CREATE DATABASE shop OWNER web;");
    let world = World::within(temp_dir());
    world.ok(&["app", "add", "shop"]);
    for (mode, authority, tls, verified) in [
        ("disable", "ca", Value::Null, Value::Null),
        ("require", "", "TLSv1.3".into(), Value::Null),
        ("verify-full", "ca", "TLSv1.3".into(), "verify-full".into()),
        ("verify-full", "other-ca", "DatabaseCertificateUnknown".into(), Value::Null),
    ] {
        let root = match authority {
            "" => String::new(),
            name => format!("&sslrootcert={}", certificates.certificate(name).display()),
        };
        let address = format!("postgres://web:x@localhost:{}/shop?sslmode={mode}{root}", server.port());
        world.run_with("home", &["connection", "set", "shop", "main", "--type", "PostgreSQL"], &address).ok();
        let all = parsed(&world.run(&["connection", "check", "shop", "--json"]));
        let check = &all["connections"][0];
        match check["error"]["code"].as_str() {
            Some(code) => assert_eq!(tls, code, "{check}"),
            None => assert_eq!((&check["tls"], &check["tls_verified"]), (&tls, &verified), "{mode}: {check}"),
        }
    }
}

/// Files as WordPress, Laravel and ASP.NET have them.
fn write_configs(shop: &Shop, folder: &str) {
    let wordpress = format!(
        "<?php\n/** The name of the database */\ndefine( 'DB_NAME', 'shop' );\ndefine( 'DB_USER', 'web' );\n\
         define( 'DB_PASSWORD', '{}' );\ndefine( 'DB_HOST', '127.0.0.1:{}' );\ndefine( 'DB_CHARSET', 'utf8mb4' );\n\
         $table_prefix = 'wp_';\nrequire_once ABSPATH . 'wp-settings.php';\n",
        PASSWORDS[1].replace('\'', "\\'"),
        shop.maria.port()
    );
    let laravel = format!(
        "APP_NAME=Shop\nDB_CONNECTION=pgsql\nDB_HOST=127.0.0.1\nDB_PORT={}\nDB_DATABASE=shop\nDB_USERNAME=web\nDB_PASSWORD='{}'\n",
        shop.pg.port(),
        PASSWORDS[0]
    );
    let settings = r#"{ "ConnectionStrings": {
        "Reports": "Server=tcp:reports.example.test,1433;Database=reports;User Id=sa;Password=hidden-away",
        "Local": "Data Source=data/app.db" } }"#;
    shop.world.write(&format!("{folder}/blog/wp-config.php"), wordpress.as_bytes());
    shop.world.write(&format!("{folder}/.env"), laravel.as_bytes());
    shop.world.write(&format!("{folder}/site/wwwroot/appsettings.json"), settings.as_bytes());
}

#[test]
fn databases_that_an_apps_files_name_are_linked_when_agreed_to_and_in_its_very_first_point() {
    let shop = Shop::new();
    let run = |args: &[&str]| {
        let ran = without_passwords(shop.world.run(args));
        assert!(!format!("{ran:?}").contains("hidden-away"), "{ran:?}");
        ran
    };
    // Without a word nothing is linked, and it is told.
    write_configs(&shop, "quiet");
    let ran = run(&["backup", "quiet"]).ends(0);
    assert!(ran.stderr.contains("`wordpress` (MySQL `shop` on 127.0.0.1:"), "{ran:?}");
    assert!(ran.stderr.contains("backstay connection discover quiet"), "{ran:?}");
    assert_eq!(shop.world.json(&["connection", "list", "quiet"])["connections"], Value::Array(Vec::new()));
    let ran = run(&["connection", "discover", "quiet"]).ends(0);
    assert!(ran.stdout.contains("found in blog/wp-config.php") && ran.stderr.contains("--yes"), "{ran:?}");
    let all = parsed(&run(&["connection", "discover", "quiet", "--json"]).ends(0));
    let states: Vec<(&str, &str, &str, bool)> = all["found"]
        .as_array()
        .unwrap()
        .iter()
        .map(|f| {
            let text = |field: &str| f[field].as_str().unwrap();
            (text("database_kind"), text("found_in"), text("state"), f["stored"].as_bool().unwrap())
        })
        .collect();
    assert_eq!(
        states,
        [
            ("PostgreSQL", ".env", "new", false),
            ("MySQL", "blog/wp-config.php", "new", false),
            ("SQLite", "site/wwwroot/appsettings.json", "content", false),
            ("SQL Server", "site/wwwroot/appsettings.json", "unsupported", false),
        ],
        "{all}"
    );
    assert_eq!(shop.world.json(&["connection", "list", "quiet"])["connections"], Value::Array(Vec::new()));

    // What exists under that name, or leads there under another, stays as it is.
    let other = "mysql://web:x@elsewhere/other";
    shop.world.run_with("home", &["connection", "set", "quiet", "wordpress", "--type", "MySql"], other).ok();
    let all = parsed(&run(&["connection", "discover", "quiet", "--yes", "--json"]).ends(0));
    assert_eq!(named(&all, "found", "wordpress")["state"], "exists");
    let stored: Vec<&Value> =
        all["found"].as_array().unwrap().iter().filter(|f| f["stored"] == true).collect();
    assert_eq!(stored.len(), 1, "{all}");
    assert_eq!(stored[0]["database_kind"], "PostgreSQL");
    let revealed = shop.world.json(&["connection", "list", "quiet", "--reveal"]);
    assert_eq!(named(&revealed, "connections", "wordpress")["value"], other);
    let all = parsed(&run(&["connection", "discover", "quiet", "--json"]).ends(0));
    assert_eq!(
        (&all["found"][0]["state"], &all["found"][0]["connection"]),
        (&"linked".into(), &stored[0]["name"])
    );
    run(&["connection", "check", "quiet", stored[0]["name"].as_str().unwrap()]).ends(0);

    // Agreed to beforehand, the very first point holds them.
    write_configs(&shop, "site");
    let ran = run(&["backup", "site", "--yes"]).ends(0);
    assert!(ran.stderr.contains("is app `site` from now on"), "{ran:?}");
    let manifest = shop.world.json(&["show", "site"])["manifest"].clone();
    let kinds: Vec<&Value> = manifest["databases"].as_array().unwrap().iter().map(|d| &d["kind"]).collect();
    assert_eq!(kinds, ["PostgreSql", "MySql"], "{manifest}");
    assert_eq!(shop.world.points("site").len(), 1);
    let told = shop.world.ok(&["backup", "site", "--yes"]);
    assert!(told.contains("unchanged"), "a known app is not looked through: {told}");
}

/// A run on a terminal, with its questions answered one by one.
fn on_terminal(world: &World, words: &str, answers: &[(&str, &str)]) -> String {
    let mut script = Command::new("script");
    script.args(["-qec", &format!("{} {words}", env!("CARGO_BIN_EXE_backstay")), "/dev/null"]);
    script.current_dir(world.path("")).env("BACKSTAY_HOME", world.path("home")).env("TERM", "xterm");
    let mut child = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    let mut shown = Vec::new();
    let mut byte = [0; 1];
    for (question, answer) in answers {
        while !shown.ends_with(question.as_bytes()) {
            let read = out.read(&mut byte).unwrap();
            assert_ne!(read, 0, "{question}: {}", String::from_utf8_lossy(&shown));
            shown.push(byte[0]);
        }
        child.stdin.as_mut().unwrap().write_all(answer.as_bytes()).unwrap();
    }
    out.read_to_end(&mut shown).unwrap();
    let shown = String::from_utf8_lossy(&shown).into_owned();
    assert!(child.wait().unwrap().success(), "{shown}");
    shown
}

#[test]
fn on_a_terminal_each_is_asked_about_and_the_answer_is_no_unless_it_is_yes() {
    let world = World::within(temp_dir());
    let env = "DATABASE_URL=postgres://web:hidden-away@127.0.0.1:1/one\n\
               REPORTS_DATABASE_URL=postgres://web:hidden-away@127.0.0.1:1/two\n";
    world.write("site/.env", env.as_bytes());
    let shown = on_terminal(&world, "backup site", &[("[y/N] ", "\n")]);
    assert!(shown.contains("this point is without databases"), "{shown}");
    assert!(world.json(&["connection", "list", "site"])["connections"].as_array().unwrap().is_empty());
    on_terminal(&world, "connection discover site", &[("[y/N/all] ", "\n"), ("[y/N/all] ", "y\n")]);
    let list = world.json(&["connection", "list", "site"]);
    let to = |n: usize| list["connections"][n]["points_to"].as_str().unwrap_or_default().to_owned();
    assert!(to(0).contains("`two`") && to(1).is_empty(), "{list}");
    // A vault that cannot be had leaves no app behind; where it can be had the databases are linked, and told as not reached.
    let vault = world.path("home/vault");
    let refused = ["backup", "site", "--yes", "--vault", vault.to_str().unwrap()];
    world.run_at("second", &refused).fails("Conflict", 1);
    world.run_at("second", &["app", "show", "site"]).fails("AppNotFound", 4);
    let ran = world.run_at("second", &["backup", "site", "--yes"]).ends(3);
    assert!(
        ran.stderr.contains("This was the first backup") && ran.stderr.contains("DatabaseUnreachable"),
        "{ran:?}"
    );
    // Without databases nothing is looked for.
    world.write("shop/.env", env.as_bytes());
    let ran = world.run(&["backup", "shop", "--no-databases"]).ok();
    assert!(!ran.stderr.contains("DATABASE_URL"), "{ran:?}");
    let shown = on_terminal(&world, "connection discover shop", &[("[y/N/all] ", "all\n")]);
    assert!(shown.contains("backstay connection check shop") && !shown.contains("hidden-away"), "{shown}");
    assert_eq!(world.json(&["connection", "list", "shop"])["connections"].as_array().unwrap().len(), 2);
}
