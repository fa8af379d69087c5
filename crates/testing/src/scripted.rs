//! A server that answers each request with the bytes a test writes: for what no honest server says.

use std::io::{BufReader, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use crate::http::Head;

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Asked {
    /// From 0, over all connections.
    pub number: usize,
    /// Where it came from.
    pub from: IpAddr,
    /// Its head.
    pub head: Head,
    /// Its body.
    pub body: Vec<u8>,
}

impl Asked {
    /// Method and path with the query, as in `GET /bucket?list-type=2`.
    #[must_use]
    pub fn line(&self) -> &str {
        self.head.line.trim_end_matches(" HTTP/1.1")
    }
}

/// The server. Its threads end with the test's process.
#[derive(Debug)]
pub struct Scripted {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    connections: Arc<Mutex<usize>>,
}

impl Scripted {
    /// One on a free port. The script writes its answer, and the connection is closed when it says `false`.
    #[must_use]
    pub fn start(script: impl Fn(&Asked, &mut TcpStream) -> bool + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its address");
        let (asked, connections) = (Arc::<Mutex<Vec<Asked>>>::default(), Arc::<Mutex<usize>>::default());
        let (noted, counted, script) = (Arc::clone(&asked), Arc::clone(&connections), Arc::new(script));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                *counted.lock().unwrap() += 1;
                let (noted, script) = (Arc::clone(&noted), Arc::clone(&script));
                std::thread::spawn(move || serve(stream, &noted, &*script));
            }
        });
        Scripted { address, asked, connections }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What came so far.
    #[must_use]
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// How many connections were made so far.
    #[must_use]
    pub fn connections(&self) -> usize {
        *self.connections.lock().unwrap()
    }
}

fn serve(
    mut stream: TcpStream,
    noted: &Mutex<Vec<Asked>>,
    script: &(dyn Fn(&Asked, &mut TcpStream) -> bool + Send + Sync),
) {
    let Ok(from) = stream.peer_addr().map(|peer| peer.ip()) else { return };
    let mut reader = BufReader::new(stream.try_clone().expect("a second handle"));
    while let Some(head) = Head::read(&mut reader) {
        let mut body = vec![0; head.length().unwrap_or(0)];
        if reader.read_exact(&mut body).is_err() {
            return;
        }
        let asked = {
            let mut noted = noted.lock().unwrap();
            let asked = Asked { number: noted.len(), from, head, body };
            noted.push(asked.clone());
            asked
        };
        if !script(&asked, &mut stream) {
            return;
        }
    }
}

/// Writes a whole answer; the headers each with their `\r\n`. Always true, so that the connection stays.
pub fn answer(stream: &mut TcpStream, status: u16, headers: &str, body: &[u8]) -> bool {
    let head = format!("HTTP/1.1 {status} Told\r\nContent-Length: {}\r\n{headers}\r\n", body.len());
    stream.write_all(&[head.as_bytes(), body].concat()).ok();
    true
}
