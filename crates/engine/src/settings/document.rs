//! `settings.json`: the settings of an app in a point, and in an archive.
//!
//! Invariants: the same settings are the same bytes, so that a point whose settings did not change adds nothing to the
//! vault. The document is in clear: the vault's own encryption protects it, and in an archive it is sealed with age.
//! `backstay_settings` is its version; fields are only added. One without the fields `settings` and `connections` (of an
//! archive from before there were any) says nothing about them, which is something else than that there are none. A
//! newer version, or what this one does not know, is unsupported. No error repeats what stands in it.

use backstay_catalog::{App, SettingKind};
use backstay_database::ConnectionType;
use backstay_model::app::AppConfig;
use backstay_model::{AppName, Code, Error, Result, Secret};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{COUNT_MAX, VALUE_MAX, is_name};
use crate::secrets::plain;

const VERSION: u32 = 1;

/// A setting or connection string in clear.
pub(super) struct Open {
    pub kind: SettingKind,
    pub name: String,
    pub value: Secret,
    pub connection_type: Option<ConnectionType>,
    pub sticky: bool,
}

/// What a document says.
pub(super) struct Told {
    /// The app it was written for.
    pub app: AppName,
    /// Its settings and connection strings; none where the document says nothing about them.
    pub settings: Option<Vec<Open>>,
}

#[derive(Serialize)]
struct Written<'a> {
    backstay_settings: u32,
    app: &'a AppName,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    config: Option<&'a AppConfig>,
    settings: Vec<Entry>,
    connections: Vec<Entry>,
}

#[derive(Deserialize)]
struct Read {
    app: AppName,
    settings: Option<Vec<Entry>>,
    connections: Option<Vec<Entry>>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    name: String,
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    connection_type: Option<String>,
    #[serde(with = "plain")]
    value: Secret,
    #[serde(default)]
    slot_sticky: bool,
}

/// Writes a document; for an archive with what is set about the app.
pub(super) fn write(name: &AppName, about: Option<&App>, settings: Vec<Open>) -> Result<Zeroizing<Vec<u8>>> {
    // Room for all of it, so that no copy of a part is left behind when it grows.
    let room: usize = settings.iter().map(|s| 2 * s.value.reveal().len() + s.name.len() + 256).sum();
    let mut bytes = Zeroizing::new(Vec::with_capacity(room + (64 << 10)));
    let (mut plain, mut connections) = (Vec::new(), Vec::new());
    for open in settings {
        let of_kind = match open.kind {
            SettingKind::Setting => &mut plain,
            SettingKind::Connection => &mut connections,
        };
        of_kind.push(Entry {
            name: open.name,
            connection_type: open.connection_type.map(|t| t.as_str().to_owned()),
            value: open.value,
            slot_sticky: open.sticky,
        });
    }
    for entries in [&mut plain, &mut connections] {
        entries.sort_by(|a, b| a.name.cmp(&b.name));
    }
    let document = Written {
        backstay_settings: VERSION,
        app: name,
        kind: about.map(|app| app.kind.as_str()),
        config: about.map(|app| &app.config),
        settings: plain,
        connections,
    };
    serde_json::to_writer_pretty(&mut *bytes, &document)
        .map_err(|e| Error::new(Code::Internal, "The settings cannot be written").because(e))?;
    Ok(bytes)
}

/// Reads a document.
pub(super) fn read(bytes: &[u8]) -> Result<Told> {
    #[derive(Deserialize)]
    struct Version {
        backstay_settings: Option<u32>,
    }
    match serde_json::from_slice(bytes).map_err(|e| unreadable(&e))? {
        Version { backstay_settings: Some(version) } if version > VERSION => {
            return Err(unsupported(format!("they have version {version}, newest known is {VERSION}")));
        }
        Version { backstay_settings: Some(_) } => {}
        Version { backstay_settings: None } => return Err(unsupported("they have no version".to_owned())),
    }
    let read: Read = serde_json::from_slice(bytes).map_err(|e| unreadable(&e))?;
    if read.settings.is_none() && read.connections.is_none() {
        return Ok(Told { app: read.app, settings: None });
    }
    let mut settings = Vec::new();
    for (kind, entries) in
        [(SettingKind::Connection, read.connections), (SettingKind::Setting, read.settings)]
    {
        for entry in entries.unwrap_or_default() {
            settings.push(understood(kind, entry)?);
        }
    }
    if settings.len() > COUNT_MAX {
        let message = format!("An app has at most {COUNT_MAX} settings and connection strings");
        return Err(Error::new(Code::LimitExceeded, message));
    }
    settings.sort_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
    let twice = |pair: &[Open]| matches!(pair, [a, b] if a.kind == b.kind && a.name == b.name);
    if settings.windows(2).any(twice) {
        return Err(Error::new(Code::VaultDamaged, "The settings of the point name one twice"));
    }
    Ok(Told { app: read.app, settings: Some(settings) })
}

fn understood(kind: SettingKind, entry: Entry) -> Result<Open> {
    if !is_name(&entry.name) || entry.value.reveal().len() > VALUE_MAX || entry.value.reveal().contains('\0')
    {
        return Err(unsupported(format!("a {kind} has a name or value that none has here")));
    }
    let connection_type = match (kind, entry.connection_type.as_deref()) {
        (SettingKind::Setting, _) => None,
        (SettingKind::Connection, None) => Some(ConnectionType::Custom),
        (SettingKind::Connection, Some(text)) => Some(text.parse().map_err(|_unknown_type: Error| {
            unsupported(format!("the connection string `{}` has an unknown type", entry.name))
        })?),
    };
    Ok(Open { kind, name: entry.name, value: entry.value, connection_type, sticky: entry.slot_sticky })
}

fn unsupported(why: String) -> Error {
    Error::new(Code::VaultUnsupported, format!("The settings of the point cannot be used: {why}"))
}

/// The words of the parser may repeat a value: only the place is told.
fn unreadable(e: &serde_json::Error) -> Error {
    let place = format!("line {}, column {}", e.line(), e.column());
    match e.classify() {
        serde_json::error::Category::Data => unsupported(format!("they have another form ({place})")),
        _ => Error::new(Code::VaultDamaged, format!("The settings of the point are not whole ({place})")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(kind: SettingKind, name: &str) -> Open {
        let connection = kind == SettingKind::Connection;
        Open {
            kind,
            name: name.to_owned(),
            value: Secret::new(format!("value of {name}")),
            connection_type: connection.then_some(ConnectionType::PostgreSql),
            sticky: !connection,
        }
    }

    #[test]
    fn the_same_settings_are_the_same_bytes_and_are_read_back() {
        use SettingKind::{Connection, Setting};
        let app = AppName::suggest("blog");
        let all = || vec![open(Setting, "B"), open(Connection, "DB"), open(Setting, "A")];
        let bytes = write(&app, None, all()).unwrap();
        let mut turned = all();
        turned.reverse();
        assert_eq!(*bytes, *write(&app, None, turned).unwrap());
        let told = read(&bytes).unwrap();
        assert_eq!(told.app, app);
        let settings = told.settings.unwrap();
        let names: Vec<_> =
            settings.iter().map(|s| (s.kind, s.name.as_str(), s.value.reveal(), s.sticky)).collect();
        let expected = [
            (Connection, "DB", "value of DB", false),
            (Setting, "A", "value of A", true),
            (Setting, "B", "value of B", true),
        ];
        assert_eq!(names, expected);
        assert_eq!(settings[0].connection_type, Some(ConnectionType::PostgreSql));
        let none = write(&app, None, Vec::new()).unwrap();
        assert_eq!(read(&none).unwrap().settings.map(|s| s.len()), Some(0), "that there are none is told");
    }

    #[test]
    fn documents_of_archives_are_read_also_those_from_before_there_were_settings() {
        let app = App::new(AppName::suggest("blog"), None, "folder", jiff::Timestamp::UNIX_EPOCH);
        let bytes = write(&app.name, Some(&app), vec![open(SettingKind::Setting, "A")]).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!((&json["kind"], &json["config"]["plan"]), (&"folder".into(), &"default".into()));
        assert_eq!(read(&bytes).unwrap().settings.unwrap().len(), 1);
        let old =
            br#"{"backstay_settings": 1, "app": "blog", "kind": "folder", "config": {"plan": "default"}}"#;
        let told = read(old).unwrap();
        assert_eq!(told.app.as_str(), "blog");
        assert!(told.settings.is_none(), "it says nothing about them");
    }

    #[test]
    fn what_cannot_be_used_is_told_by_its_kind_and_never_repeated() {
        let with = |rest: &str| format!(r#"{{"backstay_settings":1,"app":"blog",{rest}}}"#);
        let entry = |name: &str, more: &str| format!(r#"{{"name":"{name}","value":"hunter2"{more}}}"#);
        let cases = [
            (r#"{"backstay_settings":2,"app":"blog","other":"hunter2"}"#.to_owned(), Code::VaultUnsupported),
            (r#"{"PASSWORD":"hunter2"}"#.to_owned(), Code::VaultUnsupported),
            (with(r#""settings":{"PASSWORD":"hunter2"}"#), Code::VaultUnsupported),
            (with(&format!(r#""settings":[{}]"#, entry("a b", ""))), Code::VaultUnsupported),
            (
                with(&format!(r#""settings":[{}]"#, entry("A", r#","slot_sticky":"hunter2""#))),
                Code::VaultUnsupported,
            ),
            (
                with(&format!(r#""connections":[{}]"#, entry("A", r#","type":"hunter2""#))),
                Code::VaultUnsupported,
            ),
            (with(&format!(r#""settings":[{0},{0}]"#, entry("A", ""))), Code::VaultDamaged),
            (with(r#""settings":[{"name":"A","value":"hunter2\u0000"}]"#), Code::VaultUnsupported),
            (
                r#"{"backstay_settings":1,"app":"blog","settings":[{"value":"hunter2"#.to_owned(),
                Code::VaultDamaged,
            ),
            ("hunter2".to_owned(), Code::VaultDamaged),
            (String::new(), Code::VaultDamaged),
        ];
        for (text, code) in cases {
            let e = read(text.as_bytes()).err().unwrap();
            assert_eq!(e.code(), code, "{text}");
            assert!(!format!("{e:?} {}", e.advice()).contains("hunter2"), "{e:?}");
        }
        let many: Vec<String> = (0..=COUNT_MAX).map(|n| entry(&format!("A{n}"), "")).collect();
        let many = with(&format!(r#""settings":[{}]"#, many.join(",")));
        assert_eq!(read(many.as_bytes()).err().map(|e| e.code()), Some(Code::LimitExceeded));
    }
}
