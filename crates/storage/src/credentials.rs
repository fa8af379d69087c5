//! What opens a place in an object store.
//!
//! Invariants: every secret is a [`Secret`], so nothing here prints one; errors name what is wrong with a text and
//! never repeat it. [`Credentials::sealed_text`] gives the one text that [`Credentials::parse`] reads back: whoever keeps
//! credentials seals that text.

use std::fmt;

use backstay_model::{Code, Error, Result, Secret};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;

use crate::{Bucket, Kind};

/// What opens a place. `Debug` shows the kind only.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// What the machine itself has: a managed identity, a role, environment variables of the service's own tools.
    Machine,
    /// A managed identity, from a token endpoint of one's own.
    Identity {
        /// The address of the endpoint.
        endpoint: String,
        /// Which of the machine's identities; none for its only one.
        client: Option<String>,
    },
    /// An Azure account's key.
    AccountKey(Secret),
    /// A shared access signature of Azure.
    Signature(Signature),
    /// A key of S3.
    KeyPair {
        /// Its id, which is no secret.
        id: String,
        /// The secret half.
        secret: Secret,
        /// The token of a key that is valid for a session only.
        session: Option<Secret>,
    },
    /// A key file of a service account of Google, or of a user (JSON).
    KeyFile(Secret),
    /// None: a service that asks for nothing.
    Anonymous,
}

/// A shared access signature and what it says about itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Signature {
    query: Secret,
    starts: Option<Timestamp>,
    expires: Option<Timestamp>,
    permissions: Option<String>,
}

impl Signature {
    /// The query, without `?`.
    pub(crate) fn query(&self) -> &Secret {
        &self.query
    }

    /// From when on it is valid, where it says so.
    #[must_use]
    pub fn starts(&self) -> Option<Timestamp> {
        self.starts
    }

    /// Until when it is valid; none where a stored policy says so.
    #[must_use]
    pub fn expires(&self) -> Option<Timestamp> {
        self.expires
    }

    /// What it allows, in Azure's letters; none where a stored policy says so.
    #[must_use]
    pub fn permissions(&self) -> Option<&str> {
        self.permissions.as_deref()
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signature")
            .field("starts", &self.starts)
            .field("expires", &self.expires)
            .field("permissions", &self.permissions)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Credentials::Machine => "Machine",
            Credentials::Identity { .. } => "Identity",
            Credentials::AccountKey(_) => "AccountKey(***)",
            Credentials::Signature(signature) => return signature.fmt(f),
            Credentials::KeyPair { .. } => "KeyPair(***)",
            Credentials::KeyFile(_) => "KeyFile(***)",
            Credentials::Anonymous => "Anonymous",
        })
    }
}

impl Credentials {
    /// Reads what a person gives for a place. For every kind: `machine`. For Azure: a signature (`sv=…&sig=…`) or the URL that
    /// holds it, an account key, a connection string, `identity:URL[?client_id=ID]`. For S3: `ID:SECRET[:SESSION]`, or
    /// lines as in a credentials file of AWS. For Google: the key file's content.
    ///
    /// Fails with `InvalidValue`, or `SignatureIncomplete`.
    pub fn parse(bucket: &Bucket, text: &str) -> Result<Self> {
        let text = text.trim();
        match (text, bucket.kind) {
            ("machine", _) => Ok(Credentials::Machine),
            ("anonymous", Kind::S3 | Kind::Google) => Ok(Credentials::Anonymous),
            (_, Kind::Azure) => azure(bucket, text),
            (_, Kind::S3) => key_pair(text),
            (_, Kind::Google) => key_file(text),
        }
    }

    /// What the environment of this process gives for a place, by the names that the services' own tools use; what the
    /// machine has where it gives nothing.
    pub fn from_environment(bucket: &Bucket) -> Result<Self> {
        let var = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
        match bucket.kind {
            Kind::Azure => {
                ["AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_KEY"]
                    .into_iter()
                    .find_map(var)
                    .map_or(Ok(Credentials::Machine), |text| azure(bucket, &text))
            }
            // The services' crates read these themselves.
            Kind::S3 | Kind::Google => Ok(Credentials::Machine),
        }
    }

    /// A shared access signature from a URL's query.
    pub fn signature(query: &str) -> Result<Self> {
        let query = query.trim().trim_start_matches('?');
        let (mut starts, mut expires) = (None, None);
        let mut permissions = None;
        let (mut version, mut signed, mut policy) = (false, false, false);
        for (key, value) in url::form_urlencoded::parse(query.as_bytes()) {
            let given = !value.is_empty();
            match key.as_ref() {
                "sv" => version = given,
                "sig" => signed = given,
                "si" => policy = given,
                "sp" if given => permissions = Some(value.into_owned()),
                "st" if given => starts = Some(time(&value).ok_or_else(incomplete)?),
                "se" if given => expires = Some(time(&value).ok_or_else(incomplete)?),
                _ => {}
            }
        }
        if !version || !signed || !(policy || (expires.is_some() && permissions.is_some())) {
            return Err(incomplete());
        }
        Ok(Credentials::Signature(Signature { query: Secret::new(query), starts, expires, permissions }))
    }

    /// Until when they are valid, where that is known.
    #[must_use]
    pub fn expires(&self) -> Option<Timestamp> {
        match self {
            Credentials::Signature(signature) => signature.expires,
            _ => None,
        }
    }

    /// The text that [`Credentials::parse`] reads back, to be sealed.
    #[must_use]
    pub fn sealed_text(&self) -> Secret {
        Secret::new(match self {
            Credentials::Machine => "machine".to_owned(),
            Credentials::Anonymous => "anonymous".to_owned(),
            Credentials::Identity { endpoint, client: None } => format!("identity:{endpoint}"),
            Credentials::Identity { endpoint, client: Some(id) } => {
                format!("identity:{endpoint}?client_id={id}")
            }
            Credentials::AccountKey(key) | Credentials::KeyFile(key) => return key.clone(),
            Credentials::Signature(signature) => return signature.query.clone(),
            Credentials::KeyPair { id, secret, session: None } => format!("{id}:{}", secret.reveal()),
            Credentials::KeyPair { id, secret, session: Some(session) } => {
                format!("{id}:{}:{}", secret.reveal(), session.reveal())
            }
        })
    }

    /// Every text that must not be seen, for whoever has to look over what a service said.
    pub(crate) fn secrets(&self) -> Vec<Secret> {
        match self {
            Credentials::Machine | Credentials::Identity { .. } | Credentials::Anonymous => Vec::new(),
            Credentials::AccountKey(key) | Credentials::KeyFile(key) => vec![key.clone()],
            Credentials::Signature(signature) => {
                let query = signature.query.reveal();
                let raw = query.split('&').filter_map(|pair| pair.strip_prefix("sig="));
                let plain = url::form_urlencoded::parse(query.as_bytes())
                    .filter(|(key, _)| key == "sig")
                    .map(|(_, value)| Secret::new(value));
                raw.map(Secret::new).chain(plain).chain([signature.query.clone()]).collect()
            }
            Credentials::KeyPair { secret, session, .. } => {
                std::iter::once(secret.clone()).chain(session.clone()).collect()
            }
        }
    }
}

fn incomplete() -> Error {
    Error::new(Code::SignatureIncomplete, "Missing mandatory parameters for valid Shared Access Signature")
}

fn bad(what: &str, form: &str) -> Error {
    Error::new(Code::InvalidValue, format!("This is not {what}")).advise(format!("Give {form}."))
}

/// A time as signatures hold it: a date, or a date and time with or without seconds.
fn time(text: &str) -> Option<Timestamp> {
    text.parse().ok().or_else(|| {
        let date: jiff::civil::Date = text.parse().ok().filter(|_| !text.contains('T'))?;
        Some(date.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp())
    })
}

fn azure(bucket: &Bucket, text: &str) -> Result<Credentials> {
    let forms = "a shared access signature (sv=…&sig=…), the container's URL with it, the account's key, a connection \
                 string, or `machine`";
    if let Some(endpoint) = text.strip_prefix("identity:") {
        return identity(endpoint);
    }
    if let Some(key) = account_key(text) {
        return Ok(key);
    }
    if let Some((_, query)) = text.split_once('?').filter(|(url, _)| url.starts_with("http")) {
        return Credentials::signature(query);
    }
    if ["AccountKey=", "SharedAccessSignature=", "AccountName="].iter().any(|k| text.contains(k)) {
        return connection_string(bucket, text);
    }
    if ["sig=", "sv=", "se="].iter().any(|k| text.contains(k)) {
        return Credentials::signature(text);
    }
    Err(bad("a key for an Azure container", forms))
}

fn account_key(text: &str) -> Option<Credentials> {
    let bytes = STANDARD.decode(text).ok()?;
    (bytes.len() >= 16).then(|| Credentials::AccountKey(Secret::new(text)))
}

fn identity(text: &str) -> Result<Credentials> {
    let wrong = || bad("the address of a token endpoint", "`identity:` and an http or https URL");
    let (endpoint, query) = text.split_once('?').unwrap_or((text, ""));
    let url = url::Url::parse(endpoint).map_err(|_text_is_not_repeated| wrong())?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(wrong());
    }
    let client = match query {
        "" => None,
        query => Some(query.strip_prefix("client_id=").ok_or_else(wrong)?.to_owned()),
    };
    Ok(Credentials::Identity { endpoint: endpoint.to_owned(), client })
}

/// `DefaultEndpointsProtocol=https;AccountName=…;AccountKey=…;EndpointSuffix=…`, in any order.
fn connection_string(bucket: &Bucket, text: &str) -> Result<Credentials> {
    let form = "the connection string as the portal shows it, with AccountName and AccountKey or SharedAccessSignature";
    let part = |name: &str| {
        text.split(';').filter_map(|p| p.trim().split_once('=')).find(|(k, _)| *k == name).map(|(_, v)| v)
    };
    if let Some(account) = part("AccountName").filter(|a| *a != bucket.account) {
        return Err(Error::new(
            Code::InvalidValue,
            format!(
                "The connection string is of the account {}, not of {}",
                account.escape_debug(),
                bucket.account
            ),
        ));
    }
    if let Some(signature) = part("SharedAccessSignature") {
        return Credentials::signature(signature);
    }
    part("AccountKey").and_then(account_key).ok_or_else(|| bad("a complete connection string", form))
}

fn key_pair(text: &str) -> Result<Credentials> {
    let line = |name: &str| {
        text.lines()
            .filter_map(|l| l.split_once('='))
            .find(|(k, _)| k.trim().eq_ignore_ascii_case(name))
            .map(|(_, v)| v.trim())
            .filter(|v| !v.is_empty())
    };
    let from_lines =
        || Some((line("aws_access_key_id")?, line("aws_secret_access_key")?, line("aws_session_token")));
    let from_pair = || {
        let mut parts = text.splitn(3, ':');
        let (id, secret) = (parts.next()?, parts.next().filter(|s| !s.is_empty())?);
        Some((id, secret, parts.next().filter(|s| !s.is_empty())))
    };
    let is_plain = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_graphic());
    from_lines()
        .or_else(from_pair)
        .filter(|(id, secret, session)| is_plain(id) && is_plain(secret) && session.is_none_or(is_plain))
        .map(|(id, secret, session)| Credentials::KeyPair {
            id: id.to_owned(),
            secret: Secret::new(secret),
            session: session.map(Secret::new),
        })
        .ok_or_else(|| bad("a key of an S3 service", "ID:SECRET, ID:SECRET:SESSION, or `machine`"))
}

fn key_file(text: &str) -> Result<Credentials> {
    let is_object = serde_json::from_str::<serde_json::Value>(text).is_ok_and(|v| v.is_object());
    if is_object {
        Ok(Credentials::KeyFile(Secret::new(text)))
    } else {
        Err(bad("a key file of Google Cloud", "the content of the service account's JSON file, or `machine`"))
    }
}
