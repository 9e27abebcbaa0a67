//! Whether a graph is whole: what every pass and backend may rely on.

use std::collections::{HashMap, HashSet};

use crate::infer::{check_type, infer};
use crate::{
    ArrayType, Computation, Graph, GraphError, Node, Op, Path, Prep, Role, Slot, StatisticPart,
    StatisticSlot, Type, WeightSlot,
};
use qwix_array::DType;

/// How deep computations may call one another.
pub const MAX_DEPTH: usize = 64;

impl Graph {
    /// Checks that operands come before their users, names are unique, parameters are numbered without a gap and match
    /// the signature, every node has the type that its op infers, computations fit their callers, and calls are not
    /// nested deeper than [`MAX_DEPTH`].
    ///
    /// # Errors
    /// The first thing that is wrong, with the computation's and the instruction's name.
    pub fn verify(&self) -> Result<(), GraphError> {
        Verifier::default().computation(&self.entry, 0)?;
        let invalid = |reason| Err(GraphError::Invalid { computation: self.name.clone(), reason });
        let nodes = self.entry.parameters();
        if nodes.len() != self.parameters.len() {
            return invalid(format!(
                "the entry has {} parameters, the signature {}",
                nodes.len(),
                self.parameters.len()
            ));
        }
        let mut paths: HashSet<(Role, &Path)> = HashSet::new();
        for (number, (id, parameter)) in nodes.into_iter().zip(&self.parameters).enumerate() {
            let node = self.entry.node(id);
            if node.ty != parameter.ty {
                return invalid(format!(
                    "parameter {number} `{}` is {}, the signature says {}",
                    parameter.path, node.ty, parameter.ty
                ));
            }
            if !paths.insert((parameter.role, &parameter.path)) {
                return invalid(format!("two parameters are named `{}`", parameter.path));
            }
            if let Some(slot) = &parameter.slot
                && let Err(reason) = check_slot(slot, &parameter.ty)
            {
                return invalid(format!("parameter {number} `{}`: {reason}", parameter.path));
            }
        }
        Ok(())
    }
}

/// That a slot makes what the parameter's type says.
fn check_slot(slot: &Slot, ty: &Type) -> Result<(), String> {
    match slot {
        Slot::Weight(slot) => check_weight(slot, ty),
        Slot::Statistic(slot) => check_statistic(slot, ty),
    }
}

fn check_statistic(slot: &StatisticSlot, ty: &Type) -> Result<(), String> {
    let dtype = match &slot.part {
        StatisticPart::Count => DType::S32,
        StatisticPart::Sum(_) => DType::F32,
        StatisticPart::Scale { qtype, asymmetric: true } if qtype.asymmetric_bounds.is_none() => {
            return Err(format!("is a scale of an asymmetric range, which {qtype} has not"));
        }
        StatisticPart::Scale { .. } => DType::F32,
        StatisticPart::ZeroPoint { qtype } if qtype.asymmetric_bounds.is_none() => {
            return Err(format!("is a zero point, which {qtype} has not"));
        }
        StatisticPart::ZeroPoint { qtype } => qtype.storage,
    };
    match ty {
        Type::Array(array)
            if array.dtype == dtype && (slot.part != StatisticPart::Count || array.shape.is_empty()) =>
        {
            Ok(())
        }
        _ => Err(format!("is {ty}, but the {} of statistics is of {dtype}", slot.part)),
    }
}

fn check_weight(slot: &WeightSlot, ty: &Type) -> Result<(), String> {
    let Type::QArray(q) = ty else { return Err(format!("has a slot, but its type is {ty}")) };
    let mut array = slot.source_type.clone();
    for prep in &slot.prep {
        array = prep.result(&array)?;
    }
    if array != q.array || slot.how != q.how {
        return Err(format!("is {ty}, but its slot makes {array} of {}", slot.how.qtype));
    }
    Ok(())
}

impl Prep {
    /// The type after this step.
    ///
    /// # Errors
    /// When the step does not fit the type.
    pub fn result(&self, array: &ArrayType) -> Result<ArrayType, String> {
        let operand = Type::Array(array.clone());
        let (op, declared) = match self {
            Prep::Reshape(shape) => (Op::Reshape, Type::array(array.dtype, shape.clone())),
            Prep::Transpose(permutation) => (Op::Transpose { permutation: permutation.clone() }, Type::Token),
            Prep::Slice(dims) => (Op::Slice(dims.clone()), Type::Token),
        };
        match infer(&op, &[&operand], &declared)? {
            Type::Array(result) => Ok(result),
            other => Err(format!("{array} becomes {other}")),
        }
    }
}

impl Computation {
    /// An error about one of this computation's nodes.
    pub(crate) fn error(&self, node: &Node, reason: String) -> GraphError {
        GraphError::Instruction {
            computation: self.name.clone(),
            instruction: node.name.clone(),
            opcode: node.op.name().to_owned(),
            reason,
        }
    }
}

/// Heights of the computations that were checked, so that a shared one is checked once.
#[derive(Default)]
struct Verifier {
    heights: HashMap<*const Computation, usize>,
}

impl Verifier {
    /// Checks a computation called at this depth; how many levels of calls there are below it.
    fn computation(&mut self, computation: &Computation, depth: usize) -> Result<usize, GraphError> {
        let invalid = |reason| GraphError::Invalid { computation: computation.name.clone(), reason };
        let too_deep = || invalid(format!("computations call one another more than {MAX_DEPTH} deep"));
        if depth > MAX_DEPTH {
            return Err(too_deep());
        }
        if let Some(&height) = self.heights.get(&std::ptr::from_ref(computation)) {
            return if depth + height > MAX_DEPTH { Err(too_deep()) } else { Ok(height) };
        }
        let count = computation.nodes.len();
        if computation.root.index() >= count {
            return Err(invalid(format!("the root is node {} of {count}", computation.root.0)));
        }
        let mut names = HashSet::new();
        let mut numbers = Vec::new();
        let mut height = 0;
        for (id, node) in computation.iter() {
            if !names.insert(node.name.as_str()) {
                return Err(computation.error(node, "two instructions have this name".into()));
            }
            if let Some(operand) = node.operands.iter().find(|o| **o >= id) {
                return Err(computation.error(node, format!("operand {} does not come before it", operand.0)));
            }
            if let Op::Parameter(number) = node.op {
                numbers.push(number);
            }
            for called in node.op.called() {
                height = height.max(1 + self.computation(called, depth + 1)?);
            }
            check_type(&node.ty).map_err(|reason| computation.error(node, reason))?;
            let operands: Vec<&Type> = node.operands.iter().map(|&o| &computation.node(o).ty).collect();
            let ty =
                infer(&node.op, &operands, &node.ty).map_err(|reason| computation.error(node, reason))?;
            if ty != node.ty {
                return Err(computation.error(node, format!("is declared {}, should be {ty}", node.ty)));
            }
        }
        numbers.sort_unstable();
        if !numbers.iter().copied().eq(0..numbers.len()) {
            return Err(invalid(format!("parameters are numbered {numbers:?}, expected 0, 1, …")));
        }
        self.heights.insert(std::ptr::from_ref(computation), height);
        Ok(height)
    }
}
