//! A server with Elasticsearch's bulk API.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

/// A running server. Dropping it stops accepting connections; open ones are served until the client closes them. It does not
/// accept compressed requests.
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
    /// What was wrong with the last invalid request or failed connection.
    error: Option<String>,
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
                            // Record the error while the stream is open: once the client sees it closed, it may
                            // call `documents`.
                            if let Err(error) = serve(&stream, &received) {
                                lock(&received).error = Some(format!("{error:#}"));
                            }
                        });
                    }
                    Err(_) => thread::sleep(Duration::from_millis(5)),
                }
            }
        });
        Ok(server)
    }

    /// The URL of the server, for `output.elasticsearch.hosts`.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The documents so far, each with its index. Fails if a request was invalid or a connection failed.
    pub(crate) fn documents(&self) -> Result<Vec<(String, Value)>> {
        let received = lock(&self.received);
        if let Some(error) = &received.error {
            bail!("a request that Elasticsearch would reject, or a failed connection: {error}");
        }
        Ok(received.documents.iter().map(|((index, _), document)| (index.clone(), document.clone())).collect())
    }
}

impl Drop for BulkServer {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}

fn lock(received: &Mutex<Received>) -> std::sync::MutexGuard<'_, Received> {
    received.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Responds to requests until the client closes the connection.
fn serve(stream: &TcpStream, received: &Mutex<Received>) -> Result<()> {
    stream.set_nonblocking(false)?;
    let mut stream = BufReader::new(stream);
    while let Some((request_line, body)) = request(&mut stream)? {
        ensure!(request_line.starts_with("POST /_bulk"), "{request_line}");
        let items = lock(received).store(&body)?;
        let response = json!({ "items": items }).to_string();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", response.len());
        stream.get_mut().write_all((head + &response).as_bytes())?;
    }
    Ok(())
}

/// The request line and the body; `None` at the end of the connection.
fn request(stream: &mut impl BufRead) -> Result<Option<(String, String)>> {
    let mut request_line = String::new();
    // A killed client resets the connection. That is an end, not an error.
    if stream.read_line(&mut request_line).unwrap_or(0) == 0 {
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
    Ok(Some((request_line, String::from_utf8(body)?)))
}

impl Received {
    /// Stores each document of a body unless its id exists (409), as Elasticsearch does. Returns the items of the response.
    fn store(&mut self, body: &str) -> Result<Vec<Value>> {
        let lines: Vec<&str> = body.strip_suffix('\n').context("no newline at the end")?.split('\n').collect();
        ensure!(lines.len().is_multiple_of(2), "an action without a document");
        let mut items = Vec::new();
        for pair in lines.chunks_exact(2) {
            let (action, document): (Value, Value) = (serde_json::from_str(pair[0])?, serde_json::from_str(pair[1])?);
            let field = |key: &str| {
                let value = action["create"][key].as_str().filter(|value| !value.is_empty());
                value.map(str::to_owned).with_context(|| format!("the create action has no {key}: {action}"))
            };
            let (index, id) = (field("_index")?, field("_id")?);
            ensure!(document["@timestamp"].is_string(), "a data stream needs @timestamp: {document}");
            let status = match self.documents.entry((index, id.clone())) {
                Entry::Vacant(entry) => {
                    entry.insert(document);
                    201
                }
                Entry::Occupied(_) => 409,
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
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        response
    }

    #[test]
    fn a_document_is_created_once() {
        let server = BulkServer::start(0).unwrap();
        let body =
            |time: &str| format!("{{\"create\":{{\"_index\":\"i\",\"_id\":\"a\"}}}}\n{{\"@timestamp\":\"{time}\"}}\n");
        assert!(post(&server, &body("first")).ends_with(r#"{"items":[{"create":{"_id":"a","status":201}}]}"#));
        assert!(post(&server, &body("second")).ends_with(r#"{"items":[{"create":{"_id":"a","status":409}}]}"#));
        assert_eq!(server.documents().unwrap(), [("i".to_owned(), json!({"@timestamp": "first"}))]);
    }

    #[test]
    fn an_invalid_request_gets_no_response_and_makes_documents_fail() {
        for body in ["{}\n{}\n", "{\"create\":{\"_index\":\"i\",\"_id\":\"a\"}}\n{}\n", "{}"] {
            let server = BulkServer::start(0).unwrap();
            assert_eq!(post(&server, body), "", "{body}");
            assert!(server.documents().is_err(), "{body}");
        }
    }
}
