//! Tokens to a condition, by recursive descent. Everything is checked here.

use std::net::IpAddr;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use super::lexer::{Token, What, error, tokens};
use super::{Comparison, ConditionError, FIELDS, Field, Network, Sort, Term};

/// How deep parentheses and `!` may be nested.
const MOST_DEPTH: u32 = 64;

type Parsed<T> = Result<T, ConditionError>;

pub fn parse(text: &str) -> Parsed<Term> {
    let mut parser = Parser { tokens: tokens(text)?, at: 0, depth: 0 };
    let term = parser.any()?;
    match parser.peek() {
        Token { what: What::End, .. } => Ok(term),
        token => error(token.column, "an operator is expected: &&, ||"),
    }
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    depth: u32,
}

impl Parser {
    fn peek(&self) -> &Token {
        // The end is never passed.
        &self.tokens[self.at.min(self.tokens.len() - 1)]
    }

    fn next(&mut self) -> Token {
        let token = self.peek().clone();
        self.at += 1;
        token
    }

    /// Passes the next token if it is this one.
    fn takes(&mut self, what: &What) -> bool {
        let takes = self.peek().what == *what;
        self.at += usize::from(takes);
        takes
    }

    fn any(&mut self) -> Parsed<Term> {
        let mut terms = vec![self.all()?];
        while self.takes(&What::Or) {
            terms.push(self.all()?);
        }
        Ok(if terms.len() == 1 { terms.remove(0) } else { Term::Any(terms) })
    }

    fn all(&mut self) -> Parsed<Term> {
        let mut terms = vec![self.not()?];
        while self.takes(&What::And) {
            terms.push(self.not()?);
        }
        Ok(if terms.len() == 1 { terms.remove(0) } else { Term::All(terms) })
    }

    fn not(&mut self) -> Parsed<Term> {
        let column = self.peek().column;
        self.depth += 1;
        if self.depth > MOST_DEPTH {
            return error(column, format!("nested deeper than {MOST_DEPTH}"));
        }
        let term = if self.takes(&What::Not) {
            Term::Not(Box::new(self.not()?))
        } else if self.takes(&What::Open) {
            let term = self.any()?;
            let close = self.next();
            if close.what != What::Close {
                return error(close.column, format!("`)` is expected: column {column} opened it"));
            }
            term
        } else {
            self.comparison()?
        };
        self.depth -= 1;
        Ok(term)
    }

    fn comparison(&mut self) -> Parsed<Term> {
        let Token { column, what } = self.next();
        let What::Word(name) = what else { return error(column, "a field is expected, as in remote.port == 443") };
        let Some(field) = Field::named(&name) else { return error(column, unknown(&name)) };
        match self.peek().clone() {
            Token { what: What::Comparison(how), .. } => {
                self.at += 1;
                self.compared(field, how)
            }
            Token { what: What::Word(word), .. } if word == "in" => {
                self.at += 1;
                self.among(field)
            }
            Token { what: What::Word(word), column } if word == "like" => {
                self.at += 1;
                self.like(field, column)
            }
            _ if field.sort == Sort::Bool => Ok(Term::Bool(field, true)),
            token => {
                error(token.column, format!("a comparison is expected after {name}: ==, !=, <, <=, >, >=, in, like"))
            }
        }
    }

    fn compared(&mut self, field: &'static Field, how: Comparison) -> Parsed<Term> {
        let Token { column, what } = self.next();
        Ok(match (field.sort, what) {
            (Sort::Number, What::Number(number)) => Term::Number(field, how, number),
            (Sort::Text, What::Text(text)) => Term::Text(field, how, text),
            (Sort::Address, What::Text(text)) => Term::Address(field, how, address(column, &text)?),
            (Sort::Bool, What::Word(word)) if is_bool(&word) && is_equality(how) => {
                Term::Bool(field, (word == "true") == (how == Comparison::Equal))
            }
            _ => return error(column, expected(field)),
        })
    }

    fn among(&mut self, field: &'static Field) -> Parsed<Term> {
        let values = self.list()?;
        let wrong = |column| error(column, expected(field));
        match field.sort {
            Sort::Number => {
                let number = |Token { column, what }| match what {
                    What::Number(number) => Ok(number),
                    _ => wrong(column),
                };
                Ok(Term::NumberIn(field, values.into_iter().map(number).collect::<Parsed<_>>()?))
            }
            Sort::Text => Ok(Term::TextIn(
                field,
                values.into_iter().map(|token| text(field, token).map(|(_, text)| text)).collect::<Parsed<_>>()?,
            )),
            Sort::Address => {
                let network = |token| text(field, token).and_then(|(column, text)| network_at(column, &text));
                Ok(Term::AddressIn(field, values.into_iter().map(network).collect::<Parsed<_>>()?))
            }
            Sort::Bool => error(values.first().map_or(1, |token| token.column), expected(field)),
        }
    }

    fn like(&mut self, field: &'static Field, column: usize) -> Parsed<Term> {
        if field.sort != Sort::Text {
            return error(column, format!("{} is no text: `like` is for text", field.name));
        }
        let mut globs = GlobSetBuilder::new();
        for token in self.list()? {
            let (column, glob) = text(field, token)?;
            match GlobBuilder::new(&glob).literal_separator(false).backslash_escape(false).build() {
                Ok(glob) => _ = globs.add(glob),
                Err(problem) => return error(column, format!("bad glob: {}", problem.kind())),
            }
        }
        let globs: Result<GlobSet, _> = globs.build();
        globs
            .map(|globs| Term::Like(field, globs))
            .or_else(|problem| error(column, format!("bad glob: {}", problem.kind())))
    }

    /// One value, or several in brackets.
    fn list(&mut self) -> Parsed<Vec<Token>> {
        if !self.takes(&What::OpenList) {
            return Ok(vec![self.next()]);
        }
        let mut values = vec![self.next()];
        while self.takes(&What::Comma) {
            values.push(self.next());
        }
        let close = self.next();
        if close.what != What::CloseList {
            return error(close.column, "`,` or `]` is expected");
        }
        Ok(values)
    }
}

fn text(field: &Field, token: Token) -> Parsed<(usize, String)> {
    match token {
        Token { column, what: What::Text(text) } => Ok((column, text)),
        Token { column, .. } => error(column, expected(field)),
    }
}

fn address(column: usize, text: &str) -> Parsed<IpAddr> {
    text.parse().or_else(|_| {
        let hint = if text.contains('/') { "; networks are for `in`" } else { "" };
        error(column, format!("`{text}` is no IP address{hint}"))
    })
}

fn network_at(column: usize, text: &str) -> Parsed<Network> {
    text.parse().or_else(|problem| error(column, format!("`{text}`: {problem}")))
}

fn expected(field: &Field) -> String {
    let what = match field.sort {
        Sort::Text => "text in quotes",
        Sort::Number => "a number",
        Sort::Address => "an IP address in quotes",
        Sort::Bool => "true or false after == or !=",
    };
    format!("{} takes {what}", field.name)
}

fn unknown(name: &str) -> String {
    let names: Vec<_> = FIELDS.iter().map(|field| field.name).collect();
    format!("there is no field {name}; there are {}", names.join(", "))
}

fn is_bool(word: &str) -> bool {
    matches!(word, "true" | "false")
}

fn is_equality(how: Comparison) -> bool {
    matches!(how, Comparison::Equal | Comparison::NotEqual)
}
