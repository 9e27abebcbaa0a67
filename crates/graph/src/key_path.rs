//! How JAX names a parameter: the argument, and the keys that lead to the leaf.

use std::fmt;
use std::iter::Peekable;
use std::str::Chars;

use crate::Path;

/// A JAX key path: the argument's name and the keys below it.
/// `variables['params']['Dense_0']['kernel']` → `variables`, [`params`, `Dense_0`, `kernel`].
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct KeyPath {
    /// The argument of the exported function.
    pub argument: String,
    /// Dictionary keys, indices and attributes below it, without NNX's closing `.value`.
    pub keys: Vec<String>,
}

/// Collections that Flax modules keep variables in.
const COLLECTIONS: [&str; 9] = [
    "params",
    "batch_stats",
    CACHE,
    "constants",
    "buffers",
    "intermediates",
    "losses",
    "quant_stats",
    "_overwrite_with_gradient",
];

/// The collection that changes with every call: keys and values of past positions.
pub(crate) const CACHE: &str = "cache";

impl KeyPath {
    /// Reads what JAX writes as the `op_name` of a parameter, `None` when it is nothing of the kind.
    ///
    /// Dictionary keys stand in brackets as Python's `repr` writes them, sequence indices as numbers, registered
    /// containers without names as `[<flat index 0>]`, attributes behind a dot.
    pub fn parse(op_name: &str) -> Option<KeyPath> {
        let mut chars = op_name.chars().peekable();
        let argument = identifier(&mut chars)?;
        let mut keys = Vec::new();
        let mut closes_with_value = false;
        while let Some(c) = chars.next() {
            closes_with_value = false;
            match c {
                '[' => keys.push(bracketed(&mut chars)?),
                '.' => {
                    let name = identifier(&mut chars)?;
                    closes_with_value = name == "value";
                    keys.push(name);
                }
                _ => return None,
            }
        }
        if closes_with_value {
            keys.pop();
        }
        Some(KeyPath { argument, keys })
    }

    /// The Flax collection that the keys begin with; a position before it, as of `*args`, does not count.
    pub fn collection(&self) -> Option<&str> {
        self.collection_and_rest().map(|(collection, _)| collection)
    }

    /// The variable's path: the keys without argument and collection.
    pub fn path(&self) -> Path {
        joined(self.collection_and_rest().map_or(&self.keys, |(_, rest)| rest))
    }

    /// The keys without the argument, the collection first when there is one.
    pub(crate) fn path_with_collection(&self) -> Path {
        match self.collection_and_rest() {
            Some((collection, rest)) => Path::new(collection).join(joined(rest).as_str()),
            None => joined(&self.keys),
        }
    }

    /// All of it, for an input's name.
    pub(crate) fn path_with_argument(&self) -> Path {
        Path::new(&self.argument).join(joined(&self.keys).as_str())
    }

    fn collection_and_rest(&self) -> Option<(&str, &[String])> {
        let keys = match self.keys.split_first() {
            Some((first, rest)) if first.bytes().all(|b| b.is_ascii_digit()) => rest,
            _ => &self.keys,
        };
        let (first, rest) = keys.split_first()?;
        // A collection has something below it: a parameter that is itself called `params` is a parameter.
        (COLLECTIONS.contains(&first.as_str()) && !rest.is_empty()).then_some((first, rest))
    }
}

fn joined(keys: &[String]) -> Path {
    Path::new(&keys.join("/"))
}

impl fmt::Display for KeyPath {
    /// As JAX writes a nested dictionary's leaf; [`KeyPath::parse`] reads it back.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.argument)?;
        for key in &self.keys {
            if !key.is_empty() && key.bytes().all(|b| b.is_ascii_digit()) {
                write!(f, "[{key}]")?;
                continue;
            }
            f.write_str("['")?;
            for c in key.chars() {
                match c {
                    '\\' | '\'' => write!(f, "\\{c}")?,
                    '\n' => f.write_str("\\n")?,
                    '\r' => f.write_str("\\r")?,
                    '\t' => f.write_str("\\t")?,
                    c if c.is_control() => write!(f, "\\U{:08x}", u32::from(c))?,
                    c => write!(f, "{c}")?,
                }
            }
            f.write_str("']")?;
        }
        Ok(())
    }
}

type Text<'a> = Peekable<Chars<'a>>;

fn identifier(chars: &mut Text) -> Option<String> {
    let mut name = String::new();
    while let Some(c) = chars.next_if(|c| c.is_alphanumeric() || *c == '_') {
        name.push(c);
    }
    (!name.is_empty()).then_some(name)
}

/// What stands between brackets, the closing one included.
fn bracketed(chars: &mut Text) -> Option<String> {
    if let Some(quote) = chars.next_if(|c| matches!(c, '\'' | '"')) {
        let key = quoted(chars, quote)?;
        return (chars.next() == Some(']')).then_some(key);
    }
    // A number, or the repr of some other key, which may have brackets and strings in it.
    let mut key = String::new();
    let mut depth = 0usize;
    while let Some(c) = chars.next() {
        match c {
            ']' if depth == 0 => {
                let index = key.strip_prefix("<flat index ").and_then(|rest| rest.strip_suffix('>'));
                return Some(index.map_or(key.clone(), str::to_owned));
            }
            ']' => depth -= 1,
            '[' => depth += 1,
            '\'' | '"' => {
                key.push_str(&quoted(chars, c)?);
                continue;
            }
            _ => {}
        }
        key.push(c);
    }
    None
}

/// The inside of a Python string literal, up to the closing quote.
fn quoted(chars: &mut Text, quote: char) -> Option<String> {
    let mut text = String::new();
    loop {
        match chars.next()? {
            c if c == quote => return Some(text),
            '\\' => match chars.next()? {
                'n' => text.push('\n'),
                'r' => text.push('\r'),
                't' => text.push('\t'),
                'x' => text.push(code(chars, 2)?),
                'u' => text.push(code(chars, 4)?),
                'U' => text.push(code(chars, 8)?),
                c => text.push(c),
            },
            c => text.push(c),
        }
    }
}

fn code(chars: &mut Text, digits: u32) -> Option<char> {
    let mut code = 0u32;
    for _ in 0..digits {
        code = code.checked_mul(16)? + chars.next()?.to_digit(16)?;
    }
    char::from_u32(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_paths() {
        type Row = (&'static str, Option<(&'static str, &'static [&'static str], &'static str)>);
        let rows: &[Row] = &[
            (
                "variables['params']['Dense_0']['kernel']",
                Some(("variables", &["params", "Dense_0", "kernel"], "Dense_0/kernel")),
            ),
            (
                "variables['batch_stats']['BatchNorm_0']['mean']",
                Some(("variables", &["batch_stats", "BatchNorm_0", "mean"], "BatchNorm_0/mean")),
            ),
            (
                "state['layers'][0]['lin']['kernel'].value",
                Some(("state", &["layers", "0", "lin", "kernel"], "layers/0/lin/kernel")),
            ),
            ("model.layers[0].kernel.value", Some(("model", &["layers", "0", "kernel"], "layers/0/kernel"))),
            ("state.params['a']['w']", Some(("state", &["params", "a", "w"], "a/w"))),
            ("params['enc']['w']", Some(("params", &["enc", "w"], "enc/w"))),
            ("params['params']", Some(("params", &["params"], "params"))),
            ("args[0]", Some(("args", &["0"], "0"))),
            ("args[0]['params']['w']", Some(("args", &["0", "params", "w"], "w"))),
            ("args[1][0]['k']", Some(("args", &["1", "0", "k"], "1/0/k"))),
            ("x", Some(("x", &[], ""))),
            ("d.w", Some(("d", &["w"], "w"))),
            ("d.value.w", Some(("d", &["value", "w"], "value/w"))),
            ("p[<flat index 1>]", Some(("p", &["1"], "1"))),
            ("p[3]", Some(("p", &["3"], "3"))),
            (r#"p["a'b"]"#, Some(("p", &["a'b"], "a'b"))),
            (r#"p['a"c']"#, Some(("p", &["a\"c"], "a\"c"))),
            (r#"p['a\'b"c']"#, Some(("p", &["a'b\"c"], "a'b\"c"))),
            ("p['x/y']", Some(("p", &["x/y"], "x/y"))),
            (r"p['new\nl']", Some(("p", &["new\nl"], "new\nl"))),
            (r"p['back\\slash']", Some(("p", &["back\\slash"], "back\\slash"))),
            (r"p['\x1b\u00fc\U0001f600']", Some(("p", &["\u{1b}ü😀"], "\u{1b}ü😀"))),
            ("p['a]b']", Some(("p", &["a]b"], "a]b"))),
            ("p['ü']", Some(("p", &["ü"], "ü"))),
            ("p[('a', [1])]", Some(("p", &["(a, [1])"], "(a, [1])"))),
            ("", None),
            ("jit(f)/Net/Dense_0/dot_general", None),
            ("p['a'", None),
            ("p['a", None),
            ("p['a'x]", None),
            (r"p['\uZZZZ']", None),
            (r"p['\Uffffffff']", None),
            ("p.", None),
            ("['a']", None),
            ("p[3", None),
        ];
        let mut wrong = Vec::new();
        for (text, wanted) in rows {
            let found = KeyPath::parse(text);
            let wanted = wanted.map(|(argument, keys, path)| {
                let keys = keys.iter().map(|&key| key.to_owned()).collect();
                (KeyPath { argument: argument.to_owned(), keys }, Path::new(path))
            });
            if found.clone().map(|found| (found.clone(), found.path())) != wanted {
                wrong.push(format!("{text}: found {found:?}"));
            }
            if let Some(found) = found
                && KeyPath::parse(&found.to_string()).as_ref() != Some(&found)
            {
                wrong.push(format!("{text}: written as {found}, it reads otherwise"));
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn collections() {
        for (text, wanted) in [
            ("variables['params']['a']", Some("params")),
            ("variables['cache']['a']['k']", Some("cache")),
            ("args[0]['batch_stats']['a']", Some("batch_stats")),
            ("params['a']['w']", None),
            ("params['params']", None),
        ] {
            assert_eq!(KeyPath::parse(text).unwrap().collection(), wanted, "{text}");
        }
    }
}
