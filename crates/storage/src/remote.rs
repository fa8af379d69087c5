//! Objects in an object store: Azure Blob, S3 and services like it, Google Cloud Storage.
//!
//! How the contract of [`Storage`] is kept:
//! * **Whole or not at all**: an object appears with one request, or with the request that commits an upload. The services
//!   promise that much, and keep what they acknowledged.
//! * **Of several writers one**: put-if-absent is a condition of that same request. When an answer was lost and the
//!   repetition finds an object there, the mark that each writer leaves with its object (32 random digits of metadata)
//!   tells whether it is our own.
//! * **Errors**: what a service says becomes a code of this product in [`explain`]; secrets never reach a text.
//! * **Repeating** is safe for every request here: reading, conditional writing, writing of the same bytes to the same
//!   name, deleting (a name found absent after an unclear answer counts as deleted).
//!
//! Crashes leave blocks or parts of uploads that nobody lists; [`Remote::sweep`] gives them up where the service does
//! not remove them itself. Locks: none; clones of the inner value are shared by the tasks of one runtime.

mod azure;
mod client;
mod explain;
mod failure;
mod google;
mod pace;
mod pages;
mod retry;
mod runtime;
mod s3;
mod service;
mod upload;
mod xml;

use std::fmt;
use std::sync::Arc;

use backstay_model::{Code, Error, Result};
use bytes::Bytes;
use jiff::Timestamp;

use self::client::Client;
use self::explain::Explainer;
use self::failure::{Cause, Failure};
use self::pages::Pages;
use self::retry::{Attempts, Budget};
use self::service::{Page, Service, Write};
use crate::{Bucket, Credentials, Kind, Object, Options, Put, Storage, Upload, check_name, too_short};

/// Objects asked for in one request of a listing: the most that all services give.
const PAGE: u32 = 1000;
/// Above this an object is put in parts, side by side.
const LARGE: usize = 64 << 20;

/// A [`Storage`] in an object store. Clones share connections, pace and patience.
#[derive(Clone)]
pub struct Remote {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    bucket: Bucket,
    service: Box<dyn Service>,
    options: Options,
    budget: Arc<Budget>,
    explain: Explainer,
    expires: Option<Timestamp>,
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Remote({})", self.inner.bucket)
    }
}

/// An upload that somebody began and did not end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Abandoned {
    /// The name the object would have had.
    pub name: String,
    /// When it was begun, where the service tells.
    pub since: Option<Timestamp>,
}

impl Remote {
    /// The place at an address, without looking whether it exists.
    fn at(bucket: &Bucket, credentials: &Credentials, options: &Options) -> Result<Self> {
        let client = Arc::new(Client::new(options, credentials.secrets())?);
        let explain = Explainer::new(bucket, credentials, options);
        let service: Result<Box<dyn Service>, Failure> = match bucket.kind {
            Kind::Azure => azure::Azure::new(bucket, credentials, client).map(|s| Box::new(s) as _),
            Kind::S3 => s3::S3::new(bucket, credentials, client).map(|s| Box::new(s) as _),
            Kind::Google => google::Google::new(bucket, credentials, client).map(|s| Box::new(s) as _),
        };
        let service = service.map_err(|failure| explain.error(failure, "open", ""))?;
        Ok(Remote {
            inner: Arc::new(Inner {
                bucket: bucket.clone(),
                service,
                options: options.clone(),
                budget: Arc::new(Budget::new()),
                explain,
                expires: credentials.expires(),
            }),
        })
    }

    /// Opens a place that exists: one request that lists.
    ///
    /// Fails with `StorageNotFound` when there is no such container or bucket, with `StorageDenied` and the others of
    /// an object store when it cannot be reached or listed.
    pub fn open(bucket: &Bucket, credentials: &Credentials, options: &Options) -> Result<Self> {
        let remote = Self::at(bucket, credentials, options)?;
        let inner = Arc::clone(&remote.inner);
        runtime::wait(async move {
            let prefix = inner.key("");
            inner.retried("open", "", |_| inner.service.page(&prefix, None, 1)).await.map(drop)
        })?;
        Ok(remote)
    }

    /// The same, where the container or bucket is made when it does not exist. Signatures for one container cannot do that.
    pub fn create(bucket: &Bucket, credentials: &Credentials, options: &Options) -> Result<Self> {
        match Self::open(bucket, credentials, options) {
            Err(e) if e.code() == Code::StorageNotFound => {}
            other => return other,
        }
        let remote = Self::at(bucket, credentials, options)?;
        let inner = Arc::clone(&remote.inner);
        runtime::wait(async move {
            let mut attempts = inner.attempts();
            loop {
                match inner.service.create().await {
                    Ok(()) => return Ok(()),
                    // Somebody was faster, or an answer was lost.
                    Err(f) if f.status() == Some(409) && !f.is_passing() => return Ok(()),
                    Err(f) => attempts.again(f).await.map_err(|f| inner.explain.error(f, "make", ""))?,
                }
            }
        })?;
        Self::open(bucket, credentials, options)
    }

    /// Until when the credentials are valid, where that is known.
    #[must_use]
    pub fn expires_at(&self) -> Option<Timestamp> {
        self.inner.expires
    }

    /// The uploads to this place that were begun before a time and never ended. They take space and cost money.
    ///
    /// Azure and Google remove such by themselves, after a week, and list none.
    pub fn abandoned(&self, before: Timestamp) -> Result<Vec<Abandoned>> {
        Ok(self.begun_before(before)?.into_iter().map(|(abandoned, _)| abandoned).collect())
    }

    /// Gives up what [`Remote::abandoned`] lists, and tells what that was.
    ///
    /// `before` must lie further back than the longest upload that may be running.
    pub fn sweep(&self, before: Timestamp) -> Result<Vec<Abandoned>> {
        self.sweep_some(before, &|_all| true)
    }

    /// The same for those that `which` chooses: the caller may know of an upload that nobody will end it.
    pub fn sweep_some(
        &self,
        before: Timestamp,
        which: &dyn Fn(&Abandoned) -> bool,
    ) -> Result<Vec<Abandoned>> {
        let mut given_up = Vec::new();
        for (abandoned, begun) in self.begun_before(before)? {
            if !which(&abandoned) {
                continue;
            }
            let inner = Arc::clone(&self.inner);
            runtime::wait(async move { inner.abort(&begun.key, &begun.id).await })?;
            given_up.push(abandoned);
        }
        Ok(given_up)
    }

    fn begun_before(&self, before: Timestamp) -> Result<Vec<(Abandoned, service::Begun)>> {
        let inner = Arc::clone(&self.inner);
        let begun = runtime::wait(async move {
            let prefix = inner.key("");
            inner.retried("list unfinished uploads of", "", |_| inner.service.begun(&prefix)).await
        })?;
        let older = |b: &service::Begun| b.since.is_none_or(|s| s < before.as_second());
        Ok(begun
            .into_iter()
            .filter(older)
            .filter_map(|b| {
                let name = self.inner.name(&b.key)?.to_owned();
                let since = b.since.and_then(|s| Timestamp::from_second(s).ok());
                Some((Abandoned { name, since }, b))
            })
            .collect())
    }
}

impl Inner {
    fn attempts(&self) -> Attempts {
        Attempts::new(&self.options.patience, &self.budget)
    }

    /// The full name of an object; what all of them start with, for an empty name.
    fn key(&self, name: &str) -> String {
        match self.bucket.prefix.as_str() {
            "" => name.to_owned(),
            prefix => format!("{prefix}/{name}"),
        }
    }

    /// The name of an object of this place; none for what is not one.
    fn name<'a>(&self, key: &'a str) -> Option<&'a str> {
        let name = match self.bucket.prefix.as_str() {
            "" => key,
            prefix => key.strip_prefix(prefix)?.strip_prefix('/')?,
        };
        check_name(name).ok().map(|()| name)
    }

    /// Repeats a request that may be repeated without harm, and tells it whether it is a repetition.
    async fn retried<T, F>(&self, verb: &str, name: &str, request: impl Fn(bool) -> F) -> Result<T>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let mut attempts = self.attempts();
        loop {
            match request(attempts.is_repetition()).await {
                Ok(done) => {
                    attempts.succeeded();
                    return Ok(done);
                }
                Err(failure) => {
                    attempts.again(failure).await.map_err(|f| self.explain.error(f, verb, name))?;
                }
            }
        }
    }

    /// Writes with a request that makes an object appear, and finds out what became of it when that is unclear.
    async fn written<F>(&self, name: &str, write: Write<'_>, request: impl Fn() -> F) -> Result<()>
    where
        F: Future<Output = Result<(), Failure>>,
    {
        let mut attempts = self.attempts();
        loop {
            let failure = match request().await {
                Ok(()) => {
                    attempts.succeeded();
                    return Ok(());
                }
                Err(failure) => failure,
            };
            // A repetition that meets an object, or no upload any more: it may be what an earlier attempt wrote.
            let after_the_fact = exists(&failure) || failure.status() == Some(404);
            if attempts.unclear && after_the_fact && self.is_ours(name, write).await? {
                return Ok(());
            }
            if write.mode == Put::IfAbsent && exists(&failure) {
                return Err(self.explain.exists(name));
            }
            attempts.again(failure).await.map_err(|f| self.explain.error(f, "write", name))?;
        }
    }

    /// Whether the object that is there was written by this very write.
    async fn is_ours(&self, name: &str, write: Write<'_>) -> Result<bool> {
        let mut attempts = self.attempts();
        loop {
            match self.service.head(write.key).await {
                Ok(head) => return Ok(head.mark.as_deref() == Some(write.mark)),
                Err(f) if f.status() == Some(404) => return Ok(false),
                Err(f) => attempts.again(f).await.map_err(|f| self.explain.error(f, "look at", name))?,
            }
        }
    }

    async fn put(&self, name: &str, bytes: Bytes, mode: Put) -> Result<()> {
        let (key, mark) = (self.key(name), mark()?);
        let write = Write { key: &key, mode, mark: &mark };
        self.written(name, write, || self.service.put(write, bytes.clone())).await
    }

    async fn size(&self, name: &str) -> Result<u64> {
        let key = self.key(name);
        self.retried("look at", name, |_| self.service.head(&key)).await.map(|head| head.size)
    }

    async fn get(&self, name: &str) -> Result<Vec<u8>> {
        let key = self.key(name);
        let part = self.retried("read", name, |_| self.service.get(&key, None)).await?;
        Ok(part.bytes.into())
    }

    async fn get_range(&self, name: &str, offset: u64, len: usize) -> Result<Vec<u8>> {
        let fits = offset.checked_add(len as u64).is_some_and(|end| end < i64::MAX as u64);
        if len == 0 || !fits {
            let size = self.size(name).await?;
            return match fits && offset <= size {
                true => Ok(Vec::new()),
                false => Err(too_short(name, size, offset, len)),
            };
        }
        let key = self.key(name);
        let mut attempts = self.attempts();
        loop {
            match self.service.get(&key, Some((offset, len as u64))).await {
                Ok(part) if part.bytes.len() == len => {
                    attempts.succeeded();
                    return Ok(part.bytes.into());
                }
                Ok(part) => return Err(too_short(name, part.size, offset, len)),
                Err(f) if f.status() == Some(416) => {
                    return Err(too_short(name, self.size(name).await?, offset, len));
                }
                Err(f) => attempts.again(f).await.map_err(|f| self.explain.error(f, "read", name))?,
            }
        }
    }

    async fn delete(&self, name: &str) -> Result<()> {
        let key = self.key(name);
        let mut attempts = self.attempts();
        loop {
            match self.service.delete(&key).await {
                Ok(()) => {
                    attempts.succeeded();
                    return Ok(());
                }
                Err(f) if f.status() == Some(404) && attempts.unclear && !explain::is_place_gone(&f) => {
                    return Ok(());
                }
                Err(f) => attempts.again(f).await.map_err(|f| self.explain.error(f, "delete", name))?,
            }
        }
    }

    async fn page(&self, folder: &str, prefix: &str, from: Option<&str>) -> Result<Page> {
        self.retried("list", folder, |_| self.service.page(prefix, from, PAGE)).await
    }

    async fn abort(&self, key: &str, id: &str) -> Result<()> {
        let mut attempts = self.attempts();
        loop {
            match self.service.abort(key, id).await {
                Ok(()) => return Ok(()),
                Err(f) if f.status() == Some(404) => return Ok(()),
                Err(f) => {
                    attempts.again(f).await.map_err(|f| self.explain.error(f, "give up an upload to", ""))?
                }
            }
        }
    }
}

/// Whether a write was refused because of an object that is there.
fn exists(failure: &Failure) -> bool {
    match failure.cause {
        Cause::Refused(412) => true,
        Cause::Refused(409) => failure.is(&["BlobAlreadyExists", "conditionNotMet"]),
        // Azure says this to a signature that may create but not overwrite.
        Cause::Refused(403) => failure.is(&["UnauthorizedBlobOverwrite"]),
        _ => false,
    }
}

/// A new mark.
fn mark() -> Result<String> {
    let random = || {
        getrandom::u64().map_err(|e| {
            Error::new(Code::System, "The system gives no random numbers").because(e.to_string())
        })
    };
    Ok(format!("{:016x}{:016x}", random()?, random()?))
}

impl Storage for Remote {
    fn location(&self) -> String {
        self.inner.bucket.to_string()
    }

    fn is_distant(&self) -> bool {
        true
    }

    fn put(&self, name: &str, bytes: &[u8], mode: Put) -> Result<()> {
        check_name(name)?;
        if bytes.len() > LARGE {
            let mut upload =
                upload::Parts::begin(Arc::clone(&self.inner), name, mode, Some(bytes.len() as u64))?;
            upload.write(bytes)?;
            return Box::new(upload).commit().map(drop);
        }
        let (inner, name, bytes) = (Arc::clone(&self.inner), name.to_owned(), Bytes::copy_from_slice(bytes));
        runtime::wait(async move { inner.put(&name, bytes, mode).await })
    }

    fn put_stream<'a>(&'a self, name: &str, mode: Put) -> Result<Box<dyn Upload + 'a>> {
        check_name(name)?;
        Ok(Box::new(upload::Parts::begin(Arc::clone(&self.inner), name, mode, None)?))
    }

    fn get(&self, name: &str) -> Result<Vec<u8>> {
        check_name(name)?;
        let (inner, name) = (Arc::clone(&self.inner), name.to_owned());
        runtime::wait(async move { inner.get(&name).await })
    }

    fn get_range(&self, name: &str, offset: u64, len: usize) -> Result<Vec<u8>> {
        check_name(name)?;
        let (inner, name) = (Arc::clone(&self.inner), name.to_owned());
        runtime::wait(async move { inner.get_range(&name, offset, len).await })
    }

    fn size(&self, name: &str) -> Result<u64> {
        check_name(name)?;
        let (inner, name) = (Arc::clone(&self.inner), name.to_owned());
        runtime::wait(async move { inner.size(&name).await })
    }

    fn list(&self, folder: &str, each: &mut dyn FnMut(Object) -> Result<()>) -> Result<()> {
        if !folder.is_empty() {
            check_name(folder)?;
        }
        let prefix = match folder {
            "" => self.inner.key(""),
            folder => self.inner.key(&format!("{folder}/")),
        };
        let mut from = None::<String>;
        let (mut pages, mut objects) = (Pages::default(), 0);
        loop {
            let (inner, shown, below, begin) =
                (Arc::clone(&self.inner), folder.to_owned(), prefix.clone(), from.take());
            let page = runtime::wait(async move { inner.page(&shown, &below, begin.as_deref()).await })?;
            objects += page.objects.len() as u64;
            for object in page.objects {
                if let Some(name) = self.inner.name(&object.name).filter(|_| object.name.starts_with(&prefix))
                {
                    each(Object { name: name.to_owned(), size: object.size })?;
                }
            }
            let Some(next) = page.next else { return Ok(()) };
            pages.next(&next, objects).map_err(|f| self.inner.explain.error(f, "list", folder))?;
            from = Some(next);
        }
    }

    fn delete(&self, name: &str) -> Result<()> {
        check_name(name)?;
        let (inner, name) = (Arc::clone(&self.inner), name.to_owned());
        runtime::wait(async move { inner.delete(&name).await })
    }
}
