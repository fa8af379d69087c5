//! Dumps that are read from a replica: the primary is left alone, and what the replica lacks is told.

use std::time::{Duration, Instant};

use backstay_testing::MariaDb;

use crate::Shop;

#[test]
fn a_standby_is_read_and_the_primary_restored() {
    let shop = Shop::new();
    shop.world.ok(&["app", "set", "shop", "--without-database", "orders"]);
    let standby = shop.pg.standby();
    let address =
        shop.pg_address("shop").replace(&format!(":{}/", shop.pg.port()), &format!(":{}/", standby.port()));
    shop.connect("readonly", "PostgreSQL", &address).ok();
    let refused = shop.world.run(&["app", "set", "shop", "--replica", "main"]);
    assert_eq!(refused.status, 2, "{}", refused.stderr);
    shop.world.ok(&["app", "set", "shop", "--replica", "main=readonly"]);

    shop.set("B");
    wait(|| standby.try_psql("shop", "SELECT v FROM version").stdout == "B\n");
    standby.psql("postgres", "SELECT pg_wal_replay_pause()");
    wait(|| standby.psql("postgres", "SELECT pg_get_wal_replay_pause_state()") == "paused\n");
    shop.pg.psql("shop", "UPDATE version SET v = 'C'");
    let ran = shop.world.run(&["backup", "shop"]).ok();
    assert!(
        ran.stderr.contains("The server is a standby: it has what was committed until"),
        "{}",
        ran.stderr
    );
    assert!(ran.stderr.contains("and following is paused"), "{}", ran.stderr);
    let point = shop.world.json(&["show", "shop"]);
    let databases = point["manifest"]["databases"].as_array().unwrap();
    assert_eq!(databases.len(), 1, "the replica is not a database of its own: {databases:?}");
    assert_eq!(databases[0]["connection"], "main");
    let checks = shop.world.run(&["connection", "check", "shop"]).ok().stdout;
    assert!(checks.contains("Points have it as its replica `readonly` has it"), "{checks}");
    assert!(checks.contains("A replica: what points have of `main` is read here"), "{checks}");

    // A restore goes to the primary.
    standby.psql("postgres", "SELECT pg_wal_replay_resume()");
    shop.world.ok(&["restore", "shop", "latest", "--with-databases", "--yes"]);
    assert_eq!(shop.pg.psql("shop", "SELECT v FROM version"), "B\n");

    // Whoever names a replica wants the primary left alone: without it there is no dump, and that is told.
    drop(standby);
    let ran = shop.world.run(&["backup", "shop"]);
    assert_eq!(ran.status, 3, "{}", ran.stderr);
    assert!(ran.stderr.contains("database main"), "{}", ran.stderr);
    shop.world.ok(&["connection", "delete", "shop", "readonly", "--yes"]);
    let ran = shop.world.run(&["backup", "shop"]);
    assert_eq!(ran.status, 3, "{}", ran.stderr);
    assert!(
        ran.stderr.contains("is to be read through `readonly`, which is no connection of the app"),
        "{}",
        ran.stderr
    );
    shop.world.ok(&["app", "set", "shop", "--replica", ""]);
    shop.world.ok(&["backup", "shop"]);
}

#[test]
fn a_replica_of_mariadb_is_read_and_says_how_far_behind_it_is() {
    let primary = MariaDb::start_with(&["--log-bin=log", "--server-id=1"]);
    let replica = MariaDb::start_with(&["--server-id=2"]);
    let world = crate::World::within(backstay_testing::temp_dir());
    primary.sql("CREATE USER copy@'%' IDENTIFIED BY 'copy'; GRANT REPLICATION SLAVE ON *.* TO copy@'%'");
    replica.sql(&format!(
        "CHANGE MASTER TO MASTER_HOST='127.0.0.1', MASTER_PORT={}, MASTER_USER='copy', MASTER_PASSWORD='copy',
           MASTER_LOG_FILE='log.000001', MASTER_LOG_POS=4; START SLAVE",
        primary.port()
    ));
    primary.sql(
        "CREATE DATABASE shop; CREATE TABLE shop.t (id INT PRIMARY KEY); INSERT INTO shop.t VALUES (1), (2);
         CREATE USER web@'%' IDENTIFIED BY 'web'; GRANT ALL ON *.* TO web@'%'",
    );
    wait(|| replica.try_sql("SELECT COUNT(*) FROM shop.t").is_ok_and(|n| n.trim() == "2"));
    world.write("shop/index.html", b"x");
    world.ok(&["app", "add", "shop", world.path("shop").to_str().unwrap()]);
    for (name, server) in [("main", &primary), ("copy", &replica)] {
        let address = format!("mysql://web:web@127.0.0.1:{}/shop", server.port());
        world.run_with("home", &["connection", "set", "shop", name, "--type", "MySql"], &address).ok();
    }
    world.ok(&["app", "set", "shop", "--replica", "main=copy"]);
    replica.sql("STOP SLAVE SQL_THREAD");
    primary.sql("INSERT INTO shop.t VALUES (3)");
    let ran = world.run(&["backup", "shop"]).ok();
    assert!(ran.stderr.contains("is a replica and does not follow its primary now"), "{}", ran.stderr);
    assert!(ran.stdout.contains("1 table, 2 rows"), "{}", ran.stdout);
    replica.sql("START SLAVE SQL_THREAD");
    wait(|| replica.sql("SELECT COUNT(*) FROM shop.t").trim() == "3");
    let ran = world.run(&["backup", "shop"]).ok();
    assert!(ran.stderr.contains("The server is a replica, 0 s behind"), "{}", ran.stderr);
    assert!(ran.stdout.contains("1 table, 3 rows"), "{}", ran.stdout);

    // Only to some does a server say that it is a replica.
    primary.sql(
        "REVOKE ALL ON *.* FROM web@'%'; GRANT ALL ON shop.* TO web@'%'; GRANT SELECT ON mysql.proc TO web@'%'",
    );
    let has_grant = |grant: &str| replica.sql("SHOW GRANTS FOR web@'%'").contains(grant);
    wait(|| has_grant("`proc`"));
    let ran = world.run(&["backup", "shop"]).ok();
    assert!(!ran.stderr.contains("is a replica"), "{}", ran.stderr);
    primary.sql("GRANT SLAVE MONITOR ON *.* TO web@'%'");
    wait(|| has_grant("SLAVE MONITOR"));
    let ran = world.run(&["backup", "shop"]).ok();
    assert!(ran.stderr.contains("The server is a replica, 0 s behind"), "{}", ran.stderr);
}

#[track_caller]
fn wait(done: impl Fn() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < Duration::from_secs(60), "it does not come to that");
        std::thread::sleep(Duration::from_millis(50));
    }
}
