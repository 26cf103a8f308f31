//! Checks dependencies against `deny.toml`: licences, bans and sources of every crate in `Cargo.lock` that a target uses.
//! `cargo deny check` also checks advisories, but its installation takes longer than all other checks together.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde::Deserialize;

/// The parts of `deny.toml` that are checked here.
#[derive(Deserialize)]
struct Policy {
    graph: Graph,
    licenses: Licenses,
    bans: Bans,
    sources: Sources,
}

#[derive(Deserialize)]
struct Graph {
    targets: Vec<String>,
}

#[derive(Deserialize)]
struct Licenses {
    allow: Vec<String>,
}

#[derive(Deserialize)]
struct Bans {
    deny: Vec<Denied>,
}

#[derive(Deserialize)]
struct Denied {
    #[serde(rename = "crate")]
    name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Sources {
    allow_registry: Vec<String>,
}

/// The output of `cargo metadata`.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    license: Option<String>,
    /// `None` for a package of this repository.
    source: Option<String>,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    req: String,
    path: Option<String>,
}

#[test]
fn every_dependency_is_allowed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let policy: Policy = toml::from_str(&fs::read_to_string(root.join("deny.toml")).unwrap()).unwrap();
    let mut found = BTreeSet::new();
    for target in &policy.graph.targets {
        let arguments = ["metadata", "--format-version=1", "--locked", "--all-features", "--filter-platform", target];
        let output = Command::new(env!("CARGO")).args(arguments).current_dir(root).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let packages = serde_json::from_slice::<Metadata>(&output.stdout).unwrap().packages;
        assert!(packages.len() > 100, "{target}: only {} packages", packages.len());
        found.extend(packages.iter().flat_map(|package| violations(package, &policy)));
    }
    assert!(found.is_empty(), "{found:#?}");
}

/// How a package violates the policy.
fn violations(package: &Package, policy: &Policy) -> Vec<String> {
    let mut found = Vec::new();
    let mut add = |problem: String| found.push(format!("{}: {problem}", package.name));
    match &package.license {
        Some(license) if is_allowed(license, &policy.licenses.allow) => {}
        license => add(format!("the licence {license:?} is not in [licenses] allow")),
    }
    if policy.bans.deny.iter().any(|denied| denied.name == package.name) {
        add("is in [bans] deny".to_owned());
    }
    match &package.source {
        Some(source) => {
            let registry = source.strip_prefix("registry+").map(str::to_owned);
            if !registry.is_some_and(|registry| policy.sources.allow_registry.contains(&registry)) {
                add(format!("the source {source} is not in [sources] allow-registry"));
            }
        }
        None => {
            let wildcards =
                package.dependencies.iter().filter(|dependency| dependency.req == "*" && dependency.path.is_none());
            wildcards.for_each(|dependency| add(format!("depends on any version of {}", dependency.name)));
        }
    }
    found
}

/// Whether allowed licences satisfy an SPDX expression. A licence with an exception counts as a separate licence.
fn is_allowed(expression: &str, allow: &[String]) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut words = spaced.split_whitespace().peekable();
    any_of(&mut words, allow) && words.next().is_none()
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any_of(words: &mut Words<'_>, allow: &[String]) -> bool {
    let mut allowed = all_of(words, allow);
    while words.next_if_eq(&"OR").is_some() {
        allowed |= all_of(words, allow);
    }
    allowed
}

fn all_of(words: &mut Words<'_>, allow: &[String]) -> bool {
    let mut allowed = term(words, allow);
    while words.next_if_eq(&"AND").is_some() {
        allowed &= term(words, allow);
    }
    allowed
}

fn term(words: &mut Words<'_>, allow: &[String]) -> bool {
    let Some(word) = words.next() else { return false };
    if word == "(" {
        let allowed = any_of(words, allow);
        return words.next() == Some(")") && allowed;
    }
    let exception = words.next_if_eq(&"WITH").and_then(|_| words.next());
    let license = exception.map_or(word.to_owned(), |exception| format!("{word} WITH {exception}"));
    allow.contains(&license)
}

#[test]
fn spdx_expressions_are_evaluated() {
    let allow = ["MIT".to_owned(), "ISC".to_owned()];
    for allowed in ["MIT", "GPL-2.0/MIT", "GPL-3.0 OR (MIT AND ISC)", "(MIT OR GPL-2.0) AND ISC", "A OR B OR MIT"] {
        assert!(is_allowed(allowed, &allow), "{allowed}");
    }
    for refused in ["GPL-2.0", "MIT AND GPL-2.0", "MIT WITH x", "ISC AND (GPL-2.0 OR LGPL-2.1)", "MIT ISC", "(MIT", ""]
    {
        assert!(!is_allowed(refused, &allow), "{refused}");
    }
}

#[test]
fn each_violation_is_found() {
    let policy = Policy {
        graph: Graph { targets: Vec::new() },
        licenses: Licenses { allow: vec!["MIT".to_owned()] },
        bans: Bans { deny: vec![Denied { name: "bad".to_owned() }] },
        sources: Sources { allow_registry: vec!["https://example.org/index".to_owned()] },
    };
    let package = |name: &str, license: Option<&str>, source: Option<&str>| Package {
        name: name.to_owned(),
        license: license.map(str::to_owned),
        source: source.map(str::to_owned),
        dependencies: vec![
            Dependency { name: "any".to_owned(), req: "*".to_owned(), path: None },
            Dependency { name: "ours".to_owned(), req: "*".to_owned(), path: Some("/ours".to_owned()) },
        ],
    };
    let (registry, git) = (Some("registry+https://example.org/index"), Some("git+https://example.org/index"));
    assert_eq!(violations(&package("good", Some("MIT"), registry), &policy), [""; 0]);
    for (package, problem) in [
        (package("good", Some("GPL-2.0"), registry), "good: the licence Some(\"GPL-2.0\")"),
        (package("good", None, registry), "good: the licence None"),
        (package("bad", Some("MIT"), registry), "bad: is in [bans] deny"),
        (package("good", Some("MIT"), git), "good: the source git+"),
        (package("good", Some("MIT"), None), "good: depends on any version of any"),
    ] {
        let found = violations(&package, &policy);
        assert!(found.len() == 1 && found[0].starts_with(problem), "{found:?}");
    }
}
