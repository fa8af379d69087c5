//! An app that writes files and the rows that name them, and deletes some, while points are taken: after a restore no row
//! names a file that is not there, but those that the report lists.
//!
//! `BACKSTAY_UPLOAD_RUNS` says how many points; by default a few.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::Shop;

#[test]
fn no_row_names_a_file_that_is_missing_and_not_reported() {
    let runs: u32 = std::env::var("BACKSTAY_UPLOAD_RUNS").ok().and_then(|n| n.parse().ok()).unwrap_or(6);
    let shop = Shop::new();
    shop.world.ok(&["app", "set", "shop", "--without-database", "orders"]);
    shop.world.ok(&["app", "set", "shop", "--reference", "main", "SELECT path FROM files", "files"]);
    shop.pg.psql("shop", "SET ROLE web; CREATE TABLE files (path text PRIMARY KEY);");
    std::fs::create_dir_all(shop.world.path("shop/files")).unwrap();
    let over = AtomicBool::new(false);
    let mut dangling = 0;
    std::thread::scope(|scope| {
        let _ends = Over(&over);
        scope.spawn(|| upload(&shop, &shop.world.path("shop/files"), 40, &over));
        for run in 0..runs {
            let ran = shop.world.run(&["backup", "shop"]).ok();
            let show = shop.world.json(&["show", "shop"]);
            let told: Vec<String> = show["manifest"]["problems"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|p| p["kind"] == "dangling")
                .map(|p| p["detail"].as_str().unwrap().to_owned())
                .collect();
            dangling += compare(&shop, "shop", run, &told, &ran.stderr);
        }
    });
    println!(
        "{runs} points while files and rows came and went: {dangling} rows without a file, each reported"
    );
}

/// Ends what goes on until it is over, also when a test fails.
pub(crate) struct Over<'o>(pub(crate) &'o AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Writes the file, then the row; deletes the row, then the file, when so many more were written. Goes on until it is over.
pub(crate) fn upload(shop: &Shop, folder: &Path, keep: u64, over: &AtomicBool) {
    let mut number = 0_u64;
    while !over.load(Ordering::Relaxed) {
        let mut script = String::new();
        let names: Vec<String> = (0..10).map(|n| format!("{}.txt", number + n)).collect();
        for name in &names {
            std::fs::write(folder.join(name), name).unwrap();
            script.push_str(&format!("INSERT INTO files VALUES ('{name}');\n"));
        }
        shop.pg.psql("shop", &script);
        if number >= keep {
            let gone: Vec<String> = (0..10).map(|n| format!("{}.txt", number - keep + n)).collect();
            let list = gone.iter().map(|name| format!("'{name}'")).collect::<Vec<_>>().join(",");
            shop.pg.psql("shop", &format!("DELETE FROM files WHERE path IN ({list});"));
            gone.iter().for_each(|name| std::fs::remove_file(folder.join(name)).unwrap());
        }
        number += 10;
    }
}

/// Restores the newest point beside the app, files and database; gives how many rows name nothing.
pub(crate) fn compare(shop: &Shop, of: &str, run: u32, told: &[String], stderr: &str) -> usize {
    let (app, file) = (format!("copy{run}"), format!("place{run}"));
    shop.world.write(&file, shop.pg_address(&app).as_bytes());
    let place = format!("main=@{}", shop.world.path(&file).display());
    shop.world.ok(&["restore", of, "--to", &app, "--with-databases", "--database", &place]);
    let rows = shop.pg.psql(&app, "SELECT path FROM files;");
    let home = shop.world.path(&format!("home/sites/{app}/files"));
    let missing: Vec<&str> = rows.lines().filter(|path| !home.join(path).exists()).collect();
    for path in &missing {
        // A report names the first twenty and counts the rest.
        assert!(told.iter().any(|t| t.contains(path) || t.contains(" more")), "{path}: {told:?} {stderr}");
    }
    shop.pg.psql("postgres", &format!("DROP DATABASE {app};"));
    shop.world.ok(&["app", "remove", &app, "--yes"].map(|w| w));
    std::fs::remove_dir_all(home.parent().unwrap()).unwrap();
    missing.len()
}
