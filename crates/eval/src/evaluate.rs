//! The meaning of one node.

use qwix_array::{Array, DType};
use qwix_graph::{ArrayType, Node, Op, QArrayType, Type};

use crate::ops::{control, elementwise, indexing, quant, random, reduce, shape, sort};
use crate::run::Context;
use crate::{EvalError, Limits, Value};

/// The value of a node with this op and type, from its operands' values. Nested computations run without a limit on
/// their loops.
///
/// # Errors
/// When the op has no meaning here, or the operands do not fit it. The error names no instruction, except one of a
/// nested computation; [`evaluate_node`] adds the name.
pub fn evaluate(op: &Op, ty: &Type, operands: &[Value]) -> Result<Value, EvalError> {
    evaluate_in(op, ty, operands, Context::new(&Limits::default()))
}

/// The value of a node from its operands' values; errors name the node.
///
/// # Errors
/// As [`evaluate`].
pub fn evaluate_node(node: &Node, operands: &[Value], limits: &Limits) -> Result<Value, EvalError> {
    evaluate_in(&node.op, &node.ty, operands, Context::new(limits)).map_err(|e| e.at(node))
}

/// Whether the op itself can be evaluated; what it calls is not looked at.
pub(crate) fn unsupported(op: &Op) -> Option<EvalError> {
    let (opcode, reason) = match op {
        Op::Unsupported(u) if u.reason.is_empty() => (u.opcode.clone(), "it has no meaning here".to_owned()),
        Op::Unsupported(u) => (u.opcode.clone(), u.reason.clone()),
        Op::CustomCall(call) => (op.name().to_owned(), format!("the target `{}` is not known", call.target)),
        _ => return None,
    };
    Some(EvalError::Unsupported { opcode, instruction: String::new(), module: String::new(), reason })
}

pub(crate) fn evaluate_in(
    op: &Op,
    ty: &Type,
    operands: &[Value],
    context: Context<'_>,
) -> Result<Value, EvalError> {
    affordable(ty, context.limits.max_elements)?;
    let value = apply(op, ty, operands, context)?;
    if value.is_of(ty) {
        Ok(value)
    } else {
        Err(EvalError::reason(format!("{} yields {}, expected {ty}", op.name(), value.describe())))
    }
}

fn apply(op: &Op, ty: &Type, operands: &[Value], context: Context<'_>) -> Result<Value, EvalError> {
    let a = |i: usize| array(op, operands, i);
    let rest = |from: usize| (from..operands.len()).map(|i| a(i).cloned()).collect::<Result<Vec<_>, _>>();
    let out = || array_type(op, ty);
    if let Some(Value::QArray(q)) = operands.first() {
        match op {
            Op::Slice(dims) => return Ok(quant::slice(q, dims)?.into()),
            Op::DynamicSlice { sizes } => return Ok(quant::dynamic_slice(q, &rest(1)?, sizes)?.into()),
            Op::Reshape => return Ok(q.reshape(&quantized_type(op, ty)?.array.shape)?.into()),
            // The others refuse it below, or take it as it is.
            _ => {}
        }
    }
    if operands.iter().any(|v| matches!(v, Value::QArray(_))) {
        match (op, operands) {
            (Op::Dot(dims), [lhs, rhs]) => return Ok(quant::dot(lhs, rhs, dims, out()?)?.into()),
            (Op::Convolution(dims), [input, kernel]) => {
                return Ok(quant::convolution(input, kernel, dims, out()?)?.into());
            }
            (_, _) => {}
        }
    }
    let result = match op {
        Op::Parameter(number) => {
            return Err(EvalError::reason(format!("parameter {number} has no value by itself")));
        }
        Op::Constant(value) => value.clone(),
        Op::Iota { dimension } => shape::iota(out()?, *dimension)?,

        Op::Unary(op) => elementwise::unary(*op, a(0)?)?,
        Op::Binary(op) => elementwise::binary(*op, a(0)?, a(1)?)?,
        Op::Compare { comparison, order } => elementwise::compare(*comparison, *order, a(0)?, a(1)?)?,
        Op::Select => elementwise::select(a(0)?, a(1)?, a(2)?)?,
        Op::Clamp => elementwise::clamp(a(0)?, a(1)?, a(2)?)?,
        Op::Convert => a(0)?.convert(out()?.dtype),
        Op::BitcastConvert => elementwise::bitcast(a(0)?, out()?.dtype, &out()?.shape)?,
        Op::ReducePrecision { exponent_bits, mantissa_bits } => {
            elementwise::reduce_precision(a(0)?, *exponent_bits, *mantissa_bits)?
        }

        Op::Broadcast { dimensions } => a(0)?.broadcast_in_dim(&out()?.shape, dimensions)?,
        Op::Reshape => a(0)?.reshape(&out()?.shape)?,
        Op::Transpose { permutation } => a(0)?.transpose(permutation)?,
        Op::Slice(dims) => shape::slice(a(0)?, dims)?,
        Op::DynamicSlice { sizes } => indexing::dynamic_slice(a(0)?, &rest(1)?, sizes)?,
        Op::DynamicUpdateSlice => indexing::dynamic_update_slice(a(0)?, a(1)?, &rest(2)?)?,
        Op::Concatenate { dimension } => Array::concatenate(&rest(0)?, *dimension)?,
        Op::Pad(dims) => shape::pad(a(0)?, a(1)?, dims, out()?)?,
        Op::Reverse { dimensions } => a(0)?.reverse(dimensions)?,
        Op::Gather(dims) => indexing::gather(a(0)?, a(1)?, dims, out()?)?,
        Op::Scatter { dims, update } => {
            let all = rest(0)?;
            let count = all.len().saturating_sub(1) / 2;
            let (Some(operands), Some(indices), Some(updates)) =
                (all.get(..count), all.get(count), all.get(count + 1..))
            else {
                return Err(EvalError::reason("scatter without operands"));
            };
            return Ok(results(ty, indexing::scatter(operands, indices, updates, dims, update, context)?));
        }

        Op::Dot(dims) => qwix_quant::reference::dot(a(0)?, a(1)?, dims, out()?.dtype)?,
        Op::Convolution(dims) => qwix_quant::reference::conv(a(0)?, a(1)?, dims, out()?.dtype)?,

        Op::Reduce { dimensions, computation } => {
            return Ok(results(ty, reduce::reduce(&rest(0)?, dimensions, computation, context)?));
        }
        Op::ReduceWindow { window, computation } => {
            let shape = &first_array(op, ty)?.shape;
            return Ok(results(ty, reduce::reduce_window(&rest(0)?, window, computation, shape, context)?));
        }
        Op::SelectAndScatter { window, select, scatter } => {
            reduce::select_and_scatter(a(0)?, a(1)?, a(2)?, window, select, scatter, context)?
        }
        Op::Sort { dimension, stable: _, comparator } => {
            return Ok(results(ty, sort::sort(&rest(0)?, *dimension, comparator, context)?));
        }
        Op::TopK { k, largest } => {
            let (values, indices) = sort::top_k(a(0)?, *k, *largest)?;
            return Ok(Value::Tuple(vec![values.into(), indices.into()]));
        }
        Op::Map { computation } => reduce::map(&rest(0)?, computation, out()?.dtype, context)?,

        Op::Tuple => return Ok(Value::Tuple(operands.to_vec())),
        Op::GetTupleElement(index) => return control::get_tuple_element(operand(op, operands, 0)?, *index),
        Op::While { condition, body } => {
            return control::while_loop(condition, body, operand(op, operands, 0)?, context);
        }
        Op::Conditional { branches } => return control::conditional(branches, operands, context),
        Op::Call { computation, .. } => return crate::run::run(computation, operands.to_vec(), context),
        Op::RngBitGenerator(algorithm) => {
            let Type::Tuple(types) = ty else {
                return Err(EvalError::reason(format!(
                    "rng-bit-generator yields a tuple, found the type {ty}"
                )));
            };
            let bits = types.get(1).and_then(Type::as_array).ok_or_else(|| {
                EvalError::reason(format!("rng-bit-generator yields two arrays, found the type {ty}"))
            })?;
            let (state, bits) = random::rng_bit_generator(*algorithm, a(0)?, bits)?;
            return Ok(Value::Tuple(vec![state.into(), bits.into()]));
        }
        Op::OptimizationBarrier | Op::Sharding { .. } => {
            return match operands {
                [one] => Ok(one.clone()),
                _ => Ok(Value::Tuple(operands.to_vec())),
            };
        }
        Op::CustomCall(_) | Op::Unsupported(_) => {
            return Err(unsupported(op).unwrap_or_else(|| EvalError::reason("it has no meaning here")));
        }
        Op::Quantize(how) => return Ok(quant::quantize(how, &rest(0)?)?.into()),
        Op::Dequantize => match operand(op, operands, 0)? {
            Value::QArray(q) => qwix_quant::dequantize(q)?,
            value @ (Value::Array(_) | Value::Tuple(_)) => {
                return Err(EvalError::reason(format!(
                    "dequantize takes a quantized array, found {}",
                    value.describe()
                )));
            }
        },
    };
    Ok(Value::Array(result))
}

fn operand<'a>(op: &Op, operands: &'a [Value], index: usize) -> Result<&'a Value, EvalError> {
    operands.get(index).ok_or_else(|| {
        EvalError::reason(format!("{} lacks operand {index} (it has {})", op.name(), operands.len()))
    })
}

fn array<'a>(op: &Op, operands: &'a [Value], index: usize) -> Result<&'a Array, EvalError> {
    match operand(op, operands, index)? {
        Value::Array(array) => Ok(array),
        value @ (Value::QArray(_) | Value::Tuple(_)) => Err(EvalError::reason(format!(
            "{} takes an array as operand {index}, found {}",
            op.name(),
            value.describe()
        ))),
    }
}

/// One value, or several as a tuple, as the type has it.
fn results(ty: &Type, mut arrays: Vec<Array>) -> Value {
    match (ty, arrays.pop()) {
        (Type::Array(_), Some(one)) if arrays.is_empty() => Value::Array(one),
        (_, last) => Value::Tuple(arrays.into_iter().chain(last).map(Value::Array).collect()),
    }
}

/// The array type, or the first of a tuple.
fn first_array<'a>(op: &Op, ty: &'a Type) -> Result<&'a ArrayType, EvalError> {
    match ty {
        Type::Tuple(types) => types
            .first()
            .and_then(Type::as_array)
            .ok_or_else(|| EvalError::reason(format!("{} yields arrays, found the type {ty}", op.name()))),
        Type::Array(_) | Type::QArray(_) | Type::Token | Type::Opaque(_) => array_type(op, ty),
    }
}

fn array_type<'a>(op: &Op, ty: &'a Type) -> Result<&'a ArrayType, EvalError> {
    match ty {
        Type::Array(array) => Ok(array),
        Type::QArray(_) | Type::Tuple(_) | Type::Token | Type::Opaque(_) => {
            Err(EvalError::reason(format!("{} yields an array, found the type {ty}", op.name())))
        }
    }
}

fn quantized_type<'a>(op: &Op, ty: &'a Type) -> Result<&'a QArrayType, EvalError> {
    match ty {
        Type::QArray(q) => Ok(q),
        Type::Array(_) | Type::Tuple(_) | Type::Token | Type::Opaque(_) => {
            Err(EvalError::reason(format!("{} yields a quantized array, found the type {ty}", op.name())))
        }
    }
}

/// Refuses results that memory cannot hold, instead of dying of them.
fn affordable(ty: &Type, most: Option<usize>) -> Result<(), EvalError> {
    const SURELY: usize = 1 << 26;
    match ty {
        Type::Array(array) => {
            let too_large = || EvalError::reason(format!("an array of type {array} is too large"));
            let count = qwix_array::element_count(&array.shape).ok_or_else(too_large)?;
            if most.is_some_and(|most| count > most) {
                return Err(too_large());
            }
            // Elements are handled as eight bytes each, whatever their dtype.
            let bytes = DType::F64.byte_len(count).ok_or_else(too_large)?;
            if bytes > SURELY && Vec::<u8>::new().try_reserve_exact(bytes).is_err() {
                return Err(EvalError::reason(format!("there is not memory enough for {array}")));
            }
            Ok(())
        }
        Type::QArray(q) => affordable(&Type::Array(q.array.clone()), most),
        Type::Tuple(elements) => elements.iter().try_for_each(|ty| affordable(ty, most)),
        Type::Token | Type::Opaque(_) => Ok(()),
    }
}
