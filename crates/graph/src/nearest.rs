//! Did you mean?

/// The candidate most like `name`, if any is like it.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let best = candidates
        .into_iter()
        .map(|candidate| (distance(name, candidate), candidate))
        .min_by_key(|&(distance, _)| distance)?;
    (best.0 <= name.chars().count().max(best.1.chars().count()) / 2).then_some(best.1)
}

/// Insertions, deletions and replacements between two texts.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, &y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_nearest_name() {
        let names = ["module_path", "op_names", "weight_qtype", "act_qtype"];
        for (name, wanted) in [
            ("weight_qtyp", Some("weight_qtype")),
            ("act_dtype", Some("act_qtype")),
            ("modulepath", Some("module_path")),
            ("z", None),
        ] {
            assert_eq!(nearest(name, names), wanted, "{name}");
        }
    }
}
