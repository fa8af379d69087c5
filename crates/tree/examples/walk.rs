//! Walks a tree as a backup does without reading content, and prints what it saw: for profiles and `strace -c`.
//!
//! `cargo run --release -p backstay-tree --example walk -- PATH [open]`: with `open`, files are opened and their
//! attributes read too, as a first backup does.
#![allow(clippy::print_stdout)]

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Instant;

use backstay_tree::fs::{FileSystem, Host, Kind};
use backstay_tree::{Exclusions, Metadata, Owners, Trail, open_regular, scan};

fn main() -> std::io::Result<()> {
    let mut args = std::env::args_os().skip(1);
    let path = args.next().unwrap_or_else(|| OsString::from("."));
    let open = args.next().is_some();
    let (skip, owners, started) = (Exclusions::new(), Owners::new(), Instant::now());
    let mut trail = Trail::new(&Host, Host.open_root(Path::new(&path))?)?;
    let (mut entries, mut bytes, mut attributes) = (0u64, 0u64, 0usize);
    let mut levels: Vec<Vec<OsString>> = Vec::new();
    loop {
        let device = trail.device();
        let dir = trail.handle()?;
        let mut folders = Vec::new();
        for entry in scan(&Host, dir, &skip, device)?.entries {
            entries += 1;
            bytes += entry.stat.size;
            match entry.stat.kind {
                Kind::Dir => folders.push(entry.name),
                Kind::File if open => {
                    let (file, stat) = open_regular(&Host, dir, &entry.name, device)?;
                    let metadata = Metadata::of_handle(&Host, file.as_fd(), stat, &owners)?;
                    attributes += metadata.xattrs.len();
                }
                _ => {}
            }
        }
        levels.push(folders);
        let next = loop {
            match levels.last_mut().map(Vec::pop) {
                Some(Some(name)) => break Some(name),
                Some(None) => {
                    levels.pop();
                    trail.leave();
                }
                None => break None,
            }
        };
        match next {
            Some(name) => trail.enter(&name)?,
            None => break,
        };
    }
    let took = started.elapsed();
    println!("{entries} entries, {bytes} bytes, {attributes} attributes in {took:?}");
    Ok(())
}
