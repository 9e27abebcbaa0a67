//! Which module an op is in, and its number there.
//!
//! JAX writes the scope of each op (`jit(apply)/Net/attn/Dense_0/dot_general`); Linen puts its modules there, NNX does
//! not. What is missing comes from the weights' paths.

use std::collections::BTreeMap;

use qwix_graph::{Path, Scope};

/// What is known of an op before its module is.
pub struct Found<'a> {
    /// Its scope.
    pub scope: Scope,
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
        Some(parent) => !parent.is_root() && is_subsequence(&parent, &op.scope),
        None => false,
    });
    let paths: Vec<Option<Path>> = ops
        .iter()
        .map(|op| match op.weight {
            Some(weight) => Some(weight.parent()),
            None => {
                let path = longest(&known, &op.scope);
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

fn longest(known: &[Path], scope: &Scope) -> Path {
    known.iter().find(|path| is_subsequence(path, scope)).cloned().unwrap_or_default()
}

/// Modules that transforms wrap may stand twice in a scope, and functions of the author's add segments of their own.
fn is_subsequence(path: &Path, scope: &Scope) -> bool {
    // Without Linen, what stands where it writes the root's class may be a module.
    let mut scope = scope.root.iter().chain(&scope.modules);
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
