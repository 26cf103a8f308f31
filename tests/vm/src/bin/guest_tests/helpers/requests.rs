//! Requests that a monitor sees: one over each family, of `curl`'s to a web server.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use serde_json::json;

use super::community_id::{TCP, community_id};
use super::document::{Wanted, expect, number};
use super::process::Process;
use super::socktrail::{Socktrail, Watched};
use super::web::WebServer;

const PORT: u16 = 8082;

/// What a monitor saw of a request over each family.
pub(crate) struct Seen {
    /// All of it.
    pub(crate) watched: Watched,
    /// The web server's process id.
    pub(crate) server: u32,
    /// Who asked over IPv4.
    pub(crate) v4: Client,
    /// Who asked over IPv6.
    pub(crate) v6: Client,
}

impl Seen {
    /// By a monitor with these arguments.
    pub(crate) fn with(arguments: &[&str]) -> Result<Self> {
        let watch = Socktrail::flows(arguments)?;
        let server = WebServer::start(PORT)?;
        let (v4, v6) = (Client::run("127.0.0.1")?, Client::run("::1")?);
        let server = server.process.pid;
        let watched = watch.stop()?;
        ensure!(watched.status.success(), "it ended with {}:\n{}", watched.status, watched.log);
        Ok(Self { watched, server, v4, v6 })
    }
}

/// A `curl` that has ended.
pub(crate) struct Client {
    /// Its process id.
    pub(crate) pid: u32,
    args: Vec<String>,
    /// Where it asked from.
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

    /// What a document of it says of the flow.
    pub(crate) fn wanted(&self) -> Result<Wanted> {
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

    /// Fails unless there is one document, with all that is known of the flow and the process, and traffic both ways.
    pub(crate) fn check(&self, watched: &Watched) -> Result<()> {
        let document = watched.only_of_pid(self.pid)?;
        expect(document, &self.wanted()?)?;
        expect(
            document,
            &vec![
                ("/process/name", json!("curl")),
                ("/process/executable", json!("/usr/bin/curl")),
                ("/process/args", json!(self.args)),
                ("/event/outcome", json!("success")),
            ],
        )?;
        for way in ["/source", "/destination"] {
            ensure!(number(document, &format!("{way}/packets"))? >= 4, "too few packets from {way}: {document:#}");
        }
        Ok(())
    }
}
