//! Names of error numbers.

use nix::errno::Errno;

/// The name of a positive errno, such as `ECONNREFUSED`; the number if the errno is unknown.
pub(crate) fn errno_name(code: i32) -> String {
    match Errno::from_raw(code) {
        Errno::UnknownErrno => code.to_string(),
        errno => format!("{errno:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_numbers_have_names() {
        for (code, name) in [(101, "ENETUNREACH"), (104, "ECONNRESET"), (110, "ETIMEDOUT"), (111, "ECONNREFUSED")] {
            assert_eq!(errno_name(code), name);
        }
        assert_eq!(errno_name(9999), "9999");
        assert_eq!(errno_name(-1), "-1");
    }
}
