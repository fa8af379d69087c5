//! Azurite: Microsoft's emulator of Azure Blob storage, from npm.

use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::server::{Server, tool};

/// A running Azurite.
#[derive(Debug)]
pub struct Azurite {
    server: Server,
    authority: Option<PathBuf>,
}

impl Azurite {
    /// The one account it has.
    pub const ACCOUNT: &str = "devstoreaccount1";
    /// The account's key, which is the same everywhere and published.
    pub const KEY: &str =
        "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

    /// Starts one; none, and a line that says so, where it is not installed.
    #[must_use]
    pub fn start() -> Option<Self> {
        let program = tool("azurite", "azurite/node_modules/.bin/azurite-blob")?;
        let server = Server::start("azurite", |port, dir| plain(&program, port, dir));
        Some(Azurite { server, authority: None })
    }

    /// Starts one that speaks https with a certificate of an authority of its own, and takes tokens.
    #[must_use]
    pub fn start_tls() -> Option<Self> {
        let program = tool("azurite", "azurite/node_modules/.bin/azurite-blob")?;
        let server = Server::start("azurite", |port, dir| {
            certificates(dir);
            let mut command = plain(&program, port, dir);
            command.args(["--oauth", "basic"]);
            command.arg("--cert").arg(dir.join("leaf.pem")).arg("--key").arg(dir.join("leaf.key"));
            command
        });
        let authority = server.dir().join("authority.pem");
        Some(Azurite { server, authority: Some(authority) })
    }

    /// The authority's certificate, of one that speaks https.
    #[must_use]
    pub fn authority(&self) -> Option<&Path> {
        self.authority.as_deref()
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> std::net::SocketAddr {
        self.server.address()
    }

    /// The account's URL.
    #[must_use]
    pub fn endpoint(&self) -> String {
        let scheme = if self.authority.is_some() { "https" } else { "http" };
        format!("{scheme}://{}/{}", self.server.address(), Self::ACCOUNT)
    }

    /// The address of a place in it, as Backstay writes such: `azure://…`.
    #[must_use]
    pub fn place(&self, container: &str) -> String {
        format!("azure://{}/{container}?endpoint={}", Self::ACCOUNT, self.endpoint())
    }

    /// A container's URL with a signature.
    #[must_use]
    pub fn url(&self, container: &str, permissions: &str, expires: &str) -> String {
        format!("{}/{container}?{}", self.endpoint(), signature(container, permissions, expires, Self::KEY))
    }
}

fn plain(program: &Path, port: u16, dir: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .args(["--blobHost", "127.0.0.1", "--blobPort", &port.to_string()])
        .args(["--silent", "--disableTelemetry", "--skipApiVersionCheck", "--location"])
        .arg(dir);
    command
}

/// What a shared access signature allows, and when, from where and how. What is empty is left out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Terms<'a> {
    /// In Azure's letters: `racwdl`.
    pub permissions: &'a str,
    /// From when.
    pub starts: &'a str,
    /// Until when.
    pub expires: &'a str,
    /// From which addresses.
    pub addresses: &'a str,
    /// `https`, or `https,http`.
    pub protocol: &'a str,
}

/// A shared access signature for a container of the emulator's account, made with any key.
#[must_use]
pub fn signature(container: &str, permissions: &str, expires: &str, key: &str) -> String {
    signed(container, Terms { permissions, expires, ..Terms::default() }, key)
}

/// The same with all its terms.
#[must_use]
pub fn signed(container: &str, terms: Terms<'_>, key: &str) -> String {
    let Terms { permissions, starts, expires, addresses, protocol } = terms;
    let version = "2021-12-02";
    let resource = format!("/blob/{}/{container}", Azurite::ACCOUNT);
    // Azure's order: permissions, start, expiry, resource, policy, addresses, protocol, version, kind, snapshot,
    // encryption scope, five response headers.
    let policy = "";
    let signed = [permissions, starts, expires, &resource, policy, addresses, protocol, version, "c"];
    let fields: Vec<_> = signed.into_iter().chain([""; 7]).collect();
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &STANDARD.decode(key).expect("a key in base64"));
    let signature = STANDARD.encode(ring::hmac::sign(&key, fields.join("\n").as_bytes()));
    let signature = signature.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");
    let optional = [("st", starts), ("se", expires), ("sip", addresses), ("spr", protocol)];
    let optional = optional.into_iter().filter(|(_, value)| !value.is_empty());
    let optional: String =
        optional.map(|(name, value)| format!("&{name}={}", value.replace(':', "%3A"))).collect();
    format!("sv={version}&sp={permissions}{optional}&sr=c&sig={signature}")
}

/// Makes `authority.pem` and, signed by it for 127.0.0.1, `leaf.pem` with `leaf.key`.
fn certificates(dir: &Path) {
    let openssl = |args: &[&str]| {
        let mut command = Command::new("openssl");
        crate::program::run(command.args(args).current_dir(dir)).ok();
    };
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"];
    let mut authority =
        vec!["req", "-x509", "-keyout", "authority.key", "-out", "authority.pem", "-subj", "/CN=Test"];
    authority.extend(key);
    openssl(&authority);
    let mut leaf = vec!["req", "-x509", "-keyout", "leaf.key", "-out", "leaf.pem", "-subj", "/CN=127.0.0.1"];
    leaf.extend(key);
    leaf.extend(["-CA", "authority.pem", "-CAkey", "authority.key"]);
    leaf.extend(["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"]);
    openssl(&leaf);
}
