//! `config/database.yml` of Rails: the simple part of YAML that such files are written in.
//!
//! Read are mappings by indentation, plain and quoted texts, comments, anchors of mappings and `<<: *name`. ERB (`<%= … %>`) is
//! run by Rails and told here.

use std::collections::BTreeMap;

use backstay_model::Secret;

use super::parts::Parts;
use super::variables::kind;
use super::{Found, beneath};
use crate::endpoint::Kind;

const SECTION: &str = "production";
/// Most lines that are looked at.
const LINES: usize = 5_000;

type Settings = BTreeMap<String, String>;

/// A line: its indentation, its key, its value.
struct Line {
    indent: usize,
    key: String,
    value: String,
}

pub(super) fn look(text: &str, path: &str, found: &mut Found) {
    let lines: Vec<Line> = text.lines().take(LINES).filter_map(line).collect();
    let mut anchors: BTreeMap<String, Settings> = BTreeMap::new();
    let mut rest = lines.as_slice();
    while let Some((first, after)) = rest.split_first() {
        let end = after.iter().position(|line| line.indent <= first.indent).unwrap_or(after.len());
        let (inner, behind) = after.split_at(end);
        rest = behind;
        let settings = settings(inner, &anchors);
        if let Some(anchor) = first.value.strip_prefix('&') {
            anchors.insert(anchor.trim().to_owned(), settings.clone());
        }
        if first.key == SECTION {
            section(inner, settings, &anchors, path, found);
        }
    }
}

/// The section itself, or each of the databases in it.
fn section(
    lines: &[Line],
    settings: Settings,
    anchors: &BTreeMap<String, Settings>,
    path: &str,
    found: &mut Found,
) {
    let mut several = false;
    let mut rest = lines;
    while let Some((first, after)) = rest.split_first() {
        let end = after.iter().position(|line| line.indent <= first.indent).unwrap_or(after.len());
        let (inner, behind) = after.split_at(end);
        rest = behind;
        if !inner.is_empty() {
            several = true;
            add(&format!("rails_{}", first.key), self::settings(inner, anchors), path, found);
        }
    }
    if !several {
        add("rails", settings, path, found);
    }
}

/// The pairs of the outermost of these lines.
fn settings(lines: &[Line], anchors: &BTreeMap<String, Settings>) -> Settings {
    let indent = lines.first().map_or(0, |line| line.indent);
    let mut all = Settings::new();
    for line in lines.iter().filter(|line| line.indent == indent) {
        if line.key == "<<" {
            let names = line.value.trim_matches(['[', ']']).split(',');
            for anchor in names.filter_map(|name| anchors.get(name.trim().trim_start_matches('*'))) {
                for (key, value) in anchor {
                    all.entry(key.clone()).or_insert_with(|| value.clone());
                }
            }
        }
    }
    for line in lines.iter().filter(|line| line.indent == indent && line.key != "<<") {
        all.insert(line.key.clone(), line.value.clone());
    }
    all
}

fn add(name: &str, settings: Settings, path: &str, found: &mut Found) {
    match read(settings, path) {
        Ok(Read::Address(address)) => found.string(name, &address, None, None, path),
        Ok(Read::Parts(kind, parts)) => parts.put(name, kind, path, found),
        Ok(Read::Nothing) => {}
        Err(why) => found.unread(name, path, why),
    }
}

enum Read {
    Address(String),
    Parts(Kind, Parts),
    Nothing,
}

fn read(mut settings: Settings, path: &str) -> Result<Read, String> {
    let mut get = |key: &str| match settings.remove(key) {
        None => Ok(None),
        Some(value) => scalar(&value).map_err(|why| format!("`{key}` {why}")),
    };
    if let Some(address) = get("url")? {
        return Ok(Read::Address(address));
    }
    let (Some(adapter), database) = (get("adapter")?, get("database")?) else { return Ok(Read::Nothing) };
    let kind = kind(&adapter).ok_or("its adapter is none that can be linked")?;
    let database = database.ok_or("it names no database")?;
    if kind == Kind::Sqlite {
        // Beside `config`, where the app is.
        let app = path.strip_suffix("config/database.yml").unwrap_or_default();
        let file = beneath(app, &database).ok_or("its path leads out of the app's home")?;
        return Ok(Read::Parts(kind, Parts { database: Some(file), ..Parts::default() }));
    }
    let port = match get("port")? {
        None => None,
        Some(port) => {
            let port = port.parse::<u16>().ok().filter(|port| *port > 0);
            Some(port.ok_or("its port is no number from 1 to 65535")?)
        }
    };
    let host = get("host")?;
    let socket = get("socket")?.or_else(|| host.clone().filter(|host| host.starts_with('/')));
    let mut parts = Parts {
        host,
        port,
        socket,
        database: Some(database),
        user: get("username")?,
        password: get("password")?.map(Secret::new),
        ..Parts::default()
    };
    if kind == Kind::PostgreSql && parts.host.is_none() && parts.socket.is_none() {
        parts.socket = Some("/var/run/postgresql".to_owned());
        parts.note = Some("It names no host; taken for the socket in /var/run/postgresql".to_owned());
    }
    Ok(Read::Parts(kind, parts))
}

fn line(text: &str) -> Option<Line> {
    let body = text.trim_start_matches(' ');
    if body.is_empty() || body.starts_with(['#', '%']) || body.starts_with("---") || body.starts_with("<%") {
        return None;
    }
    let (key, value) = body.split_once(':')?;
    if !(value.is_empty() || value.starts_with([' ', '\t', '\r'])) {
        return None;
    }
    let key = key.trim().trim_matches(['"', '\'']).to_owned();
    Some(Line { indent: text.len() - body.len(), key, value: value.trim().to_owned() })
}

/// A text as YAML means it; none for nothing.
fn scalar(text: &str) -> Result<Option<String>, &'static str> {
    if text.contains("<%") {
        return Err("is worked out by Ruby");
    }
    let value = match text.chars().next() {
        None | Some('#' | '~') => return Ok(None),
        Some('"') => {
            double(text.get(1..).unwrap_or_default()).ok_or("is written in a form that is not read")?
        }
        Some('\'') => {
            single(text.get(1..).unwrap_or_default()).ok_or("is written in a form that is not read")?
        }
        Some('&' | '*' | '!' | '|' | '>' | '[' | '{' | '@' | '`' | '%') => {
            return Err("is written in a form that is not read");
        }
        Some(_) => text.split_once(" #").map_or(text, |(value, _)| value).trim_end().to_owned(),
    };
    Ok(Some(value).filter(|value| !value.is_empty() && value != "null"))
}

fn single(text: &str) -> Option<String> {
    let mut value = String::new();
    let mut chars = text.chars().peekable();
    loop {
        match chars.next()? {
            '\'' if chars.next_if_eq(&'\'').is_some() => value.push('\''),
            '\'' => return Some(value),
            c => value.push(c),
        }
    }
}

fn double(text: &str) -> Option<String> {
    let mut value = String::new();
    let mut chars = text.chars();
    loop {
        match chars.next()? {
            '"' => return Some(value),
            '\\' => match chars.next()? {
                'n' => value.push('\n'),
                't' => value.push('\t'),
                c @ ('"' | '\\' | '/' | ' ') => value.push(c),
                _ => return None,
            },
            c => value.push(c),
        }
    }
}
