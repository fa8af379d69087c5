//! `backstay retention` as a user meets it.

use crate::World;

#[test]
fn the_simulation_shows_what_the_policy_keeps_without_any_state() {
    let world = World::new();
    let shown = world.json(&["retention", "simulate"]);
    assert_eq!(shown["kept"].as_array().unwrap().len(), 224);
    assert_eq!((shown["hours"].as_u64(), shown["steady"]["least"].as_u64()), (Some(2_160), Some(224)));
    let few = world.json(&["retention", "simulate", "--hours", "100"]);
    assert_eq!(few["counts"]["hourly"].as_u64(), Some(72));
    let text = world.run(&["retention", "simulate"]).ok().stdout;
    assert!(
        text.contains("224 of 2,160 hourly points stay: 72 of the first 3 days, 88 until 14 days"),
        "{text}"
    );
    assert!(text.ends_with("From day 31 on there were 224 at every hour\n"), "{text}");
    world.run(&["retention", "simulate", "--hours", "0"]).fails("Usage", 2);
    assert!(!world.path("home").exists(), "looking makes nothing");
}

#[test]
fn applying_keeps_what_is_young_and_what_a_person_took() {
    let world = World::with_blog();
    assert_eq!(world.run(&["retention", "apply"]).ok().stdout, "");
    world.run(&["retention", "apply", "nobody"]).fails("AppNotFound", 4);
    world.run(&["backup", "blog"]).ok();
    for args in [&["retention", "apply", "--dry-run"][..], &["retention", "apply", "blog"]] {
        let text = world.run(args).ok().stdout;
        assert!(text.starts_with("blog: 0 points"), "{text}");
    }
    let result = world.json(&["retention", "apply"]);
    assert_eq!((result["apps"][0]["kept"].as_u64(), result["held"].is_null()), (Some(1), true));
}
