//! The array itself.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::{ArrayError, DType, Element, element_count};

/// Something that owns bytes which arrays share: a vector, a mapped file, a pool.
pub trait Buffer: Send + Sync {
    /// All the bytes; the same ones on every call.
    fn bytes(&self) -> &[u8];

    /// All the bytes, to write to; `None` when they may not be written (a mapped file).
    fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        None
    }
}

struct Owned<T>(Vec<T>);

impl<T: Element> Buffer for Owned<T> {
    fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }

    fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        Some(bytemuck::cast_slice_mut(&mut self.0))
    }
}

/// A dense, row-major, immutable array. Clones share the bytes.
#[derive(Clone)]
pub struct Array {
    dtype: DType,
    shape: Vec<usize>,
    buffer: Arc<dyn Buffer>,
    range: Range<usize>,
}

impl Array {
    /// An array of one element a value, row-major.
    ///
    /// # Errors
    /// When the number of values is not the shape's.
    pub fn from_vec<T: Element>(shape: &[usize], values: Vec<T>) -> Result<Self, ArrayError> {
        let count = count(T::DTYPE, shape)?;
        if values.len() != count {
            return Err(ArrayError::WrongLength {
                dtype: T::DTYPE,
                shape: shape.to_vec(),
                unit: "elements",
                expected: count,
                found: values.len(),
            });
        }
        let range = 0..std::mem::size_of_val(values.as_slice());
        Ok(Array { dtype: T::DTYPE, shape: shape.to_vec(), buffer: Arc::new(Owned(values)), range })
    }

    /// An array of rank 0.
    pub fn scalar<T: Element>(value: T) -> Self {
        let range = 0..size_of::<T>();
        Array { dtype: T::DTYPE, shape: Vec::new(), buffer: Arc::new(Owned(vec![value])), range }
    }

    /// An array over bytes in this machine's (little-endian) order; packed dtypes are packed.
    ///
    /// # Errors
    /// When the number of bytes is not what shape and dtype need.
    pub fn from_bytes(dtype: DType, shape: &[usize], bytes: Vec<u8>) -> Result<Self, ArrayError> {
        let range = 0..bytes.len();
        Self::from_buffer(dtype, shape, Arc::new(Owned(bytes)), range)
    }

    /// An array over part of a shared buffer, without a copy.
    ///
    /// # Errors
    /// When the range is not inside the buffer or has not the length that shape and dtype need.
    pub fn from_buffer(
        dtype: DType,
        shape: &[usize],
        buffer: Arc<dyn Buffer>,
        range: Range<usize>,
    ) -> Result<Self, ArrayError> {
        let expected = byte_len(dtype, shape)?;
        let inside = buffer.bytes().get(range.clone());
        let found = inside.map_or(0, <[u8]>::len);
        if inside.is_none() || found != expected {
            return Err(ArrayError::WrongLength {
                dtype,
                shape: shape.to_vec(),
                unit: "bytes",
                expected,
                found,
            });
        }
        Ok(Array { dtype, shape: shape.to_vec(), buffer, range })
    }

    /// Packs one value a byte (the low bits count) into an array of a dtype narrower than a byte,
    /// or stores the bytes as they are for an 8-bit dtype.
    ///
    /// # Errors
    /// When the number of values is not the shape's, or the dtype is wider than a byte.
    pub fn pack(dtype: DType, shape: &[usize], values: &[u8]) -> Result<Self, ArrayError> {
        if dtype.bits() > 8 {
            return Err(ArrayError::WrongDType { expected: DType::U8, found: dtype });
        }
        let expected = count(dtype, shape)?;
        if values.len() != expected {
            return Err(ArrayError::WrongLength {
                dtype,
                shape: shape.to_vec(),
                unit: "elements",
                expected,
                found: values.len(),
            });
        }
        let bits = dtype.bits();
        if bits == 8 {
            return Self::from_bytes(dtype, shape, values.to_vec());
        }
        let bytes = match bits {
            4 => pack_codes(values, |&[a, b]: &[u8; 2]| a & 15 | b << 4),
            _ => pack_codes(values, |&[a, b, c, d]: &[u8; 4]| a & 3 | (b & 3) << 2 | (c & 3) << 4 | d << 6),
        };
        Self::from_bytes(dtype, shape, bytes)
    }

    /// An array whose bytes are all zero.
    ///
    /// # Errors
    /// When the shape is too large to count.
    pub fn zeros(dtype: DType, shape: &[usize]) -> Result<Self, ArrayError> {
        Self::from_bytes(dtype, shape, vec![0; byte_len(dtype, shape)?])
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The sizes of the axes.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The number of axes.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes, packed for dtypes narrower than a byte.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer.bytes()[self.range.clone()]
    }

    /// The bytes, to write to in place: `None` when another array shares them or they may not be written.
    pub fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        Arc::get_mut(&mut self.buffer)?.bytes_mut()?.get_mut(self.range.clone())
    }

    /// The elements; borrowed unless the bytes are not aligned for `T`.
    ///
    /// # Errors
    /// When the array has another dtype.
    pub fn values<T: Element>(&self) -> Result<Cow<'_, [T]>, ArrayError> {
        if self.dtype != T::DTYPE {
            return Err(ArrayError::WrongDType { expected: T::DTYPE, found: self.dtype });
        }
        Ok(match bytemuck::try_cast_slice(self.bytes()) {
            Ok(slice) => Cow::Borrowed(slice),
            Err(_) => Cow::Owned(
                self.bytes().chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect(),
            ),
        })
    }

    /// One byte an element of a dtype of at most 8 bits, zero-extended.
    ///
    /// # Errors
    /// When the dtype is wider than a byte.
    pub fn unpack_u8(&self) -> Result<Cow<'_, [u8]>, ArrayError> {
        let bits = self.dtype.bits();
        if bits > 8 {
            return Err(ArrayError::WrongDType { expected: DType::U8, found: self.dtype });
        }
        if bits == 8 {
            return Ok(Cow::Borrowed(self.bytes()));
        }
        let mut codes = match bits {
            4 => self.bytes().iter().map(|b| [b & 15, b >> 4]).collect::<Vec<_>>().into_flattened(),
            _ => {
                let split = |b: &u8| [b & 3, b >> 2 & 3, b >> 4 & 3, b >> 6];
                self.bytes().iter().map(split).collect::<Vec<_>>().into_flattened()
            }
        };
        codes.truncate(self.len());
        Ok(Cow::Owned(codes))
    }

    /// One byte an element of a dtype of at most 8 bits, sign-extended when it is a signed integer.
    ///
    /// # Errors
    /// When the dtype is wider than a byte.
    pub fn unpack_i8(&self) -> Result<Vec<i8>, ArrayError> {
        let shift = if self.dtype.is_signed_int() { 8 - self.dtype.bits().min(8) } else { 0 };
        Ok(self.unpack_u8()?.iter().map(|&v| ((v << shift) as i8) >> shift).collect())
    }

    /// The same elements in another shape.
    ///
    /// # Errors
    /// When the number of elements differs.
    pub fn reshape(&self, shape: &[usize]) -> Result<Self, ArrayError> {
        if element_count(shape) != Some(self.len()) {
            return Err(ArrayError::Reshape { from: self.shape.clone(), to: shape.to_vec() });
        }
        Ok(Array { shape: shape.to_vec(), ..self.clone() })
    }

    /// The same bytes as an array of another type, without a copy: packed elements as bytes, for one.
    ///
    /// # Errors
    /// When the type takes another number of bytes.
    pub fn reinterpret(&self, dtype: DType, shape: &[usize]) -> Result<Self, ArrayError> {
        Self::from_buffer(dtype, shape, Arc::clone(&self.buffer), self.range.clone())
    }
}

/// Joins `N` codes into each byte, the last byte filled up with zeros.
fn pack_codes<const N: usize>(codes: &[u8], join: impl Fn(&[u8; N]) -> u8) -> Vec<u8> {
    let (chunks, rest) = codes.as_chunks::<N>();
    let mut bytes = Vec::with_capacity(codes.len().div_ceil(N));
    bytes.extend(chunks.iter().map(&join));
    if !rest.is_empty() {
        let mut last = [0; N];
        last[..rest.len()].copy_from_slice(rest);
        bytes.push(join(&last));
    }
    bytes
}

fn count(dtype: DType, shape: &[usize]) -> Result<usize, ArrayError> {
    element_count(shape).ok_or_else(|| ArrayError::TooLarge { dtype, shape: shape.to_vec() })
}

/// The bytes of an array; no allocation can have more than `isize::MAX`, one byte an element included.
pub(crate) fn byte_len(dtype: DType, shape: &[usize]) -> Result<usize, ArrayError> {
    let most = isize::MAX as usize;
    let count = count(dtype, shape)?;
    let bytes = dtype.byte_len(count).filter(|&bytes| bytes <= most && count <= most);
    bytes.ok_or_else(|| ArrayError::TooLarge { dtype, shape: shape.to_vec() })
}

impl PartialEq for Array {
    /// The same dtype, shape and bytes: NaNs are equal to themselves, 0 and −0 differ.
    fn eq(&self, other: &Self) -> bool {
        self.dtype == other.dtype && self.shape == other.shape && self.bytes() == other.bytes()
    }
}

impl fmt::Debug for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.dtype, self.shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_there_is_refused() {
        const HUGE: usize = 1 << 40;
        let bytes: Arc<dyn Buffer> = Arc::new(Owned(vec![0u8; 4]));
        let scalar = Array::scalar(0f32);
        let failures = [
            Array::from_bytes(DType::F32, &[0, HUGE, HUGE], Vec::new()),
            Array::zeros(DType::F64, &[1 << 60]),
            Array::zeros(DType::S4, &[usize::MAX]),
            scalar.broadcast_in_dim(&[1 << 61], &[]),
            Array::from_buffer(DType::U8, &[0], Arc::clone(&bytes), 5..5),
            Array::from_buffer(DType::U8, &[4], bytes, 1..5),
        ];
        let accepted: Vec<_> = failures.iter().enumerate().filter(|f| f.1.is_ok()).collect();
        assert!(accepted.is_empty(), "{accepted:?}");
    }

    #[test]
    fn another_type_has_the_same_bytes() {
        let array = Array::from_vec(&[3], vec![0x21u8, 0x43, 0x05]).unwrap();
        let nibbles = array.reinterpret(DType::U4, &[5]).unwrap();
        assert_eq!(*nibbles.unpack_u8().unwrap(), [1, 2, 3, 4, 5]);
        assert_eq!(nibbles.bytes().as_ptr(), array.bytes().as_ptr());
        assert!(array.reinterpret(DType::U4, &[4]).is_err());
    }

    #[test]
    fn only_the_sole_owner_writes() {
        let mut array = Array::from_vec(&[2], vec![1u8, 2]).unwrap();
        let shared = array.clone();
        assert!(array.bytes_mut().is_none());
        drop(shared);
        array.bytes_mut().unwrap()[0] = 7;
        assert_eq!(array.bytes(), [7, 2]);
    }
}
