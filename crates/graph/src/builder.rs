//! Making graphs in Rust.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use qwix_array::{Array, DType, Element};
use qwix_quant::{ConvDims, DotDims, HowToQuantize, WindowDim};

use crate::infer::infer;
use crate::{
    BinaryOp, CompareOrder, Comparison, Computation, Graph, GraphError, Metadata, Node, NodeId, Op,
    Parameter, Path, QArrayType, Role, SliceDim, Slot, Type, UnaryOp, WeightSlot,
};

/// Makes a computation, node by node; each node's type is inferred as it is added.
///
/// ```
/// use qwix_array::DType;
/// use qwix_graph::{BinaryOp, ComputationBuilder, Type};
///
/// let mut b = ComputationBuilder::new("double");
/// let x = b.parameter("x", Type::array(DType::F32, [2, 3]))?;
/// let y = b.binary(BinaryOp::Add, x, x)?;
/// let double = b.finish(y)?;
/// assert_eq!(double.nodes.len(), 2);
/// # Ok::<(), qwix_graph::GraphError>(())
/// ```
#[derive(Clone, Debug)]
pub struct ComputationBuilder {
    computation: Computation,
    parameters: usize,
    scope: String,
}

impl ComputationBuilder {
    /// An empty computation of this name.
    pub fn new(name: &str) -> Self {
        let computation = Computation { name: name.to_owned(), ..Computation::default() };
        ComputationBuilder { computation, parameters: 0, scope: String::new() }
    }

    /// The scope of the nodes that follow, as JAX writes it: `jit(f)/Net/Dense_0`. Their `op_name` is the scope and the
    /// op's name.
    pub fn set_scope(&mut self, scope: &str) {
        self.scope = scope.trim_end_matches('/').to_owned();
    }

    /// The type of a node.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn ty(&self, id: NodeId) -> Result<&Type, GraphError> {
        self.computation.nodes.get(id.index()).map(|node| &node.ty).ok_or_else(|| GraphError::Invalid {
            computation: self.computation.name.clone(),
            reason: format!("there is no node {} yet", id.0),
        })
    }

    /// The shape of a node's array.
    ///
    /// # Errors
    /// When there is no such node, or its value is no array.
    pub fn shape(&self, id: NodeId) -> Result<&[usize], GraphError> {
        let ty = self.ty(id)?;
        ty.as_array().map(|a| a.shape.as_slice()).ok_or_else(|| GraphError::Invalid {
            computation: self.computation.name.clone(),
            reason: format!("node {} should be an array, found {ty}", id.0),
        })
    }

    /// The dtype of a node's array.
    ///
    /// # Errors
    /// When there is no such node, or its value is no array.
    pub fn dtype(&self, id: NodeId) -> Result<DType, GraphError> {
        let ty = self.ty(id)?;
        ty.as_array().map(|a| a.dtype).ok_or_else(|| GraphError::Invalid {
            computation: self.computation.name.clone(),
            reason: format!("node {} should be an array, found {ty}", id.0),
        })
    }

    /// Adds a node whose type follows from op and operands.
    ///
    /// # Errors
    /// When the operands do not fit the op.
    pub fn add(&mut self, op: Op, operands: &[NodeId]) -> Result<NodeId, GraphError> {
        self.add_as(op, operands, Type::Token)
    }

    /// Adds a node; `declared` gives what op and operands leave open (a broadcast's shape, a dot's dtype).
    ///
    /// # Errors
    /// When the operands do not fit the op.
    pub fn add_as(&mut self, op: Op, operands: &[NodeId], declared: Type) -> Result<NodeId, GraphError> {
        let name = format!("{}.{}", op.name(), self.computation.nodes.len());
        let op_name =
            if self.scope.is_empty() { String::new() } else { format!("{}/{}", self.scope, op.name()) };
        self.add_node(Node {
            name,
            op,
            operands: operands.to_vec(),
            ty: declared,
            metadata: Metadata { op_name, id: 0 },
            sharding: None,
        })
    }

    /// Adds a whole node, under the name that it has; its type is taken as declared.
    ///
    /// # Errors
    /// When the operands do not fit the op.
    pub fn add_node(&mut self, mut node: Node) -> Result<NodeId, GraphError> {
        let types = node.operands.iter().map(|&id| self.ty(id)).collect::<Result<Vec<_>, _>>()?;
        let ty = infer(&node.op, &types, &node.ty).map_err(|reason| self.computation.error(&node, reason))?;
        node.ty = ty;
        self.computation.nodes.push(node);
        Ok(NodeId(self.computation.nodes.len() as u32 - 1))
    }

    /// The next parameter.
    ///
    /// # Errors
    /// Never for a type that can be.
    pub fn parameter(&mut self, name: &str, ty: Type) -> Result<NodeId, GraphError> {
        let number = self.parameters;
        let name = if name.is_empty() { format!("parameter.{number}") } else { format!("{name}.{number}") };
        let id = self.add_node(Node {
            name,
            op: Op::Parameter(number),
            operands: Vec::new(),
            ty,
            metadata: Metadata::default(),
            sharding: None,
        })?;
        self.parameters += 1;
        Ok(id)
    }

    /// A constant.
    ///
    /// # Errors
    /// Never.
    pub fn constant(&mut self, array: Array) -> Result<NodeId, GraphError> {
        self.add(Op::Constant(array), &[])
    }

    /// A constant of rank 0.
    ///
    /// # Errors
    /// Never.
    pub fn scalar<T: Element>(&mut self, value: T) -> Result<NodeId, GraphError> {
        self.constant(Array::scalar(value))
    }

    /// 0, 1, … along one axis.
    ///
    /// # Errors
    /// When the type has no such axis.
    pub fn iota(&mut self, ty: Type, dimension: usize) -> Result<NodeId, GraphError> {
        self.add_as(Op::Iota { dimension }, &[], ty)
    }

    /// One operand, element by element.
    ///
    /// # Errors
    /// When its dtype is none that the op takes.
    pub fn unary(&mut self, op: UnaryOp, x: NodeId) -> Result<NodeId, GraphError> {
        self.add(Op::Unary(op), &[x])
    }

    /// Two operands of one shape, element by element.
    ///
    /// # Errors
    /// When their types differ, or are none that the op takes.
    pub fn binary(&mut self, op: BinaryOp, a: NodeId, b: NodeId) -> Result<NodeId, GraphError> {
        self.add(Op::Binary(op), &[a, b])
    }

    /// Two operands of one shape, to pred.
    ///
    /// # Errors
    /// When their types differ.
    pub fn compare(&mut self, comparison: Comparison, a: NodeId, b: NodeId) -> Result<NodeId, GraphError> {
        self.add(Op::Compare { comparison, order: CompareOrder::Partial }, &[a, b])
    }

    /// `on_true` where `pred` is true, `on_false` elsewhere.
    ///
    /// # Errors
    /// When types or shapes differ.
    pub fn select(&mut self, pred: NodeId, on_true: NodeId, on_false: NodeId) -> Result<NodeId, GraphError> {
        self.add(Op::Select, &[pred, on_true, on_false])
    }

    /// x, not below low, not above high.
    ///
    /// # Errors
    /// When a bound is neither a scalar nor of x's shape.
    pub fn clamp(&mut self, low: NodeId, x: NodeId, high: NodeId) -> Result<NodeId, GraphError> {
        self.add(Op::Clamp, &[low, x, high])
    }

    /// x in another dtype; x itself when it has it already.
    ///
    /// # Errors
    /// When x is no array.
    pub fn convert(&mut self, x: NodeId, dtype: DType) -> Result<NodeId, GraphError> {
        if self.dtype(x)? == dtype {
            return Ok(x);
        }
        self.add_as(Op::Convert, &[x], Type::array(dtype, []))
    }

    /// Axis i of x becomes axis `dimensions[i]` of the result; other axes repeat.
    ///
    /// # Errors
    /// When sizes differ.
    pub fn broadcast(
        &mut self,
        x: NodeId,
        shape: &[usize],
        dimensions: &[usize],
    ) -> Result<NodeId, GraphError> {
        let ty = Type::array(self.dtype(x)?, shape);
        self.add_as(Op::Broadcast { dimensions: dimensions.to_vec() }, &[x], ty)
    }

    /// The elements of x in another shape; x itself when it has it already.
    ///
    /// # Errors
    /// When the numbers of elements differ.
    pub fn reshape(&mut self, x: NodeId, shape: &[usize]) -> Result<NodeId, GraphError> {
        if self.shape(x)? == shape {
            return Ok(x);
        }
        let ty = Type::array(self.dtype(x)?, shape);
        self.add_as(Op::Reshape, &[x], ty)
    }

    /// Axis i of the result is axis `permutation[i]` of x; x itself when that changes nothing.
    ///
    /// # Errors
    /// When this is no permutation of x's axes.
    pub fn transpose(&mut self, x: NodeId, permutation: &[usize]) -> Result<NodeId, GraphError> {
        if permutation.iter().copied().eq(0..self.shape(x)?.len()) {
            return Ok(x);
        }
        self.add(Op::Transpose { permutation: permutation.to_vec() }, &[x])
    }

    /// Part of x, one entry an axis.
    ///
    /// # Errors
    /// When that is outside x.
    pub fn slice(&mut self, x: NodeId, dims: &[SliceDim]) -> Result<NodeId, GraphError> {
        self.add(Op::Slice(dims.to_vec()), &[x])
    }

    /// The product; its dtype is given.
    ///
    /// # Errors
    /// When axes or shapes do not fit.
    pub fn dot(
        &mut self,
        lhs: NodeId,
        rhs: NodeId,
        dims: &DotDims,
        dtype: DType,
    ) -> Result<NodeId, GraphError> {
        self.add_as(Op::Dot(dims.clone()), &[lhs, rhs], Type::array(dtype, []))
    }

    /// The convolution; its dtype is given.
    ///
    /// # Errors
    /// When axes, window or shapes do not fit.
    pub fn convolution(
        &mut self,
        input: NodeId,
        kernel: NodeId,
        dims: &ConvDims,
        dtype: DType,
    ) -> Result<NodeId, GraphError> {
        self.add_as(Op::Convolution(dims.clone()), &[input, kernel], Type::array(dtype, []))
    }

    /// x reduced over these axes by one op, from an initial value.
    ///
    /// # Errors
    /// When an axis is none of x's, or the initial value is no scalar of x's dtype.
    pub fn reduce(
        &mut self,
        op: BinaryOp,
        x: NodeId,
        initial: NodeId,
        dimensions: &[usize],
    ) -> Result<NodeId, GraphError> {
        let computation = reducer(op, self.dtype(x)?)?;
        self.add(Op::Reduce { dimensions: dimensions.to_vec(), computation }, &[x, initial])
    }

    /// Windows of x reduced by one op, from an initial value.
    ///
    /// # Errors
    /// When the window does not fit x, or the initial value is no scalar of x's dtype.
    pub fn reduce_window(
        &mut self,
        op: BinaryOp,
        x: NodeId,
        initial: NodeId,
        window: &[WindowDim],
    ) -> Result<NodeId, GraphError> {
        let computation = reducer(op, self.dtype(x)?)?;
        self.add(Op::ReduceWindow { window: window.to_vec(), computation }, &[x, initial])
    }

    /// Several values as one.
    ///
    /// # Errors
    /// Never.
    pub fn tuple(&mut self, elements: &[NodeId]) -> Result<NodeId, GraphError> {
        self.add(Op::Tuple, elements)
    }

    /// One element of a tuple.
    ///
    /// # Errors
    /// When there is no such element.
    pub fn get_tuple_element(&mut self, tuple: NodeId, index: usize) -> Result<NodeId, GraphError> {
        self.add(Op::GetTupleElement(index), &[tuple])
    }

    /// x quantized, its range found in x.
    ///
    /// # Errors
    /// When x cannot be quantized so.
    pub fn quantize(&mut self, x: NodeId, how: &HowToQuantize) -> Result<NodeId, GraphError> {
        self.add(Op::Quantize(how.clone()), &[x])
    }

    /// A quantized array as floats.
    ///
    /// # Errors
    /// When x is not quantized.
    pub fn dequantize(&mut self, x: NodeId) -> Result<NodeId, GraphError> {
        self.add(Op::Dequantize, &[x])
    }

    /// How many nodes there are so far.
    pub fn node_count(&self) -> usize {
        self.computation.nodes.len()
    }

    /// The nodes so far, to be renamed or annotated.
    pub(crate) fn nodes_mut(&mut self) -> &mut Vec<Node> {
        &mut self.computation.nodes
    }

    /// The computation, with this node as its result.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn finish(self, root: NodeId) -> Result<Computation, GraphError> {
        self.ty(root)?;
        Ok(Computation { root, ..self.computation })
    }
}

/// A computation of two scalars and one op: what reductions call.
///
/// # Errors
/// When the op does not take the dtype.
pub fn reducer(op: BinaryOp, dtype: DType) -> Result<Arc<Computation>, GraphError> {
    let mut b = ComputationBuilder::new(&format!("{}_{dtype}", op.name().replace('-', "_")));
    let x = b.parameter("x", Type::array(dtype, []))?;
    let y = b.parameter("y", Type::array(dtype, []))?;
    let root = b.binary(op, x, y)?;
    Ok(Arc::new(b.finish(root)?))
}

/// Makes a graph: a [`ComputationBuilder`] whose parameters have a meaning.
///
/// ```
/// use qwix_array::DType;
/// use qwix_graph::{DotDims, GraphBuilder, Type};
///
/// let mut b = GraphBuilder::new("dense");
/// let x = b.input("x", Type::array(DType::F32, [2, 3]))?;
/// let w = b.variable("Dense_0/kernel", Type::array(DType::F32, [3, 4]))?;
/// let dims = DotDims { lhs_contracting: vec![1], rhs_contracting: vec![0], ..DotDims::default() };
/// let y = b.dot(x, w, &dims, DType::F32)?;
/// let graph = b.finish(y)?;
/// assert_eq!(graph.entry.node(graph.entry.root).ty, Type::array(DType::F32, [2, 4]));
/// # Ok::<(), qwix_graph::GraphError>(())
/// ```
#[derive(Clone, Debug)]
pub struct GraphBuilder {
    name: String,
    body: ComputationBuilder,
    signature: Vec<Parameter>,
}

impl GraphBuilder {
    /// An empty graph of this name.
    pub fn new(name: &str) -> Self {
        GraphBuilder { name: name.to_owned(), body: ComputationBuilder::new("main"), signature: Vec::new() }
    }

    /// The next parameter, an input of this name.
    ///
    /// # Errors
    /// Never for a type that can be.
    pub fn input(&mut self, name: &str, ty: Type) -> Result<NodeId, GraphError> {
        self.signature_entry(Parameter {
            path: Path::new(name),
            key_path: None,
            role: Role::Input,
            ambiguous: false,
            ty,
            slot: None,
        })
    }

    /// The next parameter, a variable at this path.
    ///
    /// # Errors
    /// Never for a type that can be.
    pub fn variable(&mut self, path: &str, ty: Type) -> Result<NodeId, GraphError> {
        self.signature_entry(Parameter {
            path: Path::new(path),
            key_path: None,
            role: Role::Variable,
            ambiguous: false,
            ty,
            slot: None,
        })
    }

    /// The next parameter, a quantized variable at this path that the slot makes.
    ///
    /// # Errors
    /// When the slot's steps do not fit its source.
    pub fn quantized_variable(&mut self, path: &str, slot: WeightSlot) -> Result<NodeId, GraphError> {
        let mut array = slot.source_type.clone();
        for prep in &slot.prep {
            array = prep.result(&array).map_err(|reason| GraphError::Invalid {
                computation: self.name.clone(),
                reason: format!("`{path}`: {reason}"),
            })?;
        }
        let ty = QArrayType { array, how: slot.how.clone() }.into();
        self.signature_entry(Parameter {
            path: Path::new(path),
            key_path: None,
            role: Role::Variable,
            ambiguous: false,
            ty,
            slot: Some(Slot::Weight(slot)),
        })
    }

    /// The next parameter.
    ///
    /// # Errors
    /// Never for a type that can be.
    pub fn signature_entry(&mut self, parameter: Parameter) -> Result<NodeId, GraphError> {
        let name: String = parameter
            .path
            .as_str()
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '_' })
            .collect();
        let id = self.body.parameter(&name, parameter.ty.clone())?;
        self.signature.push(parameter);
        Ok(id)
    }

    /// The graph, with this node as its result, verified.
    ///
    /// # Errors
    /// When there is no such node, two variables (or inputs) have one path, or a slot does not make its type.
    pub fn finish(self, root: NodeId) -> Result<Graph, GraphError> {
        let entry = Arc::new(self.body.finish(root)?);
        let graph = Graph { name: self.name, entry, parameters: self.signature };
        graph.verify()?;
        Ok(graph)
    }
}

impl Deref for GraphBuilder {
    type Target = ComputationBuilder;

    fn deref(&self) -> &ComputationBuilder {
        &self.body
    }
}

impl DerefMut for GraphBuilder {
    fn deref_mut(&mut self) -> &mut ComputationBuilder {
        &mut self.body
    }
}
