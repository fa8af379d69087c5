//! Webhooks and pings over HTTP.
//!
//! Invariants: every call ends within the limit. An address is never repeated in an error, only its host. Proxies of
//! the environment (`HTTPS_PROXY`, `NO_PROXY`) are honoured; certificates are checked against the system's
//! authorities.

use std::sync::OnceLock;

use backstay_model::{Code, Error, Result, Secret};
use reqwest::blocking::{Client, RequestBuilder};

use super::{LIMIT, Ping};
use crate::config::shown_host;

/// A client that is made when it is first needed.
#[derive(Default)]
pub(super) struct Http(OnceLock<Client>);

fn failed(url: &Secret, what: &str) -> Error {
    Error::new(Code::NotifyFailed, format!("{} {what}", shown_host(url).unwrap_or_default()))
}

impl Http {
    fn client(&self) -> Result<&Client> {
        if let Some(client) = self.0.get() {
            return Ok(client);
        }
        // The one provider of this program; an error says that it is set already.
        let _set_before = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .timeout(LIMIT)
            .connect_timeout(LIMIT)
            .redirect(reqwest::redirect::Policy::limited(3))
            .user_agent(concat!("backstay/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| Error::new(Code::NotifyFailed, "Cannot prepare HTTP").because(e.without_url()))?;
        Ok(self.0.get_or_init(|| client))
    }

    /// Sends JSON.
    pub fn post(&self, url: &Secret, token: Option<&Secret>, json: String) -> Result<()> {
        let mut request = self.client()?.post(url.reveal()).body(json);
        request = request.header("content-type", "application/json; charset=utf-8");
        if let Some(token) = token {
            request = request.bearer_auth(token.reveal());
        }
        send(url, request)
    }

    /// Sends a sign of life: the address itself for success, with `/start` or `/fail` otherwise.
    pub fn ping(&self, url: &Secret, ping: Ping) -> Result<()> {
        let mut address = reqwest::Url::parse(url.reveal())
            .map_err(|_may_hold_the_secret| failed(url, "is not an address that can be called"))?;
        let last = match ping {
            Ping::Success => None,
            Ping::Start => Some("start"),
            Ping::Fail => Some("fail"),
        };
        if let Some(last) = last {
            // Before a query, where there is one.
            let mut parts = address
                .path_segments_mut()
                .map_err(|()| failed(url, "is not an address that can be called"))?;
            parts.pop_if_empty().push(last);
        }
        send(url, self.client()?.get(address))
    }
}

fn send(url: &Secret, request: RequestBuilder) -> Result<()> {
    let answer = request.send().map_err(|e| {
        let what = if e.is_timeout() { "did not answer in time" } else { "cannot be reached" };
        failed(url, what).because(e.without_url())
    })?;
    let status = answer.status();
    if status.is_success() { Ok(()) } else { Err(failed(url, &format!("answered with status {status}"))) }
}
