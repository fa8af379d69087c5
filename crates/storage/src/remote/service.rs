//! What an object store must be able to do, request by request.
//!
//! Each method is one request (or two where the service needs two), without any repetition: who may repeat what is
//! decided in one place for all services, by [`super::Remote`]. Keys are full names in the container or bucket.

use async_trait::async_trait;
use bytes::Bytes;

use super::client::LONGEST_OBJECT;
use super::failure::Failure;
use crate::{Object, Put};

/// What a writer leaves with an object, to recognise its own: 32 hexadecimal digits.
pub(crate) const MARK: &str = "backstaywrite";

/// The longest id of an upload or tag of a piece that is taken: they are kept for each piece, and sent back.
pub(crate) const LONGEST_ID: usize = 4096;

/// An object's properties.
#[derive(Debug)]
pub(crate) struct Head {
    pub size: u64,
    pub mark: Option<String>,
}

/// Some bytes of an object.
#[derive(Debug)]
pub(crate) struct Part {
    pub bytes: Bytes,
    /// The size of the whole object.
    pub size: u64,
}

/// A page of a listing, with full names.
#[derive(Debug, Default)]
pub(crate) struct Page {
    pub objects: Vec<Object>,
    /// Where the next page begins; none after the last.
    pub next: Option<String>,
}

/// An upload that was begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Begun {
    pub key: String,
    pub id: String,
    /// Seconds since 1970, where the service tells.
    pub since: Option<i64>,
}

/// A piece of an upload.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    /// From 0.
    pub number: u32,
    /// Where it begins in the object.
    pub offset: u64,
    pub bytes: Bytes,
    /// Whether it is sent again after a failure.
    pub again: bool,
}

/// How an object is to be written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Write<'a> {
    pub key: &'a str,
    pub mode: Put,
    pub mark: &'a str,
}

#[async_trait]
pub(crate) trait Service: Send + Sync + std::fmt::Debug {
    /// Whether the pieces of an upload must come one after the other.
    fn is_sequential(&self) -> bool {
        false
    }

    async fn put(&self, write: Write<'_>, bytes: Bytes) -> Result<(), Failure>;

    /// The whole object, of at most [`LONGEST_OBJECT`] bytes, or a range of it that is not empty. A range beyond the end is refused
    /// with status 416, or shorter.
    async fn get(&self, key: &str, range: Option<(u64, u64)>) -> Result<Part, Failure>;

    async fn head(&self, key: &str) -> Result<Head, Failure>;

    /// Refused with 404 when there is none, where the service tells.
    async fn delete(&self, key: &str) -> Result<(), Failure>;

    /// A page of all objects whose names start so, from the beginning or from where a page before ended.
    async fn page(&self, prefix: &str, from: Option<&str>, most: u32) -> Result<Page, Failure>;

    /// Begins an upload and gives its id.
    async fn begin(&self, write: Write<'_>) -> Result<String, Failure>;

    /// Sends a piece and gives what [`Service::commit`] needs to know of it.
    async fn piece(&self, key: &str, id: &str, piece: Piece) -> Result<String, Failure>;

    /// Makes the object of its pieces, whose end is `tail` where pieces come one after the other.
    async fn commit(
        &self,
        write: Write<'_>,
        id: &str,
        pieces: &[String],
        tail: Option<Piece>,
    ) -> Result<(), Failure>;

    /// Gives an upload up.
    async fn abort(&self, key: &str, id: &str) -> Result<(), Failure>;

    /// The uploads below a prefix that were begun and neither committed nor given up. None where the service removes such by
    /// itself and lists none.
    async fn begun(&self, prefix: &str) -> Result<Vec<Begun>, Failure>;

    /// Makes the container or bucket. One that exists already is refused with 409.
    async fn create(&self) -> Result<(), Failure>;
}

/// The size in a `Content-Range: bytes 0-9/100`.
pub(crate) fn whole_size(range: &str) -> Option<u64> {
    range.rsplit_once('/')?.1.trim().parse().ok()
}

/// The longest body that answers a request for a whole object or a range.
pub(crate) fn longest(range: Option<(u64, u64)>) -> usize {
    range.map_or(LONGEST_OBJECT, |(_, len)| usize::try_from(len).unwrap_or(usize::MAX))
}

/// The value of `Range` for some bytes.
pub(crate) fn range_header((offset, len): (u64, u64)) -> String {
    format!("bytes={offset}-{}", offset.saturating_add(len.saturating_sub(1)))
}
