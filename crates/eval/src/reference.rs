//! The reference evaluator as a backend.

use std::collections::HashSet;
use std::sync::Arc;

use qwix_array::Array;
use qwix_graph::{Computation, Graph, Node};

use crate::backend::collect;
use crate::evaluate::unsupported;
use crate::run::{Context, run};
use crate::signature::check_inputs;
use crate::{Backend, EvalError, Executable, Limits, Loader, Value};

/// Runs graphs node by node, each as its op's definition reads; slow, and the meaning of the graph.
#[derive(Clone, Debug, Default)]
pub struct ReferenceBackend {
    /// What a run may use.
    pub limits: Limits,
}

struct ReferenceExecutable {
    graph: Graph,
    variables: Vec<Option<Value>>,
    limits: Limits,
}

impl Backend for ReferenceBackend {
    fn name(&self) -> &str {
        "reference"
    }

    fn load(&self, graph: &Graph) -> Result<Box<dyn Loader>, EvalError> {
        check_supported(graph)?;
        graph.verify()?;
        let (kept, limits) = (graph.clone(), self.limits);
        Ok(collect(graph, move |variables| {
            Ok(Box::new(ReferenceExecutable { graph: kept, variables, limits }))
        }))
    }
}

impl Executable for ReferenceExecutable {
    fn run(&self, inputs: &[Array]) -> Result<Vec<Array>, EvalError> {
        check_inputs(&self.graph, inputs)?;
        let mut inputs = inputs.iter();
        let arguments = self
            .variables
            .iter()
            .map(|v| v.clone().or_else(|| inputs.next().cloned().map(Value::Array)))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| EvalError::reason("fewer inputs than parameters"))?;
        let value = run(&self.graph.entry, arguments, Context::new(&self.limits))?;
        let mut outputs = Vec::new();
        value.flatten(&mut outputs).map_err(|q| EvalError::WrongType {
            what: "the result".into(),
            expected: "arrays".into(),
            found: Value::QArray(*q).describe(),
        })?;
        Ok(outputs)
    }
}

/// Makes sure that every op that a graph's result depends on, nested computations included, can be evaluated.
///
/// # Errors
/// Names the first op that cannot.
pub fn check_supported(graph: &Graph) -> Result<(), EvalError> {
    /// Shared computations are checked once, however many paths lead to them.
    fn check(
        computation: &Computation,
        depth: usize,
        checked: &mut HashSet<*const Computation>,
    ) -> Result<(), EvalError> {
        for node in used(computation) {
            if let Some(error) = unsupported(&node.op) {
                return Err(error.at(node));
            }
            for called in node.op.called() {
                // Deeper computations are refused when they run.
                if depth < 256 && checked.insert(Arc::as_ptr(called)) {
                    check(called, depth + 1, checked)?;
                }
            }
        }
        Ok(())
    }
    check(&graph.entry, 0, &mut HashSet::new())
}

/// The nodes that a computation's result depends on.
fn used(computation: &Computation) -> Vec<&Node> {
    let mut needed = vec![false; computation.nodes.len()];
    if let Some(root) = needed.get_mut(computation.root.index()) {
        *root = true;
    }
    let mut nodes = Vec::new();
    for (id, node) in computation.iter().rev() {
        if needed[id.index()] {
            nodes.push(node);
            for operand in &node.operands {
                if let Some(operand) = needed.get_mut(operand.index()) {
                    *operand = true;
                }
            }
        }
    }
    nodes.reverse();
    nodes
}
