//! Proposed edits of a graph. Rewrites return patches; [`Graph::apply`] carries them out and verifies the result.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use crate::infer::infer;
use crate::passes::eliminate_dead_code;
use crate::{
    Computation, Graph, GraphError, Metadata, Node, NodeId, Op, Parameter, Path, Role, Sharding, Slot, Type,
    WeightSlot,
};

/// One step from a computation to one that it calls.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Callee {
    /// The calling node.
    pub node: NodeId,
    /// Which of its computations, in the order of [`Op::called`].
    pub index: usize,
}

/// A proposed edit of one computation of a graph, and of the graph's signature.
///
/// It is made for one graph and knows its node ids; several patches of one graph may be applied together. New nodes get
/// ids past the computation's own.
///
/// ```
/// use qwix_array::DType;
/// use qwix_graph::{GraphBuilder, Op, Patch, Type, UnaryOp};
///
/// let mut b = GraphBuilder::new("f");
/// let x = b.input("x", Type::array(DType::F32, [4]))?;
/// let y = b.unary(UnaryOp::Exp, x)?;
/// let graph = b.finish(y)?;
///
/// let mut patch = Patch::new(&graph, &[])?;
/// let negated = patch.insert(y, Op::Unary(UnaryOp::Negate), &[x])?;
/// patch.replace(y, Op::Unary(UnaryOp::Exp), &[negated])?;
/// let patched = graph.apply(&[patch])?;
/// assert_eq!(patched.entry.nodes.len(), 3);
/// # Ok::<(), qwix_graph::GraphError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Patch {
    at: Vec<Callee>,
    base: Arc<Computation>,
    /// Nodes by id: the first has the id past the base's last.
    inserted: Vec<Inserted>,
    replaced: BTreeMap<NodeId, Node>,
    retyped: BTreeMap<usize, Parameter>,
    outputs: Vec<NodeId>,
}

#[derive(Clone, Debug)]
struct Inserted {
    node: Node,
    place: Place,
}

#[derive(Clone, Debug)]
enum Place {
    Before(NodeId),
    /// With the signature's entry, and the path for it when its own is taken.
    Parameter(Box<Parameter>, Path),
}

fn refuse<T>(reason: String) -> Result<T, GraphError> {
    Err(GraphError::Patch(reason))
}

impl Patch {
    /// An empty patch for a computation: the entry when `at` is empty, else the one that these steps lead to.
    ///
    /// # Errors
    /// When they lead nowhere.
    pub fn new(graph: &Graph, at: &[Callee]) -> Result<Self, GraphError> {
        let base = Arc::clone(graph.computation(at)?);
        Ok(Patch {
            at: at.to_vec(),
            base,
            inserted: Vec::new(),
            replaced: BTreeMap::new(),
            retyped: BTreeMap::new(),
            outputs: Vec::new(),
        })
    }

    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.inserted.is_empty()
            && self.replaced.is_empty()
            && self.retyped.is_empty()
            && self.outputs.is_empty()
    }

    /// A node of the computation, or a new one; as it is after the patch.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn node(&self, id: NodeId) -> Result<&Node, GraphError> {
        let count = self.base.nodes.len();
        let found = self.replaced.get(&id).or_else(|| self.base.nodes.get(id.index())).or_else(|| {
            id.index().checked_sub(count).and_then(|i| self.inserted.get(i)).map(|inserted| &inserted.node)
        });
        match found {
            Some(node) => Ok(node),
            None => refuse(format!("`{}` has no node {}", self.base.name, id.0)),
        }
    }

    /// The type of a node of the computation, or of a new one.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn ty(&self, id: NodeId) -> Result<&Type, GraphError> {
        self.node(id).map(|node| &node.ty)
    }

    /// A new node that stands before an old one; its type follows from op and operands. It takes over the metadata of
    /// that node.
    ///
    /// # Errors
    /// When the operands do not fit the op, or there are no such nodes.
    pub fn insert(&mut self, before: NodeId, op: Op, operands: &[NodeId]) -> Result<NodeId, GraphError> {
        self.insert_as(before, op, operands, Type::Token)
    }

    /// [`Patch::insert`], where `declared` gives what op and operands leave open (a reshape's shape, a convert's dtype).
    ///
    /// # Errors
    /// When the operands do not fit the op, or there are no such nodes.
    pub fn insert_as(
        &mut self,
        before: NodeId,
        op: Op,
        operands: &[NodeId],
        declared: Type,
    ) -> Result<NodeId, GraphError> {
        let Some(place) = self.base.nodes.get(before.index()) else {
            return refuse(format!("`{}` has no node {}", self.base.name, before.0));
        };
        let metadata = Metadata { op_name: place.metadata.op_name.clone(), id: 0 };
        let name = op.name().to_owned();
        let node = self.checked(name, op, operands, &declared, metadata)?;
        Ok(self.push(node, Place::Before(before)))
    }

    /// The nodes of a computation in place of a call of it, before an old node: its parameters are the operands. The
    /// elements of its result, when that is a tuple; else the result.
    ///
    /// # Errors
    /// When the operands are not its parameters' number, do not fit, or there are no such nodes.
    pub fn insert_computation(
        &mut self,
        before: NodeId,
        computation: &Computation,
        operands: &[NodeId],
    ) -> Result<Vec<NodeId>, GraphError> {
        let mut made: Vec<NodeId> = Vec::with_capacity(computation.nodes.len());
        for node in &computation.nodes {
            let taken: Option<Vec<NodeId>> =
                node.operands.iter().map(|o| made.get(o.index()).copied()).collect();
            let Some(taken) = taken else {
                return refuse(format!("`{}`: an operand comes after its user", computation.name));
            };
            let id = match node.op {
                Op::Parameter(number) => match operands.get(number) {
                    Some(&operand) if self.ty(operand)? == &node.ty => operand,
                    Some(_) | None => {
                        return refuse(format!("`{}` has no operand for {}", computation.name, node.name));
                    }
                },
                _ if made.len() == computation.root.index() && matches!(node.op, Op::Tuple) => {
                    return Ok(taken);
                }
                _ => self.insert_as(before, node.op.clone(), &taken, node.ty.clone())?,
            };
            made.push(id);
        }
        match made.get(computation.root.index()) {
            Some(&root) => Ok(vec![root]),
            None => refuse(format!("`{}` has no root", computation.name)),
        }
    }

    /// One more result of the entry, after all that are there: a graph with such results has a tuple, the first element
    /// of which is what it had before.
    ///
    /// # Errors
    /// When the patch is not for the entry, or there is no such node.
    pub fn add_output(&mut self, id: NodeId) -> Result<(), GraphError> {
        if !self.at.is_empty() {
            return refuse(format!("`{}` is not the entry; only that has outputs", self.base.name));
        }
        self.node(id)?;
        self.outputs.push(id);
        Ok(())
    }

    /// Gives an old node another op and other operands; name, metadata and array type stay.
    ///
    /// # Errors
    /// When the operands do not fit the op, the type would change, or the node was replaced before.
    pub fn replace(&mut self, id: NodeId, op: Op, operands: &[NodeId]) -> Result<(), GraphError> {
        let Some(old) = self.base.nodes.get(id.index()) else {
            return refuse(format!("`{}` has no node {}", self.base.name, id.0));
        };
        let (name, declared) = (old.name.clone(), old.ty.clone());
        let node = self.checked(name, op, operands, &declared, old.metadata.clone())?;
        if node.ty.as_array() != declared.as_array() {
            return refuse(format!("`{}` is {declared}, its replacement {}", node.name, node.ty));
        }
        let node = Node { sharding: old.sharding.clone(), ..node };
        if self.replaced.insert(id, node).is_some() {
            return refuse(format!("`{}` is replaced twice", self.base.node(id).name));
        }
        Ok(())
    }

    /// Gives a new node a sharding.
    ///
    /// # Errors
    /// When the patch has no such new node.
    pub fn set_sharding(&mut self, id: NodeId, sharding: Option<Sharding>) -> Result<(), GraphError> {
        let new = id.index().checked_sub(self.base.nodes.len()).and_then(|i| self.inserted.get_mut(i));
        match new {
            Some(new) => new.node.sharding = sharding,
            None => return refuse(format!("it has no new node {}", id.0)),
        }
        Ok(())
    }

    /// A new parameter of the entry. When its path is taken once the patches are applied (the float parameter stays in
    /// use, or another patch has another parameter of this path), it gets the path `otherwise`. Equal parameters of
    /// several patches become one.
    ///
    /// # Errors
    /// When the patch is not for the entry.
    pub fn add_parameter(&mut self, parameter: Parameter, otherwise: Path) -> Result<NodeId, GraphError> {
        if !self.at.is_empty() {
            return refuse(format!("`{}` is not the entry; only that has new parameters", self.base.name));
        }
        let node = Node {
            name: parameter.path.name().to_owned(),
            op: Op::Parameter(0),
            operands: Vec::new(),
            ty: parameter.ty.clone(),
            metadata: Metadata::default(),
            sharding: None,
        };
        Ok(self.push(node, Place::Parameter(Box::new(parameter), otherwise)))
    }

    /// Makes a variable of the entry a quantized one, in its place: its type changes wherever it flows, through tuples
    /// and loops and slices, and all its uses must take that. The patch may be for any computation.
    ///
    /// # Errors
    /// When there is no such parameter, it is an input, or the slot does not make an array of its shape.
    pub fn quantize_parameter(
        &mut self,
        graph: &Graph,
        number: usize,
        slot: WeightSlot,
    ) -> Result<(), GraphError> {
        let Some(old) = graph.parameters.get(number).filter(|p| p.role == Role::Variable) else {
            return refuse(format!("parameter {number} is no variable"));
        };
        if !slot.prep.is_empty() || old.ty != Type::Array(slot.source_type.clone()) {
            return refuse(format!("`{}` is {}, which the slot changes", old.path, old.ty));
        }
        let ty = crate::QArrayType { array: slot.source_type.clone(), how: slot.how.clone() }.into();
        self.retyped.insert(number, Parameter { ty, slot: Some(Slot::Weight(slot)), ..old.clone() });
        Ok(())
    }

    fn checked(
        &self,
        name: String,
        op: Op,
        operands: &[NodeId],
        declared: &Type,
        metadata: Metadata,
    ) -> Result<Node, GraphError> {
        let types = operands.iter().map(|&o| self.ty(o)).collect::<Result<Vec<_>, _>>()?;
        let mut node =
            Node { name, op, operands: operands.to_vec(), ty: Type::Token, metadata, sharding: None };
        node.ty = infer(&node.op, &types, declared).map_err(|reason| self.base.error(&node, reason))?;
        Ok(node)
    }

    fn push(&mut self, node: Node, place: Place) -> NodeId {
        self.inserted.push(Inserted { node, place });
        NodeId((self.base.nodes.len() + self.inserted.len() - 1) as u32)
    }
}

impl Graph {
    /// The computation that these steps from the entry lead to.
    ///
    /// # Errors
    /// When they lead nowhere.
    pub fn computation(&self, at: &[Callee]) -> Result<&Arc<Computation>, GraphError> {
        let mut computation = &self.entry;
        for step in at {
            let called = computation.nodes.get(step.node.index()).map(|node| node.op.called());
            match called.and_then(|called| called.get(step.index).copied()) {
                Some(next) => computation = next,
                None => {
                    return refuse(format!(
                        "node {} of `{}` calls no computation {}",
                        step.node.0, computation.name, step.index
                    ));
                }
            }
        }
        Ok(computation)
    }

    /// The graph after these edits, each made for this graph: types inferred anew, dead nodes and variables dropped,
    /// verified.
    ///
    /// # Errors
    /// When a patch is for another graph, two patches change one node or one parameter differently, or the result does
    /// not verify.
    pub fn apply(&self, patches: &[Patch]) -> Result<Graph, GraphError> {
        let mut edits: BTreeMap<&[Callee], Vec<&Patch>> = BTreeMap::new();
        let mut retyped: BTreeMap<usize, &Parameter> = BTreeMap::new();
        for patch in patches {
            let found = self.computation(&patch.at)?;
            if !Arc::ptr_eq(found, &patch.base) && *found != patch.base {
                return refuse(format!("`{}` has changed since the patch was made", patch.base.name));
            }
            edits.entry(&patch.at).or_default().push(patch);
            for (&number, parameter) in &patch.retyped {
                if *retyped.entry(number).or_insert(parameter) != parameter {
                    return refuse(format!("`{}` is to be quantized in two ways", parameter.path));
                }
            }
        }
        let mut signature: Vec<(Parameter, Option<Path>)> =
            self.parameters.iter().map(|p| (p.clone(), None)).collect();
        for (number, parameter) in retyped {
            if let Some(entry) = signature.get_mut(number) {
                entry.0 = parameter.clone();
            }
        }
        let entry = rebuild(&self.entry, &mut Vec::new(), &edits, &mut signature)?;
        let (parameters, otherwise): (Vec<_>, Vec<_>) = signature.into_iter().unzip();
        // The paths of new parameters are settled when it is known which old ones are left; numbers tell them till then.
        let numbered = Graph {
            name: self.name.clone(),
            entry: Arc::new(entry),
            parameters: parameters
                .iter()
                .enumerate()
                .map(|(number, p)| Parameter { path: Path::new(&number.to_string()), ..p.clone() })
                .collect(),
        };
        // What the edits leave without a use need not take the new types.
        let mut graph = eliminate_dead_code(&numbered).retype()?;
        let mut taken: HashSet<(Role, Path)> = HashSet::new();
        for parameter in &mut graph.parameters {
            let number: usize = parameter.path.as_str().parse().unwrap_or(usize::MAX);
            let (Some(original), Some(otherwise)) = (parameters.get(number), otherwise.get(number)) else {
                return refuse(format!("parameter {} was lost", parameter.path));
            };
            parameter.path = original.path.clone();
            if let Some(otherwise) = otherwise
                && taken.contains(&(parameter.role, parameter.path.clone()))
            {
                parameter.path = otherwise.clone();
            }
            taken.insert((parameter.role, parameter.path.clone()));
        }
        graph.verify()?;
        Ok(graph)
    }
}

/// A computation with the edits for it and for those that it calls. Types are not inferred yet.
fn rebuild(
    computation: &Computation,
    at: &mut Vec<Callee>,
    edits: &BTreeMap<&[Callee], Vec<&Patch>>,
    signature: &mut Vec<(Parameter, Option<Path>)>,
) -> Result<Computation, GraphError> {
    let patches = edits.get(at.as_slice()).map_or(&[][..], Vec::as_slice);
    let mut out = Output {
        nodes: Vec::new(),
        names: computation.nodes.iter().map(|n| n.name.clone()).collect(),
        old: vec![None; computation.nodes.len()],
        new: patches.iter().map(|p| vec![None; p.inserted.len()]).collect(),
    };

    // New parameters come first: anything may use them.
    let own = signature.len();
    for (p, patch) in patches.iter().enumerate() {
        for (i, inserted) in patch.inserted.iter().enumerate() {
            let Place::Parameter(parameter, otherwise) = &inserted.place else { continue };
            let shared = signature[own..].iter().position(|(known, _)| *known == **parameter);
            if let Some(shared) = shared {
                out.new[p][i] = Some(NodeId(shared as u32));
                continue;
            }
            let node = Node { op: Op::Parameter(signature.len()), ..inserted.node.clone() };
            signature.push(((**parameter).clone(), Some(otherwise.clone())));
            out.new[p][i] = Some(out.push_new(node, &[]));
        }
    }

    let mut before: BTreeMap<NodeId, Vec<(usize, usize)>> = BTreeMap::new();
    for (p, patch) in patches.iter().enumerate() {
        for (i, inserted) in patch.inserted.iter().enumerate() {
            if let Place::Before(id) = inserted.place {
                before.entry(id).or_default().push((p, i));
            }
        }
    }
    let mut replaced: BTreeMap<NodeId, Vec<(usize, &Node)>> = BTreeMap::new();
    for (p, patch) in patches.iter().enumerate() {
        for (&id, node) in &patch.replaced {
            replaced.entry(id).or_default().push((p, node));
        }
    }
    for (id, node) in computation.iter() {
        for &(p, i) in before.get(&id).map_or(&[][..], Vec::as_slice) {
            let inserted = &patches[p].inserted[i].node;
            let operands = out.resolve(computation, p, &inserted.operands, inserted)?;
            out.new[p][i] = Some(out.push_new(inserted.clone(), &operands));
        }
        let mut resolved: Option<Node> = None;
        for &(p, replacement) in replaced.get(&id).map_or(&[][..], Vec::as_slice) {
            let operands = out.resolve(computation, p, &replacement.operands, replacement)?;
            let replacement = Node { operands, ..replacement.clone() };
            if resolved.get_or_insert_with(|| replacement.clone()) != &replacement {
                return refuse(format!("two patches replace `{}`", node.name));
            }
        }
        let mut node = match resolved {
            Some(node) => node,
            None => Node { operands: out.resolve(computation, 0, &node.operands, node)?, ..node.clone() },
        };
        for (index, called) in node.op.called_mut().into_iter().enumerate() {
            at.push(Callee { node: id, index });
            // Paths that start with this one come right after it.
            if edits.range(at.as_slice()..).next().is_some_and(|(path, _)| path.starts_with(at)) {
                *called = Arc::new(rebuild(called, at, edits, signature)?);
            }
            at.pop();
        }
        out.old[id.index()] = Some(out.push(node));
    }
    let mut root = out.old.get(computation.root.index()).copied().flatten().unwrap_or_default();
    if patches.iter().any(|patch| !patch.outputs.is_empty()) {
        let tuple = Node {
            name: "outputs".to_owned(),
            op: Op::Tuple,
            operands: Vec::new(),
            ty: Type::Token,
            metadata: Metadata::default(),
            sharding: None,
        };
        let mut operands = vec![root];
        for (p, patch) in patches.iter().enumerate() {
            operands.extend(out.resolve(computation, p, &patch.outputs, &tuple)?);
        }
        root = out.push_new(tuple, &operands);
    }
    Ok(Computation { name: computation.name.clone(), nodes: out.nodes, root })
}

/// The computation as it grows, and where the nodes of the old one and of each patch are in it.
struct Output {
    nodes: Vec<Node>,
    names: HashSet<String>,
    old: Vec<Option<NodeId>>,
    new: Vec<Vec<Option<NodeId>>>,
}

impl Output {
    fn push(&mut self, node: Node) -> NodeId {
        self.nodes.push(node);
        NodeId(self.nodes.len() as u32 - 1)
    }

    /// Adds a node that is not of the old computation, under a name that is free.
    fn push_new(&mut self, mut node: Node, operands: &[NodeId]) -> NodeId {
        node.operands = operands.to_vec();
        let stem = node.name.clone();
        let mut suffix = self.names.len();
        while self.names.contains(&node.name) || node.name == stem {
            node.name = format!("{stem}.{suffix}");
            suffix += 1;
        }
        self.names.insert(node.name.clone());
        self.push(node)
    }

    fn resolve(
        &self,
        computation: &Computation,
        patch: usize,
        operands: &[NodeId],
        node: &Node,
    ) -> Result<Vec<NodeId>, GraphError> {
        let find = |id: NodeId| match id.index().checked_sub(self.old.len()) {
            None => self.old[id.index()],
            Some(i) => self.new.get(patch).and_then(|new| new.get(i).copied().flatten()),
        };
        operands
            .iter()
            .map(|&id| {
                find(id).ok_or_else(|| computation.error(node, format!("operand {} comes after it", id.0)))
            })
            .collect()
    }
}
