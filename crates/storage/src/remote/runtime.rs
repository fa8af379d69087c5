//! The one runtime for all object stores of the process.
//!
//! Calls come from ordinary threads, or from threads of another runtime: the work is handed over and waited for on a
//! channel, which is allowed in both.

use std::sync::OnceLock;
use std::sync::mpsc::sync_channel;

use backstay_model::{Code, Error, Result};
use tokio::runtime::{Builder, Runtime};

/// Threads that move bytes. Hashing, sealing and compressing are done elsewhere.
const THREADS: usize = 2;

pub(crate) fn get() -> Result<&'static Runtime> {
    static RUNTIME: OnceLock<Option<Runtime>> = OnceLock::new();
    RUNTIME
        .get_or_init(|| {
            Builder::new_multi_thread()
                .worker_threads(THREADS)
                .max_blocking_threads(8)
                .thread_name("backstay-net")
                .enable_all()
                .build()
                .ok()
        })
        .as_ref()
        .ok_or_else(|| Error::new(Code::System, "No threads for the network could be started"))
}

/// Does the work on the runtime and waits for it.
pub(crate) fn wait<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    let (done, result) = sync_channel(1);
    get()?.spawn(async move {
        // Nobody waits any more when the process ends.
        let _ended = done.send(work.await);
    });
    result
        .recv()
        .map_err(|e| Error::new(Code::Internal, "Work on an object store ended unexpectedly").because(e))?
}
