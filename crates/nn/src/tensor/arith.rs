//! Arithmetic: operators, comparisons and functions of one tensor.

use std::ops;

use qwix_array::{Array, DType};
use qwix_graph::{BinaryOp, CompareOrder, Comparison, Op, Type, UnaryOp};

use super::Tensor;
use crate::{Result, promote_types};

/// A number that takes the dtype of the tensor it meets.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Scalar {
    /// An integer; it becomes a float beside floats.
    Int(i64),
    /// A float; beside integers the result is f32.
    Float(f64),
}

/// The other side of an op: a tensor or a number.
#[derive(Clone, Debug)]
pub enum Operand {
    /// A tensor.
    Tensor(Tensor),
    /// A number.
    Scalar(Scalar),
}

impl From<Tensor> for Operand {
    fn from(tensor: Tensor) -> Self {
        Operand::Tensor(tensor)
    }
}

impl From<&Tensor> for Operand {
    fn from(tensor: &Tensor) -> Self {
        Operand::Tensor(tensor.clone())
    }
}

macro_rules! scalars {
    ($($rust:ty => $variant:ident as $wide:ty),* $(,)?) => {
        $(
            impl From<$rust> for Scalar {
                fn from(value: $rust) -> Self {
                    Scalar::$variant(value as $wide)
                }
            }

            impl From<$rust> for Operand {
                fn from(value: $rust) -> Self {
                    Operand::Scalar(value.into())
                }
            }
        )*
    };
}

scalars! { f32 => Float as f64, f64 => Float as f64, i32 => Int as i64, i64 => Int as i64, usize => Int as i64 }

impl Scalar {
    /// The dtype of an op of this number and a tensor.
    fn beside(self, dtype: DType) -> DType {
        match self {
            Scalar::Float(_) if !dtype.is_float() => DType::F32,
            Scalar::Int(_) if dtype == DType::Pred => DType::S32,
            Scalar::Float(_) | Scalar::Int(_) => dtype,
        }
    }

    pub(crate) fn array(self, dtype: DType) -> Result<Array> {
        Ok(match self {
            Scalar::Int(value) if dtype.is_int() => Array::from_i64(dtype, &[], &[value])?,
            Scalar::Int(value) => Array::from_f64(dtype, &[], &[value as f64])?,
            Scalar::Float(value) => Array::from_f64(dtype, &[], &[value])?,
        })
    }
}

/// The shape that two shapes broadcast to, NumPy's way.
pub(crate) fn broadcast_shapes(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let size = |shape: &[usize], axis: usize| {
        let missing = rank - shape.len();
        if axis < missing { 1 } else { shape[axis - missing] }
    };
    (0..rank)
        .map(|axis| match (size(a, axis), size(b, axis)) {
            (x, y) if x == y => Some(x),
            (1, y) => Some(y),
            (x, 1) => Some(x),
            _ => None,
        })
        .collect()
}

impl Tensor {
    /// This and the other side in one dtype.
    pub(super) fn promoted(&self, op: &str, other: &Operand) -> Result<(Tensor, Tensor)> {
        let ty = self.array_type()?;
        match other {
            Operand::Scalar(scalar) => {
                let dtype = scalar.beside(ty.dtype);
                let x = self.astype(dtype).ok()?;
                // Known when the graph is made, so that it takes no part in promotion at all.
                let scalar = self.tracer.scalar(scalar.array(dtype)?)?;
                Ok((x, scalar))
            }
            Operand::Tensor(other) => {
                let of = other.array_type()?;
                let dtype = promote_types(ty.dtype, of.dtype).ok_or_else(|| {
                    self.tracer.op_error(
                        op,
                        format!("{ty} and {of} have no common dtype; convert one with `astype`"),
                    )
                })?;
                Ok((self.astype(dtype).ok()?, other.astype(dtype).ok()?))
            }
        }
    }

    /// This and the other side in one shape.
    fn in_one_shape(&self, op: &str, other: &Tensor) -> Result<(Tensor, Tensor)> {
        let (a, b) = (self.array_type()?, other.array_type()?);
        let shape = broadcast_shapes(&a.shape, &b.shape)
            .ok_or_else(|| self.tracer.op_error(op, format!("{a} and {b} do not broadcast to one shape")))?;
        Ok((self.broadcast_to(&shape).ok()?, other.broadcast_to(&shape).ok()?))
    }

    pub(super) fn binary(&self, op: BinaryOp, other: impl Into<Operand>) -> Tensor {
        self.then(|_| {
            let (a, b) = self.promoted(op.name(), &other.into())?;
            let (a, b) = a.in_one_shape(op.name(), &b)?;
            self.emit(Op::Binary(op), &[&a, &b], Type::Token)
        })
    }

    /// The same with the sides exchanged: a number on the left.
    fn binary_from(&self, op: BinaryOp, left: impl Into<Operand>) -> Tensor {
        self.then(|_| {
            let (b, a) = self.promoted(op.name(), &left.into())?;
            let (a, b) = a.in_one_shape(op.name(), &b)?;
            self.emit(Op::Binary(op), &[&a, &b], Type::Token)
        })
    }

    fn compare(&self, comparison: Comparison, other: impl Into<Operand>) -> Tensor {
        self.then(|_| {
            let (a, b) = self.promoted(comparison.name(), &other.into())?;
            let (a, b) = a.in_one_shape(comparison.name(), &b)?;
            self.emit(Op::Compare { comparison, order: CompareOrder::Partial }, &[&a, &b], Type::Token)
        })
    }

    fn unary(&self, op: UnaryOp) -> Tensor {
        self.then(|_| self.emit(Op::Unary(op), &[self], Type::Token))
    }

    /// The function on floats; integers become f32 before, as in JAX.
    fn float_unary(&self, op: UnaryOp) -> Tensor {
        self.to_float().unary(op)
    }

    /// The same numbers as floats: integers and pred in f32.
    pub(crate) fn to_float(&self) -> Tensor {
        self.then(|ty| if ty.dtype.is_float() { self.ok() } else { self.astype(DType::F32).ok() })
    }

    /// The same numbers in another dtype; itself when it has it already. Floats become integers by cutting off the
    /// fraction; any number becomes pred by whether it is other than 0.
    pub fn astype(&self, dtype: DType) -> Tensor {
        self.then(|ty| {
            if ty.dtype == dtype {
                return self.ok();
            }
            if dtype == DType::Pred {
                return self.not_equal(0).ok();
            }
            self.emit(Op::Convert, &[self], Type::array(dtype, []))
        })
    }

    /// The larger of each two.
    pub fn maximum(&self, other: impl Into<Operand>) -> Tensor {
        self.binary(BinaryOp::Maximum, other)
    }

    /// The smaller of each two.
    pub fn minimum(&self, other: impl Into<Operand>) -> Tensor {
        self.binary(BinaryOp::Minimum, other)
    }

    /// Not below `low` and not above `high`.
    pub fn clip(&self, low: impl Into<Operand>, high: impl Into<Operand>) -> Tensor {
        self.maximum(low).minimum(high)
    }

    /// To the power of; floats.
    pub fn pow(&self, exponent: impl Into<Operand>) -> Tensor {
        self.to_float().binary(BinaryOp::Power, exponent)
    }

    /// A number to the power of this; floats.
    pub fn pow_of(&self, base: impl Into<Operand>) -> Tensor {
        self.to_float().binary_from(BinaryOp::Power, base)
    }

    /// How often `other` goes into this, rounded towards minus infinity; integers give integers.
    pub fn floor_div(&self, other: impl Into<Operand>) -> Tensor {
        self.then(|_| {
            let (a, b) = self.promoted("floor_divide", &other.into())?;
            let (a, b) = a.in_one_shape("floor_divide", &b)?;
            let quotient = self.emit(Op::Binary(BinaryOp::Divide), &[&a, &b], Type::Token)?;
            let dtype = quotient.dtype()?;
            if dtype.is_float() {
                return quotient.floor().ok();
            }
            if dtype.is_unsigned_int() {
                return Ok(quotient);
            }
            // HLO rounds towards zero: one less where signs differ and something is left over.
            let rest = self.emit(Op::Binary(BinaryOp::Remainder), &[&a, &b], Type::Token)?;
            let lower = a.sign().not_equal(b.sign()) & rest.not_equal(0);
            lower.select(&quotient - 1, &quotient).ok()
        })
    }

    /// What is left over of [`Tensor::floor_div`], with the sign of `other`: NumPy's and Python's `%`. The operator `%`
    /// is HLO's and Rust's, with the sign of this.
    pub fn modulo(&self, other: impl Into<Operand>) -> Tensor {
        self.then(|_| {
            let (a, b) = self.promoted("mod", &other.into())?;
            let (a, b) = a.in_one_shape("mod", &b)?;
            let rest = self.emit(Op::Binary(BinaryOp::Remainder), &[&a, &b], Type::Token)?;
            let signs_differ = rest.less(0).not_equal(b.less(0));
            (signs_differ & rest.not_equal(0)).select(&rest + b, &rest).ok()
        })
    }

    /// Whether each two are equal.
    pub fn equal(&self, other: impl Into<Operand>) -> Tensor {
        self.compare(Comparison::Eq, other)
    }

    /// Whether each two differ.
    pub fn not_equal(&self, other: impl Into<Operand>) -> Tensor {
        self.compare(Comparison::Ne, other)
    }

    /// Whether this is less.
    pub fn less(&self, other: impl Into<Operand>) -> Tensor {
        self.compare(Comparison::Lt, other)
    }

    /// Whether this is less or equal.
    pub fn less_equal(&self, other: impl Into<Operand>) -> Tensor {
        self.compare(Comparison::Le, other)
    }

    /// Whether this is greater.
    pub fn greater(&self, other: impl Into<Operand>) -> Tensor {
        self.compare(Comparison::Gt, other)
    }

    /// Whether this is greater or equal.
    pub fn greater_equal(&self, other: impl Into<Operand>) -> Tensor {
        self.compare(Comparison::Ge, other)
    }

    /// `on_true` where this is true (or not 0), `on_false` elsewhere; all three broadcast. JAX's `where`.
    pub fn select(&self, on_true: impl Into<Operand>, on_false: impl Into<Operand>) -> Tensor {
        let (on_true, on_false) = (on_true.into(), on_false.into());
        self.then(|_| {
            let pred = self.astype(DType::Pred).ok()?;
            let (a, b) = match (&on_true, &on_false) {
                (Operand::Tensor(a), b) => a.promoted("select", b)?,
                (a, Operand::Tensor(b)) => {
                    let (b, a) = b.promoted("select", a)?;
                    (a, b)
                }
                (Operand::Scalar(a), Operand::Scalar(b)) => {
                    let dtype = match (a, b) {
                        (Scalar::Int(_), Scalar::Int(_)) => DType::S32,
                        (Scalar::Float(_), _) | (_, Scalar::Float(_)) => DType::F32,
                    };
                    (self.tracer.scalar(a.array(dtype)?)?, self.tracer.scalar(b.array(dtype)?)?)
                }
            };
            let (a_ty, b_ty, p_ty) = (a.array_type()?, b.array_type()?, pred.array_type()?);
            let shape = broadcast_shapes(&a_ty.shape, &b_ty.shape)
                .and_then(|shape| broadcast_shapes(&shape, &p_ty.shape))
                .ok_or_else(|| {
                    let reason = format!("{p_ty}, {a_ty} and {b_ty} do not broadcast to one shape");
                    self.tracer.op_error("select", reason)
                })?;
            let pred = pred.broadcast_to(&shape);
            let (a, b) = (a.broadcast_to(&shape), b.broadcast_to(&shape));
            self.emit(Op::Select, &[&pred, &a, &b], Type::Token)
        })
    }

    /// A tensor of this one's shape and dtype, all of it this number.
    pub fn full_like(&self, value: impl Into<Scalar>) -> Tensor {
        let value = value.into();
        self.then(|ty| self.tracer.scalar(value.array(ty.dtype)?)?.broadcast_to(&ty.shape).ok())
    }

    /// A tensor of this trace, all of it one number.
    pub(crate) fn filled(&self, shape: &[usize], value: impl Into<Scalar>, dtype: DType) -> Result<Tensor> {
        self.tracer.scalar(value.into().array(dtype)?)?.broadcast_to(shape).ok()
    }

    /// x·x.
    pub fn square(&self) -> Tensor {
        self.binary(BinaryOp::Multiply, self)
    }

    /// 1 / (1 + exp(−x)), written out as JAX lowers it.
    pub fn sigmoid(&self) -> Tensor {
        let x = self.to_float();
        (-&x).exp().binary(BinaryOp::Add, 1.0).binary_from(BinaryOp::Divide, 1.0)
    }

    /// Rounded to the nearest integer, halves to even.
    pub fn round(&self) -> Tensor {
        self.float_unary(UnaryOp::RoundNearestEven)
    }
}

macro_rules! functions {
    ($($(#[$doc:meta])* $name:ident => $how:ident($op:ident)),* $(,)?) => {
        impl Tensor {
            $($(#[$doc])* pub fn $name(&self) -> Tensor { self.$how(UnaryOp::$op) })*
        }
    };
}

functions! {
    /// The distance from 0.
    abs => unary(Abs),
    /// −1, 0 or 1.
    sign => unary(Sign),
    /// The third root.
    cbrt => float_unary(Cbrt),
    /// The next integer above.
    ceil => float_unary(Ceil),
    /// The next integer below.
    floor => float_unary(Floor),
    /// The cosine.
    cos => float_unary(Cos),
    /// The sine.
    sin => float_unary(Sin),
    /// The tangent.
    tan => float_unary(Tan),
    /// The hyperbolic tangent.
    tanh => float_unary(Tanh),
    /// The error function.
    erf => float_unary(Erf),
    /// e to the power of x.
    exp => float_unary(Exp),
    /// exp(x) − 1, exact for small x.
    expm1 => float_unary(Expm1),
    /// The natural logarithm.
    log => float_unary(Log),
    /// log(1 + x), exact for small x.
    log1p => float_unary(Log1p),
    /// The square root.
    sqrt => float_unary(Sqrt),
    /// 1 / √x.
    rsqrt => float_unary(Rsqrt),
    /// Whether neither infinite nor NaN.
    is_finite => float_unary(IsFinite),
}

fn divide(a: &Tensor, b: Operand) -> Tensor {
    let b = match b {
        Operand::Tensor(b) => Operand::Tensor(b.to_float()),
        Operand::Scalar(_) => b,
    };
    a.to_float().binary(BinaryOp::Divide, b)
}

macro_rules! operators {
    ($($trait:ident :: $method:ident => $op:ident),* $(,)?) => {
        $(
            impl<T: Into<Operand>> ops::$trait<T> for &Tensor {
                type Output = Tensor;

                fn $method(self, other: T) -> Tensor {
                    self.binary(BinaryOp::$op, other)
                }
            }

            impl<T: Into<Operand>> ops::$trait<T> for Tensor {
                type Output = Tensor;

                fn $method(self, other: T) -> Tensor {
                    self.binary(BinaryOp::$op, other)
                }
            }
        )*
    };
}

// `%` has the sign of the left side, as in Rust and HLO.
operators! { Add::add => Add, Sub::sub => Subtract, Mul::mul => Multiply, Rem::rem => Remainder,
BitAnd::bitand => And, BitOr::bitor => Or, BitXor::bitxor => Xor }

impl<T: Into<Operand>> ops::Div<T> for &Tensor {
    type Output = Tensor;

    /// A true division: integers become f32 before.
    fn div(self, other: T) -> Tensor {
        divide(self, other.into())
    }
}

impl<T: Into<Operand>> ops::Div<T> for Tensor {
    type Output = Tensor;

    fn div(self, other: T) -> Tensor {
        divide(&self, other.into())
    }
}

macro_rules! numbers_on_the_left {
    ($($number:ty),*) => {
        $(
            numbers_on_the_left!($number, Add::add => Add, Sub::sub => Subtract, Mul::mul => Multiply);

            impl ops::Div<&Tensor> for $number {
                type Output = Tensor;

                fn div(self, right: &Tensor) -> Tensor {
                    right.to_float().binary_from(BinaryOp::Divide, self)
                }
            }

            impl ops::Div<Tensor> for $number {
                type Output = Tensor;

                fn div(self, right: Tensor) -> Tensor {
                    right.to_float().binary_from(BinaryOp::Divide, self)
                }
            }
        )*
    };
    ($number:ty, $($trait:ident :: $method:ident => $op:ident),*) => {
        $(
            impl ops::$trait<&Tensor> for $number {
                type Output = Tensor;

                fn $method(self, right: &Tensor) -> Tensor {
                    right.binary_from(BinaryOp::$op, self)
                }
            }

            impl ops::$trait<Tensor> for $number {
                type Output = Tensor;

                fn $method(self, right: Tensor) -> Tensor {
                    right.binary_from(BinaryOp::$op, self)
                }
            }
        )*
    };
}

// One type of each kind, so that literals need no suffix.
numbers_on_the_left!(f64, i32);

impl ops::Neg for &Tensor {
    type Output = Tensor;

    fn neg(self) -> Tensor {
        self.unary(UnaryOp::Negate)
    }
}

impl ops::Neg for Tensor {
    type Output = Tensor;

    fn neg(self) -> Tensor {
        self.unary(UnaryOp::Negate)
    }
}

impl ops::Not for &Tensor {
    type Output = Tensor;

    fn not(self) -> Tensor {
        self.unary(UnaryOp::Not)
    }
}

impl ops::Not for Tensor {
    type Output = Tensor;

    fn not(self) -> Tensor {
        self.unary(UnaryOp::Not)
    }
}
