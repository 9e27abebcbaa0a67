//! From a computation to a list of steps, and running it.
//!
//! Nodes are planned from the last to the first, and only those that a step asks for: a step may take in the nodes that feed it (a
//! fused chain, a transpose that a product reads through), and they are then never computed by themselves.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use qwix_array::{Array, DType};
use qwix_eval::{EvalError, Value};
use qwix_graph::{ArrayType, Computation, Node, NodeId, Op, Type};
use rayon::prelude::*;

use crate::buffers::Pool;
use crate::steps;
use crate::values::{fail, named};

/// What steps run with.
pub(crate) struct Context<'a> {
    /// Where results get their memory.
    pub(crate) buffers: &'a Arc<Pool>,
    /// Where steps note how long they took, when somebody asks.
    pub(crate) times: Option<&'a Mutex<Vec<StepTime>>>,
}

/// How long one step of one run took.
#[derive(Clone, Debug)]
pub struct StepTime {
    /// The kind of step: `dot`, `fused`, `reference`.
    pub step: &'static str,
    /// The node that it computes.
    pub node: String,
    /// The time, that of nested computations included.
    pub time: Duration,
}

/// One planned piece of native work: a fused kernel, or the reference evaluator.
pub(crate) trait Step: Send + Sync {
    /// What it is, for people who look at plans.
    fn name(&self) -> &'static str;

    /// The work on weights that is done once, before the first run. It is put off until all steps are planned, so that
    /// those of a model are prepared side by side.
    fn prepare(&mut self) -> Result<(), EvalError> {
        Ok(())
    }

    /// The node's value. Operands that nobody uses afterwards are handed over for good: their memory may be written.
    fn run(&self, operands: Vec<Value>, context: &Context<'_>) -> Result<Value, EvalError>;
}

/// A step and the nodes whose values it takes, in its own order.
pub(crate) struct Planned {
    pub(crate) step: Box<dyn Step>,
    pub(crate) operands: Vec<NodeId>,
}

impl Planned {
    /// A step that takes the node's own operands.
    pub(crate) fn of(node: &Node, step: impl Step + 'static) -> Option<Self> {
        Some(Planned { step: Box::new(step), operands: node.operands.clone() })
    }
}

/// What is known of a computation while it is planned.
pub(crate) struct Planning<'a> {
    pub(crate) computation: &'a Computation,
    /// Values that do not depend on the call: variables, constants, and what was folded from them.
    pub(crate) known: Vec<Option<Value>>,
    /// Which live nodes use each node.
    users: Vec<Vec<NodeId>>,
    live: Vec<bool>,
    /// Whether steps may take in other nodes than their own.
    pub(crate) fuses: bool,
    pub(crate) buffers: &'a Arc<Pool>,
}

impl Planning<'_> {
    pub(crate) fn node(&self, id: NodeId) -> &Node {
        self.computation.node(id)
    }

    /// The type of a node that yields an array.
    pub(crate) fn array_type(&self, id: NodeId) -> Option<&ArrayType> {
        match &self.node(id).ty {
            Type::Array(ty) => Some(ty),
            Type::QArray(_) | Type::Tuple(_) | Type::Token | Type::Opaque(_) => None,
        }
    }

    /// A node's array when it does not depend on the call.
    pub(crate) fn known_array(&self, id: NodeId) -> Option<&Array> {
        match self.known[id.index()].as_ref()? {
            Value::Array(array) => Some(array),
            Value::QArray(_) | Value::Tuple(_) => None,
        }
    }

    /// Whether all of a node's users satisfy a condition; the computation's result has a user outside.
    pub(crate) fn used_only_by(&self, id: NodeId, condition: impl Fn(NodeId) -> bool) -> bool {
        id != self.computation.root && self.users[id.index()].iter().all(|&user| condition(user))
    }
}

struct Operand {
    slot: usize,
    /// Whether this is its last use.
    last: bool,
}

struct Scheduled {
    step: Box<dyn Step>,
    operands: Vec<Operand>,
    result: usize,
    node: String,
}

/// A planned computation.
pub(crate) struct Program {
    steps: Vec<Scheduled>,
    slots: usize,
    /// Values that do not depend on the call, and where they go.
    fixed: Vec<(usize, Value)>,
    /// Parameters that do, by number, and where they go.
    parameters: Vec<(usize, usize)>,
    root: usize,
}

/// Folding may make arrays of this size out of nothing (a broadcast scalar); larger ones only from operands as large.
const SMALL: usize = 1 << 12;

impl Program {
    /// Plans a computation; `arguments` are the parameters that do not depend on the call, by number.
    pub(crate) fn plan(
        computation: &Computation,
        arguments: Vec<Option<Value>>,
        context: &Context<'_>,
    ) -> Result<Self, EvalError> {
        let count = computation.nodes.len();
        if computation.root.index() >= count {
            return Err(fail(format!("computation `{}` has no root", computation.name)));
        }
        let mut live = vec![false; count];
        live[computation.root.index()] = true;
        let mut users = vec![Vec::new(); count];
        for (id, node) in computation.iter().rev() {
            countable(&node.ty).map_err(|e| named(e, &node.name))?;
            if live[id.index()] {
                for operand in &node.operands {
                    live[operand.index()] = true;
                    if users[operand.index()].last() != Some(&id) {
                        users[operand.index()].push(id);
                    }
                }
            }
        }
        let mut planning = Planning {
            computation,
            known: vec![None; count],
            users,
            live,
            fuses: false,
            buffers: context.buffers,
        };
        planning.fold(arguments, context)?;
        planning.fuses = true;
        let mut plans = planning.demand()?;
        // Elements of a tuple are taken out as soon as it is there, so that the tuple does not hold on to them.
        let mut order: Vec<usize> = (0..count).filter(|&i| plans[i].is_some()).collect();
        let mut place: Vec<usize> = (0..count).collect();
        for (id, node) in computation.iter() {
            if let Op::GetTupleElement(_) = node.op
                && let Some(tuple) = node.operands.first()
            {
                place[id.index()] = place[tuple.index()];
            }
        }
        order.sort_by_key(|&i| (place[i], i));

        let mut slots = vec![usize::MAX; count];
        let mut next = 0;
        let mut slot = |index: usize| {
            if slots[index] == usize::MAX {
                slots[index] = next;
                next += 1;
            }
            slots[index]
        };
        let root = slot(computation.root.index());
        let mut steps = Vec::with_capacity(order.len());
        let mut demanded = vec![false; count];
        demanded[computation.root.index()] = true;
        for index in order {
            let Some(Planned { step, operands }) = plans[index].take() else { continue };
            let mut wired = Vec::with_capacity(operands.len());
            for operand in operands {
                demanded[operand.index()] = true;
                wired.push(Operand { slot: slot(operand.index()), last: false });
            }
            let node = computation.nodes[index].name.clone();
            steps.push(Scheduled { step, operands: wired, result: slot(index), node });
        }
        let mut fixed = Vec::new();
        let mut parameters = Vec::new();
        for (id, node) in computation.iter() {
            if !demanded[id.index()] {
                continue;
            }
            if let Some(value) = planning.known[id.index()].take() {
                fixed.push((slot(id.index()), value));
            } else if let Op::Parameter(number) = node.op {
                parameters.push((number, slot(id.index())));
            }
        }
        let prepared: Vec<Result<(), EvalError>> =
            steps.par_iter_mut().map(|step| step.step.prepare().map_err(|e| named(e, &step.node))).collect();
        prepared.into_iter().collect::<Result<(), _>>()?;
        let slots = next;
        let mut used = vec![false; slots];
        used[root] = true;
        for step in steps.iter_mut().rev() {
            for operand in step.operands.iter_mut().rev() {
                operand.last = !std::mem::replace(&mut used[operand.slot], true);
            }
        }
        Ok(Program { steps, slots, fixed, parameters, root })
    }

    /// The result for these arguments, by parameter number.
    pub(crate) fn run(
        &self,
        mut arguments: Vec<Option<Value>>,
        context: &Context<'_>,
    ) -> Result<Value, EvalError> {
        let mut values: Vec<Option<Value>> = vec![None; self.slots];
        for (slot, value) in &self.fixed {
            values[*slot] = Some(value.clone());
        }
        for &(number, slot) in &self.parameters {
            let argument = arguments.get_mut(number).and_then(Option::take);
            values[slot] = Some(argument.ok_or_else(|| fail(format!("argument {number} is missing")))?);
        }
        drop(arguments);
        for step in &self.steps {
            let mut operands = Vec::with_capacity(step.operands.len());
            for operand in &step.operands {
                let value =
                    if operand.last { values[operand.slot].take() } else { values[operand.slot].clone() };
                operands.push(value.ok_or_else(|| named(fail("an operand was not computed"), &step.node))?);
            }
            let start = context.times.map(|_| Instant::now());
            let value = step.step.run(operands, context).map_err(|e| named(e, &step.node))?;
            if let (Some(times), Some(start)) = (context.times, start)
                && let Ok(mut times) = times.lock()
            {
                let (time, node) = (start.elapsed(), step.node.clone());
                times.push(StepTime { step: step.step.name(), node, time });
            }
            values[step.result] = Some(value);
        }
        values[self.root].take().ok_or_else(|| fail("the result was not computed"))
    }
}

impl Planning<'_> {
    /// Computes what does not depend on the call, unless that takes much more memory than what it is made from.
    fn fold(&mut self, mut arguments: Vec<Option<Value>>, context: &Context<'_>) -> Result<(), EvalError> {
        for index in 0..self.computation.nodes.len() {
            if !self.live[index] {
                continue;
            }
            let node = &self.computation.nodes[index];
            self.known[index] = match &node.op {
                Op::Parameter(number) => arguments.get_mut(*number).and_then(Option::take),
                Op::Constant(array) => Some(crate::values::aligned(Value::Array(array.clone()))?),
                _ if self.worth_folding(node) => {
                    let mut planned = steps::plan(self, NodeId(index as u32))?;
                    planned.step.prepare().map_err(|e| named(e, &node.name))?;
                    let operands: Option<Vec<Value>> =
                        planned.operands.iter().map(|o| self.known[o.index()].clone()).collect();
                    match operands {
                        Some(operands) => {
                            Some(planned.step.run(operands, context).map_err(|e| named(e, &node.name))?)
                        }
                        None => None,
                    }
                }
                _ => None,
            };
        }
        Ok(())
    }

    fn worth_folding(&self, node: &Node) -> bool {
        let bytes = |ty: &ArrayType| {
            qwix_array::element_count(&ty.shape).and_then(|n| ty.dtype.byte_len(n)).unwrap_or(usize::MAX)
        };
        let Type::Array(ty) = &node.ty else { return false };
        let mut given = SMALL;
        for operand in &node.operands {
            match &self.known[operand.index()] {
                Some(Value::Array(array)) => given = given.max(array.bytes().len()),
                Some(Value::QArray(_) | Value::Tuple(_)) | None => return false,
            }
        }
        bytes(ty) <= given && steps::is_cheap_to_fold(&node.op)
    }

    /// For each node the first one that computes the same: quantizations of one activation into ranges that turn out to
    /// be equal (the projections of attention have each their own parameter for it).
    fn same(&self) -> Vec<NodeId> {
        let mut same: Vec<NodeId> = self.computation.iter().map(|(id, _)| id).collect();
        let mut first: HashMap<NodeId, Vec<NodeId>> = HashMap::new();
        for (id, node) in self.computation.iter().filter(|(id, _)| self.live[id.index()]) {
            let (Op::Quantize(how), [x, range @ ..]) = (&node.op, node.operands.as_slice()) else { continue };
            let alike = |other: &NodeId| {
                let other = self.node(*other);
                let known = |(a, b): (&NodeId, &NodeId)| match (self.known_array(*a), self.known_array(*b)) {
                    (Some(a), Some(b)) => a == b,
                    (None, _) | (_, None) => a == b,
                };
                matches!(&other.op, Op::Quantize(its) if its == how)
                    && other.operands.len() == node.operands.len()
                    && range.iter().zip(&other.operands[1..]).all(known)
            };
            let others = first.entry(*x).or_default();
            match others.iter().find(|other| alike(other)) {
                Some(&other) => same[id.index()] = other,
                None => others.push(id),
            }
        }
        same
    }

    /// A plan for the root and for everything that plans ask for.
    fn demand(&self) -> Result<Vec<Option<Planned>>, EvalError> {
        let count = self.computation.nodes.len();
        let same = self.same();
        let mut plans: Vec<Option<Planned>> = (0..count).map(|_| None).collect();
        let mut demanded = vec![false; count];
        demanded[self.computation.root.index()] = true;
        for index in (0..count).rev() {
            let node = &self.computation.nodes[index];
            if !demanded[index] || self.known[index].is_some() || matches!(node.op, Op::Parameter(_)) {
                continue;
            }
            let mut planned = steps::plan(self, NodeId(index as u32)).map_err(|e| named(e, &node.name))?;
            for operand in &mut planned.operands {
                *operand = same[operand.index()];
                demanded[operand.index()] = true;
            }
            plans[index] = Some(planned);
        }
        Ok(plans)
    }
}

/// Refuses types whose elements or bytes cannot be counted, so that nobody has to ask again.
fn countable(ty: &Type) -> Result<(), EvalError> {
    match ty {
        Type::Array(array) => {
            let bytes = qwix_array::element_count(&array.shape).and_then(|n| DType::F64.byte_len(n));
            match bytes {
                Some(bytes) if bytes <= isize::MAX as usize / 2 => Ok(()),
                _ => Err(fail(format!("an array of type {array} is too large"))),
            }
        }
        Type::QArray(q) => countable(&Type::Array(q.array.clone())),
        Type::Tuple(elements) => elements.iter().try_for_each(countable),
        Type::Token | Type::Opaque(_) => Ok(()),
    }
}
