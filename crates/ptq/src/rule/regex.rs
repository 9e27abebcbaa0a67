//! Python's regular expressions, matched as `re.fullmatch` does.
//!
//! Rules are written for Qwix, which hands them to Python's `re`. The syntax of the engine here is close to it, so a
//! pattern is walked once: what both spell alike is passed on, what Python spells otherwise is rewritten, and what
//! Python does not have is refused rather than understood in another way.

use fancy_regex::{Regex, RegexBuilder};

/// Steps of backtracking after which a match is given up. Ordinary rules take a few dozen.
const BACKTRACK_LIMIT: usize = 200_000;

/// A compiled pattern that matches whole texts.
#[derive(Clone, Debug)]
pub struct FullMatch(Regex);

impl FullMatch {
    /// Compiles a Python pattern.
    ///
    /// # Errors
    /// What is wrong with the pattern, in words.
    pub fn new(pattern: &str) -> Result<Self, String> {
        let Translated { flags, body } = translate(pattern)?;
        // A comment at the end of a verbose pattern has been dropped, so the closing parenthesis is safe.
        let wrapped = format!(r"{flags}\A(?:{body})\z");
        RegexBuilder::new(&wrapped)
            .backtrack_limit(BACKTRACK_LIMIT)
            .build()
            .map(FullMatch)
            .map_err(|e| e.to_string())
    }

    /// Whether the whole text matches.
    ///
    /// # Errors
    /// When the pattern backtracks without end on this text.
    pub fn is_match(&self, text: &str) -> Result<bool, String> {
        self.0.is_match(text).map_err(|_| {
            "it backtracks too long on this text; nested repetitions such as `(a+)+` do that".to_owned()
        })
    }
}

struct Translated {
    flags: String,
    body: String,
}

struct Walk<'a> {
    chars: std::iter::Peekable<std::str::CharIndices<'a>>,
    pattern: &'a str,
    verbose: bool,
    out: String,
    /// Groups that are open.
    depth: usize,
    /// 0 after anything that can be repeated, 1 after a repetition, 2 after one with its suffix (`*?`, `*+`).
    repeated: u8,
}

fn translate(pattern: &str) -> Result<Translated, String> {
    let (flags, rest) = leading_flags(pattern)?;
    let verbose = flags.contains('x');
    let kept: String = flags.chars().filter(|c| "ims".contains(*c)).collect();
    let mut walk = Walk {
        chars: rest.char_indices().peekable(),
        pattern: rest,
        verbose,
        out: String::new(),
        depth: 0,
        repeated: 0,
    };
    while let Some((_, c)) = walk.chars.next() {
        walk.one(c)?;
    }
    if walk.depth > 0 {
        return Err("a `(` that is not closed".to_owned());
    }
    let flags = if kept.is_empty() { String::new() } else { format!("(?{kept})") };
    Ok(Translated { flags, body: walk.out })
}

/// Flags for the whole pattern, which Python takes at its start only: `(?i)`.
fn leading_flags(pattern: &str) -> Result<(String, &str), String> {
    let mut flags = String::new();
    let mut rest = pattern;
    while let Some(tail) = rest.strip_prefix("(?") {
        let Some(end) = tail.find(|c: char| !c.is_ascii_alphabetic()) else { break };
        if end == 0 || tail.as_bytes()[end] != b')' || tail.starts_with('P') {
            break;
        }
        if let Some(bad) = tail[..end].chars().find(|c| !"imsxu".contains(*c)) {
            return Err(format!("the flag `{bad}` is not supported; i, m, s, x and u are"));
        }
        flags.push_str(&tail[..end]);
        rest = &tail[end + 1..];
    }
    Ok((flags, rest))
}

impl Walk<'_> {
    fn peek(&mut self) -> Option<char> {
        self.chars.peek().map(|c| c.1)
    }

    fn rest(&mut self) -> &str {
        match self.chars.peek() {
            Some(&(at, _)) => &self.pattern[at..],
            None => "",
        }
    }

    fn skip(&mut self, count: usize) {
        for _ in 0..count {
            self.chars.next();
        }
    }

    fn one(&mut self, c: char) -> Result<(), String> {
        if self.verbose && (c == '#' || c.is_whitespace()) {
            if c == '#' {
                while self.chars.next_if(|c| c.1 != '\n').is_some() {}
            }
            return Ok(());
        }
        let before = std::mem::take(&mut self.repeated);
        match c {
            '\\' => self.escape(false)?,
            '[' => self.class()?,
            '(' => self.group()?,
            ')' => {
                // An unbalanced one would close the group that the pattern is wrapped in.
                self.depth = self.depth.checked_sub(1).ok_or("a `)` without its `(`")?;
                self.out.push(')');
            }
            '*' | '+' | '?' => {
                self.repeated = match (before, c) {
                    (0, _) => 1,
                    (1, '?' | '+') => 2,
                    _ => return Err(format!("`{c}` repeats what is repeated already")),
                };
                self.out.push(c);
            }
            '{' => {
                if self.brace() {
                    if before > 0 {
                        return Err("`{` repeats what is repeated already".to_owned());
                    }
                    self.repeated = 1;
                }
            }
            '}' | '#' => {
                self.out.push('\\');
                self.out.push(c);
            }
            c => self.out.push(c),
        }
        Ok(())
    }

    /// `{2}`, `{2,}`, `{,3}` and `{2,3}` repeat; any other brace is itself. Whether it repeats.
    fn brace(&mut self) -> bool {
        let inner = self.rest().split('}').next().unwrap_or("").to_owned();
        let closed = self.rest().len() > inner.len();
        let (low, high) = inner.split_once(',').map_or((inner.as_str(), None), |(l, h)| (l, Some(h)));
        let digits = |s: &str| s.chars().all(|c| c.is_ascii_digit());
        let repeats = closed
            && digits(low)
            && high.is_none_or(digits)
            && !(low.is_empty() && high.is_none_or(str::is_empty));
        if !repeats {
            // Python takes `x{,}` for a repetition without bounds.
            if closed && inner == "," {
                self.out.push_str("{0,}");
                self.skip(2);
                return true;
            }
            self.out.push_str(r"\{");
            return false;
        }
        let low = if low.is_empty() { "0" } else { low };
        match high {
            None => self.out.push_str(&format!("{{{low}}}")),
            Some(high) => self.out.push_str(&format!("{{{low},{high}}}")),
        }
        self.skip(inner.chars().count() + 1);
        true
    }

    fn group(&mut self) -> Result<(), String> {
        if self.peek() == Some('*') {
            return Err("nothing to repeat after `(`".to_owned());
        }
        self.depth += 1;
        if self.peek() != Some('?') {
            self.out.push('(');
            return Ok(());
        }
        let rest = self.rest().to_owned();
        let name_end = |tail: &str, close: char| -> Result<String, String> {
            let name: String = tail.chars().take_while(|&c| c != close).collect();
            let plain = !name.is_empty()
                && name.chars().all(|c| c.is_alphanumeric() || c == '_')
                && !name.starts_with(|c: char| c.is_ascii_digit());
            if plain && tail[name.len()..].starts_with(close) {
                Ok(name)
            } else {
                Err(format!("`{name}` is not the name of a group"))
            }
        };
        for same in ["?:", "?=", "?!", "?<=", "?<!", "?>"] {
            if rest.starts_with(same) {
                self.out.push('(');
                self.out.push_str(same);
                self.skip(same.len());
                return Ok(());
            }
        }
        if let Some(tail) = rest.strip_prefix("?P<") {
            let name = name_end(tail, '>')?;
            self.out.push_str(&format!("(?P<{name}>"));
            self.skip(3 + name.chars().count() + 1);
            return Ok(());
        }
        if let Some(tail) = rest.strip_prefix("?P=") {
            let name = name_end(tail, ')')?;
            self.out.push_str(&format!("(?P={name})"));
            self.skip(3 + name.chars().count() + 1);
            self.depth -= 1;
            return Ok(());
        }
        if rest.starts_with("?#") {
            let comment = rest.chars().take_while(|&c| c != ')').count();
            if comment == rest.chars().count() {
                return Err("a comment `(?#` that is not closed".to_owned());
            }
            self.skip(comment + 1);
            self.depth -= 1;
            return Ok(());
        }
        if let Some(tail) = rest.strip_prefix("?(") {
            let name: String = tail.chars().take_while(|&c| c != ')').collect();
            let ok = !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_');
            if !ok || name.len() == tail.len() {
                return Err("a condition `(?(1)…)` that cannot be read".to_owned());
            }
            if name.chars().all(|c| c.is_ascii_digit()) {
                self.out.push_str(&format!("(?({name})"));
            } else {
                self.out.push_str(&format!("(?(<{name}>)"));
            }
            self.skip(2 + name.chars().count() + 1);
            return Ok(());
        }
        let flags: String = rest[1..].chars().take_while(|c| c.is_ascii_alphabetic() || *c == '-').collect();
        if !flags.is_empty() && rest[1 + flags.len()..].starts_with(':') {
            if let Some(bad) = flags.chars().find(|c| !"ims-".contains(*c)) {
                return Err(format!("the flag `{bad}` is not supported inside a pattern; i, m and s are"));
            }
            self.out.push_str(&format!("(?{flags}:"));
            self.skip(1 + flags.len() + 1);
            return Ok(());
        }
        if !flags.is_empty() && rest[1 + flags.len()..].starts_with(')') {
            return Err("flags for the whole pattern stand at its start".to_owned());
        }
        let shown: String = rest.chars().take(3).collect();
        Err(format!("`({shown}` is not Python's syntax for a group"))
    }

    fn escape(&mut self, in_class: bool) -> Result<(), String> {
        let Some((_, c)) = self.chars.next() else { return Err("it ends in a single backslash".to_owned()) };
        let hex = |walk: &mut Self, digits: usize| -> Result<(), String> {
            let text: String = walk.rest().chars().take(digits).collect();
            let char = u32::from_str_radix(&text, 16).ok().filter(|_| text.len() == digits);
            match char.and_then(char::from_u32) {
                Some(char) => {
                    walk.out.push_str(&format!(r"\x{{{:x}}}", char as u32));
                    walk.skip(digits);
                    Ok(())
                }
                None => {
                    Err(format!(r"`\{c}{text}` is not a character: {digits} hexadecimal digits are needed"))
                }
            }
        };
        match c {
            'd' | 'D' | 'w' | 'W' | 's' | 'S' | 't' | 'n' | 'r' | 'f' | 'v' | 'a' => {
                self.out.push('\\');
                self.out.push(c);
            }
            'b' if in_class => self.out.push_str(r"\x08"),
            'b' | 'B' | 'A' if !in_class => {
                self.out.push('\\');
                self.out.push(c);
            }
            'Z' if !in_class => self.out.push_str(r"\z"),
            'x' => hex(self, 2)?,
            'u' => hex(self, 4)?,
            'U' => hex(self, 8)?,
            '0' => {
                let octal: String =
                    self.rest().chars().take(2).take_while(|c| ('0'..='7').contains(c)).collect();
                let value = u32::from_str_radix(&format!("0{octal}"), 8).unwrap_or(0);
                self.out.push_str(&format!(r"\x{{{value:x}}}"));
                self.skip(octal.len());
            }
            '1'..='9' if !in_class => {
                let more: String = self.rest().chars().take(1).take_while(char::is_ascii_digit).collect();
                self.out.push_str(&format!(r"(?:\{c}{more})"));
                self.skip(more.len());
            }
            c if c.is_ascii_alphanumeric() => {
                return Err(format!(r"`\{c}` is not an escape that Python's patterns have"));
            }
            c if c.is_ascii() => {
                self.out.push('\\');
                self.out.push(c);
            }
            c => self.out.push(c),
        }
        Ok(())
    }

    /// In Python only `^`, `-`, `\` and `]` mean something in a class: no classes inside, no set operations.
    fn class(&mut self) -> Result<(), String> {
        self.out.push('[');
        if self.peek() == Some('^') {
            self.skip(1);
            self.out.push('^');
        }
        let mut first = true;
        loop {
            let Some((_, c)) = self.chars.next() else { return Err("a `[` that is not closed".to_owned()) };
            match c {
                ']' if !first => break,
                '\\' => self.escape(true)?,
                '-' => {
                    // A hyphen at either end is itself.
                    if first || self.peek() == Some(']') {
                        self.out.push_str(r"\-")
                    } else {
                        self.out.push('-')
                    }
                }
                '[' | ']' | '&' | '~' | '^' | '#' => {
                    self.out.push('\\');
                    self.out.push(c);
                }
                c if c.is_whitespace() => self.out.push_str(&format!(r"\x{{{:x}}}", c as u32)),
                c => self.out.push(c),
            }
            first = false;
        }
        self.out.push(']');
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Patterns with texts that Python's `re.fullmatch` takes and refuses.
    #[test]
    fn matches_as_python_does() {
        let rows: &[(&str, &[&str], &[&str])] = &[
            (".*", &["", "a", "a/b"], &["a\nb"]),
            ("a", &["a"], &["ab", "ba", "a\n", ""]),
            ("a|ab", &["a", "ab"], &["abc"]),
            ("a|b", &["a", "b"], &["ab"]),
            (r"(?!.*(router|head)).*", &["mlp/up", ""], &["mlp/router", "head", "x/head/y"]),
            (r".*(?<!bias)", &["kernel"], &["bias", "x/bias"]),
            (r"(?P<a>x+)/(?P=a)", &["x/x", "xx/xx"], &["x/xx"]),
            (r"layers/(\d+)/\1", &["layers/3/3"], &["layers/3/4"]),
            (r"a\Z", &["a"], &["a\n"]),
            ("a$", &["a"], &["ab", "a\n"]),
            (r"x{,2}", &["", "x", "xx"], &["xxx"]),
            (r"x{2}", &["xx"], &["x", "xxx"]),
            (r"x{a}", &["x{a}"], &["x"]),
            (r"x{", &["x{"], &["x"]),
            (r"x{}", &["x{}"], &["x"]),
            ("[a&&b]+", &["a&b"], &["c"]),
            ("[[a]", &["[", "a"], &["b"]),
            ("[]a]+", &["]a"], &["b"]),
            ("[^]a]", &["b"], &["]", "a"]),
            ("[a-]", &["a", "-"], &["b"]),
            (r"[\w/]+", &["a/b_c"], &["a b"]),
            (r"(?i)Dense_\d", &["dense_1", "DENSE_2"], &["Dense_x"]),
            ("(?x) a b # comment", &["ab"], &["a b"]),
            ("(?x)a[ ]b", &["a b"], &["ab"]),
            ("a(?#comment)b", &["ab"], &["a"]),
            ("(?i:A)b", &["ab", "Ab"], &["aB"]),
            ("(a)?(?(1)b|c)", &["ab", "c"], &["ac", "b"]),
            (r"\x41\u0042", &["AB"], &["ab"]),
            (r"a\/b\-c\.", &["a/b-c."], &["a/b-cd"]),
            ("é+", &["éé"], &["e"]),
            ("(?>a+)b", &["aab"], &["a"]),
            ("#}", &["#}"], &["#"]),
            ("layers_[0-4]/.*|head", &["layers_3/a", "head"], &["layers_5/a", "head/x"]),
            ("", &[""], &["a"]),
        ];
        let mut failures = vec![];
        for (pattern, yes, no) in rows {
            match FullMatch::new(pattern) {
                Err(e) => failures.push(format!("{pattern}: {e}")),
                Ok(regex) => {
                    for (texts, wanted) in [(yes, true), (no, false)] {
                        for text in *texts {
                            if regex.is_match(text) != Ok(wanted) {
                                failures.push(format!("{pattern} on {text:?}: {:?}", regex.is_match(text)));
                            }
                        }
                    }
                }
            }
        }
        assert!(failures.is_empty(), "{}", failures.join("\n"));
    }

    #[test]
    fn refuses_what_python_refuses() {
        let mut failures = vec![];
        for pattern in [
            "(",
            ")",
            "a)(b",
            "[a",
            "*a",
            r"\",
            r"\p{L}",
            r"\K",
            r"\h",
            r"\z",
            r"\x4",
            "(?<n>a)",
            "(?P<1>a)",
            "(?P=nope)",
            "a(?i)b",
            "(?L)a",
            "(?U)a",
            r"\N{DIGIT ONE}",
            "(?&a)",
            "(*FAIL)",
            "a**",
        ] {
            if let Ok(compiled) = FullMatch::new(pattern) {
                failures.push(format!("{pattern} was taken as {compiled:?}"));
            }
        }
        assert!(failures.is_empty(), "{}", failures.join("\n"));
    }

    #[test]
    fn endless_backtracking_is_an_error() {
        let regex = FullMatch::new(r"(?!x)((a+)+)\2b").unwrap();
        let text = "a".repeat(60);
        assert!(regex.is_match(&text).is_err());
    }
}
