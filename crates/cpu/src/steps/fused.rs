//! A chain of element-wise nodes in one pass over blocks.

use qwix_array::DType;
use qwix_eval::{EvalError, Value};
use qwix_graph::{NodeId, Type};
use qwix_simd::vm::{self, BLOCK, Program};

use crate::fuse::{Fused, Leaf, Source, chain};
use crate::parallel;
use crate::plan::{Context, Planned, Planning, Step};
use crate::values::{array, fail};
use crate::view::View;

enum Input {
    /// A dense walk of an operand from its first element.
    Dense(usize),
    /// One element of an operand.
    Splat(usize, usize),
    /// Any other walk of an operand.
    Walk(usize, View),
}

struct Chain {
    program: Program,
    inputs: Vec<Input>,
    sizes: Vec<usize>,
    /// Arrays made by the plan; they come after the operands.
    fixed: Vec<Value>,
    dtype: DType,
    size: usize,
    shape: Vec<usize>,
    count: usize,
}

impl Step for Chain {
    fn name(&self) -> &'static str {
        "fused"
    }

    fn run(&self, operands: Vec<Value>, context: &Context<'_>) -> Result<Value, EvalError> {
        let arrays = operands.iter().chain(&self.fixed).map(array).collect::<Result<Vec<_>, _>>()?;
        for (input, &size) in self.inputs.iter().zip(&self.sizes) {
            let (index, fits) = match input {
                Input::Dense(i) => (*i, arrays[*i].bytes().len() / size >= self.count),
                Input::Splat(i, at) => (*i, arrays[*i].bytes().len() / size > *at || self.count == 0),
                Input::Walk(i, view) => (*i, view.fits(arrays[*i].bytes().len() / size)),
            };
            if !fits {
                return Err(fail(format!("operand {index} is smaller than its type")));
            }
        }
        let mut out = context.buffers.for_array(self.dtype, &self.shape)?;
        let weight = 1 + self.program.len() / 4;
        parallel::fill(out.bytes_mut(), self.size, weight, |start, out| {
            let count = out.len() / self.size;
            let mut scratch = self.program.scratch(count);
            let mut staged: Vec<Vec<u64>> = self
                .inputs
                .iter()
                .map(|input| if let Input::Walk(..) = input { vec![0; BLOCK.min(count)] } else { Vec::new() })
                .collect();
            for (block, out) in out.chunks_mut(BLOCK * self.size).enumerate() {
                let (from, count) = (start + block * BLOCK, out.len() / self.size);
                for ((input, staged), &size) in self.inputs.iter().zip(&mut staged).zip(&self.sizes) {
                    if let Input::Walk(i, view) = input {
                        let staged = &mut bytemuck::cast_slice_mut::<u64, u8>(staged)[..count * size];
                        view.read(arrays[*i].bytes(), size, from, staged);
                    }
                }
                let sources: Vec<vm::Source<'_>> = self
                    .inputs
                    .iter()
                    .zip(&staged)
                    .zip(&self.sizes)
                    .map(|((input, staged), &size)| match input {
                        Input::Dense(i) => {
                            vm::Source::Block(&arrays[*i].bytes()[from * size..][..count * size])
                        }
                        Input::Splat(i, at) => vm::Source::Splat(&arrays[*i].bytes()[at * size..][..size]),
                        Input::Walk(..) => {
                            vm::Source::Block(&bytemuck::cast_slice::<u64, u8>(staged)[..count * size])
                        }
                    })
                    .collect();
                self.program.run(&mut scratch, &sources, &mut [out], count);
            }
            Ok::<(), EvalError>(())
        })?;
        Ok(Value::Array(out.into_array(self.dtype, &self.shape)?))
    }
}

pub(super) fn plan(planning: &Planning<'_>, id: NodeId) -> Option<Planned> {
    let Type::Array(ty) = &planning.node(id).ty else { return None };
    let Fused { program, leaves } = chain(planning, id)?;
    let count = ty.shape.iter().product();
    let mut operands: Vec<NodeId> = Vec::new();
    for leaf in &leaves {
        if let Source::Node(id) = leaf.from
            && !operands.contains(&id)
        {
            operands.push(id);
        }
    }
    let mut fixed = Vec::new();
    let mut inputs = Vec::new();
    let mut sizes = Vec::new();
    for Leaf { from, view, num } in leaves {
        let index = match from {
            Source::Node(id) => operands.iter().position(|&o| o == id)?,
            Source::Fixed(array) => {
                fixed.push(Value::Array(array));
                operands.len() + fixed.len() - 1
            }
        };
        sizes.push(num.size());
        inputs.push(if view.is_splat() && count != 1 {
            Input::Splat(index, view.offset)
        } else if view.offset == 0 && view.is_dense() {
            Input::Dense(index)
        } else {
            Input::Walk(index, view)
        });
    }
    let size = ty.dtype.bits() / 8;
    let step = Chain { program, inputs, sizes, fixed, dtype: ty.dtype, size, shape: ty.shape.clone(), count };
    Some(Planned { step: Box::new(step), operands })
}
