//! Mail by SMTP.
//!
//! Invariants: the password is read from its file or variable when it is needed and goes over a protected connection
//! only (or to this machine). One connection a message: alerts are rare, and none is held open meanwhile.

use backstay_model::{Code, Error, Result};
use lettre::message::Mailbox;
use lettre::message::header::{ContentType, Header, HeaderName, HeaderValue};
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, Tls as Protection, TlsParameters};
use lettre::{SmtpTransport, Transport as _};

use super::{LIMIT, Message, first_line};
use crate::config::{Mail, Tls};
use crate::secrets::random;

/// Keeps machines from answering.
#[derive(Clone)]
struct AutoSubmitted;

impl Header for AutoSubmitted {
    fn name() -> HeaderName {
        HeaderName::new_from_ascii_str("Auto-Submitted")
    }

    fn parse(_: &str) -> std::result::Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        Ok(AutoSubmitted)
    }

    fn display(&self) -> HeaderValue {
        HeaderValue::new(Self::name(), "auto-generated".to_owned())
    }
}

/// Sends one message to all receivers.
pub(super) fn send(mail: &Mail, message: &Message) -> Result<()> {
    let letter = letter(mail, message)?;
    transport(mail)?.send(&letter).map(|_answer| ()).map_err(|e| {
        let what = match () {
            () if e.is_permanent() => "refused the message",
            () if e.is_timeout() => "did not answer in time",
            () => "did not take the message",
        };
        Error::new(Code::NotifyFailed, format!("The mail server {} {what}", mail.host)).because(e)
    })
}

fn letter(mail: &Mail, message: &Message) -> Result<lettre::Message> {
    let number: String = random::<16>()?.iter().map(|b| format!("{b:02x}")).collect();
    let from = mailbox(&mail.from)?;
    let id = format!("<{number}.backstay@{}>", from.email.domain());
    let mut letter = lettre::Message::builder()
        .from(from)
        .subject(message.subject.clone())
        .header(AutoSubmitted)
        .header(ContentType::TEXT_PLAIN)
        .message_id(Some(id));
    for to in &mail.to {
        letter = letter.to(mailbox(to)?);
    }
    letter
        .body(message.text.clone())
        .map_err(|e| Error::new(Code::NotifyFailed, "The mail cannot be written").because(e))
}

fn mailbox(address: &str) -> Result<Mailbox> {
    address.parse().map_err(|e: lettre::address::AddressError| {
        let message = format!("`{}` is not a mail address", address.escape_debug());
        Error::new(Code::InvalidValue, message).because(e)
    })
}

fn transport(mail: &Mail) -> Result<SmtpTransport> {
    let (usual, protection) = match mail.tls {
        Tls::Starttls => (587, Protection::Required(parameters(mail)?)),
        Tls::Implicit => (465, Protection::Wrapper(parameters(mail)?)),
        Tls::None => (25, Protection::None),
    };
    let mut transport = SmtpTransport::builder_dangerous(&mail.host)
        .port(mail.port.unwrap_or(usual))
        .tls(protection)
        .timeout(Some(LIMIT));
    if let Some(user) = &mail.user {
        let password = match (&mail.password_file, &mail.password_env) {
            (Some(path), _) => first_line(path)?.reveal().to_owned(),
            (None, Some(name)) => std::env::var(name).map_err(|e| {
                let message = format!("The password of the mail server is not in the variable {name}");
                Error::new(Code::NotifyFailed, message).because(e)
            })?,
            (None, None) => String::new(),
        };
        transport = transport.credentials(Credentials::new(user.clone(), password));
    }
    Ok(transport.build())
}

fn parameters(mail: &Mail) -> Result<TlsParameters> {
    let failed = |e: Box<dyn std::error::Error + Send + Sync>, what: String| {
        Error::new(Code::NotifyFailed, what).because(e)
    };
    let mut parameters = TlsParameters::builder(mail.host.clone());
    if let Some(path) = &mail.ca_file {
        let unreadable = format!("{} cannot be read as a certificate", path.display());
        let pem = std::fs::read(path).map_err(|e| failed(e.into(), unreadable.clone()))?;
        let certificate = Certificate::from_pem(&pem).map_err(|e| failed(e.into(), unreadable))?;
        parameters = parameters.add_root_certificate(certificate);
    }
    parameters.build().map_err(|e| failed(e.into(), format!("Cannot prepare TLS for {}", mail.host)))
}
