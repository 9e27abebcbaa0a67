//! A value of the model being traced.

mod arith;
mod index;
mod product;
mod reduce;
mod shape;

use std::fmt;
use std::rc::Rc;

use qwix_array::DType;
use qwix_graph::{ArrayType, NodeId, Op, Type};

use crate::tracer::Tracer;
use crate::{NnError, Result};

pub use arith::{Operand, Scalar};
pub use index::{concatenate, stack};
pub use product::dot_general;
pub(crate) use product::{computed_in, letters};

/// An array of the model being traced: a node of its graph, with dtype and shape known and no numbers yet.
///
/// Functions of tensors give tensors, so that arithmetic reads as arithmetic: `&x * &scale + 1.0`. When one of them is
/// given what it cannot take, its result carries the error on; whatever asks a tensor something, or hands it to a
/// layer, then gets the error as its [`Result`], and so does [`trace`](crate::trace) at the latest. The error says
/// in which module the first wrong op was.
///
/// Shapes broadcast as NumPy's do, and dtypes are promoted as JAX does ([`promote_types`](crate::promote_types));
/// scalars take the tensor's dtype. Axes count from the front, or when negative from the back.
///
/// A clone is another name for the same node.
#[derive(Clone)]
pub struct Tensor {
    tracer: Rc<Tracer>,
    value: std::result::Result<Known, Box<NnError>>,
}

#[derive(Clone)]
struct Known {
    id: NodeId,
    ty: Rc<Type>,
}

impl Tensor {
    pub(crate) fn new(tracer: &Rc<Tracer>, id: NodeId, ty: Type) -> Self {
        Tensor { tracer: Rc::clone(tracer), value: Ok(Known { id, ty: Rc::new(ty) }) }
    }

    /// The tensor, or one that carries the error on.
    pub(crate) fn wrap(tracer: &Rc<Tracer>, result: Result<Tensor>) -> Tensor {
        result.unwrap_or_else(|error| Tensor { tracer: Rc::clone(tracer), value: Err(Box::new(error)) })
    }

    /// What `f` makes of it, an error carried on.
    pub(crate) fn then(&self, f: impl FnOnce(&ArrayType) -> Result<Tensor>) -> Tensor {
        Tensor::wrap(&self.tracer, self.array_type().and_then(f))
    }

    pub(crate) fn tracer(&self) -> &Rc<Tracer> {
        &self.tracer
    }

    pub(crate) fn id(&self) -> Result<NodeId> {
        match &self.value {
            Ok(known) => Ok(known.id),
            Err(error) => Err((**error).clone()),
        }
    }

    /// The node, for an op of this trace.
    pub(crate) fn node(&self, tracer: &Rc<Tracer>) -> Result<NodeId> {
        let id = self.id()?;
        if Rc::ptr_eq(&self.tracer, tracer) { Ok(id) } else { Err(NnError::ForeignTensor) }
    }

    fn array_type(&self) -> Result<&ArrayType> {
        match &self.value {
            Ok(known) => known.ty.as_array().ok_or_else(|| {
                self.tracer.op_error("tuple", format!("an array is wanted, found {}", known.ty))
            }),
            Err(error) => Err((**error).clone()),
        }
    }

    /// The tensor itself, or the error that it carries.
    ///
    /// # Errors
    /// That of the first op that could not be.
    pub fn ok(&self) -> Result<Tensor> {
        self.id().map(|_| self.clone())
    }

    /// dtype and shape.
    ///
    /// # Errors
    /// The error that the tensor carries.
    pub fn ty(&self) -> Result<ArrayType> {
        self.array_type().cloned()
    }

    /// The dtype.
    ///
    /// # Errors
    /// The error that the tensor carries.
    pub fn dtype(&self) -> Result<DType> {
        Ok(self.array_type()?.dtype)
    }

    /// The sizes of the axes.
    ///
    /// # Errors
    /// The error that the tensor carries.
    pub fn shape(&self) -> Result<Vec<usize>> {
        Ok(self.array_type()?.shape.clone())
    }

    /// The number of axes.
    ///
    /// # Errors
    /// The error that the tensor carries.
    pub fn rank(&self) -> Result<usize> {
        Ok(self.array_type()?.shape.len())
    }

    /// The size of one axis.
    ///
    /// # Errors
    /// When there is no such axis, or the error that the tensor carries.
    pub fn dim(&self, axis: isize) -> Result<usize> {
        let ty = self.array_type()?;
        let axis = self.axis("dim", ty, axis)?;
        Ok(ty.shape[axis])
    }

    /// The sizes of all axes, when they are so many.
    ///
    /// ```
    /// # use qwix_nn::*;
    /// # struct M;
    /// # impl Module for M { fn call(&self, _: &Scope, x: Tensor) -> Result<Tensor> {
    /// let [batch, length, features] = x.dims()?;
    /// # assert_eq!([batch, length, features], [2, 3, 4]); Ok(x) } }
    /// # trace(&M, &[ArrayType::new(DType::F32, [2, 3, 4])])?;
    /// # Ok::<(), NnError>(())
    /// ```
    ///
    /// # Errors
    /// When they are not, or the error that the tensor carries.
    pub fn dims<const N: usize>(&self) -> Result<[usize; N]> {
        let ty = self.array_type()?;
        ty.shape
            .as_slice()
            .try_into()
            .map_err(|_| self.tracer.op_error("dims", format!("{N} axes are wanted, found {ty}")))
    }

    /// An axis from the front.
    fn axis(&self, op: &str, ty: &ArrayType, axis: isize) -> Result<usize> {
        let rank = ty.shape.len();
        let found = if axis < 0 { rank.checked_sub(axis.unsigned_abs()) } else { Some(axis.unsigned_abs()) };
        found
            .filter(|&axis| axis < rank)
            .ok_or_else(|| self.tracer.op_error(op, format!("{ty} has no axis {axis}")))
    }

    /// Axes from the front, each once, in ascending order.
    pub(crate) fn sorted_axes(&self, op: &str, ty: &ArrayType, axes: &[isize]) -> Result<Vec<usize>> {
        let mut found = axes.iter().map(|&axis| self.axis(op, ty, axis)).collect::<Result<Vec<_>>>()?;
        found.sort_unstable();
        if found.windows(2).any(|w| w[0] == w[1]) {
            return Err(self.tracer.op_error(op, format!("axes {axes:?} of {ty} name one twice")));
        }
        Ok(found)
    }

    /// Axes from the front in the order given, each once.
    pub(crate) fn front_axes(&self, op: &str, axes: &[isize]) -> Result<Vec<usize>> {
        let ty = self.array_type()?;
        self.sorted_axes(op, ty, axes)?;
        axes.iter().map(|&axis| self.axis(op, ty, axis)).collect()
    }

    /// A node of this trace.
    pub(crate) fn emit(&self, op: Op, operands: &[&Tensor], declared: Type) -> Result<Tensor> {
        self.tracer.emit(op, operands, declared)
    }

    /// x with the ops of `f` under one more segment of op names.
    pub(crate) fn inside(&self, segment: &str, f: impl FnOnce() -> Tensor) -> Tensor {
        self.tracer.inside(segment, f)
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Ok(known) => write!(f, "Tensor({})", known.ty),
            Err(error) => write!(f, "Tensor({error})"),
        }
    }
}

impl From<&Tensor> for Tensor {
    fn from(tensor: &Tensor) -> Self {
        tensor.clone()
    }
}
