//! Other programs on our vault.

use backstay_testing::Restic;

use crate::World;

fn restic(world: &World) -> Restic {
    let text = std::fs::read_to_string(world.path("home/secrets.json")).unwrap();
    let secrets: serde_json::Value = serde_json::from_str(&text).unwrap();
    Restic::new(world.path("home/vault"), secrets["vault_password"].as_str().unwrap())
}

#[test]
fn restic_reads_what_we_wrote_and_its_snapshots_are_listed_and_restored() {
    let world = World::with_blog();
    world.run(&["backup", "blog"]).ok();
    let restic = restic(&world);
    assert!(restic.check_read_data().is_ok());
    assert_eq!(restic.snapshots()[0]["paths"][0], world.path("blog").to_str().unwrap());

    world.write("notes/todo", b"buy milk\n");
    restic.backup(&world.path("notes"), &[]);
    let listed = world.ok(&["list"]);
    assert!(listed.contains("foreign") && listed.contains("notes"), "{listed}");
    assert_eq!(world.points("blog").len(), 1, "it is no point of an app");
    let id = world.points("foreign")[0].clone();
    world.run(&["show", "foreign", &id]).ok();
    world.run(&["verify", "foreign"]).ok();
    world.run(&["restore", "foreign", &id, "--directory", "out"]).ok();
    assert_eq!(std::fs::read_to_string(world.path("out/todo")).unwrap(), "buy milk\n");
    world.run(&["pin", "foreign", &id]).fails("Conflict", 1);
    world.run(&["backup", "notes", "--app", "foreign"]).fails("InvalidValue", 2);
    world.run(&["delete", "foreign", &id, "--yes"]).ok();
    assert_eq!(restic.snapshots().len(), 1);
    assert!(restic.check_read_data().is_ok());
}

#[test]
fn snapshots_that_restic_forgets_are_gone_from_the_list() {
    let world = World::with_blog();
    for n in 0..3 {
        world.write("blog/n", &[n]);
        world.run(&["backup", "blog"]).ok();
    }
    restic(&world).forget_and_prune(1);
    assert_eq!(world.points("blog").len(), 1);
    world.run(&["verify", "blog"]).ok();
    world.run(&["backup", "blog"]).ok();
}
