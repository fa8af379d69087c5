//! Containers: places for custom backups, with what opens them.
//!
//! Invariants: an address is stored without secrets; what opens the place is sealed ([`crate::sealed`]) for the record of
//! that container before it reaches the catalog. A container is tried before it is stored. Where a name or an address may
//! stand, a word of the form of a name is a name, everything else an address. A crash leaves a container stored or
//! not; a test may leave its one small object, whose name says what it is. No locks: the catalog's transactions are
//! all there is.

use std::path::PathBuf;
use std::sync::Arc;

use backstay_catalog::Container;
use backstay_model::{AppName, Code, Error, Result, Secret};
use backstay_storage::{Address, Credentials, Kind, Local, Options, Put, Remote, Storage};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::place;
use crate::recover::Places;
use crate::secrets::random;
use crate::state::Engine;

/// A signature that is valid for less than this is told, in hours.
const EXPIRY_WARNING: i64 = 7 * 24;
/// Longest name.
const NAME_MAX: usize = 60;
/// What names of the objects of a test begin with.
const TEST: &str = "backstay-test-";
/// What a container's signature must allow, with Azure's letters.
const PERMISSIONS: [(char, &str); 4] = [('r', "read"), ('w', "write"), ('d', "delete"), ('l', "list")];

/// A container to be made known.
#[derive(Clone, Debug)]
pub struct NewContainer<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its address, without secrets; none where `credentials` holds it.
    pub address: Option<&'a str>,
    /// What opens it, or the URL that holds address and signature.
    pub credentials: Option<Secret>,
    /// How it is talked to.
    pub options: Options,
    /// Make the place where it does not exist.
    pub create: bool,
    /// Take the place of a container of that name.
    pub replace: bool,
    /// Keep it also when the test fails.
    pub untested: bool,
}

/// A container as shown.
#[derive(Clone, Debug, Serialize)]
pub struct ContainerView {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: String,
    /// `folder`, `azure`, `s3`, `gs`.
    pub kind: String,
    /// By what it is opened: `nothing`, `machine`, `identity`, `account-key`, `signature`, `key-pair`, `key-file`, `anonymous`.
    pub opened_by: String,
    /// Until when that is valid, where it is known.
    pub expires: Option<Timestamp>,
    /// Whether that is soon, or was.
    pub expires_soon: bool,
    /// How it is talked to.
    pub options: Options,
    /// When it became known.
    pub created: Timestamp,
    /// Apps whose schedules use it.
    pub used_by: Vec<AppName>,
    /// Custom backups in it, as last seen.
    pub backups: usize,
}

/// A container that was made known.
#[derive(Clone, Debug, Serialize)]
pub struct ContainerAdded {
    /// The container.
    pub container: ContainerView,
    /// How the test went.
    pub test: ContainerTest,
    /// Where everything is, when the state was made to keep its key.
    pub first_run: Option<Places>,
}

/// What a test of a container found.
#[derive(Clone, Debug, Serialize)]
pub struct ContainerTest {
    /// The container's name.
    pub name: String,
    /// Its address.
    pub address: String,
    /// Whether every step went well.
    pub passed: bool,
    /// What was tried, in order.
    pub steps: Vec<TestStep>,
    /// What a person should know, though it does not hinder now.
    pub warnings: Vec<String>,
}

/// One step of a test.
#[derive(Clone, Debug, Serialize)]
pub struct TestStep {
    /// `open`, `write`, `read`, `list`, `delete`.
    pub step: &'static str,
    /// Whether it went well; none where it could not be tried.
    pub passed: Option<bool>,
    /// Why not.
    pub error: Option<StepError>,
}

/// Why a step failed.
#[derive(Clone, Debug, Serialize)]
pub struct StepError {
    /// The stable code.
    pub code: Code,
    /// What happened.
    pub message: String,
    /// What to do.
    pub advice: String,
    /// The first cause in the words of the system or service, where there is one.
    pub cause: Option<String>,
}

/// What is stored of a container beside its address and what opens it.
#[derive(Serialize, Deserialize)]
struct Details {
    opened_by: String,
    #[serde(default)]
    options: Options,
}

/// A container that is open.
#[derive(Clone, Debug)]
pub struct OpenContainer {
    /// The bytes in it.
    pub storage: Arc<dyn Storage>,
    /// Its address, without secrets: by it its backups are known.
    pub address: String,
    /// Its name; none for an address that has none.
    pub name: Option<String>,
    /// Where it lies in an object store.
    pub(crate) remote: Option<Remote>,
}

impl OpenContainer {
    /// What it is called in messages.
    #[must_use]
    pub fn shown(&self) -> &str {
        self.name.as_deref().unwrap_or(&self.address)
    }
}

/// The record for which a container's credentials are sealed.
pub(crate) fn record_of(name: &str) -> String {
    format!("container/{name}/credentials")
}

/// Whether a word has the form of a container's name.
fn is_name(text: &str) -> bool {
    (1..=NAME_MAX).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn check_name(name: &str) -> Result<()> {
    if is_name(name) {
        return Ok(());
    }
    let name = name.escape_debug();
    let message =
        format!("`{name}` is not a name of a container: 1 to {NAME_MAX} characters of a-z, 0-9 and `-`");
    Err(Error::new(Code::InvalidValue, message))
}

fn kind_of(address: &Address) -> &'static str {
    match address {
        Address::Local(_) => "folder",
        Address::Remote(bucket) => bucket.kind.scheme(),
    }
}

fn opened_by(credentials: Option<&Credentials>) -> &'static str {
    match credentials {
        None => "nothing",
        Some(Credentials::Machine) => "machine",
        Some(Credentials::Identity { .. }) => "identity",
        Some(Credentials::AccountKey(_)) => "account-key",
        Some(Credentials::Signature(_)) => "signature",
        Some(Credentials::KeyPair { .. }) => "key-pair",
        Some(Credentials::KeyFile(_)) => "key-file",
        Some(Credentials::Anonymous) => "anonymous",
    }
}

/// Address and credentials from what a person gave.
fn read_place(address: Option<&str>, given: Option<&Secret>) -> Result<(Address, Option<Credentials>)> {
    let (address, inside) = match (address, given) {
        (Some(address), _) => (address.parse()?, None),
        (None, Some(given)) => Address::parse(given.reveal().trim())?,
        (None, None) => {
            return Err(Error::new(
                Code::InvalidValue,
                "There is neither an address nor a URL for the container",
            ));
        }
    };
    let apart = given.filter(|_| inside.is_none());
    match &address {
        Address::Local(_) => Ok((address, None)),
        Address::Remote(bucket) => {
            let credentials = match (inside, apart) {
                (Some(inside), _) => inside,
                (None, Some(text)) if !text.reveal().trim().is_empty() && !same(text, &address) => {
                    Credentials::parse(bucket, text.reveal())?
                }
                (None, _) => Credentials::Machine,
            };
            Ok((address, Some(credentials)))
        }
    }
}

/// Whether a text is nothing but the address itself.
fn same(text: &Secret, address: &Address) -> bool {
    text.reveal().trim().parse::<Address>().is_ok_and(|a| a == *address)
}

/// A proxy's address must not hold a password: it is shown.
fn check_options(options: &Options) -> Result<()> {
    let secret = |proxy: &String| proxy.split("://").nth(1).is_some_and(|rest| rest.contains('@'));
    if options.network.proxy.as_ref().is_some_and(secret) {
        return Err(Error::new(Code::InvalidValue, "The address of the proxy holds a user or password")
            .advise("Use a proxy that lets this machine in without one; the address is stored and shown."));
    }
    if options.network.source_address.is_some() && options.network.interface.is_some() {
        return Err(Error::new(Code::Usage, "A source address and an interface exclude each other"));
    }
    Ok(())
}

impl Engine {
    /// Makes a container known, after it was tried; tells how that went. With a failed test nothing is stored unless
    /// [`NewContainer::untested`].
    pub fn container_add(&self, new: &NewContainer<'_>) -> Result<ContainerAdded> {
        check_name(new.name)?;
        check_options(&new.options)?;
        let (address, credentials) = read_place(new.address, new.credentials.as_ref())?;
        let text = place::absolute(&address.to_string(), None)?;
        self.refuse_own_container(&text)?;
        if !new.replace && self.has_catalog() && self.catalog()?.container(new.name)?.is_some() {
            let message = format!("There is a container `{}` already", new.name);
            return Err(Error::new(Code::AlreadyExists, message)
                .advise("Choose another name, or add --replace to give it another key or other options."));
        }
        let opened = self.open_place(&text, credentials.as_ref(), &new.options, new.create);
        let test = test(new.name, &text, opened, credentials.as_ref(), self.clock.now());
        if let Some(failed) = test.steps.iter().find_map(|s| s.error.as_ref()).filter(|_| !new.untested) {
            let step = test.steps.iter().find(|s| s.error.is_some()).map_or("", |s| s.step);
            let mut error = Error::new(
                failed.code,
                format!(
                    "The container `{}` was not added: the step `{step}` failed: {}",
                    new.name, failed.message
                ),
            )
            .advise(failed.advice.clone());
            if let Some(cause) = &failed.cause {
                error = error.because(cause.clone());
            }
            return Err(error);
        }
        let first_run = match &credentials {
            Some(_) => self.secrets_or_new()?.1,
            None => None,
        };
        let sealed = credentials.as_ref().map(|c| self.seal_value(&record_of(new.name), &c.sealed_text()));
        let details =
            Details { opened_by: opened_by(credentials.as_ref()).to_owned(), options: new.options.clone() };
        let container = Container {
            name: new.name.to_owned(),
            address: text,
            credentials: sealed.transpose()?,
            expires: credentials.as_ref().and_then(Credentials::expires),
            options: serde_json::to_string(&details)
                .map_err(|e| Error::new(Code::Internal, "A container cannot be written").because(e))?,
            created: self.clock.now(),
        };
        self.catalog()?.put_container(&container, new.replace)?;
        Ok(ContainerAdded { container: self.container_show(new.name)?, test, first_run })
    }

    /// A container must not lie among Backstay's own files.
    fn refuse_own_container(&self, address: &str) -> Result<()> {
        let Some(folder) = place::local(address) else { return Ok(()) };
        let secrets = crate::secrets::Secrets::load(&self.state)?;
        for own in self.own_folders(&self.vault_address(secrets.as_ref())?) {
            let own = own.canonicalize().unwrap_or(own);
            if folder.starts_with(&own) {
                let message = format!("{} is Backstay's own ({})", folder.display(), own.display());
                return Err(
                    Error::new(Code::Conflict, message).advise("Name another folder for the container.")
                );
            }
        }
        Ok(())
    }

    /// All containers by name.
    pub fn container_list(&self) -> Result<Vec<ContainerView>> {
        if !self.has_catalog() {
            return Ok(Vec::new());
        }
        self.catalog()?.containers()?.iter().map(|c| self.container_view(c)).collect()
    }

    /// One container.
    pub fn container_show(&self, name: &str) -> Result<ContainerView> {
        self.container_view(&self.known_container(name)?)
    }

    /// Tries a container: writes, reads, lists and deletes a small object.
    pub fn container_test(&self, name: &str) -> Result<ContainerTest> {
        let container = self.known_container(name)?;
        let (credentials, details) = self.unseal(&container)?;
        let opened = self.open_place(&container.address, credentials.as_ref(), &details.options, false);
        Ok(test(name, &container.address, opened, credentials.as_ref(), self.clock.now()))
    }

    /// Forgets a container. What lies in it stays.
    pub fn container_remove(&self, name: &str) -> Result<ContainerView> {
        let view = self.container_show(name)?;
        self.catalog()?.remove_container(name)?;
        Ok(view)
    }

    /// Opens a container by its name, or a place by its address (with the key of the container of that address, else what
    /// the environment gives).
    pub fn container_open(&self, text: &str) -> Result<OpenContainer> {
        if is_name(text) {
            return self.open_known(&self.known_container(text)?);
        }
        self.open_at_address(&place::absolute(text, None)?)
    }

    /// The same for an address that is absolute. A folder that does not exist is not made.
    pub(crate) fn open_at_address(&self, address: &str) -> Result<OpenContainer> {
        if self.has_catalog() {
            let known = self.catalog()?.containers()?.into_iter().find(|c| c.address == address);
            if let Some(container) = known {
                return self.open_known(&container);
            }
        }
        let credentials = match address.parse()? {
            Address::Local(_) => None,
            Address::Remote(bucket) => Some(Credentials::from_environment(&bucket)?),
        };
        self.open_place(address, credentials.as_ref(), &Options::default(), false)
    }

    /// The folders of containers on this machine: they are not part of any app.
    pub(crate) fn container_folders(&self) -> Result<Vec<PathBuf>> {
        if !self.has_catalog() {
            return Ok(Vec::new());
        }
        let catalog = self.catalog()?;
        let named = catalog.containers()?.into_iter().map(|c| c.address);
        let mut addresses: Vec<String> = named.collect();
        addresses.extend(catalog.custom_backups(None)?.into_iter().map(|b| b.container));
        addresses.sort();
        addresses.dedup();
        Ok(addresses.iter().filter_map(|a| place::local(a)).collect())
    }

    /// The containers whose keys will soon not be valid any more, or are not.
    pub(crate) fn expiring_containers(&self) -> Result<Vec<(String, Timestamp)>> {
        let now = self.clock.now();
        let soon = |c: Container| Some((c.name, c.expires.filter(|e| is_soon(*e, now))?));
        Ok(self.catalog()?.containers()?.into_iter().filter_map(soon).collect())
    }

    fn known_container(&self, name: &str) -> Result<Container> {
        let found = if self.has_catalog() { self.catalog()?.container(name)? } else { None };
        found.ok_or_else(|| {
            let message = format!(
                "There is no container `{}` in the state {}",
                name.escape_debug(),
                self.state.display()
            );
            Error::new(Code::ContainerNotFound, message)
        })
    }

    fn open_known(&self, container: &Container) -> Result<OpenContainer> {
        let (credentials, details) = self.unseal(container)?;
        let open = self.open_place(&container.address, credentials.as_ref(), &details.options, false);
        let open = open.map_err(|e| e.context(format!("Container `{}`", container.name)))?;
        Ok(OpenContainer { name: Some(container.name.clone()), ..open })
    }

    fn unseal(&self, container: &Container) -> Result<(Option<Credentials>, Details)> {
        let details = details_of(container)?;
        let credentials = match (container.address.parse()?, &container.credentials) {
            (Address::Remote(bucket), Some(sealed)) => {
                let text = self.open_value(&record_of(&container.name), sealed)?;
                Some(Credentials::parse(&bucket, text.reveal())?)
            }
            _ => None,
        };
        Ok((credentials, details))
    }

    fn open_place(
        &self,
        address: &str,
        credentials: Option<&Credentials>,
        options: &Options,
        create: bool,
    ) -> Result<OpenContainer> {
        let (storage, remote): (Arc<dyn Storage>, _) = match address.parse()? {
            Address::Local(path) => {
                let fs = Arc::clone(&self.fs);
                let local = if create { Local::create_on(fs, path) } else { Local::open_on(fs, path) };
                (Arc::new(local.map_err(|e| no_folder(e, address))?), None)
            }
            Address::Remote(bucket) => {
                let credentials = credentials.cloned().unwrap_or(Credentials::Machine);
                let remote = match create {
                    true => Remote::create(&bucket, &credentials, options)?,
                    false => Remote::open(&bucket, &credentials, options)?,
                };
                (Arc::new(remote.clone()), Some(remote))
            }
        };
        Ok(OpenContainer { storage, address: address.to_owned(), name: None, remote })
    }

    fn container_view(&self, container: &Container) -> Result<ContainerView> {
        let details = details_of(container)?;
        let catalog = self.catalog()?;
        let uses = |app: &backstay_catalog::App| {
            app.config.schedule.as_ref().is_some_and(|s| s.container == container.name)
        };
        let here = |b: &backstay_model::CustomBackup| b.container == container.address;
        Ok(ContainerView {
            name: container.name.clone(),
            address: container.address.clone(),
            kind: kind_of(&container.address.parse()?).to_owned(),
            opened_by: details.opened_by,
            expires: container.expires,
            expires_soon: container.expires.is_some_and(|e| is_soon(e, self.clock.now())),
            options: details.options,
            created: container.created,
            used_by: catalog.apps()?.into_iter().filter(uses).map(|a| a.name).collect(),
            backups: catalog.custom_backups(None)?.iter().filter(|b| here(b)).count(),
        })
    }
}

fn details_of(container: &Container) -> Result<Details> {
    serde_json::from_str(&container.options).map_err(|e| {
        let message =
            format!("The options of the container `{}` hold what this version does not know", container.name);
        Error::new(Code::StateUnsupported, message).because(e)
    })
}

fn no_folder(e: Error, address: &str) -> Error {
    match e.code() {
        Code::StorageNotFound => e.advise(format!(
            "If it lies on a disk or a share, see that it is mounted. Backstay makes a folder only when asked to: `backstay \
             container add NAME {address} --create`."
        )),
        _ => e,
    }
}

fn is_soon(expires: Timestamp, now: Timestamp) -> bool {
    expires.duration_since(now) < SignedDuration::from_hours(EXPIRY_WARNING)
}

/// What a signature lacks or when it ends, before anything is tried.
fn warnings(credentials: Option<&Credentials>, now: Timestamp) -> Vec<String> {
    let Some(Credentials::Signature(signature)) = credentials else { return Vec::new() };
    let mut told = Vec::new();
    if let Some(has) = signature.permissions() {
        let lacks: Vec<&str> =
            PERMISSIONS.iter().filter(|(letter, _)| !has.contains(*letter)).map(|(_, name)| *name).collect();
        if !lacks.is_empty() {
            told.push(format!(
                "The signature does not allow to {} (it allows `{}`): make one with the permissions `rcwdl`",
                lacks.join(", "),
                has.escape_debug()
            ));
        }
    }
    match signature.expires() {
        Some(until) if until <= now => {
            told.push(format!("The signature was valid until {until}: make a new one"))
        }
        Some(until) if is_soon(until, now) => {
            told.push(format!("The signature is valid until {until} only: make a new one in time"));
        }
        _ => {}
    }
    told
}

/// Tries every step on a place that was opened, or tells why it was not.
fn test(
    name: &str,
    address: &str,
    opened: Result<OpenContainer>,
    credentials: Option<&Credentials>,
    now: Timestamp,
) -> ContainerTest {
    let mut steps = Vec::new();
    let mut note = |step: &'static str, done: Option<Result<()>>| {
        let passed = done.as_ref().map(Result::is_ok);
        let error = done.and_then(Result::err).map(|e| StepError {
            code: e.code(),
            message: e.message().to_owned(),
            advice: e.advice().to_owned(),
            cause: e.causes().into_iter().next(),
        });
        steps.push(TestStep { step, passed, error });
        passed == Some(true)
    };
    let storage = match opened {
        Ok(open) => {
            note("open", Some(Ok(())));
            Some(open.storage)
        }
        Err(e) => {
            note("open", Some(Err(e)));
            None
        }
    };
    let bytes = random::<32>().unwrap_or_default();
    let object = format!("{TEST}{}", bytes.iter().take(8).map(|b| format!("{b:02x}")).collect::<String>());
    let storage = storage.as_deref();
    let wrote = note("write", storage.map(|s| s.put(&object, &bytes, Put::IfAbsent)));
    note("read", storage.filter(|_| wrote).map(|s| read_back(s, &object, &bytes)));
    note("list", storage.map(|s| listed(s, &object, wrote)));
    note("delete", storage.filter(|_| wrote).map(|s| s.delete(&object)));
    let passed = steps.iter().all(|s| s.passed == Some(true));
    ContainerTest {
        name: name.to_owned(),
        address: address.to_owned(),
        passed,
        steps,
        warnings: warnings(credentials, now),
    }
}

fn read_back(storage: &dyn Storage, object: &str, bytes: &[u8]) -> Result<()> {
    if storage.get(object)? == bytes {
        return Ok(());
    }
    Err(Error::new(
        Code::StorageFailed,
        format!("{} gives other bytes than were written", storage.location()),
    ))
}

fn listed(storage: &dyn Storage, object: &str, expected: bool) -> Result<()> {
    let mut found = false;
    storage.list("", &mut |o| {
        found |= o.name == object;
        Ok(())
    })?;
    if found || !expected {
        return Ok(());
    }
    Err(Error::new(Code::StorageFailed, format!("{} does not list what was written", storage.location())))
}

/// Which kind of secret a place of that address is opened by, to ask a person for it; none for a folder.
pub fn asked_for(address: &str) -> Result<Option<&'static str>> {
    Ok(match address.parse()? {
        Address::Local(_) => None,
        Address::Remote(bucket) => Some(match bucket.kind {
            Kind::Azure => "Signature, account key or connection string (or `machine`)",
            Kind::S3 => "Key as ID:SECRET (or `machine`)",
            Kind::Google => "Content of the key file (or `machine`)",
        }),
    })
}
