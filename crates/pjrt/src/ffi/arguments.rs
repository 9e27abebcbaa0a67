//! The arguments of each function.

use std::ffi::{c_int, c_void};
use std::mem::{offset_of, size_of};

use super::{
    Arguments, ExecuteOptions, MemoryLayout, NamedValue, RawBuffer, RawClient, RawDescription, RawDevice,
    RawError, RawEvent, RawExecutable, RawLoadedExecutable, RawMemory, RawProgram, RawSerialized,
};

/// Structs of arguments: the slot of the function, the name that the header gives it, and the fields.
macro_rules! arguments {
    ($($slot:literal $function:literal $name:ident { $($field:ident: $ty:ty),* $(,)? })*) => {
        $(
            #[repr(C)]
            pub(crate) struct $name {
                pub struct_size: usize,
                pub extension_start: *mut c_void,
                $(pub $field: $ty,)*
            }

            // SAFETY: repr(C) with the two fields first; the fields are numbers and pointers, for which zero is a value;
            // the layout is held against the header's by the tests in `layout.rs`.
            unsafe impl Arguments for $name {
                const SLOT: usize = $slot;
                const FUNCTION: &str = $function;
                const SIZE: usize = {
                    let ends = [2 * size_of::<usize>(), $(offset_of!($name, $field) + size_of::<$ty>()),*];
                    let (mut end, mut i) = (0, 0);
                    while i < ends.len() {
                        end = if ends[i] > end { ends[i] } else { end };
                        i += 1;
                    }
                    end
                };

                fn new() -> Self {
                    // SAFETY: all fields are numbers and pointers, valid when zero.
                    let zero: Self = unsafe { std::mem::zeroed() };
                    Self { struct_size: Self::SIZE, ..zero }
                }
            }
        )*

        /// Name, slot, size, and the fields with their offsets, of every struct above.
        #[cfg(test)]
        pub(crate) const ALL: &[(&str, usize, usize, &[(&str, usize)])] = &[
            $((
                $function,
                $slot,
                $name::SIZE,
                &[$((stringify!($field), offset_of!($name, $field))),*],
            )),*
        ];
    };
}

arguments! {
    0 "PJRT_Error_Destroy" ErrorDestroy { error: *mut RawError }
    1 "PJRT_Error_Message" ErrorMessage { error: *const RawError, message: *const u8, message_size: usize }
    2 "PJRT_Error_GetCode" ErrorGetCode { error: *const RawError, code: u32 }
    3 "PJRT_Plugin_Initialize" PluginInitialize {}
    4 "PJRT_Plugin_Attributes" PluginAttributes { attributes: *const NamedValue, num_attributes: usize }
    5 "PJRT_Event_Destroy" EventDestroy { event: *mut RawEvent }
    6 "PJRT_Event_IsReady" EventIsReady { event: *mut RawEvent, is_ready: u8 }
    8 "PJRT_Event_Await" EventAwait { event: *mut RawEvent }
    10 "PJRT_Client_Create" ClientCreate {
        create_options: *const NamedValue,
        num_options: usize,
        kv_get_callback: *mut c_void,
        kv_get_user_arg: *mut c_void,
        kv_put_callback: *mut c_void,
        kv_put_user_arg: *mut c_void,
        client: *mut RawClient,
        kv_try_get_callback: *mut c_void,
        kv_try_get_user_arg: *mut c_void,
    }
    11 "PJRT_Client_Destroy" ClientDestroy { client: *mut RawClient }
    12 "PJRT_Client_PlatformName" ClientPlatformName {
        client: *mut RawClient,
        platform_name: *const u8,
        platform_name_size: usize,
    }
    14 "PJRT_Client_PlatformVersion" ClientPlatformVersion {
        client: *mut RawClient,
        platform_version: *const u8,
        platform_version_size: usize,
    }
    16 "PJRT_Client_AddressableDevices" ClientAddressableDevices {
        client: *mut RawClient,
        addressable_devices: *const *mut RawDevice,
        num_addressable_devices: usize,
    }
    20 "PJRT_Client_Compile" ClientCompile {
        client: *mut RawClient,
        program: *const RawProgram,
        compile_options: *const u8,
        compile_options_size: usize,
        executable: *mut RawLoadedExecutable,
    }
    22 "PJRT_Client_BufferFromHostBuffer" ClientBufferFromHostBuffer {
        client: *mut RawClient,
        data: *const u8,
        r#type: u32,
        dims: *const i64,
        num_dims: usize,
        byte_strides: *const i64,
        num_byte_strides: usize,
        host_buffer_semantics: u32,
        device: *mut RawDevice,
        memory: *mut RawMemory,
        device_layout: *mut MemoryLayout,
        done_with_host_buffer: *mut RawEvent,
        buffer: *mut RawBuffer,
    }
    23 "PJRT_DeviceDescription_Id" DescriptionId { device_description: *mut RawDescription, id: c_int }
    26 "PJRT_DeviceDescription_Kind" DescriptionKind {
        device_description: *mut RawDescription,
        device_kind: *const u8,
        device_kind_size: usize,
    }
    28 "PJRT_DeviceDescription_ToString" DescriptionToString {
        device_description: *mut RawDescription,
        to_string: *const u8,
        to_string_size: usize,
    }
    29 "PJRT_Device_GetDescription" DeviceGetDescription {
        device: *mut RawDevice,
        device_description: *mut RawDescription,
    }
    34 "PJRT_Device_MemoryStats" DeviceMemoryStats {
        device: *mut RawDevice,
        bytes_in_use: i64,
        peak_bytes_in_use: i64,
        peak_bytes_in_use_is_set: u8,
        num_allocs: i64,
        num_allocs_is_set: u8,
        largest_alloc_size: i64,
        largest_alloc_size_is_set: u8,
        bytes_limit: i64,
        bytes_limit_is_set: u8,
        bytes_reserved: i64,
        bytes_reserved_is_set: u8,
        peak_bytes_reserved: i64,
        peak_bytes_reserved_is_set: u8,
        bytes_reservable_limit: i64,
        bytes_reservable_limit_is_set: u8,
        largest_free_block_bytes: i64,
        largest_free_block_bytes_is_set: u8,
        pool_bytes: i64,
        pool_bytes_is_set: u8,
        peak_pool_bytes: i64,
        peak_pool_bytes_is_set: u8,
    }
    40 "PJRT_Executable_Destroy" ExecutableDestroy { executable: *mut RawExecutable }
    44 "PJRT_Executable_NumOutputs" ExecutableNumOutputs { executable: *mut RawExecutable, num_outputs: usize }
    49 "PJRT_Executable_Serialize" ExecutableSerialize {
        executable: *const RawExecutable,
        serialized_bytes: *const u8,
        serialized_bytes_size: usize,
        serialized_executable: *mut RawSerialized,
        serialized_executable_deleter: Option<unsafe extern "C" fn(*mut RawSerialized)>,
    }
    50 "PJRT_LoadedExecutable_Destroy" LoadedExecutableDestroy { executable: *mut RawLoadedExecutable }
    51 "PJRT_LoadedExecutable_GetExecutable" LoadedExecutableGetExecutable {
        loaded_executable: *mut RawLoadedExecutable,
        executable: *mut RawExecutable,
    }
    52 "PJRT_LoadedExecutable_AddressableDevices" LoadedExecutableAddressableDevices {
        executable: *mut RawLoadedExecutable,
        addressable_devices: *const *mut RawDevice,
        num_addressable_devices: usize,
    }
    55 "PJRT_LoadedExecutable_Execute" LoadedExecutableExecute {
        executable: *mut RawLoadedExecutable,
        options: *mut ExecuteOptions,
        argument_lists: *const *const *mut RawBuffer,
        num_devices: usize,
        num_args: usize,
        output_lists: *const *mut *mut RawBuffer,
        device_complete_events: *mut *mut RawEvent,
        execute_device: *mut RawDevice,
    }
    56 "PJRT_Executable_DeserializeAndLoad" ExecutableDeserializeAndLoad {
        client: *mut RawClient,
        serialized_executable: *const u8,
        serialized_executable_size: usize,
        loaded_executable: *mut RawLoadedExecutable,
        overridden_serialized_compile_options: *const u8,
        overridden_serialized_compile_options_size: usize,
    }
    58 "PJRT_Buffer_Destroy" BufferDestroy { buffer: *mut RawBuffer }
    59 "PJRT_Buffer_ElementType" BufferElementType { buffer: *mut RawBuffer, r#type: u32 }
    60 "PJRT_Buffer_Dimensions" BufferDimensions {
        buffer: *mut RawBuffer,
        dims: *const i64,
        num_dims: usize,
    }
    64 "PJRT_Buffer_OnDeviceSizeInBytes" BufferOnDeviceSizeInBytes {
        buffer: *mut RawBuffer,
        on_device_size_in_bytes: usize,
    }
    69 "PJRT_Buffer_CopyToDevice" BufferCopyToDevice {
        buffer: *mut RawBuffer,
        dst_device: *mut RawDevice,
        dst_buffer: *mut RawBuffer,
    }
    70 "PJRT_Buffer_ToHostBuffer" BufferToHostBuffer {
        src: *mut RawBuffer,
        host_layout: *mut MemoryLayout,
        dst: *mut u8,
        dst_size: usize,
        event: *mut RawEvent,
    }
}
