//! Which nodes run as one pass over blocks of elements, and the program that does it.

use std::collections::{BTreeSet, HashMap, HashSet};

use qwix_array::{Array, DType};
use qwix_graph::{BinaryOp, CompareOrder, Comparison, Computation, Node, NodeId, Op, Type, UnaryOp};
use qwix_simd::vm::{Binary, Builder, Compare, Instr, Num, Program, Unary, Val};

use crate::plan::Planning;
use crate::values::num;
use crate::view::View;

/// Instructions of one program at most: what is longer is cut, so that registers stay in the nearest caches.
const MAX_INSTRS: usize = 96;
/// Inputs of one program at most that have more than one element.
const MAX_INPUTS: usize = 20;
/// Inputs of one program at most, scalars included.
const MAX_LEAVES: usize = 96;

/// Where a program's input comes from.
pub(crate) struct Leaf {
    pub(crate) from: Source,
    /// How its elements are walked, in the order of the result's; merged.
    pub(crate) view: View,
    pub(crate) num: Num,
}

/// What a leaf reads.
pub(crate) enum Source {
    /// A node's value.
    Node(NodeId),
    /// An array made here.
    Fixed(Array),
}

/// A chain of nodes as one program.
pub(crate) struct Fused {
    pub(crate) program: Program,
    pub(crate) leaves: Vec<Leaf>,
}

/// The instruction of an element-wise op, when programs have it. Operands are as many values as the op has.
fn instr(op: &Op, from: Num, to: Num, operands: &[Val]) -> Option<Instr> {
    let at = |i: usize| operands.get(i).copied();
    Some(match op {
        Op::Unary(op) => Instr::Unary { op: unary(*op, from)?, num: from, a: at(0)? },
        Op::Binary(op) => Instr::Binary { op: binary(*op, from)?, num: from, a: at(0)?, b: at(1)? },
        Op::Compare { comparison, order } => Instr::Compare {
            compare: match comparison {
                Comparison::Eq => Compare::Eq,
                Comparison::Ne => Compare::Ne,
                Comparison::Lt => Compare::Lt,
                Comparison::Le => Compare::Le,
                Comparison::Gt => Compare::Gt,
                Comparison::Ge => Compare::Ge,
            },
            total: *order == CompareOrder::Total,
            num: from,
            a: at(0)?,
            b: at(1)?,
        },
        Op::Select => Instr::Select { num: to, mask: at(0)?, a: at(1)?, b: at(2)? },
        Op::Convert => Instr::Convert { from, to, a: at(0)? },
        _ => return None,
    })
}

fn unary(op: UnaryOp, num: Num) -> Option<Unary> {
    let float = num.is_float();
    let unary = match op {
        UnaryOp::Abs => Unary::Abs,
        UnaryOp::Negate => Unary::Negate,
        UnaryOp::Sign => Unary::Sign,
        UnaryOp::Not if !float => Unary::Not,
        UnaryOp::Clz if !float => Unary::Clz,
        UnaryOp::PopulationCount if !float => Unary::PopulationCount,
        UnaryOp::Cbrt if float => Unary::Cbrt,
        UnaryOp::Ceil if float => Unary::Ceil,
        UnaryOp::Cos if float => Unary::Cos,
        UnaryOp::Erf if float => Unary::Erf,
        UnaryOp::Exp if float => Unary::Exp,
        UnaryOp::Expm1 if float => Unary::Expm1,
        UnaryOp::Floor if float => Unary::Floor,
        UnaryOp::IsFinite if float => Unary::IsFinite,
        UnaryOp::Log if float => Unary::Log,
        UnaryOp::Log1p if float => Unary::Log1p,
        UnaryOp::Logistic if float => Unary::Logistic,
        UnaryOp::RoundNearestAfz if float => Unary::RoundNearestAfz,
        UnaryOp::RoundNearestEven if float => Unary::RoundNearestEven,
        UnaryOp::Rsqrt if float => Unary::Rsqrt,
        UnaryOp::Sin if float => Unary::Sin,
        UnaryOp::Sqrt if float => Unary::Sqrt,
        UnaryOp::Tan if float => Unary::Tan,
        UnaryOp::Tanh if float => Unary::Tanh,
        // Copy is no instruction; the others are not of this type, and the reference says so.
        UnaryOp::Copy
        | UnaryOp::Not
        | UnaryOp::Clz
        | UnaryOp::PopulationCount
        | UnaryOp::Cbrt
        | UnaryOp::Ceil
        | UnaryOp::Cos
        | UnaryOp::Erf
        | UnaryOp::Exp
        | UnaryOp::Expm1
        | UnaryOp::Floor
        | UnaryOp::IsFinite
        | UnaryOp::Log
        | UnaryOp::Log1p
        | UnaryOp::Logistic
        | UnaryOp::RoundNearestAfz
        | UnaryOp::RoundNearestEven
        | UnaryOp::Rsqrt
        | UnaryOp::Sin
        | UnaryOp::Sqrt
        | UnaryOp::Tan
        | UnaryOp::Tanh => return None,
    };
    let of_pred = unary == Unary::Not;
    (num != Num::Pred || of_pred).then_some(unary)
}

fn binary(op: BinaryOp, num: Num) -> Option<Binary> {
    let float = num.is_float();
    let binary = match op {
        BinaryOp::Add => Binary::Add,
        BinaryOp::Subtract => Binary::Subtract,
        BinaryOp::Multiply => Binary::Multiply,
        BinaryOp::Maximum => Binary::Maximum,
        BinaryOp::Minimum => Binary::Minimum,
        BinaryOp::Divide if num != Num::Pred => Binary::Divide,
        BinaryOp::Remainder if num != Num::Pred => Binary::Remainder,
        BinaryOp::Power if num != Num::Pred => Binary::Power,
        BinaryOp::Atan2 if float => Binary::Atan2,
        BinaryOp::And if !float => Binary::And,
        BinaryOp::Or if !float => Binary::Or,
        BinaryOp::Xor if !float => Binary::Xor,
        BinaryOp::ShiftLeft if !float && num != Num::Pred => Binary::ShiftLeft,
        BinaryOp::ShiftRightArithmetic if !float && num != Num::Pred => Binary::ShiftRightArithmetic,
        BinaryOp::ShiftRightLogical if !float && num != Num::Pred => Binary::ShiftRightLogical,
        BinaryOp::Divide
        | BinaryOp::Remainder
        | BinaryOp::Power
        | BinaryOp::Atan2
        | BinaryOp::And
        | BinaryOp::Or
        | BinaryOp::Xor
        | BinaryOp::ShiftLeft
        | BinaryOp::ShiftRightArithmetic
        | BinaryOp::ShiftRightLogical => return None,
    };
    Some(binary)
}

/// The number types of a node's operand (for a select, of what is selected) and of its result.
fn types(node: &Node, ty: impl Fn(NodeId) -> Option<DType>) -> Option<(Num, Num)> {
    let Type::Array(result) = &node.ty else { return None };
    let which = if matches!(node.op, Op::Select | Op::Clamp) { 1 } else { 0 };
    Some((num(ty(*node.operands.get(which)?)?)?, num(result.dtype)?))
}

/// Adds a node's instructions, given its operands' values.
fn push(builder: &mut Builder, op: &Op, from: Num, to: Num, operands: &[Val]) -> Option<Val> {
    if let Op::Clamp = op {
        let &[low, x, high] = operands else { return None };
        let x = builder.push(Instr::Binary { op: Binary::Maximum, num: from, a: low, b: x });
        return Some(builder.push(Instr::Binary { op: Binary::Minimum, num: from, a: x, b: high }));
    }
    let instr = instr(op, from, to, operands)?;
    Some(builder.push(instr))
}

/// Whether programs have a node's op in its types.
fn is_program(planning: &Planning<'_>, node: &Node) -> bool {
    let Some((from, to)) = types(node, |id| planning.array_type(id).map(|ty| ty.dtype)) else { return false };
    matches!(node.op, Op::Clamp) && from != Num::Pred || instr(&node.op, from, to, &[0, 0, 0]).is_some()
}

/// A node whose elements are the given one's, read in another order; and that order, in the given node's shape. Unless `any`,
/// orders that go through memory in short runs are left to a step of their own.
pub(crate) fn look_through(planning: &Planning<'_>, id: NodeId, any: bool) -> Option<(Source, View)> {
    // Down to the first node that computes something.
    let mut path = vec![id];
    let mut deepest = id;
    while planning.known_array(deepest).is_none() && only_moves(&planning.node(deepest).op) {
        match planning.node(deepest).operands.first() {
            Some(&operand) if planning.array_type(operand).is_some() => deepest = operand,
            _ => break,
        }
        path.push(deepest);
    }
    // And up again, for as far as strides can say it.
    let mut source = None;
    let mut view = View::dense(&[]);
    for &id in path.iter().rev() {
        let node = planning.node(id);
        let ty = planning.array_type(id)?;
        let moved = if source.is_none() {
            None
        } else {
            match &node.op {
                Op::Broadcast { dimensions } => view.broadcast(&ty.shape, dimensions),
                Op::Slice(dims) => view.slice(dims),
                Op::Reverse { dimensions } => view.reverse(dimensions),
                Op::Reshape => view.reshape(&ty.shape),
                Op::Transpose { permutation } => view.transpose(permutation).filter(|v| any || reads_well(v)),
                _ => None,
            }
        };
        view = match (moved, &node.op) {
            (Some(moved), _) => moved,
            (None, Op::Iota { dimension })
                if let Some((counts, walk)) = iota(ty.dtype, &ty.shape, *dimension) =>
            {
                source = Some(Source::Fixed(counts));
                walk
            }
            (None, _) => {
                source = Some(Source::Node(id));
                View::dense(&ty.shape)
            }
        };
    }
    Some((source?, view))
}

/// Whether an op only says which of its operand's elements its own are.
fn only_moves(op: &Op) -> bool {
    matches!(
        op,
        Op::Broadcast { .. } | Op::Slice(_) | Op::Reverse { .. } | Op::Reshape | Op::Transpose { .. }
    )
}

/// The largest iota that is written out as an array.
const MAX_IOTA: usize = 1 << 20;

/// The counts along one axis, and the walk that repeats them over the whole shape.
fn iota(dtype: DType, shape: &[usize], dimension: usize) -> Option<(Array, View)> {
    let count = *shape.get(dimension)?;
    if count > MAX_IOTA {
        return None;
    }
    num(dtype)?;
    let counts = Array::from_vec(&[count], (0..count as i32).collect::<Vec<i32>>()).ok()?.convert(dtype);
    let view = View::dense(&[count]).broadcast(shape, &[dimension])?;
    Some((counts, view))
}

/// Whether a walk goes through memory in runs that are worth it.
fn reads_well(view: &View) -> bool {
    let merged = view.merged();
    match merged.axes.last() {
        None => true,
        Some(&(size, stride)) => stride == 0 || (stride == 1 && size >= 8) || merged.len() <= 256,
    }
}

/// Whether a node is one element, or one that is repeated.
fn is_one(planning: &Planning<'_>, id: NodeId) -> bool {
    let node = planning.node(id);
    let id = if matches!(node.op, Op::Broadcast { .. }) { node.operands.first().copied() } else { Some(id) };
    id.and_then(|id| planning.array_type(id)).is_some_and(|ty| ty.shape.iter().product::<usize>() == 1)
}

/// The chain that ends in a node, when the node is element-wise (or walks another's elements).
pub(crate) fn chain(planning: &Planning<'_>, root: NodeId) -> Option<Fused> {
    let node = planning.node(root);
    let Type::Array(ty) = &node.ty else { return None };
    num(ty.dtype)?;
    if !is_program(planning, node) {
        return None;
    }
    let count: usize = ty.shape.iter().product();

    // The nodes to take in, from the last to the first: when one is looked at, all of its users have been.
    let mut group: HashSet<NodeId> = HashSet::from([root]);
    let mut open: BTreeSet<NodeId> = node.operands.iter().copied().collect();
    let mut leaves: HashSet<NodeId> = HashSet::new();
    while let Some(id) = open.pop_last() {
        let node = planning.node(id);
        let same_size = planning.array_type(id).is_some_and(|ty| ty.shape.iter().product::<usize>() == count);
        let takes = planning.fuses
            && planning.known[id.index()].is_none()
            && same_size
            && planning.used_only_by(id, |user| group.contains(&user))
            && (is_program(planning, node)
                || (matches!(node.op, Op::Reshape)
                    && planning.array_type(*node.operands.first()?).is_some()))
            && group.len() < MAX_INSTRS
            && leaves.len() + open.len() + node.operands.len() <= MAX_LEAVES
            && leaves.iter().chain(&open).chain(&node.operands).filter(|&&id| !is_one(planning, id)).count()
                <= MAX_INPUTS;
        if takes {
            group.insert(id);
            open.extend(node.operands.iter().copied());
        } else {
            leaves.insert(id);
        }
    }

    // Inputs first, then instructions in the nodes' order.
    let mut ordered: Vec<NodeId> = leaves.into_iter().collect();
    ordered.sort_unstable();
    let mut inputs = Vec::new();
    let mut nums = Vec::new();
    let mut values: HashMap<NodeId, Val> = HashMap::new();
    for id in ordered {
        let dtype = planning.array_type(id)?.dtype;
        let element = num(dtype)?;
        let (from, view) = if planning.fuses {
            look_through(planning, id, false)?
        } else {
            (Source::Node(id), View::dense(&planning.array_type(id)?.shape))
        };
        // A scalar bound or predicate serves all elements.
        let view = if view.len() == count {
            view.merged()
        } else {
            View { offset: view.offset, axes: vec![(count, 0)] }
        };
        values.insert(id, inputs.len());
        inputs.push(Leaf { from, view, num: element });
        nums.push(element);
    }
    let mut builder = Builder::new(&nums);
    let mut members: Vec<NodeId> = group.into_iter().collect();
    members.sort_unstable();
    for id in members {
        let node = planning.node(id);
        let operands: Vec<Val> =
            node.operands.iter().map(|o| values.get(o).copied()).collect::<Option<_>>()?;
        let value = if matches!(node.op, Op::Reshape) {
            *operands.first()?
        } else {
            let (from, to) = types(node, |id| planning.array_type(id).map(|ty| ty.dtype))?;
            push(&mut builder, &node.op, from, to, &operands)?
        };
        values.insert(id, value);
    }
    let result = values[&root];
    Some(Fused { program: builder.finish(&[result]), leaves: inputs })
}

/// A computation of scalars as a program: its parameters are the inputs, in order; its result, or the elements of its result
/// tuple, the outputs.
pub(crate) fn scalar_program(computation: &Computation) -> Option<Program> {
    let mut values: HashMap<NodeId, Val> = HashMap::new();
    let mut nums = Vec::new();
    let scalar = |id: NodeId| match &computation.node(id).ty {
        Type::Array(ty) if ty.shape.is_empty() => num(ty.dtype),
        _ => None,
    };
    for id in computation.parameters() {
        values.insert(id, nums.len());
        nums.push(scalar(id)?);
    }
    let mut builder = Builder::new(&nums);
    let root = computation.node(computation.root);
    for (id, node) in computation.iter() {
        if matches!(node.op, Op::Parameter(_)) || (id == computation.root && matches!(node.op, Op::Tuple)) {
            continue;
        }
        let operands: Vec<Val> =
            node.operands.iter().map(|o| values.get(o).copied()).collect::<Option<_>>()?;
        let dtype = |id: NodeId| computation.node(id).ty.as_array().map(|ty| ty.dtype);
        let value = match &node.op {
            Op::Constant(array) => {
                scalar(id)?;
                builder.push(Instr::constant(num(array.dtype())?, array.bytes())?)
            }
            Op::Reshape | Op::Broadcast { .. } | Op::Unary(UnaryOp::Copy) => {
                scalar(id)?;
                *operands.first()?
            }
            op => {
                scalar(id)?;
                let (from, to) = types(node, dtype)?;
                push(&mut builder, op, from, to, &operands)?
            }
        };
        values.insert(id, value);
    }
    let outputs: Vec<Val> = match &root.op {
        Op::Tuple => root.operands.iter().map(|o| values.get(o).copied()).collect::<Option<_>>()?,
        _ => vec![*values.get(&computation.root)?],
    };
    Some(builder.finish(&outputs))
}
