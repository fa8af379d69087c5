//! A world with an app, the points that it must hold, and copies of what was backed up.

use std::collections::BTreeSet;
use std::process::Command;

use backstay_testing::fixtures::Random;
use tempfile::TempDir;

use crate::World;
use crate::calls::Scene;
use crate::kill::Blow;
use crate::phase::{Disk, job_of};

/// Points with the copies of the tree they were taken from: `copies/NAME`.
pub(crate) struct Site {
    pub(crate) world: World,
    /// Oldest first: the point's id and the name of its copy.
    pub(crate) held: Vec<(String, String)>,
    random: Random,
    rounds: u32,
    kills: u32,
    /// Bytes of each of the large files.
    media: usize,
}

/// The commands that take their turn as the first after a kill. `OLDEST` and `COPY` are replaced.
const NEXT: &[&str] = &[
    "list",
    "backup blog",
    "vault check",
    "vault prune",
    "verify blog OLDEST",
    "status",
    "restore blog OLDEST --directory out",
    "delete blog OLDEST --yes",
    "vault stats",
    "pin blog OLDEST",
    "job list",
    "vault repair",
    "files blog OLDEST -r",
    "cat blog OLDEST pages/0/0.php",
    "diff blog",
    "vault copy second-COPY",
    "vault unlock",
];

impl Site {
    /// An app whose points share some data and have some of their own, in packs that are used in part.
    pub(crate) fn new(dir: TempDir, seed: u64, media: usize) -> Self {
        let world = World::within(dir);
        let mut site =
            Site { world, held: Vec::new(), random: Random::new(seed), rounds: 0, kills: 0, media };
        for n in 0..60 {
            let text = site.random.text(2_000);
            site.world.write(&format!("blog/pages/{}/{n}.php", n % 7), &text);
        }
        for _ in 0..3 {
            site.change();
            site.world.run(&["backup", "blog"]).ok();
            site.take_note();
        }
        site
    }

    /// Changes the app's folder: some files are new, some differ, one is gone.
    pub(crate) fn change(&mut self) {
        self.rounds += 1;
        for n in 0..2 {
            let bytes = self.random.bytes(self.media);
            self.world.write(&format!("blog/media/{n}.jpg"), &bytes);
        }
        let text = self.random.text(2_500);
        self.world.write(&format!("blog/pages/3/{}.php", self.random.below(60)), &text);
        self.world.write(&format!("blog/kept/{}.png", self.rounds), &self.random.bytes(20_000));
        if self.rounds > 4 {
            std::fs::remove_file(self.world.path(&format!("blog/kept/{}.png", self.rounds - 4))).unwrap();
        }
    }

    /// The points there are now, new ones with a copy of the folder as it is. Gives how many are new.
    pub(crate) fn take_note(&mut self) -> usize {
        let mut now = self.world.points("blog");
        now.reverse();
        self.held.retain(|(id, _)| now.contains(id));
        let new: Vec<_> = now.iter().filter(|id| self.held.iter().all(|(known, _)| known != *id)).collect();
        if !new.is_empty() {
            let copy = format!("copies/{}", self.rounds);
            if !self.world.path(&copy).exists() {
                copy_tree(&self.world, "blog", &copy);
            }
            self.held.extend(new.iter().map(|id| ((*id).clone(), copy.clone())));
        }
        new.len()
    }

    /// The first command after a kill, another kind each time; it must work. Gives what it was.
    pub(crate) fn next_command(&mut self) -> &'static str {
        let words = NEXT[self.kills as usize % NEXT.len()];
        self.kills += 1;
        let (oldest, number) = (self.oldest(), self.kills.to_string());
        let text = words.replace("OLDEST", &oldest).replace("COPY", &number);
        let args: Vec<&str> = text.split(' ').collect();
        let ran = self.world.run(&args);
        // A backup that was killed is not well, and `status` says so.
        assert!(ran.status == 0 || (words == "status" && ran.status == 1), "{ran:#?}");
        match args[0] {
            "pin" => drop(self.world.run(&["unpin", "blog", &oldest]).ok()),
            "restore" => {
                self.world.assert_same(self.world.path(&self.held[0].1), self.world.path("out"));
                remove(&self.world, "out");
            }
            "vault" if args[1] == "copy" => remove(&self.world, args[2]),
            _ => {}
        }
        words
    }

    /// The oldest point.
    fn oldest(&self) -> String {
        self.held[0].0.clone()
    }

    /// What must hold after every kill and the first command after it. Gives the state of the killed job.
    pub(crate) fn holds(&mut self, blow: Blow) -> Option<String> {
        let state = job_of(&self.world, blow.process);
        let left = Disk::of(&self.world).making;
        assert!(left.is_empty(), "files in the making stay: {left:?}");
        match self.kills % 10 {
            0 => self.world.run(&["vault", "check", "--read-data"]).ok(),
            _ => self.world.run(&["vault", "check"]).ok(),
        };
        let sample = usize::try_from(self.random.below(self.held.len() as u64)).unwrap();
        self.world.run(&["verify", "blog", &self.held[sample].0]).ok();
        if self.kills.is_multiple_of(25) {
            self.restore_all();
        }
        state
    }

    /// Every point comes out as it was backed up.
    pub(crate) fn restore_all(&self) {
        for (id, copy) in &self.held {
            self.world.run(&["restore", "blog", id, "--directory", "out"]).ok();
            self.world.assert_same(self.world.path(copy), self.world.path("out"));
            remove(&self.world, "out");
        }
    }

    /// Deletes old points and their copies, and frees their space.
    pub(crate) fn tidy(&mut self) {
        while self.held.len() > 5 {
            let oldest = self.oldest();
            self.world.run(&["delete", "blog", &oldest, "--yes"]).ok();
            self.take_note();
        }
        for entry in std::fs::read_dir(self.world.path("copies")).unwrap().flatten() {
            let name = format!("copies/{}", entry.file_name().to_str().unwrap());
            if self.held.iter().all(|(_, copy)| *copy != name) {
                remove(&self.world, &name);
            }
        }
    }
}

/// A site whose state is put back before each kill, so that there is the same to do every time.
pub(crate) struct Template {
    pub(crate) site: Site,
    held: Vec<(String, String)>,
    /// The packs that a prune of it removes.
    pub(crate) going: BTreeSet<String>,
}

impl Template {
    /// Eight points were taken, three are there.
    pub(crate) fn new(dir: TempDir, seed: u64) -> Self {
        let mut site = Site::new(dir, seed, 500_000);
        for _ in 0..5 {
            site.change();
            site.world.run(&["backup", "blog"]).ok();
            site.take_note();
        }
        for point in [6, 4, 3, 1, 0] {
            let id = site.held[point].0.clone();
            site.world.run(&["delete", "blog", &id, "--yes"]).ok();
        }
        site.take_note();
        let plan = &site.world.json(&["vault", "prune", "--dry-run"])["plan"];
        let ids =
            |name: &str| plan[name].as_array().unwrap().iter().map(|p| p["id"].clone()).collect::<Vec<_>>();
        let (whole, partly) = (ids("delete"), ids("repack"));
        assert!(!whole.is_empty() && !partly.is_empty(), "there is something to delete and to move: {plan}");
        let going = whole.iter().chain(&partly).map(|id| id.as_str().unwrap().to_owned()).collect();
        // What a backup of the template has to do.
        site.change();
        copy_tree(&site.world, "home", "template");
        let held = site.held.clone();
        Template { site, held, going }
    }
}

impl Scene for Template {
    type Before = Disk;

    fn world(&self) -> &World {
        &self.site.world
    }

    /// Puts the state back, and syncs it, so that the next command does not wait for what was copied.
    fn reset(&mut self) -> Disk {
        remove(&self.site.world, "home");
        copy_tree(&self.site.world, "template", "home");
        rustix::fs::syncfs(std::fs::File::open(self.site.world.path("home")).unwrap()).unwrap();
        self.site.held.clone_from(&self.held);
        Disk::of(&self.site.world)
    }
}

fn copy_tree(world: &World, from: &str, to: &str) {
    let to = world.path(to);
    std::fs::create_dir_all(to.parent().unwrap()).unwrap();
    let out = Command::new("cp").arg("-a").arg(world.path(from)).arg(to).output().unwrap();
    assert!(out.status.success(), "{out:?}");
}

fn remove(world: &World, name: &str) {
    std::fs::remove_dir_all(world.path(name)).unwrap();
}
