//! The graph in the making, and where in the model the call stands.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;

use qwix_array::{Array, DType};
use qwix_graph::{
    ArrayType, BinaryOp, Comparison, Graph, GraphBuilder, KeyPath, Metadata, Node, NodeId, Op, Parameter,
    Path, Role, Type, UnaryOp,
};

use crate::tensor::Tensor;
use crate::{Initializer, NnError, Result};

/// The name of the exported function in op names, as when `Module.apply` is jitted.
const FUNCTION: &str = "jit(apply)";

/// The argument that holds the variables, as when `Module.apply` is jitted.
const ARGUMENT: &str = "variables";

/// The collection of trained parameters.
pub const PARAMS: &str = "params";

/// The collection of what changes with every call.
pub const CACHE: &str = "cache";

/// A variable as the trace met it first.
#[derive(Clone, Debug)]
pub struct Variable {
    /// The collection, and the names that lead to it.
    pub keys: Vec<String>,
    pub ty: ArrayType,
    pub init: Initializer,
    /// What Flax folds into the key for it; `None` when its initializer takes no key.
    pub rng: Option<Vec<u8>>,
    tensor: Tensor,
}

/// All that a trace is writing.
pub struct State {
    builder: GraphBuilder,
    /// By keys: collections in their order, then paths in theirs, as JAX flattens them.
    variables: BTreeMap<Vec<String>, Variable>,
    /// Keys given out, by module path: Flax counts them.
    rng_counts: HashMap<Vec<String>, u64>,
    /// The segments of op names.
    stack: Vec<String>,
    scalars: HashMap<(DType, Vec<u8>), NodeId>,
}

/// A trace; tensors and scopes hold on to it.
pub struct Tracer(RefCell<Option<State>>);

impl std::fmt::Debug for Tracer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tracer")
    }
}

impl Tracer {
    pub fn new(name: &str) -> Rc<Self> {
        Rc::new(Tracer(RefCell::new(Some(State {
            builder: GraphBuilder::new(name),
            variables: BTreeMap::new(),
            rng_counts: HashMap::new(),
            stack: Vec::new(),
            scalars: HashMap::new(),
        }))))
    }

    fn with<T>(&self, f: impl FnOnce(&mut State) -> Result<T>) -> Result<T> {
        match self.0.borrow_mut().as_mut() {
            Some(state) => f(state),
            None => Err(NnError::ForeignTensor),
        }
    }

    /// The scope of the call at hand, for messages.
    pub fn place(&self) -> String {
        self.with(|state| Ok(state.stack.join("/"))).unwrap_or_default()
    }

    /// An error of an op here.
    pub fn op_error(&self, op: &str, reason: impl Into<String>) -> NnError {
        NnError::Op { module: self.place(), op: op.to_owned(), reason: reason.into() }
    }

    /// Runs `f` with one more segment in the names of ops.
    pub fn inside<T>(&self, segment: &str, f: impl FnOnce() -> T) -> T {
        let pushed = self
            .with(|state| {
                state.stack.push(segment.to_owned());
                Ok(())
            })
            .is_ok();
        let result = f();
        if pushed {
            let _ = self.with(|state| Ok(state.stack.pop()));
        }
        result
    }

    /// Adds a node; `declared` gives what op and operands leave open.
    pub fn emit(self: &Rc<Self>, op: Op, operands: &[&Tensor], declared: Type) -> Result<Tensor> {
        let mut ids = Vec::with_capacity(operands.len());
        for operand in operands {
            ids.push(operand.node(self)?);
        }
        let name = primitive(&op).to_owned();
        let added = self.with(|state| {
            let number = state.builder.node_count();
            let op_name = [FUNCTION]
                .into_iter()
                .chain(state.stack.iter().map(String::as_str))
                .chain([name.as_str()])
                .collect::<Vec<_>>()
                .join("/");
            let node = Node {
                name: format!("{name}.{number}"),
                op,
                operands: ids,
                ty: declared,
                metadata: Metadata { op_name, id: 0 },
                sharding: None,
            };
            let id = state.builder.add_node(node);
            Ok(id.map(|id| (id, state.builder.ty(id).cloned())))
        })?;
        let reason = |error: qwix_graph::GraphError| match error {
            qwix_graph::GraphError::Instruction { reason, .. } => self.op_error(&name, reason),
            other => NnError::Graph(other),
        };
        let (id, ty) = added.map_err(reason)?;
        Ok(Tensor::new(self, id, ty?))
    }

    /// A constant of rank 0, each one once.
    pub fn scalar(self: &Rc<Self>, array: Array) -> Result<Tensor> {
        let key = (array.dtype(), array.bytes().to_vec());
        let ty = Type::array(array.dtype(), array.shape());
        if let Some(&id) = self.with(|state| Ok(state.scalars.get(&key).copied()))?.as_ref() {
            return Ok(Tensor::new(self, id, ty));
        }
        let tensor = self.emit(Op::Constant(array), &[], Type::Token)?;
        let id = tensor.node(self)?;
        self.with(|state| {
            state.scalars.insert(key, id);
            Ok(())
        })?;
        Ok(tensor)
    }

    /// The next input.
    pub fn input(self: &Rc<Self>, name: &str, ty: &ArrayType) -> Result<Tensor> {
        let ty = Type::Array(ty.clone());
        let id = self.with(|state| Ok(state.builder.input(name, ty.clone())?))?;
        Ok(Tensor::new(self, id, ty))
    }

    /// The variable of these keys, made when it is not there yet.
    pub fn variable(
        self: &Rc<Self>,
        collection: &str,
        path: &[String],
        name: &str,
        ty: &ArrayType,
        init: &Initializer,
    ) -> Result<Tensor> {
        let keys: Vec<String> = std::iter::once(collection)
            .chain(path.iter().map(String::as_str))
            .chain([name])
            .map(str::to_owned)
            .collect();
        self.with(|state| {
            if let Some(known) = state.variables.get(&keys) {
                if known.ty != *ty {
                    return Err(NnError::VariableChanged {
                        path: keys[1..].join("/"),
                        expected: known.ty.to_string(),
                        found: ty.to_string(),
                    });
                }
                return Ok(known.tensor.clone());
            }
            // Flax's rule: the names of the modules and a count of the keys that the module has given out.
            let rng = (collection == PARAMS).then(|| {
                let count = state.rng_counts.entry(path.to_vec()).or_default();
                *count += 1;
                let digits = count.to_be_bytes().into_iter().skip_while(|&byte| byte == 0);
                path.iter().flat_map(|segment| segment.bytes()).chain(digits).collect()
            });
            let id = state.builder.variable(&keys.join("/"), Type::Array(ty.clone()))?;
            let tensor = Tensor::new(self, id, Type::Array(ty.clone()));
            let variable = Variable {
                keys: keys.clone(),
                ty: ty.clone(),
                init: init.clone(),
                rng,
                tensor: tensor.clone(),
            };
            state.variables.insert(keys, variable);
            Ok(tensor)
        })
    }

    /// Ends the trace: the variables in JAX's order, and the graph with these outputs.
    pub fn finish(self: &Rc<Self>, outputs: &[Tensor]) -> Result<(Graph, Vec<(Path, Variable)>)> {
        let root = match outputs {
            [one] => one.clone(),
            several => self.emit(Op::Tuple, &several.iter().collect::<Vec<_>>(), Type::Token)?,
        };
        let root = root.node(self)?;
        let state = self.0.borrow_mut().take().ok_or(NnError::ForeignTensor)?;
        let graph = state.builder.finish(root)?;
        let variables = with_paths(state.variables.into_values().collect());
        let graph = arranged(&graph, &variables)?;
        Ok((graph, variables))
    }
}

impl Variable {
    /// As JAX writes its place in the variables' tree.
    fn key_path(&self) -> KeyPath {
        KeyPath { argument: ARGUMENT.to_owned(), keys: self.keys.clone() }
    }
}

/// Variables with the paths that an imported model gives them: without the collection, unless two would be the same.
fn with_paths(variables: Vec<Variable>) -> Vec<(Path, Variable)> {
    let is_trained = |v: &Variable| v.keys.first().is_some_and(|collection| collection == PARAMS);
    let mut taken: HashSet<Path> =
        variables.iter().filter(|v| is_trained(v)).map(|v| v.key_path().path()).collect();
    variables
        .into_iter()
        .map(|variable| {
            let path = variable.key_path().path();
            if is_trained(&variable) || taken.insert(path.clone()) {
                return (path, variable);
            }
            (Path::new(&variable.keys.join("/")), variable)
        })
        .collect()
}

/// The graph without dead nodes, its parameters first: the variables in JAX's order, then the inputs.
fn arranged(graph: &Graph, variables: &[(Path, Variable)]) -> Result<Graph> {
    let entry = &graph.entry;
    let nodes = entry.parameters();
    let mut order: Vec<(NodeId, Parameter, Option<String>)> = Vec::with_capacity(nodes.len());
    for (path, variable) in variables {
        let Ok(id) = variable.tensor.id() else { continue };
        let key_path = variable.key_path();
        let op_name = key_path.to_string();
        let parameter = Parameter {
            path: path.clone(),
            key_path: Some(key_path),
            role: Role::Variable,
            ambiguous: false,
            ty: Type::Array(variable.ty.clone()),
            slot: None,
        };
        order.push((id, parameter, Some(op_name)));
    }
    for (id, parameter) in nodes.iter().zip(&graph.parameters) {
        if parameter.role == Role::Input {
            order.push((*id, parameter.clone(), None));
        }
    }

    let mut live = vec![false; entry.nodes.len()];
    live[entry.root.index()] = true;
    for (id, node) in entry.iter().rev() {
        if live[id.index()] {
            node.operands.iter().for_each(|o| live[o.index()] = true);
        }
    }
    let mut renumbered = vec![NodeId(0); entry.nodes.len()];
    let mut arranged = Vec::with_capacity(entry.nodes.len());
    let mut parameters = Vec::with_capacity(order.len());
    for (number, (id, parameter, op_name)) in order.into_iter().enumerate() {
        renumbered[id.index()] = NodeId(arranged.len() as u32);
        let mut node = entry.node(id).clone();
        node.op = Op::Parameter(number);
        let text = op_name.clone().unwrap_or_else(|| parameter.path.to_string());
        let name: String = text.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        // The number keeps it apart from other parameters, the word from all else.
        node.name = format!("{name}.parameter.{number}");
        node.metadata.op_name = op_name.unwrap_or_default();
        arranged.push(node);
        parameters.push(parameter);
    }
    for (id, node) in entry.iter() {
        if !live[id.index()] || matches!(node.op, Op::Parameter(_)) {
            continue;
        }
        renumbered[id.index()] = NodeId(arranged.len() as u32);
        let mut node = node.clone();
        for operand in &mut node.operands {
            *operand = renumbered[operand.index()];
        }
        arranged.push(node);
    }
    let root = renumbered[entry.root.index()];
    let entry = qwix_graph::Computation { name: entry.name.clone(), nodes: arranged, root };
    let graph = Graph { name: graph.name.clone(), entry: Arc::new(entry), parameters };
    graph.verify()?;
    Ok(graph)
}

/// JAX's name for an op, as it closes an op name.
fn primitive(op: &Op) -> &str {
    match op {
        Op::Unary(op) => match op {
            UnaryOp::Copy => "copy",
            UnaryOp::Cos => "cos",
            UnaryOp::Exp => "exp",
            UnaryOp::Expm1 => "expm1",
            UnaryOp::IsFinite => "is_finite",
            UnaryOp::Log1p => "log1p",
            UnaryOp::Negate => "neg",
            UnaryOp::RoundNearestAfz | UnaryOp::RoundNearestEven => "round",
            UnaryOp::Sin => "sin",
            UnaryOp::Clz
            | UnaryOp::Abs
            | UnaryOp::Cbrt
            | UnaryOp::Ceil
            | UnaryOp::Erf
            | UnaryOp::Floor
            | UnaryOp::Log
            | UnaryOp::Logistic
            | UnaryOp::Not
            | UnaryOp::PopulationCount
            | UnaryOp::Rsqrt
            | UnaryOp::Sign
            | UnaryOp::Sqrt
            | UnaryOp::Tan
            | UnaryOp::Tanh => op.name(),
        },
        Op::Binary(op) => match op {
            BinaryOp::Divide => "div",
            BinaryOp::Maximum => "max",
            BinaryOp::Minimum => "min",
            BinaryOp::Multiply => "mul",
            BinaryOp::Power => "pow",
            BinaryOp::Remainder => "rem",
            BinaryOp::Subtract => "sub",
            BinaryOp::ShiftLeft => "shift_left",
            BinaryOp::ShiftRightArithmetic => "shift_right_arithmetic",
            BinaryOp::ShiftRightLogical => "shift_right_logical",
            BinaryOp::Add | BinaryOp::And | BinaryOp::Atan2 | BinaryOp::Or | BinaryOp::Xor => op.name(),
        },
        Op::Compare { comparison, .. } => match comparison {
            Comparison::Eq => "eq",
            Comparison::Ne => "ne",
            Comparison::Lt => "lt",
            Comparison::Le => "le",
            Comparison::Gt => "gt",
            Comparison::Ge => "ge",
        },
        Op::Select => "select_n",
        Op::Convert => "convert_element_type",
        Op::BitcastConvert => "bitcast_convert_type",
        Op::ReducePrecision { .. } => "reduce_precision",
        Op::Broadcast { .. } => "broadcast_in_dim",
        Op::DynamicSlice { .. } => "dynamic_slice",
        Op::DynamicUpdateSlice => "dynamic_update_slice",
        Op::Reverse { .. } => "rev",
        Op::Dot(_) => "dot_general",
        Op::Convolution(_) => "conv_general_dilated",
        Op::ReduceWindow { .. } => "reduce_window",
        Op::TopK { .. } => "top_k",
        Op::GetTupleElement(_) => "get_tuple_element",
        Op::SelectAndScatter { .. } => "select_and_scatter",
        Op::RngBitGenerator(_) => "rng_bit_generator",
        Op::Reduce { .. }
        | Op::Parameter(_)
        | Op::Constant(_)
        | Op::Iota { .. }
        | Op::Clamp
        | Op::Reshape
        | Op::Transpose { .. }
        | Op::Slice(_)
        | Op::Concatenate { .. }
        | Op::Pad(_)
        | Op::Gather(_)
        | Op::Scatter { .. }
        | Op::Sort { .. }
        | Op::Map { .. }
        | Op::Tuple
        | Op::While { .. }
        | Op::Conditional { .. }
        | Op::Call { .. }
        | Op::OptimizationBarrier
        | Op::Sharding { .. }
        | Op::CustomCall(_)
        | Op::Unsupported(_)
        | Op::Quantize(_)
        | Op::Dequantize => op.name(),
    }
}
