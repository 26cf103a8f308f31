//! Runs programs of the host. Errors contain their standard error.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Runs a program to its end; returns its standard output.
pub fn output(command: &mut Command) -> Result<String> {
    let shown = shown(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("start `{shown}`"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("`{shown}` failed, {}: {}", output.status, stderr.trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("`{shown}` wrote output that is not UTF-8"))
}

/// Runs a program to its end, with its output on this process's standard error.
pub fn visible(command: &mut Command) -> Result<()> {
    let shown = shown(command);
    let status =
        command.stdin(Stdio::null()).stdout(std::io::stderr()).status().with_context(|| format!("start `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` failed, {status}");
    }
    Ok(())
}

/// The command line for messages, without apt's `-o` settings.
fn shown(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    let mut arguments = command.get_args();
    while let Some(argument) = arguments.next() {
        if argument == "-o" {
            arguments.next();
        } else {
            words.push(argument.to_string_lossy().into_owned());
        }
    }
    words.join(" ")
}

/// Whether the PATH has a program with this name.
pub fn exists(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(program).is_file()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_returned() {
        assert_eq!(output(Command::new("echo").arg("hello")).unwrap(), "hello\n");
    }

    #[test]
    fn an_error_has_the_command_and_its_standard_error() {
        let error = output(Command::new("sh").args(["-c", "echo no way >&2; exit 3", "-o", "secret"])).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("no way") && text.contains("exit status: 3") && !text.contains("secret"), "{text}");
    }

    #[test]
    fn programs_are_found_on_the_path() {
        assert!(exists("sh"));
        assert!(!exists("no-such-program"));
    }
}
