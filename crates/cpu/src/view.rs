//! Another way to walk an array's elements: a shape with strides, in elements.

use qwix_array::strides;
use qwix_graph::SliceDim;

/// Elements `offset + Σ index · stride` of a buffer, in row-major order of the indices.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct View {
    pub(crate) offset: usize,
    /// Size and stride of each axis.
    pub(crate) axes: Vec<(usize, isize)>,
}

impl View {
    /// The whole of a row-major array.
    pub(crate) fn dense(shape: &[usize]) -> Self {
        View {
            offset: 0,
            axes: shape.iter().zip(strides(shape)).map(|(&size, stride)| (size, stride as isize)).collect(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.axes.iter().map(|a| a.0).product()
    }

    /// HLO's transpose.
    pub(crate) fn transpose(&self, permutation: &[usize]) -> Option<Self> {
        let axes = permutation.iter().map(|&p| self.axes.get(p).copied()).collect::<Option<_>>()?;
        Some(View { offset: self.offset, axes })
    }

    /// HLO's broadcast: axis i becomes axis `dimensions[i]` of `shape`.
    pub(crate) fn broadcast(&self, shape: &[usize], dimensions: &[usize]) -> Option<Self> {
        let mut axes: Vec<(usize, isize)> = shape.iter().map(|&size| (size, 0)).collect();
        for (&to, &(size, stride)) in dimensions.iter().zip(&self.axes) {
            let axis = axes.get_mut(to)?;
            // An axis of size 1 may be stretched.
            axis.1 = if size == axis.0 { stride } else { 0 };
        }
        Some(View { offset: self.offset, axes })
    }

    /// HLO's slice.
    pub(crate) fn slice(&self, dims: &[SliceDim]) -> Option<Self> {
        if dims.len() != self.axes.len() {
            return None;
        }
        let mut offset = self.offset as isize;
        let mut axes = Vec::with_capacity(dims.len());
        for (dim, &(_, stride)) in dims.iter().zip(&self.axes) {
            let size = dim.limit.checked_sub(dim.start)?.div_ceil(dim.stride.max(1));
            if size > 0 {
                offset += dim.start as isize * stride;
            }
            axes.push((size, stride * dim.stride as isize));
        }
        Some(View { offset: usize::try_from(offset).ok()?, axes })
    }

    /// HLO's reverse.
    pub(crate) fn reverse(&self, dimensions: &[usize]) -> Option<Self> {
        let mut view = self.clone();
        let mut offset = self.offset as isize;
        for &d in dimensions {
            let axis = view.axes.get_mut(d)?;
            if axis.0 > 0 {
                offset += (axis.0 as isize - 1) * axis.1;
            }
            axis.1 = -axis.1;
        }
        view.offset = usize::try_from(offset).ok()?;
        Some(view)
    }

    /// The same elements in another shape, when strides can say it.
    pub(crate) fn reshape(&self, shape: &[usize]) -> Option<Self> {
        if shape.iter().product::<usize>() != self.len() {
            return None;
        }
        if self.len() == 0 {
            return Some(View { offset: 0, axes: shape.iter().map(|&size| (size, 0)).collect() });
        }
        let merged = self.merged();
        let mut axes = Vec::with_capacity(shape.len());
        let mut source = merged.axes.iter().rev().copied();
        let mut current = source.next();
        for &size in shape.iter().rev() {
            if size == 1 {
                axes.push((1, 0));
                continue;
            }
            // Split sizes off the innermost axis; they never straddle two axes that could not be merged.
            while let Some((1, _)) = current {
                current = source.next();
            }
            let (have, stride) = current?;
            if have % size != 0 {
                return None;
            }
            axes.push((size, stride));
            current = Some((have / size, stride * size as isize));
        }
        axes.reverse();
        Some(View { offset: self.offset, axes })
    }

    /// The same walk with as few axes as can be: none of size 1, neighbours joined where one stride serves both.
    pub(crate) fn merged(&self) -> Self {
        let mut axes: Vec<(usize, isize)> = Vec::with_capacity(self.axes.len());
        for &(size, stride) in &self.axes {
            if size == 1 {
                continue;
            }
            match axes.last_mut() {
                Some(last) if last.1 == stride * size as isize => *last = (last.0 * size, stride),
                _ => axes.push((size, stride)),
            }
        }
        View { offset: self.offset, axes }
    }

    /// Whether the elements lie one after another.
    pub(crate) fn is_dense(&self) -> bool {
        match self.merged().axes.as_slice() {
            [] => true,
            [(_, stride)] => *stride == 1,
            _ => self.len() == 0,
        }
    }

    /// Whether every index stands for one element.
    pub(crate) fn is_splat(&self) -> bool {
        self.axes.iter().all(|&(size, stride)| size <= 1 || stride == 0)
    }

    /// One past the largest index that the view reads, 0 when it reads none; `None` when an index would be negative.
    fn reach(&self) -> Option<usize> {
        if self.len() == 0 {
            return Some(0);
        }
        let (mut low, mut high) = (self.offset as isize, self.offset as isize);
        for &(size, stride) in &self.axes {
            let far = (size as isize - 1) * stride;
            if far < 0 { low += far } else { high += far }
        }
        (low >= 0).then_some(high as usize + 1)
    }

    /// Whether all that the view reads is in a buffer of so many elements.
    pub(crate) fn fits(&self, elements: usize) -> bool {
        self.reach().is_some_and(|reach| reach <= elements)
    }

    /// Copies elements `start..` of the walk (in its own order) into `out`, as many as it holds. `self` should be
    /// [`merged`](View::merged).
    pub(crate) fn read(&self, source: &[u8], size: usize, start: usize, out: &mut [u8]) {
        match size {
            1 => self.read_as::<u8>(source, start, out),
            2 => self.read_as::<u16>(source, start, out),
            4 => self.read_as::<u32>(source, start, out),
            _ => self.read_as::<u64>(source, start, out),
        }
    }

    fn read_as<T: bytemuck::Pod>(&self, source: &[u8], start: usize, out: &mut [u8]) {
        let out: &mut [T] = bytemuck::cast_slice_mut(out);
        let source: &[T] = bytemuck::cast_slice(source);
        self.walk(start, out.len(), |at, stride, done, count| {
            let out = &mut out[done..done + count];
            match stride {
                1 => out.copy_from_slice(&source[at..at + count]),
                0 => out.fill(source[at]),
                _ => {
                    let mut at = at as isize;
                    for out in out {
                        *out = source[at as usize];
                        at += stride;
                    }
                }
            }
        });
    }

    /// Copies a dense array of the walk's shape to where the walk goes in `out`. `self` should be [`merged`](View::merged), and go to
    /// no place twice.
    pub(crate) fn write(&self, source: &[u8], size: usize, out: &mut [u8]) {
        match size {
            1 => self.write_as::<u8>(source, out),
            2 => self.write_as::<u16>(source, out),
            4 => self.write_as::<u32>(source, out),
            _ => self.write_as::<u64>(source, out),
        }
    }

    fn write_as<T: bytemuck::Pod>(&self, source: &[u8], out: &mut [u8]) {
        let out: &mut [T] = bytemuck::cast_slice_mut(out);
        let source: &[T] = bytemuck::cast_slice(source);
        self.walk(0, source.len(), |at, stride, done, count| {
            let source = &source[done..done + count];
            if stride == 1 {
                out[at..at + count].copy_from_slice(source);
            } else {
                let mut at = at as isize;
                for &v in source {
                    out[at as usize] = v;
                    at += stride;
                }
            }
        });
    }

    /// Walks elements `start..start + count` in runs along the last axis: `f` gets a run's first index, its stride, how
    /// many elements came before it, and its length.
    pub(crate) fn walk(&self, start: usize, count: usize, mut f: impl FnMut(usize, isize, usize, usize)) {
        if count == 0 {
            return;
        }
        let Some((&(inner, stride), outer)) = self.axes.split_last() else {
            return f(self.offset, 0, 0, count);
        };
        if outer.is_empty() {
            let at = self.offset as isize + start as isize * stride;
            return f(at as usize, stride, 0, count);
        }
        let mut index = vec![0usize; outer.len()];
        let (mut rest, mut column) = (start / inner, start % inner);
        let mut base = self.offset as isize;
        for (i, &(size, stride)) in index.iter_mut().zip(outer).rev() {
            *i = rest % size;
            rest /= size;
            base += *i as isize * stride;
        }
        let mut done = 0;
        while done < count {
            let run = (inner - column).min(count - done);
            f((base + column as isize * stride) as usize, stride, done, run);
            done += run;
            column = 0;
            for (i, &(size, stride)) in index.iter_mut().zip(outer).rev() {
                *i += 1;
                base += stride;
                if *i < size {
                    break;
                }
                base -= size as isize * stride;
                *i = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elements(view: &View, source: &[u32]) -> Vec<u32> {
        let mut out = vec![0; view.len()];
        view.merged().read(bytemuck::cast_slice(source), 4, 0, bytemuck::cast_slice_mut(&mut out));
        out
    }

    #[test]
    fn walks_follow_the_ops() {
        let source: Vec<u32> = (0..24).collect();
        let dense = View::dense(&[2, 3, 4]);
        assert_eq!(elements(&dense, &source), source);
        let t = dense.transpose(&[2, 0, 1]).unwrap();
        assert_eq!(elements(&t, &source)[..7], [0, 4, 8, 12, 16, 20, 1]);
        let s = dense
            .slice(&[
                SliceDim { start: 1, limit: 2, stride: 1 },
                SliceDim { start: 0, limit: 3, stride: 2 },
                SliceDim { start: 1, limit: 4, stride: 2 },
            ])
            .unwrap();
        assert_eq!(elements(&s, &source), [13, 15, 21, 23]);
        let r = View::dense(&[3]).reverse(&[0]).unwrap();
        assert_eq!(elements(&r, &source), [2, 1, 0]);
        let b = View::dense(&[2]).broadcast(&[2, 3], &[0]).unwrap();
        assert_eq!(elements(&b, &source), [0, 0, 0, 1, 1, 1]);
        assert!(b.fits(2) && !b.fits(1));
        assert_eq!(elements(&b.reshape(&[6, 1]).unwrap_or(View::dense(&[6])), &source), [0, 1, 2, 3, 4, 5]);
        assert!(dense.reshape(&[6, 4]).unwrap().is_dense());
        assert!(t.reshape(&[4, 6]).is_some() && t.reshape(&[8, 3]).is_none());
        assert!(t.reshape(&[24]).is_none());
    }

    #[test]
    fn a_walk_can_start_anywhere() {
        let source: Vec<u32> = (0..24).collect();
        let view = View::dense(&[2, 3, 4]).transpose(&[1, 0, 2]).unwrap().merged();
        let mut whole = vec![0u32; 24];
        view.read(bytemuck::cast_slice(&source), 4, 0, bytemuck::cast_slice_mut(&mut whole));
        for start in 0..24 {
            for count in 0..24 - start {
                let mut part = vec![0u32; count];
                view.read(bytemuck::cast_slice(&source), 4, start, bytemuck::cast_slice_mut(&mut part));
                assert_eq!(part, whole[start..start + count]);
            }
        }
    }
}
