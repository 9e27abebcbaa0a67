//! From a graph to the one that XLA's compilers take.

use std::collections::HashMap;
use std::sync::Arc;

use qwix_graph::passes::{fit_xla, lower_quant, without_shardings};
use qwix_graph::{
    Computation, ConvDims, DotDims, Graph, GraphError, Metadata, Node, NodeId, Op, Precision, Sharding, Type,
};

use crate::gpu;

/// The graph in plain HLO whose result is a flat tuple of arrays.
///
/// Where shardings name several devices, every parameter and result has one: `{replicated}` unless the graph says
/// another. Shardings for one device go.
///
/// `platform` is the plugin's name of it. XLA's CPU compiler takes no products of types narrower than a byte: there the
/// operands are converted to 8 bits first, which is exact. What its GPU compilers get wrong is written otherwise.
/// Products of floats have at least the precision `precision`; those of the model that ask for more keep theirs.
///
/// # Errors
/// When the graph cannot be lowered.
pub fn lower(graph: &Graph, platform: &str, precision: Precision) -> Result<Graph, GraphError> {
    finish(lower_quant(graph)?, platform, precision)
}

/// What [`lower`] does once quantized types are gone.
pub(crate) fn finish(mut graph: Graph, platform: &str, precision: Precision) -> Result<Graph, GraphError> {
    let sharded = graph.device_count()?.is_some();
    if !sharded {
        graph = without_shardings(&graph);
    }
    graph = fit_xla(&graph, platform == "cpu");
    let mut fit = Fit { gpu: is_gpu(platform), precision, done: HashMap::new() };
    graph.entry = fit.computation(&graph.entry);
    let mut entry = flat_result(&graph.entry);
    if sharded {
        spread_signature(&mut entry);
    }
    graph.entry = Arc::new(entry);
    graph.verify()?;
    Ok(graph)
}

/// Whether a platform is one of XLA's for GPUs.
pub(crate) fn is_gpu(platform: &str) -> bool {
    matches!(platform, "cuda" | "rocm")
}

/// The graph as XLA's CPU compiler takes it, quantized types included: [`Program::new`](crate::Program::new) writes these
/// as composites. A result that is an array or a flat tuple of arrays stays.
///
/// # Errors
/// When the graph does not verify.
pub fn portable(graph: &Graph) -> Result<Graph, GraphError> {
    graph.verify()?;
    let sharded = graph.device_count()?.is_some();
    let mut graph = fit_xla(&if sharded { graph.clone() } else { without_shardings(graph) }, true);
    let is_flat = match &graph.entry.node(graph.entry.root).ty {
        Type::Tuple(types) => types.iter().all(|ty| matches!(ty, Type::Array(_))),
        ty => matches!(ty, Type::Array(_)),
    };
    if !is_flat {
        graph.entry = Arc::new(flat_result(&graph.entry));
    }
    if sharded {
        spread_signature(Arc::make_mut(&mut graph.entry));
    }
    graph.verify()?;
    Ok(graph)
}

/// The computation with the arrays of its result in one tuple.
fn flat_result(entry: &Computation) -> Computation {
    let mut entry = entry.clone();
    let mut leaves = Vec::new();
    let root = entry.root;
    leaves_of(&mut entry, root, &mut leaves);
    let types: Vec<Type> = leaves.iter().map(|id: &NodeId| entry.node(*id).ty.clone()).collect();
    let declared = entry.node(root).sharding.as_ref().and_then(|s| s.leaves(&entry.node(root).ty));
    // Tokens have no place among the results.
    let declared = declared.filter(|shardings| shardings.len() == leaves.len());
    entry.root = push(&mut entry, Op::Tuple, leaves, Type::Tuple(types));
    entry.nodes[entry.root.index()].sharding = declared.map(Sharding::Tuple);
    entry
}

/// Gives each parameter that has none, and the result, a sharding. What the model says nothing of is whole on each device:
/// a result is then gathered by the devices.
fn spread_signature(entry: &mut Computation) {
    for node in &mut entry.nodes {
        if let (Op::Parameter(_), None) = (&node.op, &node.sharding) {
            node.sharding = Some(Sharding::Replicated);
        }
    }
    let root = entry.node(entry.root);
    if root.sharding.is_some() {
        return;
    }
    let of = |id: &NodeId| entry.node(*id).sharding.clone().unwrap_or(Sharding::Replicated);
    let sharding = match root.op {
        // An empty one has none.
        Op::Tuple if root.operands.is_empty() => return,
        Op::Tuple => Sharding::Tuple(root.operands.iter().map(of).collect()),
        _ => match &root.ty {
            Type::Tuple(types) => Sharding::Tuple(vec![Sharding::Replicated; types.len()]),
            Type::Array(_) | Type::QArray(_) | Type::Token | Type::Opaque(_) => Sharding::Replicated,
        },
    };
    entry.nodes[entry.root.index()].sharding = Some(sharding);
}

fn leaves_of(computation: &mut Computation, id: NodeId, leaves: &mut Vec<NodeId>) {
    match computation.node(id).ty.clone() {
        Type::Tuple(types) => {
            for (index, ty) in types.into_iter().enumerate() {
                let element = push(computation, Op::GetTupleElement(index), vec![id], ty);
                leaves_of(computation, element, leaves);
            }
        }
        // A token has no value.
        Type::Token => {}
        Type::Array(_) | Type::QArray(_) | Type::Opaque(_) => leaves.push(id),
    }
}

fn push(computation: &mut Computation, op: Op, operands: Vec<NodeId>, ty: Type) -> NodeId {
    let name = format!("{}.result.{}", op.name(), computation.nodes.len());
    computation.nodes.push(Node { name, op, operands, ty, metadata: Metadata::default(), sharding: None });
    NodeId(computation.nodes.len() as u32 - 1)
}

/// Writes each op as XLA's compilers take it.
struct Fit {
    /// Whether the compiler is one for GPUs.
    gpu: bool,
    /// The least precision of products of floats.
    precision: Precision,
    /// Computations that were done already; they are shared by many callers.
    done: HashMap<*const Computation, Arc<Computation>>,
}

impl Fit {
    fn computation(&mut self, computation: &Arc<Computation>) -> Arc<Computation> {
        let key = Arc::as_ptr(computation);
        if let Some(done) = self.done.get(&key) {
            return Arc::clone(done);
        }
        let mut new = Computation { name: computation.name.clone(), ..Computation::default() };
        // Where each old node is.
        let mut places: Vec<NodeId> = Vec::with_capacity(computation.nodes.len());
        for node in &computation.nodes {
            let mut node = node.clone();
            for called in node.op.called_mut() {
                *called = self.computation(called);
            }
            for operand in &mut node.operands {
                // Out of order it stays, and the verifier says so.
                *operand = places.get(operand.index()).copied().unwrap_or(*operand);
            }
            if let Op::Dot(DotDims { operand_precision, .. })
            | Op::Convolution(ConvDims { operand_precision, .. }) = &mut node.op
            {
                *operand_precision = operand_precision.map(|own| own.max(self.precision));
            }
            if self.gpu
                && let Some(id) = gpu::write(&mut new, &node, &node.operands)
                && let Some(written) = new.nodes.get_mut(id.index())
            {
                (written.name, written.sharding) = (node.name, node.sharding);
                places.push(id);
                continue;
            }
            new.nodes.push(node);
            places.push(NodeId(new.nodes.len() as u32 - 1));
        }
        new.root = places.get(computation.root.index()).copied().unwrap_or(computation.root);
        let new = Arc::new(new);
        self.done.insert(key, Arc::clone(&new));
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use qwix_array::DType;
    use qwix_graph::GraphBuilder;
    use qwix_graph::passes::unsafe_instruction;

    #[test]
    fn narrow_products_are_widened_where_they_must_be() {
        let mut b = GraphBuilder::new("narrow");
        let x = b.input("x", Type::array(DType::S8, [2, 4])).unwrap();
        let w = b.input("w", Type::array(DType::S4, [4, 3])).unwrap();
        let dims = DotDims { lhs_contracting: vec![1], rhs_contracting: vec![0], ..DotDims::default() };
        let product = b.dot(x, w, &dims, DType::S32).unwrap();
        let graph = b.finish(product).unwrap();
        for (platform, expected) in [("cpu", DType::S8), ("cuda", DType::S8), ("tpu", DType::S4)] {
            let lowered = lower(&graph, platform, Precision::Default).unwrap();
            let dot = lowered.entry.nodes.iter().find(|n| matches!(n.op, Op::Dot(_))).unwrap();
            let found = lowered.entry.node(dot.operands[1]).ty.as_array().unwrap().dtype;
            assert_eq!(found, expected, "{platform}");
            assert_eq!(lowered.parameters[1].ty, Type::array(DType::S4, [4, 3]), "{platform}");
        }
    }

    #[test]
    fn bounds_of_clamps_get_the_arrays_shape() {
        let mut b = GraphBuilder::new("bounds");
        let x = b.input("x", Type::array(DType::F32, [2, 4])).unwrap();
        let one = b.scalar(1f32).unwrap();
        let clamped = b.clamp(one, x, one).unwrap();
        let graph = b.finish(clamped).unwrap();
        assert_eq!(unsafe_instruction(&graph.entry), Some(graph.entry.node(clamped).name.as_str()));
        let lowered = lower(&graph, "cpu", Precision::Default).unwrap();
        assert_eq!(unsafe_instruction(&lowered.entry), None);
    }

    #[test]
    fn results_become_one_flat_tuple() {
        let mut b = GraphBuilder::new("nested");
        let x = b.input("x", Type::array(DType::F32, [2])).unwrap();
        let inner = b.tuple(&[x, x]).unwrap();
        let empty = b.tuple(&[]).unwrap();
        let root = b.tuple(&[inner, empty, x]).unwrap();
        let nested = b.finish(root).unwrap();
        let mut b = GraphBuilder::new("one");
        let x = b.input("x", Type::array(DType::F32, [2])).unwrap();
        let one = b.finish(x).unwrap();
        for (graph, count) in [(nested, 3), (one, 1)] {
            let lowered = lower(&graph, "cpu", Precision::Default).unwrap();
            let expected = Type::Tuple(vec![Type::array(DType::F32, [2]); count]);
            assert_eq!(lowered.entry.node(lowered.entry.root).ty, expected, "{}", graph.name);
        }
    }
}
