//! Einsum equations: which operand of a `dot` was the author's first.

use qwix_graph::DotDims;

/// Whether JAX lowered the einsum with its operands exchanged.
///
/// `jnp.einsum` contracts a pair from right to left, and keeps the author's order only when the product then has its
/// axes where the equation wants them. Equations of other than two operands, or that cannot be read, count as kept.
pub fn is_swapped(equation: &str) -> bool {
    let text: String = equation.chars().filter(|c| !c.is_whitespace()).collect();
    let (inputs, output) = match text.split_once("->") {
        Some((inputs, output)) => (inputs, Some(output)),
        None => (text.as_str(), None),
    };
    let Some((lhs, rhs)) = inputs.split_once(',') else { return false };
    if rhs.contains(',') {
        return false;
    }
    let (lhs, rhs) = (names(lhs), names(rhs));
    let output = match output {
        Some(output) => names(output),
        None => implied(&lhs, &rhs),
    };
    let batch = |c: &&char| lhs.contains(c) && rhs.contains(c);
    let free = |own: &[char], other: &[char]| -> Vec<char> {
        own.iter().copied().filter(|c| output.contains(c) && !other.contains(c)).collect()
    };
    let kept: Vec<char> =
        output.iter().filter(batch).copied().chain(free(&lhs, &rhs)).chain(free(&rhs, &lhs)).collect();
    kept != output
}

/// The axes' letters; an ellipsis is one axis named `.`.
fn names(side: &str) -> Vec<char> {
    side.replace("...", ".").chars().collect()
}

/// Without `->` the output has the letters that stand once, sorted; an ellipsis comes first.
fn implied(lhs: &[char], rhs: &[char]) -> Vec<char> {
    let all = || lhs.iter().chain(rhs).copied();
    let mut once: Vec<char> = all().filter(|&c| c != '.' && all().filter(|&d| d == c).count() == 1).collect();
    once.sort_unstable();
    if all().any(|c| c == '.') {
        once.insert(0, '.');
    }
    once
}

/// The axis whose tiles Qwix sets: an einsum's is the last contracted one by position, a dot's the last in its list.
pub fn tiled_axis(dims: &DotDims, left: bool, einsum: bool) -> Option<usize> {
    let contracted = if left { &dims.lhs_contracting } else { &dims.rhs_contracting };
    if einsum { contracted.iter().copied().max() } else { contracted.last().copied() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `jnp.einsum` does with each, as seen in its HLO.
    #[test]
    fn order_of_operands() {
        let failures: Vec<_> = [
            ("bsd,dhk->bshk", false),
            ("bsd, dhk -> bshk", false),
            ("bsd,hdk->bhsk", true),
            ("bhsk,hkf->fbs", true),
            ("fbs,sfg->gb", true),
            ("...b,...o", false),
            ("...qhd,...khd->...hqk", false),
            ("...hqk,...khd->...qhd", true),
            ("te,td->etd", true),
            ("etd,te->td", false),
            ("etd,edf->etf", false),
            ("ij,jk", false),
            ("a", false),
            ("ab,bc,cd->ad", false),
        ]
        .into_iter()
        .filter(|&(equation, swapped)| is_swapped(equation) != swapped)
        .collect();
        assert!(failures.is_empty(), "{failures:?}");
    }
}
