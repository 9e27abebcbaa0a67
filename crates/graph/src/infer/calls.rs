//! Types of ops that call computations, and of tuples.

use std::sync::Arc;

use qwix_array::DType;
use qwix_quant::WindowDim;

use super::indexing::one_or_tuple;
use super::{Reason, array_list, arrays, count, distinct_axes, scalar_computation, signature};
use crate::{ArrayType, Computation, Op, Type};

/// n arrays of one shape, then n scalars of their dtypes.
fn with_initial<'a>(operands: &[&'a Type]) -> Result<(Vec<&'a ArrayType>, Vec<DType>), Reason> {
    let n = operands.len() / 2;
    if n == 0 || operands.len() != 2 * n {
        return Err(format!("takes n arrays and n initial values, found {} operands", operands.len()));
    }
    let list = array_list(operands)?;
    let (xs, initial) = list.split_at(n);
    for (&x, &init) in xs.iter().zip(initial) {
        if x.shape != xs[0].shape {
            return Err(format!("the arrays should have one shape, found {} and {x}", xs[0]));
        }
        if *init != ArrayType::new(x.dtype, []) {
            return Err(format!("the initial value for {x} should be {}[], found {init}", x.dtype));
        }
    }
    Ok((xs.to_vec(), initial.iter().map(|i| i.dtype).collect()))
}

pub(super) fn reduce(operands: &[&Type], dimensions: &[usize], c: &Computation) -> Result<Type, Reason> {
    let (xs, dtypes) = with_initial(operands)?;
    let shape = &xs[0].shape;
    distinct_axes("dimensions", dimensions, shape.len())?;
    scalar_computation("computation", c, &[dtypes.clone(), dtypes.clone()].concat(), Some(&dtypes))?;
    let left: Vec<usize> = (0..shape.len()).filter(|a| !dimensions.contains(a)).map(|a| shape[a]).collect();
    Ok(one_or_tuple(dtypes.into_iter().map(|d| Type::array(d, left.clone())).collect()))
}

fn windowed(x: &ArrayType, window: &[WindowDim]) -> Result<Vec<usize>, Reason> {
    if window.len() != x.shape.len() {
        return Err(format!("a window of {} dimensions over {x}", window.len()));
    }
    let axis = |(&size, w): (&usize, &WindowDim)| {
        w.output_size(size).ok_or_else(|| format!("window {w:?} over an axis of {size}"))
    };
    x.shape.iter().zip(window).map(axis).collect()
}

pub(super) fn reduce_window(
    operands: &[&Type],
    window: &[WindowDim],
    c: &Computation,
) -> Result<Type, Reason> {
    let (xs, dtypes) = with_initial(operands)?;
    scalar_computation("computation", c, &[dtypes.clone(), dtypes.clone()].concat(), Some(&dtypes))?;
    let shape = windowed(xs[0], window)?;
    Ok(one_or_tuple(dtypes.into_iter().map(|d| Type::array(d, shape.clone())).collect()))
}

pub(super) fn select_and_scatter(
    operands: &[&Type],
    window: &[WindowDim],
    select: &Computation,
    scatter: &Computation,
) -> Result<Type, Reason> {
    let [x, source, initial] = arrays(operands)?;
    let expected = ArrayType::new(x.dtype, windowed(x, window)?);
    if *source != expected {
        return Err(format!("the source should be {expected}, found {source}"));
    }
    if *initial != ArrayType::new(x.dtype, []) {
        return Err(format!("the initial value should be {}[], found {initial}", x.dtype));
    }
    scalar_computation("select", select, &[x.dtype; 2], Some(&[DType::Pred]))?;
    scalar_computation("scatter", scatter, &[x.dtype; 2], Some(&[x.dtype]))?;
    Ok(x.clone().into())
}

pub(super) fn sort(operands: &[&Type], dimension: usize, comparator: &Computation) -> Result<Type, Reason> {
    let xs = array_list(operands)?;
    let Some(first) = xs.first() else { return Err("takes at least one operand".into()) };
    if let Some(other) = xs.iter().find(|x| x.shape != first.shape) {
        return Err(format!("the operands should have one shape, found {first} and {other}"));
    }
    if dimension >= first.shape.len() {
        return Err(format!("along axis {dimension} of {first}"));
    }
    let pairs: Vec<DType> = xs.iter().flat_map(|x| [x.dtype; 2]).collect();
    scalar_computation("comparator", comparator, &pairs, Some(&[DType::Pred]))?;
    Ok(one_or_tuple(xs.iter().map(|&x| x.clone().into()).collect()))
}

pub(super) fn map(operands: &[&Type], computation: &Computation) -> Result<Type, Reason> {
    let xs = array_list(operands)?;
    let Some(first) = xs.first() else { return Err("takes at least one operand".into()) };
    if let Some(other) = xs.iter().find(|x| x.shape != first.shape) {
        return Err(format!("the operands should have one shape, found {first} and {other}"));
    }
    let takes: Vec<DType> = xs.iter().map(|x| x.dtype).collect();
    match scalar_computation("computation", computation, &takes, None)?.as_slice() {
        &[dtype] => Ok(Type::array(dtype, first.shape.clone())),
        several => {
            Err(format!("computation `{}` yields {} values, expected one", computation.name, several.len()))
        }
    }
}

pub(super) fn get_tuple_element(operands: &[&Type], index: usize) -> Result<Type, Reason> {
    count(operands, 1)?;
    match operands[0] {
        Type::Tuple(elements) => {
            elements.get(index).cloned().ok_or_else(|| format!("element {index} of {}", operands[0]))
        }
        Type::Array(_) | Type::QArray(_) | Type::Token | Type::Opaque(_) => {
            Err(format!("operand 0 should be a tuple, found {}", operands[0]))
        }
    }
}

/// That a computation takes exactly these; its result.
fn takes<'a>(what: &str, computation: &'a Computation, given: &[&Type]) -> Result<&'a Type, Reason> {
    let (parameters, root) = signature(computation)?;
    if parameters != given {
        let list = |types: &[&Type]| types.iter().map(|t| t.to_string()).collect::<Vec<_>>().join(", ");
        return Err(format!(
            "{what} `{}` takes ({}), given ({})",
            computation.name,
            list(&parameters),
            list(given)
        ));
    }
    Ok(root)
}

pub(super) fn while_loop(
    operands: &[&Type],
    condition: &Computation,
    body: &Computation,
) -> Result<Type, Reason> {
    count(operands, 1)?;
    let state = operands[0];
    let root = takes("condition", condition, operands)?;
    if *root != Type::array(DType::Pred, []) {
        return Err(format!("condition `{}` should yield pred[], yields {root}", condition.name));
    }
    let root = takes("body", body, operands)?;
    if root != state {
        return Err(format!("body `{}` should yield its state {state}, yields {root}", body.name));
    }
    Ok(state.clone())
}

pub(super) fn conditional(operands: &[&Type], branches: &[Arc<Computation>]) -> Result<Type, Reason> {
    let [index, arguments @ ..] = operands else { return Err("takes an index, found no operand".into()) };
    let is_pred = **index == Type::array(DType::Pred, []);
    if !is_pred && **index != Type::array(DType::S32, []) {
        return Err(format!("the index should be pred[] or s32[], found {index}"));
    }
    if branches.is_empty() || branches.len() != arguments.len() || (is_pred && branches.len() != 2) {
        return Err(format!(
            "{} branches for an index {index} and {} arguments",
            branches.len(),
            arguments.len()
        ));
    }
    let mut result: Option<&Type> = None;
    for (branch, &argument) in branches.iter().zip(arguments) {
        let root = takes("branch", branch, &[argument])?;
        match result {
            Some(first) if first != root => {
                return Err(format!("branch `{}` yields {root}, the first one {first}", branch.name));
            }
            _ => result = Some(root),
        }
    }
    result.cloned().ok_or_else(|| "has no branches".into())
}

pub(super) fn call(operands: &[&Type], computation: &Computation) -> Result<Type, Reason> {
    takes("computation", computation, operands).cloned()
}

pub(super) fn rng_bit_generator(operands: &[&Type], declared: &Type) -> Result<Type, Reason> {
    let [state] = arrays(operands)?;
    let bits = match declared {
        Type::Tuple(elements) if elements.len() == 2 => elements[1].as_array(),
        Type::Array(_) | Type::QArray(_) | Type::Tuple(_) | Type::Token | Type::Opaque(_) => None,
    };
    let Some(bits) = bits else {
        return Err(format!("the result should be a pair of state and bits, declared {declared}"));
    };
    if !bits.dtype.is_int() || !state.dtype.is_unsigned_int() || state.shape.len() != 1 {
        return Err(format!("takes a vector of unsigned integers to integers, found {state} to {bits}"));
    }
    Ok(Type::Tuple(vec![state.clone().into(), bits.clone().into()]))
}

/// Passes its operand on.
pub(super) fn sharding(operands: &[&Type], open: &[usize]) -> Result<Type, Reason> {
    let &[operand] = operands else { return Err(format!("takes 1 operand, found {}", operands.len())) };
    let rank = operand.as_array().map_or(0, |array| array.shape.len());
    match open.iter().find(|&&axis| axis >= rank) {
        Some(axis) => Err(format!("unspecified_dims names axis {axis} of {operand}")),
        None => Ok(operand.clone()),
    }
}

/// What each called computation is given, for the ops through which types other than arrays flow; `None` for the
/// ops that call on scalars.
pub(crate) fn called_parameters<'a>(op: &Op, operands: &[&'a Type]) -> Option<Vec<Vec<&'a Type>>> {
    if let Op::While { .. } = op {
        Some(vec![operands.to_vec(), operands.to_vec()])
    } else if let Op::Conditional { .. } = op {
        Some(operands.iter().skip(1).map(|&t| vec![t]).collect())
    } else if let Op::Call { .. } = op {
        Some(vec![operands.to_vec()])
    } else {
        None
    }
}
