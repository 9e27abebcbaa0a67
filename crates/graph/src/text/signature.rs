//! Entries of the signature as named texts: how they stand in `frontend_attributes`, of HLO text and of modules.

use super::attributes::{braces, counts};
use super::parse::array_type;
use super::print::list;
use super::scan::{Fault, Scanner};
use crate::{KeyPath, Parameter, Path, Prep, Role, SliceDim, Slot, StatisticSlot, Type, WeightSlot};

/// Every name that [`attributes`] gives.
pub(crate) const NAMES: [&str; 9] =
    ["path", "role", "ambiguous", "key", "source", "source_type", "prep", "statistics", "part"];

/// What of a parameter its type does not say, as texts by name.
pub(crate) fn attributes(parameter: &Parameter) -> Vec<(&'static str, String)> {
    let role = match parameter.role {
        Role::Variable => "variable",
        Role::Input => "input",
    };
    let mut list = vec![("path", parameter.path.as_str().to_owned()), ("role", role.to_owned())];
    if parameter.ambiguous {
        list.push(("ambiguous", "true".to_owned()));
    }
    if let Some(key_path) = &parameter.key_path {
        let escape = |key: &String| key.replace('\\', "\\\\").replace('/', "\\/");
        let keys: Vec<String> = [&key_path.argument].into_iter().chain(&key_path.keys).map(escape).collect();
        list.push(("key", keys.join("/")));
    }
    match &parameter.slot {
        None => {}
        Some(Slot::Weight(slot)) => {
            list.push(("source", slot.source.as_str().to_owned()));
            list.push(("source_type", slot.source_type.to_string()));
            if !slot.prep.is_empty() {
                let steps: Vec<String> = slot.prep.iter().map(prep_text).collect();
                list.push(("prep", steps.join(" ")));
            }
        }
        Some(Slot::Statistic(slot)) => {
            list.push(("statistics", slot.source.as_str().to_owned()));
            list.push(("part", slot.part.to_string()));
        }
    }
    list
}

/// The parameter of this type that such texts describe; `None` without a `path`.
///
/// # Errors
/// What is wrong with which text.
pub(crate) fn parameter<'t>(
    text: impl Fn(&str) -> Option<&'t str>,
    ty: &Type,
) -> Result<Option<Parameter>, String> {
    let Some(path) = text("path") else { return Ok(None) };
    let role = match text("role") {
        Some("variable") => Role::Variable,
        Some("input") => Role::Input,
        other => {
            return Err(format!(
                "`role` should be variable or input, found `{}`",
                other.unwrap_or("nothing")
            ));
        }
    };
    let statistics = match text("statistics") {
        None => None,
        Some(source) => {
            let part =
                text("part").unwrap_or_default().parse().map_err(|reason| format!("`part`: {reason}"))?;
            Some(Slot::Statistic(StatisticSlot { source: Path::new(source), part }))
        }
    };
    let slot = match (text("source"), ty) {
        (Some(_), _) if statistics.is_some() => {
            return Err("has both a `source` and `statistics`".into());
        }
        (None, _) => statistics,
        (Some(source), Type::QArray(q)) => {
            let source_type = text("source_type").ok_or("`source_type` is missing")?;
            Some(Slot::Weight(WeightSlot {
                source: Path::new(source),
                source_type: read("source_type", source_type, array_type)?,
                prep: text("prep").map_or(Ok(Vec::new()), |steps| read("prep", steps, prep))?,
                how: q.how.clone(),
            }))
        }
        (Some(_), other) => {
            return Err(format!("has a `source`, but its type is {other}"));
        }
    };
    Ok(Some(Parameter {
        path: Path::new(path),
        key_path: text("key").map(key_path),
        role,
        ambiguous: text("ambiguous") == Some("true"),
        ty: ty.clone(),
        slot,
    }))
}

/// A text that must be one thing and no more.
pub(super) fn read<'t, T>(
    what: &str,
    text: &'t str,
    f: impl FnOnce(&mut Scanner<'t>) -> Result<T, Fault>,
) -> Result<T, String> {
    let mut s = Scanner::new(text);
    f(&mut s)
        .and_then(|value| if s.done() { Ok(value) } else { Err(s.expected("its end")) })
        .map_err(|fault| format!("`{what}`: {}", fault.locate(text)))
}

fn prep_text(prep: &Prep) -> String {
    match prep {
        Prep::Reshape(shape) => format!("reshape{}", list(shape)),
        Prep::Transpose(permutation) => format!("transpose{}", list(permutation)),
        Prep::Slice(dims) => {
            let dims: Vec<String> =
                dims.iter().map(|d| format!("{}:{}:{}", d.start, d.limit, d.stride)).collect();
            format!("slice{{{}}}", dims.join(","))
        }
    }
}

/// `argument/key/key`, where `\/` is a slash in a key.
fn key_path(text: &str) -> KeyPath {
    let mut parts = vec![String::new()];
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        let last = parts.len() - 1;
        match c {
            '/' => parts.push(String::new()),
            '\\' => parts[last].extend(chars.next()),
            other => parts[last].push(other),
        }
    }
    let argument = parts.remove(0);
    KeyPath { argument, keys: parts }
}

/// `reshape{2,3} transpose{1,0} slice{0:2:1}`.
fn prep(s: &mut Scanner<'_>) -> Result<Vec<Prep>, Fault> {
    let mut steps = Vec::new();
    while !s.done() {
        let at = s.position();
        steps.push(match s.word() {
            "reshape" => Prep::Reshape(counts(s)?),
            "transpose" => Prep::Transpose(counts(s)?),
            "slice" => Prep::Slice(braces(s, |s| {
                let start = s.count()?;
                s.expect(':')?;
                let limit = s.count()?;
                s.expect(':')?;
                Ok(SliceDim { start, limit, stride: s.count()? })
            })?),
            other => {
                return Err(s.fault_at(at, format!("expected reshape, transpose or slice, found `{other}`")));
            }
        });
    }
    Ok(steps)
}
