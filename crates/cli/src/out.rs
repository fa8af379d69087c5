//! Standard output: data, as text or JSON.
//!
//! Invariants: nothing but data goes to standard output, and all of it through here. When the reader has gone
//! (`backstay list | head`) writing stops without a word and the command ends well: what it did is done.

use std::io::{self, Write};

use backstay_model::{Code, Error, Result};
use serde::Serialize;

/// Where data goes.
pub struct Out {
    to: io::BufWriter<io::StdoutLock<'static>>,
    /// Whether JSON is asked for.
    pub json: bool,
    gone: bool,
}

impl Out {
    /// Standard output.
    pub fn new(json: bool) -> Self {
        Out { to: io::BufWriter::new(io::stdout().lock()), json, gone: false }
    }

    /// Whether the reader has gone; there is no use in producing more.
    pub fn gone(&self) -> bool {
        self.gone
    }

    /// A line of text.
    pub fn line(&mut self, text: impl AsRef<str>) -> Result<()> {
        let done = writeln!(self, "{}", text.as_ref());
        self.told(done)
    }

    /// A value as JSON, indented, on its own.
    pub fn value<T: Serialize>(&mut self, value: &T) -> Result<()> {
        let text = serde_json::to_string_pretty(value)
            .map_err(|e| Error::new(Code::Internal, "The result cannot be written as JSON").because(e))?;
        self.line(text)
    }

    /// JSON when asked for, else text.
    pub fn either<T: Serialize>(&mut self, value: &T, text: impl FnOnce(&T) -> String) -> Result<()> {
        if self.json {
            return self.value(value);
        }
        let text = text(value);
        if text.is_empty() { Ok(()) } else { self.line(text.trim_end_matches('\n')) }
    }

    /// Writes out what is buffered.
    pub fn finish(&mut self) -> Result<()> {
        let done = self.flush();
        self.told(done)
    }

    fn told(&self, done: io::Result<()>) -> Result<()> {
        match done {
            Err(_) if self.gone => Ok(()),
            Err(e) => Err(Error::new(Code::System, "Cannot write to standard output").because(e)),
            Ok(()) => Ok(()),
        }
    }

    fn noted<T>(&mut self, done: io::Result<T>) -> io::Result<T> {
        self.gone |= done.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::BrokenPipe);
        done
    }
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let done = self.to.write(bytes);
        self.noted(done)
    }

    fn flush(&mut self) -> io::Result<()> {
        let done = self.to.flush();
        self.noted(done)
    }
}
