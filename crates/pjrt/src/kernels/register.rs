//! Kernels are made known to a plugin, once in a process.

use super::Handler;
use super::handler::find;
use crate::ffi::{Extension, FfiExtension, PJRT_FFI, RegisterHandler};
use crate::{PjrtError, Plugin, Result};

/// The oldest minor version of the API whose FFI extension is laid out as it is here.
const OLDEST: i32 = 115;

/// What XLA calls the platform of CPUs where handlers are looked up.
const PLATFORM: &str = "Host";

impl Plugin {
    /// Makes a kernel known to the plugin, for programs on CPUs. A kernel that is known already is left alone.
    ///
    /// # Errors
    /// When the plugin has no FFI extension or an older one, XLA's FFI is of a version that is not known here, or another
    /// kernel has the target.
    pub fn register(&self, handler: &Handler) -> Result<()> {
        let refused = |reason: String| Err(PjrtError::plugin(self.path(), reason));
        let mut known = self.handlers();
        if let Some((_, kernel)) = known.iter().find(|(target, _)| *target == handler.target) {
            return match *kernel == handler.kernel {
                true => Ok(()),
                false => refused(format!("has another kernel for `{}` already", handler.target)),
            };
        }
        // SAFETY: the plugin's extensions are a list of static structs that begin with their size, kind and successor.
        let Some(extension) = (unsafe { find(self.extensions().cast::<Extension>(), PJRT_FFI) }) else {
            return refused("lacks the FFI extension, through which it would call kernels".to_owned());
        };
        let (major, minor) = self.api_version();
        // SAFETY: an extension begins with its size.
        let size = unsafe { (*extension).struct_size };
        if minor < OLDEST || size < FfiExtension::SIZE {
            return refused(format!(
                "is too old for kernels: it has PJRT C API {major}.{minor} and an FFI extension of {size} bytes, needed \
                 are 0.{OLDEST} and {} bytes",
                FfiExtension::SIZE
            ));
        }
        // SAFETY: an extension of this kind and size is this struct.
        let Some(register) = (unsafe { (*extension.cast::<FfiExtension>()).register_handler }) else {
            return refused("has an FFI extension that registers no kernels".to_owned());
        };
        let mut arguments = RegisterHandler {
            struct_size: RegisterHandler::SIZE,
            target_name: handler.target.as_ptr(),
            target_name_size: handler.target.len(),
            handler: handler.function as *const _,
            platform_name: PLATFORM.as_ptr(),
            platform_name_size: PLATFORM.len(),
            traits: 0,
        };
        // SAFETY: the names live through the call; the handler is a function of the process and stays.
        self.done("PJRT_FFI_Register_Handler", unsafe { register(&mut arguments) })?;
        known.push((handler.target, handler.kernel));
        Ok(())
    }
}
