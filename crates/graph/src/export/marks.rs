//! What a quantized model's file says of its parameters beside plain HLO, in `frontend_attributes`, which XLA keeps and
//! does not look at.

use std::collections::BTreeMap;

use crate::passes::lower_quant::composite::PARTS;
use crate::passes::lower_quant::{has_quantized, part_types};
use crate::text::signature;
use crate::{Computation, Graph, GraphError, Op, Type};

/// What the names of our attributes begin with.
pub(crate) const NAME_SPACE: &str = "qwix.";
/// On the first part of a quantized array: its type.
pub(crate) const QUANTIZED: &str = "quantized";
/// Which part of a quantized array it is.
pub(crate) const QUANTIZED_PART: &str = "quantized_part";
/// The `op_name` that the graph has, where the instruction has another one.
pub(crate) const OP_NAME: &str = "op_name";

/// The attributes of one parameter in the file.
#[derive(Clone, Default, Debug)]
pub(super) struct Marks {
    texts: BTreeMap<String, String>,
    /// The `op_name` in the graph, where somebody will ask for it.
    op_name: Option<String>,
}

impl Marks {
    /// All of them, when the instruction has this `op_name`.
    pub(super) fn with_op_name(mut self, written: &str) -> BTreeMap<String, String> {
        if let Some(op_name) = self.op_name.filter(|op_name| op_name != written) {
            self.texts.insert(format!("{NAME_SPACE}{OP_NAME}"), op_name);
        }
        self.texts
    }
}

/// Whether a graph has more in it than plain HLO and names say.
pub(super) fn is_marked(graph: &Graph) -> bool {
    fn any(computation: &Computation) -> bool {
        let quantized = |op: &Op| matches!(op, Op::Quantize(_) | Op::Dequantize);
        computation.nodes.iter().any(|node| {
            has_quantized(&node.ty) || quantized(&node.op) || node.op.called().into_iter().any(|c| any(c))
        })
    }
    graph.parameters.iter().any(|p| p.slot.is_some()) || any(&graph.entry)
}

/// The marks of the parameters that the graph has when it is lowered, by number.
///
/// # Errors
/// When a quantized type cannot be.
pub(super) fn marks(graph: &Graph) -> Result<Vec<Marks>, GraphError> {
    let named = |name: &str| format!("{NAME_SPACE}{name}");
    let mut marks = Vec::new();
    for (parameter, id) in graph.parameters.iter().zip(graph.entry.parameters()) {
        let op_name = graph.entry.node(id).metadata.op_name.clone();
        let texts = signature::attributes(parameter).into_iter().map(|(name, text)| (named(name), text));
        marks.push(Marks { texts: texts.collect(), op_name: Some(op_name) });
        let Type::QArray(q) = &parameter.ty else { continue };
        if let Some(first) = marks.last_mut() {
            first.texts.insert(named(QUANTIZED), q.to_string());
            first.texts.insert(named(QUANTIZED_PART), PARTS[0].to_owned());
        }
        for (name, _) in part_types(q)?.into_iter().skip(1) {
            let texts = [("path", parameter.path.as_str()), (QUANTIZED_PART, name)];
            let texts = texts.into_iter().map(|(name, text)| (named(name), text.to_owned())).collect();
            marks.push(Marks { texts, op_name: None });
        }
    }
    Ok(marks)
}
