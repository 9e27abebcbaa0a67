//! Sites: the dots and convolutions of a graph, with names as Qwix gives them.

mod einsum;
mod module_path;
mod trace;

use std::sync::Arc;

use qwix_graph::{Callee, Computation, ConvDims, DotDims, Graph, NodeId, Op, Path, Scope, Type};

use module_path::{Found, module_paths};
pub use trace::{AxisUse, Storage, Weight};

/// What a site computes.
#[derive(Clone, PartialEq, Debug)]
pub enum Product {
    /// A dot, with the axes that it contracts.
    Dot(DotDims),
    /// A convolution.
    Convolution(ConvDims),
}

/// One side of a site.
#[derive(Clone, PartialEq, Debug)]
pub struct Operand {
    /// The node that the op reads.
    pub node: NodeId,
    /// Its type.
    pub ty: Type,
    /// The variable that it is, when it is one; otherwise it is an activation.
    pub weight: Option<Weight>,
}

/// A node that a rule can quantize.
#[derive(Clone, PartialEq, Debug)]
pub struct Site {
    /// The steps from the entry to the node's computation.
    pub at: Vec<Callee>,
    /// The node.
    pub node: NodeId,
    /// The op's name in rules: `dot_general`, `einsum` or `conv_general_dilated`.
    pub op_name: &'static str,
    /// The module that the op is in.
    pub module_path: Path,
    /// The op's name and its number among the module's ops of that name: `einsum0`.
    pub op_id: String,
    /// The author's equation, for an einsum.
    pub equation: Option<String>,
    /// Whether the author's first operand is the right one here.
    pub swapped: bool,
    /// What is computed.
    pub product: Product,
    /// The left operand.
    pub lhs: Operand,
    /// The right operand (a convolution's kernel).
    pub rhs: Operand,
    /// The type of the result.
    pub result: Type,
}

impl Site {
    /// The axis whose tiles a rule's `tile_size` sets, `None` for convolutions and for dots that contract nothing.
    pub fn tiled_axis(&self, left: bool) -> Option<usize> {
        match &self.product {
            Product::Dot(dims) => einsum::tiled_axis(dims, left, self.equation.is_some()),
            Product::Convolution(_) => None,
        }
    }
}

/// Every dot and convolution of a graph, in called computations too, in the order in which JAX traced them.
pub fn find_sites(graph: &Graph) -> Vec<Site> {
    let mut raw = vec![];
    collect(&graph.entry, &mut vec![], &mut raw);
    let mut sites: Vec<(Site, Scope)> =
        raw.into_iter().filter_map(|(at, node)| site(graph, at, node)).collect();
    let variables: Vec<&Path> = graph.variables().map(|(_, p)| &p.path).collect();
    let found: Vec<Found<'_>> = sites
        .iter()
        .map(|(site, scope)| {
            // Where both sides are weights, the author's second one names the module, as in Qwix.
            let (first, second) = if site.swapped { (&site.rhs, &site.lhs) } else { (&site.lhs, &site.rhs) };
            let weight = second.weight.as_ref().or(first.weight.as_ref());
            Found {
                scope: scope.clone(),
                op_name: site.op_name,
                weight: weight.and_then(|w| graph.parameters.get(w.parameter)).map(|p| &p.path),
            }
        })
        .collect();
    let named = module_paths(&found, &variables);
    for ((site, _), (module_path, op_id)) in sites.iter_mut().zip(named) {
        (site.module_path, site.op_id) = (module_path, op_id);
    }
    sites.into_iter().map(|(site, _)| site).collect()
}

fn collect(computation: &Arc<Computation>, at: &mut Vec<Callee>, found: &mut Vec<(Vec<Callee>, NodeId)>) {
    // Ids are in trace order; nodes are in an order in which operands come first.
    let mut order: Vec<(u64, NodeId)> = computation
        .iter()
        .filter(|(_, node)| is_product(&node.op) || !node.op.called().is_empty())
        .map(|(id, node)| (node.metadata.id, id))
        .collect();
    order.sort_unstable();
    for (_, id) in order {
        let op = &computation.node(id).op;
        if is_product(op) {
            found.push((at.clone(), id));
        }
        for (index, called) in op.called().into_iter().enumerate() {
            at.push(Callee { node: id, index });
            collect(called, at, found);
            at.pop();
        }
    }
}

fn is_product(op: &Op) -> bool {
    matches!(op, Op::Dot(_) | Op::Convolution(_))
}

fn site(graph: &Graph, at: Vec<Callee>, id: NodeId) -> Option<(Site, Scope)> {
    let computation = graph.computation(&at).ok()?;
    let node = computation.node(id);
    let scope = Scope::parse(&node.metadata.op_name);
    let (product, op_name, equation) = match &node.op {
        Op::Dot(dims) => match &scope.einsum {
            Some(equation) => (Product::Dot(dims.clone()), "einsum", Some(equation.clone())),
            None => (Product::Dot(dims.clone()), "dot_general", None),
        },
        Op::Convolution(dims) => (Product::Convolution(dims.clone()), "conv_general_dilated", None),
        _ => return None,
    };
    let operand = |i: usize| {
        let id = *node.operands.get(i)?;
        let ty = computation.nodes.get(id.index())?.ty.clone();
        Some(Operand { node: id, ty, weight: trace::trace(graph, &at, id) })
    };
    let site = Site {
        node: id,
        op_name,
        module_path: Path::default(),
        op_id: String::new(),
        swapped: equation.as_deref().is_some_and(einsum::is_swapped),
        equation,
        product,
        lhs: operand(0)?,
        rhs: operand(1)?,
        result: node.ty.clone(),
        at,
    };
    Some((site, scope))
}
