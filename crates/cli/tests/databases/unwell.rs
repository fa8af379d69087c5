//! Apps that do not work after a restore with databases: everything goes back, at once or by an undo.

use crate::Shop;

/// The app runs, and is well only at version `B`.
fn shop() -> (Shop, String) {
    let shop = Shop::new();
    let a = shop.backup();
    shop.set("B");
    shop.world.ok(&["app", "set", "shop", "--command", "exec sleep 1000"]);
    shop.world.ok(&[
        "app",
        "set",
        "shop",
        "--health-command",
        "grep -q B version.txt",
        "--health-deadline",
        "1s",
    ]);
    shop.world.ok(&["app", "start", "shop"]);
    (shop, a)
}

#[test]
fn an_app_that_is_not_well_keeps_the_old_databases_for_an_undo() {
    let (shop, a) = shop();
    let ran = shop.world.run(&["restore", "shop", &a, "--with-databases", "--yes"]).ends(3);
    assert_eq!(shop.versions(), ["A", "A", "A"], "{}", ran.stderr);
    assert!(shop.left().contains("_old"), "{}", shop.left());
    // No other command takes them away.
    shop.world.ok(&["job", "list"]);
    assert!(shop.left().contains("_old"));
    shop.world.ok(&["undo", "shop", "--yes"]);
    assert_eq!(shop.versions(), ["B", "B", "B"]);
    shop.world.run(&["undo", "shop", "--yes"]).ends(3);
    assert_eq!(shop.versions(), ["A", "A", "A"]);
    // The next restore clears them away.
    shop.world.ok(&["undo", "shop", "--yes"]);
    let b = shop.backup();
    shop.maria.sql("UPDATE shop.version SET v = 'C';");
    shop.world.ok(&["restore", "shop", &b, "--with-databases", "--yes"]);
    assert_eq!((shop.versions(), shop.left()), (["B", "B", "B"].map(str::to_owned), String::new()));
    shop.world.ok(&["app", "stop", "shop"]);
}

#[test]
fn an_app_that_is_not_well_is_taken_back_by_itself_with_its_databases() {
    let (shop, a) = shop();
    let before = shop.content();
    let words = ["restore", "shop", &a, "--with-databases", "--undo-on-unhealthy", "--yes"];
    assert_ne!(shop.world.run(&words).status, 0);
    assert_eq!(shop.versions(), ["B", "B", "B"]);
    shop.assert_content(&before, "taken back");
    assert_eq!(shop.left(), "");
    shop.world.ok(&["app", "stop", "shop"]);
}

#[test]
fn databases_alone_may_differ() {
    let shop = Shop::new();
    let a = shop.backup();
    shop.maria.sql("UPDATE shop.version SET v = 'C';");
    shop.world.ok(&["restore", "shop", &a, "--with-databases", "--yes"]);
    assert_eq!(shop.versions(), ["A", "A", "A"]);
    shop.world.ok(&["undo", "shop", "--yes"]);
    assert_eq!(shop.versions(), ["A", "A", "C"]);
}
