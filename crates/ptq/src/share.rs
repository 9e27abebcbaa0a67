//! One quantization of a value serves all that use it.

use std::collections::HashMap;
use std::sync::Arc;

use qwix_graph::passes::eliminate_dead_code;
use qwix_graph::{Computation, Graph, NodeId, Op};
use qwix_quant::HowToQuantize;

/// Each site quantizes its own activations; where several take one value in one way (the projections of attention do),
/// the first result is used by all.
pub(crate) fn share_quantized(graph: &Graph) -> Graph {
    match share(&graph.entry) {
        Some(entry) => eliminate_dead_code(&Graph { entry: Arc::new(entry), ..graph.clone() }),
        None => graph.clone(),
    }
}

/// The computation with quantizations shared; `None` when there is nothing to share.
fn share(computation: &Computation) -> Option<Computation> {
    let mut changed = false;
    let mut done: HashMap<NodeId, Vec<(HowToQuantize, NodeId)>> = HashMap::new();
    let mut instead: Vec<NodeId> = Vec::with_capacity(computation.nodes.len());
    let mut nodes = Vec::with_capacity(computation.nodes.len());
    for (id, node) in computation.iter() {
        let mut node = node.clone();
        for operand in &mut node.operands {
            *operand = instead.get(operand.index()).copied().unwrap_or(*operand);
        }
        for called in node.op.called_mut() {
            if let Some(shared) = share(called) {
                *called = Arc::new(shared);
                changed = true;
            }
        }
        let mut same = id;
        if let (Op::Quantize(how), [operand]) = (&node.op, node.operands.as_slice()) {
            let known = done.entry(*operand).or_default();
            match known.iter().find(|(other, _)| other == how) {
                Some(&(_, first)) => {
                    same = first;
                    changed = true;
                }
                None => known.push((how.clone(), id)),
            }
        }
        instead.push(same);
        nodes.push(node);
    }
    changed.then(|| Computation { name: computation.name.clone(), nodes, root: computation.root })
}
