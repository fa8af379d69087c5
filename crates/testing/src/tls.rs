//! Certificates for tests, made by `openssl`.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::program::run;

/// A new key on a curve that everybody knows.
const KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";

/// What a certificate is for.
#[derive(Clone, Copy, Debug)]
pub struct Leaf<'a> {
    /// Its file's name: `NAME.pem` beside `NAME.key`.
    pub name: &'a str,
    /// Its common name.
    pub subject: &'a str,
    /// Its other names, as openssl writes them (`DNS:localhost,IP:127.0.0.1`); empty for none.
    pub names: &'a str,
    /// Whether it is good, for a month; else it was for a day, years ago.
    pub good: bool,
}

/// Makes an authority: `NAME.pem` and `NAME.key` in the folder.
pub fn authority(folder: &Path, name: &str) {
    let words = format!("req -x509 {KEY} -keyout {name}.key -out {name}.pem -days 30 -subj /CN={name}");
    openssl(folder, &words);
}

/// Makes a key and a certificate that the authority of that name in the folder signs.
pub fn certificate(folder: &Path, authority: &str, leaf: &Leaf<'_>) {
    let Leaf { name, subject, names, good } = leaf;
    let mut extensions = "basicConstraints=CA:FALSE\n".to_owned();
    if !names.is_empty() {
        extensions.push_str(&format!("subjectAltName={names}\n"));
    }
    std::fs::write(folder.join(format!("{name}.ext")), extensions).unwrap();
    openssl(folder, &format!("req {KEY} -keyout {name}.key -out {name}.csr -subj /CN={subject}"));
    let files = format!("-in {name}.csr -out {name}.pem -extfile {name}.ext");
    if *good {
        let signer = format!("-CA {authority}.pem -CAkey {authority}.key -CAcreateserial");
        openssl(folder, &format!("x509 -req {files} {signer} -days 30"));
    } else {
        // Only this command takes a time in the past.
        std::fs::write(folder.join("ca.conf"), PAST).unwrap();
        std::fs::write(folder.join("index"), "").unwrap();
        std::fs::write(folder.join("serial"), "01").unwrap();
        let signer = format!("-cert {authority}.pem -keyfile {authority}.key -config ca.conf -outdir .");
        let times = "-startdate 20200101000000Z -enddate 20200102000000Z";
        openssl(folder, &format!("ca -batch -notext {files} {signer} {times}"));
    }
}

const PAST: &str = "[ca]\ndefault_ca=a\n[a]\ndatabase=index\nserial=serial\ndefault_md=sha256\npolicy=p\n[p]\ncommonName=supplied\n";

fn openssl(folder: &Path, words: &str) {
    run(Command::new("openssl").args(words.split(' ')).current_dir(folder)).ok();
}

/// A set of certificates: right ones and such as go wrong, each in its own way.
#[derive(Debug)]
pub struct Certificates {
    folder: TempDir,
}

impl Certificates {
    /// Makes them. Clients are certified for the user of that name.
    #[must_use]
    pub fn new(user: &str) -> Self {
        let folder = crate::quick_dir();
        let dir = folder.path();
        authority(dir, "ca");
        authority(dir, "other-ca");
        let local = "DNS:localhost,IP:127.0.0.1,IP:0:0:0:0:0:0:0:1";
        let leaf = |name, subject, names, good| Leaf { name, subject, names, good };
        certificate(dir, "ca", &leaf("server", "localhost", local, true));
        certificate(dir, "ca", &leaf("wrong-name", "db.example.test", "DNS:db.example.test", true));
        certificate(dir, "ca", &leaf("expired", "localhost", local, false));
        certificate(dir, "ca", &leaf("client", user, "", true));
        certificate(dir, "other-ca", &leaf("other-client", user, "", true));
        Certificates { folder }
    }

    /// The path of `NAME.pem`: `ca`, `other-ca`, `server` (for `localhost` and its addresses), `wrong-name`, `expired`,
    /// `client`, `other-client` (of the other authority).
    #[must_use]
    pub fn certificate(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.pem"))
    }

    /// The path of its key.
    #[must_use]
    pub fn key(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.key"))
    }
}
