//! Arrays on a device.

use std::sync::Arc;

use qwix_array::{Array, DType, element_count};
use qwix_graph::ArrayType;

use crate::client::{ClientHandle, Device};
use crate::event::Event;
use crate::ffi::{self, Arguments, MemoryLayout, RawBuffer};
use crate::plugin::slice;
use crate::{Client, PjrtError, Result};

/// An array on a device. Dropping it frees the device's memory, once nothing runs on it any more.
pub struct Buffer {
    client: Arc<ClientHandle>,
    pub(crate) raw: *mut RawBuffer,
    ty: ArrayType,
    device: i32,
}

// SAFETY: as for `ClientHandle`, which is held here; a buffer's contents do not change.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

/// Row-major, from minor to major.
fn row_major(rank: usize) -> Vec<i64> {
    (0..rank as i64).rev().collect()
}

impl Client {
    /// Puts an array on a device of this client, and waits until it is there. Types narrower than a byte are packed on
    /// the device.
    ///
    /// # Errors
    /// When the device is another client's, or its memory is full.
    pub fn upload(&self, array: &Array, device: &Device) -> Result<Buffer> {
        if !Arc::ptr_eq(&self.handle, &device.client) {
            return Err(PjrtError::invalid(device.name(), "is a device of another client"));
        }
        let ty = ArrayType::new(array.dtype(), array.shape());
        // The API wants an element a byte, signed ones extended.
        let (unsigned, signed);
        let data: *const u8 = match (array.dtype().is_packed(), array.dtype().is_signed_int()) {
            (false, _) => array.bytes().as_ptr(),
            (true, false) => {
                unsigned = array.unpack_u8()?;
                unsigned.as_ptr()
            }
            (true, true) => {
                signed = array.unpack_i8()?;
                signed.as_ptr().cast()
            }
        };
        let dims = array.shape().iter().map(|&size| size as i64).collect::<Vec<_>>();
        let mut arguments = ffi::ClientBufferFromHostBuffer {
            client: self.handle.raw,
            data,
            r#type: ffi::buffer_type(array.dtype()),
            dims: dims.as_ptr(),
            num_dims: dims.len(),
            host_buffer_semantics: ffi::IMMUTABLE_UNTIL_TRANSFER_COMPLETES,
            device: device.raw,
            ..ffi::ClientBufferFromHostBuffer::new()
        };
        // SAFETY: the data are of this type and these dimensions, row-major, which null strides and layout mean; they live
        // and do not change until the event below has happened, which is waited for here.
        unsafe { self.handle.plugin.call(&mut arguments)? };
        // SAFETY: the buffer is new and ours; so is the event.
        let (buffer, done) = unsafe {
            let buffer =
                Buffer { client: Arc::clone(&self.handle), raw: arguments.buffer, ty, device: device.id() };
            (buffer, Event::adopt(&self.handle, arguments.done_with_host_buffer))
        };
        done.map_or(Ok(()), |done| done.wait())?;
        Ok(buffer)
    }
}

impl Buffer {
    /// Takes over a buffer that an execution made.
    ///
    /// # Safety
    /// The buffer is null, or the client's, and nobody else destroys it.
    pub(crate) unsafe fn adopt(client: &Arc<ClientHandle>, raw: *mut RawBuffer, device: i32) -> Result<Self> {
        if raw.is_null() {
            return Err(PjrtError::invalid("a result", "the plugin gave none"));
        }
        let mut buffer =
            Buffer { client: Arc::clone(client), raw, ty: ArrayType::new(DType::Pred, []), device };
        buffer.ty = buffer.read_type()?;
        Ok(buffer)
    }

    fn read_type(&self) -> Result<ArrayType> {
        let mut element = ffi::BufferElementType { buffer: self.raw, ..ffi::BufferElementType::new() };
        let mut dimensions = ffi::BufferDimensions { buffer: self.raw, ..ffi::BufferDimensions::new() };
        // SAFETY: the buffer is alive; its dimensions live as long.
        let dims = unsafe {
            self.client.plugin.call(&mut element)?;
            self.client.plugin.call(&mut dimensions)?;
            slice(dimensions.dims, dimensions.num_dims)
        };
        let number = element.r#type;
        let dtype = ffi::dtype_of(number).ok_or_else(|| {
            PjrtError::invalid("a result", format!("its element type (number {number}) has no meaning here"))
        })?;
        let shape: Option<Vec<usize>> = dims.iter().map(|&d| usize::try_from(d).ok()).collect();
        let shape =
            shape.ok_or_else(|| PjrtError::invalid("a result", format!("found dimensions {dims:?}")))?;
        Ok(ArrayType::new(dtype, shape))
    }

    /// Its dtype and shape.
    pub fn ty(&self) -> &ArrayType {
        &self.ty
    }

    /// The id of the device that it is on.
    pub fn device_id(&self) -> i32 {
        self.device
    }

    pub(crate) fn is_of(&self, client: &Arc<ClientHandle>) -> bool {
        Arc::ptr_eq(&self.client, client)
    }

    /// The bytes that it takes on the device.
    ///
    /// # Errors
    /// When the plugin does not say.
    pub fn device_bytes(&self) -> Result<usize> {
        let mut arguments =
            ffi::BufferOnDeviceSizeInBytes { buffer: self.raw, ..ffi::BufferOnDeviceSizeInBytes::new() };
        // SAFETY: the buffer is alive.
        unsafe { self.client.plugin.call(&mut arguments)? };
        Ok(arguments.on_device_size_in_bytes)
    }

    /// Reads it back, row-major, once what computes it is done.
    ///
    /// # Errors
    /// When what computes it failed.
    pub fn to_array(&self) -> Result<Array> {
        let ArrayType { dtype, shape } = &self.ty;
        let count = element_count(shape);
        // An element narrower than a byte takes one.
        let expected =
            count.and_then(|count| if dtype.is_packed() { Some(count) } else { dtype.byte_len(count) });
        let expected = expected.filter(|&bytes| bytes <= isize::MAX as usize).ok_or_else(|| {
            PjrtError::invalid("a result", format!("{} is too large for this machine", self.ty))
        })?;
        let minor_to_major = row_major(shape.len());
        let mut layout = MemoryLayout::dense(&minor_to_major);
        let mut arguments = ffi::BufferToHostBuffer {
            src: self.raw,
            host_layout: &mut layout,
            ..ffi::BufferToHostBuffer::new()
        };
        // SAFETY: the buffer is alive, the layout lives through the call; a null destination asks for the size.
        unsafe { self.client.plugin.call(&mut arguments)? };
        // SAFETY: should the plugin make an event even for the question, it is ours.
        drop(unsafe { Event::adopt(&self.client, arguments.event) });
        if arguments.dst_size != expected {
            let reason =
                format!("the plugin wants {} bytes for {}, expected {expected}", arguments.dst_size, self.ty);
            return Err(PjrtError::invalid("a result", reason));
        }
        let mut bytes = vec![0u8; expected];
        let mut arguments = ffi::BufferToHostBuffer {
            src: self.raw,
            host_layout: &mut layout,
            dst: bytes.as_mut_ptr(),
            dst_size: bytes.len(),
            ..ffi::BufferToHostBuffer::new()
        };
        // A plugin that has nothing to write need not take a pointer to nothing.
        if expected > 0 {
            // SAFETY: the destination has so many bytes, which nothing else touches until the event has happened, which
            // is waited for here.
            unsafe { self.client.plugin.call(&mut arguments)? };
            // SAFETY: the event is ours.
            let done = unsafe { Event::adopt(&self.client, arguments.event) };
            done.map_or(Ok(()), |done| done.wait())?;
        }
        Ok(if dtype.is_packed() {
            Array::pack(*dtype, shape, &bytes)?
        } else {
            Array::from_bytes(*dtype, shape, bytes)?
        })
    }

    /// A copy on another device of the same client.
    ///
    /// # Errors
    /// When the device is another client's, or its memory is full.
    pub fn copy_to(&self, device: &Device) -> Result<Buffer> {
        if !self.is_of(&device.client) {
            return Err(PjrtError::invalid(device.name(), "is a device of another client"));
        }
        let mut arguments = ffi::BufferCopyToDevice {
            buffer: self.raw,
            dst_device: device.raw,
            ..ffi::BufferCopyToDevice::new()
        };
        // SAFETY: buffer and device are alive and of one client.
        unsafe { self.client.plugin.call(&mut arguments)? };
        Ok(Buffer {
            client: Arc::clone(&self.client),
            raw: arguments.dst_buffer,
            ty: self.ty.clone(),
            device: device.id(),
        })
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut arguments = ffi::BufferDestroy { buffer: self.raw, ..ffi::BufferDestroy::new() };
        // SAFETY: the buffer is ours and nothing uses it any more. There is nobody to tell of an error.
        let _ = unsafe { self.client.plugin.call(&mut arguments) };
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} on device {}", self.ty, self.device)
    }
}
