//! Ops that run computations, and the ops of tuples.

use std::sync::Arc;

use qwix_graph::Computation;

use crate::lanes::Lanes;
use crate::number::Scalar;
use crate::run::{Context, run};
use crate::{EvalError, Value};

/// Runs the body as long as the condition holds.
pub(crate) fn while_loop(
    condition: &Computation,
    body: &Computation,
    state: &Value,
    context: Context<'_>,
) -> Result<Value, EvalError> {
    let mut state = state.clone();
    let mut iterations = 0u64;
    loop {
        let holds = run(condition, vec![state.clone()], context)?;
        match scalar(&holds)? {
            Scalar::Pred(true) => {}
            Scalar::Pred(false) => return Ok(state),
            Scalar::Float(_) | Scalar::Int(_) | Scalar::Uint(_) => {
                return Err(EvalError::reason("the condition of a while does not yield a predicate"));
            }
        }
        if context.limits.max_iterations.is_some_and(|most| iterations >= most) {
            return Err(EvalError::reason(format!("the loop did not end within {iterations} iterations")));
        }
        iterations += 1;
        state = run(body, vec![state], context)?;
    }
}

/// Runs the branch that the first operand names: true is branch 0, an index out of range is the last branch.
pub(crate) fn conditional(
    branches: &[Arc<Computation>],
    operands: &[Value],
    context: Context<'_>,
) -> Result<Value, EvalError> {
    let Some((index, arguments)) = operands.split_first() else {
        return Err(EvalError::reason("conditional without operands"));
    };
    let last = branches.len().wrapping_sub(1);
    let branch = match scalar(index)? {
        Scalar::Pred(holds) => usize::from(!holds),
        Scalar::Int(i) => usize::try_from(i).unwrap_or(last).min(last),
        Scalar::Uint(i) => usize::try_from(i).unwrap_or(last).min(last),
        Scalar::Float(_) => return Err(EvalError::reason("conditional with a float for its index")),
    };
    match (branches.get(branch), arguments.get(branch)) {
        (Some(computation), Some(argument)) => run(computation, vec![argument.clone()], context),
        (_, _) => Err(EvalError::reason(format!(
            "conditional with {} branches and {} arguments has no branch {branch}",
            branches.len(),
            arguments.len()
        ))),
    }
}

/// One element of a tuple.
pub(crate) fn get_tuple_element(value: &Value, index: usize) -> Result<Value, EvalError> {
    match value {
        Value::Tuple(values) => values
            .get(index)
            .cloned()
            .ok_or_else(|| EvalError::reason(format!("element {index} of a tuple of {}", values.len()))),
        Value::Array(_) | Value::QArray(_) => Err(EvalError::reason("get-tuple-element of an array")),
    }
}

/// The number in an array of one element.
pub(crate) fn scalar(value: &Value) -> Result<Scalar, EvalError> {
    match value {
        Value::Array(array) if array.len() == 1 => Ok(Lanes::read(array)?.get(0)),
        Value::Array(array) => Err(EvalError::reason(format!("expected a scalar, found {array:?}"))),
        Value::QArray(_) | Value::Tuple(_) => Err(EvalError::reason("expected a scalar")),
    }
}
