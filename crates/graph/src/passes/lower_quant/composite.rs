//! Quantized ops as composites: calls marked with what they stand for, whose computations are their decompositions. So
//! any XLA runs the module, and it can be read back whole (`import::composite`).
//!
//! A composite has one result, an array, and takes arrays: a quantized operand is two or three of them. An op that yields
//! a quantized array is a composite for each part of it. `quantize` finds the scale and the zero point with such calls,
//! and the qvalue with one that takes them as a static range. Results of several arrays are no way out: XLA's importer of
//! HLO into StableHLO takes composites with one result only.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Lowered, Lowering, Parts, Shared, lower, lower_quant, part_types};
use crate::passes::{eliminate_dead_code, fit_xla};
use crate::text::{op_text, read_dictionary, read_op};
use crate::{
    Composite, Computation, Graph, GraphBuilder, GraphError, Metadata, Node, NodeId, Op, Parameter, Path,
    Role, Type,
};

/// What the names of our composites begin with.
const NAME_SPACE: &str = "qwix.";

/// Which decompositions are meant; another one whenever `lower_quant` writes an op in another way.
const VERSION: u64 = 1;

/// The names of a quantized array's parts.
pub(crate) const PARTS: [&str; 3] = ["qvalue", "scale", "zero_point"];

/// An op with quantized operands or a quantized result, or a part of such a result.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct QuantizedOp {
    pub op: Op,
    pub operands: Vec<Type>,
    /// The type of the op's result.
    pub ty: Type,
    /// Which part of the result, by its place among [`PARTS`].
    pub part: Option<usize>,
}

/// The graph without quantized types, each op on them a composite.
///
/// # Errors
/// As [`lower_quant`].
pub(crate) fn lower_to_composites(graph: &Graph) -> Result<Graph, GraphError> {
    lower(graph, Shared { composites: Some(HashMap::new()), ..Shared::default() })
}

/// Whether a call stands for one of our ops, of whatever version.
pub(crate) fn is_ours(composite: Option<&Arc<Composite>>) -> bool {
    composite.is_some_and(|composite| composite.name.starts_with(NAME_SPACE))
}

/// Whether an op works on quantized arrays itself, and does not only hand them on.
fn is_quantized(op: &Op, any_quantized: bool) -> bool {
    let takes_both =
        matches!(op, Op::Dot(_) | Op::Convolution(_) | Op::Slice(_) | Op::DynamicSlice { .. } | Op::Reshape);
    matches!(op, Op::Quantize(_) | Op::Dequantize) || takes_both && any_quantized
}

impl QuantizedOp {
    /// What the call says of itself.
    pub fn composite(&self) -> Composite {
        let operands: Vec<&Type> = self.operands.iter().collect();
        let instruction = op_text(&self.op, &operands, &self.ty);
        // Of printable ASCII without quotes and backslashes: nothing that MLIR would write in another way.
        let attributes = match self.part.and_then(|part| PARTS.get(part)) {
            None => format!("{{instruction = \"{instruction}\"}}"),
            Some(part) => format!("{{instruction = \"{instruction}\", part = \"{part}\"}}"),
        };
        Composite { name: self.name(), attributes, version: VERSION }
    }

    fn name(&self) -> String {
        format!("{NAME_SPACE}{}", self.op.name().replace('-', "_"))
    }

    /// What a call says that [`is_ours`].
    ///
    /// # Errors
    /// When the version is not ours, or the attributes are not those of an op of this name.
    pub fn read(composite: &Composite) -> Result<Self, String> {
        let Composite { name, attributes, version } = composite;
        if *version != VERSION {
            return Err(format!("`{name}` is of version {version}, this program reads version {VERSION}"));
        }
        let texts = read_dictionary(attributes)?;
        if let Some(key) = texts.keys().find(|key| !["instruction", "part"].contains(key)) {
            return Err(format!("`{name}` has no attribute `{key}`, expected `instruction` and `part`"));
        }
        let instruction = texts.get("instruction").ok_or("the attribute `instruction` is missing")?;
        let (op, operands, ty) = read_op(instruction)?;
        let part =
            match texts.get("part") {
                None => None,
                Some(text) => Some(PARTS.iter().position(|part| part == text).ok_or_else(|| {
                    format!("`part`: found {text:?}, expected qvalue, scale or zero_point")
                })?),
            };
        let read = QuantizedOp { op, operands, ty, part };
        let is_q = |ty: &Type| matches!(ty, Type::QArray(_));
        if read.name() != *name || !is_quantized(&read.op, read.operands.iter().any(is_q)) {
            return Err(format!("`{name}` stands for `{instruction}`, which is no such op"));
        }
        if is_q(&read.ty) != part.is_some() {
            let found = part.map_or("none", |part| PARTS[part]);
            return Err(format!("the result is {}, and `part` {found}", read.ty));
        }
        Ok(read)
    }

    /// The op in plain HLO as XLA's compilers take it. Quantized operands are two or three parameters.
    ///
    /// # Errors
    /// When the op does not take these operands or does not yield its type.
    pub fn decomposition(&self) -> Result<Computation, GraphError> {
        let mut b = GraphBuilder::new(&self.name());
        let mut operands = Vec::with_capacity(self.operands.len());
        for (number, ty) in self.operands.iter().enumerate() {
            operands.push(b.signature_entry(Parameter {
                path: Path::new(&format!("operand{number}")),
                key_path: None,
                role: Role::Input,
                ambiguous: false,
                ty: ty.clone(),
                slot: None,
            })?);
        }
        let root = b.add_as(self.op.clone(), &operands, self.ty.clone())?;
        let wrong = |reason| Err(GraphError::Invalid { computation: self.name(), reason });
        let found = b.ty(root)?;
        if *found != self.ty {
            return wrong(format!("it yields {found}, and says that it yields {}", self.ty));
        }
        let mut lowered = lower_quant(&b.finish(root)?)?;
        if let Some(part) = self.part {
            let entry = Arc::make_mut(&mut lowered.entry);
            match entry.node(entry.root).operands.get(part) {
                Some(&root) => entry.root = root,
                None => return wrong(format!("{} has no {}", self.ty, PARTS[part])),
            }
        }
        let fit = fit_xla(&eliminate_dead_code(&lowered), true);
        Ok(Computation { name: self.name().replace('.', "_"), ..fit.entry.as_ref().clone() })
    }
}

impl Lowering<'_> {
    /// The op as composites, where that is asked for and it works on quantized arrays.
    pub(super) fn composite(&mut self, node: &Node) -> Result<Option<Lowered>, GraphError> {
        let any_quantized = node.operands.iter().any(|&id| self.quantized(id).is_some());
        if self.shared.composites.is_none() || !is_quantized(&node.op, any_quantized) {
            return Ok(None);
        }
        let mut operands = Vec::new();
        for &id in &node.operands {
            match self.quantized(id) {
                Some(_) => operands.extend(self.parts(id)?.list()),
                None => operands.push(self.value(id)?),
            }
        }
        let types = node.operands.iter().map(|&id| self.old.node(id).ty.clone()).collect();
        let mut op = QuantizedOp { op: node.op.clone(), operands: types, ty: node.ty.clone(), part: None };
        let Type::QArray(q) = &node.ty else { return Ok(Some(Lowered::Node(self.call(&op, &operands)?))) };
        let mut part = |part: usize, op: &mut QuantizedOp, operands: &[NodeId]| {
            op.part = Some(part);
            self.call(op, operands)
        };
        let (has_zero_point, types) = (q.has_zero_point(), part_types(q)?);
        let parts = if let (Op::Quantize(_), &[x]) = (&node.op, operands.as_slice()) {
            let scale = part(1, &mut op, &[x])?;
            let zero_point = if has_zero_point { Some(part(2, &mut op, &[x])?) } else { None };
            op.operands.extend(types.into_iter().skip(1).map(|(_, ty)| Type::Array(ty)));
            let range: Vec<NodeId> = [x, scale].into_iter().chain(zero_point).collect();
            Parts { qvalue: part(0, &mut op, &range)?, scale, zero_point }
        } else if let (Op::Quantize(_), &[_, scale, ref rest @ ..]) = (&node.op, operands.as_slice()) {
            Parts { qvalue: part(0, &mut op, &operands)?, scale, zero_point: rest.first().copied() }
        } else {
            // The node's name is the last one's.
            let scale = part(1, &mut op, &operands)?;
            let zero_point = if has_zero_point { Some(part(2, &mut op, &operands)?) } else { None };
            Parts { qvalue: part(0, &mut op, &operands)?, scale, zero_point }
        };
        Ok(Some(Lowered::Parts(parts)))
    }

    /// A call of a decomposition, which equal ops share.
    fn call(&mut self, op: &QuantizedOp, operands: &[NodeId]) -> Result<NodeId, GraphError> {
        let composite = op.composite();
        let done = self.shared.composites.get_or_insert_default();
        let computation = match done.get(&composite.attributes) {
            Some(computation) => Arc::clone(computation),
            None => {
                let computation = Arc::new(op.decomposition()?);
                done.insert(composite.attributes.clone(), Arc::clone(&computation));
                computation
            }
        };
        let ty = computation.node(computation.root).ty.clone();
        let name = format!("{}.{}", composite.name, self.b.node_count());
        self.b.add_node(Node {
            name,
            op: Op::Call { computation, composite: Some(Arc::new(composite)) },
            operands: operands.to_vec(),
            ty,
            metadata: Metadata::default(),
            sharding: None,
        })
    }
}
