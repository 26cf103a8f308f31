//! A server with Elasticsearch's bulk API.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

/// A running server; dropping it stops it. It does not accept compressed requests.
#[derive(Debug)]
pub(crate) struct BulkServer {
    port: u16,
    received: Arc<Mutex<Received>>,
    stopped: Arc<AtomicBool>,
}

#[derive(Debug, Default)]
struct Received {
    /// By index and id.
    documents: BTreeMap<(String, String), Value>,
    /// A request that Elasticsearch would reject.
    violation: Option<String>,
}

impl BulkServer {
    /// Listens on a port of 127.0.0.1; 0 for any.
    pub(crate) fn start(port: u16) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", port)).context("listen for bulk requests")?;
        let port = listener.local_addr()?.port();
        listener.set_nonblocking(true)?;
        let (received, stopped) = (Arc::<Mutex<Received>>::default(), Arc::<AtomicBool>::default());
        let server = Self { port, received: Arc::clone(&received), stopped: Arc::clone(&stopped) };
        thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        let received = Arc::clone(&received);
                        thread::spawn(move || {
                            // It is recorded before the connection closes: then a client may look for it.
                            if let Err(error) = serve(&stream, &received) {
                                locked(&received).violation = Some(format!("{error:#}"));
                            }
                        });
                    }
                    Err(_) => thread::sleep(Duration::from_millis(5)),
                }
            }
        });
        Ok(server)
    }

    /// Its URL, for `output.elasticsearch.hosts`.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The documents so far, each with its index. Fails if a request was invalid.
    pub(crate) fn documents(&self) -> Result<Vec<(String, Value)>> {
        let received = locked(&self.received);
        if let Some(violation) = &received.violation {
            bail!("a request that Elasticsearch would reject: {violation}");
        }
        Ok(received.documents.iter().map(|((index, _), document)| (index.clone(), document.clone())).collect())
    }
}

impl Drop for BulkServer {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}

fn locked(received: &Mutex<Received>) -> std::sync::MutexGuard<'_, Received> {
    received.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Answers requests until the client closes the connection.
fn serve(stream: &TcpStream, received: &Mutex<Received>) -> Result<()> {
    stream.set_nonblocking(false)?;
    let mut stream = BufReader::new(stream);
    while let Some((first, body)) = request(&mut stream)? {
        ensure!(first.starts_with("POST /_bulk"), "{first}");
        let items = locked(received).store(&body)?;
        let answer = json!({ "items": items }).to_string();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", answer.len());
        let mut answering: &TcpStream = stream.get_ref();
        answering.write_all((head + &answer).as_bytes())?;
    }
    Ok(())
}

/// The request line and the body; `None` at the end of the connection.
fn request(stream: &mut impl BufRead) -> Result<Option<(String, String)>> {
    let mut first = String::new();
    // A killed client resets the connection.
    if stream.read_line(&mut first).unwrap_or(0) == 0 {
        return Ok(None);
    }
    let mut length = 0;
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).unwrap_or(0) == 0 {
            return Ok(None);
        }
        match line.trim_end().to_ascii_lowercase().split_once(": ") {
            Some(("content-length", value)) => length = value.parse()?,
            Some(_) => {}
            None => break,
        }
    }
    let mut body = vec![0; length];
    if stream.read_exact(&mut body).is_err() {
        return Ok(None);
    }
    Ok(Some((first, String::from_utf8(body)?)))
}

impl Received {
    /// Stores the documents of a body. Returns an item of the response for each.
    fn store(&mut self, body: &str) -> Result<Vec<Value>> {
        let lines: Vec<&str> = body.strip_suffix('\n').context("no newline at the end")?.split('\n').collect();
        ensure!(lines.len().is_multiple_of(2), "an action without a document");
        let mut items = Vec::new();
        for pair in lines.chunks_exact(2) {
            let (action, document): (Value, Value) = (serde_json::from_str(pair[0])?, serde_json::from_str(pair[1])?);
            let name = |key: &str| {
                let name = action["create"][key].as_str().filter(|name| !name.is_empty());
                name.map(str::to_owned).with_context(|| format!("no {key} to create: {action}"))
            };
            let (index, id) = (name("_index")?, name("_id")?);
            ensure!(document["@timestamp"].is_string(), "a data stream needs @timestamp: {document}");
            let status = match self.documents.insert((index, id.clone()), document) {
                None => 201,
                Some(_) => 409,
            };
            items.push(json!({ "create": { "_id": id, "status": status } }));
        }
        Ok(items)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn post(server: &BulkServer, body: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
        let head = format!("POST /_bulk HTTP/1.1\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all((head + body).as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn a_document_is_created_once() {
        let server = BulkServer::start(0).unwrap();
        let body = "{\"create\":{\"_index\":\"i\",\"_id\":\"a\"}}\n{\"@timestamp\":\"now\"}\n";
        assert!(post(&server, body).ends_with(r#"{"items":[{"create":{"_id":"a","status":201}}]}"#));
        assert!(post(&server, body).ends_with(r#"{"items":[{"create":{"_id":"a","status":409}}]}"#));
        assert_eq!(server.documents().unwrap(), [("i".to_owned(), json!({"@timestamp": "now"}))]);
    }

    #[test]
    fn invalid_requests_are_recorded() {
        for body in ["{}\n{}\n", "{\"create\":{\"_index\":\"i\",\"_id\":\"a\"}}\n{}\n", "{}"] {
            let server = BulkServer::start(0).unwrap();
            assert_eq!(post(&server, body), "", "{body}");
            assert!(server.documents().is_err(), "{body}");
        }
    }
}
