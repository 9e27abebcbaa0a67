//! Computations of a few numbers, which `reduce`, `sort` and their like call for every element.

use qwix_array::{Array, DType};
use qwix_graph::{BinaryOp, Computation, Op, Type};

use crate::lanes::Lanes;
use crate::number::Scalar;
use crate::ops::{control, elementwise};
use crate::run::{Context, run};
use crate::{EvalError, Value};

/// A computation from scalars to scalars, ready to be called often.
pub(crate) struct Function<'a> {
    computation: &'a Computation,
    context: Context<'a>,
    /// dtype of each node, when all of them are scalars that [`step`] knows.
    direct: Option<Vec<DType>>,
    /// Values of the nodes that are constants.
    constants: Vec<Option<Scalar>>,
    registers: Vec<Scalar>,
}

impl<'a> Function<'a> {
    pub(crate) fn new(computation: &'a Computation, context: Context<'a>) -> Self {
        let direct = computation
            .iter()
            .map(|(id, node)| {
                let before = node.operands.iter().all(|o| o.index() < id.index());
                match (&node.op, &node.ty) {
                    (Op::Tuple, Type::Tuple(_)) if id == computation.root && before => Some(DType::Pred),
                    // A 16-bit float's bits depend on which of the two it is, so arrays see to that.
                    (Op::BitcastConvert, Type::Array(ty)) if ty.dtype.bits() < 32 => None,
                    (_, Type::Array(ty)) if ty.shape.is_empty() && before && is_direct(&node.op) => {
                        Some(ty.dtype)
                    }
                    (_, _) => None,
                }
            })
            .collect::<Option<Vec<_>>>()
            .filter(|dtypes| computation.root.index() < dtypes.len());
        let constant = |op: &Op| match op {
            Op::Constant(value) if value.rank() == 0 => Lanes::read(value).ok().map(|lanes| lanes.get(0)),
            _ => None,
        };
        let constants = computation.nodes.iter().map(|node| constant(&node.op)).collect();
        Function { computation, context, direct, constants, registers: Vec::new() }
    }

    /// The one op that the computation is, applied to its two parameters, when the order of the parameters and of
    /// calls does not matter to it.
    pub(crate) fn associative(&self) -> Option<BinaryOp> {
        let root = self.computation.nodes.get(self.computation.root.index())?;
        let Op::Binary(op) = root.op else { return None };
        let known = matches!(
            op,
            BinaryOp::Add
                | BinaryOp::Multiply
                | BinaryOp::Maximum
                | BinaryOp::Minimum
                | BinaryOp::And
                | BinaryOp::Or
                | BinaryOp::Xor
        );
        let number = |i: usize| match self.computation.nodes.get(root.operands.get(i)?.index())?.op {
            Op::Parameter(number) => Some(number),
            _ => None,
        };
        let both = matches!((number(0), number(1)), (Some(0), Some(1)) | (Some(1), Some(0)));
        (known && both && self.direct.is_some()).then_some(op)
    }

    /// Calls the function; its results, in order, replace `results`. `dtypes` are those of the arguments.
    pub(crate) fn call(
        &mut self,
        dtypes: &[DType],
        arguments: &[Scalar],
        results: &mut Vec<Scalar>,
    ) -> Result<(), EvalError> {
        results.clear();
        let Some(direct) = &self.direct else { return self.interpret(dtypes, arguments, results) };
        self.registers.clear();
        for ((node, &dtype), &constant) in self.computation.nodes.iter().zip(direct).zip(&self.constants) {
            let operand = |i: usize| Some(self.registers[node.operands.get(i)?.index()]);
            let value = match node.op {
                Op::Parameter(number) => arguments.get(number).copied(),
                Op::Constant(_) => constant,
                // The root; what it holds is read from its operands.
                Op::Tuple => Some(Scalar::Pred(false)),
                _ => step(&node.op, dtype, operand),
            };
            let Some(value) = value else {
                return Err(
                    EvalError::reason(format!("{} does not fit its operands", node.op.name())).at(node)
                );
            };
            self.registers.push(value);
        }
        let root = self.computation.node(self.computation.root);
        match root.op {
            Op::Tuple => results.extend(root.operands.iter().map(|o| self.registers[o.index()])),
            _ => results.push(self.registers[self.computation.root.index()]),
        }
        Ok(())
    }

    /// Computations with loops, branches or arrays inside go through arrays.
    fn interpret(
        &self,
        dtypes: &[DType],
        arguments: &[Scalar],
        results: &mut Vec<Scalar>,
    ) -> Result<(), EvalError> {
        let arguments = dtypes
            .iter()
            .zip(arguments)
            .map(|(&dtype, &x)| to_array(dtype, x).map(Value::Array))
            .collect::<Result<Vec<_>, _>>()?;
        match run(self.computation, arguments, self.context)? {
            Value::Tuple(values) => {
                for value in &values {
                    results.push(control::scalar(value)?);
                }
            }
            value @ (Value::Array(_) | Value::QArray(_)) => results.push(control::scalar(&value)?),
        }
        Ok(())
    }
}

fn to_array(dtype: DType, x: Scalar) -> Result<Array, EvalError> {
    let mut lanes = Lanes::empty(dtype);
    lanes.push(x)?;
    Ok(lanes.write(dtype, &[])?)
}

fn is_direct(op: &Op) -> bool {
    match op {
        Op::Parameter(_)
        | Op::Unary(_)
        | Op::Binary(_)
        | Op::Compare { .. }
        | Op::Select
        | Op::Clamp
        | Op::Convert
        | Op::Reshape
        | Op::Broadcast { .. }
        | Op::BitcastConvert
        | Op::ReducePrecision { .. } => true,
        Op::Constant(value) => value.rank() == 0,
        Op::Iota { .. }
        | Op::Transpose { .. }
        | Op::Slice(_)
        | Op::DynamicSlice { .. }
        | Op::DynamicUpdateSlice
        | Op::Concatenate { .. }
        | Op::Pad(_)
        | Op::Reverse { .. }
        | Op::Gather(_)
        | Op::Scatter { .. }
        | Op::Dot(_)
        | Op::Convolution(_)
        | Op::Reduce { .. }
        | Op::ReduceWindow { .. }
        | Op::SelectAndScatter { .. }
        | Op::Sort { .. }
        | Op::TopK { .. }
        | Op::Map { .. }
        | Op::Tuple
        | Op::GetTupleElement(_)
        | Op::While { .. }
        | Op::Conditional { .. }
        | Op::Call { .. }
        | Op::RngBitGenerator(_)
        | Op::OptimizationBarrier
        | Op::Sharding { .. }
        | Op::CustomCall(_)
        | Op::Unsupported(_)
        | Op::Quantize(_)
        | Op::Dequantize => false,
    }
}

/// One op on scalars, `dtype` the result's; `None` when the operands do not fit.
fn step(op: &Op, dtype: DType, operand: impl Fn(usize) -> Option<Scalar>) -> Option<Scalar> {
    let value = match op {
        Op::Unary(op) => elementwise::unary_scalar(*op, dtype, operand(0)?)?,
        Op::Binary(op) => elementwise::binary_scalar(*op, dtype, operand(0)?, operand(1)?)?,
        Op::Compare { comparison, order } => {
            elementwise::compare_scalar(*comparison, *order, operand(0)?, operand(1)?)?
        }
        Op::Select => match operand(0)? {
            Scalar::Pred(true) => operand(1)?,
            Scalar::Pred(false) => operand(2)?,
            Scalar::Float(_) | Scalar::Int(_) | Scalar::Uint(_) => return None,
        },
        Op::Clamp => {
            let raised = elementwise::binary_scalar(BinaryOp::Maximum, dtype, operand(0)?, operand(1)?)?;
            elementwise::binary_scalar(BinaryOp::Minimum, dtype, raised, operand(2)?)?
        }
        Op::Convert => operand(0)?.convert(dtype),
        Op::Reshape | Op::Broadcast { .. } => operand(0)?,
        Op::BitcastConvert => bitcast(operand(0)?, dtype)?,
        Op::ReducePrecision { exponent_bits, mantissa_bits } => {
            elementwise::reduce_precision_scalar(dtype, operand(0)?, *exponent_bits, *mantissa_bits)?
        }
        _ => return None,
    };
    // A value of another class would be taken for what it is not further on.
    (value.class() == crate::number::Class::of(dtype)).then_some(value)
}

/// Between numbers of 32 bits, or of 64.
fn bitcast(x: Scalar, dtype: DType) -> Option<Scalar> {
    let from = match (x, dtype.bits()) {
        (Scalar::Float(_), 32) => DType::F32,
        (Scalar::Float(_), 64) => DType::F64,
        (Scalar::Int(_), 32) => DType::S32,
        (Scalar::Int(_), 64) => DType::S64,
        (Scalar::Uint(_), 32) => DType::U32,
        (Scalar::Uint(_), 64) => DType::U64,
        (_, _) => return None,
    };
    let array = elementwise::bitcast(&to_array(from, x).ok()?, dtype, &[]).ok()?;
    Some(Lanes::read(&array).ok()?.get(0))
}
