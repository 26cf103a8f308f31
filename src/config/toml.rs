//! Parses TOML into settings with their lines. figment's own provider for TOML does not know lines.

use figment::value::Value;
use toml::de::{DeTable, DeValue, Error};

use super::section::join;
use super::setting::{FileSetting, Mistake};

/// Parses a text.
pub fn parse(text: &str) -> Result<Vec<FileSetting>, Mistake> {
    let broken = |error: Error| {
        let at = error.span().map_or(0, |span| span.start);
        Mistake { line: line(text, at), problem: error.message().to_owned() }
    };
    let table = DeTable::parse(text).map_err(broken)?;
    let mut settings = Vec::new();
    section(text, "", table.get_ref(), &mut settings)?;
    settings.sort_by_key(|setting| setting.line);
    Ok(settings)
}

fn line(text: &str, at: usize) -> usize {
    1 + text.bytes().take(at).filter(|&byte| byte == b'\n').count()
}

fn section(text: &str, name: &str, table: &DeTable<'_>, settings: &mut Vec<FileSetting>) -> Result<(), Mistake> {
    for (key, found) in table {
        let (key, line) = (join(name, key.get_ref()), line(text, key.span().start));
        match found.get_ref() {
            DeValue::Table(inner) => section(text, &key, inner, settings)?,
            single => {
                let value = value(single).map_err(|problem| Mistake { line, problem })?;
                settings.push(FileSetting { key, value, line });
            }
        }
    }
    Ok(())
}

fn value(found: &DeValue<'_>) -> Result<Value, String> {
    Ok(match found {
        DeValue::String(text) => Value::from(&**text),
        DeValue::Integer(number) => {
            let (digits, radix) = (number.as_str(), number.radix());
            let signed = i64::from_str_radix(digits, radix).map(Value::from);
            signed
                .or_else(|_| u64::from_str_radix(digits, radix).map(Value::from))
                .map_err(|error| error.to_string())?
        }
        DeValue::Float(number) => {
            let number: f64 = number.as_str().parse().map_err(|_| "expected a number".to_owned())?;
            number.into()
        }
        DeValue::Boolean(flag) => Value::from(*flag),
        DeValue::Array(values) => {
            let values: Result<Vec<_>, _> = values.iter().map(|element| value(element.get_ref())).collect();
            values?.into()
        }
        DeValue::Datetime(_) => return Err("dates are not supported".to_owned()),
        DeValue::Table(_) => return Err("expected a value, not keys with values".to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::super::yaml;
    use super::*;

    #[test]
    fn toml_says_the_same_as_yaml() {
        let toml = "[socket]\nenable_ipv6 = false\nguess_timeout = \"5s\"\n[socket.dns]\nports = [53, 5353]\n";
        let yaml = "socket:\n  enable_ipv6: false\n  guess_timeout: 5s\n  dns:\n    ports: [53, 5353]\n";
        let without_lines = |settings: Vec<FileSetting>| -> Vec<_> {
            settings.into_iter().map(|setting| (setting.key, setting.value)).collect()
        };
        assert_eq!(without_lines(parse(toml).unwrap()), without_lines(yaml::parse(yaml).unwrap()));
    }

    #[test]
    fn each_key_has_its_line() {
        let settings = parse("\"socket.enable_ipv6\" = false\n\n[socket.dns]\n# a remark\nenabled = true\n").unwrap();
        let found: Vec<_> = settings.iter().map(|setting| (&*setting.key, setting.line)).collect();
        assert_eq!(found, [("socket.enable_ipv6", 1), ("socket.dns.enabled", 5)]);
    }

    #[test]
    fn mistakes_have_their_line() {
        for (text, line) in
            [("a = 1\nb = \n", 2), ("a = 1\na = 2\n", 2), ("x = 1\n[x]\ny = 1\n", 2), ("a = 1\nb = [{c = 1}]\n", 2)]
        {
            assert_eq!(parse(text).unwrap_err().line, line, "{text:?}");
        }
    }
}
