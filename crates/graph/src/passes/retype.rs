//! Types anew, from the parameters on.

use std::collections::HashMap;
use std::sync::Arc;

use crate::infer::{called_parameters, infer};
use crate::{Computation, Graph, GraphError, Op, Type};

impl Graph {
    /// The graph with the type of every node, in called computations too, inferred from the types in the signature.
    /// This is how the type of a variable that becomes quantized travels through tuples, loops and slices to its use.
    ///
    /// # Errors
    /// When a node cannot take the types that reach it.
    pub fn retype(&self) -> Result<Graph, GraphError> {
        let types: Vec<&Type> = self.parameters.iter().map(|p| &p.ty).collect();
        let entry = Retype::default().computation(&self.entry, &types)?;
        Ok(Graph { entry: entry.map_or_else(|| Arc::clone(&self.entry), Arc::new), ..self.clone() })
    }
}

/// Computations that are called with the types they had are done once, however often they are shared.
#[derive(Default)]
struct Retype {
    done: HashMap<*const Computation, Arc<Computation>>,
}

impl Retype {
    /// The computation with new types; `None` when they are the old ones.
    fn computation(
        &mut self,
        computation: &Computation,
        parameters: &[&Type],
    ) -> Result<Option<Computation>, GraphError> {
        let mut changed = false;
        let mut nodes: Vec<crate::Node> = Vec::with_capacity(computation.nodes.len());
        for node in &computation.nodes {
            let mut node = node.clone();
            if let Op::Parameter(number) = node.op {
                let ty = parameters.get(number).ok_or_else(|| GraphError::Invalid {
                    computation: computation.name.clone(),
                    reason: format!("parameter {number} of {} given", parameters.len()),
                })?;
                changed |= node.ty != **ty;
                node.ty = (*ty).clone();
                nodes.push(node);
                continue;
            }
            let operands: Vec<&Type> = node
                .operands
                .iter()
                .map(|id| nodes.get(id.index()).map(|n| &n.ty))
                .collect::<Option<_>>()
                .ok_or_else(|| computation.error(&node, "an operand comes after the node".into()))?;
            let given = called_parameters(&node.op, &operands);
            for (index, called) in node.op.called_mut().into_iter().enumerate() {
                let given = given.as_ref().and_then(|g| g.get(index));
                let new = self.called(called, given.map(Vec::as_slice))?;
                changed |= !Arc::ptr_eq(called, &new);
                *called = new;
            }
            let ty =
                infer(&node.op, &operands, &node.ty).map_err(|reason| computation.error(&node, reason))?;
            changed |= node.ty != ty;
            node.ty = ty;
            nodes.push(node);
        }
        Ok(changed.then(|| Computation { name: computation.name.clone(), nodes, root: computation.root }))
    }

    fn called(
        &mut self,
        called: &Arc<Computation>,
        given: Option<&[&Type]>,
    ) -> Result<Arc<Computation>, GraphError> {
        let own: Vec<&Type> = called.parameters().into_iter().map(|id| &called.node(id).ty).collect();
        let given = given.unwrap_or(&own);
        let unchanged = given == own;
        let key = Arc::as_ptr(called);
        if unchanged && let Some(done) = self.done.get(&key) {
            return Ok(Arc::clone(done));
        }
        let result = self.computation(called, given)?;
        let result = result.map_or_else(|| Arc::clone(called), Arc::new);
        if unchanged {
            self.done.insert(key, Arc::clone(&result));
        }
        Ok(result)
    }
}
