<<<<<<< HEAD
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
=======
//! Reductions over windows: the padded operand is read once for each place in the window, all windows side by side.

use qwix_array::{Array, DType};
use qwix_eval::{EvalError, Value};
use qwix_graph::{NodeId, Op, PadDim, Type};
use qwix_quant::WindowDim;
use qwix_simd::vm::{BLOCK, Program, Source};
use qwix_simd::{Fold, fold_rows_f32};

use crate::fuse::scalar_program;
use crate::parallel;
use crate::plan::{Context, Planned, Planning, Step};
use crate::steps::dot::{from_f32, is_gemm_float};
use crate::steps::indexing::{advance, pad_into};
use crate::steps::reduce::fold_of;
use crate::values::{as_f32, num, operand};
use crate::view::View;

enum Way {
    /// A fold of floats, in f32.
    Fold(Fold),
    /// Any computation of one operand.
    Program(Program),
}

struct ReduceWindow {
    way: Way,
    pads: Vec<PadDim>,
    padded: Vec<usize>,
    /// Of the padded operand, one for each place in the window; merged.
    views: Vec<View>,
    dtype: DType,
    shape: Vec<usize>,
    tuple: bool,
}

impl ReduceWindow {
    fn folded(
        &self,
        fold: Fold,
        source: &Array,
        init: &Array,
        context: &Context<'_>,
    ) -> Result<Array, EvalError> {
        let (values, init) = (as_f32(source)?, as_f32(init)?);
        let mut padded = context.buffers.for_array(DType::F32, &self.padded)?;
        let first = init.first().copied().unwrap_or_else(|| fold.identity());
        pad_into(
            bytemuck::cast_slice(&values),
            source.shape(),
            &self.pads,
            &first.to_le_bytes(),
            &self.padded,
            &mut padded,
        )?;
        let padded: &[u8] = bytemuck::cast_slice(padded.values::<f32>());
        let mut out = context.buffers.for_array(DType::F32, &self.shape)?;
        parallel::fill(out.bytes_mut(), 4, self.views.len(), |start, out| {
            let mut block = vec![0.0f32; BLOCK];
            for (i, out) in bytemuck::cast_slice_mut::<u8, f32>(out).chunks_mut(BLOCK).enumerate() {
                let block = &mut block[..out.len()];
                out.fill(first);
                for view in &self.views {
                    view.read(padded, 4, start + i * BLOCK, bytemuck::cast_slice_mut(block));
                    fold_rows_f32(fold, out, block);
                }
            }
            Ok::<(), EvalError>(())
        })?;
        from_f32(out, self.dtype, &self.shape, context)
    }

    fn general(
        &self,
        program: &Program,
        source: &Array,
        init: &Array,
        context: &Context<'_>,
    ) -> Result<Array, EvalError> {
        let size = self.dtype.bits() / 8;
        let mut padded = context.buffers.for_array(self.dtype, &self.padded)?;
        pad_into(source.bytes(), source.shape(), &self.pads, init.bytes(), &self.padded, &mut padded)?;
        let padded = padded.into_array(self.dtype, &self.padded)?;
        let mut out = context.buffers.for_array(self.dtype, &self.shape)?;
        parallel::fill(out.bytes_mut(), size, self.views.len() * 2, |start, out| {
            let mut scratch = program.scratch(BLOCK);
            let (mut block, mut total) = (vec![0u64; BLOCK], vec![0u64; BLOCK]);
            for (i, out) in out.chunks_mut(BLOCK * size).enumerate() {
                let block = &mut bytemuck::cast_slice_mut::<u64, u8>(&mut block)[..out.len()];
                let total = &mut bytemuck::cast_slice_mut::<u64, u8>(&mut total)[..out.len()];
                total.chunks_exact_mut(size).for_each(|t| t.copy_from_slice(init.bytes()));
                for view in &self.views {
                    view.read(padded.bytes(), size, start + i * BLOCK, block);
                    let inputs = [Source::Block(&*total), Source::Block(&*block)];
                    let count = out.len() / size;
                    program.run(&mut scratch, &inputs, &mut [&mut *out], count);
                    total.copy_from_slice(out);
                }
                out.copy_from_slice(total);
            }
            Ok::<(), EvalError>(())
        })?;
        out.into_array(self.dtype, &self.shape)
    }
}

impl Step for ReduceWindow {
>>>>>>> 987aa03 (Windows, sorting, scatter and slices of quantized weights natively; scalars stay out of registers)
    fn name(&self) -> &'static str {
        "reduce-window"
    }

    fn run(&self, operands: Vec<Value>, context: &Context<'_>) -> Result<Value, EvalError> {
<<<<<<< HEAD
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
=======
        let (source, init) = (operand(&operands, 0)?, operand(&operands, 1)?);
        let result = match &self.way {
            Way::Fold(fold) => self.folded(*fold, source, init, context)?,
            Way::Program(program) => self.general(program, source, init, context)?,
        };
        Ok(if self.tuple { Value::Tuple(vec![result.into()]) } else { result.into() })
    }
}

/// The window's places as views of the padded operand, in row-major order of the window.
fn views(window: &[WindowDim], padded: &[usize], shape: &[usize]) -> Option<Vec<View>> {
    const MOST: usize = 1 << 14;
    let sizes: Vec<usize> = window.iter().map(|w| w.size).collect();
    let count = sizes.iter().try_fold(1usize, |n, &s| n.checked_mul(s)).filter(|&n| n <= MOST)?;
    let dense = View::dense(padded);
    let mut views = Vec::with_capacity(count);
    let mut place = vec![0; window.len()];
    for _ in 0..count {
        let mut view = View { offset: 0, axes: Vec::with_capacity(window.len()) };
        for (axis, w) in window.iter().enumerate() {
            let at = if w.reversal { w.size - 1 - place[axis] } else { place[axis] };
            let stride = dense.axes[axis].1;
            view.offset += at * w.window_dilation * stride as usize;
            view.axes.push((shape[axis], stride * w.stride as isize));
        }
        if !view.fits(dense.len()) {
            return None;
        }
        views.push(view.merged());
        advance(&mut place, &sizes);
    }
    Some(views)
}

pub(super) fn plan(planning: &Planning<'_>, id: NodeId) -> Option<Planned> {
    let node = planning.node(id);
    let Op::ReduceWindow { window, computation } = &node.op else { return None };
    let &[source, _] = &node.operands[..] else { return None };
    let ty = planning.array_type(source)?;
    let (result, tuple) = match &node.ty {
        Type::Array(result) => (result, false),
        Type::Tuple(types) => match &types[..] {
            [Type::Array(result)] => (result, true),
            _ => return None,
        },
        Type::QArray(_) | Type::Token | Type::Opaque(_) => return None,
    };
    let pads: Vec<PadDim> = window
        .iter()
        .map(|w| PadDim {
            low: w.padding_low,
            high: w.padding_high,
            interior: w.base_dilation.saturating_sub(1),
        })
        .collect();
    let mut padded = Vec::with_capacity(pads.len());
    for (pad, &size) in pads.iter().zip(&ty.shape) {
        let dilated = size as i128 + size.saturating_sub(1) as i128 * pad.interior as i128;
        padded.push(usize::try_from(dilated + pad.low as i128 + pad.high as i128).ok()?);
    }
    // Windows over a few elements, not sums over all that came before.
    let elements = padded.iter().try_fold(1usize, |n, &s| n.checked_mul(s)).filter(|&n| n < 1 << 32)?;
    let way = match fold_of(computation) {
        Some(fold) if is_gemm_float(ty.dtype) => Way::Fold(fold),
        _ => {
            let program = scalar_program(computation)?;
            let num = num(ty.dtype)?;
            if program.inputs() != [num, num] || !program.outputs().eq([num]) {
                return None;
            }
            Way::Program(program)
        }
    };
    let views = if elements == 0 || result.shape.contains(&0) {
        Vec::new()
    } else {
        views(window, &padded, &result.shape)?
    };
    Planned::of(
        node,
        ReduceWindow { way, pads, padded, views, dtype: ty.dtype, shape: result.shape.clone(), tuple },
    )
>>>>>>> 987aa03 (Windows, sorting, scatter and slices of quantized weights natively; scalars stay out of registers)
}
