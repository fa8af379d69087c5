//! Writing XML: elements on lines of their own, two spaces a level.
//!
//! Invariant: text and attributes hold no character that XML cannot hold; what it cannot is written as `\xNN` of its
//! UTF-8 bytes, as in escaped names.

/// A document that grows.
pub(super) struct Xml {
    out: String,
    depth: usize,
}

impl Xml {
    pub(super) fn new() -> Self {
        Xml { out: String::new(), depth: 0 }
    }

    pub(super) fn declaration(&mut self) {
        self.out.push_str("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    }

    fn start(&mut self, name: &str, attributes: &[(&str, &str)]) {
        self.out.extend(std::iter::repeat_n("  ", self.depth));
        self.out.push('<');
        self.out.push_str(name);
        for (key, value) in attributes {
            self.out.push(' ');
            self.out.push_str(key);
            self.out.push_str("=\"");
            self.chars(value);
            self.out.push('"');
        }
    }

    pub(super) fn open(&mut self, name: &str, attributes: &[(&str, &str)]) {
        self.start(name, attributes);
        self.out.push_str(">\n");
        self.depth += 1;
    }

    pub(super) fn close(&mut self, name: &str) {
        self.depth = self.depth.saturating_sub(1);
        self.out.extend(std::iter::repeat_n("  ", self.depth));
        self.end(name);
    }

    fn end(&mut self, name: &str) {
        self.out.push_str("</");
        self.out.push_str(name);
        self.out.push_str(">\n");
    }

    pub(super) fn text(&mut self, name: &str, attributes: &[(&str, &str)], text: &str) {
        self.start(name, attributes);
        self.out.push('>');
        self.chars(text);
        self.end(name);
    }

    pub(super) fn empty(&mut self, name: &str, attributes: &[(&str, &str)]) {
        self.start(name, attributes);
        self.out.push_str("/>\n");
    }

    fn chars(&mut self, text: &str) {
        let mut rest = text;
        while let Some(at) = rest
            .find(|c: char| c.is_control() || matches!(c, '&' | '<' | '>' | '"' | '\u{fffe}' | '\u{ffff}'))
        {
            let (plain, tail) = rest.split_at(at);
            self.out.push_str(plain);
            let mut chars = tail.chars();
            match chars.next() {
                Some('&') => self.out.push_str("&amp;"),
                Some('<') => self.out.push_str("&lt;"),
                Some('>') => self.out.push_str("&gt;"),
                Some('"') => self.out.push_str("&quot;"),
                Some('\n') => self.out.push_str("&#10;"),
                Some('\t') => self.out.push_str("&#9;"),
                Some(c) => {
                    let mut bytes = [0; 4];
                    for byte in c.encode_utf8(&mut bytes).bytes() {
                        self.out.push_str(&format!("\\x{byte:02x}"));
                    }
                }
                None => {}
            }
            rest = chars.as_str();
        }
        self.out.push_str(rest);
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.out.into_bytes()
    }
}
