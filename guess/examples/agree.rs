//! Whether guesses and type information agree on every field and argument of the kernel that runs here: a line for each,
//! exit status 1 when one differs or is missing. As root, on a kernel with kprobes and BTF.
//!
//! `agree [--no-ipv6] [--alone] [--log]`: without IPv6; with an event for each probe, as on kernels before 5.4; with what
//! happens.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example that prints what it finds")]

use socktrail_guess::{FIELDS, FUNCTIONS, Layout, ResolveOptions, Resolved, SkipKind, Source, resolve};
use std::process::ExitCode;

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        eprintln!("agree: {error}");
        ExitCode::FAILURE
    })
}

fn run() -> Result<ExitCode, socktrail_guess::Error> {
    let given: Vec<String> = std::env::args().skip(1).collect();
    let has = |option: &str| given.iter().any(|argument| argument == option);
    if has("--log") {
        tracing_subscriber::fmt().with_max_level(tracing_subscriber::filter::LevelFilter::TRACE).init();
    }
    let mut options = ResolveOptions::default();
    options.ipv6 = !has("--no-ipv6");
    options.share_events = !has("--alone");
    let guessed = resolve(&Source::Guess, &options)?;
    let told = resolve(&Source::Btf(None), &options)?;
    println!("{:<42} {:>6} {:>6}  {:<8} took", "", "guess", "btf", "");
    let mut differ = 0;
    for key in keys() {
        let verdict = compare(&key, &guessed, &told.layout);
        differ += u32::from(verdict == "DIFFERS");
        let text = |layout: &Layout| layout.value(&key).map_or("-".to_owned(), |value| value.to_string());
        let took = guessed.layout.origin(&key).map_or(String::new(), |(_, took)| format!("{took:.1?}"));
        println!("{key:<42} {:>6} {:>6}  {verdict:<8} {took}", text(&guessed.layout), text(&told.layout));
    }
    for skipped in &guessed.skipped {
        println!("not guessed: {}: {}", skipped.key, skipped.reason);
    }
    println!("guesses {:.3?}, btf {:.3?}, {differ} differ", guessed.took, told.took);
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

fn compare(key: &str, guessed: &Resolved, told: &Layout) -> &'static str {
    let (guess, btf) = (guessed.layout.value(key), told.value(key));
    let skipped = guessed.skipped.iter().find(|skipped| skipped.key == key);
    match (guess, skipped.map(|skipped| skipped.kind)) {
        _ if guess == btf => "ok",
        (None, None) => "unwanted",
        (None, Some(SkipKind::NoIpv6)) => "no IPv6",
        (None, Some(SkipKind::NeverCalled)) => "uncalled",
        _ => "DIFFERS",
    }
}
