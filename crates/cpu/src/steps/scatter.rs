//! Scatter of one operand: windows of updates are combined with what is there, in place when nobody else holds the operand.

use qwix_array::{DType, strides};
use qwix_eval::{EvalError, Value};
use qwix_graph::{NodeId, Op, ScatterDims, Type};
use qwix_simd::vm::{BLOCK, Program, Source};

use crate::fuse::scalar_program;
use crate::plan::{Context, Planned, Planning, Step};
use crate::steps::indexing::{Indices, advance};
use crate::values::{element_size, fail, num, operand, take};
use crate::view::View;

struct Scatter {
    dims: ScatterDims,
    /// How old and new become one; the new, when there is none.
    update: Option<Program>,
    dtype: DType,
    size: usize,
    shape: Vec<usize>,
    tuple: bool,
}

impl Scatter {
    fn scatter(&self, bytes: &mut [u8], operands: &[Value]) -> Result<(), EvalError> {
        let (indices, updates) = (operand(operands, 1)?, operand(operands, 2)?);
        if updates.is_empty() {
            return Ok(());
        }
        let dims = &self.dims;
        let (to, from) = (strides(&self.shape), strides(updates.shape()));
        // The window's axes, in the operand and in the updates.
        let kept: Vec<usize> = (0..self.shape.len())
            .filter(|a| !dims.inserted_window_dims.contains(a) && !dims.input_batching_dims.contains(a))
            .collect();
        let mut window = vec![1; self.shape.len()];
        let mut read = View { offset: 0, axes: Vec::new() };
        let mut write = View { offset: 0, axes: Vec::new() };
        for (&axis, &update) in kept.iter().zip(&dims.update_window_dims) {
            window[axis] = updates.shape()[update];
            read.axes.push((window[axis], from[update] as isize));
            write.axes.push((window[axis], to[axis] as isize));
        }
        let (read, write) = (read.merged(), write.merged());
        let scatter_axes: Vec<usize> =
            (0..updates.rank()).filter(|a| !dims.update_window_dims.contains(a)).collect();
        let indices = Indices::new(indices, dims.index_vector_dim);
        let batch = indices.shape();
        let mut place = vec![0; batch.len()];
        let count = read.len();
        let mut new = vec![0u64; (count * self.size).div_ceil(8)];
        let mut old = new.clone();
        let new = &mut bytemuck::cast_slice_mut::<u64, u8>(&mut new)[..count * self.size];
        let old = &mut bytemuck::cast_slice_mut::<u64, u8>(&mut old)[..count * self.size];
        let mut scratch = self.update.as_ref().map(|program| program.scratch(BLOCK));
        let mut joined = vec![0u8; BLOCK * self.size];
        loop {
            let mut start = vec![0i128; self.shape.len()];
            for (component, &axis) in dims.scatter_dims_to_operand_dims.iter().enumerate() {
                start[axis] = indices.get(&place, component)?;
            }
            for (&axis, &b) in dims.input_batching_dims.iter().zip(&dims.scatter_indices_batching_dims) {
                let b = if b > dims.index_vector_dim { b - 1 } else { b };
                start[axis] = place[b] as i128;
            }
            let inside = start
                .iter()
                .zip(&window)
                .zip(&self.shape)
                .all(|((&start, &window), &size)| start >= 0 && start + window as i128 <= size as i128);
            // A window that does not fit is left out as a whole.
            if inside {
                let comes: usize = place.iter().zip(&scatter_axes).map(|(&i, &a)| i * from[a]).sum();
                let goes: usize = start.iter().zip(&to).map(|(&i, &step)| i as usize * step).sum();
                let write = View { offset: goes, ..write.clone() };
                View { offset: comes, ..read.clone() }.read(updates.bytes(), self.size, 0, new);
                if let (Some(program), Some(scratch)) = (&self.update, &mut scratch) {
                    write.read(bytes, self.size, 0, old);
                    for (old, new) in old.chunks(BLOCK * self.size).zip(new.chunks_mut(BLOCK * self.size)) {
                        let joined = &mut joined[..new.len()];
                        let inputs = [Source::Block(old), Source::Block(new)];
                        program.run(scratch, &inputs, &mut [&mut *joined], old.len() / self.size);
                        new.copy_from_slice(joined);
                    }
                }
                write.write(new, self.size, bytes);
            }
            if !advance(&mut place, &batch) {
                return Ok(());
            }
        }
    }
}

impl Step for Scatter {
    fn name(&self) -> &'static str {
        "scatter"
    }

    fn run(&self, mut operands: Vec<Value>, context: &Context<'_>) -> Result<Value, EvalError> {
        let mut target = take(&mut operands, 0)?;
        if target.shape() != self.shape {
            return Err(fail("the operand has not its type's shape"));
        }
        let result = if let Some(bytes) = target.bytes_mut() {
            self.scatter(bytes, &operands)?;
            target
        } else {
            let mut out = context.buffers.for_array(self.dtype, &self.shape)?;
            out.bytes_mut().copy_from_slice(target.bytes());
            self.scatter(out.bytes_mut(), &operands)?;
            out.into_array(self.dtype, &self.shape)?
        };
        Ok(if self.tuple { Value::Tuple(vec![result.into()]) } else { result.into() })
    }
}

pub(super) fn plan(planning: &Planning<'_>, id: NodeId) -> Option<Planned> {
    let node = planning.node(id);
    let Op::Scatter { dims, update } = &node.op else { return None };
    let &[target, indices, _] = &node.operands[..] else { return None };
    let ty = planning.array_type(target)?;
    let size = element_size(ty.dtype)?;
    element_size(planning.array_type(indices)?.dtype)?;
    let parameters = update.parameters();
    let program = if parameters.len() == 2 && update.root == parameters[1] {
        None
    } else {
        let (program, num) = (scalar_program(update)?, num(ty.dtype)?);
        if program.inputs() != [num, num] || !program.outputs().eq([num]) {
            return None;
        }
        Some(program)
    };
    let tuple = matches!(node.ty, Type::Tuple(_));
    let step = Scatter {
        dims: dims.clone(),
        update: program,
        dtype: ty.dtype,
        size,
        shape: ty.shape.clone(),
        tuple,
    };
    Planned::of(node, step)
}
