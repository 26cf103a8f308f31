//! Requests of `curl` to a web server, over IPv4 and over IPv6, and a monitor's documents about them.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use serde_json::json;

use super::community_id::{TCP, community_id};
use super::document::{ExpectedFields, expect, number};
use super::process::Process;
use super::socktrail::{Output, Socktrail};
use super::web::WebServer;

const PORT: u16 = 8082;

/// A request over IPv4, one over IPv6, and the monitor's output.
pub(crate) struct Requests {
    pub(crate) output: Output,
    /// The web server's process id.
    pub(crate) server: u32,
    /// The client over IPv4.
    pub(crate) v4: Client,
    /// The client over IPv6.
    pub(crate) v6: Client,
}

impl Requests {
    /// Makes the requests while `socktrail flows` runs with these arguments.
    pub(crate) fn with(arguments: &[&str]) -> Result<Self> {
        let monitor = Socktrail::flows(arguments)?;
        let server = WebServer::start(PORT)?;
        let (v4, v6) = (Client::run("127.0.0.1")?, Client::run("::1")?);
        let server = server.process.pid;
        let output = monitor.stop()?;
        ensure!(output.status.success(), "socktrail ended with {}:\n{}", output.status, output.log);
        Ok(Self { output, server, v4, v6 })
    }
}

/// A `curl` that has ended.
pub(crate) struct Client {
    /// Its process id.
    pub(crate) pid: u32,
    args: Vec<String>,
    /// Its address.
    pub(crate) here: SocketAddr,
    there: SocketAddr,
}

impl Client {
    fn run(ip: &str) -> Result<Self> {
        let there = SocketAddr::new(ip.parse()?, PORT);
        let url = format!("http://{there}/");
        let curl = Process::start(&["curl", "-sS", "-o", "/dev/null", "-w", "%{local_port}", &url])?.finish()?;
        ensure!(curl.status == 0, "{curl:?}");
        Ok(Self { pid: curl.pid, here: SocketAddr::new(there.ip(), curl.stdout.parse()?), there, args: curl.args })
    }

    /// The fields of its document that describe the flow.
    pub(crate) fn flow_fields(&self) -> Result<ExpectedFields> {
        Ok(vec![
            ("/source/ip", json!(self.here.ip().to_string())),
            ("/source/port", json!(self.here.port())),
            ("/destination/ip", json!(self.there.ip().to_string())),
            ("/destination/port", json!(self.there.port())),
            ("/network/direction", json!("egress")),
            ("/network/transport", json!("tcp")),
            ("/network/community_id", json!(community_id(TCP, self.here, self.there))),
            ("/flow/complete", json!(true)),
            ("/system/audit/socket/owner", json!("process")),
        ])
    }

    /// Fails unless there is one document, with the flow, the process, and packets in both directions.
    pub(crate) fn check(&self, output: &Output) -> Result<()> {
        let document = output.only_of_pid(self.pid)?;
        expect(document, &self.flow_fields()?)?;
        expect(
            document,
            &vec![
                ("/process/name", json!("curl")),
                ("/process/executable", json!("/usr/bin/curl")),
                ("/process/args", json!(self.args)),
                ("/event/outcome", json!("success")),
            ],
        )?;
        for end in ["/source", "/destination"] {
            ensure!(number(document, &format!("{end}/packets"))? >= 4, "too few packets from {end}: {document:#}");
        }
        Ok(())
    }
}
