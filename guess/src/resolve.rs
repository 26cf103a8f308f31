//! Where a layout is to come from, and getting it from there.

use crate::engine::{self, Board, Terms};
use crate::{Error, Layout, SavedLayout, btf, catalog, guesses};
use serde::Serialize;
use socktrail_kprobes::{Group, Tracefs};
use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Where the kernel keeps its own type information.
const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

/// Where a layout is saved, and looked for, when no other place is named.
pub const SAVED_LAYOUT: &str = "/var/lib/socktrail/layout.json";

/// Where a layout is to come from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Source {
    /// Type information where the kernel has it, guesses for what that leaves out, and for what even these do not find
    /// the layout that was saved on this kernel, if any ([`ResolveOptions::saved`]).
    #[default]
    Auto,
    /// Guesses alone.
    Guess,
    /// Type information alone: of the kernel that runs here, or of a file.
    Btf(Option<PathBuf>),
    /// A layout that was saved on this kernel.
    File(PathBuf),
}

/// A text that names no [`Source`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected auto, guess, btf, btf:PATH or file:PATH")]
pub struct SourceError;

impl FromStr for Source {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, SourceError> {
        match text.split_once(':') {
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            Some(("btf", path)) if !path.is_empty() => Ok(Self::Btf(Some(path.into()))),
            None if text == "auto" => Ok(Self::Auto),
            None if text == "guess" => Ok(Self::Guess),
            None if text == "btf" => Ok(Self::Btf(None)),
            _ => Err(SourceError),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Guess => f.write_str("guess"),
            Self::Btf(None) => f.write_str("btf"),
            Self::Btf(Some(path)) => write!(f, "btf:{}", path.display()),
            Self::File(path) => write!(f, "file:{}", path.display()),
        }
    }
}

/// How to go about it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ResolveOptions {
    /// How long one guess may take. 15 s.
    pub guess_timeout: Duration,
    /// Whether what only IPv6 needs is wanted. It is; where the host has no IPv6, guesses leave it out.
    pub ipv6: bool,
    /// Whether what only socket events need is wanted. It is.
    pub socket_events: bool,
    /// The tracefs to guess through; found, or mounted for the time being, when there is none.
    pub tracefs: Option<Arc<Tracefs>>,
    /// With what the names of groups of probes begin. `socktrail`.
    pub group: String,
    /// Where [`Source::Auto`] looks for a saved layout last: [`SAVED_LAYOUT`]. A file that somebody other than root or
    /// this process's user can write is not used.
    pub saved: PathBuf,
    /// Whether probes may share trace events where the kernel lets them (Linux 5.4). They may; without, as on older
    /// kernels, guesses take longer.
    pub share_events: bool,
}

impl Default for ResolveOptions {
    fn default() -> Self {
        Self {
            guess_timeout: Duration::from_secs(15),
            ipv6: true,
            socket_events: true,
            tracefs: None,
            group: "socktrail".to_owned(),
            saved: SAVED_LAYOUT.into(),
            share_events: true,
        }
    }
}

/// What was found.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Resolved {
    /// Where everything is that was found.
    pub layout: Layout,
    /// What was not.
    pub skipped: Vec<Skipped>,
    /// How long it took in all.
    pub took: Duration,
}

/// A key that was not found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Skipped {
    /// `struct.field` or `function(argument)`.
    pub key: String,
    /// What sort of reason.
    pub kind: SkipKind,
    /// Why.
    pub reason: String,
}

/// Why a key was not found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SkipKind {
    /// Only IPv6 needs it, and this host has none.
    NoIpv6,
    /// The kernel has no such function, or it cannot be probed.
    NoFunction,
    /// The kernel has the function but does not call it where it should: its code is part of its callers. A probe on it
    /// would never fire.
    NeverCalled,
    /// It was not found where it was looked for.
    NotFound,
}

/// Finds everything that the catalog lists, or says why not.
///
/// # Errors
///
/// When the source cannot be used at all: no kprobes for guesses, no type information, another kernel's file.
pub fn resolve(source: &Source, options: &ResolveOptions) -> Result<Resolved, Error> {
    let began = Instant::now();
    let (layout, skipped) = match source {
        Source::Auto => automatic(options)?,
        Source::Guess => guess_all(options)?,
        Source::Btf(path) => from_btf(path.as_deref().unwrap_or(Path::new(KERNEL_BTF)))?,
        Source::File(path) => (SavedLayout::read(path)?.of_this_kernel(path)?, Vec::new()),
    };
    let took = began.elapsed();
    let skipped = complete(&layout, skipped, options);
    Ok(Resolved { layout, skipped, took })
}

/// Type information first, guesses for the rest, what was saved for the rest of that.
fn automatic(options: &ResolveOptions) -> Result<(Layout, Vec<Skipped>), Error> {
    let found = told_or_guessed(options);
    if found.as_ref().is_ok_and(|(layout, _)| layout.missing(options.ipv6).is_empty()) {
        return found;
    }
    match saved(&options.saved) {
        Ok(Some(saved)) => {
            let (mut layout, skipped) = found.unwrap_or_default();
            layout.fill_from(&saved);
            Ok((layout, skipped))
        }
        Ok(None) => found,
        Err(error) => {
            tracing::warn!("{error}");
            found
        }
    }
}

/// Type information first, guesses for the rest.
fn told_or_guessed(options: &ResolveOptions) -> Result<(Layout, Vec<Skipped>), Error> {
    let (layout, skipped) = match from_btf(Path::new(KERNEL_BTF)) {
        Ok(found) => found,
        Err(error) => {
            tracing::debug!("{error}");
            return guess_all(options);
        }
    };
    let missing = missing(&layout, options);
    if missing.is_empty() {
        return Ok((layout, skipped));
    }
    match guess(layout.clone(), &missing, options) {
        Ok((layout, more)) => Ok((layout, more)),
        // What type information told is worth having all the same.
        Err(error) => {
            tracing::debug!("{error}");
            let why = |skipped: Skipped| Skipped { reason: format!("{}; {error}", skipped.reason), ..skipped };
            Ok((layout, skipped.into_iter().map(why).collect()))
        }
    }
}

/// What was saved on this kernel, if anything.
fn saved(path: &Path) -> Result<Option<Layout>, Error> {
    match SavedLayout::read_trusted(path) {
        Ok(saved) => saved.of_this_kernel(path).map(Some),
        Err(Error::SavedIo { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn from_btf(path: &Path) -> Result<(Layout, Vec<Skipped>), Error> {
    let bytes = std::fs::read(path).map_err(|source| Error::NoBtf { path: path.to_owned(), source })?;
    let found = btf::find(&bytes).map_err(|source| Error::BadBtf { path: path.to_owned(), source })?;
    let skipped = found.missing.into_iter().map(|(key, reason)| Skipped { key, kind: SkipKind::NotFound, reason });
    Ok((found.layout, skipped.collect()))
}

/// Guesses everything.
fn guess_all(options: &ResolveOptions) -> Result<(Layout, Vec<Skipped>), Error> {
    let wanted: Vec<String> = catalog::keys().map(|(key, _)| key).filter(|key| options.wants(key)).collect();
    guess(Layout::new(), &wanted, options)
}

/// Guesses what is wanted and not known yet.
fn guess(mut layout: Layout, wanted: &[String], options: &ResolveOptions) -> Result<(Layout, Vec<Skipped>), Error> {
    if panics_on_warning() {
        return Err(Error::PanicOnWarn);
    }
    let tracefs = match &options.tracefs {
        Some(tracefs) => Arc::clone(tracefs),
        None => Arc::new(Tracefs::find()?),
    };
    // Probes that share an event tell themselves apart by a constant.
    let shares = options.share_events && tracefs.features().constants;
    let mut board = Board::new(Group::create(&tracefs, &options.group)?, shares);
    if let Some(source) = guesses::no_loopback() {
        return Err(Error::NoLoopback { source });
    }
    let no_ipv6 = if options.ipv6 { guesses::no_ipv6() } else { Some("IPv6 is not wanted".to_owned()) };
    let terms = Terms { timeout: options.guess_timeout, no_ipv6 };
    let skipped = engine::run_all(guesses::all(), wanted, &mut layout, &mut board, &terms);
    Ok((layout, skipped.map_err(|source| Error::Thread { source })?))
}

/// Whether the kernel ends at a warning. Linux 5.10 for one warns of a read through a word that is no address at all, where
/// the processor has longer addresses than the kernel uses (`ex_handler_uaccess`).
fn panics_on_warning() -> bool {
    std::fs::read_to_string("/proc/sys/kernel/panic_on_warn").is_ok_and(|setting| setting.trim() != "0")
}

/// Every key that is missing and wanted, with the reason where one is known.
fn complete(layout: &Layout, skipped: Vec<Skipped>, options: &ResolveOptions) -> Vec<Skipped> {
    let told = |key: &String| skipped.iter().find(|skipped| skipped.key == *key).cloned();
    let untold = |key| Skipped { key, kind: SkipKind::NotFound, reason: "the source does not tell it".to_owned() };
    let tell = |key: String| told(&key).unwrap_or_else(|| untold(key));
    missing(layout, options).into_iter().map(tell).collect()
}

/// What is wanted and not there.
fn missing(layout: &Layout, options: &ResolveOptions) -> Vec<String> {
    layout.missing(options.ipv6).into_iter().filter(|key| options.wants(key)).collect()
}

impl ResolveOptions {
    fn wants(&self, key: &str) -> bool {
        self.socket_events || !catalog::is_for_socket_events(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_source_is_an_error_that_names_it() {
        let options = ResolveOptions::default();
        let error = resolve(&Source::Btf(Some("/nowhere".into())), &options).unwrap_err();
        assert!(error.to_string().starts_with("no type information (BTF) at /nowhere"), "{error}");
        let error = resolve(&Source::Btf(Some("/proc/self/status".into())), &options).unwrap_err();
        assert!(matches!(error, Error::BadBtf { .. }));
        let error = resolve(&Source::File("/nowhere".into()), &options).unwrap_err();
        assert!(matches!(error, Error::SavedIo { .. }));
    }

    #[test]
    fn sources_have_names() {
        for (name, source) in [
            ("file:/tmp/a:b", Source::File("/tmp/a:b".into())),
            ("auto", Source::Auto),
            ("guess", Source::Guess),
            ("btf", Source::Btf(None)),
            ("btf:vmlinux", Source::Btf(Some("vmlinux".into()))),
        ] {
            assert_eq!((name.parse(), source.to_string()), (Ok(source), name.to_owned()));
        }
        for bad in ["", "file:", "file", "Auto", "auto:", "guess:x"] {
            assert_eq!(bad.parse::<Source>(), Err(SourceError), "{bad}");
        }
    }

    #[test]
    fn what_nobody_saved_is_not_used() {
        assert!(saved(Path::new("/nowhere/layout.json")).unwrap().is_none());
    }

    #[test]
    fn what_is_missing_has_a_reason() {
        let told = vec![Skipped { key: "socket.sk".to_owned(), kind: SkipKind::NoIpv6, reason: "hidden".to_owned() }];
        let skipped = complete(&Layout::new(), told, &ResolveOptions::default());
        let reason = |key: &str| skipped.iter().find(|skipped| skipped.key == key).unwrap().reason.as_str();
        assert_eq!((reason("socket.sk"), reason("cred.uid")), ("hidden", "the source does not tell it"));
    }
}
