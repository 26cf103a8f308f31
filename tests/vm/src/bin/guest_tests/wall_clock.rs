//! The wall clock is set while connections are open: the times of their flows are those that the wall clock showed at each
//! moment, and the durations are right. Also: if user space cannot read the clock of samples (before Linux 4.1), times are
//! right, or the log says that they may be late.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};
use serde_json::Value;

use crate::helpers::document::{endpoint, number, time};
use crate::helpers::socktrail::Socktrail;

tests![
    an_hour_forward,
    an_hour_back,
    an_unreadable_kernel_clock,
    an_unreadable_kernel_clock_without_fork_probes,
    an_unreadable_kernel_clock_that_cannot_be_compared,
];

const HOUR: i64 = 3600;
/// Longer than the monitor needs to notice a step.
const NOTICED: Duration = Duration::from_millis(500);

fn an_hour_forward() -> Result<()> {
    a_step_of(HOUR)
}

fn an_hour_back() -> Result<()> {
    a_step_of(-HOUR)
}

/// One connection before the step, one that is open during it, and one after.
fn a_step_of(seconds: i64) -> Result<()> {
    let monitor = Socktrail::flows(&["--flow-termination-timeout", "500ms"])?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let before = SystemTime::now();
    let began = Instant::now();
    let early = Connection::open(&listener)?.close()?;
    let through = Connection::open(&listener)?;
    sleep(NOTICED);

    let stepped_from = SystemTime::now();
    let _restore = step_clock(seconds)?;
    let stepped_to = SystemTime::now();
    sleep(NOTICED);
    let through = through.close()?;
    let late = Connection::open(&listener)?.close()?;
    let (after, took) = (SystemTime::now(), began.elapsed());

    ensure!(monitor.log().contains(STEPPED), "the step was not logged: {}", monitor.log());
    for (ends, start_within, end_within) in [
        (early, (before, stepped_from), (before, stepped_from)),
        (through, (before, stepped_from), (stepped_to, after)),
        (late, (stepped_to, after), (stepped_to, after)),
    ] {
        for direction in ["egress", "ingress"] {
            let is_of = |document: &Value| is_from_to(document, ends) && document["network"]["direction"] == direction;
            let document = monitor.wait_for(&format!("the document of {ends:?}, {direction}"), is_of)?;
            for (path, (earliest, latest)) in [("/event/start", start_within), ("/event/end", end_within)] {
                let time = time(&document, path)?;
                let readings = [earliest, latest].map(|time| time.duration_since(UNIX_EPOCH));
                ensure!(earliest <= time && time <= latest, "{path} is not within {readings:?}: {document:#}");
            }
            let duration = Duration::from_nanos(number(&document, "/event/duration")?);
            ensure!(duration <= took, "a duration of {duration:?}, but the test took only {took:?}: {document:#}");
            let least = if ends == through { NOTICED * 2 } else { Duration::ZERO };
            ensure!(
                duration >= least,
                "a duration of {duration:?}, but the connection was open for at least {least:?}: {document:#}"
            );
        }
    }
    Ok(())
}

/// The log message after the wall clock was set.
const STEPPED: &str = "the wall clock was set";
/// Options that make the monitor behave as before Linux 4.1, where user space cannot read the clock of samples.
const UNREADABLE: [&str; 2] = ["--mask", "use_clockid"];
/// The default period of clock comparisons, if user space cannot read the clock of samples.
const PERIOD: Duration = Duration::from_secs(10);

/// Times are right to within a few milliseconds, also after another comparison, and some time after it.
fn an_unreadable_kernel_clock() -> Result<()> {
    let monitor = Socktrail::flows(&UNREADABLE)?;
    for wait in [Duration::ZERO, PERIOD + NOTICED, PERIOD * 2 / 3] {
        sleep(wait);
        check_times_with_retries(&monitor)?;
    }
    ensure!(!monitor.log().contains(STEPPED), "a step was logged, but the clock was not set: {}", monitor.log());
    Ok(())
}

fn an_unreadable_kernel_clock_without_fork_probes() -> Result<()> {
    let monitor = Socktrail::flows(&[&UNREADABLE[..], &["--mask", "wake_up_new_task"]].concat())?;
    check_times_with_retries(&monitor)?;
    ensure!(!monitor.log().contains(STEPPED), "a step was logged, but the clock was not set: {}", monitor.log());
    Ok(())
}

/// To compare the clocks, the monitor hits one of its own probes. If it has none that it can hit, it logs once that clocks
/// cannot be compared, and does not report a step of the wall clock when the first sample comes.
fn an_unreadable_kernel_clock_that_cannot_be_compared() -> Result<()> {
    const MESSAGE: &str = "the kernel's clock cannot be compared";
    let masks = ["wake_up_new_task", "inet_release", "sock_init_data"].map(|function| ["--mask", function]);
    let monitor = Socktrail::flows(&[&UNREADABLE[..], &masks.concat()].concat())?;
    let ends = Connection::open(&TcpListener::bind("127.0.0.1:0")?)?.close()?;
    sleep(PERIOD + NOTICED);
    monitor.wait_for("the connection", |document| is_from_to(document, ends))?;
    let log = monitor.log();
    ensure!(log.matches(MESSAGE).count() == 1 && !log.contains(STEPPED), "{log}");
    Ok(())
}

/// Checks times, and checks them again after the next comparison if they are wrong. For a comparison, the monitor causes a
/// sample: it starts and ends a thread or, without fork probes, opens and closes a socket. Times are late by at most the time
/// that this takes, which may be long on a busy machine. The next comparison may be better, but a lasting error fails all four
/// attempts.
fn check_times_with_retries(monitor: &Socktrail) -> Result<()> {
    const COMPARISONS: usize = 4;
    let mut result = check_times(monitor);
    for _ in 1..COMPARISONS {
        if result.is_ok() {
            break;
        }
        sleep(PERIOD + NOTICED);
        result = check_times(monitor);
    }
    result
}

/// Fails unless the start of a connection is right to within 5 ms, and its end at most 5 ms late and not before the start.
fn check_times(monitor: &Socktrail) -> Result<()> {
    const TOLERANCE: Duration = Duration::from_millis(5);
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let before = SystemTime::now();
    let connection = Connection::open(&listener)?;
    let connected = SystemTime::now();
    let ends = connection.close()?;
    let after = SystemTime::now();
    for direction in ["egress", "ingress"] {
        let is_of = |document: &Value| is_from_to(document, ends) && document["network"]["direction"] == direction;
        let document = monitor.wait_for(&format!("the document of {ends:?}, {direction}"), is_of)?;
        let [start, end] = [time(&document, "/event/start")?, time(&document, "/event/end")?];
        ensure!(
            before - TOLERANCE <= start && start <= connected + TOLERANCE,
            "the start is not between {before:?} and {connected:?}: {document:#}"
        );
        ensure!(
            start <= end && end <= after + TOLERANCE,
            "the end is not between the start and {after:?}: {document:#}"
        );
    }
    Ok(())
}

/// A connection of this process to itself.
struct Connection {
    client: TcpStream,
    server: TcpStream,
}

impl Connection {
    fn open(listener: &TcpListener) -> Result<Self> {
        let client = TcpStream::connect(listener.local_addr()?).context("connect")?;
        let (server, _) = listener.accept().context("accept")?;
        let mut connection = Self { client, server };
        connection.send()?;
        Ok(connection)
    }

    fn send(&mut self) -> Result<()> {
        self.client.write_all(b"data")?;
        self.server.read_exact(&mut [0; 4]).context("receive")
    }

    /// Sends again and closes; returns the client's and the server's address.
    fn close(mut self) -> Result<(SocketAddr, SocketAddr)> {
        self.send()?;
        Ok((self.client.local_addr()?, self.client.peer_addr()?))
    }
}

fn is_from_to(document: &Value, (client, server): (SocketAddr, SocketAddr)) -> bool {
    endpoint(document, "source") == Some(client) && endpoint(document, "destination") == Some(server)
}

/// Dropping it resets the wall clock.
pub(crate) struct ClockStep(i64);

impl Drop for ClockStep {
    fn drop(&mut self) {
        move_clock(-self.0).ok();
    }
}

/// Sets the wall clock forward or, if negative, back, until the returned value is dropped.
pub(crate) fn step_clock(seconds: i64) -> Result<ClockStep> {
    move_clock(seconds)?;
    Ok(ClockStep(seconds))
}

fn move_clock(seconds: i64) -> Result<()> {
    let now = clock_gettime(ClockId::CLOCK_REALTIME)?;
    let step = TimeSpec::from_duration(Duration::from_secs(seconds.unsigned_abs()));
    let then = if seconds < 0 { now - step } else { now + step };
    clock_settime(ClockId::CLOCK_REALTIME, then).context("set the wall clock")
}
