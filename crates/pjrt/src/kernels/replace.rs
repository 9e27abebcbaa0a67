//! Products that have a kernel become calls, and their weights what the kernels read.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use qwix_array::Array;
use qwix_eval::{EvalError, Value};
use qwix_graph::{
    Computation, CustomCall, DotDims, Graph, GraphError, Metadata, Node, NodeId, Op, Parameter, Path,
    Precision, QArrayType, Role, Type,
};
use qwix_quant::{OperandInfo, QuantizedInfo};

use super::expand::expand;
use super::{Call, Kernels, Product};
use crate::PjrtError;
use crate::lower::{finish, lower};

/// The target of a call that stands for one until quantized types are gone; its configuration is its number.
pub(super) const PLACE: &str = "qwix.place";

/// A graph with calls of kernels.
pub(crate) struct Replaced {
    graph: Graph,
    /// By number of the placeholder.
    calls: Vec<(Product, Call)>,
    /// By number of the original's parameters.
    loads: Vec<Load>,
    kernels: Option<Arc<dyn Kernels>>,
    note: Option<String>,
}

/// What is loaded for a parameter, in this order.
#[derive(Clone, Debug, Default, PartialEq)]
struct Load {
    /// Whether the parameter itself is.
    plain: bool,
    /// What it is packed for.
    packed: Vec<Product>,
}

/// What is loaded for each variable of a graph.
pub(crate) struct Loads {
    /// The number that each one's first array has among the lowered graph's parameters, and what is loaded.
    variables: BTreeMap<Path, (usize, Load)>,
    kernels: Option<Arc<dyn Kernels>>,
}

impl Loads {
    /// A variable's arrays in the order of the lowered graph's parameters, and the number of the first.
    pub(crate) fn parts(&self, path: &Path, value: Value) -> Result<(usize, Vec<Array>), EvalError> {
        let (first, load) = self.variables.get(path).ok_or_else(|| {
            PjrtError::invalid(format!("parameter `{path}`"), "is not among those of the program")
        })?;
        let q = match value {
            Value::Array(array) => return Ok((*first, vec![array])),
            Value::QArray(q) => q,
            tuple @ Value::Tuple(_) => {
                return Err(EvalError::WrongType {
                    what: "a parameter".to_owned(),
                    expected: "an array".to_owned(),
                    found: tuple.describe(),
                });
            }
        };
        let plain = || [Some(q.qvalue()), Some(q.scale()), q.zero_point()].into_iter().flatten().cloned();
        let Some(kernels) = &self.kernels else { return Ok((*first, plain().collect())) };
        let mut parts: Vec<Array> = plain().filter(|_| load.plain).collect();
        for product in &load.packed {
            let packed = kernels.pack(product, &q);
            parts.extend(packed.map_err(|e| PjrtError::invalid(format!("parameter `{path}`"), e))?);
        }
        Ok((*first, parts))
    }
}

impl Replaced {
    /// The graph as it is.
    pub(crate) fn nothing(graph: &Graph) -> Self {
        let plain = Load { plain: true, packed: Vec::new() };
        let loads = vec![plain; graph.parameters.len()];
        Replaced { graph: graph.clone(), calls: Vec::new(), loads, kernels: None, note: None }
    }

    /// Lets kernels compute what they can.
    ///
    /// # Errors
    /// When the graph does not hang together.
    pub(crate) fn new(graph: &Graph, kernels: &Arc<dyn Kernels>) -> Result<Self, GraphError> {
        graph.verify()?;
        let mut plan = Plan { planned: BTreeMap::new(), lowered: BTreeMap::new() };
        plan.entry(graph, kernels.as_ref());
        nested(&graph.entry, &mut HashSet::new(), &mut |computation| {
            let count = computation.iter().filter(|(_, node)| is_quantized(computation, node)).count();
            plan.lower(count, format!("it is in `{}`, which the model calls", computation.name));
        });
        let note = plan.note();
        Ok(Replaced { note, kernels: Some(Arc::clone(kernels)), ..plan.apply(graph)? })
    }

    /// What is loaded for the variables of the original.
    pub(crate) fn loads(self, graph: &Graph) -> Loads {
        let mut variables = BTreeMap::new();
        let mut number = 0;
        for (parameter, load) in graph.parameters.iter().zip(self.loads) {
            let first = number;
            if load.plain {
                number += match &parameter.ty {
                    Type::QArray(q) => 2 + usize::from(q.has_zero_point()),
                    Type::Array(_) | Type::Tuple(_) | Type::Token | Type::Opaque(_) => 1,
                };
            }
            let packed = |product: &Product| {
                self.calls.iter().find(|call| call.0 == *product).map_or(0, |call| call.1.packed.len())
            };
            number += load.packed.iter().map(packed).sum::<usize>();
            if parameter.role == Role::Variable {
                variables.insert(parameter.path.clone(), (first, load));
            }
        }
        Loads { variables, kernels: self.kernels }
    }

    /// What is to be said: how many products have no kernel, and why.
    pub(crate) fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// The graph in plain HLO and calls of kernels, as [`lower`] gives it without them.
    ///
    /// # Errors
    /// When the graph cannot be lowered.
    pub(crate) fn lower(&self, platform: &str, precision: Precision) -> Result<Graph, GraphError> {
        if self.calls.is_empty() {
            return lower(&self.graph, platform, precision);
        }
        let lowered = qwix_graph::passes::lower_quant(&self.graph)?;
        finish(expand(lowered, &self.calls)?, platform, precision)
    }
}

/// What becomes of the products of a graph.
struct Plan {
    /// The entry's nodes that a kernel computes, with the weight's parameter number.
    planned: BTreeMap<usize, (usize, Product, Call)>,
    /// Why others are lowered, and how many for each reason.
    lowered: BTreeMap<String, usize>,
}

impl Plan {
    fn entry(&mut self, graph: &Graph, kernels: &dyn Kernels) {
        let entry = graph.entry.as_ref();
        for (id, node) in entry.iter().filter(|(_, node)| is_quantized(entry, node)) {
            match product(graph, node).and_then(|(number, product)| {
                let call = kernels.plan(&product)?;
                Ok((number, product, call))
            }) {
                Ok(planned) => {
                    self.planned.insert(id.index(), planned);
                }
                Err(reason) => self.lower(1, reason),
            }
        }
    }

    fn lower(&mut self, count: usize, reason: String) {
        if count > 0 {
            *self.lowered.entry(reason).or_default() += count;
        }
    }

    fn note(&self) -> Option<String> {
        let lowered: usize = self.lowered.values().sum();
        let all = lowered + self.planned.len();
        let reasons: Vec<String> =
            self.lowered.iter().map(|(reason, count)| format!("{count} because {reason}")).collect();
        (lowered > 0).then(|| {
            format!(
                "{lowered} of {all} quantized products have no kernel and are lowered to plain HLO: {}",
                reasons.join("; ")
            )
        })
    }

    fn apply(self, graph: &Graph) -> Result<Replaced, GraphError> {
        if self.planned.is_empty() {
            return Ok(Replaced::nothing(graph));
        }
        let mut loads = loads(graph, &self.planned);
        let mut parameters = Vec::new();
        // The number that each parameter has now, and the first of what it is packed to for each product.
        let mut numbers = Vec::with_capacity(loads.len());
        let call_of = |product: &Product| self.planned.values().find(|p| p.1 == *product).map(|p| &p.2);
        for (parameter, load) in graph.parameters.iter().zip(&mut loads) {
            let plain = parameters.len();
            if load.plain {
                parameters.push(parameter.clone());
            }
            let mut packed = Vec::with_capacity(load.packed.len());
            for (which, call) in load.packed.iter().filter_map(call_of).enumerate() {
                packed.push(parameters.len());
                for (part, ty) in call.packed.iter().enumerate() {
                    parameters.push(Parameter {
                        path: Path::new(&format!("{}/{}/{which}/{part}", parameter.path, call.target)),
                        key_path: None,
                        ty: ty.clone().into(),
                        slot: None,
                        ..parameter.clone()
                    });
                }
            }
            numbers.push((plain, packed));
        }
        let (entry, calls) = self.rewrite(graph, &loads, &numbers);
        let graph = Graph { name: graph.name.clone(), entry: Arc::new(entry), parameters };
        graph.verify()?;
        Ok(Replaced { graph, calls, loads, kernels: None, note: None })
    }

    /// The entry with placeholders, and what they stand for.
    fn rewrite(
        self,
        graph: &Graph,
        loads: &[Load],
        numbers: &[(usize, Vec<usize>)],
    ) -> (Computation, Vec<(Product, Call)>) {
        let Plan { mut planned, .. } = self;
        let packed_types: Vec<Call> = planned.values().map(|p| p.2.clone()).collect();
        let products: Vec<Product> = planned.values().map(|p| p.1.clone()).collect();
        let mut new = Computation { name: graph.entry.name.clone(), ..Computation::default() };
        let mut places = vec![NodeId(u32::MAX); graph.entry.nodes.len()];
        // Where the packed parts of each parameter are, by product.
        let mut parts: Vec<Vec<Vec<NodeId>>> = vec![Vec::new(); loads.len()];
        let mut calls = Vec::with_capacity(planned.len());
        for (id, node) in graph.entry.iter() {
            let mut node = node.clone();
            if let Op::Parameter(number) = node.op {
                for (product, &first) in loads[number].packed.iter().zip(&numbers[number].1) {
                    let call = products.iter().position(|p| p == product).map(|i| &packed_types[i]);
                    let types = call.map_or(&[][..], |call| &call.packed);
                    let ids = types.iter().enumerate().map(|(part, ty)| {
                        new.nodes.push(Node {
                            name: format!("{}.packed.{}.{part}", node.name, first),
                            op: Op::Parameter(first + part),
                            operands: Vec::new(),
                            ty: ty.clone().into(),
                            metadata: Metadata::default(),
                            sharding: None,
                        });
                        NodeId(new.nodes.len() as u32 - 1)
                    });
                    parts[number].push(ids.collect());
                }
                if !loads[number].plain {
                    continue;
                }
                node.op = Op::Parameter(numbers[number].0);
            }
            let operand = |old: &NodeId| places.get(old.index()).copied().unwrap_or(*old);
            node.operands = match planned.remove(&id.index()) {
                None => node.operands.iter().map(operand).collect(),
                Some((weight, product, call)) => {
                    let which = loads[weight].packed.iter().position(|p| *p == product);
                    let packed = which.and_then(|which| parts[weight].get(which));
                    let left = node.operands.first().map(operand);
                    node.op = Op::CustomCall(CustomCall {
                        target: PLACE.to_owned(),
                        config: calls.len().to_string().into_bytes(),
                        called: Vec::new(),
                        typed: true,
                    });
                    calls.push((product, call));
                    left.into_iter().chain(packed.into_iter().flatten().copied()).collect()
                }
            };
            new.nodes.push(node);
            places[id.index()] = NodeId(new.nodes.len() as u32 - 1);
        }
        new.root = places.get(graph.entry.root.index()).copied().unwrap_or(graph.entry.root);
        (new, calls)
    }
}

/// What is loaded for each parameter: itself where something else than a planned product uses it, and what it is packed
/// to, once for products that are alike.
fn loads(graph: &Graph, planned: &BTreeMap<usize, (usize, Product, Call)>) -> Vec<Load> {
    let mut loads = vec![Load::default(); graph.parameters.len()];
    for (number, product, _) in planned.values() {
        if let Some(load) = loads.get_mut(*number)
            && !load.packed.contains(product)
        {
            load.packed.push(product.clone());
        }
    }
    let mut used = HashSet::from([graph.entry.root]);
    for (id, node) in graph.entry.iter() {
        // Of a planned product the first operand stays.
        let kept = if planned.contains_key(&id.index()) { 1 } else { node.operands.len() };
        used.extend(node.operands.iter().take(kept));
    }
    for (id, node) in graph.entry.iter() {
        if let Op::Parameter(number) = node.op
            && let Some(load) = loads.get_mut(number)
        {
            load.plain = load.packed.is_empty() || used.contains(&id);
        }
    }
    loads
}

/// A product whose weight is a variable on the right, and the variable's number.
fn product(graph: &Graph, node: &Node) -> Result<(usize, Product), String> {
    let Op::Dot(dims) = &node.op else { return Err("convolutions have none".to_owned()) };
    let &[lhs, rhs] = &node.operands[..] else { return Err("it has not two sides".to_owned()) };
    let variable = |id: NodeId| match graph.entry.node(id).op {
        Op::Parameter(number) if graph.parameters.get(number)?.role == Role::Variable => Some(number),
        _ => None,
    };
    let quantized = |id: NodeId| matches!(graph.entry.node(id).ty, Type::QArray(_));
    match variable(rhs) {
        Some(number) if quantized(rhs) => {
            let info = |id: NodeId| info(&graph.entry.node(id).ty);
            let product = Product { lhs: info(lhs)?, weight: info(rhs)?, dims: DotDims::clone(dims) };
            Ok((number, product))
        }
        _ if quantized(lhs) && variable(lhs).is_some() => Err("its weight is on the left".to_owned()),
        _ => Err(match &graph.entry.node(rhs).op {
            Op::Quantize(_) => "neither side is a weight".to_owned(),
            op => format!("its right side is no weight as it is stored, but comes from a {}", op.name()),
        }),
    }
}

fn info(ty: &Type) -> Result<OperandInfo, String> {
    let quantized = |q: &QArrayType| {
        Ok(OperandInfo {
            shape: q.array.shape.clone(),
            dtype: q.array.dtype,
            quantized: Some(QuantizedInfo {
                qtype: q.how.qtype,
                scale_shape: q.scale_shape().map_err(|e| e.to_string())?,
                has_zero_point: q.has_zero_point(),
            }),
        })
    };
    match ty {
        Type::Array(array) => Ok(OperandInfo::array(&array.shape, array.dtype)),
        Type::QArray(q) => quantized(q),
        Type::Tuple(_) | Type::Token | Type::Opaque(_) => Err(format!("a side is {ty}")),
    }
}

/// Whether a node is a product with a quantized side.
fn is_quantized(computation: &Computation, node: &Node) -> bool {
    let quantized = |id: &NodeId| matches!(computation.node(*id).ty, Type::QArray(_));
    matches!(node.op, Op::Dot(_) | Op::Convolution(_)) && node.operands.iter().any(quantized)
}

/// Visits the computations that a computation calls, and those that they call, each once.
fn nested(
    computation: &Computation,
    seen: &mut HashSet<*const Computation>,
    visit: &mut impl FnMut(&Computation),
) {
    for called in computation.nodes.iter().flat_map(|node| node.op.called()) {
        if seen.insert(Arc::as_ptr(called)) {
            visit(called);
            nested(called, seen, visit);
        }
    }
}
