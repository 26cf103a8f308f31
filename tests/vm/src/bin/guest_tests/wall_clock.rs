//! The wall clock is set while connections live: their times are what it showed, their durations what passed.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};
use serde_json::Value;

use crate::helpers::document::{end, number, time};
use crate::helpers::socktrail::Socktrail;

tests![an_hour_forward, an_hour_back, a_clock_that_programs_cannot_read];

const HOUR: i64 = 3600;
/// How long a step may go unnoticed, and more.
const NOTICED: Duration = Duration::from_millis(500);

fn an_hour_forward() -> Result<()> {
    a_step_of(HOUR)
}

fn an_hour_back() -> Result<()> {
    a_step_of(-HOUR)
}

/// One connection before the step, one that lives through it, and one after.
fn a_step_of(seconds: i64) -> Result<()> {
    let watch = Socktrail::flows(&["--flow-termination-timeout", "500ms"])?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let before = SystemTime::now();
    let began = Instant::now();
    let early = Talk::begin(&listener)?.end()?;
    let through = Talk::begin(&listener)?;
    sleep(NOTICED);

    let stepped_from = SystemTime::now();
    let _back = set_clock(seconds)?;
    let stepped_to = SystemTime::now();
    sleep(NOTICED);
    let through = through.end()?;
    let late = Talk::begin(&listener)?.end()?;
    let (after, took) = (SystemTime::now(), began.elapsed());

    for (ends, starts_in, ends_in) in [
        (early, (before, stepped_from), (before, stepped_from)),
        (through, (before, stepped_from), (stepped_to, after)),
        (late, (stepped_to, after), (stepped_to, after)),
    ] {
        for direction in ["egress", "ingress"] {
            let is_of = |document: &Value| is_between(document, ends) && document["network"]["direction"] == direction;
            let document = watch.wait_for(&format!("the document of {ends:?}, {direction}"), is_of)?;
            for (path, (earliest, latest)) in [("/event/start", starts_in), ("/event/end", ends_in)] {
                let time = time(&document, path)?;
                let readings = [earliest, latest].map(|time| time.duration_since(UNIX_EPOCH));
                ensure!(earliest <= time && time <= latest, "{path} is not within {readings:?}: {document:#}");
            }
            let duration = Duration::from_nanos(number(&document, "/event/duration")?);
            ensure!(duration <= took, "{duration:?} of {took:?}: {document:#}");
            let least = if ends == through { NOTICED * 2 } else { Duration::ZERO };
            ensure!(duration >= least, "{duration:?}, though it lived for {least:?}: {document:#}");
        }
    }
    Ok(())
}

/// As before Linux 4.1: times are right to within a few milliseconds, also when the clocks have been compared again.
fn a_clock_that_programs_cannot_read() -> Result<()> {
    const PERIOD: Duration = Duration::from_secs(10);
    const OFF: Duration = Duration::from_millis(5);
    let watch = Socktrail::flows(&["--mask", "use_clockid", "--flow-termination-timeout", "500ms"])?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    for wait in [Duration::ZERO, PERIOD + NOTICED] {
        sleep(wait);
        let before = SystemTime::now() - OFF;
        let ends = Talk::begin(&listener)?.end()?;
        let after = SystemTime::now() + OFF;
        for direction in ["egress", "ingress"] {
            let is_of = |document: &Value| is_between(document, ends) && document["network"]["direction"] == direction;
            let document = watch.wait_for(&format!("the document of {ends:?}, {direction}"), is_of)?;
            let [start, end] = [time(&document, "/event/start")?, time(&document, "/event/end")?];
            ensure!(before <= start && start <= end && end <= after, "not {before:?} to {after:?}: {document:#}");
        }
    }
    Ok(())
}

/// A connection whose ends this process has.
struct Talk {
    client: TcpStream,
    server: TcpStream,
}

impl Talk {
    fn begin(listener: &TcpListener) -> Result<Self> {
        let client = TcpStream::connect(listener.local_addr()?).context("connect")?;
        let (server, _) = listener.accept().context("accept")?;
        let mut talk = Self { client, server };
        talk.say()?;
        Ok(talk)
    }

    fn say(&mut self) -> Result<()> {
        self.client.write_all(b"word")?;
        self.server.read_exact(&mut [0; 4]).context("receive")
    }

    /// The client's and the server's address.
    fn end(mut self) -> Result<(SocketAddr, SocketAddr)> {
        self.say()?;
        Ok((self.client.local_addr()?, self.client.peer_addr()?))
    }
}

fn is_between(document: &Value, (client, server): (SocketAddr, SocketAddr)) -> bool {
    end(document, "source") == Some(client) && end(document, "destination") == Some(server)
}

/// Puts the wall clock back when it is dropped, for the tests that follow.
pub(crate) struct Back(i64);

impl Drop for Back {
    fn drop(&mut self) {
        move_clock(-self.0).ok();
    }
}

/// Moves the wall clock until what this returns is dropped.
pub(crate) fn set_clock(seconds: i64) -> Result<Back> {
    move_clock(seconds)?;
    Ok(Back(seconds))
}

fn move_clock(seconds: i64) -> Result<()> {
    let now = clock_gettime(ClockId::CLOCK_REALTIME)?;
    let then = TimeSpec::new(now.tv_sec() + seconds, now.tv_nsec());
    clock_settime(ClockId::CLOCK_REALTIME, then).context("set the wall clock")
}
