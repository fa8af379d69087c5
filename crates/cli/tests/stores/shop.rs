//! A world whose vault is in an object store.

use std::any::Any;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use backstay_storage::{Address, Credentials, Options, Remote, Storage as _};
use backstay_testing::{Azurite, FaultProxy, Gcs, Moto};
use serde_json::Value;

use crate::{Ran, World};

/// A world, a server of one kind with a proxy before it, and what the environment must hold to use it.
pub(crate) struct Shop {
    pub(crate) world: World,
    pub(crate) kind: &'static str,
    /// The vault's address, through the proxy.
    pub(crate) address: String,
    pub(crate) proxy: FaultProxy,
    variables: Vec<(&'static str, String)>,
    /// The same place without the proxy.
    direct: String,
    _server: Box<dyn Any>,
}

impl Shop {
    pub(crate) fn azure() -> Option<Self> {
        let server = Azurite::start()?;
        let place = |at: SocketAddr| {
            let account = Azurite::ACCOUNT;
            format!("azure://{account}/backups/vaults/one?endpoint=http://{at}/{account}")
        };
        let variables = vec![("AZURE_STORAGE_KEY", Azurite::KEY.to_owned())];
        Some(Self::new("azure", server.address(), place, variables, World::new(), Box::new(server)))
    }

    pub(crate) fn s3() -> Option<Self> {
        let server = Moto::start()?;
        let place = |at: SocketAddr| format!("s3://backups/vaults/one?endpoint=http://{at}");
        let variables =
            vec![("AWS_ACCESS_KEY_ID", "any".to_owned()), ("AWS_SECRET_ACCESS_KEY", "key".to_owned())];
        Some(Self::new("s3", server.address(), place, variables, World::new(), Box::new(server)))
    }

    pub(crate) fn google() -> Option<Self> {
        let server = Gcs::start()?;
        server.make("backups");
        let world = World::new();
        let place = |at: SocketAddr| format!("gs://backups/vaults/one?endpoint=http://{at}");
        let variables = vec![("GOOGLE_APPLICATION_CREDENTIALS", key_file(&world))];
        Some(Self::new("google", server.address(), place, variables, world, Box::new(server)))
    }

    fn new(
        kind: &'static str,
        server: SocketAddr,
        place: impl Fn(SocketAddr) -> String,
        variables: Vec<(&'static str, String)>,
        world: World,
        keep: Box<dyn Any>,
    ) -> Self {
        let proxy = FaultProxy::start(server, 1);
        let address = place(proxy.address());
        Shop { world, kind, address, proxy, variables, direct: place(server), _server: keep }
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        self.command_at("home", args)
    }

    pub(crate) fn command_at(&self, home: &str, args: &[&str]) -> Command {
        let mut command = self.world.command_at(home, args);
        command.envs(self.variables.iter().map(|(name, value)| (*name, value)));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs the program and tells how many requests that took.
    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        let (before, begin) = (self.proxy.count(), std::time::Instant::now());
        let ran = Ran::of(self.command(args).output().unwrap());
        let requests = self.proxy.count() - before;
        println!("{}: {}: {requests} requests in {:?}", self.kind, args.join(" "), begin.elapsed());
        for (name, value) in &self.variables {
            let is_secret = name.contains("KEY") && value.len() > 10;
            assert!(!is_secret || !format!("{ran:?}").contains(value.as_str()), "a key was shown: {ran:?}");
        }
        ran
    }

    pub(crate) fn ok(&self, args: &[&str]) -> Ran {
        self.run(args).ok()
    }

    pub(crate) fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(&[args, &["--json"]].concat()).stdout).unwrap()
    }

    /// The ids of an app's points, newest first.
    pub(crate) fn points(&self, app: &str) -> Vec<String> {
        let list = self.json(&["list", app]);
        list["points"].as_array().unwrap().iter().map(|p| p["id"].as_str().unwrap().to_owned()).collect()
    }

    /// How many requests a call took.
    pub(crate) fn requests_of(&self, args: &[&str]) -> usize {
        let before = self.proxy.count();
        self.ok(args);
        self.proxy.count() - before
    }

    /// The vault's place, opened without the program and without the proxy.
    pub(crate) fn storage(&self) -> Remote {
        let Address::Remote(bucket) = self.direct.parse().unwrap() else { panic!("a local place") };
        let key = match self.kind {
            "azure" => Azurite::KEY,
            "s3" => "any:key",
            _ => "anonymous",
        };
        let credentials = Credentials::parse(&bucket, key).unwrap();
        Remote::open(&bucket, &credentials, &Options::default()).unwrap()
    }

    /// The names of all objects of the vault, sorted.
    pub(crate) fn objects(&self) -> Vec<String> {
        let mut names = Vec::new();
        self.storage()
            .list("", &mut |o| {
                names.push(o.name);
                Ok(())
            })
            .unwrap();
        names.sort();
        names
    }

    /// Copies the vault, object by object, into a folder of the world.
    pub(crate) fn copy_to(&self, folder: &str) {
        let storage = self.storage();
        for name in self.objects() {
            self.world.write(&format!("{folder}/{name}"), &storage.get(&name).unwrap());
        }
    }

    /// The vault's password.
    pub(crate) fn password(&self) -> String {
        let secrets = std::fs::read(self.world.path("home/secrets.json")).unwrap();
        let secrets: Value = serde_json::from_slice(&secrets).unwrap();
        secrets["vault_password"].as_str().unwrap().to_owned()
    }
}

/// A key file of a service account with a new key, which signs its tokens itself.
fn key_file(world: &World) -> String {
    let made = Command::new("openssl").args(["genrsa", "-traditional", "2048"]).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let file = serde_json::json!({
        "type": "service_account",
        "project_id": "tests",
        "private_key_id": "1",
        "private_key": String::from_utf8(made.stdout).unwrap(),
        "client_email": "backstay@tests.example",
    });
    world.write("key.json", file.to_string().as_bytes());
    world.path("key.json").to_str().unwrap().to_owned()
}
