//! A proxy before a real server that spoils some of what passes, and counts it.
//!
//! Each request is spoilt or not by what the test says, with random numbers from a seed. A request that is cut off never
//! reaches the server: services do nothing with half a request, while some emulators store what came of it.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::http::Head;

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The server never sees it; the answer is this status, with `Retry-After` in seconds where one is given.
    Refuse(u16, Option<u32>),
    /// The connection ends before anything is read of the request's body.
    Drop,
    /// The connection ends in the middle of the request's body.
    CutRequest,
    /// The server does what is asked, and the answer is this status.
    DoneBut(u16),
    /// The server does what is asked, and the connection ends without an answer.
    LoseAnswer,
    /// The answer ends in its middle, by an end of sending alone (half-close).
    CutAnswer,
    /// The answer ends in its middle, by a reset.
    Reset,
    /// The answer comes so many milliseconds late.
    Delay(u64),
    /// No answer comes, and the connection stays.
    Silence,
}

impl Fault {
    /// Those of a storm: everything but silence, which takes as long as the client's patience.
    pub const STORM: [Fault; 11] = [
        Fault::Refuse(503, None),
        Fault::Refuse(503, Some(0)),
        Fault::Refuse(429, None),
        Fault::Refuse(500, None),
        Fault::Drop,
        Fault::CutRequest,
        Fault::DoneBut(500),
        Fault::LoseAnswer,
        Fault::CutAnswer,
        Fault::Reset,
        Fault::Delay(30),
    ];
}

/// Random numbers from a seed.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// The same numbers for the same seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// A number below a limit.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap_or(0) % limit.max(1)
    }
}

/// Decides what happens to a request.
type Weather = dyn Fn(&Head, &mut Dice) -> Option<Fault> + Send + Sync;

struct Shared {
    server: SocketAddr,
    weather: Mutex<Arc<Weather>>,
    dice: Mutex<Dice>,
    requests: Mutex<Vec<(String, Option<Fault>)>>,
}

/// The proxy. Its threads end with the test's process.
pub struct FaultProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl FaultProxy {
    /// One before a server, which spoils nothing yet.
    #[must_use]
    pub fn start(server: SocketAddr, seed: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its address");
        let weather: Arc<Weather> = Arc::new(|_: &Head, _: &mut Dice| None);
        let shared = Arc::new(Shared {
            server,
            weather: Mutex::new(weather),
            dice: Mutex::new(Dice::new(seed)),
            requests: Mutex::default(),
        });
        let theirs = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let shared = Arc::clone(&theirs);
                std::thread::spawn(move || serve(client, &shared));
            }
        });
        FaultProxy { address, shared }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on this decides.
    pub fn weather(&self, weather: impl Fn(&Head, &mut Dice) -> Option<Fault> + Send + Sync + 'static) {
        *self.shared.weather.lock().unwrap() = Arc::new(weather);
    }

    /// From now on nothing is spoilt.
    pub fn clear(&self) {
        self.weather(|_, _| None);
    }

    /// From now on so many of a thousand requests are spoilt, in all ways of [`Fault::STORM`].
    pub fn storm(&self, per_mille: usize) {
        self.weather(move |_, dice| {
            (dice.below(1000) < per_mille).then(|| Fault::STORM[dice.below(Fault::STORM.len())])
        });
    }

    /// From now on this happens to every request.
    pub fn always(&self, fault: Fault) {
        self.weather(move |_, _| Some(fault));
    }

    /// All requests so far: method with path, and what happened to each.
    #[must_use]
    pub fn requests(&self) -> Vec<(String, Option<Fault>)> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// How many requests came so far.
    #[must_use]
    pub fn count(&self) -> usize {
        self.shared.requests.lock().unwrap().len()
    }

    /// How often each fault happened so far.
    #[must_use]
    pub fn faults(&self) -> BTreeMap<Fault, usize> {
        let mut faults = BTreeMap::new();
        for fault in self.requests().into_iter().filter_map(|(_, fault)| fault) {
            *faults.entry(fault).or_default() += 1;
        }
        faults
    }
}

/// One connection of a client, until it ends or a fault ends it.
fn serve(client: TcpStream, shared: &Shared) {
    let mut from = BufReader::new(client.try_clone().expect("a second handle"));
    while let Some(head) = Head::read(&mut from) {
        let weather = Arc::clone(&shared.weather.lock().unwrap());
        let fault = weather(&head, &mut shared.dice.lock().unwrap());
        let line = head.line.trim_end_matches(" HTTP/1.1").to_owned();
        shared.requests.lock().unwrap().push((line, fault));
        if exchange(&client, &mut from, &head, fault, shared.server).is_none() {
            return;
        }
    }
}

/// One request and its answer; none when the connection is to end.
fn exchange(
    client: &TcpStream,
    from: &mut BufReader<TcpStream>,
    head: &Head,
    fault: Option<Fault>,
    server: SocketAddr,
) -> Option<()> {
    let length = head.length().unwrap_or(0);
    let mut body = vec![0; length];
    match fault {
        Some(Fault::Drop) => return None,
        Some(Fault::CutRequest) => {
            from.read_exact(&mut body[..length / 2]).ok()?;
            return None;
        }
        _ => from.read_exact(&mut body).ok()?,
    }
    match fault {
        Some(Fault::Refuse(status, wait)) => return refuse(client, status, wait),
        Some(Fault::Silence) => {
            // Until the client gives up.
            from.read_exact(&mut [0]).ok();
            return None;
        }
        Some(Fault::Delay(millis)) => std::thread::sleep(Duration::from_millis(millis)),
        _ => {}
    }
    let mut upstream = TcpStream::connect(server).ok()?;
    upstream.write_all(&head.raw).ok()?;
    upstream.write_all(&body).ok()?;
    let mut back = BufReader::new(upstream);
    let answer = Head::read(&mut back)?;
    let (body, stays) = body_of(&mut back, head, &answer)?;
    let mut client = client;
    match fault {
        Some(Fault::DoneBut(status)) => return refuse(client, status, None),
        Some(Fault::LoseAnswer) => return None,
        Some(Fault::CutAnswer) => {
            client.write_all(&answer.raw).ok()?;
            client.write_all(&body[..body.len() / 2]).ok()?;
            client.shutdown(Shutdown::Write).ok()?;
            from.read_exact(&mut [0]).ok();
            return None;
        }
        Some(Fault::Reset) => {
            client.write_all(&answer.raw).ok()?;
            client.write_all(&body[..body.len() / 2]).ok()?;
            rustix::net::sockopt::set_socket_linger(client, Some(Duration::ZERO)).ok()?;
            return None;
        }
        _ => {}
    }
    client.write_all(&answer.raw).ok()?;
    client.write_all(&body).ok()?;
    stays.then_some(())
}

fn refuse(mut client: &TcpStream, status: u16, wait: Option<u32>) -> Option<()> {
    let body = "<?xml version=\"1.0\"?><Error><Code>ServerBusy</Code><Message>Told so by the test.</Message></Error>";
    let wait = wait.map(|w| format!("Retry-After: {w}\r\n")).unwrap_or_default();
    let head = format!("HTTP/1.1 {status} Told\r\nContent-Length: {}\r\n{wait}\r\n", body.len());
    client.write_all(format!("{head}{body}").as_bytes()).ok()
}

/// The body of an answer as it came, and whether the connection may stay after it.
fn body_of(back: &mut BufReader<TcpStream>, request: &Head, answer: &Head) -> Option<(Vec<u8>, bool)> {
    if request.line.starts_with("HEAD ") || matches!(answer.status(), 204 | 304) {
        return Some((Vec::new(), true));
    }
    if let Some(length) = answer.length() {
        let mut body = vec![0; length];
        back.read_exact(&mut body).ok()?;
        return Some((body, true));
    }
    let mut body = Vec::new();
    if answer.header("transfer-encoding") != Some("chunked") {
        back.read_to_end(&mut body).ok()?;
        return Some((body, false));
    }
    loop {
        let begin = body.len();
        back.read_until(b'\n', &mut body).ok()?;
        let size = String::from_utf8_lossy(&body[begin..]).trim().to_owned();
        let size = usize::from_str_radix(size.split(';').next()?, 16).ok()?;
        let end = body.len();
        body.resize(end + size + 2, 0);
        back.read_exact(&mut body[end..]).ok()?;
        if size == 0 {
            return Some((body, true));
        }
    }
}
