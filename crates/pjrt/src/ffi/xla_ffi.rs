//! The part of the PJRT FFI extension and of XLA's FFI that is used here, laid out as in the public headers
//! `xla/pjrt/c/pjrt_c_api_ffi_extension.h` and `xla/ffi/api/c_api.h` (XLA FFI 0.4; the fields here stand in the same
//! place since 0.1).
//!
//! As in PJRT a struct begins with its size, which is the end of its last field.

use std::ffi::{c_char, c_int, c_void};
use std::mem::{offset_of, size_of};

use qwix_array::DType;

use super::{ApiVersion, RawError};

/// `PJRT_Extension_Base`, and `XLA_FFI_InternalExtension`, which is laid out alike.
#[repr(C)]
pub(crate) struct Extension {
    pub struct_size: usize,
    pub kind: c_int,
    pub next: *const Extension,
}

/// `PJRT_Extension_Type_FFI`.
pub(crate) const PJRT_FFI: c_int = 5;

/// `PJRT_FFI_Extension`.
#[repr(C)]
pub(crate) struct FfiExtension {
    pub base: Extension,
    pub type_register: *const c_void,
    pub user_data_add: *const c_void,
    pub register_handler: Option<unsafe extern "C" fn(*mut RegisterHandler) -> *mut RawError>,
}

impl FfiExtension {
    pub const SIZE: usize = offset_of!(FfiExtension, register_handler) + size_of::<usize>();
}

/// `PJRT_FFI_Register_Handler_Args`, as it is since the number of the FFI went from it; before, it was larger, so that
/// an older plugin refuses this one by its size.
#[repr(C)]
pub(crate) struct RegisterHandler {
    pub struct_size: usize,
    pub target_name: *const u8,
    pub target_name_size: usize,
    pub handler: *const c_void,
    pub platform_name: *const u8,
    pub platform_name_size: usize,
    pub traits: u32,
}

impl RegisterHandler {
    pub const SIZE: usize = offset_of!(RegisterHandler, traits) + size_of::<u32>();
}

/// `XLA_FFI_CallFrame`, without its last field, in which a handler may leave a future.
#[repr(C)]
pub(crate) struct CallFrame {
    pub struct_size: usize,
    pub extension_start: *const Extension,
    pub api: *const XlaApi,
    pub context: *mut c_void,
    pub stage: c_int,
    pub args: Buffers,
    pub rets: Buffers,
    pub attrs: RawAttributes,
}

/// `XLA_FFI_ExecutionStage_EXECUTE`.
pub(crate) const EXECUTE: c_int = 3;

/// `XLA_FFI_Args` and `XLA_FFI_Rets`.
#[repr(C)]
pub(crate) struct Buffers {
    pub struct_size: usize,
    pub extension_start: *const Extension,
    pub size: i64,
    pub types: *const c_int,
    pub buffers: *const *const RawBufferView,
}

/// `XLA_FFI_ArgType_BUFFER` and `XLA_FFI_RetType_BUFFER`.
pub(crate) const BUFFER: c_int = 1;

/// `XLA_FFI_Buffer`.
#[repr(C)]
pub(crate) struct RawBufferView {
    pub struct_size: usize,
    pub extension_start: *const Extension,
    pub dtype: c_int,
    pub data: *mut c_void,
    pub rank: i64,
    pub dims: *const i64,
}

/// `XLA_FFI_Attrs`.
#[repr(C)]
pub(crate) struct RawAttributes {
    pub struct_size: usize,
    pub extension_start: *const Extension,
    pub size: i64,
    pub types: *const c_int,
    pub names: *const *const ByteSpan,
    pub attrs: *const *const c_void,
}

/// `XLA_FFI_AttrType_SCALAR`: an [`RawScalar`].
pub(crate) const SCALAR: c_int = 3;
/// `XLA_FFI_AttrType_STRING`: a [`ByteSpan`].
pub(crate) const STRING: c_int = 4;

/// `XLA_FFI_ByteSpan`.
#[repr(C)]
pub(crate) struct ByteSpan {
    pub ptr: *const u8,
    pub len: usize,
}

/// `XLA_FFI_Scalar`.
#[repr(C)]
pub(crate) struct RawScalar {
    pub dtype: c_int,
    pub value: *const c_void,
}

/// `XLA_FFI_Metadata_Extension`; of kind [`METADATA`].
#[repr(C)]
pub(crate) struct MetadataExtension {
    pub base: Extension,
    pub metadata: *mut Metadata,
}

/// `XLA_FFI_Extension_Metadata`.
pub(crate) const METADATA: c_int = 1;

impl MetadataExtension {
    pub const SIZE: usize = offset_of!(MetadataExtension, metadata) + size_of::<usize>();
}

/// `XLA_FFI_Metadata`. What it says its size is does not count the last field, which version 0.3 added.
#[repr(C)]
pub(crate) struct Metadata {
    pub struct_size: usize,
    pub version: ApiVersion,
    pub traits: u32,
    pub state_type_id: i64,
}

impl Metadata {
    pub const SIZE: usize = offset_of!(Metadata, traits) + size_of::<u32>();
}

/// The beginning of `XLA_FFI_Api`; more functions follow.
#[repr(C)]
pub(crate) struct XlaApi {
    pub struct_size: usize,
    pub extension_start: *const Extension,
    pub version: ApiVersion,
    pub internal: *const c_void,
    pub error_create: Option<unsafe extern "C" fn(*mut XlaErrorCreate) -> *mut XlaError>,
}

/// `XLA_FFI_Error`: a handle; only pointers to it are ever seen.
#[repr(C)]
pub(crate) struct XlaError {
    _private: [u8; 0],
}

/// `XLA_FFI_Error_Create_Args`.
#[repr(C)]
pub(crate) struct XlaErrorCreate {
    pub struct_size: usize,
    pub extension_start: *const Extension,
    pub message: *const c_char,
    pub code: c_int,
}

impl XlaErrorCreate {
    pub const SIZE: usize = offset_of!(XlaErrorCreate, code) + size_of::<c_int>();
    /// `XLA_FFI_Error_Code_INTERNAL`.
    pub const INTERNAL: c_int = 13;
}

/// The dtype of a number of `XLA_FFI_DataType`; `None` for those that a kernel does not see: they have no meaning here,
/// or are narrower than a byte.
pub(crate) fn dtype_of(number: c_int) -> Option<DType> {
    Some(match number {
        1 => DType::Pred,
        2 => DType::S8,
        3 => DType::S16,
        4 => DType::S32,
        5 => DType::S64,
        6 => DType::U8,
        7 => DType::U16,
        8 => DType::U32,
        9 => DType::U64,
        10 => DType::F16,
        11 => DType::F32,
        12 => DType::F64,
        16 => DType::BF16,
        19 => DType::F8E5M2,
        20 => DType::F8E4M3FN,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structs_lie_as_in_the_headers() {
        let rows = [
            ("Extension_Base.next", offset_of!(Extension, next), 16),
            ("FFI_Extension", FfiExtension::SIZE, 48),
            ("Register_Handler_Args", RegisterHandler::SIZE, 52),
            ("Register_Handler_Args.handler", offset_of!(RegisterHandler, handler), 24),
            ("CallFrame.api", offset_of!(CallFrame, api), 16),
            ("CallFrame.stage", offset_of!(CallFrame, stage), 32),
            ("CallFrame.args", offset_of!(CallFrame, args), 40),
            ("CallFrame.rets", offset_of!(CallFrame, rets), 80),
            ("CallFrame.attrs", offset_of!(CallFrame, attrs), 120),
            ("CallFrame", size_of::<CallFrame>(), 168),
            ("Args.args", offset_of!(Buffers, buffers), 32),
            ("Args", size_of::<Buffers>(), 40),
            ("Buffer.dtype", offset_of!(RawBufferView, dtype), 16),
            ("Buffer.data", offset_of!(RawBufferView, data), 24),
            ("Buffer", size_of::<RawBufferView>(), 48),
            ("Attrs.names", offset_of!(RawAttributes, names), 32),
            ("Attrs", size_of::<RawAttributes>(), 48),
            ("Scalar.value", offset_of!(RawScalar, value), 8),
            ("Metadata_Extension", MetadataExtension::SIZE, 32),
            ("Metadata.api_version", offset_of!(Metadata, version), 8),
            ("Metadata.state_type_id", offset_of!(Metadata, state_type_id), 40),
            ("Metadata", Metadata::SIZE, 36),
            ("Api.XLA_FFI_Error_Create", offset_of!(XlaApi, error_create), 48),
            ("Error_Create_Args", XlaErrorCreate::SIZE, 28),
        ];
        let wrong: Vec<_> = rows.iter().filter(|row| row.1 != row.2).collect();
        assert!(wrong.is_empty(), "name, found, expected: {wrong:?}");
    }
}
