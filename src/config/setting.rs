//! What a source of configuration comes down to: keys with dots, each with a value and a place.

use figment::value::{Dict, Value};

/// One key with its value.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    /// With dots: `socket.dns.enabled`.
    pub key: String,
    /// What it is set to. Never a section: those are spelt out in keys.
    pub value: Value,
    /// The line of a file, from 1.
    pub line: usize,
}

/// A mistake at a line of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong.
    pub problem: String,
}

/// Joins the key of a section and a key within it.
pub fn join(section: &str, key: &str) -> String {
    if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") }
}

/// Puts a value at its place in nested dictionaries. A value in the way of a section gives way.
pub fn insert(dict: &mut Dict, key: &str, value: Value) {
    let Some((section, rest)) = key.split_once('.') else {
        dict.insert(key.to_owned(), value);
        return;
    };
    let mut inner = match dict.remove(section) {
        Some(Value::Dict(_, inner)) => inner,
        _ => Dict::new(),
    };
    insert(&mut inner, rest, value);
    dict.insert(section.to_owned(), inner.into());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_with_dots_nest() {
        let mut dict = Dict::new();
        insert(&mut dict, "a.b.c", 1.into());
        insert(&mut dict, "a.b.d", 2.into());
        insert(&mut dict, "e", 3.into());
        let value = Value::from(dict);
        let number = |key| value.find_ref(key).and_then(Value::to_i128);
        assert_eq!((number("a.b.c"), number("a.b.d"), number("e")), (Some(1), Some(2), Some(3)));
    }

    #[test]
    fn sections_join() {
        assert_eq!(join("", "socket.dns"), "socket.dns");
        assert_eq!(join("socket", "dns.enabled"), "socket.dns.enabled");
    }
}
