//! Several processes on one state.

use crate::{Ran, World};

fn together(world: &World, commands: &[Vec<&str>]) -> Vec<Ran> {
    let children: Vec<_> = commands
        .iter()
        .map(|args| {
            let mut command = world.command(args);
            command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap()
        })
        .collect();
    children.into_iter().map(|c| Ran::of(c.wait_with_output().unwrap())).collect()
}

#[test]
fn first_backups_at_once_make_one_vault() {
    let world = World::new();
    let names = ["a", "b", "c", "d", "e", "f"];
    for name in names {
        world.write(&format!("{name}/file"), name.as_bytes());
    }
    let commands: Vec<Vec<&str>> = names.iter().map(|n| vec!["backup", n]).collect();
    let ran = together(&world, &commands);
    ran.into_iter().for_each(|r| drop(r.ok()));
    for name in names {
        assert_eq!(world.ok(&["cat", name, "latest", "file"]), name);
    }
    assert_eq!(std::fs::read_dir(world.path("home/vault/keys")).unwrap().count(), 1, "one vault, one key");
}

#[test]
fn of_backups_of_one_app_at_once_one_works_and_the_others_say_so() {
    let world = World::with_blog();
    world.run(&["backup", "blog"]).ok();
    let commands: Vec<Vec<&str>> = (0..6).map(|_| vec!["backup", "blog"]).collect();
    let ran = together(&world, &commands);
    let done = ran.iter().filter(|r| r.status == 0).count();
    for other in ran.into_iter().filter(|r| r.status != 0) {
        other.fails("AppBusy", 1);
    }
    assert!(done >= 1);
    assert_eq!(world.points("blog").len(), 1 + done);
    world.run(&["verify", "blog"]).ok();
}

#[test]
fn readers_work_beside_writers() {
    let world = World::with_blog();
    world.run(&["backup", "blog"]).ok();
    let commands: Vec<Vec<&str>> = vec![
        vec!["backup", "blog"],
        vec!["list"],
        vec!["verify", "blog"],
        vec!["files", "blog", "-r"],
        vec!["restore", "blog", "--directory", "out"],
        vec!["status"],
        vec!["job", "list"],
    ];
    together(&world, &commands).into_iter().for_each(|r| drop(r.ok()));
}
