//! Reads goldens, and says how far apart arrays are.

// Every test uses a part of this.
#![allow(dead_code)]

use std::path::{Path, PathBuf};

use qwix_array::{Array, DType};
use qwix_graph::{ArrayType, Type};
use safetensors::{Dtype, SafeTensors};

/// The folder of the goldens.
pub fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens")
}

/// A file of tensors.
pub struct Tensors(Vec<u8>);

impl Tensors {
    pub fn open(path: &Path) -> Tensors {
        Tensors(std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
    }

    /// The names of all tensors.
    pub fn keys(&self) -> Vec<String> {
        self.view().names().into_iter().map(str::to_owned).collect()
    }

    fn view(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.0).unwrap()
    }

    /// A tensor as an array of the true dtype: 4-bit and 2-bit integers come as bytes, fp8 and fp4 as f32.
    pub fn array(&self, key: &str, ty: &Type) -> Array {
        let Type::Array(ArrayType { dtype, shape }) = ty else { panic!("{key}: {ty} is no array") };
        let view = self.view();
        let tensor = view.tensor(key).unwrap_or_else(|e| panic!("{key}: {e}"));
        assert_eq!(tensor.shape(), shape, "{key}");
        let stored = match tensor.dtype() {
            Dtype::BOOL => DType::Pred,
            Dtype::I8 => DType::S8,
            Dtype::I16 => DType::S16,
            Dtype::I32 => DType::S32,
            Dtype::I64 => DType::S64,
            Dtype::U8 => DType::U8,
            Dtype::U16 => DType::U16,
            Dtype::U32 => DType::U32,
            Dtype::U64 => DType::U64,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            Dtype::F32 => DType::F32,
            Dtype::F64 => DType::F64,
            other => panic!("{key}: {other:?}"),
        };
        Array::from_bytes(stored, shape, tensor.data().to_vec()).unwrap().convert(*dtype)
    }
}

/// The place of a float in the order of its dtype's values: neighbours differ by 1. 0 and −0 are both 0.
fn place(dtype: DType, bits: u64) -> i64 {
    let sign = 1u64 << (dtype.bits() - 1);
    let magnitude = (bits & (sign - 1)) as i64;
    if bits & sign == 0 { magnitude } else { -magnitude }
}

fn bits(array: &Array) -> Vec<u64> {
    let width = array.dtype().bits();
    if width < 8 {
        return array.unpack_u8().unwrap().iter().map(|&b| b.into()).collect();
    }
    let extend = |chunk: &[u8]| chunk.iter().rev().fold(0u64, |bits, &b| bits << 8 | u64::from(b));
    array.bytes().chunks_exact(width / 8).map(extend).collect()
}

/// How far one array is from another.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub struct Difference {
    /// Units in the last place, at most; for integers the number of elements that differ.
    pub ulp: u64,
    /// Largest difference over largest value.
    pub relative: f64,
    /// Elements that are 0 here and −0 there, or NaN here and not there.
    pub kind: usize,
    /// The place of the worst element.
    pub at: usize,
}

/// Compares arrays of one type. Where a 0 is wanted, a subnormal number (or one of which half is subnormal) is as good:
/// the goldens were made with subnormal results flushed to 0, those of steps on the way included.
pub fn difference(found: &Array, want: &Array) -> Difference {
    assert_eq!((found.dtype(), found.shape()), (want.dtype(), want.shape()));
    let dtype = found.dtype();
    let (a, b) = (bits(found), bits(want));
    let mut worst = Difference::default();
    if !dtype.is_float() {
        for (i, _) in a.iter().zip(&b).enumerate().filter(|(_, (a, b))| a != b) {
            worst = Difference { ulp: worst.ulp + 1, relative: f64::INFINITY, kind: 0, at: i };
        }
        return worst;
    }
    let (x, y) = (found.to_f64_vec(), want.to_f64_vec());
    let flushed = match dtype {
        DType::F32 | DType::BF16 => 2.0 * f64::from(f32::MIN_POSITIVE),
        DType::F64 => 2.0 * f64::MIN_POSITIVE,
        _ => 0.0,
    };
    let scale = y.iter().filter(|y| y.is_finite()).fold(0f64, |m, y| m.max(y.abs()));
    for i in 0..x.len() {
        let flushes = y[i] == 0.0 && x[i] != 0.0 && x[i].abs() < flushed;
        if x[i].is_nan() && y[i].is_nan() || flushes {
            continue;
        }
        if x[i].is_nan() != y[i].is_nan() || x[i] == y[i] && a[i] != b[i] {
            worst.kind += 1;
            worst.at = i;
            continue;
        }
        let ulp = place(dtype, a[i]).abs_diff(place(dtype, b[i]));
        if ulp > worst.ulp {
            (worst.ulp, worst.at) = (ulp, i);
        }
        let apart = (x[i] - y[i]).abs();
        if apart > 0.0 {
            worst.relative = worst.relative.max(apart / scale);
        }
    }
    worst
}
