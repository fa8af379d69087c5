//! `appsettings.json` of .NET: `ConnectionStrings`, in JSON that may hold comments and commas at the end of lists.

use serde_json::Value;

use super::Found;
use crate::connection::ConnectionType;

pub(super) fn look(text: &str, path: &str, found: &mut Found) {
    let Ok(Value::Object(all)) = serde_json::from_str(&plain(text)) else {
        return found.unread("", path, "it cannot be read as JSON");
    };
    let sections = all.iter().filter(|(key, _)| key.eq_ignore_ascii_case("ConnectionStrings"));
    for (name, value) in sections.filter_map(|(_, section)| section.as_object()).flatten() {
        add(name, value, path, found);
    }
    // The same, written as one key.
    for (key, value) in &all {
        if let Some((section, name)) = key.split_once(':')
            && section.eq_ignore_ascii_case("ConnectionStrings")
        {
            add(name, value, path, found);
        }
    }
}

fn add(name: &str, value: &Value, path: &str, found: &mut Found) {
    match value {
        Value::String(text) if text.trim().is_empty() => {}
        Value::String(text) => found.string(name, text, None, Some(ConnectionType::SqlServer), path),
        _ => {}
    }
}

/// The same without comments, and without commas that nothing follows.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    let mut quoted = false;
    while let Some(c) = chars.next() {
        match c {
            '"' => {
                quoted = !quoted;
                out.push(c);
            }
            '\\' if quoted => {
                out.push(c);
                out.extend(chars.next());
            }
            '/' if !quoted && chars.peek() == Some(&'/') => while chars.next_if(|c| *c != '\n').is_some() {},
            '/' if !quoted && chars.peek() == Some(&'*') => {
                chars.next();
                let mut last = ' ';
                for c in chars.by_ref() {
                    if last == '*' && c == '/' {
                        break;
                    }
                    last = c;
                }
            }
            ']' | '}' if !quoted => {
                let kept = out.trim_end().len();
                if out.trim_end().ends_with(',') {
                    out.truncate(kept - 1);
                }
                out.push(c);
            }
            c => out.push(c),
        }
    }
    out
}
