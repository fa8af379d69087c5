//! gcp-storage-emulator: an emulator of Google Cloud Storage, from PyPI.

use std::process::Command;

use crate::server::{Server, tool};

/// The emulator does not know the condition `ifGenerationMatch=0` ("only if there is none"): this adds it, with a lock
/// that makes looking and writing one step, as the real service promises.
const STARTER: &str = include_str!("gcs.py");

/// A running emulator.
#[derive(Debug)]
pub struct Gcs {
    server: Server,
}

impl Gcs {
    /// Starts one; none, and a line that says so, where it is not installed.
    #[must_use]
    pub fn start() -> Option<Self> {
        let python = tool("gcp-storage-emulator", "gcs/bin/python")?;
        let server = Server::start("gcp-storage-emulator", |port, _| {
            let mut command = Command::new(&python);
            command.args(["-c", STARTER, &port.to_string()]);
            command
        });
        Some(Gcs { server })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> std::net::SocketAddr {
        self.server.address()
    }

    /// The address of a place in it, as Backstay writes such: `gs://…`.
    #[must_use]
    pub fn place(&self, bucket: &str) -> String {
        format!("gs://{bucket}?endpoint=http://{}", self.server.address())
    }

    /// Makes a bucket, which a program without a project cannot do.
    pub fn make(&self, bucket: &str) {
        use std::io::{Read as _, Write as _};
        let body = format!("{{\"name\": \"{bucket}\"}}");
        let mut stream = std::net::TcpStream::connect(self.address()).expect("the emulator");
        let head =
            "POST /storage/v1/b?project=tests HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: ";
        write!(stream, "{head}{}\r\n\r\n{body}", body.len()).expect("a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        assert!(answer.contains(" 200 "), "{answer}");
    }

    /// What it wrote.
    #[must_use]
    pub fn log(&self) -> String {
        self.server.log()
    }
}
