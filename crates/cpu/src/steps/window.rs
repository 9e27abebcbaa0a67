//! Reductions under a moving window: sums, products, maxima and minima of floats.

use qwix_array::DType;
use qwix_eval::{EvalError, Value};
use qwix_graph::{NodeId, Op, WindowDim};
use qwix_simd::{Fold, fold_rows_f32};

use crate::parallel;
use crate::plan::{Context, Planned, Planning, Step};
use crate::steps::dot::{from_f32, is_gemm_float};
use crate::steps::reduce::fold_of;
use crate::values::{as_f32, fail, operand};

/// A window along one axis.
#[derive(Clone, Copy, Debug)]
struct Axis {
    /// Elements of the base, of the window, and positions that the window has.
    base: usize,
    window: usize,
    positions: usize,
    stride: usize,
    padding: i64,
    base_dilation: usize,
    dilation: usize,
    reversal: bool,
}

impl Axis {
    /// `None` when the numbers make no sense.
    fn new(window: &WindowDim, base: usize) -> Option<Self> {
        if window.window_dilation == 0 || window.base_dilation == 0 {
            return None;
        }
        Some(Axis {
            base,
            window: window.size,
            positions: window.output_size(base)?,
            stride: window.stride,
            padding: window.padding_low,
            base_dilation: window.base_dilation,
            dilation: window.window_dilation,
            reversal: window.reversal,
        })
    }

    /// Whether every position is its own element.
    fn is_trivial(&self) -> bool {
        self.window == 1
            && self.stride == 1
            && self.padding == 0
            && self.base_dilation == 1
            && self.positions == self.base
    }

    /// Where element 0 of the window lies, on the dilated base.
    fn start(&self, position: usize) -> i64 {
        // The number of positions was computed from the same numbers, so none of this overflows.
        (position * self.stride) as i64 - self.padding
    }

    /// The element of the base that one of the window lies on, if it is neither padding nor a hole.
    fn base_of(&self, position: usize, element: usize) -> Option<usize> {
        let element = if self.reversal { self.window - 1 - element } else { element };
        let at = usize::try_from(self.start(position) + (element * self.dilation) as i64).ok()?;
        let at = if self.base_dilation == 1 {
            at
        } else if at.is_multiple_of(self.base_dilation) {
            at / self.base_dilation
        } else {
            return None;
        };
        (at < self.base).then_some(at)
    }

    /// The elements of the window that may lie on the base: it can be much larger.
    fn covering(&self, position: usize) -> std::ops::Range<usize> {
        if self.reversal || self.base == 0 {
            return 0..if self.base == 0 { 0 } else { self.window };
        }
        let start = self.start(position);
        let dilation = self.dilation as u64;
        let last = ((self.base - 1) * self.base_dilation) as i64;
        let low = if start < 0 { start.unsigned_abs().div_ceil(dilation) as usize } else { 0 };
        let high = if last < start { 0 } else { (last - start) as u64 / dilation + 1 };
        low..(high as usize).min(self.window).max(low)
    }
}

/// A fold of f32 (or narrower floats, which are folded as f32 and rounded once).
struct WindowStep {
    fold: Fold,
    /// The axes that the window moves along, with those before and between them.
    axes: Vec<Axis>,
    /// Elements behind them, which go along as one.
    inner: usize,
    dtype: DType,
    shape: Vec<usize>,
}

impl WindowStep {
    /// Folds what the window covers at a position into a row. `pixel` is the element of the axes before `axis`.
    fn cover(&self, axis: usize, place: &[usize], pixel: usize, x: &[f32], out: &mut [f32]) {
        let (Some(along), Some(&position)) = (self.axes.get(axis), place.get(axis)) else {
            fold_rows_f32(self.fold, out, &x[pixel * self.inner..][..self.inner]);
            return;
        };
        let first = pixel * along.base;
        for element in along.covering(position) {
            if let Some(at) = along.base_of(position, element) {
                self.cover(axis + 1, place, first + at, x, out);
            }
        }
    }
}

impl Step for WindowStep {
    fn name(&self) -> &'static str {
        "reduce-window"
    }

    fn run(&self, operands: Vec<Value>, context: &Context<'_>) -> Result<Value, EvalError> {
        let init = as_f32(operand(&operands, 1)?)?.first().copied().unwrap_or(self.fold.identity());
        let x = as_f32(operand(&operands, 0)?)?;
        if x.len() != self.axes.iter().map(|a| a.base).product::<usize>() * self.inner {
            return Err(fail("the operand has not its type's size"));
        }
        let weight = self.axes.iter().map(|a| a.window).fold(1usize, usize::saturating_mul).clamp(1, 1 << 12);
        let mut out = context.buffers.for_array(DType::F32, &self.shape)?;
        parallel::fill(out.bytes_mut(), self.inner * 4, weight, |start, out| {
            let out: &mut [f32] = bytemuck::cast_slice_mut(out);
            let mut place = vec![0; self.axes.len()];
            for (row, out) in (start..).zip(out.chunks_exact_mut(self.inner)) {
                let mut rest = row;
                for (place, axis) in place.iter_mut().zip(&self.axes).rev() {
                    *place = rest % axis.positions;
                    rest /= axis.positions;
                }
                out.fill(init);
                self.cover(0, &place, 0, &x, out);
            }
            Ok::<_, EvalError>(())
        })?;
        Ok(Value::Array(from_f32(out, self.dtype, &self.shape, context)?))
    }
}

pub(super) fn plan(planning: &Planning<'_>, id: NodeId) -> Option<Planned> {
    let node = planning.node(id);
    let Op::ReduceWindow { window, computation } = &node.op else { return None };
    let &[x, _] = &node.operands[..] else { return None };
    let (ty, x) = (planning.array_type(id)?, planning.array_type(x)?);
    if !is_gemm_float(x.dtype) || ty.dtype != x.dtype || window.len() != x.shape.len() {
        return None;
    }
    let fold = fold_of(computation)?;
    let mut axes = window
        .iter()
        .zip(&x.shape)
        .map(|(window, &size)| Axis::new(window, size))
        .collect::<Option<Vec<_>>>()?;
    if !axes.iter().map(|a| a.positions).eq(ty.shape.iter().copied()) {
        return None;
    }
    let mut inner = 1;
    while let Some(last) = axes.last().filter(|a| a.is_trivial()) {
        inner *= last.base;
        axes.pop();
    }
    Planned::of(node, WindowStep { fold, axes, inner, dtype: ty.dtype, shape: ty.shape.clone() })
}
