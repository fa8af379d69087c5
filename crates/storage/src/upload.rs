//! Objects that are written piece by piece.

use backstay_model::Result;

use crate::{Put, Storage};

/// An object in the making. Dropping it without [`Upload::commit`] leaves nothing.
pub trait Upload: Send {
    /// Adds bytes at the end. After an error the object cannot be finished any more.
    fn write(&mut self, bytes: &[u8]) -> Result<()>;

    /// Gives the object its name and makes it durable. Returns its size in bytes.
    fn commit(self: Box<Self>) -> Result<u64>;
}

/// An object collected in memory.
pub(crate) struct Collected<'a, S: ?Sized> {
    storage: &'a S,
    name: String,
    mode: Put,
    bytes: Vec<u8>,
}

impl<'a, S: Storage + ?Sized> Collected<'a, S> {
    pub fn new(storage: &'a S, name: &str, mode: Put) -> Self {
        Collected { storage, name: name.to_owned(), mode, bytes: Vec::new() }
    }
}

impl<S: Storage + ?Sized> Upload for Collected<'_, S> {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn commit(self: Box<Self>) -> Result<u64> {
        self.storage.put(&self.name, &self.bytes, self.mode)?;
        Ok(self.bytes.len() as u64)
    }
}
