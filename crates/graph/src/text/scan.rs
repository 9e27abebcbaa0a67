//! A cursor over text: words, strings, punctuation, and where a fault is.

use crate::GraphError;

/// What is wrong, and at which byte.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Fault {
    at: usize,
    reason: String,
}

impl Fault {
    /// With line and column.
    pub(super) fn locate(self, text: &str) -> GraphError {
        let before = text.get(..self.at).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().map_or(0, |l| l.chars().count()) + 1;
        GraphError::Text { line, column, reason: self.reason }
    }
}

/// A cursor. Blanks and comments between tokens are passed over.
#[derive(Clone, Debug)]
pub(super) struct Scanner<'a> {
    text: &'a str,
    at: usize,
    end: usize,
    /// What the last comment of ours said: `id=7`, `name="x"`.
    note: Option<(usize, &'a str)>,
}

impl<'a> Scanner<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Scanner { text, at: 0, end: text.len(), note: None }
    }

    /// A cursor over a part of the text, which knows where it is in the whole.
    pub(super) fn part(&self, start: usize, end: usize) -> Self {
        Scanner { text: self.text, at: start, end, note: None }
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.at..self.end).unwrap_or("")
    }

    /// Passes over blanks and comments.
    fn skip(&mut self) {
        loop {
            let rest = self.rest();
            let blank = rest.len() - rest.trim_start().len();
            if blank > 0 {
                self.at += blank;
            } else if rest.starts_with("//") {
                self.at += rest.find('\n').unwrap_or(rest.len());
            } else if let Some(comment) = rest.strip_prefix("/*") {
                let length = comment.find("*/").unwrap_or(comment.len());
                let words = &comment[..length];
                if words.starts_with("id=") || words.starts_with("name=") {
                    self.note = Some((self.at + 2, words));
                }
                self.at = (self.at + 2 + length + 2).min(self.end);
            } else {
                return;
            }
        }
    }

    /// Where the next token begins.
    pub(super) fn position(&mut self) -> usize {
        self.skip();
        self.at
    }

    pub(super) fn done(&mut self) -> bool {
        self.skip();
        self.at >= self.end
    }

    pub(super) fn peek(&mut self) -> Option<char> {
        self.skip();
        self.rest().chars().next()
    }

    pub(super) fn fault_at(&self, at: usize, reason: String) -> Fault {
        Fault { at, reason }
    }

    pub(super) fn fault(&self, reason: String) -> Fault {
        Fault { at: self.at, reason }
    }

    /// What is next, for an error.
    fn next_in_words(&mut self) -> String {
        self.skip();
        let word: String = self.rest().chars().take_while(|c| *c != '\n').take(20).collect();
        if word.is_empty() { "the end".into() } else { format!("`{word}`") }
    }

    pub(super) fn expected(&mut self, what: &str) -> Fault {
        let found = self.next_in_words();
        self.fault(format!("expected {what}, found {found}"))
    }

    /// Whether this comes next; if so it is passed.
    pub(super) fn eat(&mut self, c: char) -> bool {
        self.skip();
        let found = self.rest().starts_with(c);
        if found {
            self.at += c.len_utf8();
        }
        found
    }

    pub(super) fn eat_text(&mut self, text: &str) -> bool {
        self.skip();
        let found = self.rest().starts_with(text);
        if found {
            self.at += text.len();
        }
        found
    }

    pub(super) fn expect(&mut self, c: char) -> Result<(), Fault> {
        if self.eat(c) { Ok(()) } else { Err(self.expected(&format!("`{c}`"))) }
    }

    /// Letters, digits, `_`, `.` and `-`; may be empty.
    pub(super) fn word(&mut self) -> &'a str {
        self.skip();
        let rest = self.rest();
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        let length = rest.find(|c| !plain(c)).unwrap_or(rest.len());
        self.at += length;
        &rest[..length]
    }

    /// The word that comes next, which is not passed.
    pub(super) fn peek_word(&mut self) -> &'a str {
        self.clone().word()
    }

    /// A word, or a fault that says what it should have been.
    pub(super) fn expect_word(&mut self, what: &str) -> Result<&'a str, Fault> {
        match self.word() {
            "" => Err(self.expected(what)),
            word => Ok(word),
        }
    }

    /// A number of a constant: a word, or `nan(0x1)`, or `...`.
    pub(super) fn number(&mut self) -> Result<&'a str, Fault> {
        let start = self.position();
        self.expect_word("a number")?;
        if self.rest().starts_with("(0x") {
            let rest = self.rest();
            self.at += rest.find(')').map_or(rest.len(), |i| i + 1);
        } else if self.rest().starts_with('+') {
            // An exponent: `1e+10`.
            self.at += 1;
            self.word();
        }
        Ok(&self.text[start..self.at])
    }

    /// A number that counts.
    pub(super) fn count(&mut self) -> Result<usize, Fault> {
        self.skip();
        let rest = self.rest();
        let length = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        match rest[..length].parse() {
            Ok(count) => {
                self.at += length;
                Ok(count)
            }
            Err(_) => Err(self.expected("a number")),
        }
    }

    pub(super) fn signed(&mut self) -> Result<i64, Fault> {
        self.skip();
        let rest = self.rest();
        let digits = rest.strip_prefix('-').unwrap_or(rest);
        let length =
            rest.len() - digits.len() + digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
        match rest[..length].parse() {
            Ok(number) => {
                self.at += length;
                Ok(number)
            }
            Err(_) => Err(self.expected("a number")),
        }
    }

    /// `%name`, `name` or `"any name"`.
    pub(super) fn name(&mut self, what: &str) -> Result<String, Fault> {
        self.eat('%');
        if self.peek() == Some('"') {
            return self.text_string();
        }
        Ok(self.expect_word(what)?.to_owned())
    }

    /// A quoted string's bytes.
    pub(super) fn string(&mut self) -> Result<Vec<u8>, Fault> {
        self.expect('"')?;
        let start = self.at - 1;
        let mut bytes = Vec::new();
        let mut rest = self.rest().bytes();
        loop {
            let Some(byte) = rest.next() else {
                return Err(self.fault_at(start, "the string does not end".into()));
            };
            self.at += 1;
            match byte {
                b'"' => return Ok(bytes),
                b'\\' => {
                    let escaped = rest.next();
                    self.at += 1;
                    match escaped {
                        Some(b'n') => bytes.push(b'\n'),
                        Some(b'r') => bytes.push(b'\r'),
                        Some(b't') => bytes.push(b'\t'),
                        Some(first @ b'0'..=b'7') => {
                            let mut value = u32::from(first - b'0');
                            for _ in 0..2 {
                                match rest.clone().next() {
                                    Some(digit @ b'0'..=b'7') => {
                                        value = value * 8 + u32::from(digit - b'0');
                                        rest.next();
                                        self.at += 1;
                                    }
                                    _ => break,
                                }
                            }
                            bytes.push(value as u8);
                        }
                        Some(other) => bytes.push(other),
                        None => return Err(self.fault_at(start, "the string does not end".into())),
                    }
                }
                other => bytes.push(other),
            }
        }
    }

    /// A quoted string of UTF-8.
    pub(super) fn text_string(&mut self) -> Result<String, Fault> {
        let at = self.position();
        String::from_utf8(self.string()?).map_err(|_| self.fault_at(at, "the string is not UTF-8".into()))
    }

    /// Passes a value of an attribute: up to a comma, blank or closing bracket that is not inside of brackets or strings.
    /// Its first and last byte.
    pub(super) fn value(&mut self) -> Result<(usize, usize), Fault> {
        let start = self.position();
        let mut open: Vec<char> = Vec::new();
        loop {
            let rest = self.rest();
            let Some(c) = rest.chars().next() else {
                return match open.last() {
                    Some(open) => Err(self.fault_at(start, format!("`{open}` is not closed"))),
                    None => Ok((start, self.at)),
                };
            };
            if c == '"' {
                self.string()?;
                continue;
            }
            if rest.starts_with("/*") {
                if open.is_empty() {
                    return Ok((start, self.at));
                }
                self.skip();
                continue;
            }
            match c {
                '{' | '(' | '[' => open.push(c),
                '}' | ')' | ']' => {
                    let Some(opened) = open.pop() else { return Ok((start, self.at)) };
                    if !matches!((opened, c), ('{', '}') | ('(', ')') | ('[', ']')) {
                        return Err(self.fault(format!("`{opened}` is closed by `{c}`")));
                    }
                }
                ',' if open.is_empty() => return Ok((start, self.at)),
                c if c.is_whitespace() && open.is_empty() => return Ok((start, self.at)),
                _ => {}
            }
            self.at += c.len_utf8();
        }
    }

    pub(super) fn slice(&self, (start, end): (usize, usize)) -> &'a str {
        self.text.get(start..end).unwrap_or("")
    }

    /// Passes the rest of the line.
    pub(super) fn skip_line(&mut self) {
        let rest = self.rest();
        self.at += rest.find('\n').map_or(rest.len(), |i| i + 1);
    }

    /// What the comment that was just passed says, when it is one of ours: its text and where that is.
    pub(super) fn take_note(&mut self) -> Option<(usize, &'a str)> {
        self.skip();
        self.note.take()
    }

    pub(super) fn drop_note(&mut self) {
        self.note = None;
    }
}
