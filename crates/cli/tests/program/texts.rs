//! The texts of errors, as a person reads them.

use crate::{World, assert_text};

#[test]
fn errors_read_well() {
    let world = World::with_blog();
    world.run(&["backup", "blog"]).ok();
    world.write("home2/backstay.toml", b"vualt = \"x\"\n");
    let mut told = String::new();
    let cases = [
        "frobnicate",
        "list --wrong",
        "restore blog --directory blog",
        "list blgo",
        "show blog latest~5",
        "show blog 00000000",
        "show blog tomorrow",
        "cat blog latest nothing",
        "cat blog latest img",
        "delete blog latest",
        "backup nowhere",
        "backup ./blog --app Blog",
        "backup home/vault",
        "job show 12345678",
        "job cancel 12345678",
        "vault init",
        "vault attach nowhere --password-file nothing",
        "list --vault nowhere",
        "list --vault s3:secret@bucket",
        "list --home home2",
        "kit open nothing.age",
        "vault key remove 12345678 --yes",
    ];
    for words in cases {
        let args: Vec<&str> = words.split(' ').collect();
        let ran = world.run_with("home", &args, "some password\n");
        assert_ne!(ran.status, 0, "`{words}` ended well");
        assert_eq!(ran.stdout, "", "`{words}`");
        assert!(!ran.stderr.contains("secret@"), "{ran:?}");
        told.push_str(&ran.told(&world, words));
        told.push('\n');
    }
    assert_text!("errors", told);
}

#[test]
fn completions_exist_for_every_shell() {
    let world = World::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = world.ok(&["completions", shell]);
        assert!(script.contains("backstay") && script.contains("restore"), "{shell}");
    }
    assert!(!world.path("home").exists());
    let version = world.ok(&["--version"]);
    assert!(version.starts_with("backstay "), "{version}");
    assert!(world.ok(&["--help"]).contains("backup"));
    world.run(&[]).ends(2);
}

#[test]
fn on_a_terminal_questions_are_asked_and_obeyed() {
    let world = World::with_blog();
    world.run(&["backup", "blog"]).ok();
    for (answer, left) in [("n", 1), ("", 1), ("y", 0)] {
        // `script` gives the program a terminal.
        let mut script = std::process::Command::new("script");
        script.args(["-qec", &format!("{} delete blog latest", env!("CARGO_BIN_EXE_backstay")), "/dev/null"]);
        script.current_dir(world.path("")).env("BACKSTAY_HOME", world.path("home")).env("TERM", "xterm");
        script.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let mut child = script.spawn().unwrap();
        std::io::Write::write_all(child.stdin.as_mut().unwrap(), format!("{answer}\n").as_bytes()).unwrap();
        let shown = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
        assert!(shown.contains("for good? [y/N]"), "{shown}");
        assert_eq!(world.points("blog").len(), left, "after `{answer}`");
    }
}
