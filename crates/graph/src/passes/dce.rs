//! Dead code: nodes that the result does not depend on, and variables that nothing uses.

use std::collections::HashMap;
use std::sync::Arc;

use crate::{Computation, Graph, Node, NodeId, Op, Parameter, Role};

/// Drops nodes that nothing uses, in called computations too, and variables without a use from the signature. Inputs
/// stay, used or not: callers pass them by position.
pub fn eliminate_dead_code(graph: &Graph) -> Graph {
    let live = live_nodes(&graph.entry);
    let mut kept = Vec::new();
    let mut parameters: Vec<Parameter> = Vec::new();
    let mut number = vec![0; graph.parameters.len()];
    for id in graph.entry.parameters() {
        let Op::Parameter(old) = graph.entry.node(id).op else { continue };
        let Some(parameter) = graph.parameters.get(old) else { continue };
        if live[id.index()] || parameter.role == Role::Input {
            number[old] = parameters.len();
            parameters.push(parameter.clone());
            kept.push(id);
        }
    }
    let mut entry = keep(&graph.entry, &mut Swept::new(), |id| live[id.index()] || kept.contains(&id));
    for node in &mut entry.nodes {
        if let Op::Parameter(n) = &mut node.op {
            *n = number[*n];
        }
    }
    Graph { name: graph.name.clone(), entry: Arc::new(entry), parameters }
}

/// The computations that were swept, by the address of what they were: one that is shared is swept once.
type Swept = HashMap<*const Computation, Arc<Computation>>;

/// A called computation without its dead nodes; parameters stay, as the caller passes them. The same one when there
/// is nothing to drop.
fn sweep(computation: &Arc<Computation>, done: &mut Swept) -> Arc<Computation> {
    if let Some(swept) = done.get(&Arc::as_ptr(computation)) {
        return Arc::clone(swept);
    }
    let live = live_nodes(computation);
    let swept =
        keep(computation, done, |id| live[id.index()] || matches!(computation.node(id).op, Op::Parameter(_)));
    let same =
        |(a, b): (&Node, &Node)| a.op.called().into_iter().zip(b.op.called()).all(|(a, b)| Arc::ptr_eq(a, b));
    let unchanged =
        swept.nodes.len() == computation.nodes.len() && swept.nodes.iter().zip(&computation.nodes).all(same);
    let swept = if unchanged { Arc::clone(computation) } else { Arc::new(swept) };
    done.insert(Arc::as_ptr(computation), Arc::clone(&swept));
    swept
}

fn live_nodes(computation: &Computation) -> Vec<bool> {
    let mut live = vec![false; computation.nodes.len()];
    live[computation.root.index()] = true;
    for (id, node) in computation.iter().rev() {
        if live[id.index()] {
            for operand in &node.operands {
                live[operand.index()] = true;
            }
        }
    }
    live
}

/// A computation with some of its nodes, operands renumbered, called computations swept.
fn keep(computation: &Computation, done: &mut Swept, kept: impl Fn(NodeId) -> bool) -> Computation {
    let mut renumbered = vec![NodeId(0); computation.nodes.len()];
    let mut nodes = Vec::new();
    for (id, node) in computation.iter() {
        if !kept(id) {
            continue;
        }
        renumbered[id.index()] = NodeId(nodes.len() as u32);
        let mut node = node.clone();
        for operand in &mut node.operands {
            *operand = renumbered[operand.index()];
        }
        for called in node.op.called_mut() {
            *called = sweep(called, done);
        }
        nodes.push(node);
    }
    Computation { name: computation.name.clone(), nodes, root: renumbered[computation.root.index()] }
}
