//! The one error type of all crates.
//!
//! Invariants: every error has a stable [`Code`]; the code alone decides advice, retry and exit status, so the
//! same failure reads the same wherever it is met. Messages say what happened and name the thing it happened
//! to; they never hold a secret (addresses are redacted by whoever makes the message).

use std::error::Error as StdError;
use std::fmt;

/// The result of everything that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Whether the same call may succeed later without anybody changing anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Trying again is pointless until something is changed.
    No,
    /// A passing condition: the same call may succeed later.
    Later,
}

macro_rules! codes {
    ($( $(#[$doc:meta])* $name:ident, $retry:ident, $exit:literal, $advice:literal; )*) => {
        /// Stable error codes. Each has an entry in `docs/errors.md`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Code { $( $(#[$doc])* $name, )* }

        impl Code {
            /// Every code, in the order of the documentation.
            pub const ALL: &'static [Code] = &[ $( Code::$name, )* ];

            /// The stable text of the code, as shown to people and in JSON.
            #[must_use]
            pub fn as_str(self) -> &'static str { match self { $( Code::$name => stringify!($name), )* } }

            /// What to do about it, in a sentence or two.
            #[must_use]
            pub fn advice(self) -> &'static str { match self { $( Code::$name => $advice, )* } }

            /// Whether trying again without a change can help.
            #[must_use]
            pub fn retry(self) -> Retry { match self { $( Code::$name => Retry::$retry, )* } }

            /// The exit status of a command that ends with this error.
            #[must_use]
            pub fn exit(self) -> u8 { match self { $( Code::$name => $exit, )* } }
        }
    };
}

codes! {
    // --- how a command was called
    /// The words of a command do not fit.
    Usage, No, 2, "Run the command with --help to see what it takes.";
    /// A value (a name, a number, a path) is not of the form it must have.
    InvalidValue, No, 2, "Correct the value and run the command again.";
    /// The user or another process asked for the work to stop.
    Cancelled, Later, 130, "Nothing was lost. Run the command again when you want it done.";
    /// A question needs an answer and there is no terminal to ask on.
    ConfirmationNeeded, No, 2, "Run it on a terminal, or add --yes to agree beforehand.";

    // --- what was not found
    /// No app of that name.
    AppNotFound, No, 4, "`backstay list` shows the known apps; `backstay backup PATH` adopts a folder as a new one.";
    /// No recovery point that matches.
    PointNotFound, No, 4, "`backstay list APP` shows the points; give an id, a unique prefix, latest, latest~2 or a time.";
    /// More than one recovery point matches a prefix.
    PointAmbiguous, No, 4, "Give more characters of the id.";
    /// A path that is not in the recovery point.
    PathNotFound, No, 4, "`backstay files APP POINT` lists what the point holds.";
    /// No job of that id.
    JobNotFound, No, 4, "`backstay job list` shows the jobs.";
    /// No key of that id in the vault.
    KeyNotFound, No, 4, "`backstay vault key list` shows the keys.";
    /// No container of that name.
    ContainerNotFound, No, 4, "`backstay container list` shows the containers; a folder is written with a slash (./backups).";
    /// There is no vault at the place named.
    VaultNotFound, No, 4, "Check the place. `backstay vault init` makes a new vault; it never does so by itself where one was expected.";
    /// An object that should exist is not in the storage.
    ObjectNotFound, No, 1, "Run `backstay vault check` to see what is missing and which points are affected.";

    // --- state and locks
    /// A name is in use for something else.
    AlreadyExists, No, 1, "Choose another name, or remove what has it.";
    /// An object that must be new exists already in the storage.
    ObjectExists, No, 1, "Another writer was faster. Look at what is there before writing again.";
    /// Another job of the same app is running.
    AppBusy, Later, 1, "Wait for the job that runs (`backstay job list`), or cancel it.";
    /// Another program holds a lock on the vault that excludes this work.
    VaultLocked, Later, 1, "Wait until the other program has finished. If its machine is gone for good, run `backstay vault unlock`.";
    /// The lock or lease of this job was taken away while it worked.
    LeaseLost, Later, 1, "Nothing was committed. Run the command again.";
    /// The state directory is in use by a newer version or cannot be understood.
    StateUnsupported, No, 1, "Use the newest version of Backstay that worked with this state. Nothing was changed.";
    /// The state is damaged.
    StateDamaged, No, 1, "Points are safe in the vault. Move the damaged file away; the catalog is rebuilt from the vault.";
    /// The state could not be read or written.
    StateAccess, No, 1, "Check that the folder exists, its owner, its mode and the free space.";
    /// Two different things of that identity: a folder and an app, say.
    Conflict, No, 1, "Look at both and decide which is meant; nothing was changed.";

    // --- vault
    /// No key in the vault opens with the password.
    WrongPassword, No, 1, "Check the password. The recovery kit holds the one this machine uses.";
    /// An object was altered or is broken: its authentication does not match.
    VaultDamaged, No, 1, "Run `backstay vault check --read-data` to see what is affected, then `backstay vault repair`.";
    /// A format newer than this program, or one it does not know.
    VaultUnsupported, No, 1, "Use a newer version. Nothing was changed and nothing is damaged.";
    /// A limit was reached that protects memory and time against hostile or absurd data.
    LimitExceeded, No, 1, "The data is outside what this program accepts. See docs/errors.md for the limit.";
    /// The last way into the vault would be removed.
    LastKey, No, 1, "Add another key first.";

    // --- archives (.zip and .xml)
    /// An archive was altered or is broken: it does not match its manifest, or itself.
    ArchiveDamaged, No, 1, "Nothing was changed. Use another backup, or fetch this one again if it was copied.";
    /// A format of archive newer than this program, or one it does not know.
    ArchiveUnsupported, No, 1, "Use a newer version. Nothing was changed and nothing is damaged.";
    /// A zip without a manifest to compare it with.
    ArchiveUnverified, No, 1, "Put the .xml beside the .zip, or add --accept-unverified if you know where the archive comes from.";
    /// A backup is larger than the plan of the app allows.
    BackupTooLarge, No, 1, "Leave files out with a filter (docs/filter.md), or give the app another plan: `backstay app set APP --plan NAME`.";
    /// The settings of an archive cannot be opened here.
    SettingsSealed, No, 3, "Content and databases can be restored. Give the passphrase or the identity (the recovery kit of the server that made it holds it) to restore the settings too.";

    // --- storage
    /// The place itself (the folder of a vault, say) does not exist.
    StorageNotFound, No, 4, "Check the place. If it lies on a disk or a share, see that it is mounted.";
    /// The place is full.
    StorageFull, Later, 1, "Free space or give the vault another place. Earlier points are unharmed.";
    /// The place refuses access.
    StorageDenied, No, 1, "Check owner, mode and credentials of the place.";
    /// The place cannot be reached or answers with a passing fault.
    StorageUnavailable, Later, 1, "Check the connection and try again.";
    /// The name of the service that holds the place has no address.
    CannotResolveStorage, Later, 1, "Check the address and the name servers. If the account was renamed or removed, give the place its new address.";
    /// A shared access signature lacks a part without which no service accepts it.
    SignatureIncomplete, No, 1, "Make a new shared access signature for the container and give it as a whole, from `sv=` to the end of `sig=`.";
    /// The network path that the place must be reached by (a source address, an interface) is gone.
    NetworkPathGone, Later, 1, "Bring the interface or tunnel up again, or configure another. No other path was tried.";
    /// Reading or writing failed in the storage.
    StorageFailed, No, 1, "Check the disk or service (kernel log, service status). Earlier points are unharmed unless `vault check` says so.";

    // --- file trees
    /// A source path does not exist or is not a folder.
    SourceNotFound, No, 4, "Check the path.";
    /// A file or folder could not be read.
    FileUnreadable, No, 3, "Give the user that runs Backstay the right to read it, or exclude it. The rest was saved.";
    /// The file with the rules of an app's filter is too large or cannot be read.
    FilterUnusable, No, 1, "Correct the file `_backup.filter` in the app's home, or take it away. See docs/filter.md.";
    /// A file changed while it was read.
    FileChanged, Later, 3, "The saved copy may mix old and new. The next backup reads it again.";
    /// The target of a restore is not usable.
    TargetUnusable, No, 1, "Name a folder that does not exist yet, or an empty one.";
    /// Something could not be written in the target of a restore.
    RestoreIncomplete, No, 3, "See the list of paths. Everything else was restored.";
    /// Writing to the target failed for lack of space.
    TargetFull, Later, 1, "Free space on the target's file system and run it again.";
    /// Something in an app's home changed between the plan of a restore and its commit.
    HomeChanged, Later, 1, "Nothing was changed. Run it again; stop the app first if it keeps writing.";
    /// A restore in place was stopped after its commit and cannot be finished for now.
    RestoreUnfinished, Later, 1, "Remove what hinders it, then run any command: the restore is finished then. Nothing was lost.";
    /// A point cannot be restored whole over an app, so nothing of it was.
    RestoreRefused, No, 1, "Nothing was changed. Restore what is whole with --path, or into a folder with --directory.";
    /// There is no restore that could be taken back.
    NothingToUndo, No, 4, "`backstay list APP` shows the points; `backstay restore APP POINT` goes to any of them.";
    /// A name or link in a point would lead outside the target.
    UnsafePath, No, 1, "The entry was not restored. The point was not written by Backstay, or was tampered with.";
    /// The point or the result is only part of what was asked for.
    PartiallySucceeded, No, 3, "See the list of problems; everything else is complete.";

    // --- running apps
    /// The program that runs the app (systemctl, docker, a shell) is missing or cannot be reached.
    RuntimeUnavailable, No, 1, "Install or start it, or set another runtime: `backstay app set NAME …`.";
    /// The app could not be started.
    AppStartFailed, No, 1, "See the cause and the app's own log; then `backstay app start NAME`.";
    /// The app could not be stopped.
    AppStopFailed, No, 1, "Nothing in the app was changed. Stop it by hand, then run the command again.";
    /// The app runs, but its health check does not answer well.
    HealthCheckFailed, Later, 1, "See the app's own log and what the check answers (`backstay app show NAME`).";
    /// A hook failed or took too long.
    HookFailed, No, 1, "See the output of the hook in the job's log (`backstay job log ID`).";

    /// A snapshot of the volume that holds an app's home cannot be made, read or removed.
    VolumeSnapshotFailed, No, 1, "See the cause. `backstay app set NAME --snapshot off` reads the files without one.";

    // --- linked databases
    /// An app has no setting of that name.
    SettingNotFound, No, 4, "`backstay setting list APP` shows the names.";
    /// An app has no connection string of that name.
    ConnectionNotFound, No, 4, "`backstay connection list APP` shows the names.";
    /// The server has no database of that name, or does not show it to this user.
    DatabaseNotFound, No, 1, "Correct the name in the connection string: `backstay connection set APP NAME`.";
    /// The server refuses user and password.
    DatabaseLoginFailed, No, 1, "Correct user and password in the connection string: `backstay connection set APP NAME`.";
    /// The user of the connection string lacks a right that is needed.
    DatabasePrivileges, No, 1, "Grant the user what the message names, or use an administrative user in the connection string.";
    /// The server cannot be reached.
    DatabaseUnreachable, Later, 1, "Check host and port in the connection string, that the server runs, and that its firewall lets this machine in.";
    /// The server takes only connections with TLS, and the connection string says that there is to be none.
    DatabaseTlsRequired, No, 1, "Ask for TLS in the connection string (`sslmode=require`, `SslMode=Required`, `Encrypt=True`).";
    /// The connection string asks for TLS, and the server has none.
    DatabaseTlsUnavailable, No, 1, "Turn TLS on at the server. Only if the network between is trusted, take TLS out of the connection string.";
    /// The certificate of the server is of no authority that is believed.
    DatabaseCertificateUnknown, No, 1, "Name the authority's certificate in the connection string (`sslrootcert=`, `SslCa=`), or correct it.";
    /// The certificate of the server is of another name.
    DatabaseCertificateName, No, 1, "Use the name that stands in the certificate as host, or give the server the right certificate.";
    /// The certificate of the server is not valid at this time.
    DatabaseCertificateExpired, No, 1, "Renew the certificate of the server, and check the clocks of both machines.";
    /// The server wants a certificate of the client and got none, or not the right one; or the one named cannot be used.
    DatabaseClientCertificate, No, 1, "Name certificate and key in the connection string (`sslcert=` and `sslkey=`, `SslCert=` and `SslKey=`).";
    /// A tool that dumps or restores this kind of database is not installed.
    DatabaseToolMissing, No, 1, "Install the package that the message names.";
    /// The tool is older than the server or than what wrote the dump.
    DatabaseToolTooOld, No, 1, "Install the tool in the version that the message names.";
    /// The server has no connection left.
    DatabaseBusy, Later, 1, "Try again later, or raise the limit of connections for the user or at the server.";
    /// Somebody holds a lock that the dump or the restore needs.
    DatabaseLockTimeout, Later, 1, "See who holds it (the message names the table), or take the backup at another time.";
    /// The connection or the tool ended in the middle.
    DatabaseInterrupted, Later, 1, "Nothing of it counts. See the server's log, then run it again.";
    /// The user does not see everything in the database, so no dump of it would be whole.
    DatabaseIncomplete, No, 1, "Grant the user what the message names. No dump was taken as whole.";
    /// The disk of the server, or the one that its data lies on, is full.
    DatabaseFull, Later, 1, "Free space for the database server. Nothing of the app was changed.";
    /// What was restored into a new database is not what the dump's record says.
    DatabaseMismatch, No, 1, "Nothing of the app was changed. Use another point; `backstay verify` says whether this one is whole.";
    /// A dump is broken, or of a kind that this program cannot restore.
    DatabaseDumpUnusable, No, 1, "Nothing of the app was changed. Use another point.";
    /// The server answered with another error.
    DatabaseFailed, No, 1, "See what the server says. Nothing of the app was changed.";

    // --- recovery kit
    /// The kit's passphrase is wrong or the file is not a kit.
    KitUnreadable, No, 1, "Check the file and the passphrase.";

    // --- the scheduler and its messages
    /// A scheduler works on this state already.
    ServerRunning, No, 1, "One `backstay serve` a state is enough. `backstay status` says whether it is well; stop it first to start another.";
    /// A job that belongs to the automatic points cannot be cancelled.
    AutomaticJob, No, 1, "Automatic points are stopped by pausing the app only: `backstay app pause APP`.";
    /// The newest point of an app is older than it may be.
    BackupMissed, Later, 1, "See that `backstay serve` runs (`backstay status`) and why its last run failed (`backstay job list`).";
    /// Points that wait for the vault have reached their limit on this machine.
    SpoolFull, Later, 1, "Bring the vault back: waiting points move in by themselves. Or raise `spool` under [automatic] in backstay.toml.";
    /// A message could not be delivered.
    NotifyFailed, Later, 1, "Check address, credentials and network; `backstay notify test` tries every channel.";

    // --- everything else
    /// The operating system refused something unexpected.
    System, No, 1, "See the cause. If it looks like a mistake of Backstay, report it.";
    /// A mistake in Backstay itself.
    Internal, No, 1, "Please report it, with the command and this message.";
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl serde::Serialize for Code {
    fn serialize<S: serde::Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        s.serialize_str(self.as_str())
    }
}

struct Inner {
    code: Code,
    message: String,
    advice: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// What went wrong: a stable code, what happened, what to do.
///
/// `Display` prints what happened only; the code, the advice and the causes are rendered by the caller that
/// talks to a person.
pub struct Error(Box<Inner>);

impl Error {
    /// An error with its code and what happened. The message starts with a capital and has no full stop.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Error(Box::new(Inner { code, message: message.into(), advice: None, source: None }))
    }

    /// Replaces the code's general advice by a better one for this case.
    #[must_use]
    pub fn advise(mut self, advice: impl Into<String>) -> Self {
        self.0.advice = Some(advice.into());
        self
    }

    /// Adds the cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Puts words before the message, so that an outer caller can say what it was doing.
    #[must_use]
    pub fn context(mut self, what: impl fmt::Display) -> Self {
        self.0.message = format!("{what}: {}", self.0.message);
        self
    }

    /// The stable code.
    #[must_use]
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// What happened.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// What to do.
    #[must_use]
    pub fn advice(&self) -> &str {
        self.0.advice.as_deref().unwrap_or_else(|| self.0.code.advice())
    }

    /// The chain of causes, outermost first, as texts.
    #[must_use]
    pub fn causes(&self) -> Vec<String> {
        let mut out = Vec::new();
        let mut next: Option<&(dyn StdError + 'static)> = self.source();
        while let Some(cause) = next {
            out.push(cause.to_string());
            next = cause.source();
        }
        out
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.code, self.0.message)?;
        for cause in self.causes() {
            write!(f, "; because {cause}")?;
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|s| s as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_of_causes_is_told_in_order() {
        let inner = Error::new(Code::StorageFull, "No space left in /vault");
        let outer = Error::new(Code::StateAccess, "Cannot write the state").because(inner);
        assert_eq!(outer.causes(), ["No space left in /vault"]);
        assert_eq!(outer.context("Backup of blog").message(), "Backup of blog: Cannot write the state");
    }

    #[test]
    fn every_code_has_distinct_text_and_advice_that_is_a_sentence() {
        let mut seen = std::collections::HashSet::new();
        for code in Code::ALL {
            assert!(seen.insert(code.as_str()));
            assert!(code.advice().ends_with('.'), "{code}");
            assert!(matches!(code.exit(), 1..=4 | 130), "{code}");
        }
    }
}
