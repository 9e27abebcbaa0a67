//! Types of ops that move elements, and of products.

use qwix_array::element_count;
use qwix_quant::{ConvDims, DotDims};

use super::{Reason, array_list, arrays, count, declared_array, dense, distinct_axes, plain, quantized};
use crate::{ArrayType, PadDim, Type};

/// The declared array type, its elements countable.
fn countable(declared: &Type) -> Result<&ArrayType, Reason> {
    let array = declared_array(declared)?;
    super::can_be(array)?;
    Ok(array)
}

pub(super) fn iota(dimension: usize, declared: &Type) -> Result<Type, Reason> {
    let array = countable(declared)?;
    if dimension >= array.shape.len() {
        return Err(format!("counts along axis {dimension} of {array}"));
    }
    Ok(array.clone().into())
}

pub(super) fn broadcast(operands: &[&Type], dimensions: &[usize], declared: &Type) -> Result<Type, Reason> {
    let [x] = arrays(operands)?;
    let to = countable(declared)?;
    if dimensions.len() != x.shape.len() {
        return Err(format!("{} dimensions for an operand {x}", dimensions.len()));
    }
    distinct_axes("dimensions", dimensions, to.shape.len())?;
    for (axis, (&d, &size)) in dimensions.iter().zip(&x.shape).enumerate() {
        if to.shape[d] != size {
            return Err(format!("axis {axis} of {x} becomes axis {d} of {:?}: sizes differ", to.shape));
        }
    }
    Ok(Type::array(x.dtype, to.shape.clone()))
}

pub(super) fn reshape(operands: &[&Type], declared: &Type) -> Result<Type, Reason> {
    count(operands, 1)?;
    let shape = &countable(declared)?.shape;
    let x = dense(0, operands[0])?;
    if element_count(&x.shape) != element_count(shape) {
        return Err(format!("cannot reshape {x} into {shape:?}: the numbers of elements differ"));
    }
    match operands[0] {
        Type::QArray(q) => Ok(quantized::reshape(q, shape)?.into()),
        Type::Array(_) | Type::Tuple(_) | Type::Token | Type::Opaque(_) => {
            Ok(Type::array(x.dtype, shape.clone()))
        }
    }
}

pub(super) fn transpose(operands: &[&Type], permutation: &[usize]) -> Result<Type, Reason> {
    let [x] = arrays(operands)?;
    distinct_axes("permutation", permutation, x.shape.len())?;
    if permutation.len() != x.shape.len() {
        return Err(format!("permutation {permutation:?} of {x}"));
    }
    Ok(Type::array(x.dtype, permutation.iter().map(|&a| x.shape[a]).collect::<Vec<_>>()))
}

pub(super) fn concatenate(operands: &[&Type], dimension: usize) -> Result<Type, Reason> {
    let list = array_list(operands)?;
    let Some(first) = list.first() else { return Err("takes at least one operand".into()) };
    if dimension >= first.shape.len() {
        return Err(format!("along axis {dimension} of {first}"));
    }
    let mut result = (*first).clone();
    for next in &list[1..] {
        let fits = next.dtype == first.dtype
            && next.shape.len() == first.shape.len()
            && (0..first.shape.len()).all(|a| a == dimension || next.shape[a] == first.shape[a]);
        if !fits {
            return Err(format!("{first} and {next} differ in more than axis {dimension}"));
        }
        result.shape[dimension] = result.shape[dimension]
            .checked_add(next.shape[dimension])
            .ok_or_else(|| format!("axis {dimension} is too large"))?;
    }
    Ok(result.into())
}

pub(super) fn pad(operands: &[&Type], dims: &[PadDim]) -> Result<Type, Reason> {
    let [x, value] = arrays(operands)?;
    if *value != ArrayType::new(x.dtype, []) {
        return Err(format!("the padding value of {x} should be a scalar of its dtype, found {value}"));
    }
    if dims.len() != x.shape.len() {
        return Err(format!("{} dimensions of padding for {x}", dims.len()));
    }
    let mut shape = Vec::with_capacity(dims.len());
    for (&size, dim) in x.shape.iter().zip(dims) {
        let padded = padded(size, dim).ok_or_else(|| format!("padding {dim:?} of an axis of {size}"))?;
        shape.push(padded);
    }
    let result = Type::array(x.dtype, shape);
    countable(&result)?;
    Ok(result)
}

fn padded(size: usize, dim: &PadDim) -> Option<usize> {
    let between = size.saturating_sub(1).checked_mul(dim.interior)?;
    let inner = i64::try_from(size.checked_add(between)?).ok()?;
    usize::try_from(inner.checked_add(dim.low)?.checked_add(dim.high)?).ok()
}

pub(super) fn reverse(operands: &[&Type], dimensions: &[usize]) -> Result<Type, Reason> {
    let [x] = arrays(operands)?;
    distinct_axes("dimensions", dimensions, x.shape.len())?;
    Ok(x.clone().into())
}

pub(super) fn dot(operands: &[&Type], dims: &DotDims, declared: &Type) -> Result<Type, Reason> {
    count(operands, 2)?;
    let (lhs, rhs) = (dense(0, operands[0])?, dense(1, operands[1])?);
    let shape = dims.output_shape(&lhs.shape, &rhs.shape).map_err(|e| e.to_string())?;
    product(operands, shape, declared)
}

pub(super) fn convolution(operands: &[&Type], dims: &ConvDims, declared: &Type) -> Result<Type, Reason> {
    count(operands, 2)?;
    let (lhs, rhs) = (dense(0, operands[0])?, dense(1, operands[1])?);
    let shape = dims.output_shape(&lhs.shape, &rhs.shape).map_err(|e| e.to_string())?;
    product(operands, shape, declared)
}

fn product(operands: &[&Type], shape: Vec<usize>, declared: &Type) -> Result<Type, Reason> {
    let dtype = plain(0, declared)
        .map_err(|_| format!("the result should be an array of shape {shape:?}, declared {declared}"))?
        .dtype;
    if operands.iter().any(|t| matches!(t, Type::QArray(_))) && !dtype.is_wide_float() {
        return Err(format!(
            "a product with a quantized side is a float of 16 bits or more, declared {dtype}"
        ));
    }
    let result = Type::array(dtype, shape);
    countable(&result)?;
    Ok(result)
}
