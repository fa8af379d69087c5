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

#[test]
fn a_custom_backup_tells_what_its_rows_name_and_it_does_not_have() {
    let shop = Shop::new();
    shop.world.ok(&["app", "set", "shop", "--reference", "main", "SELECT path FROM files", "files"]);
    shop.world.write("shop/files/there.txt", b"x");
    shop.world.write("shop/files/deep/there.txt", b"x");
    shop.world.write("shop/files/left/out.txt", b"x");
    std::os::unix::fs::symlink("deep", shop.world.path("shop/files/linked")).unwrap();
    shop.pg.psql(
        "shop",
        "SET ROLE web; CREATE TABLE files (path text);
         INSERT INTO files VALUES ('there.txt'), ('deep/there.txt'), ('/there.txt'), ('linked/there.txt'), ('');",
    );
    std::fs::create_dir(shop.world.path("away")).unwrap();
    std::os::unix::fs::symlink("/usr/share", shop.world.path("shop/files/away")).unwrap();
    let ran = shop.world.run(&["backup", "shop", "--container", "./away", "--name", "all"]).ok();
    assert!(!ran.stderr.contains("paths that it names"), "{}", ran.stderr);
    shop.pg.psql("shop", "INSERT INTO files VALUES ('gone.txt'), ('away/doc');");
    let ran = shop.world.run(&["backup", "shop", "--container", "./away", "--name", "one"]).ok();
    let told = "2 of 7 paths that it names are not in `files`: gone.txt, away/doc";
    assert!(ran.stderr.contains(told), "{}", ran.stderr);
    assert!(std::fs::read_to_string(shop.world.path("away/one.xml")).unwrap().contains(told));
    let ran = shop.world.run(&["backup", "shop"]).ok();
    assert!(ran.stderr.contains(told), "a point tells the same: {}", ran.stderr);
}

#[test]
fn an_app_is_quiet_while_the_dumps_of_a_custom_backup_are_begun() {
    let shop = Shop::new();
    let trace = shop.world.path("trace");
    let line = |word: &str| format!("echo {word} >> {}", trace.display());
    let trace = || std::fs::read_to_string(&trace).unwrap_or_default();
    std::fs::create_dir(shop.world.path("away")).unwrap();
    let words = |name| ["backup", "shop", "--container", "./away", "--name", name];
    shop.world.ok(&["app", "set", "shop", "--quiesce", &line("quiet"), "--resume", &line("again")]);
    shop.world.ok(&words("one"));
    assert_eq!(trace(), "quiet\nagain\n");
    shop.world.ok(&[&words("files")[..], &["--no-databases"]].concat());
    assert_eq!(trace(), "quiet\nagain\n", "nothing is begun, nothing is held up");
    shop.world.ok(&["app", "set", "shop", "--resume", &format!("{}; false", line("again"))]);
    let ran = shop.world.run(&words("two")).ends(3);
    assert!(ran.stderr.contains("hook"), "{}", ran.stderr);
    shop.world.ok(&["app", "set", "shop", "--quiesce", &format!("{}; false", line("quiet"))]);
    shop.world.run(&words("three")).fails("HookFailed", 1);
    assert_eq!(trace().lines().last(), Some("again"));
    assert!(!shop.world.path("away/three.zip").exists());
}
