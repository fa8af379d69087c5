//! Restores to a new app with databases of its own, killed all over: afterwards there is all of it, or nothing, and never do its connections
//! lead to the databases of the app that it is a copy of.
//!
//! `BACKSTAY_KILLS` says how many kills are spread over time, a third of it by default; `BACKSTAY_EVERY_CALL` kills after each system call
//! that changes something, not only after some of the last ones.

use std::collections::BTreeMap;

use crate::Shop;
use crate::kill::{Blow, Spread, at_call, duration, tracing};

const KILLS: u32 = 24;
/// The last calls of a restore, where the app becomes known and its databases its own.
const LAST: usize = 60;
const SAMPLES: usize = 10;

struct Copies {
    shop: Shop,
    point: String,
    content: Vec<String>,
    number: u32,
    tally: BTreeMap<&'static str, u32>,
}

impl Copies {
    fn new() -> Self {
        let shop = Shop::new();
        let point = shop.backup();
        shop.set("B");
        let content = shop.content();
        Copies { shop, point, content, number: 0, tally: BTreeMap::new() }
    }

    /// The words of a restore to a new app that nobody has heard of.
    fn next(&mut self) -> Vec<String> {
        self.number += 1;
        let (name, at) = (self.name(), |file: &str| format!("@{}", self.shop.world.path(file).display()));
        self.shop.world.write("pg.txt", self.shop.pg_address(&name).as_bytes());
        self.shop.world.write("my.txt", self.shop.maria_address(&format!("shop_bs_{name}")).as_bytes());
        let places = [format!("main={}", at("pg.txt")), format!("orders={}", at("my.txt"))];
        let words = ["restore", "shop", &self.point, "--to", &name, "--with-databases"].map(str::to_owned);
        let places = places.into_iter().flat_map(|place| ["--database".to_owned(), place]);
        words.into_iter().chain(places).collect()
    }

    fn name(&self) -> String {
        format!("copy{}", self.number)
    }

    /// After a kill of the restore that `next` gave last.
    fn judge(&mut self, words: &[String], blow: Blow) {
        let (world, name) = (&self.shop.world, self.name());
        let next = world.run(&["job", "list"]).ok();
        let known = world.run(&["app", "show", &name]).status == 0;
        let what = match (blow.late, known) {
            (true, _) => "too late",
            (_, true) => "there",
            (_, false) => "nothing",
        };
        *self.tally.entry(what).or_default() += 1;
        for folder in ["arriving", "exchanges"] {
            let left = std::fs::read_dir(world.path("home").join(folder)).into_iter().flatten().count();
            assert_eq!(left, 0, "{what}: {folder}, {next:?}");
        }
        if !known {
            assert_eq!(self.databases(), "", "{what}");
            assert!(!world.path("home/sites").join(&name).exists());
            // The name is free.
            world.ok(&words.iter().map(String::as_str).collect::<Vec<_>>());
        }
        let mine = format!("shop_bs_{name}");
        let links = world.json(&["connection", "list", &name]).to_string();
        for place in [&name, &mine] {
            assert!(links.contains(&format!("`{place}`")), "{what}: {links}");
        }
        assert_eq!(self.databases(), format!("{name}\n{mine}\n"), "{what}");
        assert_eq!(self.shop.pg.psql(&name, "SELECT v FROM version;"), "A\n", "{what}");
        assert_eq!(self.shop.maria.sql(&format!("SELECT v FROM {mine}.version;")), "A\n", "{what}");
        self.shop.assert_content(&self.content, what);
        self.shop.pg.psql("postgres", &format!("DROP DATABASE {name};"));
        self.shop.maria.sql(&format!("DROP DATABASE {mine};"));
        world.ok(&["app", "remove", &name, "--yes"]);
    }

    /// All databases that are not the shop's.
    fn databases(&self) -> String {
        self.shop
            .pg
            .psql("postgres", "SELECT datname FROM pg_database WHERE datname ~ 'copy|_bs_' ORDER BY 1;")
            + &self.shop.maria.sql("SHOW DATABASES LIKE '%\\_bs\\_%';")
    }
}

fn words(of: &[String]) -> Vec<&str> {
    of.iter().map(String::as_str).collect()
}

#[test]
fn killed_restores_to_a_new_app_leave_databases_of_its_own_or_nothing() {
    let kills: u32 = std::env::var("BACKSTAY_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(KILLS);
    let mut copies = Copies::new();
    let mut spread = Spread::new(kills / 3, 6);
    while spread.goes_on() {
        for _ in 0..spread.to_measure().min(2) {
            let next = copies.next();
            spread.measured(duration(&copies.shop.world, &words(&next)));
            copies.judge(&next, Blow { process: 0, late: true });
        }
        let next = copies.next();
        let blow = spread.strike(&copies.shop.world, &words(&next));
        copies.judge(&next, blow);
    }
    println!(
        "restores to a new app of {:.0} ms, killed: {:?}",
        spread.span().as_secs_f64() * 1e3,
        copies.tally
    );
}

#[test]
fn restores_to_a_new_app_killed_at_their_last_calls_leave_databases_of_its_own() {
    if let Err(why) = tracing() {
        println!("left out: {why}");
        return;
    }
    let mut copies = Copies::new();
    let next = copies.next();
    let (blow, calls) = at_call(&copies.shop.world, &words(&next), usize::MAX);
    copies.judge(&next, blow);
    copies.tally.clear();
    let every = std::env::var_os("BACKSTAY_EVERY_CALL").is_some();
    let (first, step) = if every { (1, 1) } else { (calls.saturating_sub(LAST), LAST / SAMPLES) };
    for number in (first..calls).step_by(step) {
        let next = copies.next();
        let (blow, _) = at_call(&copies.shop.world, &words(&next), number);
        copies.judge(&next, blow);
    }
    println!("restores to a new app of {calls} calls, killed from the {first}. on: {:?}", copies.tally);
}
