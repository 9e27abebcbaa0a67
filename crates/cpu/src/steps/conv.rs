//! Convolutions: rows of patches by the kernel as a matrix, one product for each group; depthwise ones directly.
//!
//! The input is brought to [batch, space.., features], the kernel to [taps, input features, output features], the result is made as
//! [batch, space.., features] and moved to the axes that the node has.

use std::borrow::Cow;

use qwix_array::{Array, DType};
use qwix_eval::{EvalError, Value};
use qwix_graph::{ConvDims, NodeId, Op};
use qwix_quant::{ConvPlan, QArray, QuantizedConv, conv_plan};
use qwix_simd::{MatMut, MatRef, PackedB, Rows, Workspace, best, gemm_f32, multiply};

use crate::buffers::Block;
use crate::plan::{Context, Planned, Planning, Step};
use crate::steps::dot::{Sizes, from_f32, is_gemm_float, run_tasks};
use crate::steps::moves::copy_walk;
use crate::steps::qdot::{bytes_of, info, is_byte, scale, stored, zero_point};
use crate::steps::scales::{Rounding, expand, round};
use crate::values::{as_f32, fail};
use crate::view::View;

/// One spatial axis.
#[derive(Clone, Copy, Debug)]
struct Axis {
    input: usize,
    taps: usize,
    output: usize,
    stride: usize,
    dilation: usize,
    base_dilation: usize,
    low: i64,
    reversed: bool,
}

/// A convolution in the order that this file works in.
#[derive(Clone, Debug)]
struct Geometry {
    batch: usize,
    axes: Vec<Axis>,
    groups: usize,
    /// Input and output features of one group.
    inputs: usize,
    outputs: usize,
    /// From the operands' and to the result's own order.
    input_order: Vec<usize>,
    kernel_order: Vec<usize>,
    output_order: Vec<usize>,
    /// The result's shape as it is made, and as the node has it.
    made: Vec<usize>,
    shape: Vec<usize>,
}

impl Geometry {
    fn new(dims: &ConvDims, input: &[usize], kernel: &[usize], shape: &[usize]) -> Option<Self> {
        if dims.batch_group_count != 1 || dims.output_shape(input, kernel).ok()? != shape {
            return None;
        }
        let order = |first: usize, space: &[usize], last: usize| [&[first], space, &[last]].concat();
        let kernel_order =
            [&dims.kernel_spatial[..], &[dims.kernel_input_feature, dims.kernel_output_feature]].concat();
        let made_order = order(dims.output_batch, &dims.output_spatial, dims.output_feature);
        // Axis i of the result is axis `output_order[i]` of what is made.
        let mut output_order = vec![0; shape.len()];
        for (made, &axis) in made_order.iter().enumerate() {
            output_order[axis] = made;
        }
        let axes = (0..dims.window.len())
            .map(|i| {
                let w = &dims.window[i];
                Axis {
                    input: input[dims.input_spatial[i]],
                    taps: w.size,
                    output: shape[dims.output_spatial[i]],
                    stride: w.stride,
                    dilation: w.window_dilation,
                    base_dilation: w.base_dilation,
                    low: w.padding_low,
                    reversed: w.reversal,
                }
            })
            .collect();
        Some(Geometry {
            batch: input[dims.input_batch],
            axes,
            groups: dims.feature_group_count,
            inputs: kernel[dims.kernel_input_feature],
            outputs: kernel[dims.kernel_output_feature] / dims.feature_group_count,
            input_order: order(dims.input_batch, &dims.input_spatial, dims.input_feature),
            kernel_order,
            output_order,
            made: made_order.iter().map(|&a| shape[a]).collect(),
            shape: shape.to_vec(),
        })
    }

    fn taps(&self) -> usize {
        self.axes.iter().map(|a| a.taps).product()
    }

    /// Positions of the window in one image.
    fn positions(&self) -> usize {
        self.axes.iter().map(|a| a.output).product()
    }

    /// Elements of one image of the input.
    fn image(&self) -> usize {
        self.axes.iter().map(|a| a.input).product::<usize>() * self.features()
    }

    fn features(&self) -> usize {
        self.groups * self.inputs
    }

    /// What is summed over.
    fn depth(&self) -> usize {
        self.taps() * self.inputs
    }

    /// For a position of the window, where each tap reads in the image (an element of the first feature), if it does.
    fn reads(&self, position: usize, reads: &mut Vec<Option<usize>>) {
        reads.clear();
        reads.push(Some(0));
        let mut rest = position;
        let mut behind = self.positions();
        for axis in &self.axes {
            behind /= axis.output.max(1);
            let place = rest / behind.max(1);
            rest %= behind.max(1);
            let mut next = Vec::with_capacity(reads.len() * axis.taps);
            for &base in reads.iter() {
                for tap in 0..axis.taps {
                    let tap = if axis.reversed { axis.taps - 1 - tap } else { tap };
                    let at = place as i128 * axis.stride as i128 + tap as i128 * axis.dilation as i128
                        - axis.low as i128;
                    let step = axis.base_dilation as i128;
                    let inside = at >= 0 && at % step == 0 && at / step < axis.input as i128;
                    next.push(base.filter(|_| inside).map(|base| base * axis.input + (at / step) as usize));
                }
            }
            *reads = next;
        }
        let features = self.features();
        reads.iter_mut().for_each(|read| *read = read.map(|at| at * features));
    }

    /// Whether every patch is the pixel itself.
    fn is_pointwise(&self) -> bool {
        self.groups == 1
            && self.axes.iter().all(|a| {
                a.taps == 1 && a.stride == 1 && a.low == 0 && a.base_dilation == 1 && a.output == a.input
            })
    }

    /// Writes the patches of positions `first..` of one group into `rows`, `depth()` values each.
    fn patches<T: Copy>(&self, image: &[T], group: usize, first: usize, outside: T, rows: &mut [T]) {
        let inputs = self.inputs;
        let mut reads = Vec::new();
        for (i, row) in rows.chunks_exact_mut(self.depth().max(1)).enumerate() {
            self.reads(first + i, &mut reads);
            for (read, to) in reads.iter().zip(row.chunks_exact_mut(inputs.max(1))) {
                match read {
                    Some(at) => to.copy_from_slice(&image[at + group * inputs..][..inputs]),
                    None => to.fill(outside),
                }
            }
        }
    }

    /// Rows of patches at a time: what fits a core's second cache.
    fn block(&self) -> usize {
        (1usize << 16).checked_div(self.depth()).unwrap_or(1).clamp(16, 512)
    }

    /// Blocks of the result as tasks: image, first position, rows of all output features.
    fn tasks<'a>(&self, out: &'a mut [f32]) -> Vec<(usize, usize, &'a mut [f32])> {
        let width = self.groups * self.outputs;
        let (image, block) = (self.positions() * width, self.block() * width);
        if image == 0 {
            return Vec::new();
        }
        let images = out.chunks_exact_mut(image).enumerate();
        images
            .flat_map(|(n, out)| {
                out.chunks_mut(block)
                    .enumerate()
                    .map(move |(i, out)| (n, i * block / width, out))
                    .collect::<Vec<_>>()
            })
            .collect()
    }

    fn sizes(&self) -> Sizes {
        Sizes {
            batch: self.batch * self.groups,
            rows: self.positions(),
            depth: self.depth(),
            columns: self.outputs,
        }
    }

    /// Moves what was made to the node's axes, and rounds it to its dtype.
    fn finish(&self, out: Block, dtype: DType, context: &Context<'_>) -> Result<Value, EvalError> {
        let made = from_f32(out, dtype, &self.made, context)?;
        let view =
            View::dense(&self.made).transpose(&self.output_order).ok_or_else(|| fail("axes are missing"))?;
        let view = view.merged();
        if view.is_dense() {
            return Ok(Value::Array(made.reshape(&self.shape)?));
        }
        let mut out = context.buffers.for_array(dtype, &self.shape)?;
        copy_walk(&view, made.bytes(), dtype.bits() / 8, out.bytes_mut())?;
        Ok(Value::Array(out.into_array(dtype, &self.shape)?))
    }
}

/// A float operand with its axes in another order, as f32.
fn ordered_f32<'a>(array: &'a Array, order: &[usize]) -> Result<Cow<'a, [f32]>, EvalError> {
    let view = View::dense(array.shape()).transpose(order).ok_or_else(|| fail("axes are missing"))?.merged();
    let values = as_f32(array)?;
    if view.is_dense() {
        return Ok(values);
    }
    let mut out = vec![0.0f32; values.len()];
    copy_walk(&view, bytemuck::cast_slice(&values), 4, bytemuck::cast_slice_mut(&mut out))?;
    Ok(Cow::Owned(out))
}

/// The same of bytes.
fn ordered_i8<'a>(array: &'a Array, order: &[usize]) -> Result<Cow<'a, [i8]>, EvalError> {
    let view = View::dense(array.shape()).transpose(order).ok_or_else(|| fail("axes are missing"))?.merged();
    let values = bytes_of(array)?;
    if view.is_dense() {
        return Ok(values);
    }
    let mut out = vec![0i8; values.len()];
    copy_walk(&view, bytemuck::cast_slice(&values), 1, bytemuck::cast_slice_mut(&mut out))?;
    Ok(Cow::Owned(out))
}

/// The f32 convolution.
fn convolve(
    geometry: &Geometry,
    input: &[f32],
    kernel: &[f32],
    context: &Context<'_>,
) -> Result<Block, EvalError> {
    let mut out = context.buffers.for_array(DType::F32, &geometry.made)?;
    let (depth, outputs, groups) = (geometry.depth(), geometry.outputs, geometry.groups);
    let width = groups * outputs;
    let image = geometry.image();
    if input.len() != geometry.batch * image || kernel.len() != depth * width {
        return Err(fail("an operand has not its type's size"));
    }
    let tasks = geometry.tasks(out.values_mut());
    let sizes = geometry.sizes();
    if geometry.inputs == 1 && outputs == 1 {
        // Depthwise: a row of features times a row of weights for each tap.
        run_tasks(tasks, sizes, |(n, first, out)| {
            let image = &input[n * image..][..image];
            let mut reads = Vec::new();
            for (i, out) in out.chunks_exact_mut(width).enumerate() {
                geometry.reads(first + i, &mut reads);
                out.fill(0.0);
                for (read, kernel) in reads.iter().zip(kernel.chunks_exact(width)) {
                    if let Some(at) = read {
                        qwix_simd::multiply_add_f32(out, &image[*at..][..width], kernel);
                    }
                }
            }
        });
        return Ok(out);
    }
    run_tasks(tasks, sizes, |(n, first, out)| {
        let rows = out.len() / width;
        let image = &input[n * image..][..image];
        let mut patches = if geometry.is_pointwise() { Vec::new() } else { vec![0.0; rows * depth] };
        let Some(mut rest) = MatMut::new(out, rows, width) else { return };
        for group in 0..groups {
            let left = if geometry.is_pointwise() {
                &image[first * depth..][..rows * depth]
            } else {
                geometry.patches(image, group, first, 0.0, &mut patches);
                &patches[..]
            };
            let (mut tile, beyond) = rest.split_columns(outputs);
            rest = beyond;
            let right =
                MatRef::new(kernel.get(group * outputs..).unwrap_or_default(), depth, outputs, width, 1);
            if let (Some(left), Some(right)) = (MatRef::new(left, rows, depth, depth, 1), right) {
                gemm_f32(&mut tile, left, right, false);
            }
        }
    });
    Ok(out)
}

struct Convolution {
    geometry: Geometry,
    dtype: DType,
    /// What a product of quantized sides rounds to before the node's own dtype.
    result: DType,
    /// A kernel that does not depend on the call and is dequantized on each.
    known: Option<QArray>,
}

impl Step for Convolution {
    fn name(&self) -> &'static str {
        "convolution"
    }

    fn run(&self, operands: Vec<Value>, context: &Context<'_>) -> Result<Value, EvalError> {
        let float = |value: &Value| match value {
            Value::Array(array) => Ok(array.clone()),
            Value::QArray(q) => Ok(qwix_quant::dequantize(q)?),
            Value::Tuple(_) => Err(fail("a convolution takes arrays")),
        };
        let missing = || fail("an operand is missing");
        let input = float(operands.first().ok_or_else(missing)?)?;
        let kernel = match &self.known {
            Some(q) => qwix_quant::dequantize(q)?,
            None => float(operands.get(1).ok_or_else(missing)?)?,
        };
        let input = ordered_f32(&input, &self.geometry.input_order)?;
        let kernel = ordered_f32(&kernel, &self.geometry.kernel_order)?;
        let mut out = convolve(&self.geometry, &input, &kernel, context)?;
        round(out.values_mut(), self.result);
        self.geometry.finish(out, self.dtype, context)
    }
}

/// A kernel of bytes, ready.
struct Kernel {
    /// One for each group; none for a depthwise convolution.
    panels: Vec<PackedB>,
    /// The values in the order taps, input features, output features.
    values: Vec<i8>,
    scales: Vec<f32>,
}

/// Bytes by bytes.
struct IntegerConvolution {
    geometry: Geometry,
    plan: QuantizedConv,
    rounding: Rounding,
    dtype: DType,
    /// One that does not depend on the call: as it is stored, until the step is prepared.
    stored: Option<Value>,
    kernel: Option<Kernel>,
}

impl IntegerConvolution {
    fn kernel(&self, value: &Value) -> Result<Kernel, EvalError> {
        let geometry = &self.geometry;
        let values = ordered_i8(stored(value)?, &geometry.kernel_order)?.into_owned();
        let (depth, outputs) = (geometry.depth(), geometry.outputs);
        let width = geometry.groups * outputs;
        let panels = if self.is_depthwise() {
            Vec::new()
        } else {
            (0..geometry.groups)
                .map(|group| {
                    let values = values.get(group * outputs..).unwrap_or_default();
                    PackedB::new(values, depth, outputs, width, 1)
                        .ok_or_else(|| fail("the kernel is too small"))
                })
                .collect::<Result<_, _>>()?
        };
        Ok(Kernel { panels, values, scales: scales_of(value, width)? })
    }

    fn is_depthwise(&self) -> bool {
        self.geometry.inputs == 1 && self.geometry.outputs == 1
    }
}

impl Step for IntegerConvolution {
    fn name(&self) -> &'static str {
        "int8-convolution"
    }

    fn prepare(&mut self) -> Result<(), EvalError> {
        if let Some(value) = self.stored.take() {
            self.kernel = Some(self.kernel(&value)?);
        }
        Ok(())
    }

    fn run(&self, operands: Vec<Value>, context: &Context<'_>) -> Result<Value, EvalError> {
        let missing = || fail("an operand is missing");
        let geometry = &self.geometry;
        let input = operands.first().ok_or_else(missing)?;
        let own;
        let kernel = match &self.kernel {
            Some(kernel) => kernel,
            None => {
                own = self.kernel(operands.get(1).ok_or_else(missing)?)?;
                &own
            }
        };
        let values = ordered_i8(stored(input)?, &geometry.input_order)?;
        let scales = scales_of(input, geometry.batch)?;
        let zero_points = match zero_point(input) {
            Some(z) => expand(&as_f32(&z.convert(DType::F32))?, &[z.len()], &[geometry.batch])?,
            None => vec![0.0; geometry.batch],
        };
        let (depth, outputs, groups) = (geometry.depth(), geometry.outputs, geometry.groups);
        let width = groups * outputs;
        let image = geometry.image();
        if values.len() != geometry.batch * image || kernel.values.len() != depth * width {
            return Err(fail("an operand has not its type's size"));
        }
        let mut out = context.buffers.for_array(DType::F32, &geometry.made)?;
        let tasks = geometry.tasks(out.values_mut());
        let mac = best();
        run_tasks(tasks, geometry.sizes(), |(n, first, out)| {
            let rows = out.len() / width;
            let image = &values[n * image..][..image];
            // Outside of the image stands the zero point, whose share is taken off everywhere.
            let z = zero_points[n] as i8;
            let mut spare = Vec::new();
            if self.is_depthwise() {
                let mut reads = Vec::new();
                let mut sums = vec![0i32; width];
                let outside = vec![z; width];
                for (i, out) in out.chunks_exact_mut(width).enumerate() {
                    geometry.reads(first + i, &mut reads);
                    sums.fill(0);
                    for (read, kernel) in reads.iter().zip(kernel.values.chunks_exact(width)) {
                        let row = read.map_or(&outside[..], |at| &image[at..][..width]);
                        qwix_simd::multiply_add_i8(&mut sums, row, kernel);
                        if z != 0 {
                            for (sum, &k) in sums.iter_mut().zip(kernel) {
                                *sum = sum.wrapping_sub(z as i32 * k as i32);
                            }
                        }
                    }
                    self.rounding.integers(&sums, scales[n], &kernel.scales, false, out, &mut spare);
                }
                return;
            }
            let mut space = Workspace::default();
            let mut patches = vec![0i8; rows * depth];
            let mut sums = vec![0i32; rows * outputs];
            for group in 0..groups {
                let left = if geometry.is_pointwise() {
                    &image[first * depth..][..rows * depth]
                } else {
                    geometry.patches(image, group, first, z, &mut patches);
                    &patches[..]
                };
                let Some(left) = Rows::new(left, rows, depth, depth) else { return };
                let panels = kernel.panels[group].view();
                multiply(mac, left, panels, 0..outputs, &mut sums, &mut space);
                for (sums, out) in sums.chunks_exact_mut(outputs).zip(out.chunks_exact_mut(width)) {
                    if z != 0 {
                        for (sum, &column) in sums.iter_mut().zip(panels.column_sums()) {
                            *sum = sum.wrapping_sub(column.wrapping_mul(z as i32));
                        }
                    }
                    let right = &kernel.scales[group * outputs..][..outputs];
                    let out = &mut out[group * outputs..][..outputs];
                    self.rounding.integers(sums, scales[n], right, false, out, &mut spare);
                }
            }
        });
        round(out.values_mut(), self.plan.result);
        geometry.finish(out, self.dtype, context)
    }
}

/// The scales of a side, one for each of `count` images or features.
fn scales_of(value: &Value, count: usize) -> Result<Vec<f32>, EvalError> {
    match scale(value) {
        Some(scale) => expand(&as_f32(scale)?, &[scale.len()], &[count]),
        None => Ok(vec![1.0; count]),
    }
}

/// Stored floats by stored numbers, multiplied in f32.
struct StoredConvolution {
    geometry: Geometry,
    plan: QuantizedConv,
    rounding: Rounding,
    dtype: DType,
}

impl Step for StoredConvolution {
    fn name(&self) -> &'static str {
        "stored-convolution"
    }

    fn run(&self, operands: Vec<Value>, context: &Context<'_>) -> Result<Value, EvalError> {
        let [input, kernel] = &operands[..] else { return Err(fail("an operand is missing")) };
        let geometry = &self.geometry;
        let width = geometry.groups * geometry.outputs;
        let (left, right) = (scales_of(input, geometry.batch)?, scales_of(kernel, width)?);
        let (input, kernel) = (stored(input)?.convert(DType::F32), stored(kernel)?.convert(DType::F32));
        let input = ordered_f32(&input, &geometry.input_order)?;
        let kernel = ordered_f32(&kernel, &geometry.kernel_order)?;
        let mut out = convolve(geometry, &input, &kernel, context)?;
        let positions = geometry.positions().max(1);
        for (i, row) in out.values_mut::<f32>().chunks_exact_mut(width.max(1)).enumerate() {
            round(row, self.plan.accumulator);
            self.rounding.floats(row, left[i / positions], &right);
        }
        round(out.values_mut(), self.plan.result);
        geometry.finish(out, self.dtype, context)
    }
}

pub(super) fn plan(planning: &Planning<'_>, id: NodeId) -> Option<Planned> {
    let node = planning.node(id);
    let Op::Convolution(dims) = &node.op else { return None };
    let &[a, b] = &node.operands[..] else { return None };
    let ty = planning.array_type(id)?;
    let (input, kernel) = (info(planning, a)?, info(planning, b)?);
    let geometry = Geometry::new(dims, &input.shape, &kernel.shape, &ty.shape)?;
    let dtype = ty.dtype;
    if !is_gemm_float(dtype) || geometry.outputs == 0 {
        return None;
    }
    if input.quantized.is_none() && kernel.quantized.is_none() {
        let floats = is_gemm_float(input.dtype) && is_gemm_float(kernel.dtype);
        let step = Convolution { geometry, dtype, result: DType::F32, known: None };
        return if floats { Planned::of(node, step) } else { None };
    }
    match conv_plan(&input, &kernel, dims, None).ok()? {
        ConvPlan::Dequantize { result, .. } => {
            if !is_gemm_float(input.dtype) || !is_gemm_float(kernel.dtype) || !is_gemm_float(result) {
                return None;
            }
            let known = match planning.known[b.index()].as_ref() {
                Some(Value::QArray(q)) => Some(q.clone()),
                _ => None,
            };
            let operands = if known.is_some() { vec![a] } else { vec![a, b] };
            let step = Convolution { geometry, dtype, result, known };
            Some(Planned { step: Box::new(step), operands })
        }
        ConvPlan::Multiply(plan) => {
            let bytes = is_byte(input.value_dtype())
                && is_byte(kernel.value_dtype())
                && plan.accumulator == DType::S32;
            let rounding = Rounding::new(
                plan.accumulator,
                input.quantized.as_ref().map(|_| input.dtype),
                kernel.quantized.as_ref().map(|_| kernel.dtype),
            )?;
            if !bytes {
                let floats = plan.accumulator != DType::S32 && !plan.lhs_zero_point;
                let step = StoredConvolution { geometry, plan, rounding, dtype };
                return if floats { Planned::of(node, step) } else { None };
            }
            let mut step = IntegerConvolution { geometry, plan, rounding, dtype, stored: None, kernel: None };
            let mut operands = vec![a, b];
            if let Some(value) = planning.known[b.index()].as_ref() {
                // Scales that do not fit are for another step, which must be known now.
                scales_of(value, step.geometry.groups * step.geometry.outputs).ok()?;
                step.stored = Some(value.clone());
                operands.pop();
            }
            Some(Planned { step: Box::new(step), operands })
        }
    }
}
