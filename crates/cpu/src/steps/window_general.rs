//! Reductions over windows by any computation: the padded operand is read once for each place in the window, all windows side by side.

use qwix_array::{Array, DType};
use qwix_eval::{EvalError, Value};
use qwix_graph::{NodeId, Op, PadDim, Type};
use qwix_quant::WindowDim;
use qwix_simd::vm::{BLOCK, Program, Source};

use crate::fuse::scalar_program;
use crate::parallel;
use crate::plan::{Context, Planned, Planning, Step};
use crate::steps::indexing::{advance, pad_into};
use crate::values::{num, operand};
use crate::view::View;

struct General {
    program: Program,
    pads: Vec<PadDim>,
    padded: Vec<usize>,
    /// Of the padded operand, one for each place in the window; merged.
    views: Vec<View>,
    dtype: DType,
    shape: Vec<usize>,
    tuple: bool,
}

impl General {
    fn reduce(&self, source: &Array, init: &Array, context: &Context<'_>) -> Result<Array, EvalError> {
        let size = self.dtype.bits() / 8;
        let mut padded = context.buffers.for_array(self.dtype, &self.padded)?;
        pad_into(source.bytes(), source.shape(), &self.pads, init.bytes(), &self.padded, &mut padded)?;
        let padded = padded.into_array(self.dtype, &self.padded)?;
        let mut out = context.buffers.for_array(self.dtype, &self.shape)?;
        parallel::fill(out.bytes_mut(), size, self.views.len() * 2, |start, out| {
            let mut scratch = self.program.scratch(BLOCK);
            let (mut block, mut total) = (vec![0u64; BLOCK], vec![0u64; BLOCK]);
            for (i, out) in out.chunks_mut(BLOCK * size).enumerate() {
                let block = &mut bytemuck::cast_slice_mut::<u64, u8>(&mut block)[..out.len()];
                let total = &mut bytemuck::cast_slice_mut::<u64, u8>(&mut total)[..out.len()];
                total.chunks_exact_mut(size).for_each(|t| t.copy_from_slice(init.bytes()));
                for view in &self.views {
                    view.read(padded.bytes(), size, start + i * BLOCK, block);
                    let inputs = [Source::Block(&*total), Source::Block(&*block)];
                    let count = out.len() / size;
                    self.program.run(&mut scratch, &inputs, &mut [&mut *out], count);
                    total.copy_from_slice(out);
                }
                out.copy_from_slice(total);
            }
            Ok::<(), EvalError>(())
        })?;
        out.into_array(self.dtype, &self.shape)
    }
}

impl Step for General {
    fn name(&self) -> &'static str {
        "reduce-window-general"
    }

    fn run(&self, operands: Vec<Value>, context: &Context<'_>) -> Result<Value, EvalError> {
        let (source, init) = (operand(&operands, 0)?, operand(&operands, 1)?);
        let result = self.reduce(source, init, context)?;
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
    let (program, num) = (scalar_program(computation)?, num(ty.dtype)?);
    if program.inputs() != [num, num] || !program.outputs().eq([num]) {
        return None;
    }
    let views = if elements == 0 || result.shape.contains(&0) {
        Vec::new()
    } else {
        views(window, &padded, &result.shape)?
    };
    Planned::of(
        node,
        General { program, pads, padded, views, dtype: ty.dtype, shape: result.shape.clone(), tuple },
    )
}
