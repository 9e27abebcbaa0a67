//! The part of the PJRT C API that is used here: handles, numbers, and the arguments of each function, laid out as in
//! the public header `xla/pjrt/c/pjrt_c_api.h` (version 0.114; of the fields here, those that 0.90 has stand in the
//! same place there).
//!
//! Every function of the API takes a pointer to one struct of arguments and returns an error or null. A struct begins
//! with its size, which is the end of its last field (padding does not count), and a pointer to extensions.

mod arguments;
#[cfg(test)]
mod layout;
mod xla_ffi;

use std::ffi::{c_int, c_void};
use std::mem::{offset_of, size_of};

use qwix_array::DType;

pub(crate) use arguments::*;
pub(crate) use xla_ffi::{dtype_of as ffi_dtype_of, *};

/// A handle of the plugin's; only pointers to it are ever seen.
macro_rules! handles {
    ($($name:ident),*) => {$(
        #[repr(C)]
        pub(crate) struct $name {
            _private: [u8; 0],
        }
    )*};
}

handles!(
    RawError,
    RawEvent,
    RawClient,
    RawDevice,
    RawDescription,
    RawMemory,
    RawBuffer,
    RawExecutable,
    RawLoadedExecutable,
    RawSerialized
);

/// What a function of the API takes: which function that is.
///
/// # Safety
/// The type is `repr(C)`, begins with `struct_size` and `extension_start`, is valid when all its bytes are zero, and
/// holds the arguments of the function at `SLOT`.
pub(crate) unsafe trait Arguments: Sized {
    /// The function's place in the table.
    const SLOT: usize;
    /// Its name in the header.
    const FUNCTION: &str;
    /// The end of the last field.
    const SIZE: usize;

    /// All zero, but for the size.
    fn new() -> Self;
}

/// The beginning of the table that a plugin gives; the functions follow.
#[repr(C)]
pub(crate) struct Api {
    pub struct_size: usize,
    pub extension_start: *mut c_void,
    pub version: ApiVersion,
}

/// `PJRT_Api_Version`.
#[repr(C)]
pub(crate) struct ApiVersion {
    pub struct_size: usize,
    pub extension_start: *mut c_void,
    pub major: c_int,
    pub minor: c_int,
}

/// Where the first function stands in the table.
pub(crate) const FIRST_SLOT: usize = size_of::<Api>();

/// The value of a `PJRT_NamedValue`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) union Scalar {
    pub string: *const u8,
    pub int64: i64,
    pub int64_list: *const i64,
    pub float: f32,
    pub boolean: u8,
}

/// `PJRT_NamedValue`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct NamedValue {
    pub struct_size: usize,
    pub extension_start: *mut c_void,
    pub name: *const u8,
    pub name_size: usize,
    pub kind: u32,
    pub value: Scalar,
    pub value_size: usize,
}

impl NamedValue {
    pub const SIZE: usize = offset_of!(NamedValue, value_size) + size_of::<usize>();
    pub const STRING: u32 = 0;
    pub const INT64: u32 = 1;
    pub const INT64_LIST: u32 = 2;
    pub const FLOAT: u32 = 3;
    pub const BOOL: u32 = 4;
}

/// `PJRT_Program`.
#[repr(C)]
pub(crate) struct RawProgram {
    pub struct_size: usize,
    pub extension_start: *mut c_void,
    pub code: *const u8,
    pub code_size: usize,
    pub format: *const u8,
    pub format_size: usize,
}

impl RawProgram {
    pub const SIZE: usize = offset_of!(RawProgram, format_size) + size_of::<usize>();
}

/// `PJRT_Buffer_MemoryLayout`, its union as the larger of the two: `PJRT_Buffer_MemoryLayout_Tiled`.
#[repr(C)]
pub(crate) struct MemoryLayout {
    pub struct_size: usize,
    pub extension_start: *mut c_void,
    pub tiled: TiledLayout,
    pub kind: u32,
}

/// `PJRT_Buffer_MemoryLayout_Tiled`.
#[repr(C)]
pub(crate) struct TiledLayout {
    pub struct_size: usize,
    pub extension_start: *mut c_void,
    pub minor_to_major: *const i64,
    pub minor_to_major_size: usize,
    pub tile_dims: *const i64,
    pub tile_dim_sizes: *const usize,
    pub num_tiles: usize,
}

impl MemoryLayout {
    pub const SIZE: usize = offset_of!(MemoryLayout, kind) + size_of::<u32>();

    /// Dense, with these axes from minor to major, which must live as long as the layout.
    pub fn dense(minor_to_major: &[i64]) -> Self {
        MemoryLayout {
            struct_size: Self::SIZE,
            extension_start: std::ptr::null_mut(),
            tiled: TiledLayout {
                struct_size: size_of::<TiledLayout>(),
                extension_start: std::ptr::null_mut(),
                minor_to_major: minor_to_major.as_ptr(),
                minor_to_major_size: minor_to_major.len(),
                tile_dims: std::ptr::null(),
                tile_dim_sizes: std::ptr::null(),
                num_tiles: 0,
            },
            kind: 0,
        }
    }
}

/// `PJRT_ExecuteOptions`.
#[repr(C)]
pub(crate) struct ExecuteOptions {
    pub struct_size: usize,
    pub extension_start: *mut c_void,
    pub send_callbacks: *mut c_void,
    pub recv_callbacks: *mut c_void,
    pub num_send_ops: usize,
    pub num_recv_ops: usize,
    pub launch_id: c_int,
    pub non_donatable_input_indices: *const i64,
    pub num_non_donatable_input_indices: usize,
    pub context: *mut c_void,
    pub call_location: *const u8,
    pub num_tasks: usize,
    pub task_ids: *mut c_int,
    pub incarnation_ids: *mut i64,
}

impl ExecuteOptions {
    pub const SIZE: usize = offset_of!(ExecuteOptions, incarnation_ids) + size_of::<*mut i64>();
}

/// `PJRT_HostBufferSemantics_kImmutableUntilTransferCompletes`.
pub(crate) const IMMUTABLE_UNTIL_TRANSFER_COMPLETES: u32 = 1;

/// The number of a dtype in `PJRT_Buffer_Type`.
pub(crate) fn buffer_type(dtype: DType) -> u32 {
    match dtype {
        DType::Pred => 1,
        DType::S8 => 2,
        DType::S16 => 3,
        DType::S32 => 4,
        DType::S64 => 5,
        DType::U8 => 6,
        DType::U16 => 7,
        DType::U32 => 8,
        DType::U64 => 9,
        DType::F16 => 10,
        DType::F32 => 11,
        DType::F64 => 12,
        DType::BF16 => 13,
        DType::F8E5M2 => 16,
        DType::F8E4M3FN => 17,
        DType::S4 => 21,
        DType::U4 => 22,
        DType::S2 => 24,
        DType::F4E2M1FN => 29,
    }
}

/// The dtype of a number of `PJRT_Buffer_Type`; `None` for those that have no meaning here.
pub(crate) fn dtype_of(buffer_type: u32) -> Option<DType> {
    DType::all().find(|&dtype| self::buffer_type(dtype) == buffer_type)
}
