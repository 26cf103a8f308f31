//! Compares guesses with type information on the running kernel. Prints a line for each field and argument. The exit
//! status is 1 if one differs, or if only one of the two sources has it, unless guesses skip it for lack of IPv6 or
//! because its function is never called. Needs root, and a kernel with kprobes and BTF.
//!
//! `agree [--no-ipv6] [--alone]`: `--no-ipv6` leaves out what only IPv6 needs, `--alone` gives each probe an event of
//! its own, as on kernels before 5.4.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example that prints what it finds")]

use socktrail_guess::{FIELDS, FUNCTIONS, Layout, LayoutSource, ResolveOptions, Resolved, SkipKind, resolve};
use std::process::ExitCode;

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        eprintln!("agree: {error}");
        ExitCode::FAILURE
    })
}

fn run() -> Result<ExitCode, socktrail_guess::Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |option: &str| arguments.iter().any(|argument| argument == option);
    let mut options = ResolveOptions::default();
    options.ipv6 = !has("--no-ipv6");
    options.share_events = !has("--alone");
    let guessed = resolve(&LayoutSource::Guess, &options)?;
    let btf = resolve(&LayoutSource::Btf(None), &options)?;
    println!("{:<42} {:>6} {:>6}  {:<8} took", "", "guess", "btf", "");
    let mut differ = 0;
    for key in keys() {
        let verdict = compare(&key, &guessed, &btf.layout);
        differ += u32::from(verdict == "DIFFERS");
        let text = |layout: &Layout| layout.value(&key).map_or("-".to_owned(), |value| value.to_string());
        let took = guessed.layout.origin(&key).map_or(String::new(), |(_, took)| format!("{took:.1?}"));
        println!("{key:<42} {:>6} {:>6}  {verdict:<8} {took}", text(&guessed.layout), text(&btf.layout));
    }
    for skipped in &guessed.skipped {
        println!("not guessed: {}: {}", skipped.key, skipped.reason);
    }
    println!("guesses {:.3?}, btf {:.3?}, {differ} differ", guessed.took, btf.took);
    Ok(if differ == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn keys() -> impl Iterator<Item = String> {
    let fields = FIELDS.iter().map(|field| field.name.to_owned());
    let arguments = FUNCTIONS.iter().flat_map(|function| {
        let key = |name: &str| format!("{}({name})", function.name);
        function.arguments.iter().map(move |argument| key(argument.name))
    });
    fields.chain(arguments)
}

fn compare(key: &str, guessed: &Resolved, btf: &Layout) -> &'static str {
    let (guess, found) = (guessed.layout.value(key), btf.value(key));
    let skipped = guessed.skipped.iter().find(|skipped| skipped.key == key);
    match (guess, skipped.map(|skipped| skipped.kind)) {
        _ if guess == found => "ok",
        (None, None) => "unwanted",
        (None, Some(SkipKind::NoIpv6)) => "no IPv6",
        (None, Some(SkipKind::NeverCalled)) => "uncalled",
        _ => "DIFFERS",
    }
}
