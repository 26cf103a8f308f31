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

tests![
    an_hour_forward,
    an_hour_back,
    a_clock_that_programs_cannot_read,
    such_a_clock_where_forks_are_not_seen,
    such_a_clock_that_nothing_shows,
];

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

    ensure!(watch.log().contains(STEPPED), "nothing was said of the step: {}", watch.log());
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

/// What is logged when the wall clock has been set.
const STEPPED: &str = "the wall clock was set";
/// As on kernels before 4.1.
const UNREADABLE: [&str; 2] = ["--mask", "use_clockid"];
/// How often the clocks are compared.
const PERIOD: Duration = Duration::from_secs(10);

/// Times are right to within a few milliseconds, also when the clocks have been compared again, and when that was a while
/// ago.
fn a_clock_that_programs_cannot_read() -> Result<()> {
    let watch = Socktrail::flows(&UNREADABLE)?;
    for wait in [Duration::ZERO, PERIOD + NOTICED, PERIOD * 2 / 3] {
        sleep(wait);
        times_are_right_unless_delayed(&watch)?;
    }
    ensure!(!watch.log().contains(STEPPED), "nobody has set it: {}", watch.log());
    Ok(())
}

fn such_a_clock_where_forks_are_not_seen() -> Result<()> {
    let watch = Socktrail::flows(&[&UNREADABLE[..], &["--mask", "wake_up_new_task"]].concat())?;
    times_are_right_unless_delayed(&watch)?;
    ensure!(!watch.log().contains(STEPPED), "nobody has set it: {}", watch.log());
    Ok(())
}

/// Where nothing can be caused that shows the clock, that is said once, and the first sample is no step.
fn such_a_clock_that_nothing_shows() -> Result<()> {
    const SAID: &str = "the kernel's clock cannot be compared";
    let masks = ["wake_up_new_task", "inet_release", "sock_init_data"].map(|function| ["--mask", function]);
    let watch = Socktrail::flows(&[&UNREADABLE[..], &masks.concat()].concat())?;
    let ends = Talk::begin(&TcpListener::bind("127.0.0.1:0")?)?.end()?;
    sleep(PERIOD + NOTICED);
    watch.wait_for("the connection", |document| is_between(document, ends))?;
    let log = watch.log();
    ensure!(log.matches(SAID).count() == 1 && !log.contains(STEPPED), "{log}");
    Ok(())
}

/// A comparison of the clocks is as exact as starting and ending a thread is quick. On a busy machine times can be early until
/// the next comparison; a lasting error fails all four attempts.
fn times_are_right_unless_delayed(watch: &Socktrail) -> Result<()> {
    const COMPARISONS: usize = 4;
    let mut result = times_are_right(watch);
    for _ in 1..COMPARISONS {
        if result.is_ok() {
            break;
        }
        sleep(PERIOD + NOTICED);
        result = times_are_right(watch);
    }
    result
}

/// A connection starts and ends when it does, to within 5 ms.
fn times_are_right(watch: &Socktrail) -> Result<()> {
    const OFF: Duration = Duration::from_millis(5);
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let before = SystemTime::now();
    let talk = Talk::begin(&listener)?;
    let connected = SystemTime::now();
    let ends = talk.end()?;
    let after = SystemTime::now();
    for direction in ["egress", "ingress"] {
        let is_of = |document: &Value| is_between(document, ends) && document["network"]["direction"] == direction;
        let document = watch.wait_for(&format!("the document of {ends:?}, {direction}"), is_of)?;
        let [start, end] = [time(&document, "/event/start")?, time(&document, "/event/end")?];
        ensure!(before - OFF <= start && start <= connected + OFF, "not {before:?} to {connected:?}: {document:#}");
        ensure!(start <= end && end <= after + OFF, "not until {after:?}: {document:#}");
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
    let step = TimeSpec::from_duration(Duration::from_secs(seconds.unsigned_abs()));
    let then = if seconds < 0 { now - step } else { now + step };
    clock_settime(ClockId::CLOCK_REALTIME, then).context("set the wall clock")
}
