//! Moving elements about: transposed, broadcast, sliced, reversed, joined.

use crate::array::byte_len;
use crate::{Array, ArrayError, strides};

impl Array {
    /// The axes in another order: axis `i` of the result is axis `permutation[i]` of this array.
    ///
    /// # Errors
    /// When `permutation` does not name each axis once.
    pub fn transpose(&self, permutation: &[usize]) -> Result<Array, ArrayError> {
        let mut seen = vec![false; self.rank()];
        let valid = permutation.len() == self.rank()
            && permutation.iter().all(|&a| seen.get_mut(a).is_some_and(|s| !std::mem::replace(s, true)));
        if !valid {
            return Err(self.invalid("transpose", format!("{permutation:?} does not name each axis once")));
        }
        let from = strides(self.shape());
        let shape: Vec<usize> = permutation.iter().map(|&a| self.shape()[a]).collect();
        let steps: Vec<isize> = permutation.iter().map(|&a| from[a] as isize).collect();
        self.gather(&shape, &steps, 0)
    }

    /// Repeats elements: axis `i` of this array becomes axis `axes[i]` of the result, whose size is the same unless
    /// this array's is 1.
    ///
    /// # Errors
    /// When the axes are not this array's rank in number, repeat, or sizes do not fit.
    pub fn broadcast_in_dim(&self, shape: &[usize], axes: &[usize]) -> Result<Array, ArrayError> {
        let mut seen = vec![false; shape.len()];
        let valid = axes.len() == self.rank()
            && axes.iter().zip(self.shape()).all(|(&a, &size)| {
                seen.get_mut(a).is_some_and(|s| !std::mem::replace(s, true))
                    && (size == shape[a] || size == 1)
            });
        if !valid {
            return Err(self.invalid("broadcast", format!("into {shape:?} along {axes:?}")));
        }
        let from = strides(self.shape());
        let mut steps = vec![0; shape.len()];
        for (i, &a) in axes.iter().enumerate() {
            if self.shape()[i] != 1 {
                steps[a] = from[i] as isize;
            }
        }
        self.gather(shape, &steps, 0)
    }

    /// The elements from `start` to before `limit` of each axis, every `stride`-th.
    ///
    /// # Errors
    /// When the lists have not an entry an axis, a stride is 0, or a limit is beyond its axis or before its start.
    pub fn slice(&self, start: &[usize], limit: &[usize], stride: &[usize]) -> Result<Array, ArrayError> {
        let rank = self.rank();
        let valid = [start.len(), limit.len(), stride.len()] == [rank; 3]
            && (0..rank).all(|a| start[a] <= limit[a] && limit[a] <= self.shape()[a] && stride[a] > 0);
        if !valid {
            return Err(self.invalid("slice", format!("from {start:?} to {limit:?} by {stride:?}")));
        }
        let from = strides(self.shape());
        let shape: Vec<usize> = (0..rank).map(|a| (limit[a] - start[a]).div_ceil(stride[a])).collect();
        // A stride beyond the axis is never taken; saturating keeps the arithmetic in range.
        let steps: Vec<isize> = (0..rank).map(|a| from[a].saturating_mul(stride[a]) as isize).collect();
        let offset = (0..rank).map(|a| start[a] * from[a]).sum();
        self.gather(&shape, &steps, offset)
    }

    /// The elements of some axes in reverse order.
    ///
    /// # Errors
    /// When there is no such axis.
    pub fn reverse(&self, axes: &[usize]) -> Result<Array, ArrayError> {
        if axes.iter().any(|&a| a >= self.rank()) {
            return Err(self.invalid("reverse", format!("along {axes:?}")));
        }
        let mut steps: Vec<isize> = strides(self.shape()).into_iter().map(|s| s as isize).collect();
        let mut offset = 0;
        for (a, step) in steps.iter_mut().enumerate() {
            if axes.contains(&a) {
                offset += self.shape()[a].saturating_sub(1) * *step as usize;
                *step = -*step;
            }
        }
        self.gather(self.shape(), &steps, offset)
    }

    /// Arrays one after another along an axis.
    ///
    /// # Errors
    /// When there is none, or dtypes or the sizes of other axes differ.
    pub fn concatenate(arrays: &[Array], axis: usize) -> Result<Array, ArrayError> {
        let Some(first) = arrays.first() else {
            return Err(ArrayError::Layout {
                what: "concatenate",
                shape: Vec::new(),
                why: "nothing given".into(),
            });
        };
        if axis >= first.rank() {
            return Err(first.invalid("concatenate", format!("along axis {axis}")));
        }
        let mut shape = first.shape().to_vec();
        shape[axis] = 0;
        for array in arrays {
            let fits = array.dtype() == first.dtype()
                && array.rank() == first.rank()
                && (0..first.rank()).all(|a| a == axis || array.shape()[a] == first.shape()[a]);
            if !fits {
                return Err(first.invalid("concatenate", format!("with {array:?} along axis {axis}")));
            }
            shape[axis] = shape[axis].saturating_add(array.shape()[axis]);
        }
        byte_len(first.dtype(), &shape)?;
        let outer: usize = shape[..axis].iter().product();
        let rows: Vec<usize> = arrays.iter().map(|a| a.shape()[axis..].iter().product()).collect();
        if first.dtype().is_packed() {
            let parts = arrays.iter().map(Array::unpack_u8).collect::<Result<Vec<_>, _>>()?;
            let parts: Vec<&[u8]> = parts.iter().map(AsRef::as_ref).collect();
            return Array::pack(first.dtype(), &shape, &interleave(&parts, &rows, outer, 1));
        }
        let parts: Vec<&[u8]> = arrays.iter().map(Array::bytes).collect();
        Array::from_bytes(first.dtype(), &shape, interleave(&parts, &rows, outer, first.dtype().bits() / 8))
    }

    /// The array of `shape` whose element at index `i` is this one's at `offset + Σ i·steps`, in elements.
    /// The caller has made sure that all of them are inside.
    fn gather(&self, shape: &[usize], steps: &[isize], offset: usize) -> Result<Array, ArrayError> {
        byte_len(self.dtype(), shape)?;
        let walk = Walk::new(shape, steps, offset);
        if self.dtype().is_packed() {
            let codes = walk.copy::<1>(self.unpack_u8()?.as_chunks().0);
            return Array::pack(self.dtype(), shape, codes.as_flattened());
        }
        let bytes = self.bytes();
        let out = match self.dtype().bits() / 8 {
            1 => walk.copy::<1>(bytes.as_chunks().0).into_flattened(),
            2 => walk.copy::<2>(bytes.as_chunks().0).into_flattened(),
            4 => walk.copy::<4>(bytes.as_chunks().0).into_flattened(),
            _ => walk.copy::<8>(bytes.as_chunks().0).into_flattened(),
        };
        Array::from_bytes(self.dtype(), shape, out)
    }

    fn invalid(&self, what: &'static str, why: String) -> ArrayError {
        ArrayError::Layout { what, shape: self.shape().to_vec(), why }
    }
}

/// Rows of several parts in turn; a row of part `i` is `rows[i]` elements of `size` bytes.
fn interleave(parts: &[&[u8]], rows: &[usize], outer: usize, size: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(parts.iter().map(|p| p.len()).sum());
    for o in 0..outer {
        for (part, row) in parts.iter().zip(rows) {
            out.extend_from_slice(&part[o * row * size..(o + 1) * row * size]);
        }
    }
    out
}

/// A walk through an array in the order of the result.
struct Walk {
    shape: Vec<usize>,
    steps: Vec<isize>,
    offset: usize,
}

/// Edge of the squares in which a transpose is copied, so that both sides stay in cache.
const BLOCK: usize = 16;

impl Walk {
    /// Drops axes of size 1 and joins axes that are walked as one.
    fn new(shape: &[usize], steps: &[isize], offset: usize) -> Self {
        let mut walk = Walk { shape: Vec::new(), steps: Vec::new(), offset };
        if shape.contains(&0) {
            walk.shape.push(0);
            walk.steps.push(1);
            return walk;
        }
        for (&size, &step) in shape.iter().zip(steps) {
            if size == 1 {
                continue;
            }
            if let (Some(last), Some(last_step)) = (walk.shape.last_mut(), walk.steps.last_mut())
                && *last_step == step * size as isize
            {
                *last *= size;
                *last_step = step;
            } else {
                walk.shape.push(size);
                walk.steps.push(step);
            }
        }
        if walk.shape.is_empty() {
            walk.shape.push(1);
            walk.steps.push(1);
        }
        walk
    }

    fn copy<const N: usize>(&self, from: &[[u8; N]]) -> Vec<[u8; N]> {
        let rank = self.shape.len();
        let total: usize = self.shape.iter().product();
        let mut out = Vec::with_capacity(total);
        if total == 0 {
            return out;
        }
        let (inner, step) = (self.shape[rank - 1], self.steps[rank - 1]);
        // The axis that is contiguous in the source, if it is not the result's last one.
        if step != 1
            && step != 0
            && let Some(fast) = (0..rank - 1).find(|&a| self.steps[a] == 1)
        {
            out.resize(total, [0; N]);
            self.copy_blocked(from, &mut out, fast);
            return out;
        }
        self.for_each_row(rank - 1, |at| match step {
            1 => out.extend_from_slice(&from[at..at + inner]),
            0 => out.extend(std::iter::repeat_n(from[at], inner)),
            _ => out.extend((0..inner).map(|i| from[(at as isize + i as isize * step) as usize])),
        });
        out
    }

    /// A transpose of axis `fast` (contiguous in the source) and the last one (contiguous in the result), by squares.
    fn copy_blocked<const N: usize>(&self, from: &[[u8; N]], out: &mut [[u8; N]], fast: usize) {
        let rank = self.shape.len();
        let last = rank - 1;
        let to = strides(&self.shape);
        let others: Vec<usize> = (0..rank).filter(|&a| a != fast && a != last).collect();
        let rest = Walk {
            shape: others.iter().map(|&a| self.shape[a]).collect(),
            steps: others.iter().map(|&a| self.steps[a]).collect(),
            offset: self.offset,
        };
        let rest_to = Walk {
            shape: rest.shape.clone(),
            steps: others.iter().map(|&a| to[a] as isize).collect(),
            offset: 0,
        };
        let mut bases = Vec::new();
        rest_to.for_each_row(others.len(), |at| bases.push(at));
        let mut base = bases.into_iter();
        rest.for_each_row(others.len(), |at| {
            let Some(base) = base.next() else { return };
            for i0 in (0..self.shape[fast]).step_by(BLOCK) {
                let i1 = (i0 + BLOCK).min(self.shape[fast]);
                for j0 in (0..self.shape[last]).step_by(BLOCK) {
                    let j1 = (j0 + BLOCK).min(self.shape[last]);
                    for i in i0..i1 {
                        let row = &mut out[base + i * to[fast]..][j0..j1];
                        for (j, value) in (j0..j1).zip(row) {
                            *value =
                                from[(at as isize + i as isize + j as isize * self.steps[last]) as usize];
                        }
                    }
                }
            }
        });
    }

    /// Calls with the source position of each index over the first `axes` axes, in order.
    fn for_each_row(&self, axes: usize, mut f: impl FnMut(usize)) {
        let mut index = vec![0; axes];
        let mut at = self.offset as isize;
        'rows: loop {
            f(at as usize);
            for a in (0..axes).rev() {
                index[a] += 1;
                at += self.steps[a];
                if index[a] < self.shape[a] {
                    continue 'rows;
                }
                at -= self.steps[a] * self.shape[a] as isize;
                index[a] = 0;
            }
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;

    fn iota(dtype: DType, shape: &[usize]) -> Array {
        let values: Vec<i64> = (0..shape.iter().product::<usize>() as i64).collect();
        Array::from_i64(dtype, shape, &values).unwrap()
    }

    /// Element by element, index by index.
    fn reference(array: &Array, shape: &[usize], at: impl Fn(&[usize]) -> Vec<usize>) -> Vec<i64> {
        let values = array.to_i64_vec();
        let from = strides(array.shape());
        let to = strides(shape);
        (0..shape.iter().product())
            .map(|flat| {
                let index: Vec<usize> = shape.iter().zip(&to).map(|(&d, &s)| flat / s % d.max(1)).collect();
                values[at(&index).iter().zip(&from).map(|(i, s)| i * s).sum::<usize>()]
            })
            .collect()
    }

    #[test]
    fn every_dtype_moves_as_the_reference() {
        let mut wrong = Vec::new();
        for dtype in DType::all() {
            for shape in [vec![3, 5, 7], vec![1, 4, 1], vec![2, 0, 3], vec![17, 33, 2], vec![6, 6, 6]] {
                let x = iota(dtype, &shape);
                for p in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
                    let found = x.transpose(&p).unwrap();
                    let want = reference(&x, found.shape(), |i| {
                        let mut at = vec![0; 3];
                        (0..3).for_each(|a| at[p[a]] = i[a]);
                        at
                    });
                    if found.to_i64_vec() != want {
                        wrong.push(format!("{dtype} {shape:?} transpose {p:?}"));
                    }
                }
                let limit: Vec<usize> = shape.iter().map(|&d| d - d / 3).collect();
                let start: Vec<usize> = limit.iter().map(|&d| d / 2).collect();
                let found = x.slice(&start, &limit, &[1, 2, 3]).unwrap();
                let want =
                    reference(&x, found.shape(), |i| (0..3).map(|a| start[a] + i[a] * (a + 1)).collect());
                if found.to_i64_vec() != want {
                    wrong.push(format!("{dtype} {shape:?} slice"));
                }
                let found = x.reverse(&[0, 2]).unwrap();
                let want = reference(&x, &shape, |i| vec![shape[0] - 1 - i[0], i[1], shape[2] - 1 - i[2]]);
                if found.to_i64_vec() != want {
                    wrong.push(format!("{dtype} {shape:?} reverse"));
                }
                let out = [shape[1], 2, shape[0], shape[2]];
                let found = x.broadcast_in_dim(&out, &[2, 0, 3]).unwrap();
                if found.to_i64_vec() != reference(&x, &out, |i| vec![i[2], i[0], i[3]]) {
                    wrong.push(format!("{dtype} {shape:?} broadcast"));
                }
                for axis in 0..3 {
                    let joined = Array::concatenate(&[x.clone(), x.clone()], axis).unwrap();
                    let want = reference(&x, joined.shape(), |i| {
                        let mut at = i.to_vec();
                        at[axis] %= shape[axis].max(1);
                        at
                    });
                    if joined.to_i64_vec() != want {
                        wrong.push(format!("{dtype} {shape:?} concatenate {axis}"));
                    }
                }
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn size_one_axes_are_repeated() {
        let x = Array::from_i64(DType::S4, &[1, 3], &[1, 2, 3]).unwrap();
        let found = x.broadcast_in_dim(&[2, 3], &[0, 1]).unwrap();
        assert_eq!(found.to_i64_vec(), [1, 2, 3, 1, 2, 3]);
    }

    #[test]
    fn nonsense_is_refused() {
        let x = iota(DType::F32, &[2, 3]);
        let failures = [
            x.transpose(&[0]),
            x.transpose(&[0, 0]),
            x.transpose(&[0, 2]),
            x.broadcast_in_dim(&[2, 4], &[0, 1]),
            x.broadcast_in_dim(&[2, 3], &[0, 0]),
            x.slice(&[0, 0], &[2, 4], &[1, 1]),
            x.slice(&[2, 0], &[1, 3], &[1, 1]),
            x.slice(&[0, 0], &[2, 3], &[0, 1]),
            x.reverse(&[2]),
            Array::concatenate(&[], 0),
            Array::concatenate(&[x.clone(), iota(DType::F32, &[3, 2])], 0),
            Array::concatenate(std::slice::from_ref(&x), 2),
        ];
        let accepted: Vec<_> = failures.iter().enumerate().filter(|f| f.1.is_ok()).collect();
        assert!(accepted.is_empty(), "{accepted:?}");
    }
}
