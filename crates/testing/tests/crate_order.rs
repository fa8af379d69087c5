//! The order of the crates: each uses only crates above it, so an edit is felt only below.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test's helpers")]

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::Value;

/// From the top to the bottom, with the crates that each may use.
const ORDER: [(&str, &[&str]); 11] = [
    ("model", &[]),
    ("tree", &["model"]),
    // The local folder's system calls go through the tree's seam.
    ("storage", &["model", "tree"]),
    ("vault", &["model", "tree", "storage"]),
    ("archive", &["model", "tree", "storage"]),
    ("database", &["model"]),
    ("catalog", &["model"]),
    ("platform", &["model", "tree"]),
    ("engine", &["model", "tree", "storage", "vault", "archive", "database", "catalog", "platform"]),
    ("cli", &["model", "tree", "storage", "vault", "archive", "database", "catalog", "platform", "engine"]),
    ("testing", &[]),
];

/// Crates of this workspace with the ones of it they use outside of tests.
fn used() -> BTreeMap<String, Vec<String>> {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.toml");
    let out = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1", "--manifest-path", manifest])
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let metadata: Value = serde_json::from_slice(&out.stdout).unwrap();
    let own = |name: &str| {
        if name == "backstay" { Some("cli") } else { name.strip_prefix("backstay-") }.map(str::to_owned)
    };
    let packages = metadata["packages"].as_array().unwrap();
    packages
        .iter()
        .map(|package| {
            let dependencies = package["dependencies"].as_array().unwrap();
            let used =
                dependencies.iter().filter(|d| d["kind"] != "dev").filter_map(|d| own(d["name"].as_str()?));
            (own(package["name"].as_str().unwrap()).expect("crates are named backstay-…"), used.collect())
        })
        .collect()
}

#[test]
fn crates_use_only_crates_above_them() {
    let allowed: BTreeMap<&str, &[&str]> = ORDER.into();
    let used = used();
    assert!(used.len() >= 9, "only {} crates were found", used.len());
    for (name, uses) in &used {
        let may =
            allowed.get(name.as_str()).unwrap_or_else(|| panic!("crate {name} has no place in the order"));
        for other in uses {
            assert!(may.contains(&other.as_str()), "crate {name} must not use {other}");
        }
    }
}

#[test]
fn the_order_itself_has_no_way_up() {
    for (at, (name, uses)) in ORDER.iter().enumerate() {
        for other in *uses {
            let above = ORDER.iter().take(at).any(|(n, _)| n == other);
            assert!(above, "{name} uses {other}, which is not above it");
        }
    }
}
