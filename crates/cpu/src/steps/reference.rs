//! The last resort: the reference evaluator, one node at a time.

use qwix_eval::{EvalError, Limits, Value, evaluate_node};
use qwix_graph::{Node, NodeId};

use crate::plan::{Context, Planned, Planning, Step};

struct Reference(Node);

impl Step for Reference {
    fn name(&self) -> &'static str {
        "reference"
    }

    fn run(&self, operands: Vec<Value>, _: &Context<'_>) -> Result<Value, EvalError> {
        evaluate_node(&self.0, &operands, &Limits::default())
    }
}

pub(super) fn plan(planning: &Planning<'_>, id: NodeId) -> Planned {
    let node = planning.node(id);
    Planned { step: Box::new(Reference(node.clone())), operands: node.operands.clone() }
}
