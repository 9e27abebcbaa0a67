//! An array's elements as numbers, whatever its dtype.

use half::{bf16, f16};
use qwix_array::{Array, ArrayError, DType, Element};

use crate::EvalError;
use crate::number::{Class, Scalar};

/// The elements of an array, in row-major order, in the wide type of their class.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Lanes {
    Float(Vec<f64>),
    Int(Vec<i64>),
    Uint(Vec<u64>),
    Pred(Vec<bool>),
}

impl Lanes {
    pub(crate) fn read(array: &Array) -> Result<Lanes, ArrayError> {
        use DType::*;
        Ok(match array.dtype() {
            F64 => Lanes::Float(array.values::<f64>()?.into_owned()),
            F32 => Lanes::Float(map(array, |x: f32| f64::from(x))?),
            F16 => Lanes::Float(map(array, |x: f16| x.to_f64())?),
            BF16 => Lanes::Float(map(array, |x: bf16| x.to_f64())?),
            F8E4M3FN => Lanes::Float(map(array, |x: qwix_array::F8E4M3FN| f64::from(x.to_f32()))?),
            F8E5M2 => Lanes::Float(map(array, |x: qwix_array::F8E5M2| f64::from(x.to_f32()))?),
            F4E2M1FN => Lanes::Float(
                array.unpack_u8()?.iter().map(|&b| f64::from(qwix_array::F4E2M1FN(b).to_f32())).collect(),
            ),
            S2 | S4 | S8 => Lanes::Int(array.unpack_i8()?.into_iter().map(i64::from).collect()),
            S16 => Lanes::Int(map(array, |x: i16| i64::from(x))?),
            S32 => Lanes::Int(map(array, |x: i32| i64::from(x))?),
            S64 => Lanes::Int(array.values::<i64>()?.into_owned()),
            U4 | U8 => Lanes::Uint(array.unpack_u8()?.iter().map(|&x| u64::from(x)).collect()),
            U16 => Lanes::Uint(map(array, |x: u16| u64::from(x))?),
            U32 => Lanes::Uint(map(array, |x: u32| u64::from(x))?),
            U64 => Lanes::Uint(array.values::<u64>()?.into_owned()),
            Pred => Lanes::Pred(map(array, |x: qwix_array::Pred| bool::from(x))?),
        })
    }

    /// An array of these elements: floats are rounded, integers keep their low bits.
    pub(crate) fn write(&self, dtype: DType, shape: &[usize]) -> Result<Array, ArrayError> {
        use DType::*;
        match (self, dtype) {
            (Lanes::Float(v), F64) => Array::from_vec(shape, v.clone()),
            (Lanes::Float(v), F32) => make(shape, v, |x| x as f32),
            (Lanes::Float(v), F16) => make(shape, v, |x| f16::from_f32(x as f32)),
            (Lanes::Float(v), BF16) => make(shape, v, |x| bf16::from_f32(x as f32)),
            (Lanes::Float(v), F8E4M3FN) => make(shape, v, qwix_array::F8E4M3FN::from_f64),
            (Lanes::Float(v), F8E5M2) => make(shape, v, qwix_array::F8E5M2::from_f64),
            (Lanes::Float(v), F4E2M1FN) => {
                let bytes: Vec<u8> = v.iter().map(|&x| qwix_array::F4E2M1FN::from_f64(x).0).collect();
                Array::pack(dtype, shape, &bytes)
            }
            (Lanes::Int(v), S2 | S4 | S8) => {
                Array::pack(dtype, shape, &v.iter().map(|&x| x as u8).collect::<Vec<_>>())
            }
            (Lanes::Int(v), S16) => make(shape, v, |x| x as i16),
            (Lanes::Int(v), S32) => make(shape, v, |x| x as i32),
            (Lanes::Int(v), S64) => Array::from_vec(shape, v.clone()),
            (Lanes::Uint(v), U4 | U8) => {
                Array::pack(dtype, shape, &v.iter().map(|&x| x as u8).collect::<Vec<_>>())
            }
            (Lanes::Uint(v), U16) => make(shape, v, |x| x as u16),
            (Lanes::Uint(v), U32) => make(shape, v, |x| x as u32),
            (Lanes::Uint(v), U64) => Array::from_vec(shape, v.clone()),
            (Lanes::Pred(v), DType::Pred) => make(shape, v, qwix_array::Pred::from),
            (Lanes::Float(_) | Lanes::Int(_) | Lanes::Uint(_) | Lanes::Pred(_), _) => {
                Err(ArrayError::WrongDType { expected: dtype, found: self.widest() })
            }
        }
    }

    fn widest(&self) -> DType {
        match self {
            Lanes::Float(_) => DType::F64,
            Lanes::Int(_) => DType::S64,
            Lanes::Uint(_) => DType::U64,
            Lanes::Pred(_) => DType::Pred,
        }
    }

    /// One element; there must be one of that index.
    pub(crate) fn get(&self, index: usize) -> Scalar {
        match self {
            Lanes::Float(v) => Scalar::Float(v[index]),
            Lanes::Int(v) => Scalar::Int(v[index]),
            Lanes::Uint(v) => Scalar::Uint(v[index]),
            Lanes::Pred(v) => Scalar::Pred(v[index]),
        }
    }

    /// Replaces one element.
    pub(crate) fn set(&mut self, index: usize, value: Scalar) -> Result<(), EvalError> {
        match (self, value) {
            (Lanes::Float(v), Scalar::Float(x)) => v[index] = x,
            (Lanes::Int(v), Scalar::Int(x)) => v[index] = x,
            (Lanes::Uint(v), Scalar::Uint(x)) => v[index] = x,
            (Lanes::Pred(v), Scalar::Pred(x)) => v[index] = x,
            (Lanes::Float(_) | Lanes::Int(_) | Lanes::Uint(_) | Lanes::Pred(_), _) => return Err(mixed()),
        }
        Ok(())
    }

    /// Adds one element at the end.
    pub(crate) fn push(&mut self, value: Scalar) -> Result<(), EvalError> {
        match (self, value) {
            (Lanes::Float(v), Scalar::Float(x)) => v.push(x),
            (Lanes::Int(v), Scalar::Int(x)) => v.push(x),
            (Lanes::Uint(v), Scalar::Uint(x)) => v.push(x),
            (Lanes::Pred(v), Scalar::Pred(x)) => v.push(x),
            (Lanes::Float(_) | Lanes::Int(_) | Lanes::Uint(_) | Lanes::Pred(_), _) => return Err(mixed()),
        }
        Ok(())
    }

    /// No elements yet, of the class of a dtype.
    pub(crate) fn empty(dtype: DType) -> Lanes {
        match Class::of(dtype) {
            Class::Float => Lanes::Float(Vec::new()),
            Class::Int => Lanes::Int(Vec::new()),
            Class::Uint => Lanes::Uint(Vec::new()),
            Class::Pred => Lanes::Pred(Vec::new()),
        }
    }
}

fn mixed() -> EvalError {
    EvalError::reason("a computation yields a number of another dtype than the array it is for")
}

fn map<T: Element, R>(array: &Array, f: impl Fn(T) -> R) -> Result<Vec<R>, ArrayError> {
    Ok(array.values::<T>()?.iter().map(|&x| f(x)).collect())
}

fn make<S: Copy, T: Element>(shape: &[usize], values: &[S], f: impl Fn(S) -> T) -> Result<Array, ArrayError> {
    Array::from_vec(shape, values.iter().map(|&x| f(x)).collect())
}
