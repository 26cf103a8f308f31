//! Debian packages of any release and architecture, through apt with its own state: it needs no root and changes
//! nothing on the host.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::cache::LockedCache;
use crate::matrix::{Arch, Suite};
use crate::process;

/// The path of Debian's archive keys.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The age at which package lists are fetched again.
const MAX_AGE: Duration = Duration::from_secs(3600);

/// The packages of one release for one architecture.
#[derive(Debug)]
pub struct Archive {
    folder: PathBuf,
    arch: Arch,
}

impl Archive {
    /// Opens a release, with current package lists.
    pub fn open(cache: &LockedCache<'_>, suite: Suite, arch: Arch) -> Result<Self> {
        let folder = cache.path(&format!("apt/{}-{}", suite.name, arch.debian()));
        let archive = Self { folder, arch };
        archive.prepare(suite)?;
        archive.update(suite)?;
        Ok(archive)
    }

    /// Creates apt's folders and the list of sources.
    fn prepare(&self, suite: Suite) -> Result<()> {
        for folder in ["state/lists/partial", "cache/archives/partial"] {
            let folder = self.folder.join(folder);
            fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        }
        // With an empty status file no package is installed, so dependencies are always fetched.
        fs::write(self.folder.join("status"), "").context("write apt's status")?;
        fs::write(self.folder.join("sources.list"), sources(suite, self.arch)?).context("write apt's sources")
    }

    /// Fetches the package lists, if they are older than [`MAX_AGE`].
    fn update(&self, suite: Suite) -> Result<()> {
        let stamp = self.folder.join("updated");
        if is_younger_than(&stamp, MAX_AGE) {
            return Ok(());
        }
        eprintln!("vm: reading the package lists of Debian {} ({})", suite.name, self.arch.debian());
        let update = self.tool("apt-get").args(["-q", "-o", "APT::Update::Error-Mode=any", "update"]).output();
        let update = update.context("start apt-get")?;
        if !update.status.success() {
            let stderr = String::from_utf8_lossy(&update.stderr);
            // A mirror may lack a part of one source. The other sources may have the wanted packages.
            ensure!(
                self.has_lists(),
                "the package lists could not be fetched; does `apt-get update` work on this machine?\n{stderr}"
            );
            eprintln!("vm: not all package lists could be fetched: {}", stderr.trim());
        }
        fs::write(&stamp, "").with_context(|| format!("write {}", stamp.display()))
    }

    /// Whether there is any package list.
    fn has_lists(&self) -> bool {
        let lists = fs::read_dir(self.folder.join("state/lists")).into_iter().flatten().filter_map(Result::ok);
        lists.into_iter().any(|list| list.file_name().to_string_lossy().contains("_Packages"))
    }

    /// Every version of a package, the newest first.
    pub fn versions(&self, name: &str) -> Result<Vec<Package>> {
        let text = process::output(self.tool("apt-cache").args(["show", name]))?;
        text.split("\n\n")
            .filter(|stanza| !stanza.trim().is_empty())
            .map(|stanza| Package::parse(stanza).with_context(|| format!("parse apt's description of {name}")))
            .collect()
    }

    /// Downloads single packages into a folder.
    pub fn download(&self, names: &[String], into: &Path) -> Result<()> {
        process::output(self.tool("apt-get").args(["-q", "download"]).args(names).current_dir(into)).map(drop)
    }

    /// Downloads packages with all dependencies; returns the files.
    pub fn download_closure(&self, names: &[String]) -> Result<Vec<PathBuf>> {
        let install = || {
            let mut apt = self.tool("apt-get");
            apt.args(["-q", "-y", "--no-install-recommends", "install"]).args(names);
            apt
        };
        let listing = process::output(install().args(["-q", "--print-uris", "-o", "Dir::Cache::archives=nowhere"]))?;
        let files = files_of(&listing);
        ensure!(!files.is_empty(), "apt names no file for {}", names.join(" "));
        process::output(install().arg("--download-only"))?;
        Ok(files.iter().map(|file| self.folder.join("cache/archives").join(file)).collect())
    }

    /// A command of an apt program that uses this archive only.
    fn tool(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let path = |name: &str| self.folder.join(name).display().to_string();
        for (setting, value) in [
            ("Dir::State", path("state")),
            ("Dir::State::status", path("status")),
            ("Dir::Cache", path("cache")),
            ("Dir::Etc::SourceList", path("sources.list")),
            ("Dir::Etc::SourceParts", "/nonexistent".to_owned()),
            ("APT::Architecture", self.arch.debian().to_owned()),
            ("APT::Architectures", self.arch.debian().to_owned()),
            ("APT::Sandbox::User", String::new()),
            ("APT::Keep-Downloaded-Packages", "true".to_owned()),
            ("Acquire::Retries", "3".to_owned()),
        ] {
            command.arg("-o").arg(format!("{setting}={value}"));
        }
        command.env("LC_ALL", "C").env("DEBIAN_FRONTEND", "noninteractive");
        command
    }
}

/// Whether a file was written within the given time.
fn is_younger_than(path: &Path, age: Duration) -> bool {
    let written = fs::metadata(path).and_then(|metadata| metadata.modified());
    written.is_ok_and(|written| written.elapsed().is_ok_and(|elapsed| elapsed < age))
}

/// A package, as apt describes it.
#[derive(Debug, PartialEq, Eq)]
pub struct Package {
    /// Its version.
    pub version: String,
    /// Its dependencies: the first alternative of each.
    pub depends: Vec<String>,
}

impl Package {
    /// Reads the first stanza of `apt-cache show`.
    fn parse(text: &str) -> Result<Self> {
        let field = |name: &str| {
            text.lines()
                .take_while(|line| !line.is_empty())
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
        };
        let version = field("Version").context("no version")?.to_owned();
        let depends = field("Depends").map_or_else(Vec::new, |list| {
            list.split(',').filter_map(|one| one.split_ascii_whitespace().next()).map(str::to_owned).collect()
        });
        Ok(Self { version, depends })
    }
}

/// The file names in the output of `apt-get install --print-uris`: lines of `'URI' FILE SIZE HASH`.
fn files_of(listing: &str) -> Vec<String> {
    listing
        .lines()
        .filter(|line| line.starts_with('\''))
        .filter_map(|line| line.rsplit_once("' ")?.1.split(' ').next())
        .map(str::to_owned)
        .collect()
}

/// The sources of a release, from the mirrors that this machine uses.
fn sources(suite: Suite, arch: Arch) -> Result<String> {
    let targets = process::output(Command::new("apt-get").args([
        "indextargets",
        "--no-release-info",
        "--format",
        "$(RELEASE) $(COMPONENT) $(REPO_URI)",
        "Created-By: Packages",
    ]))
    .context("ask apt for this machine's mirror (the runner needs a Debian machine)")?;
    let mirrors = Mirrors::parse(&targets)?;
    let mut options = format!("arch={} target=Packages lang=none", arch.debian());
    if Path::new(KEYRING).exists() {
        options.push_str(&format!(" signed-by={KEYRING}"));
    }
    let mut lines = format!("deb [{options}] {} {} main\n", mirrors.releases, suite.name);
    if let (Some(mirror), Some(security)) = (&mirrors.security, suite.security) {
        lines.push_str(&format!("deb [{options}] {mirror} {security} main\n"));
    }
    Ok(lines)
}

/// The machine's own mirrors of Debian.
#[derive(Debug, PartialEq, Eq)]
struct Mirrors {
    releases: String,
    security: Option<String>,
}

impl Mirrors {
    /// Reads `RELEASE COMPONENT URI` lines: the mirror of a release's name serves releases, and that of
    /// `X-security` serves security updates.
    fn parse(targets: &str) -> Result<Self> {
        let find = |wanted: fn(&str) -> bool| {
            targets.lines().find_map(|line| {
                let mut words = line.split(' ');
                let (release, component, uri) = (words.next()?, words.next()?, words.next()?);
                (component == "main" && wanted(release)).then(|| uri.to_owned())
            })
        };
        let Some(releases) = find(is_release) else {
            bail!(
                "apt on this machine has no source of a Debian release; a file in /etc/apt/sources.list.d with \
                 `deb MIRROR bookworm main` gives it one"
            );
        };
        Ok(Self { releases, security: find(|release| release.ends_with("-security")) })
    }
}

/// Whether a suite is the name of a Debian release.
fn is_release(suite: &str) -> bool {
    const NAMES: [&str; 9] =
        ["bullseye", "bookworm", "trixie", "forky", "sid", "oldstable", "stable", "testing", "unstable"];
    NAMES.contains(&suite)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_gives_version_and_dependencies() {
        let text = "Package: linux-image-cloud-amd64\nVersion: 7.2.13-1\nDepends: linux-base-cloud-amd64 (= 7.2.13-1), \
                    linux-image-7.2.13+deb14-cloud-amd64 (= 7.2.13-1), dracut | initramfs-tools\n";
        let package = Package::parse(text).unwrap();
        assert_eq!(package.version, "7.2.13-1");
        assert_eq!(package.depends, ["linux-base-cloud-amd64", "linux-image-7.2.13+deb14-cloud-amd64", "dracut"]);
        assert!(Package::parse("N: no such package").is_err());
    }

    #[test]
    fn a_listing_gives_file_names() {
        let listing = "Reading package lists...\nThe following NEW packages will be installed:\n  curl\n\
                       'mirror/pool/g/gmp_6%2bd_amd64.deb' libgmp10_2%3a6.2.1_amd64.deb 562588 MD5Sum:22\n\
                       'mirror/pool/c/curl_7_amd64.deb' curl_7_amd64.deb 3157 \n";
        assert_eq!(files_of(listing), ["libgmp10_2%3a6.2.1_amd64.deb", "curl_7_amd64.deb"]);
        assert_eq!(files_of("E: Unable to locate package\n"), [""; 0]);
    }

    #[test]
    fn the_age_of_a_file_is_that_of_its_last_write() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("stamp");
        assert!(!is_younger_than(&path, MAX_AGE));
        fs::write(&path, "").unwrap();
        assert!(is_younger_than(&path, MAX_AGE));
        assert!(!is_younger_than(&path, Duration::ZERO));
    }

    #[test]
    fn mirrors_are_found_in_index_targets() {
        let targets = "nodistro main other/\nbookworm-security main sec/\nbookworm contrib no/\nbookworm main deb/\n";
        let mirrors = Mirrors::parse(targets).unwrap();
        assert_eq!(mirrors, Mirrors { releases: "deb/".into(), security: Some("sec/".into()) });
        assert_eq!(Mirrors::parse("trixie main x/\n").unwrap().security, None);
        assert!(Mirrors::parse("jammy main x/\n").is_err());
    }
}
