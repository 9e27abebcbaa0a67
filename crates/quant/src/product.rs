//! Eager products of arrays and quantized arrays: Qwix's `dot_general` and `conv_general_dilated`.

use qwix_array::{Array, DType};

use crate::runs::Runs;
use crate::{
    ConvDims, ConvPlan, DotDims, DotPlan, Granularity, OperandInfo, QArray, QuantError, QuantizedInfo,
    ScalePlan, Tile, conv_plan, dequantize, dot_plan, promote, reference,
};

/// A side of a product.
#[derive(Clone, Copy, Debug)]
pub enum Operand<'a> {
    /// As it is.
    Array(&'a Array),
    /// Quantized.
    QArray(&'a QArray),
}

impl Operand<'_> {
    /// What plans need to know.
    pub fn info(&self) -> OperandInfo {
        match self {
            Operand::Array(array) => OperandInfo::array(array.shape(), array.dtype()),
            Operand::QArray(array) => OperandInfo {
                shape: array.shape().to_vec(),
                dtype: array.dtype(),
                quantized: Some(QuantizedInfo {
                    qtype: array.qtype(),
                    scale_shape: array.scale().shape().to_vec(),
                    has_zero_point: array.zero_point().is_some(),
                }),
            },
        }
    }

    fn dequantized(&self) -> Result<Array, QuantError> {
        match self {
            Operand::Array(array) => Ok((*array).clone()),
            Operand::QArray(array) => dequantize(array),
        }
    }

    fn value(&self) -> &Array {
        match self {
            Operand::Array(array) => array,
            Operand::QArray(array) => array.qvalue(),
        }
    }

    fn scale(&self) -> Option<&Array> {
        match self {
            Operand::Array(_) => None,
            Operand::QArray(array) => Some(array.scale()),
        }
    }

    fn zero_point(&self) -> Option<&Array> {
        match self {
            Operand::Array(_) => None,
            Operand::QArray(array) => array.zero_point(),
        }
    }
}

impl<'a> From<&'a Array> for Operand<'a> {
    fn from(array: &'a Array) -> Self {
        Operand::Array(array)
    }
}

impl<'a> From<&'a QArray> for Operand<'a> {
    fn from(array: &'a QArray) -> Self {
        Operand::QArray(array)
    }
}

/// Left or right.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Side {
    /// The left operand; a convolution's input.
    Lhs,
    /// The right operand; a convolution's kernel.
    Rhs,
}

/// A dot of two sides, as [`dot_plan`] decides.
///
/// The result's dtype is `preferred`, or the promotion of what the sides dequantize to.
///
/// # Errors
/// As [`dot_plan`].
pub fn dot_general(
    lhs: Operand<'_>,
    rhs: Operand<'_>,
    dims: &DotDims,
    preferred: Option<DType>,
) -> Result<Array, QuantError> {
    let plan = match dot_plan(&lhs.info(), &rhs.info(), dims, preferred)? {
        DotPlan::Dequantize { result, .. } => {
            return reference::dot(&lhs.dequantized()?, &rhs.dequantized()?, dims, result);
        }
        DotPlan::Multiply(plan) => plan,
    };
    let (lhs_value, rhs_value) =
        (lhs.value().reshape(&plan.lhs.shape)?, rhs.value().reshape(&plan.rhs.shape)?);
    let multiply = |l: &Array, r: &Array| reference::dot(l, r, &plan.dims, plan.accumulator);
    let mut product = multiply(&lhs_value, &rhs_value)?;
    if let (Some(how), Some(zero_point)) = (&plan.lhs.zero_point, lhs.zero_point()) {
        let zero_point = broadcast(&zero_point.reshape(&how.split)?, &how.broadcast)?;
        product = combine(&product, &multiply(&zero_point, &rhs_value)?, |a, b| a - b)?;
    }
    if let (Some(how), Some(zero_point)) = (&plan.rhs.zero_point, rhs.zero_point()) {
        let zero_point = broadcast(&zero_point.reshape(&how.split)?, &how.broadcast)?;
        product = combine(&product, &multiply(&lhs_value, &zero_point)?, |a, b| a - b)?;
    }
    for (how, scale) in [(&plan.lhs.scale, lhs.scale()), (&plan.rhs.scale, rhs.scale())] {
        if let (Some(how), Some(scale)) = (how, scale) {
            product = combine(&product, &scale_for(scale, how)?, |a, b| a * b)?;
        }
    }
    Ok(sum(&product, &plan.sum_axes)?.convert(plan.result))
}

/// A convolution of two sides, as [`conv_plan`] decides.
///
/// # Errors
/// As [`conv_plan`].
pub fn conv_general_dilated(
    lhs: Operand<'_>,
    rhs: Operand<'_>,
    dims: &ConvDims,
    preferred: Option<DType>,
) -> Result<Array, QuantError> {
    let plan = match conv_plan(&lhs.info(), &rhs.info(), dims, preferred)? {
        ConvPlan::Dequantize { result, .. } => {
            return reference::conv(&lhs.dequantized()?, &rhs.dequantized()?, dims, result);
        }
        ConvPlan::Multiply(plan) => plan,
    };
    let mut product = reference::conv(lhs.value(), rhs.value(), dims, plan.accumulator)?;
    if let Some(zero_point) = lhs.zero_point() {
        let zero_point = broadcast(zero_point, lhs.value().shape())?;
        let share = reference::conv(&zero_point, rhs.value(), dims, plan.accumulator)?;
        product = combine(&product, &share, |a, b| a - b)?;
    }
    for (how, scale) in [(&plan.lhs_scale, lhs.scale()), (&plan.rhs_scale, rhs.scale())] {
        if let (Some(how), Some(scale)) = (how, scale) {
            product = combine(&product, &scale_for(scale, how)?, |a, b| a * b)?;
        }
    }
    Ok(product.convert(plan.result))
}

/// How a side of a dot is quantized: channelwise on every axis that is not contracted; `tile` tiles the last of the
/// contracted axes, in the order that `dims` names them.
pub fn how_to_quantize_dot(dims: &DotDims, rank: usize, side: Side, tile: Option<Tile>) -> Vec<Granularity> {
    let contracting = match side {
        Side::Lhs => &dims.lhs_contracting,
        Side::Rhs => &dims.rhs_contracting,
    };
    let tiled = contracting.last().copied().zip(tile);
    (0..rank)
        .map(|axis| match tiled {
            Some((last, tile)) if last == axis => Granularity::Tiled(tile),
            _ if contracting.contains(&axis) => Granularity::Shared,
            _ => Granularity::Channelwise,
        })
        .collect()
}

/// How a side of a convolution is quantized: channelwise on the input's batch or the kernel's output features.
pub fn how_to_quantize_conv(dims: &ConvDims, side: Side) -> Vec<Granularity> {
    let channelwise = match side {
        Side::Lhs => dims.input_batch,
        Side::Rhs => dims.kernel_output_feature,
    };
    let granularity = |axis| if axis == channelwise { Granularity::Channelwise } else { Granularity::Shared };
    (0..dims.input_spatial.len() + 2).map(granularity).collect()
}

fn scale_for(scale: &Array, how: &ScalePlan) -> Result<Array, QuantError> {
    Ok(scale.reshape(&how.split)?.transpose(&how.permutation)?.reshape(&how.shape)?)
}

/// Repeats axes of size 1.
fn broadcast(array: &Array, shape: &[usize]) -> Result<Array, QuantError> {
    let axes: Vec<usize> = (0..shape.len()).collect();
    Ok(array.broadcast_in_dim(shape, &axes)?)
}

/// `op(x, y)` where each entry of `y` serves a tile of `x`, in the dtype that both promote to.
fn combine(x: &Array, y: &Array, op: impl Fn(f64, f64) -> f64) -> Result<Array, QuantError> {
    let dtype = promote(x.dtype(), y.dtype());
    let runs = Runs::new(x.shape(), y.shape())
        .ok_or_else(|| QuantError::Invalid(format!("{:?} does not divide {:?}", y.shape(), x.shape())))?;
    let mut values = x.convert(dtype).to_f64_vec();
    let others = y.convert(dtype).to_f64_vec();
    runs.for_each(|start, entry| {
        for (i, x) in values[start..start + runs.len].iter_mut().enumerate() {
            *x = op(*x, others[if runs.each { entry + i } else { entry }]);
        }
    });
    // 32-bit integers differ exactly in f64, and wrap.
    if dtype.is_int() {
        let values: Vec<i64> = values.into_iter().map(|x| x as i64).collect();
        return Ok(Array::from_i64(dtype, x.shape(), &values)?);
    }
    Ok(Array::from_f64(dtype, x.shape(), &values)?)
}

/// The sum over some consecutive axes, which go away.
fn sum(array: &Array, axes: &[usize]) -> Result<Array, QuantError> {
    let (Some(&first), Some(&last)) = (axes.first(), axes.last()) else { return Ok(array.clone()) };
    let shape = array.shape();
    let (outer, tiles): (usize, usize) =
        (shape[..first].iter().product(), shape[first..=last].iter().product());
    let inner: usize = shape[last + 1..].iter().product();
    let values = array.to_f64_vec();
    let mut sums = vec![0.0; outer * inner];
    for (o, sums) in sums.chunks_exact_mut(inner.max(1)).enumerate() {
        for t in 0..tiles {
            for (sum, x) in sums.iter_mut().zip(&values[(o * tiles + t) * inner..]) {
                *sum += x;
            }
        }
    }
    let result = [&shape[..first], &shape[last + 1..]].concat();
    let sums = Array::from_vec(&result, sums)?;
    // Narrow floats are summed in f32.
    Ok(if array.dtype() == DType::F64 { sums } else { sums.convert(DType::F32).convert(array.dtype()) })
}
