//! An HTTP endpoint that notes what it is sent and answers as it is told.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Request {
    /// Method and path, as in `POST /hook`.
    pub line: String,
    /// The headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body as text.
    pub body: String,
}

impl Request {
    /// The value of a header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

/// What the endpoint does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Answers with a status.
    Status(u16),
    /// Takes the connection and never answers.
    Silence,
}

struct Inner {
    answer: Mutex<Answer>,
    requests: Mutex<Vec<Request>>,
}

/// The endpoint. Its thread ends with the test's process.
pub struct HttpEndpoint {
    port: u16,
    inner: Arc<Inner>,
}

impl Default for HttpEndpoint {
    fn default() -> Self {
        Self::start()
    }
}

impl HttpEndpoint {
    /// On a free port of this machine, answering 200.
    #[must_use]
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("its address").port();
        let inner = Arc::new(Inner { answer: Mutex::new(Answer::Status(200)), requests: Mutex::default() });
        let theirs = Arc::clone(&inner);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let inner = Arc::clone(&theirs);
                std::thread::spawn(move || serve(stream, &inner));
            }
        });
        HttpEndpoint { port, inner }
    }

    /// The address of a path.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// From now on it answers so.
    pub fn answer(&self, answer: Answer) {
        *self.inner.answer.lock().unwrap() = answer;
    }

    /// What came so far.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.inner.requests.lock().unwrap().clone()
    }

    /// Waits until `found` is content with what came; panics after a minute with what came.
    #[track_caller]
    pub fn wait_for(&self, what: &str, found: impl Fn(&[Request]) -> bool) -> Vec<Request> {
        let started = Instant::now();
        loop {
            let requests = self.requests();
            if found(&requests) {
                return requests;
            }
            assert!(started.elapsed() < Duration::from_secs(60), "{what} did not come: {requests:#?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn serve(mut stream: TcpStream, inner: &Inner) {
    let mut reader = BufReader::new(stream.try_clone().expect("a second handle"));
    let mut line = String::new();
    if reader.read_line(&mut line).unwrap_or(0) == 0 {
        return;
    }
    let line = line.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
    let mut headers = Vec::new();
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header).unwrap_or(0) == 0 || header.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = header.split_once(':') {
            headers.push((name.trim().to_lowercase(), value.trim().to_owned()));
        }
    }
    let length = headers.iter().find(|(n, _)| n == "content-length").and_then(|(_, v)| v.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body).unwrap_or_default();
    let body = String::from_utf8_lossy(&body).into_owned();
    inner.requests.lock().unwrap().push(Request { line, headers, body });
    let answer = *inner.answer.lock().unwrap();
    match answer {
        Answer::Silence => std::thread::sleep(Duration::from_secs(60)),
        Answer::Status(status) => {
            let text = format!("HTTP/1.1 {status} Told\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            stream.write_all(text.as_bytes()).unwrap_or_default();
        }
    }
}
