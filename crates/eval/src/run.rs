//! Runs computations, node by node.

use qwix_graph::{Computation, Op};

use crate::evaluate::evaluate_in;
use crate::{EvalError, Value};

/// What an evaluation may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Limits {
    /// How often the body of one `while` may run; as often as it likes when `None`.
    pub max_iterations: Option<u64>,
    /// How many elements an array may have; as many as memory holds when `None`.
    pub max_elements: Option<usize>,
}

/// Computations inside computations, at most; deeper ones would overflow the stack.
const MAX_DEPTH: usize = 128;

/// Where an evaluation stands.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    pub(crate) limits: &'a Limits,
    pub(crate) depth: usize,
}

impl<'a> Context<'a> {
    pub(crate) fn new(limits: &'a Limits) -> Self {
        Context { limits, depth: 0 }
    }
}

/// The value of a computation's root; arguments by parameter number. Values are dropped after their last use.
pub(crate) fn run(
    computation: &Computation,
    arguments: Vec<Value>,
    context: Context<'_>,
) -> Result<Value, EvalError> {
    if context.depth >= MAX_DEPTH {
        return Err(EvalError::reason(format!(
            "computations are nested more than {MAX_DEPTH} deep at `{}`",
            computation.name
        )));
    }
    let context = Context { depth: context.depth + 1, ..context };
    let count = computation.nodes.len();
    let mut last_use = vec![usize::MAX; count];
    for (index, node) in computation.nodes.iter().enumerate() {
        for operand in &node.operands {
            if operand.index() >= index {
                return Err(EvalError::reason("uses a value that comes later").at(node));
            }
            last_use[operand.index()] = index;
        }
    }
    let root = computation.root.index();
    if root >= count {
        return Err(EvalError::reason(format!("computation `{}` has no root", computation.name)));
    }
    last_use[root] = usize::MAX;
    let mut values: Vec<Option<Value>> = vec![None; count];
    for (index, node) in computation.nodes.iter().enumerate() {
        // What nothing uses is not computed: no op here has an effect besides its value.
        if last_use[index] == usize::MAX && index != root {
            continue;
        }
        let value = match node.op {
            Op::Parameter(number) => arguments.get(number).cloned().ok_or_else(|| {
                EvalError::reason(format!("parameter {number} of {} arguments", arguments.len())).at(node)
            })?,
            _ => {
                let operands: Vec<Value> = node
                    .operands
                    .iter()
                    .map(|id| values[id.index()].clone())
                    .collect::<Option<_>>()
                    .ok_or_else(|| EvalError::reason("an operand was not computed").at(node))?;
                for id in &node.operands {
                    if last_use[id.index()] == index {
                        values[id.index()] = None;
                    }
                }
                evaluate_in(&node.op, &node.ty, &operands, context).map_err(|e| e.at(node))?
            }
        };
        if index == root {
            return Ok(value);
        }
        values[index] = Some(value);
    }
    Err(EvalError::reason(format!("computation `{}` did not reach its root", computation.name)))
}
