//! The modules of `src/` are in layers. A module uses only modules of lower layers, so that it can be understood, tested and
//! changed without those above. `docs/architecture.md` describes the modules.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The modules of the library by layer, the lowest first. Modules in one layer do not use each other.
const LAYERS: [&[&str]; 9] = [
    &["model"],
    &["condition", "host", "privileges", "state"],
    &["users"],
    &["source"],
    &["pipeline"],
    &["monitor", "sensors"],
    &["control", "documents", "survey"],
    &["output"],
    &["config"],
];

/// The modules of the program by layer. It uses the library through its public API.
const PROGRAM: [&[&str]; 4] = [&["receive"], &["agent"], &["cli"], &["main"]];

#[test]
fn modules_use_only_lower_layers() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut modules = BTreeSet::new();
    let mut upward = Vec::new();
    for file in rust_files(&src) {
        let path = file.strip_prefix(&src).unwrap();
        let module = module_of(path);
        if module == "lib" {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        let layers: &[&[&str]] = if PROGRAM.concat().contains(&&*module) { &PROGRAM } else { &LAYERS };
        upward
            .extend(upward_uses(layers, &module, &text).into_iter().map(|line| format!("{}: {line}", path.display())));
        modules.insert(module);
    }
    let named: BTreeSet<String> =
        LAYERS.iter().chain(&PROGRAM).copied().flatten().copied().map(str::to_owned).collect();
    assert_eq!(modules, named, "each module has its layer");
    assert!(upward.is_empty(), "these use a module of the same layer or a higher one:\n{}", upward.join("\n"));
}

#[test]
fn uses_of_higher_layers_are_found() {
    let code = "use crate::state::State;\nuse crate::model::flow::Flow;\n// use crate::config::Config;\nlet a = crate::monitor::GROUP;";
    assert_eq!(upward_uses(&LAYERS, "state", code), ["let a = crate::monitor::GROUP;"]);
    assert_eq!(upward_uses(&LAYERS, "model", code).len(), 2);
    assert!(
        upward_uses(&LAYERS, "documents", "    /// [`Monitor`](crate::config::Config)").is_empty(),
        "docs may point anywhere"
    );
    assert_eq!(upward_uses(&LAYERS, "sensors", "crate::monitor::Monitor").len(), 1, "a neighbour");
    assert_eq!(upward_uses(&PROGRAM, "agent", "use crate::receive::receive;\nuse crate::cli::main;").len(), 1);
}

/// The lines that use a module of the same layer or a higher one.
fn upward_uses(layers: &[&[&str]], module: &str, text: &str) -> Vec<String> {
    let layer = |module: &str| layers.iter().position(|modules| modules.contains(&module));
    let is_up = |line: &&str| {
        let used = line.split("crate::").skip(1).map(|rest| rest.split(|c: char| !is_name(c)).next().unwrap_or(""));
        used.filter(|used| *used != module).any(|used| layer(used).is_some_and(|used| Some(used) >= layer(module)))
    };
    let is_code = |line: &&str| !line.trim_start().starts_with("//");
    text.lines().filter(is_code).filter(is_up).map(str::to_owned).collect()
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// The module of a path in `src/`: its first folder, or the file without `.rs`.
fn module_of(path: &Path) -> String {
    let first = path.components().next().unwrap().as_os_str().to_str().unwrap();
    first.strip_suffix(".rs").unwrap_or(first).to_owned()
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| match path.is_dir() {
            true => rust_files(&path),
            false => vec![path],
        })
        .filter(|path| path.extension().is_some_and(|ending| ending == "rs"))
        .collect()
}
