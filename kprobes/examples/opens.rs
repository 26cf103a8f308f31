//! Prints for a few seconds which process executes which program and opens which file: `opens [SECONDS]`, as root.

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use socktrail_kprobes::{
    Decoder, Error, Group, Horizon, Record, Resolver, RingOptions, Rings, Sample, Target, Term, Text, Tracefs, sample,
    tracepoint,
};

sample! {
    /// `do_sys_openat2(dfd, filename, how)`: a process opens a file.
    struct Open {
        path: Text = "+u0({filename})",
        flags: u64 = "+{open_how.flags}({how})",
    }
}

tracepoint! {
    /// `sched:sched_process_exec`: a process executes a program.
    struct Exec {
        path: Text = "filename",
        pid: i32 = "pid",
    }
}

fn layout(_function: &str, name: &str) -> Option<Term> {
    match name {
        "filename" => Some(Term::Argument(2)),
        "how" => Some(Term::Argument(3)),
        "open_how.flags" => Some(Term::Offset(0)),
        _ => None,
    }
}

fn main() -> ExitCode {
    let seconds = std::env::args().nth(1).and_then(|seconds| seconds.parse().ok()).unwrap_or(10);
    match watch(Duration::from_secs(seconds)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "opens: {error}");
            ExitCode::FAILURE
        }
    }
}

fn watch(duration: Duration) -> Result<(), Error> {
    let layout: &dyn Resolver = &layout;
    let group = Group::create(&Arc::new(Tracefs::find()?), "opens")?;
    let open = group.install("open", Target::Kprobe { function: "do_sys_openat2" }, Open::FETCHES, layout)?;
    let exec = Target::Tracepoint { category: "sched", name: "sched_process_exec" };
    let exec = group.install("exec", exec, Exec::FETCHES, layout)?;
    let (opens, execs) = (Decoder::<Open>::new(open.format())?, Decoder::<Exec>::new(exec.format())?);

    let mut rings = Rings::per_cpu(&RingOptions::default())?;
    rings.attach(&open, None)?;
    rings.attach(&exec, None)?;
    let mut horizon = Horizon::default();
    let mut out = io::stdout().lock();
    let end = Instant::now() + duration;
    while Instant::now() < end {
        rings.wait(Some(Duration::from_millis(100)))?;
        let until = horizon.next(rings.now());
        rings.drain(until, &mut |record| {
            // A closed pipe is not a reason to stop half-way.
            let _ = match record {
                Record::Sample { pid, id, raw, .. } if u32::from(id) == open.id() => opens.decode(raw).map(|open| {
                    let path = String::from_utf8_lossy(open.path.bytes(raw));
                    writeln!(out, "{pid:>7} open {path} {:#o}", open.flags)
                }),
                Record::Sample { raw, .. } => execs.decode(raw).map(|exec| {
                    writeln!(out, "{:>7} exec {}", exec.pid, String::from_utf8_lossy(exec.path.bytes(raw)))
                }),
                Record::Lost { cpu, count, .. } => Some(writeln!(out, "CPU {cpu} lost {count}")),
                _ => None,
            };
        });
    }
    Ok(())
}
