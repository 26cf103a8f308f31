//! A substitute for Elasticsearch, which shows what `socktrail agent` sends. It responds to bulk requests as if all documents
//! were stored, and writes them to standard output, one per line. Usage: `receiver PORT`

#![allow(clippy::print_stdout, reason = "documents go to standard output")]

use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use flate2::read::GzDecoder;
use serde_json::{Value, json};

fn main() -> Result<(), Box<dyn Error>> {
    let port = std::env::args().nth(1).ok_or("usage: receiver PORT")?.parse()?;
    for stream in TcpListener::bind(("127.0.0.1", port))?.incoming() {
        let stream = stream?;
        thread::spawn(move || {
            if let Err(error) = serve(stream) {
                println!("{}", json!({ "error": error.to_string() }));
            }
        });
    }
    Ok(())
}

/// Responds to requests, one after another, until the client disconnects.
fn serve(stream: TcpStream) -> Result<(), Box<dyn Error>> {
    let mut stream = BufReader::new(stream);
    loop {
        let (mut head, mut length, mut is_gzip) = (String::new(), 0, false);
        while stream.read_line(&mut head)? > 0 && !head.ends_with("\r\n\r\n") && head != "\r\n" {
            let header = head.lines().last().unwrap_or_default().to_lowercase();
            match header.split_once(": ") {
                Some(("content-length", value)) => length = value.parse()?,
                Some(("content-encoding", value)) => is_gzip = value == "gzip",
                _ => {}
            }
        }
        if head.is_empty() {
            return Ok(());
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body)?;
        let mut text = String::new();
        if is_gzip {
            GzDecoder::new(&body[..]).read_to_string(&mut text)?;
        } else {
            text = String::from_utf8(body)?;
        }
        let response = print_documents(&text)?.to_string();
        write!(stream.get_mut(), "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{response}", response.len())?;
    }
}

/// Prints the documents of a request's body. Returns the body of the response.
fn print_documents(body: &str) -> Result<Value, serde_json::Error> {
    let lines: Vec<&str> = body.lines().collect();
    let mut items = Vec::new();
    for pair in lines.chunks_exact(2) {
        let action: Value = serde_json::from_str(pair[0])?;
        println!("{}", pair[1]);
        items.push(json!({ "create": { "_id": action["create"]["_id"], "status": 201 } }));
    }
    Ok(json!({ "items": items }))
}
