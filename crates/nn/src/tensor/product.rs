//! Products: dot, matmul, einsum.

use qwix_array::DType;
use qwix_graph::{ConvDims, DotDims, Op, Type};

use super::{Operand, Tensor};
use crate::Result;

/// The product of two tensors over any axes; both take their common dtype. JAX's `lax.dot_general`.
pub fn dot_general(lhs: &Tensor, rhs: &Tensor, dims: &DotDims) -> Tensor {
    lhs.then(|_| {
        let (lhs, rhs) = lhs.promoted("dot_general", &Operand::Tensor(rhs.clone()))?;
        let dtype = lhs.dtype()?;
        lhs.emit(Op::Dot(dims.clone()), &[&lhs, &rhs], Type::array(dtype, []))
    })
}

impl Tensor {
    /// The last axis of this with the last but one of `other` (its only one, when it has one). JAX's `dot`.
    pub fn dot(&self, other: &Tensor) -> Tensor {
        self.then(|ty| {
            let of = other.array_type()?;
            if ty.shape.is_empty() || of.shape.is_empty() {
                return (self * other).ok();
            }
            let dims = DotDims {
                lhs_contracting: vec![ty.shape.len() - 1],
                rhs_contracting: vec![of.shape.len().saturating_sub(2)],
                ..DotDims::default()
            };
            dot_general(self, other, &dims).ok()
        })
    }

    /// Matrices (the last two axes) multiplied, the axes before them broadcast; a vector counts as a row on the left and
    /// as a column on the right, and its axis goes. JAX's `matmul`.
    pub fn matmul(&self, other: &Tensor) -> Tensor {
        self.then(|_| matmul(self, other))
    }

    /// Einstein's sum of this and `other`: `bsd,dhk->bshk`, with `...` for axes without a letter. JAX's `einsum`,
    /// with its order of operands and its equation in the ops' names, so that rules for `einsum` find it.
    pub fn einsum(&self, equation: &str, other: &Tensor) -> Tensor {
        self.tracer.inside(equation, || self.then(|_| einsum(equation, self, other)))
    }

    pub(crate) fn convolution(&self, kernel: &Tensor, dims: &ConvDims) -> Tensor {
        self.then(|ty| self.emit(Op::Convolution(dims.clone()), &[self, kernel], Type::array(ty.dtype, [])))
    }
}

fn matmul(lhs: &Tensor, rhs: &Tensor) -> Result<Tensor> {
    let (a, b) = (lhs.shape()?, rhs.shape()?);
    let matrices = [a.len() > 1, b.len() > 1];
    let batch = |shape: &[usize]| shape.len().saturating_sub(2);
    let count = batch(&a).max(batch(&b));
    let wrong = || {
        let reason = format!("matrices of shapes {a:?} and {b:?} do not fit each other");
        lhs.tracer.op_error("matmul", reason)
    };
    if a.is_empty() || b.is_empty() {
        return Err(wrong());
    }
    // Each axis of the result by its place in it. An axis of size 1 that the other side has longer (or not at all) is
    // none of the product's: the other side's axis stays free.
    let side = |shape: &[usize], i: usize| {
        let missing = count - batch(shape);
        (i >= missing).then(|| shape[i - missing])
    };
    let (mut places, mut a_places, mut b_places) = (vec![], vec![], vec![]);
    let (mut a_sizes, mut b_sizes) = (vec![], vec![]);
    let (mut lhs_batch, mut rhs_batch, mut ones) = (vec![], vec![], vec![]);
    for i in 0..count {
        match (side(&a, i), side(&b, i)) {
            (Some(1), Some(1)) => ones.push(i),
            (Some(x), None | Some(1)) => {
                a_places.push(i);
                a_sizes.push(x);
            }
            (None | Some(1), Some(y)) => {
                b_places.push(i);
                b_sizes.push(y);
            }
            (Some(x), Some(y)) if x == y => {
                lhs_batch.push(a_sizes.len());
                rhs_batch.push(b_sizes.len());
                places.push(i);
                a_sizes.push(x);
                b_sizes.push(y);
            }
            (Some(_), Some(_)) | (None, None) => return Err(wrong()),
        }
    }
    a_sizes.extend(&a[batch(&a)..]);
    b_sizes.extend(&b[batch(&b)..]);
    if matrices[0] {
        a_places.push(count);
    }
    if matrices[1] {
        b_places.push(count + usize::from(matrices[0]));
    }
    let dims = DotDims {
        lhs_contracting: vec![a_sizes.len() - 1],
        rhs_contracting: vec![b_sizes.len() - 1 - usize::from(matrices[1])],
        lhs_batch,
        rhs_batch,
        ..DotDims::default()
    };
    let product = dot_general(&lhs.reshape(&a_sizes), &rhs.reshape(&b_sizes), &dims);
    places.extend(a_places.into_iter().chain(b_places));
    let mut permutation: Vec<isize> = (0..places.len() as isize).collect();
    permutation.sort_by_key(|&i| places[i as usize]);
    let product = product.transpose(&permutation);
    ones.into_iter().fold(product, |product, at| product.expand_dims(at as isize)).ok()
}

/// A tensor and the letters of its axes.
struct Named {
    tensor: Tensor,
    names: Vec<char>,
}

impl Named {
    fn without(self, axes: &[char]) -> Result<Named> {
        if axes.is_empty() {
            return Ok(self);
        }
        let at: Vec<isize> =
            (0..self.names.len()).filter(|&i| axes.contains(&self.names[i])).map(|i| i as isize).collect();
        let names = self.names.into_iter().filter(|c| !axes.contains(c)).collect();
        Ok(Named { tensor: self.tensor.sum(&at).ok()?, names })
    }

    /// Without the axes of size 1 that are longer on the other side.
    fn squeezed(self, other: &Named) -> Result<Named> {
        let (shape, other_shape) = (self.tensor.shape()?, other.tensor.shape()?);
        let goes = |i: usize| {
            let there = other.names.iter().position(|&c| c == self.names[i]);
            shape[i] == 1 && there.is_some_and(|j| other_shape[j] != 1)
        };
        let kept: Vec<usize> = (0..shape.len()).filter(|&i| !goes(i)).collect();
        let sizes: Vec<usize> = kept.iter().map(|&i| shape[i]).collect();
        let names = kept.iter().map(|&i| self.names[i]).collect();
        Ok(Named { tensor: self.tensor.reshape(&sizes).ok()?, names })
    }

    fn positions(&self, names: &[char]) -> Vec<usize> {
        names.iter().filter_map(|c| self.names.iter().position(|d| d == c)).collect()
    }
}

fn einsum(equation: &str, lhs: &Tensor, rhs: &Tensor) -> Result<Tensor> {
    let (lhs, rhs) = lhs.promoted("einsum", &Operand::Tensor(rhs.clone()))?;
    let [first, second, out] = letters(equation, lhs.rank()?, rhs.rank()?)
        .map_err(|why| lhs.tracer.op_error("einsum", format!("`{equation}`: {why}")))?;
    let first = Named { tensor: lhs.clone(), names: first };
    let second = Named { tensor: rhs, names: second };
    // An axis of size 1 goes with any size of the other side's.
    let shorter = Named { tensor: first.tensor.clone(), names: first.names.clone() }.squeezed(&second)?;
    let second = second.squeezed(&first)?;
    let first = shorter;
    let alone = |of: &Named, other: &Named| -> Vec<char> {
        of.names.iter().copied().filter(|c| !other.names.contains(c) && !out.contains(c)).collect()
    };
    let (first_alone, second_alone) = (alone(&first, &second), alone(&second, &first));
    let (first, second) = (first.without(&first_alone)?, second.without(&second_alone)?);

    let batch: Vec<char> =
        out.iter().copied().filter(|c| first.names.contains(c) && second.names.contains(c)).collect();
    let mut contracted: Vec<char> =
        first.names.iter().copied().filter(|c| second.names.contains(c) && !out.contains(c)).collect();
    contracted.sort_unstable();
    let free = |of: &Named| -> Vec<char> {
        of.names.iter().copied().filter(|c| !batch.contains(c) && !contracted.contains(c)).collect()
    };
    // The author's order is kept when the product then has its axes where they are wanted; otherwise JAX contracts
    // from right to left.
    let kept = [batch.clone(), free(&first), free(&second)].concat();
    let (left, right, names) = if kept == out {
        (&first, &second, kept)
    } else {
        (&second, &first, [batch.clone(), free(&second), free(&first)].concat())
    };
    let dims = DotDims {
        lhs_contracting: left.positions(&contracted),
        rhs_contracting: right.positions(&contracted),
        lhs_batch: left.positions(&batch),
        rhs_batch: right.positions(&batch),
        ..DotDims::default()
    };
    let product = dot_general(&left.tensor, &right.tensor, &dims);
    let permutation: Vec<isize> =
        out.iter().filter_map(|c| names.iter().position(|d| d == c)).map(|i| i as isize).collect();
    product.transpose(&permutation).ok()
}

/// The letters of both operands' axes and of the result's, `...` written out with letters of its own.
pub(crate) fn letters(
    equation: &str,
    lhs_rank: usize,
    rhs_rank: usize,
) -> std::result::Result<[Vec<char>; 3], String> {
    let text: String = equation.chars().filter(|c| !c.is_whitespace()).collect();
    let (inputs, out) = match text.split_once("->") {
        Some((inputs, out)) => (inputs, Some(out)),
        None => (text.as_str(), None),
    };
    let operands: Vec<&str> = inputs.split(',').collect();
    let &[lhs, rhs] = operands.as_slice() else {
        return Err(format!("has {} operands; contract two at a time", operands.len()));
    };
    let stray = text.replace("...", "").chars().find(|c| !c.is_ascii_alphabetic() && !",->".contains(*c));
    if let Some(c) = stray {
        return Err(format!("`{c}` is no letter"));
    }
    let hidden = |side: &str, rank: usize| {
        let named = side.replace("...", "").chars().count();
        let dots = side.matches("...").count();
        rank.checked_sub(named)
            .filter(|&hidden| dots == 1 || (dots == 0 && hidden == 0))
            .ok_or_else(|| format!("`{side}` does not fit a tensor of {rank} axes"))
    };
    let (lhs_hidden, rhs_hidden) = (hidden(lhs, lhs_rank)?, hidden(rhs, rhs_rank)?);
    let most = lhs_hidden.max(rhs_hidden);
    let unused: Vec<char> = ('A'..='Z').chain('a'..='z').filter(|c| !text.contains(*c)).take(most).collect();
    if unused.len() < most {
        return Err("has more axes than there are letters".to_owned());
    }
    let expand = |side: &str, count: usize| -> Vec<char> {
        let dots: String = unused[most - count..].iter().collect();
        side.replacen("...", &dots, 1).chars().collect()
    };
    let (lhs, rhs) = (expand(lhs, lhs_hidden), expand(rhs, rhs_hidden));
    let out = match out {
        Some(out) if out.contains("...") || most == 0 => expand(out, most),
        Some(out) => return Err(format!("the result `{out}` has no `...`, the operands have")),
        None => {
            let all = || lhs.iter().chain(&rhs).copied();
            let mut once: Vec<char> =
                all().filter(|c| !unused.contains(c) && all().filter(|d| d == c).count() == 1).collect();
            once.sort_unstable();
            unused.iter().copied().chain(once).collect()
        }
    };
    for (side, names) in [("the left operand", &lhs), ("the right operand", &rhs), ("the result", &out)] {
        if let Some(c) = names.iter().find(|c| names.iter().filter(|d| d == c).count() > 1) {
            return Err(format!("`{c}` stands twice in {side}"));
        }
    }
    match out.iter().find(|c| !lhs.contains(c) && !rhs.contains(c)) {
        Some(c) => Err(format!("`{c}` of the result is in no operand")),
        None => Ok([lhs, rhs, out]),
    }
}

/// The dtype that a layer computes in: the one given, else the common one of what it computes with.
pub(crate) fn computed_in(dtype: Option<DType>, tensors: &[&Tensor]) -> Result<DType> {
    let mut common: Option<DType> = None;
    let place = |tensor: &Tensor, reason: String| tensor.tracer.op_error("promote_dtype", reason);
    for tensor in tensors {
        let ty = tensor.array_type()?;
        common = Some(match common {
            None => ty.dtype,
            Some(before) => crate::promote_types(before, ty.dtype)
                .ok_or_else(|| place(tensor, format!("{before} and {ty} have no common dtype")))?,
        });
    }
    let common = dtype.or(common).unwrap_or(DType::F32);
    // What is computed with is never an integer.
    let inferred = if dtype.is_none() && !common.is_float() { DType::F32 } else { common };
    match tensors.first() {
        Some(tensor) if !inferred.is_float() => {
            Err(place(tensor, format!("the dtype of a layer should be a float, found {inferred}")))
        }
        _ => Ok(inferred),
    }
}
