//! Azure Blob storage, service version 2021-12-02 or later, and Azurite.
//!
//! * An object is put with one request, whatever its size; one of unknown length is made of blocks and one block list.
//!   Both take `If-None-Match: *`, so "put if absent" is the service's own promise.
//! * Blocks that no list names belong to nobody: the service removes them a week after the last one, they are never
//!   listed as blobs, and there is no request to remove them earlier. So there is nothing to give up or to look for.
//! * Signing is by `object_store`: account key, signature, token of an identity, each cached there as long as it is valid.

use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::Method;
use object_store::azure::{
    AzureAccessKey, AzureAuthorizer, AzureCredential, MicrosoftAzureBuilder, split_sas,
};
use object_store::client::{CredentialProvider, HttpRequest, HttpRequestBody, StaticCredentialProvider};
use url::Url;

use super::client::{Answer, Client};
use super::failure::{Cause, Failure};
use super::service::{
    Begun, Head, MARK, Page, Part, Piece, Service, Write, longest, range_header, whole_size,
};
use super::xml::Records;
use crate::{Bucket, Credentials, Object, Put};

const VERSION: &str = "2021-12-02";
/// The longest answer to a listing: 5000 blobs with all their properties.
const LONGEST_LIST: usize = 32 << 20;

type Provider = Arc<dyn CredentialProvider<Credential = AzureCredential>>;

#[derive(Debug)]
pub(crate) struct Azure {
    client: Arc<Client>,
    account: String,
    /// The container's URL.
    base: Url,
    provider: Provider,
}

impl Azure {
    pub fn new(bucket: &Bucket, credentials: &Credentials, client: Arc<Client>) -> Result<Self, Failure> {
        let base = format!("{}/{}", bucket.service(), bucket.name);
        let base = Url::parse(&base).map_err(|e| Failure::new(Cause::Internal).because(e))?;
        let provider = provider(bucket, credentials, &client)?;
        Ok(Azure { client, account: bucket.account.clone(), base, provider })
    }

    fn url(&self, key: &str, query: &[(&str, &str)]) -> Url {
        let mut url = self.base.clone();
        if !key.is_empty() {
            url.set_path(&format!("{}/{key}", self.base.path()));
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }

    /// Signs a request and sends it.
    async fn send(
        &self,
        method: Method,
        url: Url,
        headers: &[(&str, &str)],
        body: Bytes,
        most: usize,
    ) -> Result<Answer, Failure> {
        let internal = |e: Box<dyn std::error::Error + Send + Sync>| Failure::new(Cause::Internal).because(e);
        let mut request = http::Request::builder()
            .method(method)
            .uri(url.as_str())
            .header("x-ms-version", VERSION)
            .header("content-length", body.len());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut request: HttpRequest =
            request.body(HttpRequestBody::from(body)).map_err(|e| internal(e.into()))?;
        let credential = self.provider.get_credential().await.map_err(no_credentials)?;
        AzureAuthorizer::new(&credential, &self.account)
            .try_authorize(&mut request)
            .map_err(|_text_may_hold_a_secret| Failure::new(Cause::Internal))?;
        self.client.send(request, most).await
    }
}

/// What a provider of tokens said. Its text names addresses, but no secrets: those travel in headers and bodies.
pub(super) fn no_credentials(e: object_store::Error) -> Failure {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(&e);
    while let Some(cause) = next {
        if let Some(failure) = cause.downcast_ref::<Failure>() {
            let mut again = Failure::new(match failure.cause {
                Cause::PathGone => Cause::PathGone,
                _ => Cause::Credentials,
            });
            again.said = Some(failure.to_string());
            return again;
        }
        next = cause.source();
    }
    let mut failure = Failure::new(Cause::Credentials);
    failure.said = super::failure::said(&e.to_string(), &[]);
    failure
}

fn provider(bucket: &Bucket, credentials: &Credentials, client: &Arc<Client>) -> Result<Provider, Failure> {
    let fixed = |c| Ok(Arc::new(StaticCredentialProvider::new(c)) as Provider);
    // Why is not told: the texts of these errors may hold a part of the secret.
    let unusable = || Failure::new(Cause::Credentials);
    let builder = || {
        MicrosoftAzureBuilder::new()
            .with_account(&bucket.account)
            .with_container_name(&bucket.name)
            .with_http_connector(client.connector())
            .with_retry(object_store::RetryConfig { max_retries: 2, ..Default::default() })
    };
    let built = |builder: MicrosoftAzureBuilder| {
        builder.build().map(|store| Arc::clone(store.credentials())).map_err(no_credentials)
    };
    match credentials {
        Credentials::AccountKey(key) => fixed(AzureCredential::AccessKey(
            AzureAccessKey::try_new(key.reveal()).ok().ok_or_else(unusable)?,
        )),
        Credentials::Signature(signature) => {
            fixed(AzureCredential::SASToken(split_sas(signature.query().reveal()).ok().ok_or_else(unusable)?))
        }
        Credentials::Identity { endpoint, client: id } => {
            let mut builder = builder().with_msi_endpoint(endpoint);
            if let Some(id) = id {
                builder = builder.with_client_id(id);
            }
            built(builder)
        }
        Credentials::Machine => {
            // Only what names an identity: a key in the environment is for `Credentials::from_environment` to read.
            use object_store::azure::AzureConfigKey as K;
            let mut builder = builder();
            let names = [
                ("AZURE_CLIENT_ID", K::ClientId),
                ("AZURE_TENANT_ID", K::AuthorityId),
                ("AZURE_CLIENT_SECRET", K::ClientSecret),
                ("AZURE_FEDERATED_TOKEN_FILE", K::FederatedTokenFile),
                ("AZURE_AUTHORITY_HOST", K::AuthorityHost),
                ("IDENTITY_ENDPOINT", K::MsiEndpoint),
                ("MSI_ENDPOINT", K::MsiEndpoint),
            ];
            for (name, key) in names {
                if let Some(value) = std::env::var(name).ok().filter(|v| !v.is_empty()) {
                    builder = builder.with_config(key, value);
                }
            }
            built(builder)
        }
        Credentials::KeyPair { .. } | Credentials::KeyFile(_) | Credentials::Anonymous => {
            Err(Failure::new(Cause::Credentials))
        }
    }
}

#[async_trait]
impl Service for Azure {
    async fn put(&self, write: Write<'_>, bytes: Bytes) -> Result<(), Failure> {
        let mark = format!("x-ms-meta-{MARK}");
        let mut headers = vec![
            ("x-ms-blob-type", "BlockBlob"),
            ("content-type", "application/octet-stream"),
            (mark.as_str(), write.mark),
        ];
        if write.mode == Put::IfAbsent {
            headers.push(("if-none-match", "*"));
        }
        self.send(Method::PUT, self.url(write.key, &[]), &headers, bytes, 0).await.map(drop)
    }

    async fn get(&self, key: &str, range: Option<(u64, u64)>) -> Result<Part, Failure> {
        let header = range.map(range_header);
        let headers: Vec<_> = header.iter().map(|h| ("x-ms-range", h.as_str())).collect();
        let most = longest(range);
        let answer = self.send(Method::GET, self.url(key, &[]), &headers, Bytes::new(), most).await?;
        part(answer, range)
    }

    async fn head(&self, key: &str) -> Result<Head, Failure> {
        let answer = self.send(Method::HEAD, self.url(key, &[]), &[], Bytes::new(), 0).await?;
        let size = answer.header("content-length").and_then(|n| n.parse().ok());
        let size = size.ok_or_else(|| Failure::nonsense("An object without a size"))?;
        Ok(Head { size, mark: answer.header(&format!("x-ms-meta-{MARK}")).map(str::to_owned) })
    }

    async fn delete(&self, key: &str) -> Result<(), Failure> {
        self.send(Method::DELETE, self.url(key, &[]), &[], Bytes::new(), 0).await.map(drop)
    }

    async fn page(&self, prefix: &str, from: Option<&str>, most: u32) -> Result<Page, Failure> {
        let most = most.to_string();
        let mut query = vec![("restype", "container"), ("comp", "list"), ("maxresults", most.as_str())];
        if !prefix.is_empty() {
            query.push(("prefix", prefix));
        }
        if let Some(from) = from {
            query.push(("marker", from));
        }
        let answer = self.send(Method::GET, self.url("", &query), &[], Bytes::new(), LONGEST_LIST).await?;
        listing(&answer.body)
    }

    async fn begin(&self, _: Write<'_>) -> Result<String, Failure> {
        // Blocks of two uploads to one name must not have the same ids: a part of each id is random.
        let random = getrandom::u64().map_err(|e| Failure::new(Cause::Internal).because(e.to_string()))?;
        Ok(format!("{random:016x}"))
    }

    async fn piece(&self, key: &str, id: &str, piece: Piece) -> Result<String, Failure> {
        let block = STANDARD.encode(format!("{id}{:08}", piece.number));
        let url = self.url(key, &[("comp", "block"), ("blockid", &block)]);
        self.send(Method::PUT, url, &[], piece.bytes, 0).await?;
        Ok(block)
    }

    async fn commit(
        &self,
        write: Write<'_>,
        _: &str,
        pieces: &[String],
        _: Option<Piece>,
    ) -> Result<(), Failure> {
        let mut list = String::from("<?xml version=\"1.0\" encoding=\"utf-8\"?><BlockList>");
        for block in pieces {
            list.extend(["<Uncommitted>", block, "</Uncommitted>"]);
        }
        list.push_str("</BlockList>");
        let mark = format!("x-ms-meta-{MARK}");
        let mut headers =
            vec![("x-ms-blob-content-type", "application/octet-stream"), (mark.as_str(), write.mark)];
        if write.mode == Put::IfAbsent {
            headers.push(("if-none-match", "*"));
        }
        let url = self.url(write.key, &[("comp", "blocklist")]);
        self.send(Method::PUT, url, &headers, list.into(), 0).await.map(drop)
    }

    async fn abort(&self, _: &str, _: &str) -> Result<(), Failure> {
        Ok(())
    }

    async fn begun(&self, _: &str) -> Result<Vec<Begun>, Failure> {
        Ok(Vec::new())
    }

    async fn create(&self) -> Result<(), Failure> {
        let url = self.url("", &[("restype", "container")]);
        self.send(Method::PUT, url, &[], Bytes::new(), 0).await.map(drop)
    }
}

/// The bytes of an answer to a request for a whole object or a range.
pub(super) fn part(answer: Answer, range: Option<(u64, u64)>) -> Result<Part, Failure> {
    let Some((offset, _)) = range else {
        return Ok(Part { size: answer.body.len() as u64, bytes: answer.body });
    };
    let told = answer.header("content-range").filter(|_| answer.status == 206);
    let told = told.ok_or_else(|| Failure::nonsense("A whole object where a range was asked for"))?;
    if !told.starts_with(&format!("bytes {offset}-")) {
        return Err(Failure::nonsense("Another range than was asked for"));
    }
    let size = whole_size(told).ok_or_else(|| Failure::nonsense("A range of an object without a size"))?;
    Ok(Part { bytes: answer.body, size })
}

/// The blobs of a listing. Folders of accounts that have such are no objects.
fn listing(xml: &[u8]) -> Result<Page, Failure> {
    let mut page = Page::default();
    Records::new(xml, "EnumerationResults", "Blob").read(|found| {
        match found {
            Ok(blob) if blob.get("ResourceType") == Some("directory") => {}
            Ok(blob) => {
                let size = blob.get("Content-Length").and_then(|s| s.trim().parse().ok());
                let (Some(name), Some(size)) = (blob.get("Name"), size) else { return false };
                page.objects.push(Object { name: name.to_owned(), size });
            }
            Err(("NextMarker", text)) => page.next = Some(text.to_owned()).filter(|m| !m.is_empty()),
            Err(_) => {}
        }
        true
    })?;
    Ok(page)
}
