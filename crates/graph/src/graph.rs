//! Nodes, computations and the graph.

use std::sync::Arc;

use qwix_quant::HowToQuantize;

use crate::{ArrayType, KeyPath, Op, Path, Type};

/// A node's place in its computation's list.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct NodeId(pub u32);

impl NodeId {
    /// As an index into [`Computation::nodes`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// What JAX wrote beside an instruction.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Metadata {
    /// The scope and primitive: `jit(apply)/Net/Dense_0/dot_general`. After inlining, the caller's scope comes first.
    pub op_name: String,
    /// The instruction's id in the module it came from: trace order. 0 for nodes made here.
    pub id: u64,
}

/// One instruction.
#[derive(Clone, PartialEq, Debug)]
pub struct Node {
    /// The instruction's name, unique in its computation: `dot_general.2`.
    pub name: String,
    /// What it does, attributes included.
    pub op: Op,
    /// Nodes that come before this one.
    pub operands: Vec<NodeId>,
    /// The type of its value.
    pub ty: Type,
    /// What JAX wrote beside it.
    pub metadata: Metadata,
    /// The sharding annotation as HLO text, kept as it came.
    pub sharding: Option<String>,
}

/// Nodes in an order in which operands come first; one of them is the result.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Computation {
    /// Its name.
    pub name: String,
    /// The nodes. Parameters are nodes with [`Op::Parameter`], their numbers 0, 1, … without a gap.
    pub nodes: Vec<Node>,
    /// Which node is the result.
    pub root: NodeId,
}

impl Computation {
    /// The node of an id of this computation.
    ///
    /// # Panics
    /// When the id is of another computation.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    /// Ids and nodes, operands first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (NodeId, &Node)> {
        self.nodes.iter().enumerate().map(|(i, n)| (NodeId(i as u32), n))
    }

    /// The parameters' nodes, by number.
    pub fn parameters(&self) -> Vec<NodeId> {
        let mut found: Vec<(usize, NodeId)> = self
            .iter()
            .filter_map(|(id, n)| if let Op::Parameter(number) = n.op { Some((number, id)) } else { None })
            .collect();
        found.sort_unstable();
        found.into_iter().map(|(_, id)| id).collect()
    }
}

/// What a parameter of the entry computation is for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Role {
    /// A variable of the model (weight, running statistic, scale): it comes from a checkpoint.
    Variable,
    /// An input of each call.
    Input,
}

/// One parameter of the graph: an entry of its signature.
#[derive(Clone, PartialEq, Debug)]
pub struct Parameter {
    /// A variable's path, unique among variables (`Dense_0/kernel`); an input's name, unique among inputs (`x`, `batch/image`).
    pub path: Path,
    /// As JAX wrote it, when it did.
    pub key_path: Option<KeyPath>,
    /// Variable or input.
    pub role: Role,
    /// Whether the role is a guess which a checkpoint's contents may correct.
    pub ambiguous: bool,
    /// The type of its value.
    pub ty: Type,
    /// What a variable is made from, when it is not the float array of that path itself.
    pub slot: Option<Slot>,
}

/// What happens to a float parameter before it is quantized: data movement that stood between parameter and product.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Prep {
    /// HLO's reshape, to this shape.
    Reshape(Vec<usize>),
    /// HLO's transpose: axis i of the result is axis `perm[i]` of the operand.
    Transpose(Vec<usize>),
    /// HLO's slice.
    Slice(Vec<crate::SliceDim>),
}

/// How a quantized parameter is made.
#[derive(Clone, PartialEq, Debug)]
pub struct Slot {
    /// The float parameter's path.
    pub source: Path,
    /// The float parameter's type.
    pub source_type: ArrayType,
    /// Steps from the float parameter to the array that is quantized, first to last.
    pub prep: Vec<Prep>,
    /// How that is quantized.
    pub how: HowToQuantize,
}

/// A model: the entry computation and the meaning of its parameters.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Graph {
    /// The module's name.
    pub name: String,
    /// The computation; shared, as graphs are cloned often and edited rarely.
    pub entry: Arc<Computation>,
    /// The signature: what each parameter of `entry` is, by number.
    pub parameters: Vec<Parameter>,
}

impl Graph {
    /// The parameters that are variables, with their numbers.
    pub fn variables(&self) -> impl Iterator<Item = (usize, &Parameter)> {
        self.parameters.iter().enumerate().filter(|(_, p)| p.role == Role::Variable)
    }

    /// The parameters that are inputs, with their numbers, in the order of the call.
    pub fn inputs(&self) -> impl Iterator<Item = (usize, &Parameter)> {
        self.parameters.iter().enumerate().filter(|(_, p)| p.role == Role::Input)
    }
}
