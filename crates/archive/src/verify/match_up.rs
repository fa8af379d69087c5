//! The directory against the manifest, and names against each other.

use std::collections::HashMap;

use super::Check;
use crate::flaw::{Finding, Flaw};
use crate::names::{self, Sort};
use crate::zip::read::Central;

impl Check<'_> {
    /// The entries must be those of the manifest, in its order.
    pub(super) fn match_up(&mut self, entries: &[Central]) {
        let Some(manifest) = self.manifest else { return };
        let same = entries.len() == manifest.entries.len()
            && entries.iter().zip(&manifest.entries).all(|(a, b)| a.name == b.name);
        if !same {
            self.differences(entries);
            return;
        }
        for (entry, known) in entries.iter().zip(&manifest.entries) {
            if entry.size != known.size {
                let detail = format!("it says {} bytes and should have {}", entry.size, known.size);
                self.findings.push(Finding::of_entry(&entry.name, Flaw::Header, detail));
            }
        }
    }

    /// Which entries are there too many, are missing, or stand in another place.
    fn differences(&mut self, entries: &[Central]) {
        let Some(manifest) = self.manifest else { return };
        let mut places: HashMap<&[u8], usize> = HashMap::new();
        for (place, known) in manifest.entries.iter().enumerate() {
            places.insert(&known.name, place);
        }
        let mut seen = vec![false; manifest.entries.len()];
        let before = self.findings.count();
        for (place, entry) in entries.iter().enumerate() {
            match places.get(entry.name.as_slice()) {
                None => {
                    let detail = "the manifest does not have it: it was added or renamed";
                    self.findings.push(Finding::of_entry(&entry.name, Flaw::Added, detail));
                }
                Some(known) => {
                    if let Some(seen) = seen.get_mut(*known) {
                        *seen = true;
                    }
                    if entries.len() == manifest.entries.len() && *known != place {
                        let detail = "it stands in another place than it was written";
                        self.findings.push(Finding::of_entry(&entry.name, Flaw::Header, detail));
                    }
                }
            }
        }
        for (known, _) in manifest.entries.iter().zip(&seen).filter(|(_, seen)| !**seen) {
            let detail = "the manifest has it, the zip does not: it was removed or renamed";
            self.findings.push(Finding::of_entry(&known.name, Flaw::Missing, detail));
        }
        if self.findings.count() == before {
            // Only doubles, or an order that is another one.
            let detail = "its entries are not in the order of the manifest";
            self.findings.push(Finding::of_archive(Flaw::Archive, detail));
        }
    }

    /// The path of each entry, where its name is accepted.
    pub(super) fn paths(&mut self, entries: &[Central]) -> Vec<Option<Vec<u8>>> {
        let mut paths = Vec::with_capacity(entries.len());
        for entry in entries {
            match names::path_of(&entry.name, entry.flags, entry.made_by, self.vouched) {
                Ok(path) => paths.push(Some(path)),
                Err(why) => {
                    self.findings.push(Finding::of_entry(&entry.name, Flaw::UnsafeName, why));
                    paths.push(None);
                }
            }
        }
        let sorted = entries.iter().zip(&paths).filter_map(|(entry, path)| {
            Some((path.as_deref()?, if entry.is_folder() { Sort::Folder } else { Sort::Other }))
        });
        names::together(sorted, &mut self.findings);
        paths
    }
}
