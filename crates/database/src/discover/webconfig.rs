//! `web.config` of ASP.NET: `<connectionStrings><add name="…" connectionString="…" providerName="…"/>`.

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};

use super::Found;
use super::variables::kind;
use crate::connection::{ConnectionType, inner_string};

pub(super) fn look(text: &str, path: &str, found: &mut Found) {
    let mut reader = Reader::from_str(text);
    let mut within = false;
    loop {
        match reader.read_event() {
            Ok(Event::Start(tag) | Event::Empty(tag)) => {
                let name = tag.local_name();
                if name.as_ref().eq_ignore_ascii_case("connectionStrings") {
                    within = true;
                    if attribute(&tag, "configSource").is_some() {
                        found.unread("connectionStrings", path, "they stand in another file");
                    }
                    if attribute(&tag, "configProtectionProvider").is_some() {
                        found.unread(
                            "connectionStrings",
                            path,
                            "they are encrypted for the machine they were made on",
                        );
                    }
                } else if within && name.as_ref().eq_ignore_ascii_case("add") {
                    add(&tag, path, found);
                }
            }
            Ok(Event::End(tag)) if tag.local_name().as_ref().eq_ignore_ascii_case("connectionStrings") => {
                within = false;
            }
            Ok(Event::Eof) => return,
            Ok(_) => {}
            Err(_) => return found.unread("", path, "it cannot be read as XML to its end"),
        }
    }
}

fn add(tag: &BytesStart<'_>, path: &str, found: &mut Found) {
    let name = attribute(tag, "name").unwrap_or_default();
    let Some(value) = attribute(tag, "connectionString").filter(|value| !value.trim().is_empty()) else {
        return;
    };
    // In front of every web.config there is one of the machine, with this one in it.
    if name == "LocalSqlServer" {
        return;
    }
    let provider = attribute(tag, "providerName").unwrap_or_default();
    let value = inner_string(&value).unwrap_or(value);
    let typed = kind(&provider).map(super::of_kind).filter(|typed| *typed != ConnectionType::Custom);
    found.string(&name, &value, typed, Some(ConnectionType::SqlServer), path);
}

fn attribute(tag: &BytesStart<'_>, name: &str) -> Option<String> {
    let found =
        tag.attributes().flatten().find(|a| a.key.local_name().as_ref().eq_ignore_ascii_case(name))?;
    quick_xml::escape::unescape(&found.value).ok().map(std::borrow::Cow::into_owned)
}
