//! Reads a configuration file as settings.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::error::Problem;
use super::setting::Setting;
use super::{toml, yaml};

/// The maximum length of a file in bytes.
const MAX_FILE_LEN: u64 = 1024 * 1024;

/// Reads and parses a file.
pub fn read(path: &Path) -> Result<Vec<Setting>, Problem> {
    let of_file = |problem: String| Problem { origin: path.display().to_string(), key: None, problem };
    let parse = match path.extension().and_then(|extension| extension.to_str()) {
        Some("yml" | "yaml") => yaml::parse,
        Some("toml") => toml::parse,
        _ => {
            return Err(of_file("expected a name that ends in .yml, .yaml or .toml".to_owned()));
        }
    };
    let text = text(path).map_err(|error| of_file(error.to_string()))?;
    match parse(&text) {
        Ok(settings) => Ok(settings.into_iter().map(|setting| Setting::at_line(path, setting)).collect()),
        Err(mistake) => {
            Err(Problem { origin: format!("{}:{}", path.display(), mistake.line), ..of_file(mistake.problem) })
        }
    }
}

fn text(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE_LEN + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_LEN {
        return Err(io::Error::other(format!(
            "the file is larger than {MAX_FILE_LEN} bytes, which is too large for a configuration"
        )));
    }
    String::from_utf8(bytes).map_err(|error| {
        let line = 1 + error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|&&b| b == b'\n').count();
        io::Error::other(format!("line {line} is not UTF-8"))
    })
}
