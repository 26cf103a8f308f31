//! Guessed layouts equal the kernel's type information (BTF).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use socktrail_vm::{LAYOUT_FILE, OUT_DIR};

use crate::helpers::layout::has_type_information;
use crate::helpers::process::Process;

tests![
    guesses_equal_type_information, guesses_equal_type_information_each_time, nothing_is_guessed_with_panic_on_warn;
    long: guesses_equal_type_information_a_thousand_times
];

/// Compares each key, and writes [`LAYOUT_FILE`] for the table that `cargo vm test` prints.
fn guesses_equal_type_information() -> Result<()> {
    let guess = Layout::read("guess")?;
    if !has_type_information() {
        return guess.expect_complete();
    }
    let btf = Layout::read("btf")?;
    // Empty lists would be equal, too.
    for key in ["sock_common.skc_num", "sk_buff.data", "tcp_sock.segs_in", "cred.euid", "tcp_v4_connect(uaddr)"] {
        ensure!(btf.values.contains_key(key), "type information has no {key}");
    }

    let differences = guess.differences(&btf);
    let ipv6 = has_ipv6();
    let equal = guess.values.iter().filter(|(key, value)| btf.values.get(*key) == Some(*value)).count();
    let uncalled = guess.skipped.iter().filter(|(_, skipped)| skipped.kind == "never_called");
    let inlined: BTreeSet<_> = uncalled.filter_map(|(key, _)| key.split('(').next()).collect();
    let facts = json!({
        "found": equal,
        "differ": differences.iter().map(|difference| &difference.key).collect::<Vec<_>>(),
        "inlined": inlined,
        "guess_seconds": guess.seconds,
        "btf_seconds": btf.seconds,
    });
    fs::write(Path::new(OUT_DIR).join(LAYOUT_FILE), facts.to_string())
        .with_context(|| format!("write {LAYOUT_FILE}"))?;
    ensure!(differences.is_empty(), "{differences:#?}");

    let without_ipv6 = guess.skipped.values().any(|skipped| skipped.kind == "no_ipv6");
    ensure!(without_ipv6 != ipv6, "IPv6 is there: {ipv6}, but these keys were skipped: {:?}", guess.skipped);
    Ok(())
}

/// Repeated, because one guess may be right by chance.
fn guesses_equal_type_information_each_time() -> Result<()> {
    repeat(3)
}

fn guesses_equal_type_information_a_thousand_times() -> Result<()> {
    repeat(1000)
}

/// Guesses the layout `count` times. It continues after a difference, to count them.
#[allow(clippy::print_stdout, reason = "shows progress: a thousand layouts take an hour")]
fn repeat(count: u32) -> Result<()> {
    // Without type information, the first guessed layout is the reference.
    let reference = Layout::read(if has_type_information() { "btf" } else { "guess" })?;
    let (mut differing, mut slowest) = (Vec::new(), 0_f64);
    for number in 1..=count {
        let guessed = Layout::read("guess")?;
        slowest = slowest.max(guessed.seconds);
        let differences = guessed.differences(&reference);
        if !differences.is_empty() {
            println!("layout {number}: {differences:?}");
            differing.push(number);
        }
        if number % 50 == 0 || number == count {
            println!("{number} layouts, {} differ, the slowest took {slowest:.1} s", differing.len());
        }
    }
    ensure!(differing.is_empty(), "{} of {count} layouts differ: {differing:?}", differing.len());
    Ok(())
}

fn has_ipv6() -> bool {
    Path::new("/proc/net/if_inet6").exists()
}

/// With `panic_on_warn` there are no guesses, because guessing may make the kernel warn.
fn nothing_is_guessed_with_panic_on_warn() -> Result<()> {
    let _panic_on_warn = PanicOnWarn::set()?;
    let run = |source| Process::start(&["socktrail", "layout", "--source", source])?.finish();
    let guess = run("guess")?;
    ensure!(guess.status != 0 && guess.stderr.contains("kernel.panic_on_warn"), "{guess:?}");
    if has_type_information() {
        let btf = run("btf")?;
        ensure!(btf.status == 0, "{btf:?}");
    }
    Ok(())
}

/// `kernel.panic_on_warn` is set. Dropping this sets it to 0.
struct PanicOnWarn;

impl PanicOnWarn {
    fn set() -> Result<Self> {
        Self::write("1")?;
        Ok(Self)
    }

    fn write(value: &str) -> Result<()> {
        fs::write("/proc/sys/kernel/panic_on_warn", value).context("set panic_on_warn")
    }
}

impl Drop for PanicOnWarn {
    fn drop(&mut self) {
        let _ = Self::write("0");
    }
}

/// A key with different values.
#[derive(Debug)]
#[allow(dead_code, reason = "read only by `Debug`")]
struct Difference {
    key: String,
    guess: Option<u64>,
    reference: Option<u64>,
    /// Why there is no guess.
    skipped: Option<Skipped>,
}

/// Why a key was not found.
#[derive(Debug, Clone)]
struct Skipped {
    kind: String,
    #[allow(dead_code, reason = "read only by `Debug`")]
    reason: String,
}

/// The output of `socktrail layout --json`.
#[derive(Debug)]
struct Layout {
    /// Offsets of fields and positions of arguments.
    values: BTreeMap<String, u64>,
    /// The keys that were not found.
    skipped: BTreeMap<String, Skipped>,
    seconds: f64,
}

impl Layout {
    /// Fails if a key was not found, except those of functions that are never called, and those of IPv6 on a kernel without it.
    fn expect_complete(&self) -> Result<()> {
        let missing = self.skipped.iter().filter(|(_, skipped)| skipped.kind != "never_called");
        let missing: Vec<_> = missing.filter(|(_, skipped)| skipped.kind != "no_ipv6" || has_ipv6()).collect();
        ensure!(missing.is_empty(), "not found: {missing:?}");
        ensure!(self.values.contains_key("sk_buff.data"), "sk_buff.data is missing: {:?}", self.values);
        Ok(())
    }

    /// Runs `socktrail layout --json --source SOURCE`.
    fn read(source: &str) -> Result<Self> {
        let layout = Process::start(&["socktrail", "layout", "--source", source, "--json"])?.finish()?;
        ensure!(layout.status == 0, "{layout:?}");
        let json: Value = serde_json::from_str(&layout.stdout).with_context(|| format!("not JSON: {layout:?}"))?;
        let mut values = BTreeMap::new();
        for (kind, number) in [("fields", "offset"), ("arguments", "position")] {
            for (key, value) in json[kind].as_object().with_context(|| format!("no {kind}: {json:#}"))? {
                let origin = value["source"].as_str().unwrap_or_default();
                if origin != source && origin != "abi" {
                    bail!("the source of {key} is {origin} instead of {source}");
                }
                values.insert(key.clone(), value[number].as_u64().with_context(|| format!("{key}: {value}"))?);
            }
        }
        let text =
            |value: &Value| value.as_str().map(str::to_owned).with_context(|| format!("{value} is not a string"));
        let skipped =
            json["skipped"].as_array().context("no `skipped`")?.iter().map(|one| {
                Ok((text(&one["key"])?, Skipped { kind: text(&one["kind"])?, reason: text(&one["reason"])? }))
            });
        Ok(Self {
            values,
            skipped: skipped.collect::<Result<_>>()?,
            seconds: json["took_ns"].as_f64().context("no `took_ns`")? / 1e9,
        })
    }

    /// The keys whose values differ from the reference's.
    fn differences(&self, reference: &Self) -> Vec<Difference> {
        let keys: BTreeSet<_> = self.values.keys().chain(reference.values.keys()).collect();
        let ipv6 = has_ipv6();
        let differs = |key: &&String| self.values.get(*key) != reference.values.get(*key) && !self.may_lack(key, ipv6);
        let difference = |key: &String| Difference {
            key: key.clone(),
            guess: self.values.get(key).copied(),
            reference: reference.values.get(key).copied(),
            skipped: self.skipped.get(key).cloned(),
        };
        keys.into_iter().filter(differs).map(difference).collect()
    }

    /// Whether a guess may be missing: for IPv6 if the kernel has none, and for arguments of a function that the
    /// compiler has inlined into all callers. Type information still lists such a function, but a probe on it is never
    /// hit.
    fn may_lack(&self, key: &str, ipv6: bool) -> bool {
        match self.skipped.get(key).map(|skipped| skipped.kind.as_str()) {
            Some("no_ipv6") => !ipv6,
            Some("never_called") => key.ends_with(')'),
            _ => false,
        }
    }
}
