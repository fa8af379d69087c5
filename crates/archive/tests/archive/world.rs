//! What the tests share: packing trees, manifests, running other programs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use backstay_archive::source::{
    Content, Details, Failure, Item, Names, Opened, Reader, Sink, Source, Stream, TreeItem, What,
};
use backstay_archive::{
    Consistency, Database, Live, Manifest, Name, Options, Seal, Settings, SigningKey, Step, Trust, Writer,
    Written, ZipRecord, seal,
};
use backstay_model::{Cancel, Result, Secret, Silent};
use backstay_tree::Exclusions;
use backstay_tree::fs::{FileTime, Host};
use jiff::Timestamp;

/// When all archives of the tests were made.
pub const TIME: i64 = 1_795_180_500;

pub fn time() -> FileTime {
    FileTime { secs: TIME, nanos: 0 }
}

pub fn key() -> SigningKey {
    SigningKey::from_seed(&[7; 32]).unwrap()
}

pub fn trust() -> Trust {
    Trust { keys: vec![key().public()] }
}

pub fn options() -> Options {
    Options { workers: 2, ..Options::default() }
}

/// An archive in memory.
#[derive(Clone)]
pub struct Packed {
    pub zip: Vec<u8>,
    pub xml: Vec<u8>,
    pub manifest: Manifest,
}

impl Packed {
    /// Both files in a folder; gives the path of the zip.
    pub fn store(&self, dir: &Path, name: &str) -> PathBuf {
        let zip = dir.join(format!("{name}.zip"));
        std::fs::write(&zip, &self.zip).unwrap();
        std::fs::write(zip.with_extension("xml"), &self.xml).unwrap();
        zip
    }
}

pub fn live(home: &Path) -> Live<'static> {
    Live::open(Arc::new(Host), home, Exclusions::new()).unwrap()
}

/// Packs sources behind each other.
pub fn pack(sources: &[&dyn Source], options: Options) -> Packed {
    let mut writer = Writer::new(Vec::new(), options).unwrap();
    for source in sources {
        writer.add(*source, &Silent, &Cancel::new()).unwrap();
    }
    let (zip, written) = writer.finish(time()).unwrap();
    finish(zip, written)
}

pub fn finish(zip: Vec<u8>, written: Written) -> Packed {
    let manifest = manifest(written);
    Packed { zip, xml: manifest.to_xml(Some(&key())), manifest }
}

/// A home, a dump of unknown length and sealed settings.
pub fn pack_app(home: &Path) -> Packed {
    let dump = Stream::new("blogdb", time(), &b"create table posts (id int);\n"[..]);
    let by = Seal::Recipients(vec![seal::recipient_of(&identity()).unwrap()]);
    let sealed = seal::seal(b"{\"SETTING\":\"value\"}", &by).unwrap();
    let settings = Stream::new(sealed.file, time(), std::io::Cursor::new(sealed.bytes.clone()));
    let mut packed = pack(&[&live(home), &dump, &settings], options());
    packed.manifest.databases.push(Database {
        connection: "Main".into(),
        name: "blogdb".into(),
        kind: "PostgreSql".into(),
        version: Some("15.4".into()),
        file: "blogdb".into(),
        record: Some("{\"rows\":\"<1 &amp; \u{e4}>\"}".into()),
    });
    packed.manifest.settings = Some(Settings { file: sealed.file.into(), sealed: sealed.sealed });
    packed.xml = packed.manifest.to_xml(Some(&key()));
    packed
}

/// The identity for whom settings of tests are sealed.
pub fn identity() -> Secret {
    use age::secrecy::ExposeSecret as _;
    static IDENTITY: std::sync::OnceLock<Secret> = std::sync::OnceLock::new();
    let new = || Secret::new(age::x25519::Identity::generate().to_string().expose_secret());
    IDENTITY.get_or_init(new).clone()
}

pub fn manifest(written: Written) -> Manifest {
    let at = Timestamp::from_second(TIME).unwrap();
    Manifest {
        program: "backstay 0.1.0".into(),
        app: "blog".into(),
        slot: None,
        point: Some("0123456789abcdef0123456789abcdef".parse().unwrap()),
        kind: "static".into(),
        host: "host <&> \"one\"".into(),
        home: "/srv/blog".into(),
        host_names: vec!["blog.example".into(), "www.blog.example".into()],
        started: at,
        ended: at,
        consistency: Consistency {
            class: "files-only".into(),
            steps: vec![Step {
                what: "files".into(),
                started: at,
                ended: at,
                position: Some("0/16B3748".into()),
            }],
        },
        databases: Vec::new(),
        settings: None,
        filter: vec!["/site/cache".into(), "  # odd\tline ".into()],
        problems: written.problems,
        zip: ZipRecord { name: name().zip(), size: written.size, sha256: written.sha256 },
        entries: written.entries,
    }
}

pub fn name() -> Name {
    Name::parse("blog_202611201315").unwrap()
}

/// Runs a program of the system; its output, both streams. The program must be there.
pub fn run(program: &str, args: &[&str]) -> (i32, String) {
    let out = Command::new(program)
        .args(args)
        .env("LC_ALL", "C.UTF-8")
        .output()
        .unwrap_or_else(|e| panic!("{program}, which ./test installs: {e}"));
    let text = [String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr)].concat();
    (out.status.code().unwrap_or(-1), text)
}

pub fn must(program: &str, args: &[&str]) -> String {
    let (status, text) = run(program, args);
    let end = &text[text.len().saturating_sub(4000)..];
    assert_eq!(status, 0, "{program} {args:?}: {end}");
    text
}

/// Content of a test: so many times the same byte, or random ones.
#[derive(Clone, Debug)]
pub enum Bytes {
    Zeros(u64),
    Random(u64),
    Of(Vec<u8>),
    /// Vanished when it is opened.
    Gone,
}

/// Items that are made up, in memory.
pub struct Made(pub Vec<(PathBuf, Bytes)>);

/// The same with what is said about their names.
pub struct Named(pub Vec<(PathBuf, Bytes, Names)>);

impl Source for Named {
    fn walk(&self, sink: &mut dyn Sink) -> Result<()> {
        Made(Vec::new()).walk(sink)?;
        for (path, bytes, names) in &self.0 {
            let what = What::File { size: bytes.len(), content: Box::new(bytes.clone()) };
            sink.item(Item::Tree(TreeItem { path: path.clone(), what, names: names.clone() }))?;
        }
        Ok(())
    }
}

pub fn details() -> Details {
    Details { mode: 0o644, uid: 0, gid: 0, user: None, group: None, mtime: time(), xattrs: Vec::new() }
}

impl Source for Made {
    fn walk(&self, sink: &mut dyn Sink) -> Result<()> {
        let folder = What::Folder(Details { mode: 0o755, ..details() });
        sink.item(Item::Tree(TreeItem { path: PathBuf::new(), what: folder, names: Names::One }))?;
        for (path, bytes) in &self.0 {
            let size = bytes.len();
            let what = What::File { size, content: Box::new(bytes.clone()) };
            sink.item(Item::Tree(TreeItem { path: path.clone(), what, names: Names::One }))?;
        }
        Ok(())
    }
}

impl Bytes {
    fn len(&self) -> u64 {
        match self {
            Bytes::Zeros(len) | Bytes::Random(len) => *len,
            Bytes::Of(bytes) => bytes.len() as u64,
            Bytes::Gone => 0,
        }
    }
}

impl Content for Bytes {
    fn open(&self) -> Result<Opened, Failure> {
        if matches!(self, Bytes::Gone) {
            return Err(Failure::Item(backstay_model::ProblemKind::Vanished, "gone".into()));
        }
        let reader = Box::new(BytesReader { bytes: self.clone(), at: 0, random: 1 });
        Ok(Opened { details: Some(details()), size: Some(self.len()), sparse: None, same: true, reader })
    }
}

#[derive(Debug)]
struct BytesReader {
    bytes: Bytes,
    at: u64,
    random: u64,
}

impl Reader for BytesReader {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize, Failure> {
        let len = usize::try_from((self.bytes.len() - self.at).min(buf.len() as u64)).unwrap();
        let part = &mut buf[..len];
        match &self.bytes {
            Bytes::Zeros(_) => part.fill(0),
            Bytes::Random(_) => {
                for eight in part.chunks_mut(8) {
                    self.random ^= self.random << 13;
                    self.random ^= self.random >> 7;
                    self.random ^= self.random << 17;
                    eight.copy_from_slice(&self.random.to_le_bytes()[..eight.len()]);
                }
            }
            Bytes::Gone => {}
            Bytes::Of(bytes) => part.copy_from_slice(&bytes[usize::try_from(self.at).unwrap()..][..len]),
        }
        self.at += len as u64;
        Ok(len)
    }
}

use backstay_archive::{Checks, Contents, Extracted, Verified, verify};
use backstay_tree::beneath::Root;

pub fn checks() -> Checks {
    Checks { trust: trust(), ..Checks::default() }
}

pub fn look(zip: &[u8], xml: Option<&[u8]>, checks: &Checks) -> Result<Verified> {
    verify(Arc::new(zip.to_vec()), xml, checks, &Silent, &Cancel::new())
}

/// Looks at an archive that must be sound.
pub fn sound(packed: &Packed) -> Contents {
    let verified = look(&packed.zip, Some(&packed.xml), &checks()).unwrap();
    let fatal: Vec<_> = verified.findings.iter().filter(|f| f.what.is_fatal()).collect();
    assert!(fatal.is_empty(), "{fatal:?}");
    verified.accept().unwrap()
}

/// Restores into a new folder.
pub fn extract(contents: &Contents, target: &Path) -> Extracted {
    std::fs::create_dir(target).unwrap();
    let root = Root::open(Arc::new(Host), target).unwrap();
    contents.extract(&root, &|_| true, &Silent, &Cancel::new()).unwrap()
}
