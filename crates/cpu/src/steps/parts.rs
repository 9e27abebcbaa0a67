//! Data movement of quantized arrays: on values, scales and zero points alike. Stacked weights in a loop come this way.

use qwix_array::Array;
use qwix_eval::{EvalError, Value};
use qwix_graph::{NodeId, Op, Type};
use qwix_quant::QArray;

use crate::plan::{Context, Planned, Planning, Step};
use crate::steps::indexing::{clamped, index};
use crate::steps::moves::copy_walk;
use crate::values::{element_size, fail, operand};
use crate::view::View;

/// A window of a quantized array, of which each axis is taken whole or has a scale for every index.
struct Window {
    /// Where it starts, unless operands say.
    start: Option<Vec<usize>>,
    sizes: Vec<usize>,
}

impl Window {
    fn cut(
        &self,
        part: &Array,
        full: &[usize],
        start: &[usize],
        context: &Context<'_>,
    ) -> Result<Array, EvalError> {
        let mut view = View::dense(part.shape());
        let mut shape = Vec::with_capacity(full.len());
        for (axis, (&size, &wanted)) in full.iter().zip(&self.sizes).enumerate() {
            let entries = part.shape()[axis];
            // Scales shared along an axis, or a whole axis, stay as they are.
            let (from, count) = if entries == size { (start[axis], wanted) } else { (0, entries) };
            view.offset += from * view.axes[axis].1 as usize;
            view.axes[axis].0 = count;
            shape.push(count);
        }
        let size = element_size(part.dtype()).ok_or_else(|| fail("packed values are not cut here"))?;
        let mut out = context.buffers.for_array(part.dtype(), &shape)?;
        copy_walk(&view.merged(), part.bytes(), size, out.bytes_mut())?;
        out.into_array(part.dtype(), &shape)
    }
}

impl Step for Window {
    fn name(&self) -> &'static str {
        "window-of-quantized"
    }

    fn run(&self, operands: Vec<Value>, context: &Context<'_>) -> Result<Value, EvalError> {
        let Some(Value::QArray(q)) = operands.first() else { return Err(fail("takes a quantized array")) };
        let shape = q.shape().to_vec();
        let start = match &self.start {
            Some(start) => start.clone(),
            None => (0..shape.len())
                .map(|axis| Ok(clamped(index(operand(&operands, axis + 1)?)?, shape[axis], self.sizes[axis])))
                .collect::<Result<_, EvalError>>()?,
        };
        let cut = |part: &Array| self.cut(part, &shape, &start, context);
        let zero_point = q.zero_point().map(cut).transpose()?;
        Ok(Value::QArray(QArray::new(cut(q.qvalue())?, cut(q.scale())?, zero_point, q.qtype())?))
    }
}

pub(super) fn plan(planning: &Planning<'_>, id: NodeId) -> Option<Planned> {
    let node = planning.node(id);
    let (start, sizes) = match &node.op {
        Op::DynamicSlice { sizes } => (None, sizes.clone()),
        Op::Slice(dims) if dims.iter().all(|d| d.stride == 1 && d.start <= d.limit) => (
            Some(dims.iter().map(|d| d.start).collect()),
            dims.iter().map(|d| d.limit - d.start).collect::<Vec<_>>(),
        ),
        _ => return None,
    };
    let Type::QArray(ty) = &planning.node(*node.operands.first()?).ty else { return None };
    element_size(ty.how.qtype.storage)?;
    let scales = ty.scale_shape().ok()?;
    // An axis in tiles is taken whole here.
    let simple = ty
        .array
        .shape
        .iter()
        .zip(&scales)
        .zip(&sizes)
        .all(|((&size, &scales), &wanted)| wanted == size || scales == size || scales == 1);
    if simple { Planned::of(node, Window { start, sizes }) } else { None }
}
