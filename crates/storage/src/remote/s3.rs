//! S3 and services that speak its protocol.
//!
//! * "Put if absent" is `If-None-Match: *`, on an object as on the commit of an upload. AWS, MinIO, Ceph, R2 and others keep
//!   it. A service that ignores the header would overwrite: [`super::Remote`] cannot know that, the conformance suite can.
//! * S3 answers the deletion of an absent object with success, so it is looked for first. Of two that delete one object at
//!   the same time both may be told that they did.
//! * Parts of uploads that were not ended stay, invisible in listings, until they are given up: [`Service::begun`] finds them.
//! * Signing is by `object_store` (signature version 4, with the SHA-256 of each body).

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use http::Method;
use object_store::aws::{AmazonS3Builder, AwsAuthorizer, AwsCredential};
use object_store::client::{CredentialProvider, HttpRequest, HttpRequestBody, StaticCredentialProvider};
use url::Url;

use super::azure::{no_credentials, part};
use super::client::{Answer, Client, element};
use super::failure::{Cause, Failure};
use super::pages::Pages;
use super::service::{
    Begun, Head, LONGEST_ID, MARK, Page, Part, Piece, Service, Write, longest, range_header,
};
use super::xml::Records;
use crate::{Bucket, Credentials, Object, Put};

/// The longest answer to a listing: 1000 objects.
const LONGEST_LIST: usize = 8 << 20;
/// The longest tag of a part.
const LONGEST_TAG: usize = 256;
/// So many unfinished uploads are looked at in one go. Those that are given up make room for the next ones.
const MOST_BEGUN: usize = 100_000;

type Provider = Arc<dyn CredentialProvider<Credential = AwsCredential>>;

#[derive(Debug)]
pub(crate) struct S3 {
    client: Arc<Client>,
    region: String,
    /// The bucket's URL.
    base: Url,
    /// None for a service that asks for nothing.
    provider: Option<Provider>,
}

impl S3 {
    pub fn new(bucket: &Bucket, credentials: &Credentials, client: Arc<Client>) -> Result<Self, Failure> {
        let mut base = bucket.service();
        if bucket.is_path_style() {
            base = format!("{base}/{}", bucket.name);
        }
        let base = Url::parse(&base).map_err(|e| Failure::new(Cause::Internal).because(e))?;
        let provider = provider(bucket, credentials, &client)?;
        Ok(S3 { client, region: bucket.region().to_owned(), base, provider })
    }

    fn url(&self, key: &str, query: &[(&str, &str)]) -> Url {
        let mut url = self.base.clone();
        if !key.is_empty() {
            url.set_path(&format!("{}/{key}", self.base.path().trim_end_matches('/')));
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
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
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut request: HttpRequest = request
            .body(HttpRequestBody::from(body))
            .map_err(|e| Failure::new(Cause::Internal).because(e))?;
        if let Some(provider) = &self.provider {
            let credential = provider.get_credential().await.map_err(no_credentials)?;
            AwsAuthorizer::new(&credential, "s3", &self.region)
                .try_authorize(&mut request, None)
                .map_err(|_text_may_hold_a_secret| Failure::new(Cause::Internal))?;
        }
        self.client.send(request, most).await
    }
}

fn provider(
    bucket: &Bucket,
    credentials: &Credentials,
    client: &Arc<Client>,
) -> Result<Option<Provider>, Failure> {
    match credentials {
        Credentials::Anonymous => Ok(None),
        Credentials::KeyPair { id, secret, session } => {
            Ok(Some(Arc::new(StaticCredentialProvider::new(AwsCredential {
                key_id: id.clone(),
                secret_key: secret.reveal().to_owned(),
                token: session.as_ref().map(|s| s.reveal().to_owned()),
            }))))
        }
        Credentials::Machine => {
            let store = AmazonS3Builder::from_env()
                .with_bucket_name(&bucket.name)
                .with_region(bucket.region())
                .with_http_connector(client.connector())
                .with_retry(object_store::RetryConfig { max_retries: 2, ..Default::default() })
                .build()
                .map_err(no_credentials)?;
            Ok(Some(Arc::clone(store.credentials())))
        }
        _ => Err(Failure::new(Cause::Credentials)),
    }
}

#[async_trait]
impl Service for S3 {
    async fn put(&self, write: Write<'_>, bytes: Bytes) -> Result<(), Failure> {
        let mark = format!("x-amz-meta-{MARK}");
        let mut headers = vec![("content-type", "application/octet-stream"), (mark.as_str(), write.mark)];
        if write.mode == Put::IfAbsent {
            headers.push(("if-none-match", "*"));
        }
        self.send(Method::PUT, self.url(write.key, &[]), &headers, bytes, LONGEST_LIST).await.map(drop)
    }

    async fn get(&self, key: &str, range: Option<(u64, u64)>) -> Result<Part, Failure> {
        let header = range.map(range_header);
        let headers: Vec<_> = header.iter().map(|h| ("range", h.as_str())).collect();
        let most = longest(range);
        let answer = self.send(Method::GET, self.url(key, &[]), &headers, Bytes::new(), most).await?;
        part(answer, range)
    }

    async fn head(&self, key: &str) -> Result<Head, Failure> {
        let answer = self.send(Method::HEAD, self.url(key, &[]), &[], Bytes::new(), 0).await?;
        let size = answer.header("content-length").and_then(|n| n.parse().ok());
        let size = size.ok_or_else(|| Failure::nonsense("An object without a size"))?;
        Ok(Head { size, mark: answer.header(&format!("x-amz-meta-{MARK}")).map(str::to_owned) })
    }

    async fn delete(&self, key: &str) -> Result<(), Failure> {
        self.head(key).await?;
        self.send(Method::DELETE, self.url(key, &[]), &[], Bytes::new(), LONGEST_LIST).await.map(drop)
    }

    async fn page(&self, prefix: &str, from: Option<&str>, most: u32) -> Result<Page, Failure> {
        let most = most.to_string();
        let mut query = vec![("list-type", "2"), ("max-keys", most.as_str())];
        if !prefix.is_empty() {
            query.push(("prefix", prefix));
        }
        if let Some(from) = from {
            query.push(("continuation-token", from));
        }
        let answer = self.send(Method::GET, self.url("", &query), &[], Bytes::new(), LONGEST_LIST).await?;
        let mut page = Page::default();
        let mut truncated = false;
        Records::new(&answer.body, "ListBucketResult", "Contents").read(|record| {
            match record {
                Ok(object) => {
                    let size = object.get("Size").and_then(|s| s.parse().ok());
                    let name = object.get("Key").map(str::to_owned);
                    let (Some(name), Some(size)) = (name, size) else { return false };
                    page.objects.push(Object { name, size });
                }
                Err(("NextContinuationToken", text)) => page.next = Some(text.to_owned()),
                Err(("IsTruncated", text)) => truncated = text.trim() == "true",
                Err(_) => {}
            }
            true
        })?;
        page.next = page.next.filter(|next| truncated && !next.is_empty());
        // Without a place to go on, the rest would be left out in silence.
        if truncated && page.next.is_none() {
            return Err(Failure::nonsense("A listing that ends before its end"));
        }
        Ok(page)
    }

    async fn begin(&self, write: Write<'_>) -> Result<String, Failure> {
        let mark = format!("x-amz-meta-{MARK}");
        let headers = [("content-type", "application/octet-stream"), (mark.as_str(), write.mark)];
        let url = self.url(write.key, &[("uploads", "")]);
        let answer = self.send(Method::POST, url, &headers, Bytes::new(), LONGEST_LIST).await?;
        element(&String::from_utf8_lossy(&answer.body), "UploadId")
            .filter(|id| (1..=LONGEST_ID).contains(&id.len()))
            .ok_or_else(|| Failure::nonsense("An upload without an id"))
    }

    async fn piece(&self, key: &str, id: &str, piece: Piece) -> Result<String, Failure> {
        let number = (piece.number + 1).to_string();
        let url = self.url(key, &[("partNumber", &number), ("uploadId", id)]);
        let answer = self.send(Method::PUT, url, &[], piece.bytes, LONGEST_LIST).await?;
        answer
            .header("etag")
            .filter(|tag| tag.len() <= LONGEST_TAG)
            .map(str::to_owned)
            .ok_or_else(|| Failure::nonsense("A part of an upload without a tag"))
    }

    async fn commit(
        &self,
        write: Write<'_>,
        id: &str,
        pieces: &[String],
        _: Option<Piece>,
    ) -> Result<(), Failure> {
        let mut list =
            String::from("<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">");
        for (number, tag) in pieces.iter().enumerate() {
            let tag = quick_xml::escape::escape(tag.as_str());
            list.push_str(&format!("<Part><PartNumber>{}</PartNumber><ETag>{tag}</ETag></Part>", number + 1));
        }
        list.push_str("</CompleteMultipartUpload>");
        let headers: &[_] = match write.mode {
            Put::IfAbsent => &[("if-none-match", "*")],
            Put::Replace => &[],
        };
        let url = self.url(write.key, &[("uploadId", id)]);
        let answer = self.send(Method::POST, url, headers, list.into(), LONGEST_LIST).await?;
        // The service begins its answer before it knows how the work ends.
        let text = String::from_utf8_lossy(&answer.body);
        if text.contains("<Error>") {
            let mut failure = Failure::new(match element(&text, "Code").as_deref() {
                Some("PreconditionFailed") => Cause::Refused(412),
                Some("NoSuchUpload") => Cause::Refused(404),
                _ => Cause::Refused(500),
            });
            failure.code = element(&text, "Code").and_then(|code| super::failure::said(&code, &[]));
            return Err(failure);
        }
        if !text.contains("CompleteMultipartUploadResult") {
            return Err(Failure::nonsense("The commit of an upload without a result"));
        }
        Ok(())
    }

    async fn abort(&self, key: &str, id: &str) -> Result<(), Failure> {
        let url = self.url(key, &[("uploadId", id)]);
        self.send(Method::DELETE, url, &[], Bytes::new(), LONGEST_LIST).await.map(drop)
    }

    async fn begun(&self, prefix: &str) -> Result<Vec<Begun>, Failure> {
        let mut found = Vec::new();
        let mut pages = Pages::default();
        let mut from: Option<(String, String)> = None;
        loop {
            let mut query = vec![("uploads", ""), ("max-uploads", "1000")];
            if !prefix.is_empty() {
                query.push(("prefix", prefix));
            }
            if let Some((key, id)) = &from {
                query.extend([("key-marker", key.as_str()), ("upload-id-marker", id.as_str())]);
            }
            let answer =
                self.send(Method::GET, self.url("", &query), &[], Bytes::new(), LONGEST_LIST).await?;
            let (mut truncated, mut next) = (false, (String::new(), String::new()));
            Records::new(&answer.body, "ListMultipartUploadsResult", "Upload").read(|record| {
                match record {
                    Ok(upload) => {
                        let (Some(key), Some(id)) = (upload.get("Key"), upload.get("UploadId")) else {
                            return false;
                        };
                        let since = upload.get("Initiated").and_then(|t| t.parse::<jiff::Timestamp>().ok());
                        found.push(Begun {
                            key: key.to_owned(),
                            id: id.to_owned(),
                            since: since.map(|t| t.as_second()),
                        });
                    }
                    Err(("IsTruncated", text)) => truncated = text.trim() == "true",
                    Err(("NextKeyMarker", text)) => next.0 = text.to_owned(),
                    Err(("NextUploadIdMarker", text)) => next.1 = text.to_owned(),
                    Err(_) => {}
                }
                true
            })?;
            if !truncated || next.0.is_empty() || found.len() >= MOST_BEGUN {
                return Ok(found);
            }
            pages.next(&format!("{}\n{}", next.0, next.1), found.len() as u64)?;
            from = Some(next);
        }
    }

    async fn create(&self) -> Result<(), Failure> {
        let body = match self.region.as_str() {
            // The one region that must not be named.
            "us-east-1" => Bytes::new(),
            region => format!(
                "<CreateBucketConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
                 <LocationConstraint>{region}</LocationConstraint></CreateBucketConfiguration>"
            )
            .into(),
        };
        self.send(Method::PUT, self.url("", &[]), &[], body, LONGEST_LIST).await.map(drop)
    }
}
