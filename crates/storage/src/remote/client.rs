//! One HTTP client a place: pace, patience with a connection on which nothing moves, path through the network.
//!
//! Invariants: a client that is bound to a source address or an interface opens no connection by another path, not
//! even after a failure; only addresses of this machine or its link (where clouds keep the tokens of a machine) are
//! spoken to directly. An answer is taken whole or not at all: one that ends early is a failure, never a short body.
//! What a service states is not believed: a stated length reserves no memory beyond what was asked for, an answer that
//! trickles is a stall, and no answer leads to another host. Nothing here tries again.

use std::error::Error as StdError;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use backstay_model::{Code, Error, Result, Secret};
use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, HeaderMap, HeaderValue};
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::failure::{Cause, Failure, said};
use super::pace::{Limiter, Progress};
use crate::Options;

/// The longest text of an error that is read.
const LONGEST_ERROR: usize = 64 << 10;
/// The longest answer of a token endpoint.
const LONGEST_TOKEN: usize = 1 << 20;
/// The greatest piece that is sent or accounted for at once. One must pass within the time after which a connection counts
/// as stalled, so it is small enough for a slow link that many connections share.
const PIECE: usize = 64 << 10;
/// So much of an answer must come within the time after which a connection counts as stalled, or its end.
const SLOWEST: usize = 16 << 10;
/// The longest object that is read as a whole, into memory. Larger ones are read by ranges.
pub(crate) const LONGEST_OBJECT: usize = 1 << 30;
/// So much memory is reserved for an answer before it comes.
const RESERVED: usize = 32 << 20;

/// An answer with a status that means success.
#[derive(Debug)]
pub(crate) struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

pub(crate) struct Client {
    http: reqwest::Client,
    /// For tokens that this machine's own link gives: no proxy, no bound path.
    direct: reqwest::Client,
    limiter: Option<Limiter>,
    idle: Duration,
    bound: bool,
    secrets: Vec<Secret>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("bound", &self.bound).finish_non_exhaustive()
    }
}

impl Client {
    pub fn new(options: &Options, secrets: Vec<Secret>) -> Result<Self> {
        let connect = Duration::from_secs(options.patience.connect_secs.max(1));
        Ok(Client {
            http: bound(options, base(connect))?,
            direct: build(base(connect).no_proxy())?,
            limiter: options.pace.is_limited().then(|| Limiter::new(options.pace.clone())),
            idle: options.patience.idle(),
            bound: options.network.is_bound(),
            secrets,
        })
    }

    /// Sends a request and takes the answer, at most `most` bytes of it.
    pub async fn send(&self, request: HttpRequest, most: usize) -> Result<Answer, Failure> {
        let answer = self.exchange(&self.http, request, most).await?;
        if answer.status < 300 { Ok(answer) } else { Err(self.refused(&answer)) }
    }

    /// The same, where the answer may also be 308, by which Google says that an upload may go on.
    pub async fn send_to_session(&self, request: HttpRequest, most: usize) -> Result<Answer, Failure> {
        let answer = self.exchange(&self.http, request, most).await?;
        if answer.status < 300 || answer.status == 308 { Ok(answer) } else { Err(self.refused(&answer)) }
    }

    async fn exchange(
        &self,
        http: &reqwest::Client,
        request: HttpRequest,
        most: usize,
    ) -> Result<Answer, Failure> {
        let progress = Progress::new();
        let request = self.prepared(request, &progress)?;
        let mut response = tokio::select! {
            response = http.execute(request) => response.map_err(|e| Failure::from_client(e, self.bound))?,
            () = progress.stalled(self.idle) => return Err(Failure::new(Cause::Timeout)),
        };
        let status = response.status().as_u16();
        let headers = std::mem::take(response.headers_mut());
        let body = self.body(response, if status < 300 { Some(most) } else { None }, &progress).await?;
        Ok(Answer { status, headers, body })
    }

    /// The body of an answer: at most so much, else a failure. Of an error's body (none) as much as is read of such.
    async fn body(
        &self,
        mut response: reqwest::Response,
        most: Option<usize>,
        progress: &Progress,
    ) -> Result<Bytes, Failure> {
        let limit = most.unwrap_or(LONGEST_ERROR);
        let stated = response.content_length().unwrap_or(0);
        if most.is_some() && stated > limit as u64 {
            return Err(Failure::too_long(limit));
        }
        let expected = usize::try_from(stated).unwrap_or(usize::MAX);
        let mut body = BytesMut::with_capacity(expected.min(limit).min(RESERVED));
        let (mut since, mut came) = (Instant::now(), 0);
        loop {
            let left = self.idle.saturating_sub(since.elapsed());
            let chunk = tokio::time::timeout(left, response.chunk())
                .await
                .map_err(|e| Failure::new(Cause::Timeout).because(e))?
                .map_err(|e| {
                    let mut failure = Failure::from_client(e, self.bound);
                    // The connection stood; what failed is the rest of the answer.
                    failure.cause =
                        if failure.cause == Cause::Timeout { Cause::Timeout } else { Cause::Interrupted };
                    failure.may_have_happened = true;
                    failure
                })?;
            let Some(chunk) = chunk else { break };
            if let Some(limiter) = &self.limiter {
                let begin = Instant::now();
                limiter.take(chunk.len(), progress).await;
                since += begin.elapsed();
            }
            if chunk.len() > limit.saturating_sub(body.len()) {
                if most.is_none() {
                    break;
                }
                return Err(Failure::too_long(limit));
            }
            body.extend_from_slice(&chunk);
            came += chunk.len();
            if came >= SLOWEST {
                (since, came) = (Instant::now(), 0);
            }
        }
        Ok(body.freeze())
    }

    /// The request in the form of the client below, its body cut into pieces that are paced and watched.
    fn prepared(&self, request: HttpRequest, progress: &Progress) -> Result<reqwest::Request, Failure> {
        let (parts, body) = request.into_parts();
        let internal = |e: &str| {
            let mut failure = Failure::new(Cause::Internal);
            failure.said = Some(e.to_owned());
            failure
        };
        let url = parts.uri.to_string().parse().map_err(|_url_is_not_repeated| internal("not a URL"))?;
        let mut request = reqwest::Request::new(parts.method, url);
        *request.headers_mut() = parts.headers;
        let bytes = body.as_bytes().ok_or_else(|| internal("a body in several parts"))?.clone();
        request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(bytes.len()));
        *request.body_mut() = Some(match bytes.len() {
            0 => bytes.into(),
            _ => reqwest::Body::wrap_stream(pieces(bytes, self.limiter.clone(), progress.clone())),
        });
        Ok(request)
    }

    /// What a status other than success means, as far as the service says.
    fn refused(&self, answer: &Answer) -> Failure {
        let text = String::from_utf8_lossy(&answer.body);
        let (mut code, mut message) = (element(&text, "Code"), element(&text, "Message"));
        if let Ok(json) = serde_json::from_slice::<serde_json::Value>(&answer.body) {
            let error = json.get("error");
            let text = |v: Option<&serde_json::Value>| v.and_then(|v| v.as_str()).map(str::to_owned);
            code = text(error.and_then(|e| e.pointer("/errors/0/reason")));
            message = text(error.and_then(|e| e.get("message")));
        }
        let mut failure = Failure::new(Cause::Refused(answer.status));
        failure.code = answer
            .header("x-ms-error-code")
            .map(str::to_owned)
            .or(code)
            .and_then(|code| said(&code, &self.secrets));
        failure.said = message.and_then(|m| said(&m, &self.secrets));
        failure.wait = answer.header("retry-after").and_then(wait);
        let region =
            answer.header("x-amz-bucket-region").map(str::to_owned).or_else(|| element(&text, "Region"));
        failure.region = region.and_then(|r| said(&r, &self.secrets));
        failure
    }

    /// A maker of clients for what the services' crates ask of their own accord: tokens.
    pub fn connector(self: &Arc<Self>) -> Connector {
        Connector(Arc::clone(self))
    }
}

/// What is between the first `<NAME>` and `</NAME>`.
pub(crate) fn element(text: &str, name: &str) -> Option<String> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    let (inner, _) = rest.split_once(&format!("</{name}>"))?;
    Some(match quick_xml::escape::unescape(inner) {
        Ok(plain) => plain.into_owned(),
        Err(_) => inner.to_owned(),
    })
}

/// The value of `Retry-After`: seconds or a date.
fn wait(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let at = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    let seconds = at.as_second().saturating_sub(jiff::Timestamp::now().as_second());
    Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

fn pieces(
    bytes: Bytes,
    limiter: Option<Limiter>,
    progress: Progress,
) -> impl futures_util::Stream<Item = Result<Bytes, std::convert::Infallible>> + Send + 'static {
    futures_util::stream::unfold((bytes, limiter, progress), |(mut rest, limiter, progress)| async move {
        if rest.is_empty() {
            return None;
        }
        let most = limiter.as_ref().map_or(PIECE, |l| l.piece().min(PIECE));
        let piece = rest.split_to(most.min(rest.len()));
        if let Some(limiter) = &limiter {
            limiter.take(piece.len(), &progress).await;
        }
        progress.touch();
        Some((Ok(piece), (rest, limiter, progress)))
    })
}

fn base(connect: Duration) -> reqwest::ClientBuilder {
    static PROVIDER: Once = Once::new();
    // Another part of the program may have chosen the same one before.
    PROVIDER.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
    reqwest::Client::builder()
        .user_agent(concat!("backstay/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(connect)
        .redirect(reqwest::redirect::Policy::none())
        .http1_only()
        .dns_resolver(Arc::new(Resolver))
}

fn build(builder: reqwest::ClientBuilder) -> Result<reqwest::Client> {
    builder
        .build()
        .map_err(|e| Error::new(Code::System, "The HTTP client could not be set up").because(e.without_url()))
}

/// A client that takes the path the options name.
fn bound(options: &Options, mut builder: reqwest::ClientBuilder) -> Result<reqwest::Client> {
    let network = &options.network;
    let invalid = |what: &str| Error::new(Code::InvalidValue, what);
    match network.proxy.as_deref() {
        None => {}
        Some("none") => builder = builder.no_proxy(),
        Some(proxy) if proxy.starts_with("http://") || proxy.starts_with("https://") => {
            let proxy = reqwest::Proxy::all(proxy).map_err(|_may_hold_a_password| {
                invalid("The proxy is not an address of the form http://HOST:PORT")
            })?;
            builder = builder.proxy(proxy);
        }
        Some(_) => return Err(invalid("The proxy is not an address of the form http://HOST:PORT")),
    }
    if let Some(address) = network.source_address {
        builder = builder.local_address(address);
    }
    if let Some(interface) = &network.interface {
        if interface.is_empty() || interface.len() > 15 {
            return Err(invalid("An interface has a name of 1 to 15 characters"));
        }
        builder = builder.interface(interface);
    }
    if let Some(path) = &network.ca_file {
        let unreadable = |why: &str| invalid(&format!("The file {} {why}", path.display()));
        let pem = std::fs::read(path).map_err(|e| unreadable("of certificates cannot be read").because(e))?;
        let certificates = reqwest::Certificate::from_pem_bundle(&pem)
            .map_err(|e| unreadable("holds no certificates in PEM form").because(e))?;
        if certificates.is_empty() {
            return Err(unreadable("holds no certificates in PEM form"));
        }
        builder = builder.tls_certs_merge(certificates);
    }
    build(builder)
}

/// The system's resolver, whose failures can be told from others.
#[derive(Debug)]
struct Resolver;

/// A name without an address.
#[derive(Debug)]
pub(crate) struct Unresolved {
    pub host: String,
    source: Option<std::io::Error>,
}

impl fmt::Display for Unresolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cannot resolve {}", self.host)
    }
}

impl StdError for Unresolved {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_ref().map(|e| e as &(dyn StdError + 'static))
    }
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let host = name.as_str().to_owned();
            let found =
                tokio::net::lookup_host((host.as_str(), 0)).await.map(Iterator::collect::<Vec<SocketAddr>>);
            match found {
                Ok(found) => {
                    if found.is_empty() {
                        return Err(Box::new(Unresolved { host, source: None }) as Box<_>);
                    }
                    Ok(Box::new(found.into_iter()) as Addrs)
                }
                Err(e) => Err(Box::new(Unresolved { host, source: Some(e) }) as Box<_>),
            }
        })
    }
}

/// Makes clients for the credential providers of the services.
#[derive(Debug, Clone)]
pub(crate) struct Connector(Arc<Client>);

impl HttpConnector for Connector {
    fn connect(&self, _: &object_store::ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

#[async_trait]
impl HttpService for Connector {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let client = &self.0;
        let http =
            if is_own_link(request.uri().host().unwrap_or_default()) { &client.direct } else { &client.http };
        let answer = client.exchange(http, request, LONGEST_TOKEN).await.map_err(|failure| {
            let kind = match failure.cause {
                Cause::Resolve | Cause::Connect | Cause::Handshake => HttpErrorKind::Connect,
                Cause::Timeout => HttpErrorKind::Timeout,
                Cause::Interrupted => HttpErrorKind::Interrupted,
                _ => HttpErrorKind::Unknown,
            };
            HttpError::new(kind, failure)
        })?;
        let mut response = HttpResponse::new(answer.body.into());
        *response.status_mut() = http::StatusCode::from_u16(answer.status)
            .map_err(|e| HttpError::new(HttpErrorKind::Decode, e))?;
        *response.headers_mut() = answer.headers;
        Ok(response)
    }
}

/// Whether a host is this machine, or a neighbour by which clouds give a machine its tokens.
fn is_own_link(host: &str) -> bool {
    match host.trim_matches(['[', ']']).parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => ip.is_loopback() || ip.is_link_local(),
        Ok(IpAddr::V6(ip)) => ip.is_loopback() || ip.is_unicast_link_local() || ip.is_unique_local(),
        Err(_) => matches!(host, "localhost" | "metadata.google.internal" | "metadata"),
    }
}
