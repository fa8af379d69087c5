//! Databases in custom backups and archives.

use std::process::Command;

use crate::Shop;

#[test]
fn a_custom_backup_has_the_dumps_for_every_tool_and_brings_them_back() {
    let shop = Shop::new();
    std::fs::create_dir(shop.world.path("away")).unwrap();
    shop.world.ok(&["backup", "shop", "--container", "./away", "--name", "one"]);
    let content = shop.content();
    let zip = shop.world.path("away/one.zip");
    let listed = Command::new("unzip").arg("-l").arg(&zip).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(listed.contains(" shop\n") && listed.contains(" shop-2\n"), "{listed}");
    // The tools of the servers read them without Backstay.
    let out = shop.world.path("unzipped");
    assert!(Command::new("unzip").arg("-q").arg(&zip).arg("-d").arg(&out).status().unwrap().success());
    let toc = shop.pg.client("pg_restore").arg("--list").arg(out.join("shop")).output().unwrap();
    assert!(String::from_utf8_lossy(&toc.stdout).contains("TABLE DATA public posts"), "{toc:?}");
    let sql = std::fs::read_to_string(out.join("shop-2")).unwrap();
    assert!(sql.contains("CREATE TABLE `customers`") && sql.trim_end().ends_with("-- Dump completed"));
    let xml = std::fs::read_to_string(shop.world.path("away/one.xml")).unwrap();
    assert!(xml.contains("database-first") && xml.contains("<Record>"), "{xml}");
    shop.world.ok(&["verify", "shop", "one"]);
    shop.set("B");
    shop.world.ok(&["restore", "shop", "one", "--with-databases", "--yes"]);
    assert_eq!(shop.versions(), ["A", "A", "A"]);
    shop.assert_content(&content, "restored from a custom backup");
    shop.world.ok(&["undo", "shop", "--yes"]);
    assert_eq!(shop.versions(), ["B", "B", "B"]);
}

#[test]
fn a_point_goes_out_as_an_archive_and_comes_back_with_its_databases() {
    let shop = Shop::new();
    let a = shop.backup();
    let content = shop.content();
    shop.world.ok(&["export", "shop", &a, "--directory", shop.world.path("out").to_str().unwrap()]);
    shop.world.ok(&["delete", "shop", &a, "--yes"]);
    shop.set("B");
    let zip = std::fs::read_dir(shop.world.path("out"))
        .unwrap()
        .flatten()
        .map(|e| e.path())
        .find(|p| p.extension().is_some_and(|e| e == "zip"))
        .unwrap();
    shop.world.ok(&["restore", "shop", "--file", zip.to_str().unwrap(), "--with-databases", "--yes"]);
    assert_eq!(shop.versions(), ["A", "A", "A"]);
    shop.assert_content(&content, "restored from an archive");
}
