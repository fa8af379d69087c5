//! Archives on the command line: out, in, and back over an app.

use backstay_testing::Restic;
use backstay_testing::fixtures::small;
use backstay_tree::compare;

use crate::{World, assert_text};

/// A world with a point of `blog` as an archive in `out`, made by another machine, and `blog` changed since.
fn changed() -> World {
    let world = World::with_blog();
    world.run_at("elsewhere", &["backup", "blog"]).ok();
    world.run_at("elsewhere", &["export", "blog", "--directory", "out", "--name", "blog_1"]).ok();
    let out =
        std::process::Command::new("cp").arg("-a").args([world.path("blog"), world.path("then")]).status();
    assert!(out.unwrap().success());
    world.write("blog/index.html", b"<h1>changed</h1>\n");
    world.write("blog/new", b"new");
    std::fs::remove_dir_all(world.path("blog/img")).unwrap();
    let out =
        std::process::Command::new("cp").arg("-a").args([world.path("blog"), world.path("now")]).status();
    assert!(out.unwrap().success());
    world.run(&["backup", "blog"]).ok();
    world
}

#[test]
fn an_app_goes_to_an_archive_and_back() {
    let world = changed();
    let dry = world.run(&["restore", "blog", "--file", "out/blog_1.zip", "--dry-run"]).ok();
    assert_text!("archive_dry_run", dry.told(&world, "restore blog --file out/blog_1.zip --dry-run"));
    world.assert_same(world.path("now"), world.path("blog"));
    assert_eq!(world.points("blog").len(), 2, "what was brought in stays");
    world.run(&["restore", "blog", "--file", "out/blog_1.zip"]).fails("ConfirmationNeeded", 2);
    world.assert_same(world.path("now"), world.path("blog"));
    world.run(&["restore", "blog", "--file", "out/blog_1.zip", "--yes"]).ok();
    world.assert_same(world.path("then"), world.path("blog"));
    world.run(&["undo", "blog", "--yes"]).ok();
    world.assert_same(world.path("now"), world.path("blog"));
    let container = ["--container", "./out", "--name", "blog_1"];
    world.run(&[&["restore", "blog", "--path", "img", "--yes"][..], &container].concat()).ok();
    assert_eq!(std::fs::read(world.path("blog/img/logo.png")).unwrap(), [0x89; 3000]);
    assert_eq!(std::fs::read(world.path("blog/new")).unwrap(), b"new");

    // The point that was brought in is one as any other.
    let list = world.json(&["list", "blog"]);
    let points = list["points"].as_array().unwrap();
    let imported: Vec<_> = points.iter().filter(|p| p["origin"] == "imported").collect();
    assert_eq!(imported.len(), 1, "{list}");
    let id = imported[0]["id"].as_str().unwrap();
    world.run(&["pin", "blog", id]).ok();
    world.run(&["unpin", "blog", id]).ok();
    world.run(&["verify", "blog", id]).ok();
    world.run(&["delete", "blog", id, "--yes"]).ok();
    world.run(&["vault", "prune"]).ok();
    world.run(&["vault", "check", "--read-data"]).ok();
}

#[test]
fn a_machine_that_never_saw_the_container_restores_from_it() {
    let world = changed();
    let from = ["restore", "--container", "./out", "--name", "blog_1"];
    let made = world.run_at("blank", &[&from[..], &["--to", "fresh"]].concat()).ok();
    world.assert_same(world.path("then"), world.path("blank/sites/fresh"));
    assert!(made.stderr.contains("signed by a server that is not known here"), "{made:?}");
    world.run_at("blank", &["restore", "--file", "out/blog_1.zip", "--directory", "dir"]).ok();
    world.assert_same(world.path("then"), world.path("dir"));
    world
        .run_at("blank", &["restore", "blog", "--file", "out/blog_1.zip", "--yes"])
        .fails("TargetUnusable", 1);

    // Under its own name, which the machine knows by the point alone.
    world.run_at("blank", &[&from[..], &["--to", "blog"]].concat()).ok();
    world.assert_same(world.path("then"), world.path("blank/sites/blog"));
    world.write("blank/sites/blog/index.html", b"changed");
    world.run_at("blank", &["restore", "blog", "--file", "out/blog_1.zip", "--yes"]).ok();
    world.assert_same(world.path("then"), world.path("blank/sites/blog"));
    world.run_at("blank", &[&from[..], &["--to", "blog", "--directory", "x"]].concat()).fails("Usage", 2);

    // What cannot be done leaves nothing.
    let none = world.run_at("other", &["restore", "bolg", "--file", "out/blog_1.zip", "--yes"]);
    none.fails("AppNotFound", 4);
    assert!(!world.run_at("other", &["list"]).ok().stdout.contains("bolg"));
    world.run_at("other", &[&from[..], &["--to", "x", "--dry-run"]].concat()).fails("Usage", 2);
    world.run(&["restore", "blog", "latest", "--file", "out/blog_1.zip"]).fails("Usage", 2);
    world.run(&["import", "--container", "./out"]).fails("Usage", 2);
    world.run(&["import", "--container", "./out", "--name", "none"]).fails("SourceNotFound", 4);
    world.run(&["export", "blog"]).fails("Usage", 2);
    world.run(&["export", "blog", "--directory", "o", "--name", "../x"]).fails("InvalidValue", 2);
    world.run(&["export", "blog", "--directory", "o", "--recipient", "age1x"]).fails("InvalidValue", 2);
}

#[test]
fn what_is_told_of_archives() {
    let world = changed();
    let mut told = String::new();
    let mut run = |words: &str| {
        let args: Vec<&str> = words.split(' ').collect();
        told.push_str(&world.run(&args).told(&world, words));
    };
    run("import out/blog_1.zip");
    run("import out/blog_1.zip");
    run("import out/blog_1.zip --app shop");
    run("show shop");
    run("export shop --directory out --name shop_1");
    run("export shop --directory out --name shop_1");
    std::fs::remove_file(world.path("out/blog_1.xml")).unwrap();
    run("import out/blog_1.zip --app more");
    run("import out/blog_1.zip --app more --accept-unverified");
    let mut bytes = std::fs::read(world.path("out/shop_1.zip")).unwrap();
    bytes[60] ^= 1;
    std::fs::write(world.path("out/shop_1.zip"), bytes).unwrap();
    run("import out/shop_1.zip --app more");
    assert_text!("archives", told);
}

#[test]
fn restic_reads_what_was_brought_in() {
    let world = World::new();
    // What restic itself loses of odder trees is the business of the vault's witnesses.
    small(&world.path("odd"), 5, 300);
    world.run_at("elsewhere", &["backup", "odd"]).ok();
    world.run_at("elsewhere", &["export", "odd", "--directory", "out", "--name", "odd"]).ok();
    world.run(&["import", "out/odd.zip"]).ok();
    world.run(&["restore", "odd", "--directory", "ours"]).ok();
    world.assert_same(world.path("odd"), world.path("ours"));
    let text = std::fs::read_to_string(world.path("home/secrets.json")).unwrap();
    let secrets: serde_json::Value = serde_json::from_str(&text).unwrap();
    let restic = Restic::new(world.path("home/vault"), secrets["vault_password"].as_str().unwrap());
    assert!(restic.check_read_data().is_ok());
    restic.restore("latest", &world.path("theirs")).ok();
    // restic keeps nothing about the root of a tree, and old ones restore no holes.
    let options = compare::Options { root: false, holes: false, ..compare::Options::default() };
    let differences = compare::trees(&world.path("odd"), &world.path("theirs/content"), &options);
    assert!(differences.is_empty(), "{differences:#?}");
}
