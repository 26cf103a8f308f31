//! Sends flows to Elasticsearch or OpenSearch, without losing or duplicating any: makes documents, a batch and an output.
//!
//! Without a server, `cargo run --example receiver -- 9200` stands in for one. Then, as root:
//! `cargo run --example elasticsearch -- http://127.0.0.1:9200 10` sends flows for ten seconds.

#![allow(clippy::print_stderr, reason = "a program reports its result")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use socktrail::documents::ecs::{self, Context, Directions};
use socktrail::host::Host;
use socktrail::host::agent::Agent;
use socktrail::output::elasticsearch::{ClientOptions, Credentials, Elasticsearch, ElasticsearchOptions, TlsOptions};
use socktrail::output::{Batch, Kind, Meter, Outputs, SpoolOptions};
use socktrail::users::Users;
use socktrail::{Monitor, Received};

/// The maximum number of bytes of documents in memory.
const MEMORY: usize = 8 << 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let server = args.next().ok_or("usage: elasticsearch URL [SECONDS]")?;
    let until = Instant::now() + Duration::from_secs(args.next().map_or(Ok(60), |text| text.parse())?);

    let meter = Arc::new(Meter::default());
    let mut outputs = Outputs::new();
    let elasticsearch = Elasticsearch::start(options(server), Arc::clone(&meter))?;
    outputs.start("elasticsearch", Box::new(elasticsearch), MEMORY, meter)?;

    let (host, users) = (Host::gather(), Users::new());
    let agent = Agent::of(&host);
    users.start(None)?;
    let monitor = Monitor::builder().users(users.clone()).flow_termination_timeout(Duration::from_secs(1)).start()?;
    while Instant::now() < until {
        let Received::Flow(flow) = monitor.recv(Duration::from_millis(100)) else { continue };
        let names = users.at(Instant::now());
        let (clock, directions) = (monitor.clock(), Directions::default());
        let context = Context { host: &host, agent: &agent, clock, names: &names, directions };
        let mut batch = Batch::default();
        batch.push(Kind::Flow, &ecs::network_flow(&flow, &context))?;
        outputs.send(&Arc::new(batch));
    }
    for reading in outputs.close(Duration::from_secs(10)) {
        eprintln!("{}: {} written, {} still wait", reading.output, reading.written, reading.pending);
    }
    Ok(())
}

fn options(server: String) -> ElasticsearchOptions {
    let spool = std::env::temp_dir().join("socktrail-example");
    ElasticsearchOptions {
        client: ClientOptions {
            hosts: vec![server],
            credentials: Credentials::None,
            tls: TlsOptions::default(),
            compression_level: 5,
            timeout: Duration::from_secs(30),
        },
        index: "socktrail-{kind}".to_owned(),
        bulk_max_size: 1000,
        backoff_init: Duration::from_secs(1),
        backoff_max: Duration::from_secs(60),
        spool: SpoolOptions { path: spool.clone(), max_size: 64 << 20, segment_size: 4 << 20, memory: MEMORY },
        sync: Duration::from_secs(1),
        dead_letters: spool.join("rejected.json"),
    }
}
