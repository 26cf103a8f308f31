//! Metrics for Prometheus, in its text format, served on this host only.
//!
//! Each field of the statistics is a metric: `socktrail_FIELD`, or `socktrail_FIELD_total` if it is a counter.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use parking_lot::Mutex;
use procfs::process::Process;
use serde_json::Value;
use socktrail::config::Listen;
use socktrail::output::Reading;

/// The maximum age of the served values.
const MAX_AGE: Duration = Duration::from_secs(1);
/// The timeout for a client's request, and for sending the response.
const TIMEOUT: Duration = Duration::from_secs(2);
/// The maximum length of a request in bytes.
const MAX_REQUEST_LEN: usize = 4096;
/// The fields that can decrease, besides those that end in `_live`. All others are counters.
const GAUGES: [&str; 5] = ["features_lost", "kernel_accounting", "pending", "spool_bytes", "troubles"];

/// Serves the latest values.
#[derive(Debug)]
pub struct Metrics {
    text: Arc<Mutex<String>>,
    /// When the values were last updated.
    updated: Option<Instant>,
}

impl Metrics {
    /// Listens where the configuration says.
    pub fn start(listen: &Listen) -> anyhow::Result<Self> {
        let text = Arc::<Mutex<String>>::default();
        let shared = Arc::clone(&text);
        match listen {
            Listen::Tcp(address) => {
                let listener = tcp(*address).with_context(|| format!("metrics.listen: {address}"))?;
                spawn(move || {
                    for stream in listener.incoming() {
                        // An error of one client does not affect others.
                        let _ = stream.and_then(|stream| answer_tcp(stream, &shared));
                    }
                })?;
            }
            Listen::Unix(path) => {
                let listener = unix(path).with_context(|| format!("metrics.listen: {}", path.display()))?;
                spawn(move || {
                    for stream in listener.incoming() {
                        // An error of one client does not affect others.
                        let _ = stream.and_then(|stream| answer_unix(stream, &shared));
                    }
                })?;
            }
        }
        Ok(Self { text, updated: None })
    }

    /// Updates the values if they are too old: from statistics as JSON objects, and from the outputs.
    pub fn tick(&mut self, now: Instant, values: impl FnOnce() -> ([Value; 2], Vec<Reading>)) {
        if self.updated.is_some_and(|updated| now.saturating_duration_since(updated) < MAX_AGE) {
            return;
        }
        self.updated = Some(now);
        let (stats, readings) = values();
        let text = render(&stats, &readings, &Usage::of_this_process());
        *self.text.lock() = text;
    }
}

fn spawn(run: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    std::thread::Builder::new().name("metrics".to_owned()).spawn(run)?;
    Ok(())
}

fn tcp(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address)
}

/// Replaces a socket that an earlier process has left behind, but no other file.
fn unix(path: &Path) -> io::Result<UnixListener> {
    if fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket()) {
        fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

fn answer_tcp(stream: std::net::TcpStream, text: &Mutex<String>) -> io::Result<()> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    answer(stream, text)
}

fn answer_unix(stream: std::os::unix::net::UnixStream, text: &Mutex<String>) -> io::Result<()> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    answer(stream, text)
}

/// Reads one request and sends the response.
fn answer(mut stream: impl Read + Write, text: &Mutex<String>) -> io::Result<()> {
    let (mut request, mut buffer) = (Vec::new(), [0; 1024]);
    let until = Instant::now() + TIMEOUT;
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let read = stream.read(&mut buffer)?;
        if read == 0 || request.len() + read > MAX_REQUEST_LEN || Instant::now() >= until {
            return Ok(());
        }
        request.extend_from_slice(&buffer[..read]);
    }
    let (status, body) = if request.starts_with(b"GET /metrics ") {
        ("200 OK", text.lock().clone())
    } else {
        ("404 Not Found", "GET /metrics\n".to_owned())
    };
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}

/// The resources that the agent uses.
#[derive(Debug, Default)]
struct Usage {
    cpu_seconds: f64,
    resident_bytes: u64,
    open_files: usize,
}

impl Usage {
    fn of_this_process() -> Self {
        let Ok(process) = Process::myself() else { return Self::default() };
        let Ok(stat) = process.stat() else { return Self::default() };
        Self {
            cpu_seconds: (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64,
            resident_bytes: stat.rss * procfs::page_size(),
            open_files: process.fd_count().unwrap_or_default(),
        }
    }
}

/// Renders all metrics in the text format.
fn render(stats: &[Value], outputs: &[Reading], usage: &Usage) -> String {
    let mut text = String::new();
    for (field, value) in stats.iter().filter_map(Value::as_object).flatten() {
        match value {
            Value::Object(counts) => {
                // `lost_by_cpu`: counts by `cpu`.
                let label = field.rsplit_once("_by_").map_or("of", |(_, label)| label);
                let samples = counts.iter().map(|(of, count)| (format!("{{{label}=\"{of}\"}}"), count.to_string()));
                family(&mut text, field, samples.collect());
            }
            value => family(&mut text, field, vec![(String::new(), value.to_string())]),
        }
    }
    let readings: Vec<_> = outputs.iter().map(|reading| (reading.output, reading.numbers())).collect();
    for (at, (field, _)) in readings.first().map(|(_, numbers)| *numbers).into_iter().flatten().enumerate() {
        let of = |(output, numbers): &(&str, [(&str, u64); 14])| {
            (format!("{{output=\"{output}\"}}"), numbers[at].1.to_string())
        };
        family(&mut text, &format!("output_{field}"), readings.iter().map(of).collect());
    }
    for (name, kind, value) in [
        ("process_cpu_seconds_total", "counter", usage.cpu_seconds.to_string()),
        ("process_resident_memory_bytes", "gauge", usage.resident_bytes.to_string()),
        ("process_open_fds", "gauge", usage.open_files.to_string()),
    ] {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "# TYPE {name} {kind}\n{name} {value}");
    }
    text
}

/// Renders one metric with a sample for each set of labels.
fn family(text: &mut String, field: &str, samples: Vec<(String, String)>) {
    let bare = field.strip_prefix("output_").unwrap_or(field);
    let gauge = bare.ends_with("_live") || GAUGES.contains(&bare);
    let (suffix, kind) = if gauge { ("", "gauge") } else { ("_total", "counter") };
    let _ = writeln!(text, "# TYPE socktrail_{field}{suffix} {kind}");
    for (labels, value) in samples {
        let _ = writeln!(text, "socktrail_{field}{suffix}{labels} {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use socktrail::monitor::MonitorStats;
    use socktrail::output::Meter;
    use socktrail::probes::Feature;
    use socktrail::sensors;

    /// The text format of Prometheus requires one type line before the samples of each name.
    #[test]
    fn the_text_is_valid_for_prometheus() {
        let meter = Meter::default();
        meter.written.add(7);
        let mut stats = MonitorStats::default();
        stats.flows_dropped = 3;
        stats.lost_by_cpu.insert(1, 9);
        stats.misses_by_probe.insert(Feature::SocketFree, 4);
        let outputs = [meter.read("file"), Meter::default().read("stdout")];
        let mut sensors = sensors::SensorStats::default();
        sensors.sensor_events = 5;
        let stats = [serde_json::to_value(&stats).unwrap(), serde_json::to_value(sensors).unwrap(), Value::Null];
        let text = render(&stats, &outputs, &Usage { cpu_seconds: 1.5, ..Usage::default() });
        let mut types = std::collections::HashSet::new();
        for line in text.lines() {
            if let Some(declared) = line.strip_prefix("# TYPE ") {
                let (name, kind) = declared.split_once(' ').unwrap();
                assert!(types.insert(name) && ["counter", "gauge"].contains(&kind), "{line}");
                assert_eq!(name.ends_with("_total"), kind == "counter", "{line}");
            } else {
                let (sample, value) = line.rsplit_once(' ').unwrap();
                assert!(types.contains(sample.split('{').next().unwrap()), "{line}");
                assert!(value.parse::<f64>().is_ok(), "{line}");
            }
        }
        for gauge in GAUGES {
            let is_declared = |prefix: &str| types.contains(format!("{prefix}{gauge}").as_str());
            assert!(is_declared("socktrail_") || is_declared("socktrail_output_"), "no metric has the name {gauge}");
        }
        for expected in [
            "socktrail_flows_dropped_total 3",
            "socktrail_sensor_events_total 5",
            "socktrail_lost_by_cpu_total{cpu=\"1\"} 9",
            "socktrail_misses_by_probe_total{probe=\"socket_free\"} 4",
            "socktrail_output_written_total{output=\"file\"} 7",
            "socktrail_output_written_total{output=\"stdout\"} 0",
            "socktrail_output_pending{output=\"file\"} 0",
            "process_cpu_seconds_total 1.5",
        ] {
            assert!(text.lines().any(|line| line == expected), "{expected} is not in\n{text}");
        }
    }
}
