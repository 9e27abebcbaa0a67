//! Shardings away, for a single device.

use std::collections::HashMap;
use std::sync::Arc;

use crate::{Computation, Graph, NodeId, Op};

/// The graph without shardings, and without the nodes that do nothing else; the same numbers.
pub fn without_shardings(graph: &Graph) -> Graph {
    let entry = Unshard::default().computation(&graph.entry);
    Graph { entry, ..graph.clone() }
}

/// Computations that were done already; they are shared by many callers.
#[derive(Default)]
struct Unshard {
    done: HashMap<*const Computation, Arc<Computation>>,
}

impl Unshard {
    fn computation(&mut self, computation: &Arc<Computation>) -> Arc<Computation> {
        if let Some(done) = self.done.get(&Arc::as_ptr(computation)) {
            return Arc::clone(done);
        }
        let mut new = Computation { name: computation.name.clone(), ..Computation::default() };
        let mut places: Vec<NodeId> = Vec::with_capacity(computation.nodes.len());
        // Out of order an operand stays, and the verifier says so.
        let place = |places: &[NodeId], id: NodeId| places.get(id.index()).copied().unwrap_or(id);
        for node in &computation.nodes {
            let mut node = node.clone();
            for operand in &mut node.operands {
                *operand = place(&places, *operand);
            }
            if let (Op::Sharding { .. }, [operand]) = (&node.op, &node.operands[..]) {
                places.push(*operand);
                continue;
            }
            for called in node.op.called_mut() {
                *called = self.computation(called);
            }
            node.sharding = None;
            new.nodes.push(node);
            places.push(NodeId(new.nodes.len() as u32 - 1));
        }
        new.root = place(&places, computation.root);
        let new = Arc::new(new);
        self.done.insert(Arc::as_ptr(computation), Arc::clone(&new));
        new
    }
}
