//! Walking an array beside a smaller one whose entries each serve a tile of it.

/// An array's elements, in order, as runs of `len` that meet the smaller array either in one entry or in `len`
/// consecutive ones. Axes that behave alike are joined, so runs are as long as they can be.
pub(crate) struct Runs {
    /// Sizes and steps in the smaller array, outermost first.
    outer: Vec<(usize, usize)>,
    /// Elements of a run.
    pub len: usize,
    /// Whether each element of a run has an entry of its own.
    pub each: bool,
}

impl Runs {
    /// `None` when the smaller shape does not divide the array's.
    pub fn new(shape: &[usize], part: &[usize]) -> Option<Self> {
        if shape.len() != part.len() {
            return None;
        }
        let steps = qwix_array::strides(part);
        let mut dims: Vec<(usize, usize)> = Vec::new();
        let mut push = |size: usize, step: usize| match dims.last_mut() {
            _ if size == 1 => {}
            Some(last) if last.1 == step * size && (last.1 == 0) == (step == 0) => {
                *last = (last.0 * size, step)
            }
            Some(_) | None => dims.push((size, step)),
        };
        for ((&size, &count), &step) in shape.iter().zip(part).zip(&steps) {
            match count {
                _ if count == size => push(size, step),
                1 => push(size, 0),
                0 => return None,
                _ if size % count == 0 => {
                    push(count, step);
                    push(size / count, 0);
                }
                _ => return None,
            }
        }
        let (len, step) = dims.pop().unwrap_or((1, 0));
        let (len, outer) = if shape.contains(&0) { (0, Vec::new()) } else { (len, dims) };
        Some(Runs { outer, len, each: step != 0 })
    }

    /// Calls with the first element of each run and the first entry that it meets.
    pub fn for_each(&self, mut f: impl FnMut(usize, usize)) {
        if self.len == 0 {
            return;
        }
        let mut index = vec![0; self.outer.len()];
        let (mut start, mut part) = (0, 0);
        'runs: loop {
            f(start, part);
            start += self.len;
            for (i, &(size, step)) in index.iter_mut().zip(&self.outer).rev() {
                *i += 1;
                part += step;
                if *i < size {
                    continue 'runs;
                }
                part -= step * size;
                *i = 0;
            }
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use qwix_array::strides;

    #[test]
    fn every_element_meets_its_tile() {
        let mut wrong = Vec::new();
        for (shape, part) in [
            (vec![], vec![]),
            (vec![7], vec![1]),
            (vec![7], vec![7]),
            (vec![6, 4], vec![1, 4]),
            (vec![6, 4], vec![6, 1]),
            (vec![6, 4], vec![6, 4]),
            (vec![6, 4], vec![3, 2]),
            (vec![6, 4], vec![3, 4]),
            (vec![2, 3, 4, 5], vec![2, 1, 1, 5]),
            (vec![2, 6, 4, 5], vec![1, 3, 4, 1]),
            (vec![1, 6, 1, 5], vec![1, 3, 1, 1]),
            (vec![3, 0, 2], vec![3, 1, 2]),
            (vec![3, 0, 2], vec![3, 0, 2]),
        ] {
            let (s, p) = (strides(&shape), strides(&part));
            let total: usize = shape.iter().product();
            let want: Vec<usize> = (0..total)
                .map(|flat| {
                    (0..shape.len()).map(|a| flat / s[a] % shape[a] / (shape[a] / part[a]) * p[a]).sum()
                })
                .collect();
            let runs = Runs::new(&shape, &part).unwrap();
            let mut found = vec![usize::MAX; total];
            runs.for_each(|start, entry| {
                for i in 0..runs.len {
                    found[start + i] = if runs.each { entry + i } else { entry };
                }
            });
            if found != want {
                wrong.push(format!("{shape:?} by {part:?}: {found:?}"));
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
        assert!(Runs::new(&[4], &[3]).is_none());
        assert!(Runs::new(&[4], &[2, 2]).is_none());
    }
}
