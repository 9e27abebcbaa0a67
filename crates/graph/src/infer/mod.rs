//! The type of each op's result, by HLO's rules.
//!
//! [`infer`] takes the op, the types of its operands and the type that the node declares. The declared type is asked
//! only for what operands and attributes leave open: the shape of a broadcast, the dtype of a convert or of a dot. So
//! the same function infers the types of new nodes, checks those of old ones, and carries a changed parameter type on.

mod calls;
mod elementwise;
mod indexing;
mod quantized;
mod shape;

use qwix_array::DType;

use crate::{ArrayType, Computation, Op, Type};
pub(crate) use calls::called_parameters;

/// The most axes that an array may have.
pub(crate) const MAX_RANK: usize = 64;

/// Why a node's operands do not fit its op: found and expected. The caller adds which node.
pub(crate) type Reason = String;

/// The type of a node's result.
///
/// `declared` is the type that the node has or shall have; what operands determine is not taken from it.
///
/// # Errors
/// What is wrong, without the node's name, when number, dtypes or shapes of the operands are not what the op takes.
pub fn infer(op: &Op, operands: &[&Type], declared: &Type) -> Result<Type, String> {
    match op {
        Op::Parameter(_) => {
            count(operands, 0)?;
            check_type(declared)?;
            Ok(declared.clone())
        }
        Op::Constant(array) => {
            count(operands, 0)?;
            Ok(Type::array(array.dtype(), array.shape()))
        }
        Op::Iota { dimension } => {
            count(operands, 0)?;
            shape::iota(*dimension, declared)
        }

        Op::Unary(op) => elementwise::unary(*op, operands),
        Op::Binary(op) => elementwise::binary(*op, operands),
        Op::Compare { .. } => elementwise::compare(operands),
        Op::Select => elementwise::select(operands),
        Op::Clamp => elementwise::clamp(operands),
        Op::Convert => elementwise::convert(operands, declared),
        Op::BitcastConvert => elementwise::bitcast_convert(operands, declared),
        Op::ReducePrecision { exponent_bits, mantissa_bits } => {
            elementwise::reduce_precision(operands, *exponent_bits, *mantissa_bits)
        }

        Op::Broadcast { dimensions } => shape::broadcast(operands, dimensions, declared),
        Op::Reshape => shape::reshape(operands, declared),
        Op::Transpose { permutation } => shape::transpose(operands, permutation),
        Op::Concatenate { dimension } => shape::concatenate(operands, *dimension),
        Op::Pad(dims) => shape::pad(operands, dims),
        Op::Reverse { dimensions } => shape::reverse(operands, dimensions),
        Op::Dot(dims) => shape::dot(operands, dims, declared),
        Op::Convolution(dims) => shape::convolution(operands, dims, declared),

        Op::Slice(dims) => indexing::slice(operands, dims),
        Op::DynamicSlice { sizes } => indexing::dynamic_slice(operands, sizes),
        Op::DynamicUpdateSlice => indexing::dynamic_update_slice(operands),
        Op::Gather(dims) => indexing::gather(operands, dims),
        Op::Scatter { dims, update } => indexing::scatter(operands, dims, update),
        Op::TopK { k, .. } => indexing::top_k(operands, *k),

        Op::Reduce { dimensions, computation } => calls::reduce(operands, dimensions, computation),
        Op::ReduceWindow { window, computation } => calls::reduce_window(operands, window, computation),
        Op::SelectAndScatter { window, select, scatter } => {
            calls::select_and_scatter(operands, window, select, scatter)
        }
        Op::Sort { dimension, comparator, .. } => calls::sort(operands, *dimension, comparator),
        Op::Map { computation } => calls::map(operands, computation),
        Op::Tuple => Ok(Type::Tuple(operands.iter().map(|&t| t.clone()).collect())),
        Op::GetTupleElement(index) => calls::get_tuple_element(operands, *index),
        Op::While { condition, body } => calls::while_loop(operands, condition, body),
        Op::Conditional { branches } => calls::conditional(operands, branches),
        Op::Call { computation, .. } => calls::call(operands, computation),
        Op::RngBitGenerator(_) => calls::rng_bit_generator(operands, declared),
        Op::OptimizationBarrier => Ok(match operands {
            [one] => (*one).clone(),
            several => Type::Tuple(several.iter().map(|&t| t.clone()).collect()),
        }),
        Op::Sharding { open } => calls::sharding(operands, open),
        Op::CustomCall(_) | Op::Unsupported(_) => Ok(declared.clone()),

        Op::Quantize(how) => quantized::quantize(operands, how),
        Op::Dequantize => quantized::dequantize(operands),
    }
}

/// That a type's arrays can be counted, and that its quantized ones can be made as they say. Holds for a node's operands
/// wherever its op is looked at, since they come before it.
pub(crate) fn check_type(ty: &Type) -> Result<(), Reason> {
    match ty {
        Type::Array(array) => can_be(array),
        Type::QArray(q) => {
            can_be(&q.array)?;
            q.how.parts(&q.array.shape, q.array.dtype).map(drop).map_err(|e| format!("{q}: {e}"))
        }
        Type::Tuple(elements) => elements.iter().try_for_each(check_type),
        Type::Token | Type::Opaque(_) => Ok(()),
    }
}

/// That an array has not too many axes, and elements that can be counted.
fn can_be(array: &ArrayType) -> Result<(), Reason> {
    if array.shape.len() > MAX_RANK {
        return Err(format!("an array of {} axes, expected at most {MAX_RANK}", array.shape.len()));
    }
    array.byte_len().map(drop).ok_or_else(|| format!("{array} is too large for this machine"))
}

/// That there are so many operands.
fn count(operands: &[&Type], expected: usize) -> Result<(), Reason> {
    if operands.len() == expected {
        Ok(())
    } else {
        Err(format!("takes {expected} operands, found {}", operands.len()))
    }
}

/// So many operands, all of them plain arrays.
fn arrays<'a, const N: usize>(operands: &[&'a Type]) -> Result<[&'a ArrayType; N], Reason> {
    count(operands, N)?;
    let list = array_list(operands)?;
    list.try_into().map_err(|_| format!("takes {N} operands"))
}

/// Operands, all of them plain arrays.
fn array_list<'a>(operands: &[&'a Type]) -> Result<Vec<&'a ArrayType>, Reason> {
    operands.iter().enumerate().map(|(i, &ty)| plain(i, ty)).collect()
}

/// One operand that is a plain array.
fn plain(index: usize, ty: &Type) -> Result<&ArrayType, Reason> {
    match ty {
        Type::Array(array) => Ok(array),
        Type::QArray(_) | Type::Tuple(_) | Type::Token | Type::Opaque(_) => {
            Err(format!("operand {index} should be an array, found {ty}"))
        }
    }
}

/// One operand that is a plain or a quantized array.
fn dense(index: usize, ty: &Type) -> Result<&ArrayType, Reason> {
    ty.as_array().ok_or_else(|| format!("operand {index} should be an array, found {ty}"))
}

/// The declared type as an array's.
fn declared_array(declared: &Type) -> Result<&ArrayType, Reason> {
    declared.as_array().ok_or_else(|| format!("the result should be an array, declared {declared}"))
}

fn same(what: &str, a: &ArrayType, b: &ArrayType) -> Result<(), Reason> {
    if a == b { Ok(()) } else { Err(format!("{what} should have one type, found {a} and {b}")) }
}

/// That axes exist and no axis comes twice.
fn distinct_axes(what: &str, axes: &[usize], rank: usize) -> Result<(), Reason> {
    for (i, &axis) in axes.iter().enumerate() {
        if axis >= rank {
            return Err(format!("{what} {axes:?} of an array of rank {rank}"));
        }
        if axes[..i].contains(&axis) {
            return Err(format!("{what} {axes:?}: axis {axis} comes twice"));
        }
    }
    Ok(())
}

/// Parameters and root of a computation, by number; an error when they are not in order.
pub(crate) fn signature(computation: &Computation) -> Result<(Vec<&Type>, &Type), Reason> {
    let mut parameters = Vec::new();
    for (expected, id) in computation.parameters().into_iter().enumerate() {
        let node = computation.node(id);
        if node.op != Op::Parameter(expected) {
            return Err(format!("computation `{}` has no parameter {expected}, or two", computation.name));
        }
        parameters.push(&node.ty);
    }
    let root = computation
        .nodes
        .get(computation.root.index())
        .ok_or_else(|| format!("computation `{}` has no root", computation.name))?;
    Ok((parameters, &root.ty))
}

/// That a computation takes these scalars and yields these (one alone, several as a tuple).
fn scalar_computation(
    what: &str,
    computation: &Computation,
    takes: &[DType],
    yields: Option<&[DType]>,
) -> Result<Vec<DType>, Reason> {
    let (parameters, root) = signature(computation)?;
    let scalar = |ty: &Type| match ty {
        Type::Array(a) if a.shape.is_empty() => Some(a.dtype),
        Type::Array(_) | Type::QArray(_) | Type::Tuple(_) | Type::Token | Type::Opaque(_) => None,
    };
    let found: Option<Vec<DType>> = parameters.iter().map(|&ty| scalar(ty)).collect();
    if found.as_deref() != Some(takes) {
        let found = parameters.iter().map(|ty| ty.to_string()).collect::<Vec<_>>().join(", ");
        return Err(format!("{what} `{}` should take scalars {takes:?}, takes ({found})", computation.name));
    }
    let results: Option<Vec<DType>> = match root {
        Type::Tuple(elements) => elements.iter().map(scalar).collect(),
        Type::Array(_) | Type::QArray(_) | Type::Token | Type::Opaque(_) => scalar(root).map(|d| vec![d]),
    };
    match results {
        Some(results) if yields.is_none_or(|y| y == results) => Ok(results),
        _ => Err(format!(
            "{what} `{}` yields {root}, expected scalars{}",
            computation.name,
            yields.map_or(String::new(), |y| format!(" {y:?}"))
        )),
    }
}
