//! Files and databases restored together, taken back, and what stands in the way.

use crate::Shop;

#[test]
fn files_and_databases_go_back_together_and_forth_again() {
    let shop = Shop::new();
    let a = shop.backup();
    let content_a = shop.content();
    shop.set("B");
    let content_b = shop.content();
    let plan = shop.world.ok(&["restore", "shop", &a, "--with-databases", "--dry-run"]);
    assert!(plan.contains("Database of `main`") && plan.contains("Database of `orders`"), "{plan}");
    shop.assert_content(&content_b, "a plan changes nothing");
    let done = shop.world.ok(&["restore", "shop", &a, "--with-databases", "--yes"]);
    assert!(done.contains("with the databases of `main`, `orders`"), "{done}");
    assert_eq!(shop.versions(), ["A", "A", "A"]);
    shop.assert_content(&content_a, "restored");
    assert_eq!(shop.left(), "");
    for (content, version) in [(&content_b, "B"), (&content_a, "A"), (&content_b, "B")] {
        shop.world.ok(&["undo", "shop", "--yes"]);
        assert_eq!(shop.versions(), [version; 3]);
        shop.assert_content(content, "taken back");
        assert_eq!(shop.left(), "");
    }
}

#[test]
fn databases_that_were_destroyed_come_back() {
    let shop = Shop::new();
    let a = shop.backup();
    let content = shop.content();
    shop.pg.psql("postgres", "DROP DATABASE shop;");
    shop.maria.sql("DROP DATABASE shop;");
    std::fs::remove_dir_all(shop.world.path("shop/uploads")).unwrap();
    shop.world.ok(&["restore", "shop", &a, "--with-databases", "--yes"]);
    assert_eq!(shop.versions(), ["A", "A", "A"]);
    shop.assert_content(&content, "restored");
    assert_eq!(shop.left(), "");
    assert!(shop.world.path("shop/uploads/7.bin").exists());
}

#[test]
fn a_server_that_is_gone_leaves_everything_as_it_was() {
    let mut shop = Shop::new();
    let a = shop.backup();
    shop.set("B");
    shop.pg.stop();
    shop.world.run(&["restore", "shop", &a, "--with-databases", "--yes"]).fails("RestoreRefused", 1);
    let file = std::fs::read_to_string(shop.world.path("shop/version.txt")).unwrap();
    assert_eq!((file.as_str(), shop.maria.sql("SELECT v FROM shop.version;").trim()), ("B", "B"));
    assert_eq!(shop.maria.sql("SHOW DATABASES LIKE '%\\_bs\\_%';"), "");
}

#[test]
fn rights_that_are_missing_are_told_before_anything_is_done() {
    let shop = Shop::new();
    let a = shop.backup();
    shop.set("B");
    shop.pg.psql("postgres", "ALTER ROLE web NOCREATEDB;");
    let ran = shop.world.run(&["restore", "shop", &a, "--with-databases", "--yes"]);
    let ran = ran.fails("DatabasePrivileges", 1);
    assert!(ran.stderr.contains("CREATEDB"), "{}", ran.stderr);
    assert_eq!(shop.versions(), ["B", "B", "B"]);
}

#[test]
fn a_new_app_gets_databases_of_its_own() {
    let shop = Shop::new();
    let a = shop.backup();
    shop.set("B");
    let content = shop.content();
    let place = |name: &str, address: &str| {
        shop.world.write(name, address.as_bytes());
        format!("@{}", shop.world.path(name).display())
    };
    let main = format!("main={}", place("pg.txt", &shop.pg_address("copy")));
    let orders = format!("orders={}", place("my.txt", &shop.maria_address("shop_bs_copy")));
    let words = ["restore", "shop", &a, "--to", "copy", "--with-databases"];
    shop.world.run(&words).fails("ConnectionNotFound", 4);
    shop.world.ok(&[&words[..], &["--database", &main, "--database", &orders]].concat());
    assert_eq!(shop.pg.psql("copy", "SELECT v FROM version;"), "A\n");
    assert_eq!(shop.maria.sql("SELECT v FROM shop_bs_copy.version;"), "A\n");
    shop.assert_content(&content, "the app itself is as it was");
    let links = shop.world.ok(&["connection", "list", "copy"]);
    assert!(links.contains("copy") && links.contains("shop_bs_copy"), "{links}");
    assert_eq!(std::fs::read(shop.world.path("home/sites/copy/version.txt")).unwrap(), b"A");
    // A place that is taken is not taken over.
    let words = [
        "restore",
        "shop",
        &a,
        "--to",
        "other",
        "--with-databases",
        "--database",
        &main,
        "--database",
        &orders,
    ];
    shop.world.run(&words).fails("AlreadyExists", 1);
    assert!(!shop.world.path("home/sites/other").exists());
    // A password in the arguments is refused.
    let open = "main=postgresql://web:other@127.0.0.1/third".to_owned();
    shop.world.run(&["restore", "shop", "--with-databases", "--database", &open]).fails("Usage", 2);
}

#[test]
fn settings_come_back_unless_only_the_content_is_wanted() {
    let shop = Shop::new();
    let set =
        |value: &str| drop(shop.world.run_with("home", &["setting", "set", "shop", "MODE"], value).ok());
    let mode = || shop.world.ok(&["setting", "list", "shop", "--json", "--reveal"]);
    set("one");
    let a = shop.backup();
    set("two");
    shop.world.write("shop/version.txt", b"C");
    shop.world.ok(&["restore", "shop", &a, "--content-only", "--yes"]);
    assert!(mode().contains("two"));
    let plan = shop.world.ok(&["restore", "shop", &a, "--dry-run"]);
    assert!(plan.contains("MODE (setting)") && !plan.contains("two"), "{plan}");
    shop.world.ok(&["restore", "shop", &a, "--yes"]);
    assert!(mode().contains("one"));
    shop.world.ok(&["undo", "shop", "--yes"]);
    assert!(mode().contains("two"));
}
