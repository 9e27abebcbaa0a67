//! What a kernel sees of a call.

use bytemuck::try_cast_slice;
use qwix_array::{DType, Element};

use super::Attribute;

/// An operand: dense, row-major, in the memory of the device.
#[derive(Clone, Debug)]
pub struct BufferView<'a> {
    pub(super) dtype: DType,
    pub(super) shape: Vec<usize>,
    pub(super) bytes: &'a [u8],
}

/// A result, to be filled.
#[derive(Debug)]
pub struct BufferViewMut<'a> {
    pub(super) dtype: DType,
    pub(super) shape: Vec<usize>,
    pub(super) bytes: &'a mut [u8],
}

/// What the call says besides its operands.
#[derive(Clone, Debug)]
pub struct Attributes<'a> {
    pub(super) list: Vec<(&'a str, Attribute)>,
}

impl<'a> BufferView<'a> {
    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The sizes of the axes.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The elements.
    ///
    /// # Errors
    /// When they are of another type.
    pub fn values<T: Element>(&self) -> Result<&'a [T], String> {
        same(self.dtype, T::DTYPE)?;
        try_cast_slice(self.bytes).map_err(|e| format!("an operand's memory is not as it should be: {e}"))
    }
}

impl BufferViewMut<'_> {
    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The sizes of the axes.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The elements, whatever they are now.
    ///
    /// # Errors
    /// When they are of another type.
    pub fn values_mut<T: Element>(&mut self) -> Result<&mut [T], String> {
        same(self.dtype, T::DTYPE)?;
        bytemuck::try_cast_slice_mut(self.bytes)
            .map_err(|e| format!("a result's memory is not as it should be: {e}"))
    }
}

impl Attributes<'_> {
    /// A number.
    ///
    /// # Errors
    /// When there is no number of this name.
    pub fn int(&self, name: &str) -> Result<i64, String> {
        match self.get(name)? {
            Attribute::Int(number) => Ok(*number),
            Attribute::Text(text) => Err(format!("attribute `{name}`: found \"{text}\", expected a number")),
        }
    }

    /// A number that counts something.
    ///
    /// # Errors
    /// When there is no number of this name, or it is negative.
    pub fn count(&self, name: &str) -> Result<usize, String> {
        let number = self.int(name)?;
        usize::try_from(number).map_err(|_| format!("attribute `{name}`: found {number}, expected a count"))
    }

    /// A text.
    ///
    /// # Errors
    /// When there is no text of this name.
    pub fn text(&self, name: &str) -> Result<&str, String> {
        match self.get(name)? {
            Attribute::Text(text) => Ok(text),
            Attribute::Int(number) => Err(format!("attribute `{name}`: found {number}, expected a text")),
        }
    }

    fn get(&self, name: &str) -> Result<&Attribute, String> {
        let found = self.list.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| value).ok_or_else(|| format!("attribute `{name}` is missing"))
    }
}

fn same(found: DType, expected: DType) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("a buffer of {found}, expected {expected}")) }
}
