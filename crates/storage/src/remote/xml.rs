//! Listings in XML: records below one root, each with a few fields.
//!
//! Bounded: an answer is bounded before it comes here, nesting is bounded here, and entities are the five of XML and
//! characters by number. Anything else is "not understood", never a shorter listing.

use std::collections::BTreeMap;

use quick_xml::events::{BytesRef, Event};

use super::failure::Failure;

const DEEPEST: usize = 16;

/// The fields of a record by name; of nested ones the innermost name.
#[derive(Debug, Default)]
pub(crate) struct Record(BTreeMap<String, String>);

impl Record {
    pub fn get(&self, field: &str) -> Option<&str> {
        self.0.get(field).map(String::as_str)
    }
}

/// What a reader is given: a record, or a field outside of records.
pub(crate) type Found<'a> = Result<&'a Record, (&'a str, &'a str)>;

/// A listing to be read.
pub(crate) struct Records<'a> {
    xml: &'a [u8],
    root: &'static str,
    record: &'static str,
}

impl<'a> Records<'a> {
    pub fn new(xml: &'a [u8], root: &'static str, record: &'static str) -> Self {
        Records { xml, root, record }
    }

    /// Calls `each` for all records and fields; it says whether it understood.
    pub fn read(self, mut each: impl FnMut(Found<'_>) -> bool) -> Result<(), Failure> {
        let wrong = || Failure::nonsense("A listing that is not understood");
        let text = std::str::from_utf8(self.xml).map_err(|e| wrong().because(e))?;
        let mut reader = quick_xml::Reader::from_str(text);
        reader.config_mut().expand_empty_elements = true;
        let mut path: Vec<String> = Vec::new();
        let mut text = String::new();
        let mut record: Option<Record> = None;
        loop {
            match reader.read_event().map_err(|e| wrong().because(e))? {
                Event::Start(tag) => {
                    let name = tag.local_name().as_ref().to_owned();
                    if (path.is_empty() && name != self.root) || path.len() >= DEEPEST {
                        return Err(wrong());
                    }
                    if name == self.record {
                        record = Some(Record::default());
                    }
                    path.push(name);
                    text.clear();
                }
                Event::Text(t) => text.push_str(&t),
                Event::CData(t) => text.push_str(&t),
                Event::GeneralRef(r) => text.push(entity(&r).ok_or_else(wrong)?),
                Event::End(_) => {
                    let name = path.pop().unwrap_or_default();
                    if path.is_empty() {
                        return Ok(());
                    }
                    let understood = match &mut record {
                        Some(fields) if name == self.record => {
                            let understood = each(Ok(fields));
                            record = None;
                            understood
                        }
                        Some(fields) => {
                            fields.0.insert(name, std::mem::take(&mut text));
                            true
                        }
                        None => each(Err((&name, &text))),
                    };
                    if !understood {
                        return Err(wrong());
                    }
                    text.clear();
                }
                Event::Eof => return Err(wrong()),
                _ => {}
            }
        }
    }
}

/// The character that an entity stands for.
fn entity(reference: &BytesRef<'_>) -> Option<char> {
    if let Some(character) = reference.resolve_char_ref().ok()? {
        return Some(character);
    }
    match &**reference {
        "lt" => Some('<'),
        "gt" => Some('>'),
        "amp" => Some('&'),
        "apos" => Some('\''),
        "quot" => Some('"'),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(xml: &str) -> Result<Vec<String>, Failure> {
        let mut out = Vec::new();
        Records::new(xml.as_bytes(), "List", "Blob").read(|found| {
            out.push(match found {
                Ok(r) => format!("{}={}", r.get("Name").unwrap_or("?"), r.get("Size").unwrap_or("?")),
                Err((name, text)) => format!("{name}:{text}"),
            });
            true
        })?;
        Ok(out)
    }

    #[test]
    fn records_and_fields_are_read() {
        let xml = "\u{feff}<?xml version=\"1.0\"?><x:List xmlns:x=\"u\" a=\"b\"><Prefix/><Blobs><Blob><Name>a&amp;&#98;</Name>\
                   <P><Size>5</Size></P></Blob><Blob><Name><![CDATA[c<]]></Name></Blob></Blobs><Next>n</Next></x:List>";
        assert_eq!(read(xml).unwrap(), ["Prefix:", "a&b=5", "c<=?", "Blobs:", "Next:n"]);
    }

    #[test]
    fn what_is_cut_or_foreign_is_not_a_shorter_listing() {
        let whole = "<List><Blob><Name>a</Name></Blob><Next>1</Next></List>";
        assert!(read(whole).is_ok());
        for len in 0..whole.len() {
            assert!(read(&whole[..len]).is_err(), "{len}");
        }
        let deep = format!("<List>{}", "<a>".repeat(100));
        let bomb = "<!DOCTYPE List [<!ENTITY a \"aaaa\">]><List><Next>&a;</Next></List>";
        for xml in ["<html><body>login</body></html>", "", "List", &deep, bomb] {
            assert!(read(xml).is_err(), "{xml}");
        }
    }
}
