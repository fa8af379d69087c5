//! Google Cloud Storage, by its JSON API.
//!
//! * "Put if absent" is `ifGenerationMatch=0`, for an object as for an upload.
//! * An upload is a session: pieces come one after the other, the last one makes the object. After a failure the service is
//!   asked how much it has. Sessions that are not ended are forgotten after a week, hold nothing that can be seen or is paid
//!   for, and cannot be listed.
//! * The address of a session is a secret: whoever has it may write that object. It is kept here and never shown, and no
//!   token is sent to it.
//! * Tokens come from `object_store`: a service account, a user's credentials, the machine's own.

use std::sync::Arc;

use async_trait::async_trait;
use backstay_model::Secret;
use bytes::{BufMut, Bytes, BytesMut};
use http::Method;
use object_store::client::{CredentialProvider, HttpRequest, HttpRequestBody};
use object_store::gcp::{GcpCredential, GoogleCloudStorageBuilder};
use serde::Deserialize;
use serde_json::{Value, json};
use url::Url;

use super::azure::{no_credentials, part};
use super::client::{Answer, Client};
use super::failure::{Cause, Failure};
use super::service::{
    Begun, Head, LONGEST_ID, MARK, Page, Part, Piece, Service, Write, longest, range_header,
};
use crate::{Bucket, Credentials, Object, Put};

/// The longest answer to a listing: 1000 objects, name and size.
const LONGEST_LIST: usize = 8 << 20;
/// Between the parts of a request. Random names in it are not needed: the length of each part is not looked for by it
/// unless the service sees it, and 128 bits of chance stand against that.
const BOUNDARY: &str = "backstay-5d1f0c9b7e364b0aa1b7c2f4d8e6930f";

type Provider = Arc<dyn CredentialProvider<Credential = GcpCredential>>;

#[derive(Debug)]
pub(crate) struct Google {
    client: Arc<Client>,
    service: String,
    bucket: String,
    project: Option<String>,
    /// None for a service that asks for nothing.
    provider: Option<Provider>,
}

impl Google {
    pub fn new(bucket: &Bucket, credentials: &Credentials, client: Arc<Client>) -> Result<Self, Failure> {
        let var = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let named = var("GOOGLE_APPLICATION_CREDENTIALS").filter(|_| *credentials == Credentials::Machine);
        let file = match credentials {
            Credentials::KeyFile(key) => Some(key.clone()),
            _ => named.as_deref().map(key_file).transpose()?,
        };
        let file: Option<Value> = file.and_then(|text| serde_json::from_str(text.reveal()).ok());
        let of_key = file.as_ref().and_then(|f| f.get("project_id")).and_then(Value::as_str);
        let project = of_key.map(str::to_owned).or_else(|| var("GOOGLE_CLOUD_PROJECT"));
        let builder = || {
            GoogleCloudStorageBuilder::new()
                .with_bucket_name(&bucket.name)
                .with_http_connector(client.connector())
                .with_retry(object_store::RetryConfig { max_retries: 2, ..Default::default() })
        };
        let built = |builder: GoogleCloudStorageBuilder| match builder.build() {
            Ok(store) => Ok(Some(Arc::clone(store.credentials()))),
            Err(_text_may_hold_a_secret) => Err(Failure::new(Cause::Credentials)),
        };
        let provider = match credentials {
            Credentials::Anonymous => None,
            Credentials::KeyFile(key) => built(builder().with_service_account_key(key.reveal()))?,
            Credentials::Machine => built(match named {
                Some(path) => builder().with_application_credentials(path),
                None => builder(),
            })?,
            _ => return Err(Failure::new(Cause::Credentials)),
        };
        Ok(Google { client, service: bucket.service(), bucket: bucket.name.clone(), project, provider })
    }

    /// The URL of an object, or of what is asked of the bucket.
    fn url(&self, path: &str, query: &[(&str, &str)]) -> Result<Url, Failure> {
        let text = format!("{}{path}", self.service);
        let mut url = Url::parse(&text).map_err(|e| Failure::new(Cause::Internal).because(e))?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        Ok(url)
    }

    fn object(&self, key: &str, query: &[(&str, &str)]) -> Result<Url, Failure> {
        // Names hold no other character that needs an escape.
        self.url(&format!("/storage/v1/b/{}/o/{}", self.bucket, key.replace('/', "%2F")), query)
    }

    fn upload(&self, kind: &str, write: Write<'_>) -> Result<Url, Failure> {
        let mut query = vec![("uploadType", kind), ("name", write.key)];
        if write.mode == Put::IfAbsent {
            query.push(("ifGenerationMatch", "0"));
        }
        self.url(&format!("/upload/storage/v1/b/{}/o", self.bucket), &query)
    }

    async fn send(
        &self,
        method: Method,
        url: Url,
        headers: &[(&str, &str)],
        body: Bytes,
        most: usize,
    ) -> Result<Answer, Failure> {
        let mut request = http::Request::builder().method(method).uri(url.as_str());
        if let Some(provider) = &self.provider {
            let credential = provider.get_credential().await.map_err(no_credentials)?;
            request = request.header("authorization", format!("Bearer {}", credential.bearer));
        }
        self.send_built(request, headers, body, most).await
    }

    async fn send_built(
        &self,
        mut request: http::request::Builder,
        headers: &[(&str, &str)],
        body: Bytes,
        most: usize,
    ) -> Result<Answer, Failure> {
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request: HttpRequest = request
            .body(HttpRequestBody::from(body))
            .map_err(|e| Failure::new(Cause::Internal).because(e))?;
        self.client.send(request, most).await
    }

    /// Sends to a session.
    async fn session(&self, id: &str, range: &str, body: Bytes) -> Result<Answer, Failure> {
        let request = http::Request::builder()
            .method(Method::PUT)
            .uri(id)
            .header("content-range", range)
            .body(HttpRequestBody::from(body))
            .map_err(|e| Failure::new(Cause::Internal).because(e))?;
        self.client.send_to_session(request, LONGEST_LIST).await.map_err(|mut failure| {
            if matches!(failure.status(), Some(404 | 410)) {
                failure.code = Some("NoSuchUpload".to_owned());
                failure.cause = Cause::Refused(404);
            }
            failure
        })
    }

    /// Sends bytes to a session, from where it stands. `total` is given with the last ones.
    async fn continued(&self, id: &str, piece: Piece, total: Option<u64>) -> Result<(), Failure> {
        let end = piece.offset + piece.bytes.len() as u64;
        let of = total.map_or("*".to_owned(), |t| t.to_string());
        let mut has = piece.offset;
        if piece.again {
            let answer = self.session(id, &format!("bytes */{of}"), Bytes::new()).await?;
            if answer.status != 308 {
                return Ok(());
            }
            has = persisted(&answer);
        }
        let skip = has.checked_sub(piece.offset).and_then(|n| usize::try_from(n).ok());
        let Some(rest) = skip.filter(|n| *n <= piece.bytes.len()).map(|n| piece.bytes.slice(n..)) else {
            return Err(Failure::nonsense("An upload that holds more or less than was sent"));
        };
        if rest.is_empty() && total.is_none() {
            return Ok(());
        }
        let range = match rest.len() {
            0 => format!("bytes */{of}"),
            _ => format!("bytes {has}-{}/{of}", end - 1),
        };
        let answer = self.session(id, &range, rest).await?;
        match (answer.status, total) {
            (308, None) if persisted(&answer) == end => Ok(()),
            // It took a part only: the next attempt asks how much.
            (308, _) => Err(Failure::new(Cause::Interrupted)),
            (_, Some(_)) => Ok(()),
            (_, None) => Err(Failure::nonsense("An upload that ended too early")),
        }
    }
}

/// The content of a key file.
fn key_file(path: &str) -> Result<Secret, Failure> {
    std::fs::read_to_string(path).map(Secret::new).map_err(|e| {
        let mut failure = Failure::new(Cause::Credentials).because(e);
        failure.said = Some(format!(
            "the file {} of GOOGLE_APPLICATION_CREDENTIALS cannot be read",
            path.escape_debug()
        ));
        failure
    })
}

/// How much of an upload the service has.
fn persisted(answer: &Answer) -> u64 {
    let last =
        answer.header("range").and_then(|r| r.rsplit_once('-')).and_then(|(_, n)| n.parse::<u64>().ok());
    last.map_or(0, |n| n.saturating_add(1))
}

/// Whether a session is at the service that was asked for it: what is uploaded goes nowhere else.
fn is_of(session: &str, service: &str) -> bool {
    let origin = |url: &str| Url::parse(url).ok().map(|url| url.origin()).filter(url::Origin::is_tuple);
    origin(session).is_some() && origin(session) == origin(service)
}

/// A page of a listing.
#[derive(Deserialize)]
struct Listing {
    #[serde(default)]
    items: Vec<Item>,
    #[serde(rename = "nextPageToken")]
    next: Option<String>,
}

#[derive(Deserialize)]
struct Item {
    name: String,
    size: Size,
}

/// The service writes it as text, emulators as a number.
#[derive(Deserialize)]
#[serde(untagged)]
enum Size {
    Number(u64),
    Text(String),
}

impl Size {
    fn bytes(&self) -> Option<u64> {
        match self {
            Size::Number(size) => Some(*size),
            Size::Text(size) => size.parse().ok(),
        }
    }
}

/// An object's properties.
#[derive(Deserialize)]
struct Properties {
    size: Size,
    #[serde(default)]
    metadata: Metadata,
}

#[derive(Default, Deserialize)]
struct Metadata {
    #[serde(rename = "backstaywrite")]
    mark: Option<String>,
}

#[async_trait]
impl Service for Google {
    fn is_sequential(&self) -> bool {
        true
    }

    async fn put(&self, write: Write<'_>, bytes: Bytes) -> Result<(), Failure> {
        let about = json!({ "name": write.key, "metadata": { MARK: write.mark } });
        let mut body = BytesMut::with_capacity(bytes.len() + 512);
        body.put(
            format!("--{BOUNDARY}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{about}\r\n")
                .as_bytes(),
        );
        body.put(format!("--{BOUNDARY}\r\nContent-Type: application/octet-stream\r\n\r\n").as_bytes());
        body.put(bytes);
        body.put(format!("\r\n--{BOUNDARY}--\r\n").as_bytes());
        let kind = format!("multipart/related; boundary={BOUNDARY}");
        let url = self.upload("multipart", write)?;
        self.send(Method::POST, url, &[("content-type", &kind)], body.freeze(), LONGEST_LIST).await.map(drop)
    }

    async fn get(&self, key: &str, range: Option<(u64, u64)>) -> Result<Part, Failure> {
        let header = range.map(range_header);
        let headers: Vec<_> = header.iter().map(|h| ("range", h.as_str())).collect();
        let most = longest(range);
        let url = self.object(key, &[("alt", "media")])?;
        part(self.send(Method::GET, url, &headers, Bytes::new(), most).await?, range)
    }

    async fn head(&self, key: &str) -> Result<Head, Failure> {
        let url = self.object(key, &[("fields", "size,metadata")])?;
        let answer = self.send(Method::GET, url, &[], Bytes::new(), LONGEST_LIST).await?;
        let object: Properties = serde_json::from_slice(&answer.body)
            .map_err(|e| Failure::nonsense("An answer that is not understood").because(e))?;
        let size = object.size.bytes().ok_or_else(|| Failure::nonsense("An object without a size"))?;
        Ok(Head { size, mark: object.metadata.mark })
    }

    async fn delete(&self, key: &str) -> Result<(), Failure> {
        self.send(Method::DELETE, self.object(key, &[])?, &[], Bytes::new(), LONGEST_LIST).await.map(drop)
    }

    async fn page(&self, prefix: &str, from: Option<&str>, most: u32) -> Result<Page, Failure> {
        let most = most.to_string();
        let mut query = vec![
            ("maxResults", most.as_str()),
            ("fields", "nextPageToken,items(name,size)"),
            ("prefix", prefix),
        ];
        query.retain(|(_, value)| !value.is_empty());
        if let Some(from) = from {
            query.push(("pageToken", from));
        }
        let url = self.url(&format!("/storage/v1/b/{}/o", self.bucket), &query)?;
        let answer = self.send(Method::GET, url, &[], Bytes::new(), LONGEST_LIST).await?;
        let wrong = || Failure::nonsense("A listing that is not understood");
        let found: Listing = serde_json::from_slice(&answer.body).map_err(|e| wrong().because(e))?;
        let object = |item: Item| Some(Object { size: item.size.bytes()?, name: item.name });
        let objects: Option<Vec<_>> = found.items.into_iter().map(object).collect();
        Ok(Page { objects: objects.ok_or_else(wrong)?, next: found.next.filter(|t| !t.is_empty()) })
    }

    async fn begin(&self, write: Write<'_>) -> Result<String, Failure> {
        let about = json!({ "name": write.key, "metadata": { MARK: write.mark } }).to_string();
        let headers = [
            ("content-type", "application/json; charset=UTF-8"),
            ("x-upload-content-type", "application/octet-stream"),
        ];
        let url = self.upload("resumable", write)?;
        let answer = self.send(Method::POST, url, &headers, about.into(), LONGEST_LIST).await?;
        answer
            .header("location")
            .filter(|id| id.len() <= LONGEST_ID && is_of(id, &self.service))
            .map(str::to_owned)
            .ok_or_else(|| Failure::nonsense("An upload without an address of this service"))
    }

    async fn piece(&self, _: &str, id: &str, piece: Piece) -> Result<String, Failure> {
        self.continued(id, piece, None).await.map(|()| String::new())
    }

    async fn commit(&self, _: Write<'_>, id: &str, _: &[String], tail: Option<Piece>) -> Result<(), Failure> {
        let tail = tail.ok_or_else(|| Failure::new(Cause::Internal))?;
        let total = tail.offset + tail.bytes.len() as u64;
        self.continued(id, tail, Some(total)).await
    }

    async fn abort(&self, _: &str, id: &str) -> Result<(), Failure> {
        let request = http::Request::builder().method(Method::DELETE).uri(id);
        match self.send_built(request, &[], Bytes::new(), LONGEST_LIST).await {
            // By this status the service says that it has forgotten the upload.
            Err(f) if f.status() == Some(499) => Ok(()),
            other => other.map(drop),
        }
    }

    async fn begun(&self, _: &str) -> Result<Vec<Begun>, Failure> {
        Ok(Vec::new())
    }

    async fn create(&self) -> Result<(), Failure> {
        let Some(project) = &self.project else {
            let mut failure = Failure::new(Cause::Credentials);
            failure.said = Some("a bucket is made in a project, and the key names none".to_owned());
            return Err(failure);
        };
        let about = json!({ "name": self.bucket }).to_string();
        let url = self.url("/storage/v1/b", &[("project", project)])?;
        let headers = [("content-type", "application/json; charset=UTF-8")];
        self.send(Method::POST, url, &headers, about.into(), LONGEST_LIST).await.map(drop)
    }
}
