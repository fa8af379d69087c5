//! From a failed request to an error that a person can act on.
//!
//! One function decides the code for all services; what a service said follows the code's own words. Nothing here
//! knows a secret, and what comes in was looked over for secrets before ([`super::failure`]).

use backstay_model::{Code, Error};
use jiff::Timestamp;

use super::client::{LONGEST_OBJECT, Unresolved};
use super::failure::{Cause, Failure};
use crate::{Bucket, Credentials, Kind, Options};

/// Codes by which services say that the container or bucket itself is not there.
const NO_PLACE: [&str; 4] =
    ["ContainerNotFound", "NoSuchBucket", "ContainerBeingDeleted", "ContainerDisabled"];

/// Codes of a key that is not there (any more), or of a token of it.
const INVALID_KEY: [&str; 3] = ["InvalidAccessKeyId", "NotSignedUp", "authError"];
/// Codes of a token or session that is not valid (any more). S3 and Azure say them with status 400, too.
const INVALID_TOKEN: [&str; 4] =
    ["InvalidAuthenticationInfo", "ExpiredToken", "InvalidToken", "TokenRefreshRequired"];

/// What is needed to put a failure into words.
#[derive(Debug)]
pub(crate) struct Explainer {
    place: String,
    host: String,
    kind: Kind,
    name: String,
    starts: Option<Timestamp>,
    expires: Option<Timestamp>,
    permissions: Option<String>,
    path: String,
}

/// Whether a service says that the container or bucket is not there.
pub(crate) fn is_place_gone(failure: &Failure) -> bool {
    failure.is(&NO_PLACE)
        || failure.code.as_deref() == Some("notFound")
            && failure.said.as_deref().is_some_and(|s| s.contains("bucket") && !s.contains("No such object"))
}

impl Explainer {
    pub fn new(bucket: &Bucket, credentials: &Credentials, options: &Options) -> Self {
        let network = &options.network;
        let path = match (&network.interface, &network.source_address) {
            (Some(interface), _) => format!("the interface {}", interface.escape_debug()),
            (None, Some(address)) => format!("the source address {address}"),
            (None, None) => "the network".to_owned(),
        };
        let signature = match credentials {
            Credentials::Signature(signature) => Some(signature),
            _ => None,
        };
        let permissions =
            signature.and_then(|s| s.permissions()).map(|permissions| permissions.escape_debug().to_string());
        Explainer {
            place: bucket.to_string(),
            host: bucket.host(),
            kind: bucket.kind,
            name: bucket.name.clone(),
            starts: signature.and_then(|s| s.starts()),
            expires: credentials.expires(),
            permissions,
            path,
        }
    }

    /// The error of a put-if-absent that met an object.
    pub fn exists(&self, name: &str) -> Error {
        Error::new(Code::ObjectExists, format!("{name} is in {} already", self.place))
    }

    /// What a failure means. `verb` and `name` say what was tried; an empty name means the place itself.
    pub fn error(&self, failure: Failure, verb: &str, name: &str) -> Error {
        let what = match name {
            "" => format!("Cannot {verb} {}", self.place),
            name => format!("Cannot {verb} {name} in {}", self.place),
        };
        let error = match failure.cause {
            Cause::Resolve => return self.unresolved(failure),
            Cause::PathGone => Error::new(
                Code::NetworkPathGone,
                format!("{what}: {} is not there or has no way to {}", self.path, self.host),
            ),
            Cause::Connect => {
                Error::new(Code::StorageUnavailable, format!("{what}: no connection to {}", self.host))
            }
            Cause::Untrusted => Error::new(
                Code::StorageDenied,
                format!("{what}: the certificate of {} is not trusted", self.host),
            )
            .advise(
                "If the service uses an authority of its own, name the file of its certificates (`ca_file`).",
            ),
            Cause::Handshake => Error::new(
                Code::StorageUnavailable,
                format!("{what}: no secure connection to {} could be agreed on", self.host),
            )
            .advise("Check the address: https may be spoken at another port, or not at all, or a proxy stands in between."),
            Cause::Timeout => {
                Error::new(Code::StorageUnavailable, format!("{what}: {} did not answer in time", self.host))
            }
            Cause::Interrupted => Error::new(
                Code::StorageUnavailable,
                format!("{what}: the connection to {} was lost", self.host),
            ),
            Cause::Nonsense => Error::new(
                Code::StorageUnavailable,
                format!("{what}: {} did not answer as an object store does", self.host),
            )
            .advise("Check the address. A proxy or a login page may stand in between."),
            Cause::TooLong => Error::new(
                Code::LimitExceeded,
                format!("{what}: it has more than {} MiB, the most that is read into memory", LONGEST_OBJECT >> 20),
            ),
            Cause::Credentials => Error::new(
                Code::StorageDenied,
                format!("{what}: there are no usable credentials for it"),
            )
            .advise("Give a key or signature that fits the kind of place, or an identity to this machine."),
            Cause::Internal => Error::new(Code::Internal, format!("{what}: the request could not be made")),
            Cause::Refused(status) => {
                self.refused(&failure, status, &what, if verb == "list" { "" } else { name })
            }
        };
        error.because(failure)
    }

    fn unresolved(&self, failure: Failure) -> Error {
        let mut host = self.host.clone();
        let mut next = std::error::Error::source(&failure);
        while let Some(cause) = next {
            if let Some(unresolved) = cause.downcast_ref::<Unresolved>() {
                host = unresolved.host.clone();
            }
            next = cause.source();
        }
        Error::new(Code::CannotResolveStorage, format!("Cannot resolve {host}. It has no address"))
            .context(format!("Cannot reach {}", self.place))
            .because(failure)
    }

    fn refused(&self, failure: &Failure, status: u16, what: &str, name: &str) -> Error {
        let said = |rest: &str| match &failure.said {
            Some(said) => format!("{what}: {rest}: {said}"),
            None => format!("{what}: {rest}"),
        };
        if is_place_gone(failure) || (status == 404 && name.is_empty()) {
            return Error::new(
                Code::StorageNotFound,
                format!("There is no {} {} in {}", self.container(), self.name, self.host),
            )
            .advise("Check the name, or make it. Backstay makes one only when asked to.");
        }
        if failure.is(&["QuotaExceeded", "XMinioStorageFull", "quotaExceeded", "AccountIsOutOfSpace"])
            || status == 507
        {
            return Error::new(Code::StorageFull, said("it is full"));
        }
        match status {
            404 if failure.is(&["NoSuchUpload"]) => Error::new(
                Code::StorageFailed,
                format!("{what}: the unfinished upload was removed by somebody"),
            ),
            404 => Error::new(Code::ObjectNotFound, format!("There is no {name} in {}", self.place)),
            412 if !name.is_empty() => self.exists(name),
            401 | 403 => self.denied(failure, what),
            400 if failure.is(&INVALID_TOKEN) => self.denied(failure, what),
            400 | 301 | 307 | 308
                if failure.region.is_some() || failure.is(&["AuthorizationHeaderMalformed"]) =>
            {
                let region = failure.region.as_deref().unwrap_or("another one");
                Error::new(Code::InvalidValue, format!("{what}: the bucket is in the region {region}"))
                    .advise("Write that region into the address: s3://BUCKET?region=REGION.")
            }
            429 | 503 if failure.is(&["SlowDown", "ServerBusy", "rateLimitExceeded"]) || status == 429 => {
                Error::new(Code::StorageUnavailable, said("the service asks for fewer requests"))
                    .advise("Try again later, or set a limit on the pace.")
            }
            408 | 500..=599 => Error::new(
                Code::StorageUnavailable,
                said(&format!("the service has a fault of its own (status {status})")),
            ),
            409 if failure.is(&["BlobImmutableDueToPolicy", "BlobHasSnapshots", "LeaseIdMissing"]) => {
                Error::new(Code::StorageDenied, said("the service protects it from changes"))
            }
            409 if failure.is_passing() => {
                Error::new(Code::StorageUnavailable, said("another request is in its way"))
            }
            _ => Error::new(Code::StorageFailed, said(&format!("the service answered with status {status}"))),
        }
    }

    fn container(&self) -> &'static str {
        match self.kind {
            Kind::Azure => "container",
            Kind::S3 | Kind::Google => "bucket",
        }
    }

    /// No access: which of the reasons.
    fn denied(&self, failure: &Failure, what: &str) -> Error {
        if let Some(until) = self.expires.filter(|until| *until <= Timestamp::now()) {
            return Error::new(
                Code::StorageDenied,
                format!("{what}: its shared access signature was valid until {until}"),
            )
            .advise("Make a new signature for the container and give it to Backstay.");
        }
        if let Some(from) = self.starts.filter(|from| *from > Timestamp::now()) {
            return Error::new(
                Code::StorageDenied,
                format!("{what}: its shared access signature is not valid before {from}"),
            )
            .advise(
                "Wait until then, or make one that is valid now. If this machine's clock is wrong, set it.",
            );
        }
        let mut code = failure.code.as_deref().unwrap_or_default();
        // Azurite's word for a wrong signature is the one that Azure has for its firewall.
        if code == "AuthorizationFailure"
            && failure.said.as_deref().is_some_and(|s| s.contains("authenticate"))
        {
            code = "AuthenticationFailed";
        }
        let (why, advice) = match code {
            "AuthenticationFailed" | "SignatureDoesNotMatch" => (
                "the signature does not fit",
                "The key was changed, or a character of the key or signature was lost when it was copied. Give it again. \
                 If this machine's clock is wrong, set it.",
            ),
            "AuthorizationPermissionMismatch"
            | "AuthorizationResourceTypeMismatch"
            | "AuthorizationServiceMismatch"
            | "AccessDenied"
            | "forbidden"
            | "insufficientPermissions" => (
                "the permission is missing",
                "A container needs the permissions to read, write, create, delete and list.",
            ),
            "AuthorizationSourceIPMismatch" | "AuthorizationFailure" => (
                "the account does not let this machine in",
                "Check the firewall of the storage account and, in a signature, its range of addresses.",
            ),
            "AuthorizationProtocolMismatch" => ("it takes https only", "Write https in the address."),
            "KeyBasedAuthenticationNotPermitted" => (
                "the account takes no keys",
                "Give this machine an identity with a role on the container, and `machine` as the credentials.",
            ),
            code if INVALID_KEY.contains(&code) || INVALID_TOKEN.contains(&code) => (
                "its key or token is not valid",
                "The key was removed, or the token has run out. Give a new one.",
            ),
            "RequestTimeTooSkewed" => {
                ("the request's time is too far from the service's", "Set this machine's clock.")
            }
            _ => (
                "the service refuses access",
                "Check key, role and permissions of the place, and its firewall.",
            ),
        };
        let has = self.permissions.as_deref().filter(|_| why.starts_with("the permission"));
        let has = has.map(|p| format!(" (the signature allows `{p}`)")).unwrap_or_default();
        let said = failure.said.as_deref().map(|s| format!(": {s}")).unwrap_or_default();
        Error::new(Code::StorageDenied, format!("{what}: {why}{has}{said}")).advise(advice)
    }
}
