//! The first command on a fresh machine, and those after it.

use std::os::unix::fs::PermissionsExt as _;

use crate::{World, assert_text};

#[test]
fn the_first_backup_makes_everything_and_says_where() {
    let world = World::with_blog();
    // What was written a moment ago is read again next time, since it could change within the same second.
    std::thread::sleep(std::time::Duration::from_millis(1_200));
    let first = world.run(&["backup", "blog"]).ok();
    assert_text!("first_backup", first.told(&world, "backup blog"));
    for (file, mode) in
        [("home", 0o700), ("home/secrets.json", 0o600), ("home/hosting.db", 0o600), ("home/vault", 0o700)]
    {
        let found = world.path(file).metadata().unwrap().permissions().mode() & 0o7777;
        assert_eq!(found, mode, "{file}: {found:o}");
    }
    let secrets = std::fs::read(world.path("home/secrets.json")).unwrap();

    let second = world.run(&["backup", "blog"]).ok();
    assert!(second.stdout.contains("2 unchanged"), "{second:?}");
    assert_eq!(second.stderr, "", "a second backup has nothing to explain");
    assert_eq!(world.points("blog").len(), 2);
    assert_eq!(std::fs::read(world.path("home/secrets.json")).unwrap(), secrets);
}

#[test]
fn commands_that_find_nothing_name_the_state_and_make_nothing() {
    let world = World::new();
    let mut told = String::new();
    for words in [
        "list",
        "status",
        "job list",
        "list blog",
        "restore blog --directory out",
        "vault check",
        "vault key list",
        "backup nowhere",
        "verify blog",
        "kit export kit.age",
    ] {
        let args: Vec<&str> = words.split(' ').collect();
        let input = "correct horse battery\n";
        told.push_str(&world.run_with("home", &args, input).told(&world, words));
        told.push('\n');
        assert!(!world.path("home").exists(), "`{words}` made the state");
    }
    assert_text!("nothing_yet", told);
}

#[test]
fn the_vault_can_lie_elsewhere_from_the_first_backup_on() {
    let world = World::with_blog();
    world.run(&["backup", "blog", "--vault", "elsewhere/v"]).ok();
    assert!(world.path("elsewhere/v/config").exists());
    assert!(!world.path("home/vault").exists());
    world.run(&["backup", "blog"]).ok();
    assert_eq!(world.points("blog").len(), 2, "later commands find it by themselves");

    // It is noted in the state, the configuration may say otherwise, the command line decides.
    std::fs::rename(world.path("elsewhere/v"), world.path("moved")).unwrap();
    let lost = world.run(&["list"]).fails("VaultNotFound", 4);
    assert!(lost.stderr.contains("elsewhere/v"), "{lost:?}");
    world.run(&["backup", "blog"]).fails("VaultNotFound", 4);
    assert!(!world.path("elsewhere/v/config").exists(), "no empty vault takes its place");
    world.run(&["list", "--vault", "moved"]).ok();
    world.write("home/backstay.toml", format!("vault = {:?}\n", world.path("moved")).as_bytes());
    assert_eq!(world.points("blog").len(), 2);
}

#[test]
fn a_place_that_holds_other_things_is_no_vault() {
    let world = World::with_blog();
    world.write("docs/letter.txt", b"dear");
    world.run(&["backup", "blog", "--vault", "docs"]).fails("Conflict", 1);
    assert_eq!(std::fs::read_dir(world.path("docs")).unwrap().count(), 1, "nothing was put there");
    // Another place right afterwards works: nothing of the failed try binds.
    world.run(&["backup", "blog", "--vault", "v"]).ok();
}

#[test]
fn backstays_own_folders_are_no_app_and_are_left_out_of_one() {
    let world = World::with_blog();
    let home = world.path("blog/.backstay");
    let inside = home.strip_prefix(world.path("")).unwrap().to_str().unwrap();
    let run = |args: &[&str]| world.run_at(inside, args);
    let first = run(&["backup", "blog"]).ok();
    assert!(first.stderr.contains(".backstay"), "what is left out is told: {first:?}");
    run(&["backup", "blog"]).ok();
    let files = run(&["files", "blog", "latest", "--recursive"]).ok().stdout;
    assert!(!files.contains("secrets.json") && files.contains("index.html"), "{files}");
    run(&["backup", "blog/.backstay"]).fails("Conflict", 1);
    run(&["backup", "blog/.backstay/vault"]).fails("Conflict", 1);
}

#[test]
fn names_win_over_folders_and_folders_are_one_app() {
    let world = World::with_blog();
    world.write("other/blog/x", b"1");
    world.run(&["backup", "blog"]).ok();
    world.run(&["backup", "other/blog"]).ok();
    assert_eq!(world.points("blog-2").len(), 1, "a folder of the same name is another app");
    let other =
        world.command_at("home", ["backup", "blog"]).current_dir(world.path("other")).output().unwrap();
    crate::Ran::of(other).ok();
    assert_eq!(world.points("blog").len(), 2, "`blog` is the app, wherever one stands");
    world.run(&["backup", "other/blog", "--app", "blog"]).fails("Conflict", 1);
    world.run(&["backup", "blog", "--app", "shop"]).fails("Usage", 2);
    world.run(&["backup", "./blog", "--app", "Shop!"]).fails("InvalidValue", 2);
    world.run(&["backup", "nowhere"]).fails("SourceNotFound", 4);
    world.run(&["backup", "blog/index.html"]).fails("SourceNotFound", 4);
}
