//! Constants as text: numbers that read back to the same bits.

use std::fmt::Write;

use qwix_array::{Array, DType, Element, F4E2M1FN, F8E4M3FN, F8E5M2, bf16, element_count, f16};

use super::scan::{Fault, Scanner};
use crate::ArrayType;

/// Writes the elements in nested braces, or `{...}` when there are too many.
pub(super) fn write_constant(out: &mut String, array: &Array, largest: usize) {
    if array.len() > largest {
        out.push_str("{...}");
        return;
    }
    let numbers = Numbers::of(array);
    let shape = array.shape();
    if shape.is_empty() {
        numbers.write(out, 0);
        return;
    }
    if array.is_empty() {
        out.push_str("{}");
        return;
    }
    for index in 0..array.len() {
        // Braces that open or close where an axis begins or ends; the last axis is the innermost.
        let mut block = 1;
        let mut edges = 0;
        for &size in shape.iter().rev() {
            block *= size;
            if index % block == 0 {
                edges += 1;
            } else {
                break;
            }
        }
        if index > 0 {
            out.push_str(if edges > 0 { " " } else { ", " });
        }
        for _ in 0..edges {
            out.push('{');
        }
        numbers.write(out, index);
        let mut block = 1;
        let mut closed = 0;
        for &size in shape.iter().rev() {
            block *= size;
            if (index + 1) % block == 0 {
                out.push('}');
                closed += 1;
            } else {
                break;
            }
        }
        if closed > 0 && index + 1 < array.len() {
            out.push(',');
        }
    }
}

/// The elements, widened where that loses nothing.
enum Numbers {
    Ints(Vec<i64>),
    Uints(Vec<u64>),
    Bools(Vec<bool>, bool),
    F64(Vec<f64>),
    F32(Vec<f32>),
    /// Bits of the NaNs' payload are kept beside.
    Narrow(Vec<f32>, Vec<u16>, DType),
}

impl Numbers {
    fn of(array: &Array) -> Numbers {
        fn all<T: Element, U>(array: &Array, f: impl Fn(T) -> U) -> Vec<U> {
            array.values::<T>().map(|v| v.iter().map(|&x| f(x)).collect()).unwrap_or_default()
        }
        match array.dtype() {
            DType::Pred => {
                Numbers::Bools(all(array, |x: qwix_array::Pred| bool::from(x)), array.shape().is_empty())
            }
            DType::S2 | DType::S4 | DType::S8 => Numbers::Ints(
                array.unpack_i8().map(|v| v.into_iter().map(i64::from).collect()).unwrap_or_default(),
            ),
            DType::S16 => Numbers::Ints(all(array, |x: i16| x as i64)),
            DType::S32 => Numbers::Ints(all(array, |x: i32| x as i64)),
            DType::S64 => Numbers::Ints(all(array, |x: i64| x)),
            DType::U4 | DType::U8 => Numbers::Uints(
                array.unpack_u8().map(|v| v.iter().map(|&x| x as u64).collect()).unwrap_or_default(),
            ),
            DType::U16 => Numbers::Uints(all(array, |x: u16| x as u64)),
            DType::U32 => Numbers::Uints(all(array, |x: u32| x as u64)),
            DType::U64 => Numbers::Uints(all(array, |x: u64| x)),
            DType::F64 => Numbers::F64(all(array, |x: f64| x)),
            DType::F32 => Numbers::F32(all(array, |x: f32| x)),
            DType::BF16 => {
                let bits = all(array, |x: bf16| x.to_bits());
                Numbers::Narrow(all(array, |x: bf16| x.to_f32()), bits, DType::BF16)
            }
            DType::F16 => {
                let bits = all(array, |x: f16| x.to_bits());
                Numbers::Narrow(all(array, |x: f16| x.to_f32()), bits, DType::F16)
            }
            dtype @ (DType::F8E4M3FN | DType::F8E5M2 | DType::F4E2M1FN) => {
                let bits: Vec<u8> = array.unpack_u8().map(|v| v.into_owned()).unwrap_or_default();
                let value = |&bits: &u8| match dtype {
                    DType::F8E4M3FN => F8E4M3FN(bits).to_f32(),
                    DType::F8E5M2 => F8E5M2(bits).to_f32(),
                    _ => F4E2M1FN(bits).to_f32(),
                };
                Numbers::Narrow(
                    bits.iter().map(value).collect(),
                    bits.iter().map(|&b| b as u16).collect(),
                    dtype,
                )
            }
        }
    }

    fn write(&self, out: &mut String, index: usize) {
        let _ = match self {
            Numbers::Ints(v) => write!(out, "{}", v[index]),
            Numbers::Uints(v) => write!(out, "{}", v[index]),
            Numbers::Bools(v, true) => write!(out, "{}", v[index]),
            Numbers::Bools(v, false) => write!(out, "{}", u8::from(v[index])),
            Numbers::F64(v) => {
                let x = v[index];
                write_float(out, x.is_nan(), x.is_sign_negative(), nan_payload(DType::F64, x.to_bits()), x)
            }
            Numbers::F32(v) => {
                let x = v[index];
                let payload = nan_payload(DType::F32, x.to_bits() as u64);
                write_float(out, x.is_nan(), x.is_sign_negative(), payload, x)
            }
            Numbers::Narrow(v, bits, dtype) => {
                let (x, bits) = (v[index], bits[index] as u64);
                let negative = bits >> (dtype.bits() - 1) & 1 == 1;
                write_float(out, x.is_nan(), negative, nan_payload(*dtype, bits), x)
            }
        };
    }
}

/// Bits of the mantissa that are stored.
fn mantissa_bits(dtype: DType) -> u32 {
    match dtype {
        DType::F64 => 52,
        DType::F32 => 23,
        DType::BF16 => 7,
        DType::F16 => 10,
        DType::F8E4M3FN => 3,
        DType::F8E5M2 => 2,
        _ => 1,
    }
}

/// The mantissa's bits of the NaN that is written as `nan` alone.
fn usual_payload(dtype: DType) -> u64 {
    let bits = mantissa_bits(dtype);
    // The only NaN of e4m3fn has all bits set.
    if dtype == DType::F8E4M3FN { (1 << bits) - 1 } else { 1 << (bits - 1) }
}

/// The mantissa's bits when they are not the usual NaN's.
fn nan_payload(dtype: DType, bits: u64) -> Option<u64> {
    let payload = bits & ((1 << mantissa_bits(dtype)) - 1);
    (payload != usual_payload(dtype)).then_some(payload)
}

fn write_float<T: std::fmt::LowerExp + std::fmt::Debug>(
    out: &mut String,
    nan: bool,
    negative: bool,
    payload: Option<u64>,
    x: T,
) -> std::fmt::Result {
    if !nan {
        // Rust's shortest digits read back to the same number; `-0.0` keeps its sign.
        let text = format!("{x:?}");
        return out.write_str(text.strip_suffix(".0").unwrap_or(&text));
    }
    out.write_str(if negative { "-nan" } else { "nan" })?;
    match payload {
        Some(payload) => write!(out, "(0x{payload:x})"),
        None => Ok(()),
    }
}

/// Reads what stands between the parentheses of `constant(…)`.
pub(super) fn read_constant(s: &mut Scanner<'_>, ty: &ArrayType) -> Result<Array, Fault> {
    let at = s.position();
    let count = element_count(&ty.shape).ok_or_else(|| s.fault_at(at, format!("{ty} is too large")))?;
    let mut words: Vec<(usize, &str)> = Vec::new();
    let mut depth = 0usize;
    loop {
        if s.eat('{') {
            depth += 1;
            if depth > ty.shape.len() {
                return Err(s.fault(format!("a brace too many for a constant of {ty}")));
            }
        } else if depth > 0 && s.eat('}') {
            depth -= 1;
            if depth == 0 {
                break;
            }
        } else if depth > 0 && s.eat(',') {
        } else {
            let at = s.position();
            let word = s.number()?;
            if word == "..." {
                return Err(s.fault_at(at, "the constant's elements were left out of the text".into()));
            }
            if depth != ty.shape.len() {
                return Err(s.fault_at(at, format!("a number under {depth} braces in a constant of {ty}")));
            }
            if words.len() == count {
                return Err(s.fault_at(at, format!("more than {count} numbers for a constant of {ty}")));
            }
            words.push((at, word));
            if depth == 0 {
                break;
            }
        }
    }
    if words.len() != count {
        return Err(s.fault(format!("{} numbers for a constant of {ty}, expected {count}", words.len())));
    }
    from_words(s, ty, &words)
}

fn from_words(s: &Scanner<'_>, ty: &ArrayType, words: &[(usize, &str)]) -> Result<Array, Fault> {
    let dtype = ty.dtype;
    let wrong = |at: usize, word: &str| s.fault_at(at, format!("`{word}` is no {dtype}"));
    let array = if dtype == DType::Pred || dtype.is_int() {
        let bounds = dtype.int_bounds().unwrap_or((0, 1));
        let parse = |&(at, word): &(usize, &str)| {
            let value = match word {
                "true" => Some(1),
                "false" => Some(0),
                _ => word.parse::<i128>().ok(),
            };
            value.filter(|v| (bounds.0..=bounds.1).contains(v)).ok_or_else(|| wrong(at, word))
        };
        let values = words.iter().map(parse).collect::<Result<Vec<i128>, _>>()?;
        if dtype == DType::U64 {
            Array::from_vec(&ty.shape, values.into_iter().map(|v| v as u64).collect())
        } else if dtype == DType::Pred {
            Array::from_vec(&ty.shape, values.into_iter().map(|v| qwix_array::Pred(v as u8)).collect())
        } else {
            Array::from_i64(dtype, &ty.shape, &values.into_iter().map(|v| v as i64).collect::<Vec<_>>())
        }
    } else {
        let parse = |&(at, word): &(usize, &str)| float_bits(dtype, word).ok_or_else(|| wrong(at, word));
        let bits = words.iter().map(parse).collect::<Result<Vec<u64>, _>>()?;
        match dtype.bits() {
            64 => Array::from_bytes(dtype, &ty.shape, bits.into_iter().flat_map(u64::to_le_bytes).collect()),
            32 => {
                let bytes = bits.into_iter().flat_map(|b| (b as u32).to_le_bytes()).collect();
                Array::from_bytes(dtype, &ty.shape, bytes)
            }
            16 => {
                let bytes = bits.into_iter().flat_map(|b| (b as u16).to_le_bytes()).collect();
                Array::from_bytes(dtype, &ty.shape, bytes)
            }
            _ => Array::pack(dtype, &ty.shape, &bits.into_iter().map(|b| b as u8).collect::<Vec<_>>()),
        }
    };
    array.map_err(|error| s.fault(error.to_string()))
}

/// The bits of the float that a word stands for.
fn float_bits(dtype: DType, word: &str) -> Option<u64> {
    let (negative, unsigned) = match word.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, word),
    };
    let sign = (negative as u64) << (dtype.bits() - 1);
    if let Some(payload) = unsigned.strip_prefix("nan") {
        let mantissa = mantissa_bits(dtype);
        let payload = match payload.strip_prefix("(0x").and_then(|p| p.strip_suffix(')')) {
            Some(hex) => u64::from_str_radix(hex, 16).ok()?,
            None if payload.is_empty() => usual_payload(dtype),
            None => return None,
        };
        if payload == 0 || payload >> mantissa != 0 || dtype == DType::F4E2M1FN {
            return None;
        }
        let exponent_bits = dtype.bits() as u32 - 1 - mantissa;
        return Some(sign | ((1u64 << exponent_bits) - 1) << mantissa | payload);
    }
    // Rust reads more words than HLO has: `infinity`, `+1`.
    let digits = unsigned == "inf" || unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.');
    if !digits {
        return None;
    }
    if dtype == DType::F32 {
        return word.parse::<f32>().ok().map(|x| x.to_bits() as u64);
    }
    let x: f64 = dtype.round(word.parse().ok()?);
    Some(match dtype {
        DType::F64 => x.to_bits(),
        DType::BF16 => bf16::from_f64(x).to_bits() as u64,
        DType::F16 => f16::from_f64(x).to_bits() as u64,
        DType::F8E4M3FN => F8E4M3FN::from_f64(x).0 as u64,
        DType::F8E5M2 => F8E5M2::from_f64(x).0 as u64,
        _ => F4E2M1FN::from_f64(x).0 as u64,
    })
}
