//! Arrays to quantized arrays and back: Qwix's `quantize` and `dequantize`.

use qwix_array::{Array, DType, F4E2M1FN, F8E4M3FN, F8E5M2, bf16, f16};

use crate::kernel::{CHUNK, Real, Wide, encode_codebook, encode_float, encode_int16};
use crate::runs::Runs;
use crate::scale::scale_zero_point;
use crate::{Arithmetic, Codec, HowToQuantize, QArray, QType, QuantError};

/// Quantizes an array into the range of its own values, as Qwix does eagerly: this is how weights are quantized.
///
/// The scale is of the array's dtype, and all arithmetic is done in it. NaN and infinities are not refused here; see
/// [`check_finite`](crate::check_finite).
///
/// # Errors
/// When the dtype cannot be quantized or `how` does not fit the shape.
pub fn quantize(array: &Array, how: &HowToQuantize) -> Result<QArray, QuantError> {
    quantize_as(array, how, Arithmetic::Eager)
}

/// As [`quantize`], with the scales that XLA computes in the given way.
///
/// # Errors
/// As [`quantize`].
pub fn quantize_as(array: &Array, how: &HowToQuantize, arithmetic: Arithmetic) -> Result<QArray, QuantError> {
    let (scale, zero_point) = scale_zero_point(array, how, arithmetic)?;
    quantize_with_scale_zero_point(array, how.qtype, &scale, zero_point.as_ref())
}

/// Quantizes with a scale and zero point that are known: convert(x / scale + zero_point).
///
/// The scale is converted to the array's dtype. The division is one only where scale and array have the same shape;
/// otherwise it is a product with the scale's reciprocal (which amounts to a division in bf16), as XLA computes it. A
/// scale beyond 2^126 has a subnormal reciprocal, which XLA flushes: everything becomes 0.
///
/// # Errors
/// When the dtype cannot be quantized, or scale and zero point do not divide the array's shape.
pub fn quantize_with_scale_zero_point(
    array: &Array,
    qtype: &'static QType,
    scale: &Array,
    zero_point: Option<&Array>,
) -> Result<QArray, QuantError> {
    let scale = scale.convert(array.dtype());
    let elementwise = scale.shape() == array.shape();
    let qvalue = encode_with(array, qtype, &scale, zero_point, elementwise)?;
    QArray::new(qvalue, scale, zero_point.cloned(), qtype)
}

/// The stored values. `elementwise` says whether the whole array, of which this may be a piece, has a scale for every
/// element. The scale is of the array's dtype.
pub(crate) fn encode_with(
    array: &Array,
    qtype: &'static QType,
    scale: &Array,
    zero_point: Option<&Array>,
    elementwise: bool,
) -> Result<Array, QuantError> {
    if let Some(zero_point) = zero_point
        && zero_point.shape() != scale.shape()
    {
        return Err(QuantError::Invalid(format!(
            "the zero point should have the scale's shape {:?}, found {:?}",
            scale.shape(),
            zero_point.shape()
        )));
    }
    match array.dtype() {
        DType::F32 => encode::<f32>(array, qtype, scale, zero_point, elementwise),
        DType::F64 => encode::<f64>(array, qtype, scale, zero_point, elementwise),
        DType::BF16 => encode::<bf16>(array, qtype, scale, zero_point, elementwise),
        DType::F16 => encode::<f16>(array, qtype, scale, zero_point, elementwise),
        dtype => Err(QuantError::NotFloat { dtype }),
    }
}

fn runs(shape: &[usize], scale: &[usize]) -> Result<Runs, QuantError> {
    Runs::new(shape, scale)
        .ok_or_else(|| QuantError::Invalid(format!("a scale of shape {scale:?} does not divide {shape:?}")))
}

fn reals<R: Real>(array: &Array) -> Vec<R> {
    array.to_f64_vec().into_iter().map(R::from_f64).collect()
}

/// 1 / scale, subnormal f32 and f64 results flushed to 0 as XLA's CPU backend does.
fn reciprocals<T: Wide>(scale: &[T::Real]) -> Vec<T::Real> {
    let one = T::Real::from_f64(1.0);
    let smallest = T::Real::from_f64(if size_of::<T::Real>() == 4 {
        f32::MIN_POSITIVE as f64
    } else {
        f64::MIN_POSITIVE
    });
    let zero = T::Real::ZERO;
    let mut reciprocals: Vec<T::Real> = scale
        .iter()
        .map(|&scale| {
            let r = one.divide(scale);
            if r < smallest && r > zero - smallest { zero } else { r }
        })
        .collect();
    T::round_reciprocals(&mut reciprocals);
    reciprocals
}

fn encode<T: Wide>(
    array: &Array,
    qtype: &QType,
    scale: &Array,
    zero_point: Option<&Array>,
    elementwise: bool,
) -> Result<Array, QuantError> {
    let shape = array.shape();
    let real = T::Real::from_f64;
    let source = Scaled::<T> {
        values: &array.values::<T>()?,
        runs: runs(shape, scale.shape())?,
        divide: elementwise,
        scale: reals(scale),
        zero_point: zero_point.map(|z| reals(&z.convert(array.dtype()))),
    };
    if qtype.storage.bits() > 8 {
        let Codec::Int { min, max } = qtype.codec else {
            return Err(QuantError::Invalid(format!("{qtype} cannot be stored as {}", qtype.storage)));
        };
        let mut wide = Vec::with_capacity(array.len());
        source.for_each_chunk(|values| encode_int16(values, real(min as f64), real(max as f64), &mut wide));
        return Ok(Array::from_vec(shape, wide)?);
    }
    let bytes = qtype.storage.byte_len(array.len()).unwrap_or(0);
    let mut out = Codes { bytes: vec![0; bytes], packed: qtype.storage.is_packed(), done: 0 };
    let max = real(qtype.symmetric_bound);
    match (qtype.codec, qtype.storage) {
        (Codec::Int { min, max }, _) => {
            let (min, max) = (real(min as f64), real(max as f64));
            source.for_each_chunk(|values| {
                out.put(values.len(), |codes| T::Real::encode_int8(values, min, max, codes))
            });
        }
        (Codec::Float, DType::F8E4M3FN) => source.for_each_chunk(|values| {
            out.put(values.len(), |codes| encode_float(values, max, T::Real::to_e4m3, codes));
        }),
        (Codec::Float, DType::F8E5M2) => source.for_each_chunk(|values| {
            out.put(values.len(), |codes| encode_float(values, max, T::Real::to_e5m2, codes));
        }),
        (Codec::Float, DType::F4E2M1FN) => source.for_each_chunk(|values| {
            out.put(values.len(), |codes| encode_float(values, max, T::Real::to_e2m1, codes));
        }),
        (Codec::Float, storage) => {
            return Err(QuantError::Invalid(format!("{qtype} cannot be stored as {storage}")));
        }
        (Codec::Codebook(codebook), _) => {
            let steps = T::Real::steps(codebook);
            source.for_each_chunk(|values| {
                out.put(values.len(), |codes| encode_codebook(values, codebook, &steps, codes));
            });
        }
    }
    Ok(Array::from_bytes(qtype.storage, shape, out.bytes)?)
}

/// Codes of at most eight bits, stored a byte each or packed.
struct Codes {
    bytes: Vec<u8>,
    packed: bool,
    /// How many there are.
    done: usize,
}

impl Codes {
    /// Adds so many codes, at most a chunk; all chunks but the last have an even number.
    fn put(&mut self, count: usize, encode: impl FnOnce(&mut [u8])) {
        if self.packed {
            let mut codes = [0; CHUNK];
            encode(&mut codes[..count]);
            qwix_simd::pack_nibbles(&codes[..count], &mut self.bytes[self.done / 2..]);
        } else {
            encode(&mut self.bytes[self.done..self.done + count]);
        }
        self.done += count;
    }
}

/// An array that is scaled while it is read.
struct Scaled<'a, T: Wide> {
    values: &'a [T],
    runs: Runs,
    divide: bool,
    scale: Vec<T::Real>,
    zero_point: Option<Vec<T::Real>>,
}

impl<T: Wide> Scaled<'_, T> {
    /// Hands over x / scale + zero_point, rounded after each step, `CHUNK` elements at a time and in order.
    fn for_each_chunk(&self, mut emit: impl FnMut(&[T::Real])) {
        let factors = if self.divide { self.scale.clone() } else { reciprocals::<T>(&self.scale) };
        let mut chunk = Chunk::<T::Real>::default();
        let finish = |chunk: &mut Chunk<T::Real>, emit: &mut dyn FnMut(&[T::Real])| {
            let values = &mut chunk.values[..chunk.len];
            T::round(values);
            if self.zero_point.is_some() {
                for (x, z) in values.iter_mut().zip(&chunk.offsets) {
                    *x = *x + *z;
                }
                T::round(values);
            }
            emit(values);
            chunk.len = 0;
        };
        self.runs.for_each(|start, entry| {
            let mut done = 0;
            while done < self.runs.len {
                let n = (self.runs.len - done).min(CHUNK - chunk.len);
                let at = chunk.len;
                let to = &mut chunk.values[at..at + n];
                T::load(&self.values[start + done..start + done + n], to);
                if self.runs.each {
                    let at_entry = entry + done..entry + done + n;
                    if self.divide {
                        to.iter_mut().zip(&factors[at_entry.clone()]).for_each(|(x, f)| *x = x.divide(*f));
                    } else {
                        T::Real::scale_each(to, &factors[at_entry.clone()]);
                    }
                    if let Some(zero_point) = &self.zero_point {
                        chunk.offsets[at..at + n].copy_from_slice(&zero_point[at_entry]);
                    }
                } else {
                    let factor = factors[entry];
                    if self.divide {
                        to.iter_mut().for_each(|x| *x = x.divide(factor));
                    } else {
                        T::Real::scale(to, factor);
                    }
                    if let Some(zero_point) = &self.zero_point {
                        chunk.offsets[at..at + n].fill(zero_point[entry]);
                    }
                }
                chunk.len += n;
                done += n;
                if chunk.len == CHUNK {
                    finish(&mut chunk, &mut emit);
                }
            }
        });
        if chunk.len > 0 {
            finish(&mut chunk, &mut emit);
        }
    }
}

/// Elements on their way, and what is to be added to (or taken from) and multiplied with each.
struct Chunk<R> {
    values: [R; CHUNK],
    offsets: [R; CHUNK],
    len: usize,
}

impl<R: Real> Default for Chunk<R> {
    fn default() -> Self {
        Chunk { values: [R::ZERO; CHUNK], offsets: [R::ZERO; CHUNK], len: 0 }
    }
}

/// The array that a quantized array stands for: (qvalue − zero_point) · scale in the scale's dtype, rounded after each
/// step.
///
/// # Errors
/// Never for a [`QArray`] that was made by its constructor.
pub fn dequantize(array: &QArray) -> Result<Array, QuantError> {
    match array.dtype() {
        DType::F32 => decode::<f32>(array),
        DType::F64 => decode::<f64>(array),
        DType::BF16 => decode::<bf16>(array),
        DType::F16 => decode::<f16>(array),
        dtype => Err(QuantError::NotFloat { dtype }),
    }
}

/// The number that each code of at most eight bits stands for.
fn meanings(qtype: &QType) -> [f32; 256] {
    let shift = 8 - qtype.storage.bits().min(8);
    std::array::from_fn(|code| {
        let code = code as u8;
        match qtype.codec {
            Codec::Int { .. } => (((code << shift) as i8) >> shift) as f32,
            Codec::Codebook(values) => values.get(code as usize).copied().unwrap_or(0.0),
            Codec::Float => match qtype.storage {
                DType::F8E4M3FN => F8E4M3FN(code).to_f32(),
                DType::F8E5M2 => F8E5M2(code).to_f32(),
                _ => F4E2M1FN(code).to_f32(),
            },
        }
    })
}

fn decode<T: Wide>(array: &QArray) -> Result<Array, QuantError> {
    let shape = array.shape();
    let qvalue = array.qvalue();
    let scale: Vec<T::Real> = reals(array.scale());
    let runs = runs(shape, array.scale().shape())?;
    // A zero point may have another shape than the scale; it is brought to the scale's walk by its own.
    let zero_point = match array.zero_point() {
        None => None,
        Some(z) if z.shape() == array.scale().shape() => {
            Some((reals::<T::Real>(&z.convert(array.dtype())), None))
        }
        Some(z) => {
            let mut own = vec![0u32; qvalue.len()];
            let walk = self::runs(shape, z.shape())?;
            walk.for_each(|start, entry| {
                for i in 0..walk.len {
                    own[start + i] = (if walk.each { entry + i } else { entry }) as u32;
                }
            });
            Some((reals::<T::Real>(&z.convert(array.dtype())), Some(own)))
        }
    };
    let codes = if qvalue.dtype().bits() <= 8 { Some(qvalue.unpack_u8()?) } else { None };
    let wide = if codes.is_none() { Some(qvalue.values::<i16>()?) } else { None };
    let mut table = meanings(array.qtype()).map(|x| T::Real::from_f64(x as f64));
    T::round(&mut table);
    let read = |from: usize, to: &mut [T::Real]| {
        if let Some(codes) = &codes {
            to.iter_mut().zip(&codes[from..]).for_each(|(to, &code)| *to = table[code as usize]);
        } else if let Some(wide) = &wide {
            to.iter_mut().zip(&wide[from..]).for_each(|(to, &x)| *to = T::Real::from_f64(x as f64));
            T::round(to);
        }
    };
    let mut out: Vec<T> = Vec::with_capacity(qvalue.len());
    let mut chunk = Chunk::<T::Real>::default();
    // Scales and zero points of the chunk's elements.
    let mut scales = [T::Real::ZERO; CHUNK];
    let mut first = 0;
    let mut finish = |chunk: &mut Chunk<T::Real>, scales: &[T::Real]| {
        let values = &mut chunk.values[..chunk.len];
        read(first, values);
        if zero_point.is_some() {
            values.iter_mut().zip(&chunk.offsets).for_each(|(x, z)| *x = *x - *z);
            T::round(values);
        }
        values.iter_mut().zip(scales).for_each(|(x, s)| *x = *x * *s);
        T::round(values);
        T::store(values, &mut out);
        first += chunk.len;
        chunk.len = 0;
    };
    runs.for_each(|start, entry| {
        let mut done = 0;
        while done < runs.len {
            let at = chunk.len;
            let n = (runs.len - done).min(CHUNK - at);
            if runs.each {
                scales[at..at + n].copy_from_slice(&scale[entry + done..entry + done + n]);
            } else {
                scales[at..at + n].fill(scale[entry]);
            }
            match &zero_point {
                None => {}
                Some((z, Some(own))) => {
                    let own = &own[start + done..start + done + n];
                    chunk.offsets[at..at + n].iter_mut().zip(own).for_each(|(to, &i)| *to = z[i as usize]);
                }
                Some((z, None)) if runs.each => {
                    chunk.offsets[at..at + n].copy_from_slice(&z[entry + done..entry + done + n]);
                }
                Some((z, None)) => chunk.offsets[at..at + n].fill(z[entry]),
            }
            chunk.len += n;
            done += n;
            if chunk.len == CHUNK {
                finish(&mut chunk, &scales);
            }
        }
    });
    if chunk.len > 0 {
        finish(&mut chunk, &scales);
    }
    Ok(Array::from_vec(shape, out)?)
}
