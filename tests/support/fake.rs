//! A server with Elasticsearch's bulk API that refuses what Elasticsearch refuses: it accepts pairs of JSON lines, `create` with an
//! id, and each id once. A test can make it misbehave.

#![allow(dead_code, reason = "each test uses its part of it")]

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use flate2::read::GzDecoder;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

/// What goes wrong with one request.
#[derive(Debug, Clone, PartialEq)]
pub enum Fault {
    /// The connection closes before the request is processed.
    Unprocessed,
    /// The request is processed, and the connection closes without an answer.
    Unanswered,
    /// The request is processed, and the connection closes in the middle of the answer.
    Truncated,
    /// The answer comes late.
    Slow(Duration),
    /// Nothing is stored. The answer has this status.
    Status(u16),
    /// Nothing is stored. The answer has this status, and repeats the header `authorization`.
    Echo(u16),
    /// Every second document is refused with this status, and may be sent again.
    EverySecond(u16),
    /// Requests with more bytes than this are refused with status 413.
    LargerThan(usize),
    /// Nothing is stored. The answer is this text, which does not fit the request.
    Unrelated(&'static str),
}

/// What a server has seen.
#[derive(Debug, Default)]
pub struct Seen {
    /// The stored documents by index and id.
    pub documents: BTreeMap<(String, String), Value>,
    /// The `flow.id` of each document, in the order in which they were stored.
    pub order: Vec<String>,
    /// The number of documents that were sent although they were stored already.
    pub duplicates: usize,
    /// Requests that Elasticsearch would have refused.
    pub violations: Vec<String>,
    /// The number of bulk requests that were too large.
    pub too_large: usize,
    /// The number of bulk requests.
    pub requests: usize,
    /// The number of compressed bulk requests.
    pub compressed: usize,
    /// The header `authorization` of the last bulk request.
    pub authorization: Option<String>,
    /// Other requests: method, path and body.
    pub others: Vec<(String, String, Value)>,
    /// The faults of the next bulk requests, one for each.
    pub faults: VecDeque<Fault>,
    /// The fault of all bulk requests after those in `faults`.
    pub always: Option<Fault>,
    /// The name of the process whose documents are refused for good.
    pub unwanted: Option<String>,
    /// An index, and the status with which each of its documents is refused for now.
    pub forbidden: Option<(String, u16)>,
    /// Text that a proxy blocks: it refuses each request that contains the text, with this status.
    pub blocked: Option<(String, u16)>,
    /// The number of requests that the proxy has refused.
    pub refusals: usize,
}

/// A running server. It ends when it is dropped.
pub struct Fake {
    pub port: u16,
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
}

impl Fake {
    pub fn start() -> Self {
        Self::start_at(0, None)
    }

    /// Starts a server with TLS. `needs_client_certificate` says whether a client must present a certificate.
    pub fn with_tls(needs_client_certificate: bool) -> Self {
        Self::start_at(0, Some(tls(needs_client_certificate)))
    }

    /// Starts a server on a port, or on any free one if it is 0.
    pub fn start_at(port: u16, tls: Option<Arc<ServerConfig>>) -> Self {
        let seen = Arc::<Mutex<Seen>>::default();
        let listener = TcpListener::bind(("127.0.0.1", port)).expect("the port is free");
        let port = listener.local_addr().expect("an address").port();
        listener.set_nonblocking(true).expect("a non-blocking socket");
        let stop = Arc::<AtomicBool>::default();
        let (stopped, shared) = (Arc::clone(&stop), Arc::clone(&seen));
        thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        let (seen, stop, tls) = (Arc::clone(&shared), Arc::clone(&stopped), tls.clone());
                        thread::spawn(move || serve(stream, tls, &seen, &stop));
                    }
                    Err(_) => thread::sleep(Duration::from_millis(5)),
                }
            }
        });
        Self { port, seen, stop }
    }

    /// A free port, on which a server may be started later.
    pub fn free_port() -> u16 {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        listener.local_addr().expect("an address").port()
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().expect("no thread has panicked")
    }

    pub fn count(&self) -> usize {
        self.seen().documents.len()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// The folder of the certificates. Its script `make` creates them.
pub const CERTIFICATES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/tls");

fn tls(needs_client_certificate: bool) -> Arc<ServerConfig> {
    let certificates = |name: &str| -> Vec<CertificateDer<'static>> {
        let all = CertificateDer::pem_file_iter(format!("{CERTIFICATES}/{name}.pem")).expect("a certificate file");
        all.collect::<Result<_, _>>().expect("PEM")
    };
    let key = PrivateKeyDer::from_pem_file(format!("{CERTIFICATES}/server.key")).expect("a key file");
    let provider = Arc::new(rustls_graviola::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_safe_default_protocol_versions().expect("versions");
    let builder = if needs_client_certificate {
        let mut roots = RootCertStore::empty();
        roots.add(certificates("authority").remove(0)).expect("an authority");
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build();
        builder.with_client_cert_verifier(verifier.expect("roots"))
    } else {
        builder.with_no_client_auth()
    };
    let chain = [certificates("server"), certificates("authority")].concat();
    Arc::new(builder.with_single_cert(chain, key).expect("a certificate"))
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

fn serve(stream: TcpStream, tls: Option<Arc<ServerConfig>>, seen: &Mutex<Seen>, stop: &AtomicBool) {
    stream.set_nonblocking(false).expect("a blocking socket");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
    let stream: Box<dyn Stream> = match tls {
        Some(config) => Box::new(StreamOwned::new(ServerConnection::new(config).expect("a configuration"), stream)),
        None => Box::new(stream),
    };
    let mut stream = BufReader::new(stream);
    while let Some(request) = read(&mut stream) {
        if stop.load(Ordering::Relaxed) || !answer(&mut stream, &request, seen) {
            return;
        }
    }
}

struct Request {
    method: String,
    path: String,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

fn read(stream: &mut BufReader<Box<dyn Stream>>) -> Option<Request> {
    let mut line = String::new();
    stream.read_line(&mut line).ok().filter(|&read| read > 0)?;
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).ok().filter(|&read| read > 0)?;
        match line.trim_end().split_once(':') {
            Some((name, value)) => headers.insert(name.to_lowercase(), value.trim().to_owned()),
            None => break,
        };
    }
    let length = headers.get("content-length").map_or(0, |length| length.parse().expect("a number"));
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    Some(Request { method, path, headers, body })
}

/// Answers a request. Returns whether the connection stays open.
fn answer(stream: &mut BufReader<Box<dyn Stream>>, request: &Request, seen: &Mutex<Seen>) -> bool {
    let mut seen = seen.lock().expect("no thread has panicked");
    if !request.path.starts_with("/_bulk") {
        let body = serde_json::from_slice(&request.body).unwrap_or_default();
        seen.others.push((request.method.clone(), request.path.clone(), body));
        let about = json!({"version": {"number": "8.17.0"}, "acknowledged": true});
        return respond(stream, 200, about.to_string().as_bytes(), None);
    }
    seen.requests += 1;
    seen.authorization = request.headers.get("authorization").cloned();
    if let Some((blocked, status)) = seen.blocked.clone()
        && decompressed(request).is_ok_and(|text| text.contains(&blocked))
    {
        seen.refusals += 1;
        return respond(stream, status, b"<html>Blocked</html>", None);
    }
    let fault = seen.faults.pop_front().or_else(|| seen.always.clone());
    match &fault {
        Some(Fault::Unprocessed) => return false,
        Some(Fault::Status(status)) => return respond(stream, *status, b"{\"error\":\"not now\"}", None),
        Some(Fault::Echo(status)) => {
            let echo = format!("you said {}", seen.authorization.as_deref().unwrap_or_default());
            return respond(stream, *status, echo.as_bytes(), None);
        }
        Some(Fault::LargerThan(most)) if request.body.len() > *most => {
            seen.too_large += 1;
            return respond(stream, 413, b"{}", None);
        }
        Some(Fault::Unrelated(text)) => return respond(stream, 200, text.as_bytes(), None),
        _ => {}
    }
    let every_second = match fault {
        Some(Fault::EverySecond(status)) => Some(status),
        _ => None,
    };
    let (status, body) = match seen.process_bulk(request, every_second) {
        Ok(items) => (200, json!({ "items": items }).to_string()),
        Err(violation) => {
            seen.violations.push(violation.clone());
            (400, json!({ "error": violation }).to_string())
        }
    };
    drop(seen);
    match fault {
        Some(Fault::Unanswered) => false,
        Some(Fault::Truncated) => respond(stream, status, body.as_bytes(), Some(body.len() / 2)),
        Some(Fault::Slow(time)) => {
            thread::sleep(time);
            respond(stream, status, body.as_bytes(), None)
        }
        _ => respond(stream, status, body.as_bytes(), None),
    }
}

fn respond(stream: &mut BufReader<Box<dyn Stream>>, status: u16, body: &[u8], truncated_to: Option<usize>) -> bool {
    let head =
        format!("HTTP/1.1 {status} x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
    // One write, because a second one would wait for the delayed acknowledgement of the first.
    let answer = [head.as_bytes(), &body[..truncated_to.unwrap_or(body.len())]].concat();
    let stream = stream.get_mut();
    stream.write_all(&answer).and_then(|()| stream.flush()).is_ok() && truncated_to.is_none()
}

/// The body as text, decompressed.
fn decompressed(request: &Request) -> Result<String, String> {
    let mut text = String::new();
    match request.headers.get("content-encoding").map(String::as_str) {
        Some("gzip") => {
            GzDecoder::new(&request.body[..]).read_to_string(&mut text).map_err(|error| error.to_string())?;
        }
        None => text = String::from_utf8(request.body.clone()).map_err(|error| error.to_string())?,
        other => return Err(format!("{other:?}")),
    }
    Ok(text)
}

impl Seen {
    /// Processes a bulk request. Returns the items of the answer.
    fn process_bulk(&mut self, request: &Request, every_second: Option<u16>) -> Result<Vec<Value>, String> {
        let kind = request.headers.get("content-type").map(String::as_str);
        if request.method != "POST" || kind != Some("application/x-ndjson") {
            return Err(format!("{} with {kind:?}", request.method));
        }
        self.compressed += usize::from(request.headers.contains_key("content-encoding"));
        let text = decompressed(request)?;
        let whole = text.strip_suffix('\n').ok_or("the bulk request must be terminated by a newline [\\n]")?;
        let lines: Vec<Value> =
            whole.split('\n').map(serde_json::from_str).collect::<Result<_, _>>().map_err(|error| error.to_string())?;
        let pairs = lines.chunks(2).map(|pair| match pair {
            [action, document] => Ok((action.clone(), document.clone())),
            _ => Err("an action without a document".to_owned()),
        });
        let pairs = pairs.collect::<Result<Vec<_>, _>>()?;
        pairs.into_iter().enumerate().map(|(at, pair)| self.create(at, pair, every_second)).collect()
    }

    fn create(
        &mut self,
        at: usize,
        (action, document): (Value, Value),
        every_second: Option<u16>,
    ) -> Result<Value, String> {
        let members = action.as_object().map_or(0, serde_json::Map::len);
        let create = action["create"].as_object().filter(|create| members == 1 && create.len() == 2);
        let create = create.ok_or_else(|| format!("no create with _index and _id: {action}"))?;
        let member = |name: &str| create[name].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        let (Some(index), Some(id)) = (member("_index"), member("_id")) else { return Err(action.to_string()) };
        if !document["@timestamp"].is_string() {
            return Err(format!("a data stream needs @timestamp: {document}"));
        }
        let item = |status: u16, error: Option<&str>| {
            let mut item = json!({"create": {"_index": index, "_id": id, "status": status}});
            if let Some(kind) = error {
                item["create"]["error"] = json!({"type": kind, "reason": format!("about {id}")});
            }
            item
        };
        if let Some(status) = every_second.filter(|_| at % 2 == 1) {
            return Ok(item(status, Some("es_rejected_execution_exception")));
        }
        if let Some((_, status)) = self.forbidden.as_ref().filter(|(forbidden, _)| *forbidden == index) {
            return Ok(item(*status, Some("cluster_block_exception")));
        }
        if self.unwanted.as_deref().is_some_and(|unwanted| document["process"]["name"] == unwanted) {
            return Ok(item(400, Some("document_parsing_exception")));
        }
        let key = (index.clone(), id.clone());
        if self.documents.contains_key(&key) {
            self.duplicates += 1;
            return Ok(item(409, Some("version_conflict_engine_exception")));
        }
        self.order.push(document["flow"]["id"].as_str().unwrap_or_default().to_owned());
        self.documents.insert(key, document);
        Ok(item(201, None))
    }
}
