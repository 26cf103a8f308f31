//! Parses tokens to a condition by recursive descent, and checks it.

use std::net::IpAddr;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use super::lexer::{Token, TokenKind, error, tokens};
use super::{Comparison, ConditionError, FIELDS, Field, Network, Term, ValueType};

/// How deeply parentheses and `!` may be nested.
const MAX_DEPTH: u32 = 64;

type Parsed<T> = Result<T, ConditionError>;

pub fn parse(text: &str) -> Parsed<Term> {
    let mut parser = Parser { tokens: tokens(text)?, at: 0, depth: 0 };
    let term = parser.or_expression()?;
    match parser.peek() {
        Token { kind: TokenKind::End, .. } => Ok(term),
        token => error(token.column, "expected an operator: &&, ||"),
    }
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    depth: u32,
}

impl Parser {
    fn peek(&self) -> &Token {
        // `at` may be past the last token, which is `End`.
        &self.tokens[self.at.min(self.tokens.len() - 1)]
    }

    fn next(&mut self) -> Token {
        let token = self.peek().clone();
        self.at += 1;
        token
    }

    /// Skips the next token if it is this one.
    fn accept(&mut self, kind: &TokenKind) -> bool {
        let accept = self.peek().kind == *kind;
        self.at += usize::from(accept);
        accept
    }

    fn or_expression(&mut self) -> Parsed<Term> {
        let mut terms = vec![self.and_expression()?];
        while self.accept(&TokenKind::Or) {
            terms.push(self.and_expression()?);
        }
        Ok(if terms.len() == 1 { terms.remove(0) } else { Term::Any(terms) })
    }

    fn and_expression(&mut self) -> Parsed<Term> {
        let mut terms = vec![self.unary()?];
        while self.accept(&TokenKind::And) {
            terms.push(self.unary()?);
        }
        Ok(if terms.len() == 1 { terms.remove(0) } else { Term::All(terms) })
    }

    /// Parses `!`, parentheses or a comparison.
    fn unary(&mut self) -> Parsed<Term> {
        let column = self.peek().column;
        if self.accept(&TokenKind::Not) {
            let term = self.nested(column, Self::unary)?;
            Ok(Term::Not(Box::new(term)))
        } else if self.accept(&TokenKind::Open) {
            let term = self.nested(column, Self::or_expression)?;
            let close = self.next();
            if close.kind != TokenKind::Close {
                return error(close.column, format!("expected `)` for the `(` in column {column}"));
            }
            Ok(term)
        } else {
            self.comparison()
        }
    }

    /// Parses what is inside the `!` or `(` in this column.
    fn nested(&mut self, column: usize, parse: impl FnOnce(&mut Self) -> Parsed<Term>) -> Parsed<Term> {
        if self.depth == MAX_DEPTH {
            return error(column, format!("nested more than {MAX_DEPTH} deep"));
        }
        self.depth += 1;
        let term = parse(self)?;
        self.depth -= 1;
        Ok(term)
    }

    fn comparison(&mut self) -> Parsed<Term> {
        let Token { column, kind } = self.next();
        let TokenKind::Word(name) = kind else { return error(column, "expected a field, as in remote.port == 443") };
        let Some(field) = Field::named(&name) else { return error(column, unknown(&name)) };
        match self.peek().clone() {
            Token { kind: TokenKind::Comparison(operator), .. } => {
                self.at += 1;
                self.compared_value(field, operator)
            }
            Token { kind: TokenKind::Word(word), .. } if word == "in" => {
                self.at += 1;
                self.in_values(field)
            }
            Token { kind: TokenKind::Word(word), column } if word == "like" => {
                self.at += 1;
                self.like_globs(field, column)
            }
            _ if field.value_type == ValueType::Bool => Ok(Term::Bool(field, true)),
            token => error(token.column, format!("expected a comparison after {name}: ==, !=, <, <=, >, >=, in, like")),
        }
    }

    /// Parses the value after a comparison operator.
    fn compared_value(&mut self, field: &'static Field, operator: Comparison) -> Parsed<Term> {
        let Token { column, kind } = self.next();
        Ok(match (field.value_type, kind) {
            (ValueType::Number, TokenKind::Number(number)) => Term::Number(field, operator, number),
            (ValueType::Text, TokenKind::Text(text)) => Term::Text(field, operator, text),
            (ValueType::Address, TokenKind::Text(text)) => Term::Address(field, operator, address(column, &text)?),
            (ValueType::Bool, TokenKind::Word(word)) if is_bool(&word) && is_equality(operator) => {
                Term::Bool(field, (word == "true") == (operator == Comparison::Equal))
            }
            _ => return error(column, expected(field)),
        })
    }

    /// Parses the values after `in`.
    fn in_values(&mut self, field: &'static Field) -> Parsed<Term> {
        let values = self.list()?;
        let wrong = |column| error(column, expected(field));
        match field.value_type {
            ValueType::Number => {
                let number = |Token { column, kind }| match kind {
                    TokenKind::Number(number) => Ok(number),
                    _ => wrong(column),
                };
                Ok(Term::NumberIn(field, values.into_iter().map(number).collect::<Parsed<_>>()?))
            }
            ValueType::Text => Ok(Term::TextIn(
                field,
                values.into_iter().map(|token| text(field, token).map(|(_, text)| text)).collect::<Parsed<_>>()?,
            )),
            ValueType::Address => {
                let network = |token| text(field, token).and_then(|(column, text)| network_at(column, &text));
                Ok(Term::AddressIn(field, values.into_iter().map(network).collect::<Parsed<_>>()?))
            }
            ValueType::Bool => error(values.first().map_or(1, |token| token.column), expected(field)),
        }
    }

    /// Parses the globs after the `like` in this column.
    fn like_globs(&mut self, field: &'static Field, column: usize) -> Parsed<Term> {
        if field.value_type != ValueType::Text {
            return error(column, format!("`like` needs text, and {} is not text", field.name));
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

    /// Parses one value, or several in brackets.
    fn list(&mut self) -> Parsed<Vec<Token>> {
        if !self.accept(&TokenKind::OpenList) {
            return Ok(vec![self.next()]);
        }
        let mut values = vec![self.list_value()?];
        while self.accept(&TokenKind::Comma) {
            values.push(self.list_value()?);
        }
        let close = self.next();
        if close.kind != TokenKind::CloseList {
            return error(close.column, "expected `,` or `]`");
        }
        Ok(values)
    }

    fn list_value(&mut self) -> Parsed<Token> {
        let token = self.next();
        if token.kind == TokenKind::CloseList {
            return error(token.column, "expected a value before `]`");
        }
        Ok(token)
    }
}

fn text(field: &Field, token: Token) -> Parsed<(usize, String)> {
    match token {
        Token { column, kind: TokenKind::Text(text) } => Ok((column, text)),
        Token { column, .. } => error(column, expected(field)),
    }
}

fn address(column: usize, text: &str) -> Parsed<IpAddr> {
    text.parse().or_else(|_| {
        let hint = if text.contains('/') { "; use `in` for networks" } else { "" };
        error(column, format!("`{text}` is not an IP address{hint}"))
    })
}

fn network_at(column: usize, text: &str) -> Parsed<Network> {
    text.parse().or_else(|problem| error(column, format!("`{text}`: {problem}")))
}

fn expected(field: &Field) -> String {
    let kind = match field.value_type {
        ValueType::Text => "text in quotes",
        ValueType::Number => "a number",
        ValueType::Address => "an IP address in quotes",
        ValueType::Bool => "true or false after == or !=",
    };
    format!("{} needs {kind}", field.name)
}

fn unknown(name: &str) -> String {
    let names: Vec<_> = FIELDS.iter().map(|field| field.name).collect();
    format!("there is no field {name}; the fields are {}", names.join(", "))
}

fn is_bool(word: &str) -> bool {
    matches!(word, "true" | "false")
}

fn is_equality(operator: Comparison) -> bool {
    matches!(operator, Comparison::Equal | Comparison::NotEqual)
}
