//! [`Graph`] → `HloModuleProto`.

mod instruction;
mod literal;
pub(crate) mod marks;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use prost::Message as _;

use marks::Marks;

use crate::import::{TOKEN, TUPLE, primitive_of, role_of};
use crate::passes::inline::{Names, plain_name};
use crate::passes::lower_quant::composite::lower_to_composites;
use crate::proto::{
    FrontendAttributes, HloComputationProto, HloInstructionProto, HloModuleProto, LayoutProto, OpMetadata,
    ProgramShapeProto, ShapeProto,
};
use crate::{ArrayType, Computation, Graph, GraphError, KeyPath, Node, Op, Parameter, Role, Type, sharding};

/// Why a graph cannot be written as an HLO module.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// A node that HLO cannot say.
    #[error("instruction `{instruction}` ({opcode}) of computation `{computation}`: {reason}")]
    Instruction {
        /// The computation's name.
        computation: String,
        /// The node's name.
        instruction: String,
        /// HLO's name of the op.
        opcode: String,
        /// What was found, and what was expected.
        reason: String,
    },
    /// A graph that is not whole.
    #[error(transparent)]
    Graph(#[from] GraphError),
}

impl Graph {
    /// Writes the graph as a serialized `HloModuleProto`. Reading it back gives the same graph, names apart.
    ///
    /// The module is plain HLO, whatever the graph has: any XLA runs it. A quantized parameter is two or three
    /// parameters, `<path>/qvalue`, `<path>/scale` and `<path>/zero_point`, in other places a tuple of these. An op on
    /// quantized arrays is a `call` marked as a composite (`qwix.dot`, `qwix.quantize`, …) of its decomposition; what the
    /// parameters are stands in their `frontend_attributes` (`qwix.path`, `qwix.quantized`, …).
    ///
    /// # Errors
    /// When the graph does not verify, has a product that cannot be computed, or has something that was read and not
    /// understood: an op or a type without a meaning here, or a custom call of which not all attributes are kept.
    pub fn to_hlo_proto(&self) -> Result<Vec<u8>, ExportError> {
        self.verify()?;
        if !marks::is_marked(self) {
            return self.to_plain_proto(&[]);
        }
        lower_to_composites(self)?.to_plain_proto(&marks::marks(self)?)
    }

    /// The module of a graph without quantized types, with marks on its parameters, if there are any.
    fn to_plain_proto(&self, marks: &[Marks]) -> Result<Vec<u8>, ExportError> {
        let mut writer = Writer::default();
        let entry_id = writer.computation(&self.entry, Some((&self.parameters, marks)))?;
        let entry = writer.computations.last();
        let module = HloModuleProto {
            name: plain_name(&self.name),
            entry_computation_name: entry.map_or_else(String::new, |entry| entry.name.clone()),
            host_program_shape: entry.and_then(|entry| entry.program_shape.clone()),
            id: 1,
            entry_computation_id: entry_id,
            computations: writer.computations,
        };
        Ok(module.encode_to_vec())
    }
}

#[derive(Default)]
struct Writer {
    /// Callees before their callers.
    computations: Vec<HloComputationProto>,
    ids: HashMap<*const Computation, i64>,
    computation_names: Names,
    /// XLA wants instructions' names to be unique in the module.
    instruction_names: Names,
}

impl Writer {
    /// Writes a computation and all that it calls; returns its id.
    fn computation(
        &mut self,
        computation: &Arc<Computation>,
        signature: Option<(&[Parameter], &[Marks])>,
    ) -> Result<i64, ExportError> {
        if let Some(&id) = self.ids.get(&Arc::as_ptr(computation)) {
            return Ok(id);
        }
        // Before those of called computations: an input without an op_name is known by its node's name.
        let op_name_and_name = |node: &Node| match (&node.op, signature) {
            (Op::Parameter(number), Some((signature, marks))) => {
                let (op_name, name) = parameter_name(node, &signature[*number]);
                let marks = marks.get(*number).cloned().unwrap_or_default().with_op_name(&op_name);
                (op_name, self.instruction_names.unique(name), marks)
            }
            _ => (node.metadata.op_name.clone(), self.instruction_names.unique(&node.name), BTreeMap::new()),
        };
        let names: Vec<_> = computation.nodes.iter().map(op_name_and_name).collect();
        let name = self.computation_names.unique(&computation.name);
        let mut called_ids = Vec::with_capacity(computation.nodes.len());
        for node in &computation.nodes {
            let mut ids = Vec::new();
            for called in node.op.called() {
                ids.push(self.computation(called, None)?);
            }
            if let Op::While { .. } = node.op {
                // HLO writes the body first.
                ids.reverse();
            }
            called_ids.push(ids);
        }
        let id = self.computations.len() as i64 + 1;
        // XLA makes ids of a computation's and an instruction's number.
        let instruction_id = |index: usize| id << 32 | (index as i64 + 1);
        let mut instructions: Vec<HloInstructionProto> = Vec::with_capacity(computation.nodes.len());
        for (index, ((node, (op_name, name, marks)), called_ids)) in
            computation.nodes.iter().zip(names).zip(called_ids).enumerate()
        {
            let wrong = |reason| ExportError::Instruction {
                computation: computation.name.clone(),
                instruction: node.name.clone(),
                opcode: node.op.name().to_owned(),
                reason,
            };
            let shape = shape_of(&node.ty).map_err(wrong)?;
            let sharding = node.sharding.as_ref().map(sharding::to_proto).transpose().map_err(wrong)?;
            let mut instruction = HloInstructionProto {
                name,
                opcode: node.op.name().to_owned(),
                shape: Some(shape),
                metadata: Some(OpMetadata { op_name }),
                id: instruction_id(index),
                operand_ids: node.operands.iter().map(|operand| instruction_id(operand.index())).collect(),
                called_computation_ids: called_ids,
                sharding: sharding.map(Box::new),
                frontend_attributes: frontend_attributes(marks),
                ..HloInstructionProto::default()
            };
            instruction::write_attributes(&node.op, &mut instruction).map_err(wrong)?;
            if instruction.constrain_layout {
                let operands = node.operands.iter().filter_map(|operand| instructions.get(operand.index()));
                instruction.operand_shapes_with_layout = operands.filter_map(|o| o.shape.clone()).collect();
            }
            instructions.push(instruction);
        }
        let of = |index: usize| instructions.get(index).and_then(|instruction| instruction.shape.clone());
        let parameters = computation.parameters();
        let program_shape = ProgramShapeProto {
            parameters: parameters.iter().filter_map(|id| of(id.index())).collect(),
            result: of(computation.root.index()),
            parameter_names: parameters.iter().map(|id| instructions[id.index()].name.clone()).collect(),
        };
        self.computations.push(HloComputationProto {
            name,
            instructions,
            program_shape: Some(program_shape),
            id,
            root_id: instruction_id(computation.root.index()),
        });
        self.ids.insert(Arc::as_ptr(computation), id);
        Ok(id)
    }
}

fn frontend_attributes(map: BTreeMap<String, String>) -> Option<FrontendAttributes> {
    (!map.is_empty()).then_some(FrontendAttributes { map })
}

/// What a parameter is called in the file: its op_name as JAX wrote it, unless that says something else than the
/// signature, and its instruction's name.
fn parameter_name<'a>(node: &'a Node, parameter: &'a Parameter) -> (String, &'a str) {
    let says_it = |op_name: &str| role_of(op_name).0 == parameter.role;
    let op_name = &node.metadata.op_name;
    if parameter.key_path.is_some() && KeyPath::parse(op_name) == parameter.key_path && says_it(op_name) {
        return (op_name.clone(), &node.name);
    }
    let mut segments = parameter.path.segments().map(str::to_owned);
    let made = match parameter.role {
        Role::Variable => KeyPath { argument: "params".to_owned(), keys: segments.collect() },
        Role::Input => KeyPath { argument: segments.next().unwrap_or_default(), keys: segments.collect() },
    };
    let text = made.to_string();
    if KeyPath::parse(&text).as_ref() == Some(&made) && says_it(&text) {
        (text, &node.name)
    } else {
        // Not every input's name looks like an argument.
        (String::new(), parameter.path.as_str())
    }
}

/// The shape of a type, its layout row-major.
fn shape_of(ty: &Type) -> Result<ShapeProto, String> {
    match ty {
        Type::Array(array) => Ok(array_shape(array)),
        Type::Tuple(elements) => Ok(ShapeProto {
            element_type: TUPLE,
            tuple_shapes: elements.iter().map(shape_of).collect::<Result<_, _>>()?,
            ..ShapeProto::default()
        }),
        Type::Token => Ok(ShapeProto { element_type: TOKEN, ..ShapeProto::default() }),
        Type::QArray(q) => Err(format!("HLO has no type {q}; lower the graph first")),
        Type::Opaque(text) => Err(format!("the type {text} is not supported")),
    }
}

fn array_shape(array: &ArrayType) -> ShapeProto {
    let rank = array.shape.len();
    ShapeProto {
        element_type: primitive_of(array.dtype),
        dimensions: numbers(&array.shape),
        layout: Some(LayoutProto {
            minor_to_major: (0..rank as i64).rev().collect(),
            tail_padding_alignment_in_elements: 1,
            ..LayoutProto::default()
        }),
        is_dynamic_dimension: vec![false; rank],
        ..ShapeProto::default()
    }
}

/// Axes and sizes as protobuf has them; a verified graph's fit.
fn numbers(values: &[usize]) -> Vec<i64> {
    values.iter().map(|&value| value as i64).collect()
}
