//! Ops of quantized arrays.

use qwix_array::Array;
use qwix_graph::{ArrayType, BinaryOp, ConvDims, DotDims, SliceDim};
use qwix_quant::{
    Arithmetic, ConvPlan, DotPlan, HowToQuantize, OperandInfo, QArray, QuantizedConv, QuantizedDot,
    QuantizedInfo, ScalePlan, SidePlan, broadcast_views, conv_plan, dot_plan, promote,
};

use crate::ops::indexing::clamped_starts;
use crate::ops::{contract, elementwise, reduce, shape};
use crate::{EvalError, Value};

/// Quantizes into the range of the array's own values, or with a scale (and a zero point) that is known. The
/// arithmetic is that of a compiled graph.
pub(crate) fn quantize(how: &HowToQuantize, operands: &[Array]) -> Result<QArray, EvalError> {
    Ok(match operands {
        [x] => qwix_quant::quantize_as(x, how, Arithmetic::Compiled)?,
        [x, scale] => qwix_quant::quantize_with_scale_zero_point(x, how.qtype, scale, None)?,
        [x, scale, zero_point] => {
            qwix_quant::quantize_with_scale_zero_point(x, how.qtype, scale, Some(zero_point))?
        }
        _ => return Err(EvalError::reason(format!("quantize with {} operands", operands.len()))),
    })
}

/// The same function of qvalue, scale and zero point.
fn each_part(q: &QArray, f: impl Fn(&Array) -> Result<Array, EvalError>) -> Result<QArray, EvalError> {
    let zero_point = q.zero_point().map(&f).transpose()?;
    Ok(QArray::new(f(q.qvalue())?, f(q.scale())?, zero_point, q.qtype())?)
}

/// A part with static bounds; it begins and ends between tiles.
pub(crate) fn slice(q: &QArray, dims: &[SliceDim]) -> Result<QArray, EvalError> {
    if dims.len() != q.shape().len() {
        return Err(EvalError::reason(format!("slice of shape {:?} by {dims:?}", q.shape())));
    }
    let shape = q.shape();
    each_part(q, |part| {
        let dims = dims
            .iter()
            .zip(shape.iter().zip(part.shape()))
            .map(|(dim, (&size, &scales))| scaled(dim, size, scales))
            .collect::<Result<Vec<_>, _>>()?;
        shape::slice(part, &dims)
    })
}

/// The slice of `scales` entries that goes with a slice of `size` elements.
fn scaled(dim: &SliceDim, size: usize, scales: usize) -> Result<SliceDim, EvalError> {
    if scales == size || dim.start >= dim.limit {
        return Ok(*dim);
    }
    let tile = size.checked_div(scales).unwrap_or(1);
    if scales == 1 {
        return Ok(SliceDim { start: 0, limit: 1, stride: 1 });
    }
    if dim.stride != 1 || !dim.start.is_multiple_of(tile) || !dim.limit.is_multiple_of(tile) {
        return Err(EvalError::reason(format!(
            "a slice from {} to {} by {} cuts through tiles of {tile}",
            dim.start, dim.limit, dim.stride
        )));
    }
    Ok(SliceDim { start: dim.start / tile, limit: dim.limit / tile, stride: 1 })
}

/// A slice of `sizes` that starts at the operands.
pub(crate) fn dynamic_slice(q: &QArray, starts: &[Array], sizes: &[usize]) -> Result<QArray, EvalError> {
    let start = clamped_starts(q.shape(), sizes, starts)?;
    let dims: Vec<SliceDim> = start
        .iter()
        .zip(sizes)
        .map(|(&start, size)| SliceDim { start, limit: start + size, stride: 1 })
        .collect();
    slice(q, &dims)
}

/// The same elements with unit axes added or dropped.
pub(crate) fn reshape(q: &QArray, to: &[usize]) -> Result<QArray, EvalError> {
    let long = |shape: &[usize]| shape.iter().copied().filter(|&d| d != 1).collect::<Vec<_>>();
    if long(q.shape()) != long(to) {
        return Err(EvalError::reason(format!(
            "a quantized array of shape {:?} cannot be reshaped into {to:?}: only unit axes may come and go",
            q.shape()
        )));
    }
    let from = q.shape();
    each_part(q, |part| {
        let mut sizes = from.iter().zip(part.shape()).filter(|(d, _)| **d != 1).map(|(_, &p)| p);
        let shape: Vec<usize> =
            to.iter().map(|&d| if d == 1 { 1 } else { sizes.next().unwrap_or(1) }).collect();
        Ok(part.reshape(&shape)?)
    })
}

/// What a product's plan needs to know of a side.
fn info(side: &Value) -> Result<OperandInfo, EvalError> {
    match side {
        Value::Array(array) => Ok(OperandInfo::array(array.shape(), array.dtype())),
        Value::QArray(q) => Ok(OperandInfo {
            shape: q.shape().to_vec(),
            dtype: q.dtype(),
            quantized: Some(QuantizedInfo {
                qtype: q.qtype(),
                scale_shape: q.scale().shape().to_vec(),
                has_zero_point: q.zero_point().is_some(),
            }),
        }),
        Value::Tuple(_) => Err(EvalError::reason("a product takes arrays, found a tuple")),
    }
}

/// The array that a side stands for.
fn dequantized(side: &Value) -> Result<Array, EvalError> {
    match side {
        Value::Array(array) => Ok(array.clone()),
        Value::QArray(q) => Ok(qwix_quant::dequantize(q)?),
        Value::Tuple(_) => Err(EvalError::reason("a product takes arrays, found a tuple")),
    }
}

/// The stored values, scale and zero point of a side.
fn parts(side: &Value) -> Result<(&Array, Option<&Array>, Option<&Array>), EvalError> {
    match side {
        Value::Array(array) => Ok((array, None, None)),
        Value::QArray(q) => Ok((q.qvalue(), Some(q.scale()), q.zero_point())),
        Value::Tuple(_) => Err(EvalError::reason("a product takes arrays, found a tuple")),
    }
}

/// An op of two arrays of one rank, each entry of the smaller serving a tile of the larger; in the wider dtype.
fn generic(op: BinaryOp, x: &Array, y: &Array) -> Result<Array, EvalError> {
    let views = broadcast_views(x.shape(), y.shape())?;
    let dtype = promote(x.dtype(), y.dtype());
    let shape: Vec<usize> = views.x.iter().zip(&views.y).map(|(&a, &b)| if a == 1 { b } else { a }).collect();
    let axes: Vec<usize> = (0..shape.len()).collect();
    let spread = |array: &Array, view: &[usize]| {
        array.convert(dtype).reshape(view)?.broadcast_in_dim(&shape, &axes).map_err(EvalError::from)
    };
    let result = elementwise::binary(op, &spread(x, &views.x)?, &spread(y, &views.y)?)?;
    Ok(result.reshape(&views.output)?)
}

/// A product times a side's scale, when it has one.
fn scaled_by(product: Array, scale: Option<&Array>, plan: Option<&ScalePlan>) -> Result<Array, EvalError> {
    match (scale, plan) {
        (Some(scale), Some(plan)) => {
            let scale = scale.reshape(&plan.split)?.transpose(&plan.permutation)?.reshape(&plan.shape)?;
            generic(BinaryOp::Multiply, &product, &scale)
        }
        (_, _) => Ok(product),
    }
}

/// A dot of which a side is quantized, as the plan says; the result converted to the node's dtype.
pub(crate) fn dot(lhs: &Value, rhs: &Value, dims: &DotDims, ty: &ArrayType) -> Result<Array, EvalError> {
    let product = match dot_plan(&info(lhs)?, &info(rhs)?, dims, None)? {
        DotPlan::Dequantize { result, shape } => {
            contract::dot(&dequantized(lhs)?, &dequantized(rhs)?, dims, &ArrayType::new(result, shape))?
        }
        DotPlan::Multiply(plan) => dot_of_values(lhs, rhs, &plan)?,
    };
    Ok(product.convert(ty.dtype))
}

fn dot_of_values(lhs: &Value, rhs: &Value, plan: &QuantizedDot) -> Result<Array, EvalError> {
    let ((l, l_scale, l_zero), (r, r_scale, r_zero)) = (parts(lhs)?, parts(rhs)?);
    let (l, r) = (l.reshape(&plan.lhs.shape)?, r.reshape(&plan.rhs.shape)?);
    let multiply = |l: &Array, r: &Array, shape: &[usize]| {
        contract::dot(l, r, &plan.dims, &ArrayType::new(plan.accumulator, shape))
    };
    let mut product = multiply(&l, &r, &plan.product_shape)?;
    if let Some((zero, shape)) = zero_point(l_zero, &plan.lhs)? {
        product = generic(BinaryOp::Subtract, &product, &multiply(&zero, &r, shape)?)?;
    }
    if let Some((zero, shape)) = zero_point(r_zero, &plan.rhs)? {
        product = generic(BinaryOp::Subtract, &product, &multiply(&l, &zero, shape)?)?;
    }
    product = scaled_by(product, l_scale, plan.lhs.scale.as_ref())?;
    product = scaled_by(product, r_scale, plan.rhs.scale.as_ref())?;
    if !plan.sum_axes.is_empty() {
        product = reduce::sum(&product, &plan.sum_axes)?;
    }
    Ok(product.convert(plan.result))
}

/// The zero point as the side of a dot, and that dot's shape.
fn zero_point<'a>(
    zero: Option<&Array>,
    plan: &'a SidePlan,
) -> Result<Option<(Array, &'a [usize])>, EvalError> {
    let (Some(zero), Some(plan)) = (zero, &plan.zero_point) else { return Ok(None) };
    let axes: Vec<usize> = (0..plan.split.len()).collect();
    let zero = zero.reshape(&plan.split)?.broadcast_in_dim(&plan.broadcast, &axes)?;
    Ok(Some((zero, &plan.correction_shape)))
}

/// A convolution of which a side is quantized, as the plan says; the result converted to the node's dtype.
pub(crate) fn convolution(
    input: &Value,
    kernel: &Value,
    dims: &ConvDims,
    ty: &ArrayType,
) -> Result<Array, EvalError> {
    let product = match conv_plan(&info(input)?, &info(kernel)?, dims, None)? {
        ConvPlan::Dequantize { result, shape } => {
            let ty = ArrayType::new(result, shape);
            contract::convolution(&dequantized(input)?, &dequantized(kernel)?, dims, &ty)?
        }
        ConvPlan::Multiply(plan) => convolution_of_values(input, kernel, dims, &plan)?,
    };
    Ok(product.convert(ty.dtype))
}

fn convolution_of_values(
    input: &Value,
    kernel: &Value,
    dims: &ConvDims,
    plan: &QuantizedConv,
) -> Result<Array, EvalError> {
    let ((x, x_scale, x_zero), (k, k_scale, _)) = (parts(input)?, parts(kernel)?);
    let ty = ArrayType::new(plan.accumulator, plan.shape.clone());
    let mut product = contract::convolution(x, k, dims, &ty)?;
    if let (Some(zero), true) = (x_zero, plan.lhs_zero_point) {
        let axes: Vec<usize> = (0..x.rank()).collect();
        let zero = zero.broadcast_in_dim(x.shape(), &axes)?;
        let share = contract::convolution(&zero, k, dims, &ty)?;
        product = elementwise::binary(BinaryOp::Subtract, &product, &share)?;
    }
    product = scaled_by(product, x_scale, plan.lhs_scale.as_ref())?;
    product = scaled_by(product, k_scale, plan.rhs_scale.as_ref())?;
    Ok(product.convert(plan.result))
}
