//! Databases in points: what is in them, and what is told where one is not.

use crate::shop::PASSWORDS;
use crate::{Shop, World};

#[test]
fn a_point_holds_files_and_both_databases_with_their_records() {
    let shop = Shop::new();
    let told = shop.world.ok(&["backup", "shop"]);
    assert!(told.contains("Database `shop` of connection `main` (PostgreSQL 15"), "{told}");
    assert!(told.contains("Database `shop` of connection `orders` (MariaDB 10.11"), "{told}");
    let show = shop.world.json(&["show", "shop"]);
    let manifest = &show["manifest"];
    assert_eq!(manifest["consistency"], "ordered", "{manifest}");
    let databases = manifest["databases"].as_array().unwrap();
    assert_eq!(databases.len(), 2);
    for database in databases {
        let dump = &database["dump"];
        let tables = dump["tables"].as_array().unwrap();
        let rows = |name: &str| {
            let table = tables.iter().find(|t| t["name"].as_str().unwrap().ends_with(name));
            table.unwrap_or_else(|| panic!("{name}: {dump}"))["rows"].as_u64().unwrap()
        };
        match database["connection"].as_str().unwrap() {
            "main" => assert_eq!((rows("version"), rows("posts")), (1, 501)),
            _ => assert_eq!((rows("version"), rows("customers"), rows("orders")), (1, 301, 300)),
        }
        assert!(dump["bytes"].as_u64().unwrap() > 1_000);
        assert_eq!(dump["schema_hash"].as_str().unwrap().len(), 64, "{dump}");
    }
    shop.world.ok(&["verify", "shop"]);
    shop.world.ok(&["vault", "check", "--read-data"]);
    // Nothing is stored twice where nothing has changed.
    shop.world.ok(&["backup", "shop"]);
    let list = shop.world.json(&["list", "shop"]);
    let added = list["points"][0]["added_bytes"].as_u64().unwrap();
    assert!(added < 40_000, "{added} bytes for an unchanged app");
    shop.world.ok(&["backup", "shop", "--no-databases"]);
    let show = shop.world.json(&["show", "shop"]);
    assert!(show["manifest"]["databases"].as_array().unwrap().is_empty(), "{show}");
}

#[test]
fn a_database_that_cannot_be_dumped_makes_the_point_partial_and_the_other_is_in_it() {
    let shop = Shop::new();
    let wrong = format!("postgresql://web:{}x@127.0.0.1:{}/shop", "wrong", shop.pg.port());
    shop.connect("main", "PostgreSQL", &wrong).ok();
    let ran = shop.world.run(&["backup", "shop"]).ends(3);
    assert!(
        ran.stderr.contains("database main") && ran.stderr.contains("DatabaseLoginFailed"),
        "{}",
        ran.stderr
    );
    let show = shop.world.json(&["show", "shop"]);
    assert_eq!(show["point"]["status"], "PartiallySucceeded");
    let databases = show["manifest"]["databases"].as_array().unwrap();
    assert_eq!(databases.iter().map(|d| d["connection"].as_str().unwrap()).collect::<Vec<_>>(), ["orders"]);
    // A restore with databases brings all of them or none.
    shop.set("B");
    shop.world.run(&["restore", "shop", "--with-databases", "--yes"]).fails("RestoreRefused", 1);
    assert_eq!(shop.versions(), ["B", "B", "B"]);
    // The files alone come back all the same.
    shop.world.ok(&["restore", "shop", "--yes"]);
    assert_eq!(shop.versions(), ["A", "B", "B"]);
}

#[test]
fn a_user_who_does_not_see_everything_is_told_which_grant_is_missing() {
    let shop = Shop::new();
    shop.maria.sql("CREATE USER poor@'%' IDENTIFIED BY 'x'; GRANT SELECT ON shop.version TO poor@'%';");
    let poor = format!("mysql://poor:x@127.0.0.1:{}/shop", shop.maria.port());
    shop.connect("orders", "MySql", &poor).ok();
    let ran = shop.world.run(&["backup", "shop"]).ends(3);
    assert!(ran.stderr.contains("DatabaseIncomplete") && ran.stderr.contains("GRANT"), "{}", ran.stderr);
}

#[test]
fn a_quiesced_app_writes_again_whatever_happens() {
    let shop = Shop::new();
    let trace = shop.world.path("trace");
    let line = |word: &str| format!("echo {word} >> {}", trace.display());
    shop.world.ok(&["app", "set", "shop", "--quiesce", &line("quiet"), "--resume", &line("again")]);
    shop.world.ok(&["backup", "shop"]);
    assert_eq!(std::fs::read_to_string(&trace).unwrap(), "quiet\nagain\n");
    assert_eq!(shop.world.json(&["show", "shop"])["manifest"]["consistency"], "quiesced");
    shop.pg.psql("postgres", "ALTER ROLE web NOLOGIN;");
    shop.world.run(&["backup", "shop"]).ends(3);
    assert_eq!(std::fs::read_to_string(&trace).unwrap(), "quiet\nagain\nquiet\nagain\n");
    shop.world.ok(&["app", "set", "shop", "--quiesce", &format!("{}; false", line("quiet"))]);
    shop.world.run(&["backup", "shop"]).fails("HookFailed", 1);
    assert_eq!(std::fs::read_to_string(&trace).unwrap().lines().last(), Some("again"));
}

/// Where in a folder, names and contents, a text is found.
fn found_in(folder: &std::path::Path, text: &[u8], hits: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && !path.is_symlink() {
            found_in(&path, text, hits);
        } else if path.is_file() {
            let bytes = std::fs::read(&path).unwrap_or_default();
            if bytes.windows(text.len()).any(|w| w == text) {
                hits.push(path.display().to_string());
            }
        }
    }
}

fn scan(world: &World, texts: &[String], outputs: &[String]) -> Vec<String> {
    let mut hits = Vec::new();
    for text in texts {
        found_in(&world.path("home"), text.as_bytes(), &mut hits);
        hits.extend(outputs.iter().filter(|o| o.contains(text.as_str())).map(|_| "an output".to_owned()));
    }
    hits
}

#[test]
fn passwords_show_up_nowhere() {
    let shop = Shop::new();
    let mut outputs = Vec::new();
    let watch = crate::shop_watch::Watch::start();
    for args in [
        &["backup", "shop"][..],
        &["show", "shop", "--json"],
        &["connection", "list", "shop", "--json"],
        &["restore", "shop", "--with-databases", "--dry-run", "--json"],
        &["restore", "shop", "--with-databases", "--yes", "--json"],
        &["undo", "shop", "--yes", "--json"],
        &["job", "list", "--json"],
        &["status", "--json"],
    ] {
        let ran = shop.world.run(args);
        outputs.extend([ran.stdout, ran.stderr]);
    }
    let seen = watch.end();
    let mut texts: Vec<String> = PASSWORDS.map(str::to_owned).to_vec();
    texts.extend(PASSWORDS.map(crate::shop::encoded));
    assert_eq!(scan(&shop.world, &texts, &outputs), Vec::<String>::new());
    for text in &texts {
        let shown: Vec<&String> = seen.iter().filter(|words| words.contains(text.as_str())).collect();
        assert!(shown.is_empty(), "in the arguments or the environment of a process: {shown:#?}");
    }
    assert!(seen.iter().any(|words| words.contains("pg_dump")), "the watch has seen the tools: {seen:?}");
    // The scanner finds what is there.
    shop.world.write("home/planted", PASSWORDS[0].as_bytes());
    assert_eq!(scan(&shop.world, &texts, &[]).len(), 1);
}
