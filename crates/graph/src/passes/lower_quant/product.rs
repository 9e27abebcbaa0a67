//! Products with quantized sides in plain HLO, as `dot_plan` and `conv_plan` decide.

use qwix_array::DType;
use qwix_quant::{
    ConvDims, ConvPlan, DotDims, DotPlan, OperandInfo, QType, QuantizedConv, QuantizedDot, QuantizedInfo,
    ScalePlan, SidePlan, conv_plan, dot_plan,
};

use super::Parts;
use super::quantize::{dequantize, generic};
use crate::{BinaryOp, ComputationBuilder, GraphError, NodeId};

/// An operand of a product.
#[derive(Clone, Debug)]
pub(super) enum Side {
    Array(NodeId),
    Quantized(Parts, &'static QType),
}

impl Side {
    fn info(&self, b: &ComputationBuilder) -> Result<OperandInfo, GraphError> {
        Ok(match self {
            Side::Array(id) => OperandInfo::array(b.shape(*id)?, b.dtype(*id)?),
            Side::Quantized(parts, qtype) => OperandInfo {
                shape: b.shape(parts.qvalue)?.to_vec(),
                dtype: b.dtype(parts.scale)?,
                quantized: Some(QuantizedInfo {
                    qtype,
                    scale_shape: b.shape(parts.scale)?.to_vec(),
                    has_zero_point: parts.zero_point.is_some(),
                }),
            },
        })
    }

    /// The array that it stands for, in the dtype of the product.
    fn dequantized(&self, b: &mut ComputationBuilder, dtype: DType) -> Result<NodeId, GraphError> {
        let array = match self {
            Side::Array(id) => *id,
            Side::Quantized(parts, qtype) => dequantize(b, parts, qtype)?,
        };
        b.convert(array, dtype)
    }

    fn values(&self) -> NodeId {
        match self {
            Side::Array(id) => *id,
            Side::Quantized(parts, _) => parts.qvalue,
        }
    }

    fn parts(&self) -> Option<&Parts> {
        match self {
            Side::Array(_) => None,
            Side::Quantized(parts, _) => Some(parts),
        }
    }
}

/// A dot; its dtype is what Qwix's would be.
pub(super) fn dot(
    b: &mut ComputationBuilder,
    lhs: &Side,
    rhs: &Side,
    dims: &DotDims,
) -> Result<NodeId, GraphError> {
    match dot_plan(&lhs.info(b)?, &rhs.info(b)?, dims, None)? {
        DotPlan::Dequantize { result, .. } => {
            let (lhs, rhs) = (lhs.dequantized(b, result)?, rhs.dequantized(b, result)?);
            b.dot(lhs, rhs, dims, result)
        }
        DotPlan::Multiply(plan) => dot_of_values(b, lhs, rhs, &plan),
    }
}

fn dot_of_values(
    b: &mut ComputationBuilder,
    lhs: &Side,
    rhs: &Side,
    plan: &QuantizedDot,
) -> Result<NodeId, GraphError> {
    let l = b.reshape(lhs.values(), &plan.lhs.shape)?;
    let r = b.reshape(rhs.values(), &plan.rhs.shape)?;
    let (l, r) = alike(b, l, r, plan.accumulator)?;
    let mut product = b.dot(l, r, &plan.dims, plan.accumulator)?;
    if let Some(zero) = zero_point(b, lhs, &plan.lhs, l)? {
        let share = b.dot(zero, r, &plan.dims, plan.accumulator)?;
        product = generic(b, BinaryOp::Subtract, product, share)?;
    }
    if let Some(zero) = zero_point(b, rhs, &plan.rhs, r)? {
        let share = b.dot(l, zero, &plan.dims, plan.accumulator)?;
        product = generic(b, BinaryOp::Subtract, product, share)?;
    }
    product = scaled(b, product, lhs, plan.lhs.scale.as_ref())?;
    product = scaled(b, product, rhs, plan.rhs.scale.as_ref())?;
    if !plan.sum_axes.is_empty() {
        product = sum(b, product, &plan.sum_axes)?;
    }
    b.convert(product, plan.result)
}

/// Integers of any widths meet in a product, and floats of one dtype; others are converted to the accumulator's first.
fn alike(
    b: &mut ComputationBuilder,
    lhs: NodeId,
    rhs: NodeId,
    accumulator: DType,
) -> Result<(NodeId, NodeId), GraphError> {
    let (l, r) = (b.dtype(lhs)?, b.dtype(rhs)?);
    if l == r || (l.is_int() && r.is_int()) {
        return Ok((lhs, rhs));
    }
    Ok((b.convert(lhs, accumulator)?, b.convert(rhs, accumulator)?))
}

/// The zero point in the shape that its side has in the product, for the correction.
fn zero_point(
    b: &mut ComputationBuilder,
    side: &Side,
    plan: &SidePlan,
    values: NodeId,
) -> Result<Option<NodeId>, GraphError> {
    let (Some(zero), Some(plan)) = (side.parts().and_then(|p| p.zero_point), &plan.zero_point) else {
        return Ok(None);
    };
    let zero = b.convert(zero, b.dtype(values)?)?;
    let zero = b.reshape(zero, &plan.split)?;
    repeat(b, zero, &plan.broadcast).map(Some)
}

/// Axes of size 1 repeated to a shape of the same rank.
fn repeat(b: &mut ComputationBuilder, x: NodeId, shape: &[usize]) -> Result<NodeId, GraphError> {
    let from = b.shape(x)?.to_vec();
    if from == shape {
        return Ok(x);
    }
    let kept: Vec<usize> = (0..shape.len()).filter(|&axis| from[axis] == shape[axis]).collect();
    let sizes: Vec<usize> = kept.iter().map(|&axis| from[axis]).collect();
    let x = b.reshape(x, &sizes)?;
    b.broadcast(x, shape, &kept)
}

/// The product times a side's scale, when it has one.
fn scaled(
    b: &mut ComputationBuilder,
    product: NodeId,
    side: &Side,
    plan: Option<&ScalePlan>,
) -> Result<NodeId, GraphError> {
    let (Some(parts), Some(plan)) = (side.parts(), plan) else { return Ok(product) };
    let scale = b.reshape(parts.scale, &plan.split)?;
    let scale = b.transpose(scale, &plan.permutation)?;
    let scale = b.reshape(scale, &plan.shape)?;
    generic(b, BinaryOp::Multiply, product, scale)
}

/// The sum over axes; narrow floats are summed in f32, as `jnp.sum` does.
fn sum(b: &mut ComputationBuilder, x: NodeId, axes: &[usize]) -> Result<NodeId, GraphError> {
    let dtype = b.dtype(x)?;
    let wide = if matches!(dtype, DType::BF16 | DType::F16) { DType::F32 } else { dtype };
    let x = b.convert(x, wide)?;
    let zero = b.constant(qwix_array::Array::zeros(wide, &[])?)?;
    let x = b.reduce(BinaryOp::Add, x, zero, axes)?;
    b.convert(x, dtype)
}

/// A convolution; its dtype is what Qwix's would be.
pub(super) fn convolution(
    b: &mut ComputationBuilder,
    input: &Side,
    kernel: &Side,
    dims: &ConvDims,
) -> Result<NodeId, GraphError> {
    match conv_plan(&input.info(b)?, &kernel.info(b)?, dims, None)? {
        ConvPlan::Dequantize { result, .. } => {
            let (input, kernel) = (input.dequantized(b, result)?, kernel.dequantized(b, result)?);
            b.convolution(input, kernel, dims, result)
        }
        ConvPlan::Multiply(plan) => convolution_of_values(b, input, kernel, dims, &plan),
    }
}

fn convolution_of_values(
    b: &mut ComputationBuilder,
    input: &Side,
    kernel: &Side,
    dims: &ConvDims,
    plan: &QuantizedConv,
) -> Result<NodeId, GraphError> {
    let (x, k) = alike(b, input.values(), kernel.values(), plan.accumulator)?;
    let mut product = b.convolution(x, k, dims, plan.accumulator)?;
    let zero_point = input.parts().and_then(|p| p.zero_point);
    if let (Some(zero), true) = (zero_point, plan.lhs_zero_point) {
        let zero = b.convert(zero, b.dtype(x)?)?;
        let shape = b.shape(x)?.to_vec();
        let zero = repeat(b, zero, &shape)?;
        let share = b.convolution(zero, k, dims, plan.accumulator)?;
        product = b.binary(BinaryOp::Subtract, product, share)?;
    }
    product = scaled(b, product, input, plan.lhs_scale.as_ref())?;
    product = scaled(b, product, kernel, plan.rhs_scale.as_ref())?;
    b.convert(product, plan.result)
}
