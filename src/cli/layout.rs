//! `socktrail layout`: offsets in this kernel's structures, and positions of function arguments.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;
use socktrail::{Error, Options};
use socktrail_guess::{Difference, Layout, ResolveOptions, Resolved, SAVED_LAYOUT, SavedLayout, Skipped, resolve};

use super::args::LayoutArgs;
use super::exit::Status;
use super::table::aligned;

/// Runs the command.
pub fn run(args: &LayoutArgs, options: &Options, mut out: impl Write) -> anyhow::Result<Status> {
    let status = match args.diff.as_deref() {
        Some([one, other]) => diff(one, other, args.json, &mut out)?,
        _ => show(args, options, &mut out)?,
    };
    out.flush()?;
    Ok(status)
}

fn show(args: &LayoutArgs, options: &Options, out: &mut impl Write) -> anyhow::Result<Status> {
    let Resolved { layout, skipped, took, btf_error, saved_error, .. } = find(options)?;
    for error in btf_error.iter().chain(&saved_error) {
        tracing::warn!("{error}");
    }
    let saved = SavedLayout::of_running(layout).map_err(Error::from)?;
    if let Some(path) = &args.save {
        if path == Path::new(SAVED_LAYOUT)
            && let Some(folder) = path.parent()
        {
            fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        }
        saved.write(path).map_err(Error::from)?;
    }
    if args.json {
        let took_ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        serde_json::to_writer_pretty(&mut *out, &Report { saved: &saved, skipped: &skipped, took_ns })?;
        writeln!(out)?;
    } else {
        out.write_all(table(&saved.layout, &skipped).as_bytes())?;
        writeln!(out, "\n{}, found in {took:.1?}", saved.kernel)?;
    }
    Ok(Status::Success)
}

fn find(options: &Options) -> Result<Resolved, Error> {
    let mut resolve_options = ResolveOptions::default();
    resolve_options.guess_timeout = options.guess_timeout;
    Ok(resolve(&options.source, &resolve_options)?)
}

/// The output of `--json`: a saved layout with additional fields.
#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    saved: &'a SavedLayout,
    skipped: &'a [Skipped],
    /// How long it took to find the layout, in nanoseconds.
    took_ns: u64,
}

fn diff(one: &PathBuf, other: &PathBuf, json: bool, out: &mut impl Write) -> anyhow::Result<Status> {
    let load = |path| SavedLayout::read(path).map(|saved| saved.layout).map_err(Error::from);
    let differences = load(one)?.diff(&load(other)?);
    if json {
        serde_json::to_writer_pretty(&mut *out, &Compared { one, other, differences: &differences })?;
        writeln!(out)?;
    } else {
        out.write_all(comparison(one, other, &differences).as_bytes())?;
    }
    Ok(if differences.is_empty() { Status::Success } else { Status::Failure })
}

/// The output of `--diff --json`.
#[derive(Serialize)]
struct Compared<'a> {
    one: &'a Path,
    other: &'a Path,
    differences: &'a [Difference],
}

fn comparison(one: &Path, other: &Path, differences: &[Difference]) -> String {
    if differences.is_empty() {
        return "No difference.\n".to_owned();
    }
    let value = |value: Option<u32>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
    let head = ["KEY".to_owned(), one.display().to_string(), other.display().to_string()];
    let rows = differences.iter().map(|pair| [pair.key.clone(), value(pair.left), value(pair.right)]);
    aligned(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}

/// A line for each field and argument. Keys that one guess found together have the same time. Keys that were not found
/// come last, with the reason.
fn table(layout: &Layout, skipped: &[Skipped]) -> String {
    let head = ["KEY", "VALUE", "SOURCE", "TOOK"].map(str::to_owned);
    let fields = layout.fields().map(|(name, field)| {
        [name.to_owned(), format!("offset {}", field.offset), field.source.to_string(), format!("{:.1?}", field.took)]
    });
    let arguments = layout.arguments().map(|(key, argument)| {
        let position = format!("argument {}", argument.position);
        [key.to_owned(), position, argument.source.to_string(), format!("{:.1?}", argument.took)]
    });
    let skipped =
        skipped.iter().map(|skipped| [skipped.key.clone(), "-".to_owned(), "-".to_owned(), skipped.reason.clone()]);
    aligned(&std::iter::once(head).chain(fields).chain(arguments).chain(skipped).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use socktrail_guess::ValueOrigin;

    use super::*;

    fn layout(offset: u32) -> Layout {
        let mut layout = Layout::new();
        layout.set("sock_common.skc_num", offset, ValueOrigin::Guess, Duration::from_micros(1500));
        layout.set("ip_local_out(skb)", 3, ValueOrigin::Btf, Duration::ZERO);
        layout
    }

    #[test]
    fn the_table_has_each_key_with_its_source() {
        let table = table(&layout(14), &[]);
        let line = |key: &str| {
            let line = table.lines().find(|line| line.starts_with(key)).unwrap();
            line.split_whitespace().skip(1).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(line("sock_common.skc_num"), ["offset", "14", "guess", "1.5ms"]);
        assert_eq!(line("ip_local_out(skb)"), ["argument", "3", "btf", "0.0ns"]);
        assert_eq!(line("sockaddr_in.sin_port")[..3], ["offset", "2", "abi"]);
    }

    #[test]
    fn saved_layouts_are_compared() {
        let folder = tempfile::tempdir().unwrap();
        let [one, other] = ["one", "other"].map(|name| folder.path().join(name));
        SavedLayout::of_running(layout(14)).unwrap().write(&one).unwrap();
        SavedLayout::of_running(layout(16)).unwrap().write(&other).unwrap();
        let mut out = Vec::new();
        assert_eq!(diff(&one, &one, false, &mut out).unwrap(), Status::Success);
        assert_eq!(diff(&one, &other, false, &mut out).unwrap(), Status::Failure);
        let text = String::from_utf8(out).unwrap();
        assert!(text.starts_with("No difference.\n"), "{text}");
        assert!(text.lines().last().unwrap().ends_with("16"), "{text}");
    }

    #[test]
    fn json_can_be_read_as_a_saved_layout() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("layout");
        let saved = SavedLayout::of_running(layout(14)).unwrap();
        let report = Report { saved: &saved, skipped: &[], took_ns: 1 };
        fs::write(&path, serde_json::to_vec(&report).unwrap()).unwrap();
        assert_eq!(SavedLayout::read(&path).unwrap(), saved);
    }
}
