//! Which module an op is in, and its number there.
//!
//! JAX writes the scope of each op (`jit(apply)/Net/attn/Dense_0/dot_general`); Linen puts its modules there, NNX does
//! not. What is missing comes from the weights' paths.

use std::collections::BTreeMap;

use qwix_graph::Path;

use super::einsum::is_equation;

/// An op's scope, taken apart.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct OpScope {
    /// The segments that may be modules, the outermost first.
    pub modules: Vec<String>,
    /// The equation, when the op is an einsum's.
    pub equation: Option<String>,
}

impl OpScope {
    /// Takes an `op_name` apart.
    pub fn parse(op_name: &str) -> Self {
        let mut segments = split(op_name);
        // The last one is the primitive.
        segments.pop();
        let mut scope = OpScope::default();
        for segment in segments {
            let Some(name) = unwrap(&segment) else { continue };
            if is_equation(name) {
                scope.equation = Some(name.to_owned());
                continue;
            }
            // A method that is not `__call__` is written behind a dot.
            let name = name.split('.').next().unwrap_or(name);
            if !name.is_empty() {
                scope.modules.push(name.to_owned());
            }
        }
        scope
    }
}

/// Splits at the slashes that stand outside parentheses.
fn split(op_name: &str) -> Vec<String> {
    let mut segments = vec![String::new()];
    let mut depth = 0usize;
    for c in op_name.chars() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if c == '/' && depth == 0 {
            segments.push(String::new());
        } else if let Some(last) = segments.last_mut() {
            last.push(c);
        }
    }
    segments
}

/// What a transform was applied to: `vmap(experts)` → `experts`; nothing for `jit(f)`.
fn unwrap(segment: &str) -> Option<&str> {
    let mut name = segment;
    while let Some((transform, inner)) = name.split_once('(') {
        if !transform.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            break;
        }
        if matches!(transform, "jit" | "pjit" | "xla_call") {
            return None;
        }
        name = inner.strip_suffix(')').unwrap_or(inner);
    }
    Some(name)
}

/// What is known of an op before its module is.
pub struct Found<'a> {
    /// Its scope.
    pub scope: OpScope,
    /// Its name in rules.
    pub op_name: &'static str,
    /// The path of its weight, if it has one.
    pub weight: Option<&'a Path>,
}

/// The module and the op id of each op; the ops come in trace order.
///
/// A module path is the parent of the weight's path; else the longest known module path that is a subsequence of the
/// op's scope; else, for models that write no modules into scopes, what the neighbours that have a weight share.
pub fn module_paths(ops: &[Found<'_>], variables: &[&Path]) -> Vec<(Path, String)> {
    let known = known_modules(variables);
    let scoped = ops.iter().any(|op| match op.weight.map(Path::parent) {
        Some(parent) => !parent.is_root() && is_subsequence(&parent, &op.scope.modules),
        None => false,
    });
    let paths: Vec<Option<Path>> = ops
        .iter()
        .map(|op| match op.weight {
            Some(weight) => Some(weight.parent()),
            None => {
                let path = longest(&known, &op.scope.modules);
                (scoped || !path.is_root()).then_some(path)
            }
        })
        .collect();
    let mut counts: BTreeMap<(Path, &str), usize> = BTreeMap::new();
    (0..ops.len())
        .map(|i| {
            let path = paths[i].clone().unwrap_or_else(|| between(ops, i));
            let count = counts.entry((path.clone(), ops[i].op_name)).or_default();
            let op_id = format!("{}{count}", ops[i].op_name);
            *count += 1;
            (path, op_id)
        })
        .collect()
}

/// Every path that some variable lies under, the deepest first.
fn known_modules(variables: &[&Path]) -> Vec<Path> {
    let mut known: Vec<Path> = vec![];
    for variable in variables {
        let mut path = variable.parent();
        while !path.is_root() {
            let parent = path.parent();
            known.push(path);
            path = parent;
        }
    }
    known.sort_by_key(|p| (std::cmp::Reverse(p.segments().count()), p.clone()));
    known.dedup();
    known
}

fn longest(known: &[Path], scope: &[String]) -> Path {
    known.iter().find(|path| is_subsequence(path, scope)).cloned().unwrap_or_default()
}

fn is_subsequence(path: &Path, scope: &[String]) -> bool {
    let mut scope = scope.iter();
    path.segments().all(|segment| scope.any(|s| s == segment))
}

/// What the nearest ops with weights, before and after, have in common.
fn between(ops: &[Found<'_>], at: usize) -> Path {
    let before = ops[..at].iter().rev().find_map(|op| op.weight);
    let after = ops[at + 1..].iter().find_map(|op| op.weight);
    match (before, after) {
        (Some(a), Some(b)) => {
            let (a, b) = (a.parent(), b.parent());
            let common: Vec<&str> =
                a.segments().zip(b.segments()).take_while(|(a, b)| a == b).map(|(a, _)| a).collect();
            Path::new(&common.join("/"))
        }
        (Some(one), None) | (None, Some(one)) => one.parent().parent(),
        (None, None) => Path::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes() {
        let mut failures = vec![];
        for (op_name, modules, equation) in [
            ("jit(apply)/Net/attn/Dense_0/dot_general", "Net attn Dense_0", None),
            ("jit(f)/dot_general", "", None),
            ("jit(apply)/Moe/te,td->etd/dot_general", "Moe", Some("te,td->etd")),
            ("jit(f)/vmap(BTNH,BSNH->BNTS)/dot_general", "", Some("BTNH,BSNH->BNTS")),
            ("jit(apply)/Vmapped/vmap(experts)/Dense_0/dot_general", "Vmapped experts Dense_0", None),
            ("jit(apply)/Decoder/embedder.attend/dot_general", "Decoder embedder", None),
            ("jit(apply)/N/transpose(jvp(N))/a/dot_general", "N N a", None),
            ("jit(apply)/A/...qhd,...khd->...hqk/dot_general", "A", Some("...qhd,...khd->...hqk")),
            ("dot_general", "", None),
            ("", "", None),
            ("jit(a/b)/c/((/", "c", None),
        ] {
            let found = OpScope::parse(op_name);
            if found.modules.join(" ") != modules || found.equation.as_deref() != equation {
                failures.push(format!("{op_name}: {found:?}"));
            }
        }
        assert!(failures.is_empty(), "{}", failures.join("\n"));
    }
}
