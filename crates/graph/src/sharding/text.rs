//! Shardings as HLO text: `{replicated}`, `{devices=[2,1]<=[2]}`.

use std::fmt;
use std::str::FromStr;

use super::{Group, Groups, Order, Sharding, Tiling};

impl Group {
    const NAMES: [(Group, &'static str); 4] = [
        (Group::Replicated, "replicated"),
        (Group::Manual, "manual"),
        (Group::Unreduced, "unreduced"),
        (Group::Unknown, "unknown"),
    ];

    fn name(self) -> &'static str {
        Self::NAMES[self as usize].1
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Order::List(devices) => f.write_str(&list(devices)),
            Order::Iota { dims, permutation } => {
                write!(f, "<=[{}]", list(dims))?;
                if permutation.is_sorted() {
                    return Ok(());
                }
                write!(f, "T({})", list(permutation))
            }
        }
    }
}

impl fmt::Display for Tiling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "devices=[{}]{}", list(&self.dims), self.order)?;
        match &self.groups {
            Groups::None => Ok(()),
            Groups::Replicate => f.write_str(" last_tile_dim_replicate"),
            Groups::Each(groups) => {
                let names: Vec<&str> = groups.iter().map(|group| group.name()).collect();
                write!(f, " last_tile_dims={{{}}}", names.join(","))
            }
        }
    }
}

impl fmt::Display for Sharding {
    /// HLO's text: what [`str::parse`] reads.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Sharding::Replicated => f.write_str("{replicated}"),
            Sharding::Maximal(device) => write!(f, "{{maximal device={device}}}"),
            Sharding::Manual => f.write_str("{manual}"),
            Sharding::Unknown => f.write_str("{unknown}"),
            Sharding::Unreduced => f.write_str("{unreduced}"),
            Sharding::Tiled(tiling) => write!(f, "{{{tiling}}}"),
            Sharding::Tuple(elements) => {
                let elements: Vec<String> = elements.iter().map(ToString::to_string).collect();
                write!(f, "{{{}}}", elements.join(", "))
            }
            Sharding::Opaque(text) => write!(f, "{{{text}}}"),
        }
    }
}

impl FromStr for Sharding {
    type Err = String;

    /// Reads HLO's text. A kind that is not known becomes [`Sharding::Opaque`].
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |reason: String| {
            format!(
                "sharding: found `{text}`, expected HLO's text, such as {{replicated}} or {{devices=[2]<=[2]}}{reason}"
            )
        };
        let text = without_notes(text);
        let inner = braced(&text).ok_or_else(|| wrong(String::new()))?;
        if inner.is_empty() || inner.starts_with('{') {
            let elements = elements(inner).ok_or_else(|| wrong(String::new()))?;
            // The elements of nested tuples stand in one row.
            let leaf = |element: &str| match braced(element) {
                Some(inner) if !inner.is_empty() && !inner.starts_with('{') => leaf(inner).map_err(wrong),
                Some(_) | None => Err(wrong(String::new())),
            };
            return Ok(Sharding::Tuple(elements.into_iter().map(leaf).collect::<Result<_, _>>()?));
        }
        leaf(inner).map_err(wrong)
    }
}

fn leaf(inner: &str) -> Result<Sharding, String> {
    let unread = || String::new();
    Ok(match inner {
        "replicated" => Sharding::Replicated,
        "manual" => Sharding::Manual,
        "unknown" => Sharding::Unknown,
        "unreduced" => Sharding::Unreduced,
        _ => {
            if let Some(rest) = inner.strip_prefix("maximal") {
                let device = rest.strip_prefix(" device=").and_then(|device| device.parse().ok());
                Sharding::Maximal(device.ok_or_else(unread)?)
            } else if let Some(rest) = inner.strip_prefix("devices=") {
                let (dims, order, groups) = tiling(rest).ok_or_else(unread)?;
                let tiling = Tiling::checked(dims, order, groups);
                Sharding::Tiled(tiling.map_err(|reason| format!(": {reason}"))?)
            } else {
                Sharding::Opaque(inner.to_owned())
            }
        }
    })
}

fn tiling(text: &str) -> Option<(Vec<usize>, Order, Groups)> {
    let (dims, rest) = text.strip_prefix('[')?.split_once(']')?;
    let mut words = rest.split(' ');
    let devices = words.next()?;
    let order = match devices.strip_prefix("<=[") {
        None => Order::List(numbers(devices)?),
        Some(iota) => {
            let (dims, permutation) = iota.split_once(']')?;
            let dims: Vec<usize> = numbers(dims)?;
            let permutation = match permutation {
                "" => (0..dims.len()).collect(),
                permutation => numbers(permutation.strip_prefix("T(")?.strip_suffix(')')?)?,
            };
            Order::Iota { dims, permutation }
        }
    };
    let mut groups = Groups::None;
    for word in words {
        if groups != Groups::None {
            return None;
        }
        groups = match word.strip_prefix("last_tile_dims={") {
            None if word == "last_tile_dim_replicate" => Groups::Replicate,
            None => return None,
            Some(names) => {
                let group = |name| Group::NAMES.iter().find(|row| row.1 == name).map(|row| row.0);
                Groups::Each(names.strip_suffix('}')?.split(',').map(group).collect::<Option<_>>()?)
            }
        };
    }
    Some((numbers(dims)?, order, groups))
}

/// XLA counts the elements of long tuples: `/*index=5*/`.
fn without_notes(text: &str) -> String {
    let (first, rest) = text.split_once("/*").unwrap_or((text, ""));
    let rest = rest.split("/*").filter_map(|part| part.split_once("*/").map(|(_, after)| after));
    std::iter::once(first).chain(rest).collect()
}

/// What stands between the braces around a text; they are one pair.
fn braced(text: &str) -> Option<&str> {
    let inner = text.trim().strip_prefix('{')?.strip_suffix('}')?;
    elements(inner).map(|_| inner)
}

/// `{..}, {..}` at the outermost braces.
fn elements(text: &str) -> Option<Vec<&str>> {
    let mut found = Vec::new();
    let (mut depth, mut start) = (0usize, 0);
    for (at, c) in text.char_indices() {
        match c {
            '{' => {
                if depth == 0 {
                    start = at;
                }
                depth += 1;
            }
            '}' => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    found.push(&text[start..=at]);
                }
            }
            _ => {}
        }
    }
    (depth == 0).then_some(found)
}

fn list(values: &[usize]) -> String {
    values.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
}

fn numbers(text: &str) -> Option<Vec<usize>> {
    text.split(',').map(|value| value.parse().ok()).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// One text of each kind.
    pub(in super::super) const TEXTS: [&str; 13] = [
        "{replicated}",
        "{manual}",
        "{unknown}",
        "{unreduced}",
        "{maximal device=3}",
        "{devices=[2,1]0,1}",
        "{devices=[2,4]<=[8]}",
        "{devices=[4,2]<=[2,4]T(1,0)}",
        "{devices=[2,1,2]<=[4] last_tile_dim_replicate}",
        "{devices=[2,1,1,2]0,1,2,3 last_tile_dims={manual,replicated}}",
        "{{replicated}, {maximal device=0}, {devices=[2,1,2]<=[4] last_tile_dims={manual}}}",
        "{}",
        "{mesh['a'=2], [{'a'}]}",
    ];

    #[test]
    fn texts_come_back() {
        for text in TEXTS {
            let sharding: Sharding = text.parse().unwrap();
            assert_eq!(sharding.to_string(), text, "{sharding:?}");
            assert_eq!(matches!(sharding, Sharding::Opaque(_)), text.starts_with("{mesh"), "{sharding:?}");
        }
        // As XLA prints long tuples.
        let long: Sharding = "{/*index=0*/{replicated}, /*index=1*/{manual}}".parse().unwrap();
        assert_eq!(long, Sharding::Tuple(vec![Sharding::Replicated, Sharding::Manual]));
    }

    #[test]
    fn other_texts_are_refused() {
        for (text, expected) in [
            ("", "expected HLO's text"),
            ("replicated", "expected HLO's text"),
            ("{maximal}", "expected HLO's text"),
            ("{maximal device=x}", "expected HLO's text"),
            ("{devices=[2}", "expected HLO's text"),
            ("{devices=[2]<=[2]T}", "expected HLO's text"),
            ("{devices=[2]0,1 last}", "expected HLO's text"),
            ("{devices=[2,1]0,1 last_tile_dim_replicate last_tile_dims={manual}}", "expected HLO's text"),
            ("{{replicated}", "expected HLO's text"),
            ("{{{replicated}}}", "expected HLO's text"),
            ("{devices=[]0}", "expected HLO's text"),
            ("{}}", "expected HLO's text"),
            ("{replicated}{", "expected HLO's text"),
            ("{devices=[-1]0}", "expected HLO's text"),
            ("{devices=[99999999999999999999]0}", "expected HLO's text"),
            ("{devices=[0]<=[0]}", "one or more along each axis"),
            ("{devices=[1099511627776]<=[1099511627776]}", "at most 65536"),
            ("{devices=[4294967296,4294967296]0,1}", "at most 65536"),
            ("{devices=[2]<=[4]}", "expected each of 2 once"),
            ("{devices=[2]<=[1099511627776,16777216]}", "expected each of 2 once"),
            ("{devices=[2]0,2}", "expected each of 2 once"),
            ("{devices=[2]1,1}", "expected each of 2 once"),
            ("{devices=[2]0}", "expected each of 2 once"),
            ("{devices=[4]<=[2,2]T(0,0)}", "expected each of 4 once"),
            ("{devices=[4]<=[2,2]T(0)}", "expected each of 4 once"),
            ("{devices=[2]0,1 last_tile_dims={manual,manual}}", "2 groups"),
        ] {
            let error = text.parse::<Sharding>().unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
