//! Tuples, loops, branches and calls. Nested computations are planned as the outer one is.

use qwix_eval::{EvalError, Value};
use qwix_graph::{Computation, NodeId, Op};

use crate::plan::{Context, Planned, Planning, Program, Step};
use crate::values::{array, fail};

struct Tuple;

impl Step for Tuple {
    fn name(&self) -> &'static str {
        "tuple"
    }

    fn run(&self, operands: Vec<Value>, _: &Context<'_>) -> Result<Value, EvalError> {
        Ok(Value::Tuple(operands))
    }
}

struct Element(usize);

impl Step for Element {
    fn name(&self) -> &'static str {
        "get-tuple-element"
    }

    fn run(&self, mut operands: Vec<Value>, _: &Context<'_>) -> Result<Value, EvalError> {
        match operands.pop() {
            Some(Value::Tuple(mut elements)) if self.0 < elements.len() => Ok(elements.swap_remove(self.0)),
            _ => Err(fail(format!("there is no element {}", self.0))),
        }
    }
}

struct Pass;

impl Step for Pass {
    fn name(&self) -> &'static str {
        "pass"
    }

    fn run(&self, mut operands: Vec<Value>, _: &Context<'_>) -> Result<Value, EvalError> {
        match operands.len() {
            1 => Ok(operands.swap_remove(0)),
            _ => Ok(Value::Tuple(operands)),
        }
    }
}

struct While {
    condition: Program,
    body: Program,
}

impl Step for While {
    fn name(&self) -> &'static str {
        "while"
    }

    fn run(&self, mut operands: Vec<Value>, context: &Context<'_>) -> Result<Value, EvalError> {
        let mut state = operands.pop().ok_or_else(|| fail("a loop takes a state"))?;
        drop(operands);
        loop {
            let go_on = self.condition.run(vec![Some(state.clone())], context)?;
            if array(&go_on)?.bytes().first().is_none_or(|&byte| byte == 0) {
                return Ok(state);
            }
            state = self.body.run(vec![Some(state)], context)?;
        }
    }
}

struct Conditional {
    branches: Vec<Program>,
    by_pred: bool,
}

impl Step for Conditional {
    fn name(&self) -> &'static str {
        "conditional"
    }

    fn run(&self, mut operands: Vec<Value>, context: &Context<'_>) -> Result<Value, EvalError> {
        let index = array(operands.first().ok_or_else(|| fail("a conditional takes an index"))?)?;
        let last = self.branches.len().saturating_sub(1);
        let branch = if self.by_pred {
            // true takes the first branch.
            usize::from(index.bytes().first() == Some(&0))
        } else {
            // An index out of range takes the last.
            let index = index.values::<i32>()?.first().copied().unwrap_or(-1);
            usize::try_from(index).unwrap_or(last).min(last)
        };
        if branch > last || branch + 1 >= operands.len() {
            return Err(fail(format!("there is no branch {branch}")));
        }
        let argument = operands.swap_remove(branch + 1);
        drop(operands);
        self.branches[branch].run(vec![Some(argument)], context)
    }
}

struct Call(Program);

impl Step for Call {
    fn name(&self) -> &'static str {
        "call"
    }

    fn run(&self, operands: Vec<Value>, context: &Context<'_>) -> Result<Value, EvalError> {
        self.0.run(operands.into_iter().map(Some).collect(), context)
    }
}

pub(super) fn plan(planning: &Planning<'_>, id: NodeId) -> Option<Planned> {
    let node = planning.node(id);
    match &node.op {
        Op::Tuple => Planned::of(node, Tuple),
        Op::GetTupleElement(index) => Planned::of(node, Element(*index)),
        Op::OptimizationBarrier | Op::Sharding { .. } => Planned::of(node, Pass),
        Op::Unary(qwix_graph::UnaryOp::Copy) => Planned::of(node, Pass),
        _ => None,
    }
}

/// Plans the nodes that call computations once or over and over.
pub(super) fn plan_nested(planning: &Planning<'_>, id: NodeId) -> Option<Result<Planned, EvalError>> {
    let node = planning.node(id);
    let context = Context { buffers: planning.buffers, times: None };
    let program = |computation: &Computation| {
        let arguments = vec![None; computation.parameters().len()];
        Program::plan(computation, arguments, &context)
    };
    let planned = |step: Result<Box<dyn Step>, EvalError>| {
        Some(step.map(|step| Planned { step, operands: node.operands.clone() }))
    };
    match &node.op {
        Op::While { condition, body } => planned((|| {
            Ok(Box::new(While { condition: program(condition)?, body: program(body)? }) as Box<dyn Step>)
        })()),
        Op::Conditional { branches } => {
            let by_pred = planning.array_type(*node.operands.first()?)?.dtype == qwix_array::DType::Pred;
            planned((|| {
                let branches = branches.iter().map(|b| program(b)).collect::<Result<Vec<_>, _>>()?;
                Ok(Box::new(Conditional { branches, by_pred }) as Box<dyn Step>)
            })())
        }
        Op::Call { computation, .. } => {
            planned(program(computation).map(|program| Box::new(Call(program)) as Box<dyn Step>))
        }
        _ => None,
    }
}
