//! Servers whose settings end what is idle or slow, as those that are hosted often have them: backups and restores take as long as they
//! take all the same.

use crate::Shop;

#[test]
fn servers_that_end_what_is_idle_or_slow_hold_up_neither_backup_nor_restore() {
    let shop = Shop::new();
    shop.maria.sql(
        "USE shop;
         CREATE TABLE bulk (id int PRIMARY KEY, body text);
         INSERT INTO bulk SELECT seq, REPEAT(MD5(seq), 60) FROM seq_1_to_20000;
         SET GLOBAL wait_timeout = 1, GLOBAL interactive_timeout = 1, GLOBAL net_write_timeout = 1, GLOBAL net_read_timeout = 1;
         SET GLOBAL max_statement_time = 0.5, GLOBAL idle_transaction_timeout = 1, GLOBAL idle_readonly_transaction_timeout = 1,
             GLOBAL idle_write_transaction_timeout = 1;",
    );
    shop.pg.psql(
        "shop",
        "SET ROLE web;
         CREATE TABLE bulk (id int PRIMARY KEY, body text);
         INSERT INTO bulk SELECT n, repeat(md5(n::text), 60) FROM generate_series(1, 20000) n;",
    );
    for setting in
        ["idle_session_timeout", "idle_in_transaction_session_timeout", "statement_timeout", "lock_timeout"]
    {
        shop.pg.psql("postgres", &format!("ALTER SYSTEM SET {setting} = '500ms';"));
    }
    shop.pg.psql("postgres", "SELECT pg_reload_conf();");
    // The dumps wait for this one, begun as they are, and for each other.
    shop.world.ok(&["app", "set", "shop", "--quiesce", "true", "--resume", "sleep 3"]);
    let a = shop.backup();
    // A zip is written one after the other: a dump that is held up there for longer is lost, and that is said as what it is.
    std::fs::create_dir(shop.world.path("away")).unwrap();
    let ran = shop.world.run(&["backup", "shop", "--container", "./away", "--name", "late"]);
    assert_ne!(ran.status, 0);
    assert!(ran.stderr.contains("The database of `orders`"), "{}", ran.stderr);
    assert!(ran.stderr.contains("DatabaseInterrupted"), "{}", ran.stderr);
    assert!(!shop.world.path("away/late.zip").exists());
    shop.world.ok(&["app", "set", "shop", "--quiesce", "", "--resume", ""]);
    shop.world.ok(&["backup", "shop", "--container", "./away", "--name", "one"]);
    let content = shop.content();
    for from in [a.as_str(), "one"] {
        shop.set("B");
        // While the app is stopped, and while another database is filled, the connections of this one wait.
        shop.world.ok(&["restore", "shop", from, "--with-databases", "--yes"]);
        shop.assert_content(&content, from);
        assert_eq!(shop.left(), "");
    }
    shop.world.ok(&["undo", "shop", "--yes"]);
    assert_eq!(shop.versions(), ["B", "B", "B"]);
}
