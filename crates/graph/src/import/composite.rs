//! Our composites → quantized ops, and the parts of quantized arrays → one value.
//!
//! The ops on quantized arrays are composites (see `passes::lower_quant::composite`). Everything else hands their parts
//! on, as they are or in a tuple, or the file was changed after it was written.

use std::collections::HashMap;
use std::sync::Arc;

use super::marks::{Marks, Place};
use super::same::same;
use crate::infer::{called_parameters, infer};
use crate::passes::inline::Names;
use crate::passes::lower_quant::composite::{PARTS, QuantizedOp, is_ours};
use crate::passes::lower_quant::part_types;
use crate::{Composite, Computation, Graph, GraphError, Metadata, Node, NodeId, Op, Type};

/// The graph of an entry computation without calls but our composites, verified.
///
/// # Errors
/// Names the instruction that is not what was written there, and says in what.
pub(crate) fn graph_of(name: String, entry: Computation, marks: &Marks) -> Result<Graph, GraphError> {
    let (parameters, places) = marks.signature(&entry)?;
    if marks.is_empty() && !has_composites(&entry) {
        let graph = Graph { name, entry: Arc::new(entry), parameters };
        graph.verify()?;
        return Ok(graph);
    }
    // What follows relies on it.
    let plain = Graph { name, parameters: super::signature(&entry), entry: Arc::new(entry) };
    plain.verify()?;
    let op_name = |(number, id): (usize, NodeId)| marks.op_name(number, plain.entry.node(id));
    let op_names: Vec<&str> = plain.entry.parameters().into_iter().enumerate().map(op_name).collect();
    let types: Vec<&Type> = parameters.iter().map(|parameter| &parameter.ty).collect();
    let given = Given { types, places: Some((&places, &op_names)) };
    let entry = Arc::new(Checked::default().computation(&plain.entry, &given)?);
    let graph = Graph { name: plain.name, entry, parameters };
    graph.verify()?;
    Ok(graph)
}

fn has_composites(computation: &Computation) -> bool {
    computation.nodes.iter().any(|node| match &node.op {
        Op::Call { composite, .. } => is_ours(composite.as_ref()),
        op => op.called().into_iter().any(|called| has_composites(called)),
    })
}

/// What a computation is given.
struct Given<'a> {
    /// The types of its parameters, some of which may be quantized.
    types: Vec<&'a Type>,
    /// Of the entry: what each parameter of the file is, and the `op_name` that it should have.
    places: Option<(&'a [Place], &'a [&'a str])>,
}

/// Calls whose decompositions were looked at: the computation, and what the call says of it.
#[derive(Default)]
struct Checked {
    done: HashMap<(*const Computation, Arc<Composite>), Arc<QuantizedOp>>,
}

/// Where an old node's value is.
#[derive(Clone, Debug)]
enum View {
    /// In a node.
    Node(NodeId),
    /// A part of a quantized node.
    Part(NodeId, usize),
    /// A part of the range that `quantize` finds in an old node.
    Range { x: NodeId, op: Arc<QuantizedOp> },
}

/// One computation on its way.
struct Raising<'a> {
    old: &'a Computation,
    given: &'a Given<'a>,
    views: Vec<View>,
    nodes: Vec<Node>,
    names: Names,
    /// The quantized parameters of which a part was seen, by number.
    parameters: HashMap<usize, NodeId>,
    /// The scale and the zero point that `quantize` took, of the node that it is.
    ranges: HashMap<NodeId, Vec<NodeId>>,
    /// Other ops that yield quantized arrays, by what they do to which old nodes (constraints: to which new node): the
    /// node, and which of its parts were seen.
    pieces: HashMap<(String, Vec<NodeId>), (NodeId, [bool; PARTS.len()])>,
    checked: &'a mut Checked,
}

impl Checked {
    fn computation(&mut self, old: &Computation, given: &Given<'_>) -> Result<Computation, GraphError> {
        let mut raising = Raising {
            old,
            given,
            views: Vec::with_capacity(old.nodes.len()),
            nodes: Vec::with_capacity(old.nodes.len()),
            names: Names::default(),
            parameters: HashMap::new(),
            ranges: HashMap::new(),
            pieces: HashMap::new(),
            checked: self,
        };
        for node in &old.nodes {
            let view = raising.node(node).map_err(|error| match error {
                Wrong::Here(reason) => old.error(node, reason),
                Wrong::Graph(error) => error,
            })?;
            raising.views.push(view);
        }
        let root = raising.value(old.root).map_err(|reason| old.error(old.node(old.root), reason))?;
        Ok(Computation { name: old.name.clone(), nodes: raising.nodes, root })
    }

    /// What a call stands for, when its computation is the decomposition of that.
    fn op(
        &mut self,
        composite: &Arc<Composite>,
        computation: &Arc<Computation>,
    ) -> Result<Arc<QuantizedOp>, String> {
        let key = (Arc::as_ptr(computation), Arc::clone(composite));
        if let Some(op) = self.done.get(&key) {
            return Ok(Arc::clone(op));
        }
        let op = Arc::new(QuantizedOp::read(composite)?);
        let expected = op.decomposition().map_err(|error| error.to_string())?;
        if !same(&expected, computation) {
            return Err(format!(
                "`{}` is not what version {} of `{}` computes: the file was changed after it was written",
                computation.name, composite.version, composite.name
            ));
        }
        self.done.insert(key, Arc::clone(&op));
        Ok(op)
    }
}

/// What is wrong: with the node that is looked at, or elsewhere.
enum Wrong {
    Here(String),
    Graph(GraphError),
}

impl From<String> for Wrong {
    fn from(reason: String) -> Self {
        Wrong::Here(reason)
    }
}

impl From<GraphError> for Wrong {
    fn from(error: GraphError) -> Self {
        Wrong::Graph(error)
    }
}

impl Raising<'_> {
    fn node(&mut self, node: &Node) -> Result<View, Wrong> {
        match &node.op {
            Op::Parameter(number) => Ok(self.parameter(node, *number)?),
            Op::Call { computation, composite: Some(composite) } if is_ours(Some(composite)) => {
                let op = self.checked.op(composite, computation)?;
                Ok(self.composite(node, &op, composite)?)
            }
            Op::GetTupleElement(index) => match self.views.get(node.operands[0].index()) {
                Some(&View::Node(tuple)) if self.part_count(tuple).is_some() => Ok(View::Part(tuple, *index)),
                _ => self.copy(node),
            },
            Op::Sharding { .. } => match self.views.get(node.operands[0].index()) {
                Some(&View::Part(array, part)) => Ok(self.constraint(node, array, part)?),
                _ => self.copy(node),
            },
            Op::Tuple => match self.whole(&node.operands) {
                Some(quantized) => Ok(View::Node(quantized)),
                None => self.copy(node),
            },
            _ => self.copy(node),
        }
    }

    fn parameter(&mut self, node: &Node, number: usize) -> Result<View, String> {
        let (place, metadata, name) = match self.given.places {
            None => (Place { number, part: None }, node.metadata.clone(), node.name.as_str()),
            Some((places, op_names)) => {
                let place = places[number];
                let op_name = op_names[number - place.part.unwrap_or(0)].to_owned();
                let metadata = Metadata { op_name, id: node.metadata.id };
                let suffix = place.part.map_or("", |part| PARTS[part]);
                let name = node.name.strip_suffix(suffix).and_then(|name| name.strip_suffix('.'));
                let name = name.filter(|_| place.part.is_some()).unwrap_or(&node.name);
                (place, metadata, name)
            }
        };
        let op = Op::Parameter(place.number);
        let Some(part) = place.part else {
            let ty = self.given.types[place.number].clone();
            return self
                .push(Node { name: name.to_owned(), op, ty, metadata, ..node.clone() })
                .map(View::Node);
        };
        // Whichever part comes first brings the parameter.
        let id = match self.parameters.get(&place.number) {
            Some(&id) => id,
            None => {
                let ty = self.given.types[place.number].clone();
                let id = self.push(Node { name: name.to_owned(), op, ty, metadata, ..node.clone() })?;
                self.parameters.insert(place.number, id);
                id
            }
        };
        self.spread(id, part, node);
        Ok(View::Part(id, part))
    }

    /// The sharding of a quantized array is that of its qvalue.
    fn spread(&mut self, id: NodeId, part: usize, node: &Node) {
        if part == 0 {
            self.nodes[id.index()].sharding.clone_from(&node.sharding);
        }
    }

    /// A constraint on a part of a quantized array: one on the array, when there is one on each part.
    fn constraint(&mut self, node: &Node, array: NodeId, part: usize) -> Result<View, String> {
        let Op::Sharding { open } = &node.op else {
            return Err(format!("{} is no constraint", node.op.name()));
        };
        let key = (format!("constraint {open:?}"), vec![array]);
        let (id, mut seen) = match self.pieces.get(&key) {
            Some(&(id, seen)) if !seen[part] => {
                // The last one's name is that of the op.
                self.nodes[id.index()].name = self.names.unique(&node.name);
                (id, seen)
            }
            Some(_) | None => {
                let ty = self.nodes[array.index()].ty.clone();
                (self.push(Node { operands: vec![array], ty, ..node.clone() })?, [false; PARTS.len()])
            }
        };
        seen[part] = true;
        self.pieces.insert(key, (id, seen));
        self.spread(id, part, node);
        Ok(View::Part(id, part))
    }

    /// A node that stands for an op on quantized arrays.
    fn composite(
        &mut self,
        node: &Node,
        op: &Arc<QuantizedOp>,
        composite: &Composite,
    ) -> Result<View, String> {
        if let (Op::Quantize(_), Some(1 | 2), &[x]) = (&op.op, op.part, node.operands.as_slice()) {
            self.value(x)?;
            return Ok(View::Range { x, op: Arc::clone(op) });
        }
        let all = |op: &QuantizedOp| QuantizedOp { part: None, ..op.clone() }.composite().attributes;
        let key = op.part.map(|part| (part, (all(op), node.operands.clone())));
        if let Some((part, key)) = &key
            && let Some((id, seen)) = self.pieces.get_mut(key)
            && !seen[*part]
        {
            seen[*part] = true;
            let (id, part) = (*id, *part);
            if part == 0 {
                // Its call has the name of the op.
                self.nodes[id.index()].name = self.names.unique(&node.name);
            }
            self.spread(id, part, node);
            return Ok(View::Part(id, part));
        }
        let found = self.found_range(node, op);
        let mut operands = Vec::new();
        let mut flat = node.operands.as_slice();
        let stated = if found { &op.operands[..1] } else { &op.operands };
        for ty in stated {
            let count = match ty {
                Type::QArray(q) => part_types(q).map_err(|error| error.to_string())?.len(),
                Type::Array(_) | Type::Tuple(_) | Type::Token | Type::Opaque(_) => 1,
            };
            let (ids, rest) = flat.split_at_checked(count).ok_or("it has not enough operands")?;
            flat = rest;
            let operand = match ty {
                Type::QArray(_) => self.whole(ids).ok_or_else(|| {
                    format!("operands {} are not the parts of one quantized array", self.listed(ids))
                })?,
                Type::Array(_) | Type::Tuple(_) | Type::Token | Type::Opaque(_) => self.value(ids[0])?,
            };
            let given = &self.nodes[operand.index()].ty;
            if given != ty {
                return Err(format!("`{}` says that it takes {ty}, and is given {given}", composite.name));
            }
            operands.push(operand);
        }
        let (op_of, ty) = (op.op.clone(), op.ty.clone());
        let quantized = Node { op: op_of, operands, ty, ..node.clone() };
        let id = self.push(quantized)?;
        let Some((part, key)) = key else { return Ok(View::Node(id)) };
        if let Op::Quantize(_) = op.op {
            self.ranges.insert(id, node.operands[1..].to_vec());
        } else {
            let mut seen = [false; PARTS.len()];
            seen[part] = true;
            self.pieces.insert(key, (id, seen));
        }
        Ok(View::Part(id, part))
    }

    /// Whether the range that `quantize` takes is the one that it would find itself.
    fn found_range(&self, node: &Node, op: &QuantizedOp) -> bool {
        let (Op::Quantize(_), [x, range @ ..]) = (&op.op, node.operands.as_slice()) else { return false };
        !range.is_empty()
            && range.iter().enumerate().all(|(index, id)| match &self.views[id.index()] {
                View::Range { x: of, op: found } => {
                    of == x && found.ty == op.ty && found.part == Some(index + 1)
                }
                View::Node(_) | View::Part(..) => false,
            })
    }

    /// A node that stays as it is.
    fn copy(&mut self, node: &Node) -> Result<View, Wrong> {
        let operands =
            node.operands.iter().map(|&id| self.value(id)).collect::<Result<Vec<NodeId>, String>>()?;
        let mut op = node.op.clone();
        let types: Vec<Type> = operands.iter().map(|id| self.nodes[id.index()].ty.clone()).collect();
        let types: Vec<&Type> = types.iter().collect();
        // Computations of scalars have nothing quantized in them.
        if let Some(given) = called_parameters(&node.op, &types) {
            for (called, types) in op.called_mut().into_iter().zip(given) {
                *called = Arc::new(self.checked.computation(called, &Given { types, places: None })?);
            }
        }
        Ok(View::Node(self.push(Node { op, operands, ..node.clone() })?))
    }

    /// Adds a node, its type inferred from its operands.
    fn push(&mut self, node: Node) -> Result<NodeId, String> {
        let types: Vec<&Type> = node.operands.iter().map(|id| &self.nodes[id.index()].ty).collect();
        let ty = infer(&node.op, &types, &node.ty)?;
        let name = self.names.unique(&node.name);
        self.nodes.push(Node { name, ty, ..node });
        Ok(NodeId(self.nodes.len() as u32 - 1))
    }

    /// The node that an old one is.
    fn value(&self, id: NodeId) -> Result<NodeId, String> {
        let name = &self.old.node(id).name;
        let part = match &self.views[id.index()] {
            View::Node(node) => return Ok(*node),
            View::Part(_, part) => *part,
            View::Range { op, .. } => op.part.unwrap_or_default(),
        };
        Err(format!(
            "`{name}` is the {} of a quantized array, which this instruction cannot take: the file was changed after it \
             was written; without its `qwix.` attributes it is plain HLO",
            PARTS[part]
        ))
    }

    /// How many parts a node has, when it is quantized.
    fn part_count(&self, id: NodeId) -> Option<usize> {
        match &self.nodes[id.index()].ty {
            Type::QArray(q) => Some(if q.has_zero_point() { 3 } else { 2 }),
            Type::Array(_) | Type::Tuple(_) | Type::Token | Type::Opaque(_) => None,
        }
    }

    /// The quantized node of which old nodes are all the parts, in order.
    fn whole(&self, ids: &[NodeId]) -> Option<NodeId> {
        let &View::Part(node, 0) = &self.views[ids.first()?.index()] else { return None };
        let ranges = self.ranges.get(&node);
        let fits = |(part, id): (usize, &NodeId)| match self.views[id.index()] {
            View::Part(of, is) if of == node && is == part => true,
            _ => ranges.and_then(|range| range.get(part.checked_sub(1)?)) == Some(id),
        };
        (self.part_count(node) == Some(ids.len()) && ids.iter().enumerate().all(fits)).then_some(node)
    }

    fn listed(&self, ids: &[NodeId]) -> String {
        let names: Vec<String> = ids.iter().map(|&id| format!("`{}`", self.old.node(id).name)).collect();
        names.join(", ")
    }
}
