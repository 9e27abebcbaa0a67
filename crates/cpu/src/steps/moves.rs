//! Ops that move elements without looking at them.

use qwix_array::DType;
use qwix_eval::{EvalError, Value};
use qwix_graph::{NodeId, Op};

use crate::fuse::{Source, look_through};
use crate::parallel;
use crate::plan::{Context, Planned, Planning, Step};
use crate::values::{array, element_size, fail, operand, take};
use crate::view::View;

struct Reshape(Vec<usize>);

impl Step for Reshape {
    fn name(&self) -> &'static str {
        "reshape"
    }

    fn run(&self, mut operands: Vec<Value>, _: &Context<'_>) -> Result<Value, EvalError> {
        Ok(Value::Array(take(&mut operands, 0)?.reshape(&self.0)?))
    }
}

/// The same bytes as elements of another dtype.
struct Bitcast {
    dtype: DType,
    shape: Vec<usize>,
}

impl Step for Bitcast {
    fn name(&self) -> &'static str {
        "bitcast"
    }

    fn run(&self, operands: Vec<Value>, context: &Context<'_>) -> Result<Value, EvalError> {
        let source = operand(&operands, 0)?.bytes();
        let mut out = context.buffers.for_array(self.dtype, &self.shape)?;
        if out.bytes_mut().len() != source.len() {
            return Err(fail(format!("{} bytes do not make {}{:?}", source.len(), self.dtype, self.shape)));
        }
        out.bytes_mut().copy_from_slice(source);
        Ok(Value::Array(out.into_array(self.dtype, &self.shape)?))
    }
}

/// Copies elements in the order of a walk.
struct Walk {
    view: View,
    /// What is walked, unless it is the operand.
    fixed: Option<Value>,
    dtype: DType,
    size: usize,
    shape: Vec<usize>,
}

impl Step for Walk {
    fn name(&self) -> &'static str {
        "walk"
    }

    fn run(&self, operands: Vec<Value>, context: &Context<'_>) -> Result<Value, EvalError> {
        let source = match &self.fixed {
            Some(value) => array(value)?,
            None => operand(&operands, 0)?,
        };
        let mut out = context.buffers.for_array(self.dtype, &self.shape)?;
        copy_walk(&self.view, source.bytes(), self.size, out.bytes_mut())?;
        Ok(Value::Array(out.into_array(self.dtype, &self.shape)?))
    }
}

/// Copies all that a merged view walks into `out`, in its order.
pub(crate) fn copy_walk(view: &View, source: &[u8], size: usize, out: &mut [u8]) -> Result<(), EvalError> {
    if !view.fits(source.len() / size) {
        return Err(fail("an operand is smaller than its type"));
    }
    if let [.., (rows, 1), (columns, stride)] = view.axes[..]
        && stride != 1
        && rows >= 4
        && columns >= 4
    {
        return parallel::fill(out, columns * size, 2, |start, out| {
            match size {
                1 => transpose_rows::<u8>(view, rows, columns, stride, source, start, out),
                2 => transpose_rows::<u16>(view, rows, columns, stride, source, start, out),
                4 => transpose_rows::<u32>(view, rows, columns, stride, source, start, out),
                _ => transpose_rows::<u64>(view, rows, columns, stride, source, start, out),
            }
            Ok(())
        });
    }
    parallel::fill(out, size, 1, |start, out| {
        view.read(source, size, start, out);
        Ok(())
    })
}

/// Rows `first..` of a walk whose last two axes are a transpose: some rows at a time, so that what is read lies together.
fn transpose_rows<T: bytemuck::Pod>(
    view: &View,
    rows: usize,
    columns: usize,
    stride: isize,
    source: &[u8],
    first: usize,
    out: &mut [u8],
) {
    const TOGETHER: usize = 16;
    let source: &[T] = bytemuck::cast_slice(source);
    let out: &mut [T] = bytemuck::cast_slice_mut(out);
    let outer = View { offset: view.offset, axes: view.axes[..view.axes.len() - 2].to_vec() };
    let count = out.len() / columns;
    let mut done = 0;
    while done < count {
        let (matrix, row) = ((first + done) / rows, (first + done) % rows);
        let together = TOGETHER.min(rows - row).min(count - done);
        let mut base = 0;
        outer.walk(matrix, 1, |at, _, _, _| base = at);
        let out = &mut out[done * columns..][..together * columns];
        for column in 0..columns {
            let at = (base as isize + row as isize + column as isize * stride) as usize;
            for (i, &v) in source[at..at + together].iter().enumerate() {
                out[i * columns + column] = v;
            }
        }
        done += together;
    }
}

pub(super) fn plan(planning: &Planning<'_>, id: NodeId) -> Option<Planned> {
    let node = planning.node(id);
    let ty = planning.array_type(id)?;
    match &node.op {
        Op::Reshape => {
            planning.array_type(*node.operands.first()?)?;
            Planned::of(node, Reshape(ty.shape.clone()))
        }
        Op::BitcastConvert => {
            let from = planning.array_type(*node.operands.first()?)?.dtype;
            if from.is_packed() || ty.dtype.is_packed() {
                return None;
            }
            Planned::of(node, Bitcast { dtype: ty.dtype, shape: ty.shape.clone() })
        }
        Op::Broadcast { .. } | Op::Slice(_) | Op::Reverse { .. } | Op::Transpose { .. } | Op::Iota { .. } => {
            let size = element_size(ty.dtype)?;
            let (source, view) = look_through(planning, id, true)?;
            let (fixed, operands) = match source {
                // An op that cannot be said in strides is not walked.
                Source::Node(from) if from == id => return None,
                Source::Node(from) => (None, vec![from]),
                Source::Fixed(array) => (Some(Value::Array(array)), Vec::new()),
            };
            let (dtype, shape) = (ty.dtype, ty.shape.clone());
            let whole = operands
                .first()
                .and_then(|&o| planning.array_type(o))
                .is_some_and(|t| t.shape.iter().product::<usize>() == view.len());
            if whole && view.offset == 0 && view.is_dense() {
                return Some(Planned { step: Box::new(Reshape(shape)), operands });
            }
            let step = Walk { view: view.merged(), fixed, dtype, size, shape };
            Some(Planned { step: Box::new(step), operands })
        }
        _ => None,
    }
}
