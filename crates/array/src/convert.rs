//! Conversions between dtypes, with the rounding that XLA's CPU backend uses.
//!
//! Elements go through one of four wide types that hold them exactly, a chunk at a time: f32 for floats up to 32
//! bits, f64, i64 for integers and booleans, u64.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::float::{bf16_from_f64, f16_from_f64};
use crate::{Array, ArrayError, DType, F4E2M1FN, F8E4M3FN, F8E5M2, Pred};

/// Elements per chunk; a multiple of eight, so that chunks of packed dtypes begin at a byte.
const CHUNK: usize = 1024;

/// A chunk of elements in a type that holds them exactly.
enum Wide<'a> {
    F32(&'a [f32]),
    F64(&'a [f64]),
    I64(&'a [i64]),
    U64(&'a [u64]),
}

/// What a conversion writes.
trait Target: Copy {
    fn from_f32(x: f32) -> Self;
    fn from_f64(x: f64) -> Self;
    fn from_i64(x: i64) -> Self;
    fn from_u64(x: u64) -> Self;

    fn write(wide: &Wide<'_>, out: &mut Vec<Self>) {
        match wide {
            Wide::F32(xs) => out.extend(xs.iter().map(|&x| Self::from_f32(x))),
            Wide::F64(xs) => out.extend(xs.iter().map(|&x| Self::from_f64(x))),
            Wide::I64(xs) => out.extend(xs.iter().map(|&x| Self::from_i64(x))),
            Wide::U64(xs) => out.extend(xs.iter().map(|&x| Self::from_u64(x))),
        }
    }
}

macro_rules! int_targets {
    ($($int:ty),*) => {$(
        // Floats: toward zero, saturating, NaN to 0, which is what Rust's `as` does. Integers wrap.
        impl Target for $int {
            #[inline]
            fn from_f32(x: f32) -> Self { x as $int }
            #[inline]
            fn from_f64(x: f64) -> Self { x as $int }
            #[inline]
            fn from_i64(x: i64) -> Self { x as $int }
            #[inline]
            fn from_u64(x: u64) -> Self { x as $int }
        }
    )*};
}

int_targets!(i8, i16, i32, i64, u8, u16, u32, u64);

macro_rules! narrow_int_targets {
    ($($name:ident: $int:ty, $min:literal, $max:literal);*) => {$(
        /// A code of a packed integer in a byte.
        #[derive(Clone, Copy)]
        struct $name(u8);

        impl Target for $name {
            #[inline]
            fn from_f32(x: f32) -> Self { $name((x as $int).clamp($min, $max) as u8) }
            #[inline]
            fn from_f64(x: f64) -> Self { $name((x as $int).clamp($min, $max) as u8) }
            #[inline]
            fn from_i64(x: i64) -> Self { $name(x as u8) }
            #[inline]
            fn from_u64(x: u64) -> Self { $name(x as u8) }
        }
    )*};
}

narrow_int_targets!(Int2: i8, -2, 1; Int4: i8, -8, 7; UInt4: u8, 0, 15);

macro_rules! float_targets {
    ($($float:ty: $from_f32:expr, $from_f64:expr);*) => {$(
        // Integers go through f32, as in XLA.
        impl Target for $float {
            #[inline]
            fn from_f32(x: f32) -> Self { $from_f32(x) }
            #[inline]
            fn from_f64(x: f64) -> Self { $from_f64(x) }
            #[inline]
            fn from_i64(x: i64) -> Self { $from_f32(x as f32) }
            #[inline]
            fn from_u64(x: u64) -> Self { $from_f32(x as f32) }
        }
    )*};
}

float_targets! {
    f32: |x| x, |x| x as f32;
    // XLA rounds f64 to f32 first.
    bf16: bf16::from_f32, |x| bf16::from_f32(x as f32);
    F8E4M3FN: F8E4M3FN::from_f32, F8E4M3FN::from_f64;
    F8E5M2: F8E5M2::from_f32, F8E5M2::from_f64;
    F4E2M1FN: F4E2M1FN::from_f32, F4E2M1FN::from_f64
}

impl Target for f16 {
    fn from_f32(x: f32) -> Self {
        f16::from_f32(x)
    }

    // XLA rounds to f32 first.
    fn from_f64(x: f64) -> Self {
        f16::from_f32(x as f32)
    }

    fn from_i64(x: i64) -> Self {
        f16::from_f32(x as f32)
    }

    fn from_u64(x: u64) -> Self {
        f16::from_f32(x as f32)
    }

    fn write(wide: &Wide<'_>, out: &mut Vec<Self>) {
        match wide {
            Wide::F32(xs) => {
                let start = out.len();
                out.resize(start + xs.len(), f16::ZERO);
                out[start..].convert_from_f32_slice(xs);
            }
            Wide::F64(xs) => out.extend(xs.iter().map(|&x| Self::from_f64(x))),
            Wide::I64(xs) => out.extend(xs.iter().map(|&x| Self::from_i64(x))),
            Wide::U64(xs) => out.extend(xs.iter().map(|&x| Self::from_u64(x))),
        }
    }
}

impl Target for f64 {
    fn from_f32(x: f32) -> Self {
        x as f64
    }

    fn from_f64(x: f64) -> Self {
        x
    }

    fn from_i64(x: i64) -> Self {
        x as f64
    }

    fn from_u64(x: u64) -> Self {
        x as f64
    }
}

impl Target for Pred {
    fn from_f32(x: f32) -> Self {
        Pred::from(x != 0.0)
    }

    fn from_f64(x: f64) -> Self {
        Pred::from(x != 0.0)
    }

    fn from_i64(x: i64) -> Self {
        Pred::from(x != 0)
    }

    fn from_u64(x: u64) -> Self {
        Pred::from(x != 0)
    }
}

impl DType {
    /// The nearest number that a float dtype has, rounded once and to even on ties, as [`Array::from_f64`] would store
    /// it; for other dtypes the number itself.
    pub fn round(self, x: f64) -> f64 {
        match self {
            DType::F16 => f16_from_f64(x).to_f64(),
            DType::BF16 => bf16_from_f64(x).to_f64(),
            DType::F32 => x as f32 as f64,
            DType::F8E4M3FN => F8E4M3FN::from_f64(x).to_f32() as f64,
            DType::F8E5M2 => F8E5M2::from_f64(x).to_f32() as f64,
            DType::F4E2M1FN => F4E2M1FN::from_f64(x).to_f32() as f64,
            DType::F64 | DType::Pred => x,
            DType::S2 | DType::S4 | DType::S8 | DType::S16 | DType::S32 | DType::S64 => x,
            DType::U4 | DType::U8 | DType::U16 | DType::U32 | DType::U64 => x,
        }
    }
}

impl Array {
    /// The same numbers in another dtype, as XLA's CPU backend converts them.
    ///
    /// Floats to integers go toward zero and saturate, NaN becomes 0. Floats to floats round to nearest even (f64 to
    /// f16 or bf16 by way of f32); what does not fit becomes infinity, in e4m3fn NaN, in e2m1fn ±6. Integers to
    /// integers wrap. Anything but 0 is true.
    pub fn convert(&self, dtype: DType) -> Array {
        if dtype == self.dtype() {
            return self.clone();
        }
        let array = match dtype {
            DType::Pred => self.to_elements::<Pred>(),
            DType::S8 => self.to_elements::<i8>(),
            DType::S16 => self.to_elements::<i16>(),
            DType::S32 => self.to_elements::<i32>(),
            DType::S64 => self.to_elements::<i64>(),
            DType::U8 => self.to_elements::<u8>(),
            DType::U16 => self.to_elements::<u16>(),
            DType::U32 => self.to_elements::<u32>(),
            DType::U64 => self.to_elements::<u64>(),
            DType::F16 => self.to_elements::<f16>(),
            DType::BF16 => self.to_elements::<bf16>(),
            DType::F32 => self.to_elements::<f32>(),
            DType::F64 => self.to_elements::<f64>(),
            DType::F8E4M3FN => self.to_elements::<F8E4M3FN>(),
            DType::F8E5M2 => self.to_elements::<F8E5M2>(),
            DType::S2 => self.to_codes(dtype, |x: Int2| x.0),
            DType::S4 => self.to_codes(dtype, |x: Int4| x.0),
            DType::U4 => self.to_codes(dtype, |x: UInt4| x.0),
            DType::F4E2M1FN => self.to_codes(dtype, |x: F4E2M1FN| x.0),
        };
        // The shape is this array's own, so there is nothing that could fail.
        array.unwrap_or_else(|_| self.clone())
    }

    /// The same numbers in another dtype, when it has them all.
    pub fn convert_exactly(&self, dtype: DType) -> Option<Array> {
        let converted = self.convert(dtype);
        (dtype == self.dtype() || converted.convert(self.dtype()) == *self).then_some(converted)
    }

    fn to_elements<T: Target + crate::Element>(&self) -> Result<Array, ArrayError> {
        Array::from_vec(self.shape(), self.to_vec::<T>())
    }

    fn to_codes<T: Target>(&self, dtype: DType, code: impl Fn(T) -> u8) -> Result<Array, ArrayError> {
        let codes: Vec<u8> = self.to_vec::<T>().into_iter().map(code).collect();
        Array::pack(dtype, self.shape(), &codes)
    }

    fn to_vec<T: Target>(&self) -> Vec<T> {
        let mut out = Vec::with_capacity(self.len());
        self.for_each_chunk(|wide| T::write(&wide, &mut out));
        out
    }

    /// The elements as f64; integers beyond 2^53 are rounded.
    pub fn to_f64_vec(&self) -> Vec<f64> {
        self.to_vec()
    }

    /// The elements as f32, rounded where they need more bits.
    pub fn to_f32_vec(&self) -> Vec<f32> {
        self.to_vec()
    }

    /// The elements as i64: floats toward zero and saturating, u64 wrapping.
    pub fn to_i64_vec(&self) -> Vec<i64> {
        self.to_vec()
    }

    /// An array of any dtype from numbers; each is rounded once (to nearest even) or, for integers, cut toward zero
    /// and saturated.
    ///
    /// # Errors
    /// When the number of values is not the shape's.
    pub fn from_f64(dtype: DType, shape: &[usize], values: &[f64]) -> Result<Array, ArrayError> {
        match dtype {
            DType::F16 => Array::from_vec(shape, values.iter().map(|&x| f16_from_f64(x)).collect()),
            DType::BF16 => Array::from_vec(shape, values.iter().map(|&x| bf16_from_f64(x)).collect()),
            _ => Ok(Array::from_vec(shape, values.to_vec())?.convert(dtype)),
        }
    }

    /// An array of any dtype from integers; they wrap where the dtype is a narrower integer.
    ///
    /// # Errors
    /// When the number of values is not the shape's.
    pub fn from_i64(dtype: DType, shape: &[usize], values: &[i64]) -> Result<Array, ArrayError> {
        Ok(Array::from_vec(shape, values.to_vec())?.convert(dtype))
    }

    /// Hands the elements over in order, up to `CHUNK` at a time.
    fn for_each_chunk(&self, mut f: impl FnMut(Wide<'_>)) {
        let bytes = self.bytes();
        let len = self.len();
        let dtype = self.dtype();
        let mut f32s = [0f32; CHUNK];
        let mut i64s = [0i64; CHUNK];
        let mut start = 0;
        while start < len {
            let n = CHUNK.min(len - start);
            let (f32s, i64s) = (&mut f32s[..n], &mut i64s[..n]);
            let bits = dtype.bits();
            let bytes = &bytes[start * bits / 8..((start + n) * bits).div_ceil(8)];
            match dtype {
                DType::Pred => fill(i64s, bytes, |[b]: [u8; 1]| (b != 0) as i64),
                DType::S8 => fill(i64s, bytes, |b| i8::from_le_bytes(b) as i64),
                DType::S16 => fill(i64s, bytes, |b| i16::from_le_bytes(b) as i64),
                DType::S32 => fill(i64s, bytes, |b| i32::from_le_bytes(b) as i64),
                DType::S64 => fill(i64s, bytes, i64::from_le_bytes),
                DType::U8 => fill(i64s, bytes, |[b]: [u8; 1]| b as i64),
                DType::U16 => fill(i64s, bytes, |b| u16::from_le_bytes(b) as i64),
                DType::U32 => fill(i64s, bytes, |b| u32::from_le_bytes(b) as i64),
                DType::S2 => fill_packed(i64s, bytes, 2, |code| ((code << 6) as i8 >> 6) as i64),
                DType::S4 => fill_packed(i64s, bytes, 4, |code| ((code << 4) as i8 >> 4) as i64),
                DType::U4 => fill_packed(i64s, bytes, 4, |code| code as i64),
                DType::U64 => {
                    let mut u64s = [0u64; CHUNK];
                    fill(&mut u64s[..n], bytes, u64::from_le_bytes);
                    f(Wide::U64(&u64s[..n]));
                    start += n;
                    continue;
                }
                DType::F64 => {
                    let mut f64s = [0f64; CHUNK];
                    fill(&mut f64s[..n], bytes, f64::from_le_bytes);
                    f(Wide::F64(&f64s[..n]));
                    start += n;
                    continue;
                }
                DType::F32 => fill(f32s, bytes, f32::from_le_bytes),
                DType::BF16 => fill(f32s, bytes, |b| f32::from_bits((u16::from_le_bytes(b) as u32) << 16)),
                DType::F16 => {
                    let mut halves = [f16::ZERO; CHUNK];
                    fill(&mut halves[..n], bytes, f16::from_le_bytes);
                    halves[..n].convert_to_f32_slice(f32s);
                }
                DType::F8E4M3FN => fill(f32s, bytes, |[b]: [u8; 1]| F8E4M3FN(b).to_f32()),
                DType::F8E5M2 => fill(f32s, bytes, |[b]: [u8; 1]| F8E5M2(b).to_f32()),
                DType::F4E2M1FN => fill_packed(f32s, bytes, 4, |code| F4E2M1FN(code).to_f32()),
            }
            f(if dtype.is_float() { Wide::F32(f32s) } else { Wide::I64(i64s) });
            start += n;
        }
    }
}

fn fill<T, const N: usize>(out: &mut [T], bytes: &[u8], read: impl Fn([u8; N]) -> T) {
    for (out, &bytes) in out.iter_mut().zip(bytes.as_chunks::<N>().0) {
        *out = read(bytes);
    }
}

fn fill_packed<T>(out: &mut [T], bytes: &[u8], bits: usize, read: impl Fn(u8) -> T) {
    let mask = (1u8 << bits) - 1;
    for (out, &byte) in out.chunks_mut(8 / bits).zip(bytes) {
        for (i, out) in out.iter_mut().enumerate() {
            *out = read(byte >> (i * bits) & mask);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// XLA's answers (jax 0.10, CPU) for numbers at the edges.
    #[test]
    fn floats_to_integers_saturate() {
        let inf = f64::INFINITY;
        let nan = f64::NAN;
        let x =
            [0.5, 1.5, 2.5, -0.5, -1.5, 3e9, -3e9, 2e19, nan, inf, -inf, 127.9, 128.0, -128.9, -129.0, 15.9];
        let rows: [(DType, [i64; 16]); 8] = [
            (DType::Pred, [1; 16]),
            (DType::S2, [0, 1, 1, 0, -1, 1, -2, 1, 0, 1, -2, 1, 1, -2, -2, 1]),
            (DType::S4, [0, 1, 2, 0, -1, 7, -8, 7, 0, 7, -8, 7, 7, -8, -8, 7]),
            (DType::U4, [0, 1, 2, 0, 0, 15, 0, 15, 0, 15, 0, 15, 15, 0, 0, 15]),
            (DType::S8, [0, 1, 2, 0, -1, 127, -128, 127, 0, 127, -128, 127, 127, -128, -128, 15]),
            (DType::U8, [0, 1, 2, 0, 0, 255, 0, 255, 0, 255, 0, 127, 128, 0, 0, 15]),
            (DType::U32, [0, 1, 2, 0, 0, 3000000000, 0, 4294967295, 0, 4294967295, 0, 127, 128, 0, 0, 15]),
            (
                DType::S32,
                [
                    0,
                    1,
                    2,
                    0,
                    -1,
                    2147483647,
                    -2147483648,
                    2147483647,
                    0,
                    2147483647,
                    -2147483648,
                    127,
                    128,
                    -128,
                    -129,
                    15,
                ],
            ),
        ];
        let x = Array::from_f64(DType::F64, &[16], &x).unwrap();
        let wrong: Vec<_> = rows
            .iter()
            .filter_map(|(dtype, want)| {
                let found = x.convert(*dtype).to_i64_vec();
                (found != want).then_some((dtype, found))
            })
            .collect();
        assert!(wrong.is_empty(), "{wrong:?}");
    }

    #[test]
    fn integers_wrap() {
        let x = Array::from_i64(DType::S32, &[5], &[-1, 8, 255, 300, -129]).unwrap();
        for (dtype, want) in [
            (DType::S2, [-1, 0, -1, 0, -1]),
            (DType::S4, [-1, -8, -1, -4, -1]),
            (DType::U4, [15, 8, 15, 12, 15]),
            (DType::S8, [-1, 8, -1, 44, 127]),
            (DType::U8, [255, 8, 255, 44, 127]),
            (DType::Pred, [1, 1, 1, 1, 1]),
        ] {
            assert_eq!(x.convert(dtype).to_i64_vec(), want, "{dtype}");
        }
    }

    #[test]
    fn every_pair_keeps_small_numbers() {
        let values = [0.0, 1.0, -2.0, -1.0, 0.0, 1.0, 1.0];
        let mut wrong = Vec::new();
        for from in DType::all() {
            let clip = |x: f64, dtype: DType| {
                if dtype == DType::Pred {
                    (x != 0.0) as i32 as f64
                } else if dtype.is_unsigned_int() {
                    x.max(0.0)
                } else {
                    x
                }
            };
            let x = Array::from_f64(from, &[7], &values).unwrap();
            for to in DType::all() {
                // Negative integers wrap into unsigned types, which is another test.
                if to.is_unsigned_int() && from.is_signed_int() {
                    continue;
                }
                let want: Vec<f64> = values.iter().map(|&v| clip(clip(v, from), to)).collect();
                let found = x.convert(to).to_f64_vec();
                if found != want {
                    wrong.push((from, to, found));
                }
            }
        }
        assert!(wrong.is_empty(), "{wrong:?}");
    }

    #[test]
    fn long_arrays_cross_chunks() {
        let values: Vec<i64> = (0..5003).map(|i| (i * 7919) % 16 - 8).collect();
        let packed = Array::from_i64(DType::S4, &[5003], &values).unwrap();
        assert_eq!(packed.bytes().len(), 2502);
        assert_eq!(packed.convert(DType::BF16).convert(DType::S4).to_i64_vec(), values);
    }
}
