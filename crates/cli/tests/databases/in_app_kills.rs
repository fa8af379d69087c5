//! Restores of an app with a MariaDB of its own, killed all over: afterwards files and database are on one side, the server runs or
//! not as it did before, and of a new app there is all or nothing.
//!
//! `BACKSTAY_KILLS` says how many; by default a few.

use std::collections::BTreeMap;

use crate::in_app::Blog;
use crate::kill::{Spread, duration};

const KILLS: u32 = 12;

fn kills() -> u32 {
    std::env::var("BACKSTAY_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(KILLS)
}

#[test]
fn killed_restores_leave_files_and_the_own_database_on_one_side() {
    for runs in [true, false] {
        let blog = Blog::started();
        let mut points = BTreeMap::new();
        for version in ["A", "B"] {
            blog.set(version);
            points.insert(version.to_owned(), blog.backup());
        }
        let mut now = "B".to_owned();
        let mut spread = Spread::new(kills() / 2, if runs { 3 } else { 4 });
        let mut tally: BTreeMap<&str, u32> = BTreeMap::new();
        while spread.goes_on() {
            if !runs {
                blog.world.ok(&["app", "stop", "blog"]);
            }
            let other = |now: &str| if now == "A" { "B".to_owned() } else { "A".to_owned() };
            let restore =
                |to: &str| ["restore", "blog", &points[to], "--with-databases", "--yes"].map(str::to_owned);
            for _ in 0..spread.to_measure().min(3) {
                now = other(&now);
                let words = restore(&now);
                spread.measured(duration(&blog.world, &words.each_ref().map(String::as_str)));
            }
            let to = other(&now);
            let words = restore(&to);
            let blow = spread.strike(&blog.world, &words.each_ref().map(String::as_str));
            let noted = std::fs::read_dir(blog.world.path("home/exchanges")).into_iter().flatten().count();
            let phase = match (blow.late, noted) {
                (true, _) => "too late",
                (_, 0) => "before the note or after the end",
                _ => "after the note",
            };
            *tally.entry(phase).or_default() += 1;
            // Any command goes on with what was left.
            blog.world.ok(&["job", "list"]);
            assert_eq!(std::fs::read_dir(blog.world.path("home/exchanges")).into_iter().flatten().count(), 0);
            if !runs {
                // A backup of the stopped app, which also stops a server that a kill has left running.
                blog.world.ok(&["connection", "check", "blog"]);
                assert_eq!(blog.server("blog"), None, "{phase}");
                blog.world.ok(&["app", "start", "blog"]);
            }
            let [files, database] = blog.versions();
            assert!(files == database, "files {files}, database {database} after a kill {phase}");
            assert!(files == now || files == to);
            assert_eq!(blog.page("SELECT COUNT(*) FROM long_posts"), "200\n");
            assert_eq!(blog.left(), "", "{phase}");
            now = files;
        }
        println!(
            "the app runs: {runs}, restores of {:.0} ms, killed: {tally:?}",
            spread.span().as_secs_f64() * 1e3
        );
    }
}

#[test]
fn killed_restores_to_a_new_app_leave_all_of_it_or_nothing() {
    let blog = Blog::started();
    let point = blog.backup();
    let mut spread = Spread::new(kills() / 2, 5);
    let mut tally: BTreeMap<&str, u32> = BTreeMap::new();
    let mut number = 0;
    let words = |name: &str| ["restore", "blog", &point, "--to", name, "--with-databases"].map(str::to_owned);
    while spread.goes_on() {
        for _ in 0..spread.to_measure().min(1) {
            number += 1;
            let words = words(&format!("copy{number}"));
            spread.measured(duration(&blog.world, &words.each_ref().map(String::as_str)));
        }
        number += 1;
        let name = format!("copy{number}");
        let killed = words(&name);
        let blow = spread.strike(&blog.world, &killed.each_ref().map(String::as_str));
        let next = blog.world.run(&["job", "list"]).ok();
        let known = blog.world.run(&["app", "show", &name]).status == 0;
        let what = match (blow.late, known) {
            (true, _) => "too late",
            (_, true) => "there",
            (_, false) => "nothing",
        };
        *tally.entry(what).or_default() += 1;
        for folder in ["arriving", "exchanges"] {
            let left: Vec<_> = std::fs::read_dir(blog.world.path("home").join(folder))
                .into_iter()
                .flatten()
                .flatten()
                .collect();
            assert!(left.is_empty(), "{what}: {left:?} {next:?}");
        }
        if !known {
            assert!(!blog.folder(&name).exists(), "{what}");
            assert!(!blog.world.path("home/sites").join(&name).exists());
            // The name is free.
            blog.world.ok(&killed.each_ref().map(String::as_str));
        }
        let backup = blog.world.ok(&["backup", &name]);
        assert!(backup.contains("2 tables, 201 rows"), "{what}: {backup}");
        assert_eq!(blog.server(&name), None, "{what}");
        assert!(!blog.folder(&name).join("arriving").exists());
    }
    println!("restores to a new app of {:.0} ms, killed: {tally:?}", spread.span().as_secs_f64() * 1e3);
}
