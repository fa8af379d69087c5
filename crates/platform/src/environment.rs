//! Variables that may hold secrets, for the command of an app alone.
//!
//! Invariants: they are asked for when a process is about to be started, given to that process and kept nowhere: not in
//! the record, not in the log, not in any argument. What is printed of them is `***`. Hooks, health checks and other
//! runtimes never get them.

use std::fmt;
use std::sync::Arc;

use backstay_model::{Result, Secret};

type Source = dyn Fn() -> Result<Vec<(String, Secret)>> + Send + Sync;

/// Where an app's variables come from.
#[derive(Clone, Default)]
pub struct Environment(Option<Arc<Source>>);

impl Environment {
    /// From a function that is called at each start.
    #[must_use]
    pub fn new(source: impl Fn() -> Result<Vec<(String, Secret)>> + Send + Sync + 'static) -> Self {
        Environment(Some(Arc::new(source)))
    }

    /// The variables as they are now.
    pub(crate) fn variables(&self) -> Result<Vec<(String, Secret)>> {
        self.0.as_ref().map_or_else(|| Ok(Vec::new()), |source| source())
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}
