//! As much of HTTP/1.1 as a proxy and a server of the tests need: heads, and bodies of a stated length.

use std::io::BufRead;

/// The head of a request or an answer.
#[derive(Clone, Debug)]
pub struct Head {
    /// Its bytes as they came, with the empty line at its end.
    pub raw: Vec<u8>,
    /// The first line.
    pub line: String,
    /// The headers, names in lower case.
    pub headers: Vec<(String, String)>,
}

impl Head {
    /// Reads one; none when the connection ends before its end.
    pub fn read(reader: &mut impl BufRead) -> Option<Self> {
        let mut raw = Vec::new();
        let mut lines = Vec::new();
        loop {
            let begin = raw.len();
            if reader.read_until(b'\n', &mut raw).ok()? == 0 {
                return None;
            }
            let line = String::from_utf8_lossy(&raw[begin..]).trim().to_owned();
            if line.is_empty() {
                break;
            }
            lines.push(line);
        }
        let mut lines = lines.into_iter();
        let line = lines.next()?;
        let headers = lines
            .filter_map(|l| l.split_once(':').map(|(n, v)| (n.trim().to_lowercase(), v.trim().to_owned())))
            .collect();
        Some(Head { raw, line, headers })
    }

    /// The value of a header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// The length of the body, where it is stated.
    #[must_use]
    pub fn length(&self) -> Option<usize> {
        self.header("content-length")?.parse().ok()
    }

    /// Of an answer: its status.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.line.split_whitespace().nth(1).and_then(|s| s.parse().ok()).unwrap_or(0)
    }
}
