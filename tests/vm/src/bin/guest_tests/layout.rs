//! Guesses and the kernel's own type information agree on where everything is.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use socktrail_vm::{LAYOUT_FILE, OUT_DIR};

use crate::helpers::process::Process;

tests![
    guesses_equal_type_information, guesses_equal_type_information_each_time, nothing_is_guessed_where_a_warning_is_the_end;
    long: guesses_equal_type_information_a_thousand_times
];

/// Key by key, on this kernel; what was found is left for the runner's table.
fn guesses_equal_type_information() -> Result<()> {
    let guess = Found::by("guess")?;
    if !has_type_information() {
        return guess.is_complete();
    }
    let btf = Found::by("btf")?;
    // Both lists could be empty, and agree.
    for key in ["sock_common.skc_num", "sk_buff.data", "tcp_sock.segs_in", "cred.euid", "tcp_v4_connect(uaddr)"] {
        ensure!(btf.values.contains_key(key), "type information has no {key}");
    }

    let differences = guess.differences(&btf);
    let ipv6 = has_ipv6();
    let found = guess.values.iter().filter(|(key, value)| btf.values.get(*key) == Some(*value)).count();
    let uncalled = guess.skipped.iter().filter(|(_, kind)| *kind == "never_called");
    let inlined: BTreeSet<_> = uncalled.filter_map(|(key, _)| key.split('(').next()).collect();
    let facts = json!({
        "found": found,
        "differ": differences.iter().map(|(key, ..)| key).collect::<Vec<_>>(),
        "inlined": inlined,
        "guess_seconds": guess.seconds,
        "btf_seconds": btf.seconds,
    });
    fs::write(Path::new(OUT_DIR).join(LAYOUT_FILE), facts.to_string()).context("leave the facts")?;
    ensure!(differences.is_empty(), "(key, guess, type information, why there is no guess): {differences:#?}");

    let without_ipv6 = guess.skipped.values().any(|kind| kind == "no_ipv6");
    ensure!(without_ipv6 != ipv6, "IPv6 is {ipv6}, and of it was guessed: {:?}", guess.skipped);
    Ok(())
}

/// A guess is not right by luck.
fn guesses_equal_type_information_each_time() -> Result<()> {
    in_a_row(3)
}

fn guesses_equal_type_information_a_thousand_times() -> Result<()> {
    in_a_row(1000)
}

/// Guesses the layout again and again, and goes on when one differs, to tell how many do.
#[allow(clippy::print_stdout, reason = "a thousand layouts take an hour")]
fn in_a_row(count: u32) -> Result<()> {
    let other = Found::by(if has_type_information() { "btf" } else { "guess" })?;
    let (mut differing, mut slowest) = (Vec::new(), 0_f64);
    for number in 1..=count {
        let guess = Found::by("guess")?;
        slowest = slowest.max(guess.seconds);
        let differences = guess.differences(&other);
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

/// Debian's 32-bit kernels have none. There a guess is compared with another guess.
fn has_type_information() -> bool {
    !cfg!(target_arch = "x86") || Path::new("/sys/kernel/btf/vmlinux").exists()
}

fn has_ipv6() -> bool {
    Path::new("/proc/net/if_inet6").exists()
}

/// A guess may make the kernel warn.
fn nothing_is_guessed_where_a_warning_is_the_end() -> Result<()> {
    let _ends = PanicOnWarn::set("1")?;
    let run = |source| Process::start(&["socktrail", "layout", "--source", source])?.finish();
    let guess = run("guess")?;
    ensure!(guess.status != 0 && guess.stderr.contains("kernel.panic_on_warn"), "{guess:?}");
    if has_type_information() {
        let btf = run("btf")?;
        ensure!(btf.status == 0, "{btf:?}");
    }
    Ok(())
}

/// `kernel.panic_on_warn`, until it is dropped.
struct PanicOnWarn;

impl PanicOnWarn {
    fn set(to: &str) -> Result<Self> {
        fs::write("/proc/sys/kernel/panic_on_warn", to).context("set panic_on_warn")?;
        Ok(Self)
    }
}

impl Drop for PanicOnWarn {
    fn drop(&mut self) {
        let _ = Self::set("0").map(std::mem::forget);
    }
}

/// A key, what was guessed, what it is, and why it was not guessed.
type Difference = (String, Option<u64>, Option<u64>, Option<String>);

/// What `socktrail layout --json` says.
#[derive(Debug)]
struct Found {
    /// Offsets of fields and positions of arguments.
    values: BTreeMap<String, u64>,
    /// What was not found, and the kind of reason.
    skipped: BTreeMap<String, String>,
    seconds: f64,
}

impl Found {
    /// Fails unless everything was found but arguments of functions that are never called.
    fn is_complete(&self) -> Result<()> {
        let missing = self.skipped.iter().filter(|(_, kind)| *kind != "never_called");
        let missing: Vec<_> = missing.filter(|(_, kind)| *kind != "no_ipv6" || has_ipv6()).collect();
        ensure!(missing.is_empty(), "not found: {missing:?}");
        ensure!(self.values.contains_key("sk_buff.data"), "nothing was looked for: {:?}", self.values);
        Ok(())
    }

    fn by(source: &str) -> Result<Self> {
        let layout = Process::start(&["socktrail", "layout", "--source", source, "--json"])?.finish()?;
        ensure!(layout.status == 0, "{layout:?}");
        let json: Value = serde_json::from_str(&layout.stdout).with_context(|| format!("no JSON: {layout:?}"))?;
        let mut values = BTreeMap::new();
        for (kind, number) in [("fields", "offset"), ("arguments", "position")] {
            for (key, value) in json[kind].as_object().with_context(|| format!("no {kind}: {json:#}"))? {
                let origin = value["source"].as_str().unwrap_or_default();
                if origin != source && origin != "abi" {
                    bail!("{key} was asked of {source} and comes from {origin}");
                }
                values.insert(key.clone(), value[number].as_u64().with_context(|| format!("{key}: {value}"))?);
            }
        }
        let text = |value: &Value| value.as_str().map(str::to_owned).with_context(|| format!("{value} is no text"));
        let skipped = json["skipped"].as_array().context("nothing is said of what was skipped")?;
        Ok(Self {
            values,
            skipped: skipped.iter().map(|one| Ok((text(&one["key"])?, text(&one["kind"])?))).collect::<Result<_>>()?,
            seconds: json["took_ns"].as_f64().context("nothing is said of the time")? / 1e9,
        })
    }

    /// The keys that type information has otherwise: what was guessed, what it is, why it was not guessed.
    fn differences(&self, btf: &Self) -> Vec<Difference> {
        let keys: BTreeSet<_> = self.values.keys().chain(btf.values.keys()).collect();
        let ipv6 = has_ipv6();
        let differs = |key: &&String| self.values.get(*key) != btf.values.get(*key) && !self.may_lack(key, ipv6);
        let difference = |key: &String| {
            let of = |found: &Self| found.values.get(key).copied();
            (key.clone(), of(self), of(btf), self.skipped.get(key).cloned())
        };
        keys.into_iter().filter(differs).map(difference).collect()
    }

    /// Whether a guess may be missing: of IPv6 where there is none, and of the arguments of a function that the
    /// compiler has made part of its callers, which type information still lists though a probe there never fires.
    fn may_lack(&self, key: &str, ipv6: bool) -> bool {
        match self.skipped.get(key).map(String::as_str) {
            Some("no_ipv6") => !ipv6,
            Some("never_called") => key.ends_with(')'),
            _ => false,
        }
    }
}
