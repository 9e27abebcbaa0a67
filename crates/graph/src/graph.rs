//! Nodes, computations and the graph.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use qwix_quant::{HowToQuantize, QType};

use crate::{ArrayType, KeyPath, Op, Path, Sharding, Type};

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
    /// How its value is spread over devices, when the model says.
    pub sharding: Option<Sharding>,
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

/// How a parameter is made.
#[derive(Clone, PartialEq, Debug)]
pub enum Slot {
    /// From a float parameter, by quantizing it.
    Weight(WeightSlot),
    /// From what calibration saw of an activation.
    Statistic(StatisticSlot),
}

/// How a quantized parameter is made.
#[derive(Clone, PartialEq, Debug)]
pub struct WeightSlot {
    /// The float parameter's path.
    pub source: Path,
    /// The float parameter's type.
    pub source_type: ArrayType,
    /// Steps from the float parameter to the array that is quantized, first to last.
    pub prep: Vec<Prep>,
    /// How that is quantized.
    pub how: HowToQuantize,
}

/// How a parameter is made that holds a static range, or the statistics that one is made from.
#[derive(Clone, PartialEq, Debug)]
pub struct StatisticSlot {
    /// The path of the statistics, as Qwix names them: `<module path>/<op id>_lhs`.
    pub source: Path,
    /// What of them it is.
    pub part: StatisticPart,
}

/// What a parameter holds of the statistics of one activation.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum StatisticPart {
    /// How many batches were seen, s32[].
    Count,
    /// A running sum, f32.
    Sum(Sum),
    /// The scale of the average range, f32.
    Scale {
        /// What the activation is quantized to.
        qtype: &'static QType,
        /// Whether the range is one from min to max, which has a zero point.
        asymmetric: bool,
    },
    /// The zero point of the average range, of the type's storage.
    ZeroPoint {
        /// What the activation is quantized to.
        qtype: &'static QType,
    },
}

/// Which statistic of each batch is summed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Sum {
    /// The bounds of symmetric ranges.
    AbsMax,
    /// The lower bounds of asymmetric ranges.
    Min,
    /// The upper bounds of asymmetric ranges.
    Max,
}

impl Sum {
    /// Qwix's name: `sum_of_absmax`.
    pub fn name(self) -> &'static str {
        match self {
            Sum::AbsMax => "sum_of_absmax",
            Sum::Min => "sum_of_min",
            Sum::Max => "sum_of_max",
        }
    }
}

impl Slot {
    /// Where the parameter's value comes from: the path of a float parameter, or of statistics.
    pub fn source(&self) -> &Path {
        match self {
            Slot::Weight(slot) => &slot.source,
            Slot::Statistic(slot) => &slot.source,
        }
    }

    /// The slot of a parameter that is made from a float parameter.
    pub fn as_weight(&self) -> Option<&WeightSlot> {
        match self {
            Slot::Weight(slot) => Some(slot),
            Slot::Statistic(_) => None,
        }
    }

    /// The slot of a parameter that is made from statistics.
    pub fn as_statistic(&self) -> Option<&StatisticSlot> {
        match self {
            Slot::Weight(_) => None,
            Slot::Statistic(slot) => Some(slot),
        }
    }
}

impl fmt::Display for StatisticPart {
    /// `count`, `sum_of_min`, `scale int8 asymmetric`, `zero_point int8`: what [`str::parse`] reads.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StatisticPart::Count => f.write_str("count"),
            StatisticPart::Sum(sum) => f.write_str(sum.name()),
            StatisticPart::Scale { qtype, asymmetric: false } => write!(f, "scale {qtype} symmetric"),
            StatisticPart::Scale { qtype, asymmetric: true } => write!(f, "scale {qtype} asymmetric"),
            StatisticPart::ZeroPoint { qtype } => write!(f, "zero_point {qtype}"),
        }
    }
}

impl FromStr for StatisticPart {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let words: Vec<&str> = text.split(' ').collect();
        let qtype = |name: &str| QType::by_name(name).map_err(|e| e.to_string());
        Ok(match words[..] {
            ["count"] => StatisticPart::Count,
            ["sum_of_absmax"] => StatisticPart::Sum(Sum::AbsMax),
            ["sum_of_min"] => StatisticPart::Sum(Sum::Min),
            ["sum_of_max"] => StatisticPart::Sum(Sum::Max),
            ["scale", name, "symmetric"] => StatisticPart::Scale { qtype: qtype(name)?, asymmetric: false },
            ["scale", name, "asymmetric"] => StatisticPart::Scale { qtype: qtype(name)?, asymmetric: true },
            ["zero_point", name] => StatisticPart::ZeroPoint { qtype: qtype(name)? },
            _ => {
                return Err(format!(
                    "expected count, sum_of_absmax, sum_of_min, sum_of_max, scale or zero_point with a type, found \
                     `{text}`"
                ));
            }
        })
    }
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
