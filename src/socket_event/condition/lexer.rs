//! Text to tokens, each with its column.

use super::{Comparison, ConditionError};

/// The most bytes of a condition.
const MOST: usize = 64 * 1024;

/// A token and where it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    pub column: usize,
    pub what: What,
}

/// What a token is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A field, `in`, `like`.
    Word(String),
    Number(i64),
    Text(String),
    Comparison(Comparison),
    And,
    Or,
    Not,
    Open,
    Close,
    OpenList,
    CloseList,
    Comma,
    /// Behind the last one.
    End,
}

pub fn error<T>(column: usize, problem: impl Into<String>) -> Result<T, ConditionError> {
    Err(ConditionError { column, problem: problem.into() })
}

/// All tokens; the last one is [`What::End`].
pub fn tokens(text: &str) -> Result<Vec<Token>, ConditionError> {
    if text.len() > MOST {
        return error(1, format!("longer than {MOST} bytes"));
    }
    let chars: Vec<char> = text.chars().collect();
    let (mut tokens, mut at) = (Vec::new(), 0);
    while at < chars.len() {
        if chars[at].is_whitespace() {
            at += 1;
            continue;
        }
        let column = at + 1;
        let (what, length) = token(&chars[at..], column)?;
        tokens.push(Token { column, what });
        at += length;
    }
    tokens.push(Token { column: chars.len() + 1, what: What::End });
    Ok(tokens)
}

/// The token that the text begins with, and its length.
fn token(chars: &[char], column: usize) -> Result<(What, usize), ConditionError> {
    use Comparison::{Equal, Greater, GreaterOrEqual, Less, LessOrEqual, NotEqual};
    let pair = (chars[0], chars.get(1).copied());
    Ok(match pair {
        ('&', Some('&')) => (What::And, 2),
        ('|', Some('|')) => (What::Or, 2),
        ('=', Some('=')) => (What::Comparison(Equal), 2),
        ('!', Some('=')) => (What::Comparison(NotEqual), 2),
        ('<', Some('=')) => (What::Comparison(LessOrEqual), 2),
        ('>', Some('=')) => (What::Comparison(GreaterOrEqual), 2),
        ('<', _) => (What::Comparison(Less), 1),
        ('>', _) => (What::Comparison(Greater), 1),
        ('!', _) => (What::Not, 1),
        ('(', _) => (What::Open, 1),
        (')', _) => (What::Close, 1),
        ('[', _) => (What::OpenList, 1),
        (']', _) => (What::CloseList, 1),
        (',', _) => (What::Comma, 1),
        ('"', _) => quoted(chars, column)?,
        ('-' | '0'..='9', _) => number(chars, column)?,
        (letter, _) if letter.is_ascii_alphabetic() => {
            let within = |char: &&char| char.is_ascii_alphanumeric() || matches!(char, '.' | '_');
            let word: String = chars.iter().take_while(within).collect();
            let length = word.len();
            (What::Word(word), length)
        }
        ('=', _) => return error(column, "`=` is not a comparison: write `==`"),
        ('&' | '|', _) => return error(column, format!("`{0}` is not an operator: write `{0}{0}`", pair.0)),
        ('\'', _) => return error(column, "text stands in double quotes"),
        (other, _) => return error(column, format!("`{}` does not belong here", other.escape_default())),
    })
}

fn number(chars: &[char], column: usize) -> Result<(What, usize), ConditionError> {
    let digits = chars.iter().skip(1).take_while(|char| char.is_ascii_alphanumeric() || **char == '.').count();
    let text: String = chars[..=digits].iter().collect();
    match text.parse() {
        Ok(number) => Ok((What::Number(number), text.len())),
        Err(_) => error(column, format!("`{text}` is no whole number; addresses and networks stand in quotes")),
    }
}

fn quoted(chars: &[char], column: usize) -> Result<(What, usize), ConditionError> {
    let (mut text, mut at) = (String::new(), 1);
    loop {
        match chars.get(at) {
            None => return error(column, "this text has no closing quote"),
            Some('"') => return Ok((What::Text(text), at + 1)),
            Some('\\') => {
                let Some((char, length)) = escaped(&chars[at + 1..]) else {
                    return error(column + at, "escapes are \\\", \\\\, \\n, \\t, \\xNN and \\u{NNNN}");
                };
                text.push_str(&char);
                at += 1 + length;
            }
            Some(char) => {
                text.push(*char);
                at += 1;
            }
        }
    }
}

/// What stands for the characters behind a backslash, and how many those are. `\xNN` stays as it is: that is how names are
/// written of which not every byte can be shown.
fn escaped(chars: &[char]) -> Option<(String, usize)> {
    let hex = |digits: &[char]| {
        let text: String = digits.iter().collect();
        u32::from_str_radix(&text, 16).ok().filter(|_| digits.iter().all(char::is_ascii_hexdigit))
    };
    match chars.first()? {
        '"' => Some(("\"".to_owned(), 1)),
        '\\' => Some(("\\".to_owned(), 1)),
        'n' => Some(("\n".to_owned(), 1)),
        't' => Some(("\t".to_owned(), 1)),
        'x' => hex(chars.get(1..3)?).map(|byte| (format!("\\x{byte:02x}"), 3)),
        'u' if chars.get(1) == Some(&'{') => {
            let end = chars.iter().take(9).position(|char| *char == '}')?;
            hex(&chars[2..end]).and_then(char::from_u32).map(|char| (char.to_string(), end + 1))
        }
        _ => None,
    }
}
