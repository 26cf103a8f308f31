//! Finds the kernel's layout, from the source that the caller chooses.

use crate::btf::MissingKey;
use crate::engine::{self, ProbeInstaller, RunOptions};
use crate::{Error, Layout, SavedLayout, btf, catalog, guesses};
use serde::Serialize;
use socktrail_kprobes::{Group, Tracefs};
use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The kernel's type information.
const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

/// The default path of the saved layout.
pub const SAVED_LAYOUT: &str = "/var/lib/socktrail/layout.json";

/// The source of a layout.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum LayoutSource {
    /// Type information where the kernel has it, guesses for keys that it does not give, and for the remaining keys the
    /// layout that was saved on this kernel, if there is one ([`ResolveOptions::saved`]).
    #[default]
    Auto,
    /// Only guesses.
    Guess,
    /// Only type information: the running kernel's, or that in a file.
    Btf(Option<PathBuf>),
    /// A layout that was saved on this kernel.
    File(PathBuf),
}

/// A text does not name a [`LayoutSource`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected auto, guess, btf, btf:PATH or file:PATH")]
pub struct LayoutSourceError;

impl FromStr for LayoutSource {
    type Err = LayoutSourceError;

    fn from_str(text: &str) -> Result<Self, LayoutSourceError> {
        match text.split_once(':') {
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            Some(("btf", path)) if !path.is_empty() => Ok(Self::Btf(Some(path.into()))),
            None if text == "auto" => Ok(Self::Auto),
            None if text == "guess" => Ok(Self::Guess),
            None if text == "btf" => Ok(Self::Btf(None)),
            _ => Err(LayoutSourceError),
        }
    }
}

impl fmt::Display for LayoutSource {
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

/// How a layout is found.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ResolveOptions {
    /// How long one guess may take. Default 15 s.
    pub guess_timeout: Duration,
    /// Whether to find keys that only IPv6 needs. Default true. On a host without IPv6, guesses cannot find them.
    pub ipv6: bool,
    /// Whether to find keys that only socket events need. Default true.
    pub socket_events: bool,
    /// The tracefs for guesses. With `None` it is found, or mounted for as long as guesses run.
    pub tracefs: Option<Arc<Tracefs>>,
    /// The prefix of the names of probe groups. Default `socktrail`.
    pub group: String,
    /// The saved layout that [`LayoutSource::Auto`] falls back on. Default [`SAVED_LAYOUT`]. It is not used if users
    /// other than root and this process's own can write it.
    pub saved: PathBuf,
    /// Whether probes may share trace events where the kernel allows it (Linux 5.4). Default true. Without sharing, as
    /// on older kernels, guesses take longer.
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

/// The result of [`resolve`].
#[derive(Debug, Serialize)]
#[non_exhaustive]
pub struct Resolved {
    /// The keys that were found.
    pub layout: Layout,
    /// The keys that were not found.
    pub skipped: Vec<Skipped>,
    /// How long finding took.
    pub took: Duration,
    /// Why [`LayoutSource::Auto`] could not use the kernel's type information, and guessed every key. `None` if it was
    /// used or the kernel has none. Callers should show it to the user.
    #[serde(skip)]
    pub btf_error: Option<Error>,
    /// Why the saved layout could not be used for keys that were not found otherwise. Callers should show it to the
    /// user.
    #[serde(skip)]
    pub saved_error: Option<Error>,
}

/// A key that was not found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Skipped {
    /// `struct.field` or `function(argument)`.
    pub key: String,
    /// The kind of reason.
    pub kind: SkipKind,
    /// Why it was not found.
    pub reason: String,
}

/// Why a key was not found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SkipKind {
    /// Only IPv6 needs it, and this host has no IPv6.
    NoIpv6,
    /// The kernel has no such function, or it cannot be probed.
    NoFunction,
    /// The kernel has the function, but its callers have it inlined. A probe on it would never fire.
    NeverCalled,
    /// It was looked for and not found.
    NotFound,
}

/// A layout as far as it was found.
#[derive(Debug, Default)]
struct Found {
    layout: Layout,
    skipped: Vec<Skipped>,
    /// Why neither type information nor guesses gave a layout, if only the saved one was found.
    failed: Option<Error>,
    btf_error: Option<Error>,
    saved_error: Option<Error>,
}

impl From<Layout> for Found {
    fn from(layout: Layout) -> Self {
        Self { layout, ..Self::default() }
    }
}

/// Finds the keys of the catalog. For each key that it does not find it gives a reason.
///
/// # Errors
///
/// The source cannot be used at all: there are no kprobes for guesses, no type information, or the file is of another
/// kernel.
pub fn resolve(source: &LayoutSource, options: &ResolveOptions) -> Result<Resolved, Error> {
    let began = Instant::now();
    let Found { layout, skipped, failed, btf_error, saved_error } = match source {
        LayoutSource::Auto => automatic(Path::new(KERNEL_BTF), options)?,
        LayoutSource::Guess => guess_all(options)?,
        LayoutSource::Btf(path) => from_btf(path.as_deref().unwrap_or(Path::new(KERNEL_BTF)))?,
        LayoutSource::File(path) => SavedLayout::read(path)?.of_this_kernel(path)?.into(),
    };
    let took = began.elapsed();
    let skipped = missing_with_reasons(&layout, skipped, failed.as_ref(), options);
    Ok(Resolved { layout, skipped, took, btf_error, saved_error })
}

/// What the running kernel's type information says, with the fields that programs at hooks need. Kernels without kprobes have no
/// other source.
///
/// # Errors
///
/// [`Error::NoBtf`], [`Error::BadBtf`].
pub fn layout_for_hooks() -> Result<Resolved, Error> {
    let (began, path) = (Instant::now(), Path::new(KERNEL_BTF));
    let bytes = std::fs::read(path).map_err(|source| Error::NoBtf { path: path.to_owned(), source })?;
    let found = btf::find_for_hooks(&bytes).map_err(|source| Error::BadBtf { path: path.to_owned(), source })?;
    Ok(Resolved {
        layout: found.layout,
        skipped: Vec::new(),
        took: began.elapsed(),
        btf_error: None,
        saved_error: None,
    })
}

/// Takes type information first, then guesses, then the saved layout.
fn automatic(btf: &Path, options: &ResolveOptions) -> Result<Found, Error> {
    let found = btf_or_guesses(from_btf(btf), |layout, keys| guess(layout, keys, options), options);
    if found.as_ref().is_ok_and(|found| missing(&found.layout, options).is_empty()) {
        return found;
    }
    with_saved(found, saved(&options.saved))
}

/// Adds the saved layout to what was found. If only the saved layout cannot be used, the error goes to `saved_error`.
fn with_saved(found: Result<Found, Error>, saved: Result<Option<Layout>, Error>) -> Result<Found, Error> {
    match (found, saved) {
        (found, Ok(Some(saved))) => {
            let mut found = found.unwrap_or_else(|error| Found { failed: Some(error), ..Found::default() });
            found.layout.fill_from(&saved);
            Ok(found)
        }
        (found, Ok(None)) => found,
        (Ok(found), Err(error)) => Ok(Found { saved_error: Some(error), ..found }),
        (Err(found), Err(saved)) => Err(Error::NoSource { found: Box::new(found), saved: Box::new(saved) }),
    }
}

/// Takes the keys in type information, and guesses the missing ones. `guess` gets a layout and the keys to add to it.
fn btf_or_guesses(
    from_btf: Result<Found, Error>,
    guess: impl FnOnce(Layout, &[String]) -> Result<Found, Error>,
    options: &ResolveOptions,
) -> Result<Found, Error> {
    let found = match from_btf {
        Ok(found) => found,
        Err(error) => {
            let btf_error = (!is_absent(&error)).then_some(error);
            let guessed = guess(Layout::new(), &all_keys(options))?;
            return Ok(Found { btf_error, ..guessed });
        }
    };
    let missing = missing(&found.layout, options);
    if missing.is_empty() {
        return Ok(found);
    }
    match guess(found.layout.clone(), &missing) {
        Ok(found) => Ok(found),
        // The layout from type information is useful all the same.
        Err(error) => {
            let add_error = |skipped: Skipped| Skipped { reason: format!("{}; {error}", skipped.reason), ..skipped };
            Ok(Found { skipped: found.skipped.into_iter().map(add_error).collect(), ..found })
        }
    }
}

/// Whether type information could not be used because the kernel has none.
fn is_absent(btf_error: &Error) -> bool {
    matches!(btf_error, Error::NoBtf { source, .. } if source.kind() == ErrorKind::NotFound)
}

/// The layout that was saved on this kernel, if there is one.
fn saved(path: &Path) -> Result<Option<Layout>, Error> {
    match SavedLayout::read_trusted(path) {
        Ok(saved) => saved.of_this_kernel(path).map(Some),
        Err(Error::SavedIo { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn from_btf(path: &Path) -> Result<Found, Error> {
    let bytes = std::fs::read(path).map_err(|source| Error::NoBtf { path: path.to_owned(), source })?;
    let found = btf::find(&bytes).map_err(|source| Error::BadBtf { path: path.to_owned(), source })?;
    let skipped =
        found.missing.into_iter().map(|MissingKey { key, reason }| Skipped { key, kind: SkipKind::NotFound, reason });
    Ok(Found { layout: found.layout, skipped: skipped.collect(), ..Found::default() })
}

/// Guesses all keys.
fn guess_all(options: &ResolveOptions) -> Result<Found, Error> {
    guess(Layout::new(), &all_keys(options), options)
}

/// All keys that are wanted.
fn all_keys(options: &ResolveOptions) -> Vec<String> {
    catalog::keys().map(|key| key.name).filter(|key| options.wants(key)).collect()
}

/// Guesses the wanted keys that the layout does not have yet.
fn guess(mut layout: Layout, wanted: &[String], options: &ResolveOptions) -> Result<Found, Error> {
    if panics_on_warning() {
        return Err(Error::PanicOnWarn);
    }
    let tracefs = match &options.tracefs {
        Some(tracefs) => Arc::clone(tracefs),
        None => Arc::new(Tracefs::find()?),
    };
    // Probes that share an event fetch a constant each, by which their records are distinguished.
    let shares = options.share_events && tracefs.features().constants;
    let mut installer = ProbeInstaller::new(Group::create(&tracefs, &options.group)?, shares);
    if let Some(source) = guesses::no_loopback() {
        return Err(Error::NoLoopback { source });
    }
    let no_ipv6 = if options.ipv6 { guesses::no_ipv6() } else { Some("IPv6 is not wanted".to_owned()) };
    let run_options = RunOptions { timeout: options.guess_timeout, no_ipv6 };
    let skipped = engine::run_all(guesses::all(), wanted, &mut layout, &mut installer, &run_options);
    Ok(Found { skipped: skipped.map_err(|source| Error::Thread { source })?, ..layout.into() })
}

/// Whether the kernel panics at a warning. Linux 5.10, for example, warns about a read through a word that is not an
/// address that the processor accepts (`ex_handler_uaccess`).
fn panics_on_warning() -> bool {
    std::fs::read_to_string("/proc/sys/kernel/panic_on_warn").is_ok_and(|setting| setting.trim() != "0")
}

/// Every key that is wanted and missing, with its reason: from `skipped` if it is there, else `failed`.
fn missing_with_reasons(
    layout: &Layout,
    skipped: Vec<Skipped>,
    failed: Option<&Error>,
    options: &ResolveOptions,
) -> Vec<Skipped> {
    let known = |key: &String| skipped.iter().find(|skipped| skipped.key == *key).cloned();
    let reason = || failed.map_or_else(|| "the source does not have it".to_owned(), ToString::to_string);
    let unknown = |key| Skipped { key, kind: SkipKind::NotFound, reason: reason() };
    missing(layout, options).into_iter().map(|key| known(&key).unwrap_or_else(|| unknown(key))).collect()
}

/// The keys that are wanted and that the layout does not have.
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
        let error = resolve(&LayoutSource::Btf(Some("/nowhere".into())), &options).unwrap_err();
        assert!(error.to_string().starts_with("no type information (BTF) at /nowhere"), "{error}");
        let error = resolve(&LayoutSource::Btf(Some("/proc/self/status".into())), &options).unwrap_err();
        assert!(matches!(error, Error::BadBtf { .. }));
        let error = resolve(&LayoutSource::File("/nowhere".into()), &options).unwrap_err();
        assert!(matches!(error, Error::SavedIo { .. }));
    }

    #[test]
    fn sources_are_parsed_and_displayed() {
        for (name, source) in [
            ("file:/tmp/a:b", LayoutSource::File("/tmp/a:b".into())),
            ("auto", LayoutSource::Auto),
            ("guess", LayoutSource::Guess),
            ("btf", LayoutSource::Btf(None)),
            ("btf:vmlinux", LayoutSource::Btf(Some("vmlinux".into()))),
        ] {
            assert_eq!((name.parse(), source.to_string()), (Ok(source), name.to_owned()));
        }
        for bad in ["", "file:", "file", "Auto", "auto:", "guess:x"] {
            assert_eq!(bad.parse::<LayoutSource>(), Err(LayoutSourceError), "{bad}");
        }
    }

    #[test]
    fn there_may_be_no_saved_layout() {
        assert!(saved(Path::new("/nowhere/layout.json")).unwrap().is_none());
    }

    #[test]
    fn an_unusable_saved_layout_does_not_hide_what_was_found() {
        let bad = || Error::BadSaved { path: "/saved".into(), problem: "not JSON".to_owned() };
        let found = with_saved(Ok(Found::default()), Err(bad())).unwrap();
        assert!(matches!(found.saved_error, Some(Error::BadSaved { .. })));
        let both = with_saved(Err(Error::PanicOnWarn), Err(bad())).unwrap_err();
        let Error::NoSource { found, saved } = both else { panic!("{both:?}") };
        assert!(matches!((*found, *saved), (Error::PanicOnWarn, Error::BadSaved { .. })));
    }

    /// The key of one guessed field, and a guess that finds it alone.
    const GUESSED: &str = "socket.sk";

    fn guess_one(mut layout: Layout, _: &[String]) -> Result<Found, Error> {
        layout.set(GUESSED, 24, crate::ValueOrigin::Guess, Duration::ZERO);
        Ok(layout.into())
    }

    #[test]
    fn unusable_type_information_is_reported_beside_the_guesses() {
        let options = ResolveOptions::default();
        let found = btf_or_guesses(from_btf(Path::new("/proc/self/status")), guess_one, &options).unwrap();
        assert!(found.layout.contains(GUESSED));
        assert!(matches!(found.btf_error, Some(Error::BadBtf { .. })), "{:?}", found.btf_error);
        let found = btf_or_guesses(from_btf(Path::new("/")), guess_one, &options).unwrap();
        assert!(matches!(found.btf_error, Some(Error::NoBtf { .. })), "it exists but cannot be read");
        let found = btf_or_guesses(from_btf(Path::new("/nowhere")), guess_one, &options).unwrap();
        assert!(found.btf_error.is_none(), "a kernel without type information is not a fault");
    }

    #[test]
    fn missing_keys_have_reasons() {
        let known = vec![Skipped { key: "socket.sk".to_owned(), kind: SkipKind::NoIpv6, reason: "hidden".to_owned() }];
        let skipped = missing_with_reasons(&Layout::new(), known.clone(), None, &ResolveOptions::default());
        let reason = |key: &str| skipped.iter().find(|skipped| skipped.key == key).unwrap().reason.as_str();
        assert_eq!((reason("socket.sk"), reason("cred.uid")), ("hidden", "the source does not have it"));
        // Only the saved layout was found, and lacks a key.
        let saved = with_saved(Err(Error::PanicOnWarn), Ok(Some(Layout::new()))).unwrap();
        let skipped = missing_with_reasons(&saved.layout, known, saved.failed.as_ref(), &ResolveOptions::default());
        let uid = skipped.iter().find(|skipped| skipped.key == "cred.uid").unwrap();
        assert_eq!(uid.reason, Error::PanicOnWarn.to_string());
    }
}
