//! Servers that speak S3: s3s-fs from crates.io, which checks signatures, and moto from PyPI, which takes every name.

use std::process::Command;

use crate::server::{Server, tool};

/// A running S3 server.
#[derive(Debug)]
pub struct S3 {
    server: Server,
}

impl S3 {
    /// The id of its one key.
    pub const KEY_ID: &str = "AKEYOFTHETESTS";
    /// The key's secret half.
    pub const SECRET: &str = "aSecretOfTheTestsThatIsNoSecret/+1";

    /// Starts one; none, and a line that says so, where it is not installed.
    #[must_use]
    pub fn start() -> Option<Self> {
        let program = tool("s3s-fs", "bin/s3s-fs")?;
        let server = Server::start("s3s-fs", |port, dir| {
            let root = dir.join("root");
            std::fs::create_dir(&root).expect("a folder");
            let mut command = Command::new(&program);
            command
                .args(["--host", "127.0.0.1", "--port", &port.to_string()])
                .args(["--access-key", Self::KEY_ID, "--secret-key", Self::SECRET])
                .arg(root);
            command
        });
        Some(S3 { server })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> std::net::SocketAddr {
        self.server.address()
    }

    /// The address of a place in it, as Backstay writes such: `s3://…`.
    #[must_use]
    pub fn place(&self, bucket: &str) -> String {
        format!("s3://{bucket}?endpoint=http://{}", self.server.address())
    }

    /// The key as Backstay takes it.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}:{}", Self::KEY_ID, Self::SECRET)
    }

    /// The folder that holds its buckets.
    #[must_use]
    pub fn root(&self) -> std::path::PathBuf {
        self.server.dir().join("root")
    }

    /// What it wrote.
    #[must_use]
    pub fn log(&self) -> String {
        self.server.log()
    }
}

/// moto serves requests side by side without holding anything while it looks and writes: this lets one after the other in,
/// so that "only if there is none" holds, as it does on the services.
const STARTER: &str = include_str!("moto.py");

/// A running moto.
#[derive(Debug)]
pub struct Moto {
    server: Server,
}

impl Moto {
    /// Starts one; none, and a line that says so, where it is not installed.
    #[must_use]
    pub fn start() -> Option<Self> {
        let python = tool("moto", "moto/bin/python")?;
        let server = Server::start("moto", |port, _| {
            let mut command = Command::new(&python);
            command.args(["-c", STARTER, &port.to_string()]);
            command
        });
        Some(Moto { server })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> std::net::SocketAddr {
        self.server.address()
    }

    /// The address of a place in it, as Backstay writes such: `s3://…`. It takes any key.
    #[must_use]
    pub fn place(&self, bucket: &str) -> String {
        format!("s3://{bucket}?endpoint=http://{}", self.server.address())
    }
}
