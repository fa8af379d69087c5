//! Objects in memory: for tests, and for work that leaves nothing behind.
//!
//! Every call takes one lock for as long as it copies, so each is atomic. Nothing here is durable: what the
//! contract promises after a power loss holds trivially, there is nothing left to be half there.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use backstay_model::{Code, Error, Result};

use crate::{Object, Put, Storage, check_name};

type Objects = BTreeMap<String, Arc<[u8]>>;

/// A [`Storage`] in memory. Clones share the same objects.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    objects: Arc<Mutex<Objects>>,
}

impl Memory {
    /// An empty place.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, Objects> {
        // Nothing panics while the lock is held, so a poisoned map is still whole.
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn object(&self, name: &str) -> Result<Arc<[u8]>> {
        check_name(name)?;
        self.lock().get(name).cloned().ok_or_else(|| absent(name))
    }
}

fn absent(name: &str) -> Error {
    Error::new(Code::ObjectNotFound, format!("No object {name} in memory"))
}

impl Storage for Memory {
    fn location(&self) -> String {
        "memory".to_owned()
    }

    fn put(&self, name: &str, bytes: &[u8], mode: Put) -> Result<()> {
        check_name(name)?;
        let mut objects = self.lock();
        if mode == Put::IfAbsent && objects.contains_key(name) {
            return Err(Error::new(Code::ObjectExists, format!("The object {name} is in memory already")));
        }
        objects.insert(name.to_owned(), bytes.into());
        Ok(())
    }

    fn get(&self, name: &str) -> Result<Vec<u8>> {
        Ok(self.object(name)?.to_vec())
    }

    fn get_range(&self, name: &str, offset: u64, len: usize) -> Result<Vec<u8>> {
        let object = self.object(name)?;
        let range = usize::try_from(offset)
            .ok()
            .and_then(|start| Some(start..start.checked_add(len)?))
            .and_then(|range| object.get(range));
        match range {
            Some(bytes) => Ok(bytes.to_vec()),
            None => Err(crate::too_short(name, object.len() as u64, offset, len)),
        }
    }

    fn size(&self, name: &str) -> Result<u64> {
        Ok(self.object(name)?.len() as u64)
    }

    fn list(&self, folder: &str, each: &mut dyn FnMut(Object) -> Result<()>) -> Result<()> {
        let prefix = if folder.is_empty() {
            String::new()
        } else {
            check_name(folder)?;
            format!("{folder}/")
        };
        // Copied first: `each` may call this storage.
        let found: Vec<Object> = self
            .lock()
            .range::<str, _>((Bound::Included(prefix.as_str()), Bound::Unbounded))
            .take_while(|(name, _)| name.starts_with(&prefix))
            .map(|(name, bytes)| Object { name: name.clone(), size: bytes.len() as u64 })
            .collect();
        found.into_iter().try_for_each(each)
    }

    fn delete(&self, name: &str) -> Result<()> {
        check_name(name)?;
        self.lock().remove(name).map(drop).ok_or_else(|| absent(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_contract() {
        crate::conformance::suite(|| Box::new(Memory::new()));
    }
}
