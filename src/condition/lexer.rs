//! Splits text into tokens with their columns.

use super::{Comparison, ConditionError};

/// The maximum length of a condition in bytes.
const MAX_LEN: usize = 64 * 1024;

/// A token and the column where it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    pub column: usize,
    pub kind: TokenKind,
}

/// The kind of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenKind {
    /// A field, `in`, `like`, `true` or `false`.
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
    /// The end of the text.
    End,
}

pub fn error<T>(column: usize, problem: impl Into<String>) -> Result<T, ConditionError> {
    Err(ConditionError { column, problem: problem.into() })
}

/// All tokens; the last one is [`TokenKind::End`].
pub fn tokens(text: &str) -> Result<Vec<Token>, ConditionError> {
    if text.len() > MAX_LEN {
        return error(1, format!("longer than {MAX_LEN} bytes"));
    }
    let chars: Vec<char> = text.chars().collect();
    let (mut tokens, mut at) = (Vec::new(), 0);
    while at < chars.len() {
        if chars[at].is_whitespace() {
            at += 1;
            continue;
        }
        let column = at + 1;
        let (kind, length) = token(&chars[at..], column)?;
        tokens.push(Token { column, kind });
        at += length;
    }
    tokens.push(Token { column: chars.len() + 1, kind: TokenKind::End });
    Ok(tokens)
}

/// The token that the text begins with, and its length.
fn token(chars: &[char], column: usize) -> Result<(TokenKind, usize), ConditionError> {
    use Comparison::{Equal, Greater, GreaterOrEqual, Less, LessOrEqual, NotEqual};
    let pair = (chars[0], chars.get(1).copied());
    Ok(match pair {
        ('&', Some('&')) => (TokenKind::And, 2),
        ('|', Some('|')) => (TokenKind::Or, 2),
        ('=', Some('=')) => (TokenKind::Comparison(Equal), 2),
        ('!', Some('=')) => (TokenKind::Comparison(NotEqual), 2),
        ('<', Some('=')) => (TokenKind::Comparison(LessOrEqual), 2),
        ('>', Some('=')) => (TokenKind::Comparison(GreaterOrEqual), 2),
        ('<', _) => (TokenKind::Comparison(Less), 1),
        ('>', _) => (TokenKind::Comparison(Greater), 1),
        ('!', _) => (TokenKind::Not, 1),
        ('(', _) => (TokenKind::Open, 1),
        (')', _) => (TokenKind::Close, 1),
        ('[', _) => (TokenKind::OpenList, 1),
        (']', _) => (TokenKind::CloseList, 1),
        (',', _) => (TokenKind::Comma, 1),
        ('"', _) => quoted(chars, column)?,
        ('-' | '0'..='9', _) => number(chars, column)?,
        (letter, _) if letter.is_ascii_alphabetic() => {
            let within = |char: &&char| char.is_ascii_alphanumeric() || matches!(char, '.' | '_');
            let word: String = chars.iter().take_while(within).collect();
            let length = word.len();
            (TokenKind::Word(word), length)
        }
        ('=', _) => return error(column, "`=` is not a comparison: write `==`"),
        ('&' | '|', _) => return error(column, format!("`{0}` is not an operator: write `{0}{0}`", pair.0)),
        ('\'', _) => return error(column, "write text in double quotes"),
        (other, _) => return error(column, format!("unexpected `{}`", other.escape_default())),
    })
}

fn number(chars: &[char], column: usize) -> Result<(TokenKind, usize), ConditionError> {
    let digits = chars.iter().skip(1).take_while(|char| char.is_ascii_alphanumeric() || **char == '.').count();
    let text: String = chars[..=digits].iter().collect();
    match text.parse() {
        Ok(number) => Ok((TokenKind::Number(number), text.len())),
        Err(_) => error(column, format!("`{text}` is not a whole number; write addresses and networks in quotes")),
    }
}

fn quoted(chars: &[char], column: usize) -> Result<(TokenKind, usize), ConditionError> {
    let (mut text, mut at) = (String::new(), 1);
    loop {
        match chars.get(at) {
            None => return error(column, "this text has no closing quote"),
            Some('"') => return Ok((TokenKind::Text(text), at + 1)),
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

/// The text that an escape after a backslash stands for, and the length of the escape. `\xNN` is not replaced, because
/// documents show unprintable bytes in names in this form.
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
