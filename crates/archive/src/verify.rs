//! Looking at a whole archive before anything of it is used.
//!
//! Invariants: every byte is read, once, from the first to the last; what is wrong is told with the entry, all of it, not
//! only the first. Neither the central directory nor the local headers are believed alone; with a manifest both must be
//! what it says. Nothing is written. Errors are for what could not be read; what is wrong with the archive is a
//! [`Finding`].

mod data;
mod match_up;

use std::sync::Arc;

use backstay_model::{Cancel, Code, Error, Progress, Result};

use crate::bytes::Bytes;
use crate::contents::Contents;
use crate::flaw::{Finding, Findings, Flaw};
use crate::manifest::{Integrity, Manifest, Trust};
use crate::zip::read::{Central, Directory, central, directory};

/// How an archive is looked at.
#[derive(Clone, Debug)]
pub struct Checks {
    /// Whose signatures are believed.
    pub trust: Trust,
    /// Take a zip without a manifest, or with one of another program.
    pub accept_unverified: bool,
    /// Most bytes of content in all.
    pub total_max: u64,
    /// For archives without a manifest that vouches: most bytes of content for one packed byte, over the whole archive,
    /// where it holds more than 64 MiB. Deflate gives up to 1030.
    pub ratio_max: u64,
}

impl Default for Checks {
    fn default() -> Self {
        Checks { trust: Trust::default(), accept_unverified: false, total_max: u64::MAX, ratio_max: 200 }
    }
}

/// An archive that was looked at.
pub struct Verified {
    /// What is wrong, what is fatal first, in the order of the checks. Of very many only the first are kept.
    pub findings: Vec<Finding>,
    /// What the manifest proves; none without one.
    pub integrity: Option<Integrity>,
    /// The manifest, where there is one that is whole.
    pub manifest: Option<Manifest>,
    /// Of all bytes of the zip, where they could be read.
    pub sha256: Option<[u8; 32]>,
    contents: Option<Contents>,
}

impl std::fmt::Debug for Verified {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verified")
            .field("findings", &self.findings)
            .field("integrity", &self.integrity)
            .finish()
    }
}

impl Verified {
    /// Whether it can be used.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        !self.findings.iter().any(|finding| finding.what.is_fatal())
    }

    /// The contents, when nothing is wrong; else `ArchiveDamaged`, or `ArchiveUnsupported` when that is all.
    pub fn accept(self) -> Result<Contents> {
        let fatal: Vec<_> = self.findings.iter().filter(|f| f.what.is_fatal()).collect();
        match (fatal.split_first(), self.contents) {
            (None, Some(contents)) => Ok(contents),
            (None, None) => Err(Error::new(Code::Internal, "An archive without findings has no contents")),
            (Some((first, more)), _) => {
                let all_unsupported = fatal.iter().all(|f| f.what == Flaw::Unsupported);
                let code = if all_unsupported { Code::ArchiveUnsupported } else { Code::ArchiveDamaged };
                let more = match more.len() {
                    0 => String::new(),
                    n => format!(" (and {n} more)"),
                };
                Err(Error::new(code, format!("The archive cannot be used: {first}{more}")))
            }
        }
    }
}

/// An archive that has been opened, with all that the checks share.
struct Check<'a> {
    zip: Arc<dyn Bytes>,
    manifest: Option<&'a Manifest>,
    /// A whole manifest says what every entry must be.
    vouched: bool,
    checks: &'a Checks,
    progress: &'a dyn Progress,
    cancel: &'a Cancel,
    findings: Findings,
    sha256: Option<[u8; 32]>,
}

/// Looks at a zip and, where there is one, its manifest.
pub fn verify(
    zip: Arc<dyn Bytes>,
    xml: Option<&[u8]>,
    checks: &Checks,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Verified> {
    let mut findings = Findings::default();
    let mut dumps = Vec::new();
    let mut read = None;
    match xml.map(|xml| (xml, Manifest::from_xml(xml, &checks.trust))) {
        Some((_, Ok(manifest))) => read = Some(manifest),
        Some((_, Err(e))) if e.code() == Code::ArchiveDamaged => {
            findings.push(Finding::of_archive(Flaw::Manifest, e.message()));
        }
        Some((xml, Err(e))) if e.code() == Code::ArchiveUnsupported && checks.accept_unverified => {
            dumps = crate::manifest::databases_of_foreign(xml).map_err(|_bad| e)?;
        }
        Some((_, Err(e))) => return Err(e),
        None if checks.accept_unverified => {}
        None => {
            let message = format!("There is no manifest beside {}", zip.name());
            return Err(Error::new(Code::ArchiveUnverified, message));
        }
    }
    let (manifest, integrity) = read.unzip();
    let vouched = manifest.is_some();
    let mut check =
        Check { zip, manifest: manifest.as_ref(), vouched, checks, progress, cancel, findings, sha256: None };
    let contents = check.run(dumps)?;
    let sha256 = check.sha256;
    let mut findings = check.findings;
    if !findings.any_fatal() && contents.is_none() {
        findings.push(Finding::of_archive(Flaw::Archive, "it cannot be read"));
    }
    let contents = contents.map(|contents| contents.with_manifest(manifest.clone()));
    Ok(Verified { findings: findings.into_list(), integrity, manifest, sha256, contents })
}

impl Check<'_> {
    fn run(&mut self, dumps: Vec<String>) -> Result<Option<Contents>> {
        if let Some(manifest) = self.manifest
            && manifest.zip.size != self.zip.size()
        {
            let detail = format!("it has {} bytes and should have {}", self.zip.size(), manifest.zip.size);
            self.findings.push(Finding::of_archive(Flaw::Archive, detail));
        }
        let directory = match directory(&*self.zip) {
            Ok(directory) => directory,
            Err(e)
                if matches!(
                    e.code(),
                    Code::ArchiveDamaged | Code::ArchiveUnsupported | Code::LimitExceeded
                ) =>
            {
                // Nothing that we wrote is unsupported: then it is damage.
                let unsupported = e.code() == Code::ArchiveUnsupported && !self.vouched;
                let flaw = if unsupported { Flaw::Unsupported } else { Flaw::Archive };
                self.findings.push(Finding::of_archive(flaw, e.message()));
                return Ok(None);
            }
            Err(e) => return Err(e),
        };
        if self.vouched && !directory.no_comment {
            self.findings.push(Finding::of_archive(Flaw::Archive, "there are bytes behind its end"));
        }
        let Some(entries) = self.entries(&directory) else { return Ok(None) };
        self.match_up(&entries);
        self.sizes(&entries);
        let paths = self.paths(&entries);
        let Some(seen) = self.data(&directory, &entries)? else { return Ok(None) };
        let contents = self.contents(entries, paths, seen, dumps);
        Ok(contents.filter(|_| !self.findings.any_fatal()))
    }

    /// All records of the directory; none when that is not possible, which is told.
    fn entries(&mut self, directory: &Directory) -> Option<Vec<Central>> {
        let mut entries = Vec::with_capacity(usize::try_from(directory.count).unwrap_or(0).min(1 << 20));
        let mut at = 0;
        while at < directory.bytes.len() {
            match central(&directory.bytes, at) {
                Ok(entry) => {
                    at = entry.record.end;
                    entries.push(entry);
                }
                Err(why) => {
                    self.unreadable_record(entries.len(), why);
                    return None;
                }
            }
        }
        if entries.len() as u64 != directory.count {
            let detail = format!("it says {} entries and has {}", directory.count, entries.len());
            self.findings.push(Finding::of_archive(Flaw::Archive, detail));
        }
        Some(entries)
    }

    /// The record of that number cannot be read: it is altered, or the one before it is and says a wrong length.
    fn unreadable_record(&mut self, number: usize, why: &str) {
        let known = self.manifest.map(|m| m.entries.as_slice()).unwrap_or_default();
        let suspects = known.get(number.saturating_sub(1)..=number.min(known.len().saturating_sub(1)));
        for entry in suspects.unwrap_or_default() {
            self.findings.push(Finding::of_entry(&entry.name, Flaw::Header, why));
        }
        if known.is_empty() {
            let detail = format!("entry {} of the directory: {why}", number + 1);
            self.findings.push(Finding::of_archive(Flaw::Header, detail));
        }
    }

    /// Limits on what would come out, before anything is unpacked.
    fn sizes(&mut self, entries: &[Central]) {
        let mut total = 0u64;
        for entry in entries {
            total = total.saturating_add(entry.size);
            // Deflate cannot do better; whoever says so lies.
            if entry.size / 1100 > entry.packed.saturating_add(16) {
                let detail = format!("it says that {} bytes become {}", entry.packed, entry.size);
                self.findings.push(Finding::of_entry(&entry.name, Flaw::Bomb, detail));
            }
        }
        let most = self.checks.total_max;
        if total > most {
            let detail = format!("it would become {total} bytes, at most {most} are accepted");
            self.findings.push(Finding::of_archive(Flaw::Bomb, detail));
        }
        let ratio = total / self.zip.size().max(1);
        if !self.vouched && total > 64 << 20 && ratio > self.checks.ratio_max {
            let detail = format!(
                "it would become {ratio} times as large, at most {} times is accepted",
                self.checks.ratio_max
            );
            self.findings.push(Finding::of_archive(Flaw::Bomb, detail));
        }
    }
}
