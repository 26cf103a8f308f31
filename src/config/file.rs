//! A configuration file: its text to settings.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::error::Problem;
use super::load::Origin;
use super::setting::Setting;
use super::{toml, yaml};

/// No configuration is larger than this.
const MOST: u64 = 1024 * 1024;

/// What the file says.
pub fn read(path: &Path) -> Result<Vec<Setting>, Problem> {
    let whole = |problem: String| Problem { origin: Origin::file(path, 0), key: None, problem };
    let parse = match path.extension().and_then(|extension| extension.to_str()) {
        Some("yml" | "yaml") => yaml::parse,
        Some("toml") => toml::parse,
        _ => {
            return Err(whole("its name ends in none of .yml, .yaml and .toml, so its format is not known".to_owned()));
        }
    };
    let text = text(path).map_err(|error| whole(error.to_string()))?;
    let broken = |problem: String| move |line| Problem { origin: Origin::file(path, line), key: None, problem };
    parse(&text).map_err(|mistake| broken(mistake.problem)(mistake.line))
}

fn text(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MOST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MOST {
        return Err(io::Error::other(format!("it is longer than {MOST} bytes: this is no configuration")));
    }
    String::from_utf8(bytes).map_err(|error| {
        let line = 1 + error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|&&b| b == b'\n').count();
        io::Error::other(format!("line {line} is not UTF-8"))
    })
}
