//! A machine with a state of its own, and archives that are made without it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use backstay_archive::source::{Source, Stream};
use backstay_archive::{
    Consistency, Database, Live, Manifest, Name, Options, Seal, Settings, SigningKey, Step, Trust, Writer,
    ZipRecord, seal,
};
use backstay_engine::{
    ArchiveSource, Engine, ExportReport, ExportRequest, ImportReport, ImportRequest, PointRecord,
    RestoreRequest, SealBy, Selector, Setup,
};
use backstay_model::{Cancel, Code, Result, Secret, Silent};
use backstay_tree::Exclusions;
use backstay_tree::compare;
use backstay_tree::fs::{FileTime, Host};
use jiff::Timestamp;
use tempfile::TempDir;

/// When the archives of the tests were made.
pub(crate) const TIME: i64 = 1_750_000_000;
pub(crate) const SETTINGS: &[u8] = b"{\"SETTING\":\"value\"}";
pub(crate) const DUMP: &[u8] = b"create table posts (id int);\n";

/// A machine.
pub(crate) struct Machine {
    dir: TempDir,
    pub(crate) engine: Engine,
}

impl Machine {
    pub(crate) fn new() -> Self {
        let dir = backstay_testing::quick_dir();
        let engine = Engine::new(Setup { state: Some(dir.path().join("home")), ..Setup::default() }).unwrap();
        Machine { dir, engine }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    /// The recipient for whom this machine opens; it has secrets from then on.
    pub(crate) fn recipient(&self) -> String {
        if !self.engine.is_set_up().unwrap() {
            self.engine.vault_init().unwrap();
        }
        let text = std::fs::read_to_string(self.engine.secrets_file()).unwrap();
        let secrets: serde_json::Value = serde_json::from_str(&text).unwrap();
        seal::recipient_of(&Secret::new(secrets["age_identity"].as_str().unwrap())).unwrap()
    }

    pub(crate) fn import(&self, zip: &Path, app: Option<&str>, unverified: bool) -> Result<ImportReport> {
        self.import_with(zip, app, unverified, None)
    }

    pub(crate) fn import_with(
        &self,
        zip: &Path,
        app: Option<&str>,
        accept_unverified: bool,
        passphrase: Option<&Secret>,
    ) -> Result<ImportReport> {
        let from = ArchiveSource::File(zip.to_owned());
        let app = app.map(|name| name.parse().unwrap());
        let request = ImportRequest { from: &from, app: app.as_ref(), accept_unverified, passphrase };
        self.engine.import(&request, &Silent, &Cancel::new())
    }

    /// Writes a point as an archive into the folder `out`; gives the zip too.
    pub(crate) fn export(&self, app: &str, name: &str, seal: &SealBy) -> (ExportReport, PathBuf) {
        let to = self.engine.folder_container(&self.path("out")).unwrap();
        let name = Name::parse(name).unwrap();
        let point = Selector::Latest(0);
        let request = ExportRequest { app, point: &point, to: &to, name: Some(&name), seal };
        let report = self.engine.export(&request, &Silent, &Cancel::new()).unwrap();
        (report, self.path("out").join(name.zip()))
    }

    /// The files of a point are those of a folder, in everything.
    pub(crate) fn assert_holds(&self, point: &PointRecord, home: &Path) {
        let out = self.path("restored");
        let selector = Selector::Id(point.point.id.to_string());
        let request = RestoreRequest { app: point.point.app.as_str(), point: &selector, paths: &[] };
        let report = self.engine.restore_to_directory(&request, &out, &Silent, &Cancel::new()).unwrap();
        assert_eq!(report.problems, [], "{report:?}");
        let differences = compare::trees(home, &out, &compare::Options::default());
        assert!(differences.is_empty(), "{differences:#?}");
        backstay_testing::unlock(&out);
        std::fs::remove_dir_all(out).unwrap();
    }

    pub(crate) fn points(&self) -> Vec<PointRecord> {
        self.engine.list(None).unwrap().points
    }

    pub(crate) fn check(&self) {
        let check = self.engine.vault_check(true, &Silent, &Cancel::new()).unwrap();
        assert!(check.clean, "{:?}", check.report.errors);
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        backstay_testing::unlock(self.dir.path());
    }
}

/// A few files, a link, two names of one file.
pub(crate) fn small_home(home: &Path) {
    std::fs::create_dir_all(home.join("img")).unwrap();
    std::fs::write(home.join("index.html"), "<h1>hello</h1>\n").unwrap();
    std::fs::write(home.join("img/logo.png"), [0x89; 300]).unwrap();
    std::fs::hard_link(home.join("index.html"), home.join("img/index.html")).unwrap();
    std::os::unix::fs::symlink("index.html", home.join("start")).unwrap();
}

/// A server that no machine of the tests knows.
pub(crate) fn key() -> SigningKey {
    SigningKey::from_seed(&[7; 32]).unwrap()
}

/// An archive of the app `blog` with a dump and settings: `NAME.zip` and `NAME.xml` in a folder. Gives the zip.
pub(crate) fn pack(home: &Path, folder: &Path, name: &str, by: Option<&Seal>) -> (PathBuf, Manifest) {
    pack_at(home, folder, name, by, TIME)
}

pub(crate) fn pack_at(
    home: &Path,
    folder: &Path,
    name: &str,
    by: Option<&Seal>,
    time: i64,
) -> (PathBuf, Manifest) {
    let (name, stamp) = (Name::parse(name).unwrap(), FileTime { secs: time, nanos: 0 });
    let live = Live::open(Arc::new(Host), home, Exclusions::new()).unwrap();
    let dump = Stream::new("blogdb", stamp, DUMP);
    let settings = by.map(|by| seal::seal(SETTINGS, by).unwrap());
    let mut writer = Writer::new(Vec::new(), Options { workers: 2, ..Options::default() }).unwrap();
    let mut sources: Vec<Box<dyn Source>> = vec![Box::new(live), Box::new(dump)];
    if let Some(sealed) = &settings {
        sources.push(Box::new(Stream::new(sealed.file, stamp, std::io::Cursor::new(sealed.bytes.clone()))));
    }
    for source in &sources {
        writer.add(&**source, &Silent, &Cancel::new()).unwrap();
    }
    let (zip, written) = writer.finish(stamp).unwrap();
    let at = Timestamp::from_second(time).unwrap();
    let steps = vec![Step { what: "files".into(), started: at, ended: at, position: Some("0/16".into()) }];
    let database = Database {
        connection: "Main".into(),
        name: "blogdb".into(),
        kind: "PostgreSql".into(),
        version: Some("15.4".into()),
        file: "blogdb".into(),
        record: None,
    };
    let manifest = Manifest {
        program: "backstay 0.0.9".into(),
        app: "blog".into(),
        slot: None,
        point: None,
        kind: "static".into(),
        host: "elsewhere".into(),
        home: home.display().to_string(),
        host_names: vec!["blog.example".into()],
        started: at,
        ended: at,
        consistency: Consistency { class: "database-first".into(), steps },
        databases: vec![database],
        settings: settings.map(|s| Settings { file: s.file.into(), sealed: s.sealed }),
        filter: vec!["/cache".into()],
        problems: written.problems,
        zip: ZipRecord { name: name.zip(), size: written.size, sha256: written.sha256 },
        entries: written.entries,
    };
    std::fs::create_dir_all(folder).unwrap();
    let path = folder.join(name.zip());
    std::fs::write(&path, zip).unwrap();
    std::fs::write(folder.join(name.xml()), manifest.to_xml(Some(&key()))).unwrap();
    (path, manifest)
}

/// The manifest beside a zip.
pub(crate) fn manifest_of(zip: &Path) -> Manifest {
    let xml = std::fs::read(zip.with_extension("xml")).unwrap();
    Manifest::from_xml(&xml, &Trust::default()).unwrap().0
}

/// Name, size and hash of all entries but one.
pub(crate) fn entries(manifest: &Manifest, but: &str) -> Vec<(String, u64, [u8; 32])> {
    let entries = manifest.entries.iter().filter(|e| e.name != but.as_bytes());
    let mut all: Vec<_> = entries.map(|e| (e.shown(), e.size, e.sha256)).collect();
    all.sort();
    all
}

#[track_caller]
pub(crate) fn code<T: std::fmt::Debug>(result: Result<T>) -> Code {
    result.unwrap_err().code()
}
