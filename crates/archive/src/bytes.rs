//! Where an archive is read from: a file, an object of a storage, memory.
//!
//! Invariant: reads are exact, at any offset, from any thread; what is not there is an error, never fewer bytes.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use backstay_model::{Code, Error, Result};
use backstay_storage::Storage;

/// Bytes that can be read at any place.
pub trait Bytes: Send + Sync {
    /// How many there are.
    fn size(&self) -> u64;
    /// Fills `buf` with the bytes from `offset` on.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()>;
    /// What it is, for messages.
    fn name(&self) -> String;
}

/// A file on this machine.
#[derive(Debug)]
pub struct LocalFile {
    file: File,
    size: u64,
    name: String,
}

impl LocalFile {
    /// Opens a regular file.
    pub fn open(path: &Path) -> Result<Self> {
        let name = backstay_tree::path::escape(path.as_os_str());
        let open = || {
            let file = File::open(path)?;
            let meta = file.metadata()?;
            if meta.is_file() {
                Ok::<_, std::io::Error>((file, meta.len()))
            } else {
                Err(std::io::ErrorKind::InvalidInput.into())
            }
        };
        match open() {
            Ok((file, size)) => Ok(LocalFile { file, size, name }),
            Err(e) => Err(Error::new(Code::SourceNotFound, format!("Cannot open {name}")).because(e)),
        }
    }
}

impl Bytes for LocalFile {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.file
            .read_exact_at(buf, offset)
            .map_err(|e| Error::new(Code::StorageFailed, format!("Cannot read {}", self.name)).because(e))
    }

    fn name(&self) -> String {
        self.name.clone()
    }
}

/// An object of a storage, read in ranges.
#[derive(Debug)]
pub struct StoredObject {
    storage: Arc<dyn Storage>,
    object: String,
    size: u64,
}

impl StoredObject {
    /// Looks the object up.
    pub fn open(storage: Arc<dyn Storage>, object: impl Into<String>) -> Result<Self> {
        let object = object.into();
        let size = storage.size(&object)?;
        Ok(StoredObject { storage, object, size })
    }
}

impl Bytes for StoredObject {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let bytes = self.storage.get_range(&self.object, offset, buf.len())?;
        if bytes.len() != buf.len() {
            let message = format!("{} gave {} bytes of {}", self.name(), bytes.len(), buf.len());
            return Err(Error::new(Code::StorageFailed, message));
        }
        buf.copy_from_slice(&bytes);
        Ok(())
    }

    fn name(&self) -> String {
        format!("{} in {}", self.object, self.storage.location())
    }
}

impl Bytes for Vec<u8> {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let start = usize::try_from(offset).ok();
        let part = start.and_then(|start| self.get(start..start.checked_add(buf.len())?));
        let part = part.ok_or_else(|| Error::new(Code::StorageFailed, "The bytes end before"))?;
        buf.copy_from_slice(part);
        Ok(())
    }

    fn name(&self) -> String {
        "an archive in memory".to_owned()
    }
}

/// Sees every byte, in order.
pub(crate) type Watch<'b> = &'b mut dyn FnMut(&[u8]);

/// Reads from one place to the end, in large pieces, forwards only.
pub(crate) struct Forward<'b> {
    bytes: &'b dyn Bytes,
    /// Offset of the first byte of `buffer`.
    start: u64,
    buffer: Vec<u8>,
    watch: Option<Watch<'b>>,
    /// Nothing from here on is fetched before it is asked for.
    end: u64,
}

/// Bytes fetched at a time.
const WINDOW: usize = 4 << 20;

impl<'b> Forward<'b> {
    pub(crate) fn new(bytes: &'b dyn Bytes, start: u64, watch: Option<Watch<'b>>) -> Self {
        Forward { bytes, start, buffer: Vec::new(), watch, end: bytes.size() }
    }

    /// For a reader that wants little of what lies behind `end`.
    pub(crate) fn until(self, end: u64) -> Self {
        Forward { end: end.min(self.end), ..self }
    }

    /// Exactly the bytes `[offset, offset + len)`; `offset` not before an earlier one. What lies between is watched too.
    pub(crate) fn get(&mut self, offset: u64, len: usize) -> Result<&[u8]> {
        let gone = || Error::new(Code::Internal, "An archive was read backwards");
        let mut skip = offset.checked_sub(self.start).ok_or_else(gone)?;
        while skip > self.buffer.len() as u64 {
            skip -= self.buffer.len() as u64;
            self.start += self.buffer.len() as u64;
            self.buffer.clear();
            if self.watch.is_none() {
                self.start = offset;
                skip = 0;
                break;
            }
            self.fetch(usize::try_from(skip).unwrap_or(WINDOW).min(WINDOW))?;
        }
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        let need = skip.saturating_add(len);
        if need > self.buffer.len() {
            self.buffer.drain(..skip);
            self.start = offset;
            self.fetch(len)?;
            return self.buffer.get(..len).ok_or_else(gone);
        }
        self.buffer.get(skip..need).ok_or_else(gone)
    }

    /// Appends to the buffer until it holds `len` bytes, and more where there are.
    fn fetch(&mut self, len: usize) -> Result<()> {
        let have = self.buffer.len();
        let at = self.start + have as u64;
        let left = usize::try_from(self.bytes.size().saturating_sub(at)).unwrap_or(usize::MAX);
        let want = len.saturating_sub(have);
        if want > left {
            let message = format!("{} ends after {} bytes", self.bytes.name(), self.bytes.size());
            return Err(Error::new(Code::ArchiveDamaged, message));
        }
        let ahead = usize::try_from(self.end.saturating_sub(at)).unwrap_or(usize::MAX).min(WINDOW);
        let want = want.max(ahead).min(left);
        self.buffer.resize(have + want, 0);
        let room = self.buffer.get_mut(have..).unwrap_or_default();
        self.bytes.read_at(room, at)?;
        if let Some(watch) = &mut self.watch {
            watch(room);
        }
        Ok(())
    }

    /// Watches the rest up to the end.
    pub(crate) fn finish(mut self) -> Result<()> {
        let size = self.bytes.size();
        self.get(size, 0).map(|_| ())
    }
}
