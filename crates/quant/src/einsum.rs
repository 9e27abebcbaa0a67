//! Einsum of two sides as a dot: Qwix's `einsum`.

use qwix_array::{Array, DType};

use crate::runs::Runs;
use crate::{
    DotDims, Granularity, Operand, QArray, QuantError, Side, Tile, accumulator_and_result, dot_general,
};

/// Two operands' subscripts and the result's, one character an axis.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EinsumInfo {
    /// The left operand's.
    pub lhs: Vec<char>,
    /// The right operand's.
    pub rhs: Vec<char>,
    /// The result's.
    pub out: Vec<char>,
}

impl EinsumInfo {
    /// Reads `ab,bc->ac`, with `...` for leading axes that the ranks determine, and without `->` for a result of the
    /// indices that appear once, in alphabetical order after those of `...`.
    ///
    /// # Errors
    /// When there are not two operands, an operand's rank is another, an index repeats within an operand or the
    /// result, or the result names an index that no operand has.
    pub fn parse(subscripts: &str, ranks: (usize, usize)) -> Result<Self, QuantError> {
        let fail = |why: String| QuantError::Invalid(format!("einsum `{subscripts}`: {why}"));
        let text: String = subscripts.chars().filter(|c| !c.is_whitespace()).collect();
        let (inputs, out) = match text.split_once("->") {
            Some((inputs, out)) => (inputs, Some(out)),
            None => (text.as_str(), None),
        };
        let operands: Vec<&str> = inputs.split(',').collect();
        let &[lhs, rhs] = operands.as_slice() else {
            return Err(fail(format!("{} operands; two are supported", operands.len())));
        };
        if let Some(c) =
            text.replace("...", "").chars().find(|c| !c.is_ascii_alphabetic() && !",->".contains(*c))
        {
            return Err(fail(format!("`{c}` is not an index")));
        }
        // Letters for the axes of `...`, aligned at the last of them.
        let hidden = |subs: &str, rank: usize| -> Result<usize, QuantError> {
            let named = subs.replace("...", "").chars().count();
            let dots = subs.matches("...").count();
            match rank.checked_sub(named) {
                Some(hidden) if dots == 1 || (dots == 0 && hidden == 0) => Ok(hidden),
                _ => Err(fail(format!("`{subs}` does not fit an operand of {rank} axes"))),
            }
        };
        let (lhs_hidden, rhs_hidden) = (hidden(lhs, ranks.0)?, hidden(rhs, ranks.1)?);
        let longest = lhs_hidden.max(rhs_hidden);
        let unused: Vec<char> =
            ('a'..='z').chain('A'..='Z').filter(|c| !text.contains(*c)).take(longest).collect();
        if unused.len() < longest {
            return Err(fail("more axes than letters".into()));
        }
        let expand = |subs: &str, count: usize| -> Vec<char> {
            let letters: String = unused[longest - count..].iter().collect();
            subs.replacen("...", &letters, 1).chars().collect()
        };
        let (lhs, rhs) = (expand(lhs, lhs_hidden), expand(rhs, rhs_hidden));
        let out = match out {
            Some(out) => expand(out, longest),
            None => {
                let all: Vec<char> = lhs.iter().chain(&rhs).copied().collect();
                let mut once: Vec<char> = all
                    .iter()
                    .copied()
                    .filter(|c| !unused.contains(c) && all.iter().filter(|d| *d == c).count() == 1)
                    .collect();
                once.sort_unstable();
                unused.iter().copied().chain(once).collect()
            }
        };
        for (name, subs) in [("the left operand", &lhs), ("the right operand", &rhs), ("the result", &out)] {
            if let Some(c) = subs.iter().find(|c| subs.iter().filter(|d| d == c).count() > 1) {
                return Err(fail(format!("index `{c}` repeats in {name}")));
            }
            if let Some(c) = subs.iter().find(|c| !c.is_ascii_alphabetic()) {
                return Err(fail(format!("`{c}` in {name} is not an index")));
            }
        }
        if let Some(c) = out.iter().find(|c| !lhs.contains(c) && !rhs.contains(c)) {
            return Err(fail(format!("index `{c}` of the result is in no operand")));
        }
        Ok(EinsumInfo { lhs, rhs, out })
    }

    /// Whether an index is summed over as a contraction of both operands.
    fn contracts(&self, c: char) -> bool {
        self.lhs.contains(&c) && self.rhs.contains(&c) && !self.out.contains(&c)
    }

    /// Dimension numbers of the dot, batch and contracted indices in alphabetical order.
    pub fn dims(&self) -> DotDims {
        let axes = |subs: &[char], chars: &[char]| -> Vec<usize> {
            chars.iter().filter_map(|c| subs.iter().position(|d| d == c)).collect()
        };
        let mut shared: Vec<char> = self.lhs.iter().copied().filter(|c| self.rhs.contains(c)).collect();
        shared.sort_unstable();
        let (contracted, batch): (Vec<char>, Vec<char>) =
            shared.into_iter().partition(|&c| self.contracts(c));
        DotDims {
            lhs_contracting: axes(&self.lhs, &contracted),
            rhs_contracting: axes(&self.rhs, &contracted),
            lhs_batch: axes(&self.lhs, &batch),
            rhs_batch: axes(&self.rhs, &batch),
            ..DotDims::default()
        }
    }

    /// The permutation from the dot's result to `out`.
    ///
    /// # Errors
    /// When an index of one operand alone is not in the result: a dot does not sum over it.
    pub fn output_permutation(&self) -> Result<Vec<usize>, QuantError> {
        let dims = self.dims();
        let free = |subs: &[char], axes: Vec<usize>| axes.into_iter().map(|a| subs[a]).collect::<Vec<_>>();
        let computed: Vec<char> = dims
            .lhs_batch
            .iter()
            .map(|&a| self.lhs[a])
            .chain(free(&self.lhs, dims.lhs_free(self.lhs.len())))
            .chain(free(&self.rhs, dims.rhs_free(self.rhs.len())))
            .collect();
        if let Some(c) = computed.iter().find(|c| !self.out.contains(c)) {
            return Err(QuantError::Invalid(format!(
                "einsum: index `{c}` of one operand is summed over alone, which a dot cannot do; sum over it before"
            )));
        }
        Ok(self.out.iter().filter_map(|c| computed.iter().position(|d| d == c)).collect())
    }

    /// The same with the operands exchanged.
    fn swapped(&self) -> Self {
        EinsumInfo { lhs: self.rhs.clone(), rhs: self.lhs.clone(), out: self.out.clone() }
    }
}

/// How a side of an einsum is quantized: channelwise on every axis that is not contracted; `tile` tiles the operand's
/// last contracted axis.
///
/// # Errors
/// As [`EinsumInfo::parse`].
pub fn how_to_quantize_einsum(
    subscripts: &str,
    ranks: (usize, usize),
    side: Side,
    tile: Option<Tile>,
) -> Result<Vec<Granularity>, QuantError> {
    let info = EinsumInfo::parse(subscripts, ranks)?;
    let subs = match side {
        Side::Lhs => &info.lhs,
        Side::Rhs => &info.rhs,
    };
    let last = subs.iter().rposition(|&c| info.contracts(c));
    Ok(subs
        .iter()
        .enumerate()
        .map(|(axis, &c)| match tile {
            Some(tile) if last == Some(axis) => Granularity::Tiled(tile),
            _ if info.contracts(c) => Granularity::Shared,
            _ => Granularity::Channelwise,
        })
        .collect())
}

/// An einsum of two sides.
///
/// It is computed as the dot of the second side with the first, which is opt_einsum's order and so Qwix's; the order
/// decides which scale is multiplied first. Axes of one index may differ in size when one divides the other: the
/// smaller one is repeated.
///
/// # Errors
/// As [`EinsumInfo::parse`] and [`dot_general`].
pub fn einsum(
    subscripts: &str,
    lhs: Operand<'_>,
    rhs: Operand<'_>,
    preferred: Option<DType>,
) -> Result<Array, QuantError> {
    let (lhs_info, rhs_info) = (lhs.info(), rhs.info());
    let info = EinsumInfo::parse(subscripts, (lhs_info.shape.len(), rhs_info.shape.len()))?;
    let (_, result) = accumulator_and_result(&lhs_info, &rhs_info, preferred);
    let (lhs_shape, rhs_shape) = common_shapes(&info, &lhs_info.shape, &rhs_info.shape);
    let (lhs, rhs) = (Repeated::new(lhs, &lhs_shape)?, Repeated::new(rhs, &rhs_shape)?);
    let swapped = info.swapped();
    let product = dot_general(rhs.operand(), lhs.operand(), &swapped.dims(), Some(result))?;
    Ok(product.transpose(&swapped.output_permutation()?)?)
}

/// The operands' shapes when each index has one size: the largest that the others divide.
fn common_shapes(info: &EinsumInfo, lhs: &[usize], rhs: &[usize]) -> (Vec<usize>, Vec<usize>) {
    let mut sizes: Vec<(char, usize)> = Vec::new();
    for (&c, &size) in info.lhs.iter().zip(lhs).chain(info.rhs.iter().zip(rhs)) {
        match sizes.iter_mut().find(|known| known.0 == c) {
            None => sizes.push((c, size)),
            Some(known) if known.1 == 1 || (known.1 > 0 && size > known.1 && size % known.1 == 0) => {
                known.1 = size
            }
            Some(_) => {}
        }
    }
    let of = |subs: &[char]| {
        subs.iter().map(|c| sizes.iter().find(|known| known.0 == *c).map_or(1, |known| known.1)).collect()
    };
    (of(&info.lhs), of(&info.rhs))
}

/// A side with its axes repeated where they have to be; a quantized one with all its parts.
enum Repeated<'a> {
    AsIs(Operand<'a>),
    Array(Array),
    QArray(QArray),
}

impl<'a> Repeated<'a> {
    fn new(side: Operand<'a>, shape: &[usize]) -> Result<Self, QuantError> {
        if side.info().shape == shape {
            return Ok(Repeated::AsIs(side));
        }
        Ok(match side {
            Operand::Array(array) => Repeated::Array(repeat(array, shape)?),
            Operand::QArray(array) => Repeated::QArray(QArray::new(
                repeat(array.qvalue(), shape)?,
                repeat(array.scale(), shape)?,
                array.zero_point().map(|z| repeat(z, shape)).transpose()?,
                array.qtype(),
            )?),
        })
    }

    fn operand(&self) -> Operand<'_> {
        match self {
            Repeated::AsIs(side) => *side,
            Repeated::Array(array) => Operand::Array(array),
            Repeated::QArray(array) => Operand::QArray(array),
        }
    }
}

/// Each element as often as its tile of `shape` is large.
fn repeat(array: &Array, shape: &[usize]) -> Result<Array, QuantError> {
    let fail = || {
        QuantError::Invalid(format!("einsum: an operand of shape {:?} does not fit {shape:?}", array.shape()))
    };
    Runs::new(shape, array.shape()).ok_or_else(fail)?;
    let (mut split, mut axes) = (Vec::new(), Vec::new());
    for (&size, &count) in shape.iter().zip(array.shape()) {
        axes.push(split.len());
        split.extend([count, size.checked_div(count).unwrap_or(0)]);
    }
    Ok(array.broadcast_in_dim(&split, &axes)?.reshape(shape)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subscripts_are_read() {
        let mut wrong = Vec::new();
        for (text, ranks, want) in [
            ("ab,bc->ac", (2, 2), "ab,bc->ac"),
            (" ab , bc ", (2, 2), "ab,bc->ac"),
            ("ba,bc", (2, 2), "ba,bc->ac"),
            ("...d,df->...f", (3, 2), "abd,df->abf"),
            ("...d,...df", (3, 3), "abd,bdf->abf"),
            ("i,i->", (1, 1), "i,i->"),
            ("bqhd,bkhd->bhqk", (4, 4), "bqhd,bkhd->bhqk"),
        ] {
            match EinsumInfo::parse(text, ranks) {
                Ok(info) => {
                    let join = |subs: &[char]| subs.iter().collect::<String>();
                    let found = format!("{},{}->{}", join(&info.lhs), join(&info.rhs), join(&info.out));
                    if found != want {
                        wrong.push(format!("{text}: {found}"));
                    }
                }
                Err(error) => wrong.push(format!("{text}: {error}")),
            }
        }
        for (text, ranks) in [
            ("ab", (2, 2)),
            ("ab,bc,cd->ad", (2, 2)),
            ("aa,ab->b", (2, 2)),
            ("ab,bc->aca", (2, 2)),
            ("ab,bc->ad", (2, 2)),
            ("ab,bc->ac", (3, 2)),
            ("ab,b.->a", (2, 2)),
            ("a1,bc->a", (2, 2)),
            ("ab,bc->a-c", (2, 2)),
        ] {
            if let Ok(info) = EinsumInfo::parse(text, ranks) {
                wrong.push(format!("{text}: accepted as {info:?}"));
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn the_result_comes_in_the_order_asked_for() {
        let array = |shape: &[usize]| {
            let values: Vec<i64> = (0..shape.iter().product::<usize>() as i64).map(|i| i % 7 - 3).collect();
            Array::from_i64(DType::F32, shape, &values).unwrap()
        };
        let (x, w) = (array(&[2, 3, 4]), array(&[4, 5, 3]));
        let (xs, ws) = (x.to_f64_vec(), w.to_f64_vec());
        let found = einsum("bsd,dhs->hbs", (&x).into(), (&w).into(), None).unwrap();
        let mut want = Vec::new();
        for h in 0..5 {
            for b in 0..2 {
                for s in 0..3 {
                    want.push((0..4).map(|d| xs[(b * 3 + s) * 4 + d] * ws[(d * 5 + h) * 3 + s]).sum::<f64>());
                }
            }
        }
        assert_eq!(found.shape(), [5, 2, 3]);
        assert_eq!(found.to_f64_vec(), want);
        let summed_alone = einsum("bsd,dhs->hs", (&x).into(), (&w).into(), None).unwrap_err();
        assert!(summed_alone.to_string().contains("`b`"), "{summed_alone}");
        // An axis of size 1 is repeated.
        let one = array(&[1, 3]);
        let found = einsum("ds,dhs->hs", (&one).into(), (&w).into(), None).unwrap();
        assert_eq!(found.shape(), [5, 3]);
    }
}
