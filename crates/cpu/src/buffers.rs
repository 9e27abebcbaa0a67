//! Memory for results. A buffer comes back when the last array over it is dropped, and the next result of like size takes it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Weak};

use bytemuck::{Pod, Zeroable};
use qwix_array::{Array, Buffer, DType, Element};
use qwix_eval::EvalError;

use crate::values::fail;

/// A cache line, so that every buffer starts on one.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Buffers that nobody uses, by their number of lines.
#[derive(Default)]
pub(crate) struct Pool {
    free: Mutex<BTreeMap<usize, Vec<Vec<Line>>>>,
}

impl Pool {
    /// A buffer of at least so many bytes; what they are is left from its last use.
    pub(crate) fn take(self: &Arc<Self>, bytes: usize) -> Result<Block, EvalError> {
        let lines = bytes.div_ceil(64);
        let found = self.free.lock().ok().and_then(|mut free| {
            // A little too large is better than new.
            let (&size, buffers) = free.range_mut(lines..=lines.saturating_add(lines / 4)).next()?;
            let buffer = buffers.pop();
            if buffers.is_empty() {
                free.remove(&size);
            }
            buffer
        });
        let lines = match found {
            Some(lines) => lines,
            None => bytemuck::allocation::try_zeroed_vec(lines)
                .map_err(|()| fail(format!("there is not memory enough for {bytes} bytes more")))?,
        };
        Ok(Block { lines, bytes, pool: Arc::downgrade(self) })
    }

    /// A buffer for an array of a dtype that takes whole bytes.
    pub(crate) fn for_array(self: &Arc<Self>, dtype: DType, shape: &[usize]) -> Result<Block, EvalError> {
        let bytes = qwix_array::element_count(shape)
            .and_then(|count| dtype.byte_len(count))
            .filter(|&bytes| bytes <= isize::MAX as usize / 2);
        self.take(bytes.ok_or_else(|| fail(format!("{dtype}{shape:?} is too large")))?)
    }
}

/// A buffer in use.
pub(crate) struct Block {
    lines: Vec<Line>,
    bytes: usize,
    pool: Weak<Pool>,
}

impl Block {
    /// The bytes, to write.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.bytes]
    }

    /// The bytes as elements, to write.
    pub(crate) fn values_mut<T: Element>(&mut self) -> &mut [T] {
        let count = self.bytes / size_of::<T>();
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..count]
    }

    /// The bytes as elements.
    pub(crate) fn values<T: Element>(&self) -> &[T] {
        let count = self.bytes / size_of::<T>();
        &bytemuck::cast_slice(&self.lines)[..count]
    }

    /// An array over the buffer.
    pub(crate) fn into_array(self, dtype: DType, shape: &[usize]) -> Result<Array, EvalError> {
        let range = 0..self.bytes;
        Ok(Array::from_buffer(dtype, shape, Arc::new(self), range)?)
    }
}

impl Buffer for Block {
    fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.lines)[..self.bytes]
    }

    fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        Some(Block::bytes_mut(self))
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.upgrade()
            && !self.lines.is_empty()
            && let Ok(mut free) = pool.free.lock()
        {
            free.entry(self.lines.len()).or_default().push(std::mem::take(&mut self.lines));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_array_gives_its_buffer_back() {
        let pool = Arc::new(Pool::default());
        let mut block = pool.for_array(DType::F32, &[100]).unwrap();
        block.values_mut::<f32>().fill(1.0);
        let array = block.into_array(DType::F32, &[100]).unwrap();
        let clone = array.clone();
        drop(array);
        assert!(pool.free.lock().unwrap().is_empty());
        assert_eq!(clone.values::<f32>().unwrap()[99], 1.0);
        drop(clone);
        assert_eq!(pool.free.lock().unwrap().len(), 1);
        let again = pool.take(390).unwrap();
        assert!(pool.free.lock().unwrap().is_empty());
        drop(pool);
        drop(again);
    }
}
