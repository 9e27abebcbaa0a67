//! From an operand back to the variable that it is.

use std::sync::Arc;

use qwix_array::element_count;
use qwix_graph::{Callee, Computation, Graph, NodeId, Op, Prep, Role, Sharding, SliceDim, Type, UnaryOp};
use qwix_quant::{Granularity, HowToQuantize};

/// Where the quantized form of a weight is kept.
#[derive(Clone, PartialEq, Debug)]
pub enum Storage {
    /// As a parameter in the shape that the op computes with: these steps are taken when the weight is quantized.
    Folded {
        /// Data movement between the variable and the op, conversions left out.
        prep: Vec<Prep>,
    },
    /// As a parameter in the variable's own shape, which flows through loops and slices to the op.
    InPlace {
        /// For each axis of the variable, what the op makes of it.
        axes: Vec<AxisUse>,
        /// The steps in the op's computation, from the first node that can be quantized to the operand.
        chain: Vec<NodeId>,
    },
    /// As the float that it was; quantized whenever the op runs.
    EachRun {
        /// Why it cannot be stored quantized.
        reason: String,
    },
}

/// What becomes of an axis of a stacked variable on the way to its op.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AxisUse {
    /// It is this axis of the operand.
    Whole(usize),
    /// Part of it is this axis of the operand: scales must not be shared along it.
    Part(usize),
    /// One index at a time.
    Index,
}

/// An operand that is a variable.
#[derive(Clone, PartialEq, Debug)]
pub struct Weight {
    /// The variable's number in the signature.
    pub parameter: usize,
    /// The node of the op's computation to quantize when the weight is quantized on each run: conversions undone.
    pub source: NodeId,
    /// Where its quantized form is kept.
    pub storage: Storage,
    /// Where it is kept when another use of the variable stands against that.
    pub fallback: Storage,
    /// What the model says of the operand's sharding (`with_sharding_constraint` of the weight), and the axes that this
    /// leaves open.
    pub constraint: Option<(Sharding, Vec<usize>)>,
}

impl Weight {
    /// Whether scales so shared can be kept with it.
    pub(crate) fn can_keep(&self, how: &HowToQuantize) -> bool {
        match &self.storage {
            Storage::InPlace { axes, .. } => axes.iter().all(|axis| match *axis {
                AxisUse::Part(to) => how.granularity.get(to) == Some(&Granularity::Channelwise),
                AxisUse::Whole(_) | AxisUse::Index => true,
            }),
            Storage::Folded { .. } | Storage::EachRun { .. } => true,
        }
    }

    /// Keeps it in the other place, for this reason.
    pub(crate) fn fall_back(&mut self, reason: &str) {
        self.storage = match &self.fallback {
            Storage::EachRun { .. } => Storage::EachRun { reason: reason.to_owned() },
            Storage::Folded { .. } | Storage::InPlace { .. } => self.fallback.clone(),
        };
    }
}

#[derive(Clone, Debug)]
enum Step {
    Convert,
    Reshape(Vec<usize>),
    Transpose(Vec<usize>),
    Slice(Vec<SliceDim>),
    DynamicSlice(Vec<usize>),
    /// Something that can only be done when the model runs; its name.
    Other(&'static str),
}

struct Walk<'a> {
    /// The computations from the entry to the current one, each with the step that leads into it.
    stack: Vec<(Option<Callee>, &'a Arc<Computation>)>,
    node: NodeId,
    /// Elements of tuples that are asked for, the innermost last.
    elements: Vec<usize>,
    /// Steps from the operand to the variable, with whether they stand in the op's computation.
    steps: Vec<(bool, Step)>,
    /// Whether the walk has not left the op's computation yet.
    home: bool,
    /// Nodes of the op's computation, from the operand on.
    chain: Vec<NodeId>,
    /// The constraint on its sharding that is nearest to the op.
    constraint: Option<Constraint>,
}

/// A sharding that the model asks for on the way from a variable to its op.
struct Constraint {
    sharding: Sharding,
    /// The axes that it leaves open.
    open: Vec<usize>,
    /// The shape of the array there.
    shape: Vec<usize>,
    /// How many steps there are from the operand back to it.
    steps: usize,
}

/// Far more steps than any model has between a variable and its op; ends walks through damaged graphs.
const MAX_STEPS: usize = 10_000;

/// The variable that a node is, if it is one; `at` leads to the node's computation.
pub fn trace(graph: &Graph, at: &[Callee], node: NodeId) -> Option<Weight> {
    let mut stack = vec![(None, &graph.entry)];
    for &step in at {
        let called = stack.last()?.1.nodes.get(step.node.index())?.op.called();
        stack.push((Some(step), called.get(step.index).copied()?));
    }
    let home = stack.last()?.1;
    let mut walk =
        Walk { stack, node, elements: vec![], steps: vec![], home: true, chain: vec![], constraint: None };
    let number = (0..MAX_STEPS).find_map(|_| walk.back().transpose())?.ok()?;
    let parameter = graph.parameters.get(number).filter(|p| p.role == Role::Variable)?;
    let Type::Array(array) = &parameter.ty else { return None };
    if !array.dtype.is_wide_float() {
        return None;
    }
    let constraint = constraint(&walk);
    let (storage, fallback) = storage(&array.shape, at.is_empty(), walk);
    Some(Weight { parameter: number, source: source(home, node), storage, fallback, constraint })
}

/// The constraint on a weight's sharding as it is at the op. One that does not follow the steps to it is the partitioner's
/// choice again.
fn constraint(walk: &Walk<'_>) -> Option<(Sharding, Vec<usize>)> {
    let Constraint { sharding, open, shape, steps } = walk.constraint.as_ref()?;
    let steps: Vec<(bool, Step)> = walk.steps.get(..*steps)?.iter().rev().cloned().collect();
    let steps = fold(shape, &steps).ok()?;
    if !open.is_empty() && !steps.is_empty() {
        return None;
    }
    Some((sharding.followed(shape, &steps).ok()?, open.clone()))
}

/// The node before the conversions of an operand.
fn source(computation: &Computation, mut id: NodeId) -> NodeId {
    while let Some(node) = computation.nodes.get(id.index())
        && let Op::Convert = node.op
        && let Some(&before) = node.operands.first()
    {
        id = before;
    }
    id
}

impl<'a> Walk<'a> {
    fn node(&self, id: NodeId) -> Option<&'a qwix_graph::Node> {
        self.stack.last()?.1.nodes.get(id.index())
    }

    /// One step towards the variable: its number when it is reached, an error when this is no variable.
    fn back(&mut self) -> Result<Option<usize>, ()> {
        self.try_back().ok_or(())
    }

    fn try_back(&mut self) -> Option<Option<usize>> {
        let node = self.node(self.node)?;
        let home = self.home;
        if home && node.ty.as_array().is_some() {
            self.chain.push(self.node);
        }
        let mut taken = None;
        let mut step = |step: Step| taken = Some(step);
        let operand = |i: usize| node.operands.get(i).copied();
        let shape = || node.ty.as_array().map(|a| a.shape.clone());
        match &node.op {
            Op::Parameter(number) => {
                self.home = false;
                let Some((Some(callee), _)) = self.stack.pop() else {
                    return self.elements.is_empty().then_some(Some(*number));
                };
                let caller = self.node(callee.node)?;
                let argument = match &caller.op {
                    Op::While { body, .. } => {
                        let element = *self.elements.last()?;
                        is_invariant(body, element).then_some(*caller.operands.first()?)?
                    }
                    Op::Conditional { .. } => *caller.operands.get(callee.index + 1)?,
                    Op::Call { .. } => *caller.operands.get(*number)?,
                    _ => return None,
                };
                self.node = argument;
                return Some(None);
            }
            Op::GetTupleElement(element) => self.elements.push(*element),
            Op::Tuple => {
                let element = self.elements.pop()?;
                self.node = operand(element)?;
                return Some(None);
            }
            Op::While { body, .. } => {
                if !is_invariant(body, *self.elements.last()?) {
                    return None;
                }
            }
            Op::Call { computation, .. } => {
                let callee = Callee { node: self.node, index: 0 };
                self.home = false;
                self.node = computation.root;
                self.stack.push((Some(callee), computation));
                return Some(None);
            }
            Op::OptimizationBarrier if node.operands.len() > 1 => {
                let element = self.elements.pop()?;
                self.node = operand(element)?;
                return Some(None);
            }
            Op::Sharding { open } => {
                if let (None, Some(sharding), Some(array)) =
                    (&self.constraint, &node.sharding, node.ty.as_array())
                {
                    self.constraint = Some(Constraint {
                        sharding: sharding.clone(),
                        open: open.clone(),
                        shape: array.shape.clone(),
                        steps: self.steps.len(),
                    });
                }
            }
            Op::OptimizationBarrier | Op::Unary(UnaryOp::Copy) => {}
            Op::Convert => {
                let wide = |id: NodeId| self.node(id)?.ty.as_array().map(|a| a.dtype.is_wide_float());
                if !(wide(self.node)? && wide(operand(0)?)?) {
                    return None;
                }
                step(Step::Convert);
            }
            Op::Reshape => step(Step::Reshape(shape()?)),
            Op::Transpose { permutation } => step(Step::Transpose(permutation.clone())),
            Op::Slice(dims) => step(Step::Slice(dims.clone())),
            Op::DynamicSlice { sizes } => step(Step::DynamicSlice(sizes.clone())),
            Op::Broadcast { dimensions } => {
                let from = &self.node(operand(0)?)?.ty.as_array()?.shape;
                let to = shape()?;
                let repeats = element_count(from) != element_count(&to);
                let sorted = dimensions.is_sorted();
                step(if repeats || !sorted { Step::Other("broadcast") } else { Step::Reshape(to) });
            }
            Op::Reverse { .. } => step(Step::Other("reverse")),
            _ => return None,
        }
        let next = operand(0)?;
        self.steps.extend(taken.map(|step| (home, step)));
        self.node = next;
        Some(None)
    }
}

/// Whether a loop hands an element of its state on as it is.
fn is_invariant(body: &Computation, element: usize) -> bool {
    let node = |id: NodeId| body.nodes.get(id.index());
    let Some(root) = node(body.root) else { return false };
    let mut value = match &root.op {
        Op::Tuple => match root.operands.get(element) {
            Some(&id) => id,
            None => return false,
        },
        _ => return false,
    };
    loop {
        let Some(n) = node(value) else { return false };
        match (&n.op, n.operands.first()) {
            (Op::GetTupleElement(e), Some(&state)) => {
                return *e == element && node(state).is_some_and(|s| matches!(s.op, Op::Parameter(0)));
            }
            (Op::Unary(UnaryOp::Copy), Some(&next)) => value = next,
            _ => return false,
        }
    }
}

/// A variable keeps its shape, and its quantized form its path, where slices or loops take parts of it; other steps are
/// taken beforehand, if they can be.
fn storage(shape: &[usize], entry: bool, walk: Walk<'_>) -> (Storage, Storage) {
    let Walk { mut steps, mut chain, .. } = walk;
    steps.reverse();
    chain.reverse();
    let each_run = |reason| Storage::EachRun { reason };
    let folded = if entry { fold(shape, &steps) } else { Err("a loop or branch uses it".to_owned()) };
    let folded = folded.map_or_else(each_run, |prep| Storage::Folded { prep });
    let whole = !steps.iter().any(|(_, s)| matches!(s, Step::Slice(_) | Step::DynamicSlice(_)));
    if whole && matches!(folded, Storage::Folded { .. }) {
        return (folded.clone(), folded);
    }
    match (axes(shape, &steps), &folded) {
        (Ok(axes), _) => (Storage::InPlace { axes, chain }, folded),
        (Err(_), Storage::Folded { .. }) => (folded.clone(), folded),
        (Err(reason), _) => (each_run(reason.clone()), each_run(reason)),
    }
}

/// The steps that are taken when the weight is quantized, neighbouring reshapes as one.
fn fold(shape: &[usize], steps: &[(bool, Step)]) -> Result<Vec<Prep>, String> {
    let mut prep: Vec<(Vec<usize>, Prep)> = vec![];
    let mut now = shape.to_vec();
    for (_, step) in steps {
        let (next, step) = match step {
            Step::Convert => continue,
            Step::Other(op) => return Err(format!("a {op} stands between the weight and the op")),
            Step::DynamicSlice(_) => return Err("a dynamic-slice picks the weight".to_owned()),
            Step::Reshape(to) => (to.clone(), Prep::Reshape(to.clone())),
            Step::Transpose(p) => (
                p.iter()
                    .map(|&axis| now.get(axis).copied().ok_or("a transpose of axes that are not there"))
                    .collect::<Result<_, _>>()?,
                Prep::Transpose(p.clone()),
            ),
            Step::Slice(dims) => (
                dims.iter().map(|d| d.limit.saturating_sub(d.start).div_ceil(d.stride.max(1))).collect(),
                Prep::Slice(dims.clone()),
            ),
        };
        if let Prep::Reshape(_) = step
            && let Some((_, Prep::Reshape(_))) = prep.last()
        {
            prep.pop();
        }
        let same = |step: &Prep| match step {
            Prep::Reshape(_) | Prep::Slice(_) => prep.last().map_or(shape, |(to, _)| to) == next,
            Prep::Transpose(p) => p.iter().copied().eq(0..p.len()),
        };
        if !same(&step) {
            prep.push((next.clone(), step));
        }
        now = next;
    }
    Ok(prep.into_iter().map(|(_, step)| step).collect())
}

/// What an op makes of each axis of a variable that reaches it through slices and unit axes.
fn axes(shape: &[usize], steps: &[(bool, Step)]) -> Result<Vec<AxisUse>, String> {
    let mut cut = vec![false; shape.len()];
    // The axes of the array at hand: size, and which axis of the variable it is.
    let mut now: Vec<(usize, Option<usize>)> = shape.iter().enumerate().map(|(i, &d)| (d, Some(i))).collect();
    for (home, step) in steps {
        let sizes: Vec<usize> = match step {
            Step::Convert if *home => continue,
            Step::Convert => return Err("it is converted outside the loop or branch that uses it".to_owned()),
            Step::Other(op) => return Err(format!("a {op} stands between the weight and the op")),
            Step::Transpose(_) => {
                return Err("it is transposed between a slice or loop and the op".to_owned());
            }
            Step::Reshape(to) => {
                let mut kept = now.iter().copied().filter(|a| a.0 != 1);
                let next: Option<Vec<_>> = to
                    .iter()
                    .map(|&d| if d == 1 { Some((1, None)) } else { kept.next().filter(|a| a.0 == d) })
                    .collect();
                match next {
                    Some(next) if kept.next().is_none() => now = next,
                    _ => return Err("it is reshaped between a slice or loop and the op".to_owned()),
                }
                continue;
            }
            Step::Slice(dims) => {
                dims.iter().map(|d| d.limit.saturating_sub(d.start).div_ceil(d.stride.max(1))).collect()
            }
            Step::DynamicSlice(sizes) => sizes.clone(),
        };
        for ((size, axis), taken) in now.iter_mut().zip(sizes) {
            if *size != taken {
                *size = taken;
                if let Some(axis) = *axis {
                    cut[axis] = true;
                }
            }
        }
    }
    Ok((0..shape.len())
        .map(|axis| match now.iter().position(|a| a.1 == Some(axis)) {
            Some(to) if !cut[axis] => AxisUse::Whole(to),
            Some(to) if now[to].0 > 1 => AxisUse::Part(to),
            Some(_) | None => AxisUse::Index,
        })
        .collect())
}
