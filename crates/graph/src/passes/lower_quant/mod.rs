//! Quantized arrays away: `quantize`, `dequantize` and products with quantized sides as plain HLO, computing what Qwix
//! computes under `jit` on XLA:CPU.
//!
//! What Qwix writes as a division is written here as XLA computes it: a product with the rounded reciprocal, or a true
//! division in bf16. So every engine that runs the result gets the same bits.
//!
//! A quantized array becomes its parts: qvalue, scale and zero point. In the signature they are two or three
//! parameters (`<path>/qvalue`, `<path>/scale`, `<path>/zero_point`), in tuples and as an argument of a computation one
//! tuple of these.

pub(crate) mod composite;
mod product;
mod quantize;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::infer::called_parameters;
use crate::passes::inline::Names;
use crate::ranges;
use crate::sharding::leaf_types;
use crate::{
    ArrayType, Computation, ComputationBuilder, Graph, GraphError, Metadata, Node, NodeId, Op, Parameter,
    QArrayType, Sharding, SliceDim, Type,
};

/// The graph without quantized types and ops on them; the same numbers.
///
/// # Errors
/// When the graph does not verify, or a product with quantized sides cannot be computed (both have a zero point, say).
pub fn lower_quant(graph: &Graph) -> Result<Graph, GraphError> {
    lower(graph, Shared::default())
}

fn lower(graph: &Graph, mut shared: Shared) -> Result<Graph, GraphError> {
    let mut parameters = Vec::new();
    // The number that each old parameter's first part has.
    let mut numbers = Vec::new();
    for parameter in &graph.parameters {
        numbers.push(parameters.len());
        match &parameter.ty {
            Type::QArray(q) => {
                for (name, ty) in part_types(q)? {
                    parameters.push(Parameter {
                        path: parameter.path.join(name),
                        key_path: None,
                        ty: ty.into(),
                        slot: None,
                        ..parameter.clone()
                    });
                }
            }
            Type::Array(_) | Type::Tuple(_) | Type::Token | Type::Opaque(_) => {
                let ty = lower_type(&parameter.ty)?;
                parameters.push(Parameter { ty, ..parameter.clone() });
            }
        }
    }
    let entry = shared.computation(&graph.entry, Some(&numbers))?;
    let lowered = Graph { name: graph.name.clone(), entry: Arc::new(entry), parameters };
    lowered.verify()?;
    Ok(lowered)
}

/// The parts of a quantized array.
#[derive(Clone, Copy, Debug)]
struct Parts {
    qvalue: NodeId,
    scale: NodeId,
    zero_point: Option<NodeId>,
}

impl Parts {
    fn list(&self) -> Vec<NodeId> {
        [self.qvalue, self.scale].into_iter().chain(self.zero_point).collect()
    }
}

/// Names and types of the parts.
pub(crate) fn part_types(q: &QArrayType) -> Result<Vec<(&'static str, ArrayType)>, GraphError> {
    let parts = q.how.parts(&q.array.shape, q.array.dtype)?;
    let ty = |(dtype, shape): (_, Vec<usize>)| ArrayType::new(dtype, shape);
    let mut list = vec![("qvalue", ty(parts.qvalue)), ("scale", ty(parts.scale))];
    list.extend(parts.zero_point.map(|part| ("zero_point", ty(part))));
    Ok(list)
}

fn lower_type(ty: &Type) -> Result<Type, GraphError> {
    Ok(match ty {
        Type::QArray(q) => Type::Tuple(part_types(q)?.into_iter().map(|(_, ty)| ty.into()).collect()),
        Type::Tuple(elements) => Type::Tuple(elements.iter().map(lower_type).collect::<Result<_, _>>()?),
        Type::Array(_) | Type::Token | Type::Opaque(_) => ty.clone(),
    })
}

/// The shardings of the parts of a quantized array; that of an array for itself.
fn part_shardings(sharding: &Sharding, ty: &Type) -> Result<Vec<Sharding>, GraphError> {
    Ok(match ty {
        Type::QArray(q) => {
            let fitted = |(_, part): (_, ArrayType)| sharding.fitted(&q.array.shape, &part.shape);
            part_types(q)?.into_iter().map(fitted).collect()
        }
        Type::Array(_) | Type::Tuple(_) | Type::Token | Type::Opaque(_) => vec![sharding.clone()],
    })
}

/// The sharding of a value of [`lower_type`].
fn spread_type(sharding: &Sharding, ty: &Type) -> Result<Sharding, GraphError> {
    let elements = match sharding.leaves(ty) {
        Some(elements) if has_quantized(ty) => elements,
        // One that does not fit its type stays as it is.
        Some(_) | None => return Ok(sharding.clone()),
    };
    let parts = elements.iter().zip(leaf_types(ty)).map(|(element, ty)| part_shardings(element, ty));
    Ok(Sharding::Tuple(parts.collect::<Result<Vec<_>, _>>()?.concat()))
}

pub(crate) fn has_quantized(ty: &Type) -> bool {
    match ty {
        Type::QArray(_) => true,
        Type::Tuple(elements) => elements.iter().any(has_quantized),
        Type::Array(_) | Type::Token | Type::Opaque(_) => false,
    }
}

/// Computations that were lowered already; they are shared by many callers.
#[derive(Default)]
struct Shared {
    done: HashMap<*const Computation, Arc<Computation>>,
    /// Where ops on quantized arrays become composites: their decompositions, by the composites' attributes.
    composites: Option<HashMap<String, Arc<Computation>>>,
}

impl Shared {
    fn called(&mut self, computation: &Arc<Computation>) -> Result<Arc<Computation>, GraphError> {
        if let Some(done) = self.done.get(&Arc::as_ptr(computation)) {
            return Ok(Arc::clone(done));
        }
        let result = Arc::new(self.computation(computation, None)?);
        self.done.insert(Arc::as_ptr(computation), Arc::clone(&result));
        Ok(result)
    }

    /// `numbers` is given for the entry, whose quantized parameters become several.
    fn computation(
        &mut self,
        computation: &Computation,
        numbers: Option<&[usize]>,
    ) -> Result<Computation, GraphError> {
        let mut lowering = Lowering {
            b: ComputationBuilder::new(&computation.name),
            old: computation,
            values: Vec::with_capacity(computation.nodes.len()),
            named: HashSet::new(),
            numbers,
            shared: self,
        };
        for node in &computation.nodes {
            let start = lowering.b.nodes_mut().len();
            let value = lowering.node(node).map_err(|error| match error {
                GraphError::Quant(error) => computation.error(node, error.to_string()),
                other => other,
            })?;
            lowering.values.push(value);
            lowering.adopt(node, start);
            lowering.spread(node, value, start)?;
        }
        let root = lowering.value(computation.root)?;
        lowering.rename();
        lowering.b.finish(root)
    }
}

/// Where an old node's value is.
#[derive(Clone, Copy, Debug)]
enum Lowered {
    /// In a node of the lowered type.
    Node(NodeId),
    /// A quantized array's, in its parts.
    Parts(Parts),
}

/// One computation on its way.
struct Lowering<'a> {
    b: ComputationBuilder,
    old: &'a Computation,
    values: Vec<Lowered>,
    /// Nodes that have the name of an old one.
    named: HashSet<usize>,
    numbers: Option<&'a [usize]>,
    shared: &'a mut Shared,
}

impl Lowering<'_> {
    fn lowered(&self, id: NodeId) -> Result<Lowered, GraphError> {
        self.values.get(id.index()).copied().ok_or_else(|| GraphError::Invalid {
            computation: self.old.name.clone(),
            reason: format!("node {} is used before it is made", id.0),
        })
    }

    /// An old node's value in one node: a quantized one as a tuple.
    fn value(&mut self, id: NodeId) -> Result<NodeId, GraphError> {
        match self.lowered(id)? {
            Lowered::Node(node) => Ok(node),
            Lowered::Parts(parts) => self.b.tuple(&parts.list()),
        }
    }

    fn parts(&mut self, id: NodeId) -> Result<Parts, GraphError> {
        let tuple = match self.lowered(id)? {
            Lowered::Parts(parts) => return Ok(parts),
            Lowered::Node(tuple) => tuple,
        };
        let has_zero_point = matches!(&self.old.node(id).ty, Type::QArray(q) if q.has_zero_point());
        let parts = Parts {
            qvalue: self.b.get_tuple_element(tuple, 0)?,
            scale: self.b.get_tuple_element(tuple, 1)?,
            zero_point: if has_zero_point { Some(self.b.get_tuple_element(tuple, 2)?) } else { None },
        };
        self.values[id.index()] = Lowered::Parts(parts);
        Ok(parts)
    }

    fn quantized(&self, id: NodeId) -> Option<&QArrayType> {
        match &self.old.nodes.get(id.index())?.ty {
            Type::QArray(q) => Some(q),
            Type::Array(_) | Type::Tuple(_) | Type::Token | Type::Opaque(_) => None,
        }
    }

    fn node(&mut self, node: &Node) -> Result<Lowered, GraphError> {
        if let Some(composite) = self.composite(node)? {
            return Ok(composite);
        }
        let first = node.operands.first().copied();
        let first_quantized = first.is_some_and(|id| self.quantized(id).is_some());
        let any_quantized = node.operands.iter().any(|&id| self.quantized(id).is_some());
        match (&node.op, first) {
            (Op::Parameter(number), _) => self.parameter(node, *number),
            (Op::Quantize(how), Some(x)) => {
                let x = self.value(x)?;
                let given = match node.operands.get(1) {
                    None => None,
                    Some(&scale) => {
                        let scale = self.value(scale)?;
                        let zero_point = node.operands.get(2).map(|&id| self.value(id)).transpose()?;
                        Some((scale, zero_point))
                    }
                };
                let (scale, zero_point) = match given {
                    Some(given) => given,
                    None => ranges::range(&mut self.b, x, how)?,
                };
                let qvalue = quantize::encode(&mut self.b, x, how.qtype, scale, zero_point)?;
                Ok(Lowered::Parts(Parts { qvalue, scale, zero_point }))
            }
            (Op::Dequantize, Some(x)) => {
                let qtype = self.quantized(x).map(|q| q.how.qtype);
                let parts = self.parts(x)?;
                let qtype = qtype.ok_or_else(|| self.old.error(node, "takes a quantized array".into()))?;
                Ok(Lowered::Node(quantize::dequantize(&mut self.b, &parts, qtype)?))
            }
            (Op::Dot(dims), Some(_)) if any_quantized => {
                let [lhs, rhs] = self.sides(node)?;
                let product = product::dot(&mut self.b, &lhs, &rhs, dims)?;
                self.result(node, product)
            }
            (Op::Convolution(dims), Some(_)) if any_quantized => {
                let [lhs, rhs] = self.sides(node)?;
                let product = product::convolution(&mut self.b, &lhs, &rhs, dims)?;
                self.result(node, product)
            }
            (Op::Slice(dims), Some(x)) if first_quantized => self.slice(node, x, dims),
            (Op::DynamicSlice { sizes }, Some(x)) if first_quantized => self.dynamic_slice(node, x, sizes),
            (Op::Reshape, Some(x)) if first_quantized => self.reshape(node, x),
            (Op::Sharding { open }, Some(x)) if first_quantized => {
                let open = open.clone();
                self.each_part(x, |b, part, _| b.add(Op::Sharding { open: open.clone() }, &[part]))
            }
            _ => self.copy(node),
        }
    }

    fn parameter(&mut self, node: &Node, number: usize) -> Result<Lowered, GraphError> {
        let numbers = self.numbers;
        let first = match numbers {
            None => number,
            Some(numbers) => {
                *numbers.get(number).ok_or_else(|| self.old.error(node, "is not in the signature".into()))?
            }
        };
        let (Type::QArray(q), Some(_)) = (&node.ty, numbers) else {
            let op = Op::Parameter(first);
            return Ok(Lowered::Node(self.b.add_node(Node {
                op,
                ty: lower_type(&node.ty)?,
                ..node.clone()
            })?));
        };
        let mut ids = Vec::new();
        for (index, (name, ty)) in part_types(q)?.into_iter().enumerate() {
            ids.push(self.b.add_node(Node {
                name: format!("{}.{name}", node.name),
                op: Op::Parameter(first + index),
                operands: Vec::new(),
                ty: ty.into(),
                // The key path that JAX wrote is that of the float parameter.
                metadata: Metadata::default(),
                // `adopt` writes those of parts.
                sharding: None,
            })?);
        }
        Ok(Lowered::Parts(Parts { qvalue: ids[0], scale: ids[1], zero_point: ids.get(2).copied() }))
    }

    /// The two sides of a product.
    fn sides(&mut self, node: &Node) -> Result<[product::Side; 2], GraphError> {
        let &[lhs, rhs] = node.operands.as_slice() else {
            return Err(self.old.error(node, format!("takes 2 operands, found {}", node.operands.len())));
        };
        Ok([self.side(lhs)?, self.side(rhs)?])
    }

    fn side(&mut self, id: NodeId) -> Result<product::Side, GraphError> {
        match self.quantized(id).cloned() {
            Some(q) => Ok(product::Side::Quantized(self.parts(id)?, q.how.qtype)),
            None => Ok(product::Side::Array(self.value(id)?)),
        }
    }

    /// The product in the dtype that the node has: a patched node keeps its type.
    fn result(&mut self, node: &Node, product: NodeId) -> Result<Lowered, GraphError> {
        match &node.ty {
            Type::Array(ty) => Ok(Lowered::Node(self.b.convert(product, ty.dtype)?)),
            Type::QArray(_) | Type::Tuple(_) | Type::Token | Type::Opaque(_) => {
                Err(self.old.error(node, format!("is declared {}, should be an array", node.ty)))
            }
        }
    }

    /// The same function of each part.
    fn each_part(
        &mut self,
        x: NodeId,
        mut f: impl FnMut(&mut ComputationBuilder, NodeId, Vec<usize>) -> Result<NodeId, GraphError>,
    ) -> Result<Lowered, GraphError> {
        let parts = self.parts(x)?;
        let mut apply = |b: &mut ComputationBuilder, id| {
            let shape = b.shape(id)?.to_vec();
            f(b, id, shape)
        };
        Ok(Lowered::Parts(Parts {
            qvalue: apply(&mut self.b, parts.qvalue)?,
            scale: apply(&mut self.b, parts.scale)?,
            zero_point: parts.zero_point.map(|id| apply(&mut self.b, id)).transpose()?,
        }))
    }

    fn shape_of(&self, node: &Node, id: NodeId) -> Result<Vec<usize>, GraphError> {
        match self.quantized(id) {
            Some(q) => Ok(q.array.shape.clone()),
            None => Err(self.old.error(node, "takes a quantized array".into())),
        }
    }

    fn slice(&mut self, node: &Node, x: NodeId, dims: &[SliceDim]) -> Result<Lowered, GraphError> {
        let shape = self.shape_of(node, x)?;
        self.each_part(x, |b, part, sizes| {
            let dims: Vec<SliceDim> = (0..shape.len())
                .map(|axis| match (sizes[axis], dims[axis]) {
                    (size, dim) if size == shape[axis] => dim,
                    (1, _) => SliceDim { start: 0, limit: 1, stride: 1 },
                    (size, dim) => {
                        let tile = shape[axis] / size.max(1);
                        SliceDim { start: dim.start / tile, limit: dim.limit / tile, stride: 1 }
                    }
                })
                .collect();
            b.slice(part, &dims)
        })
    }

    fn dynamic_slice(&mut self, node: &Node, x: NodeId, sizes: &[usize]) -> Result<Lowered, GraphError> {
        let shape = self.shape_of(node, x)?;
        let starts = node.operands[1..].iter().map(|&id| self.value(id)).collect::<Result<Vec<_>, _>>()?;
        self.each_part(x, |b, part, part_sizes| {
            // An axis that has not an entry for each element is taken whole: its start is clamped to 0.
            let taken = (0..shape.len())
                .map(|axis| if part_sizes[axis] == shape[axis] { sizes[axis] } else { part_sizes[axis] })
                .collect();
            let operands: Vec<NodeId> = [part].into_iter().chain(starts.iter().copied()).collect();
            b.add(Op::DynamicSlice { sizes: taken }, &operands)
        })
    }

    fn reshape(&mut self, node: &Node, x: NodeId) -> Result<Lowered, GraphError> {
        let from = self.shape_of(node, x)?;
        let to = node.ty.as_array().map(|a| a.shape.clone()).unwrap_or_default();
        self.each_part(x, |b, part, sizes| {
            let mut kept = from.iter().zip(sizes).filter(|(d, _)| **d != 1).map(|(_, size)| size);
            let shape: Vec<usize> =
                to.iter().map(|&d| if d == 1 { 1 } else { kept.next().unwrap_or(1) }).collect();
            b.reshape(part, &shape)
        })
    }

    /// A node that stays as it is, on lowered operands.
    fn copy(&mut self, node: &Node) -> Result<Lowered, GraphError> {
        let operands = node.operands.iter().map(|&id| self.value(id)).collect::<Result<Vec<_>, _>>()?;
        let mut op = node.op.clone();
        let types: Vec<&Type> = node.operands.iter().map(|&id| &self.old.node(id).ty).collect();
        // Computations of scalars have nothing quantized in them.
        if called_parameters(&node.op, &types).is_some() {
            for called in op.called_mut() {
                *called = self.shared.called(called)?;
            }
        }
        let ty = if has_quantized(&node.ty) { lower_type(&node.ty)? } else { node.ty.clone() };
        Ok(Lowered::Node(self.b.add_node(Node { op, operands, ty, ..node.clone() })?))
    }

    /// Gives the nodes that were made for an old one its metadata, and the last of them its name.
    fn adopt(&mut self, old: &Node, start: usize) {
        let nodes = self.b.nodes_mut();
        let last = nodes.len();
        for (index, node) in nodes.iter_mut().enumerate().skip(start) {
            let is_parameter = matches!(node.op, Op::Parameter(_));
            if node.metadata == Metadata::default() && !is_parameter {
                node.metadata.op_name.clone_from(&old.metadata.op_name);
            }
            if index + 1 == last && !(is_parameter && last - start > 1) {
                node.name.clone_from(&old.name);
                node.metadata = old.metadata.clone();
                self.named.insert(index);
            }
        }
    }

    /// Gives the nodes that hold an old one's value its sharding, parts of a quantized array one that fits their shapes.
    fn spread(&mut self, old: &Node, value: Lowered, start: usize) -> Result<(), GraphError> {
        let Some(sharding) = &old.sharding else { return Ok(()) };
        let (ids, shardings) = match value {
            Lowered::Node(id) => (vec![id], vec![spread_type(sharding, &old.ty)?]),
            Lowered::Parts(parts) => (parts.list(), part_shardings(sharding, &old.ty)?),
        };
        let nodes = self.b.nodes_mut();
        for (id, sharding) in ids.into_iter().zip(shardings) {
            // What was there before has a sharding of its own.
            if id.index() >= start
                && let Some(node) = nodes.get_mut(id.index())
            {
                node.sharding = Some(sharding);
            }
        }
        Ok(())
    }

    /// Gives new nodes names that no old one has.
    fn rename(&mut self) {
        let named = &self.named;
        let nodes = self.b.nodes_mut();
        let mut names = Names::default();
        for &index in named {
            names.unique(&nodes[index].name);
        }
        for (index, node) in nodes.iter_mut().enumerate() {
            if !named.contains(&index) {
                node.name = names.unique(&node.name);
            }
        }
    }
}
