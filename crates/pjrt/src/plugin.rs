//! A loaded plugin.

use std::any::TypeId;
use std::collections::HashMap;
use std::ffi::c_void;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::ffi::{self, Api, ApiVersion, Arguments, FIRST_SLOT, RawError};
use crate::{Code, PjrtError, Result, nvidia};

/// The oldest minor version of the API that is accepted: the first with all dtypes used here. Since 0.58 no field that
/// is used here has moved.
const OLDEST: i32 = 63;

/// A plugin: a library that speaks the PJRT C API. Once loaded it stays for as long as the process lives.
#[derive(Clone)]
pub struct Plugin {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    /// The table that `GetPjrtApi` gave; it lives as long as the library, which is never unloaded.
    api: *const Api,
    version: (i32, i32),
    attributes: Vec<(String, Attribute)>,
    /// The kernels that it was told of, by target.
    handlers: Mutex<Vec<(&'static str, TypeId)>>,
}

// SAFETY: what keeps `Inner` from being `Send` and `Sync` is the table, which nobody writes once the plugin has been
// initialized, and whose functions the API allows to be called from any thread.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

/// Something that a plugin says of itself.
#[derive(Clone, Debug, PartialEq)]
pub enum Attribute {
    /// A text.
    Text(String),
    /// A number.
    Int(i64),
    /// Several numbers.
    Ints(Vec<i64>),
    /// A number that need not be whole.
    Float(f32),
    /// Yes or no.
    Bool(bool),
}

/// The plugins that are loaded, by the library's true path: a library is initialized once.
static LOADED: Mutex<Option<HashMap<PathBuf, Plugin>>> = Mutex::new(None);

impl Plugin {
    /// Loads the plugin in a library, or gives the one that is loaded already.
    ///
    /// Loading a library runs its code: it must come from somebody who is trusted. `XLA_FLAGS` counts as it is when the
    /// library is loaded.
    ///
    /// # Errors
    /// When there is no such file, it is no library that can be loaded here, it is no PJRT plugin, or it is too old.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let path = path.canonicalize().map_err(|e| PjrtError::plugin(path, e.to_string()))?;
        if path.is_dir() {
            return Err(PjrtError::plugin(&path, "is a directory, expected a shared library"));
        }
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        let loaded = loaded.get_or_insert_default();
        if let Some(plugin) = loaded.get(&path) {
            return Ok(plugin.clone());
        }
        let plugin = Self::open(path.clone())?;
        loaded.insert(path, plugin.clone());
        Ok(plugin)
    }

    fn open(path: PathBuf) -> Result<Self> {
        for needed in nvidia::libraries(&path) {
            // SAFETY: as below. Should it not load, the plugin looks for one elsewhere, and says so when it needs it.
            if let Ok(library) = unsafe { libloading::Library::new(&needed) } {
                std::mem::forget(library);
            }
        }
        // SAFETY: loading runs the library's initializers; that it is fit to be run is what the caller of `load` vouches for.
        let library = unsafe { libloading::Library::new(&path) }
            .map_err(|e| PjrtError::plugin(&path, format!("cannot be loaded: {}", chain(&e))))?;
        // SAFETY: the header gives this symbol this type; a library that has it under another type is not a plugin, and
        // nothing can tell.
        let get_api = unsafe { library.get::<unsafe extern "C" fn() -> *const Api>("GetPjrtApi") }
            .map(|symbol| *symbol);
        let Ok(get_api) = get_api else {
            return Err(PjrtError::plugin(&path, "is a library but no PJRT plugin: it has no `GetPjrtApi`"));
        };
        // Its threads and what it registered elsewhere outlive any handle: it must never be unloaded.
        std::mem::forget(library);
        // SAFETY: the library stays loaded; the function takes nothing.
        let api = unsafe { get_api() };
        if api.is_null() {
            return Err(PjrtError::plugin(&path, "gives no table of functions (`GetPjrtApi` is null)"));
        }
        // SAFETY: the pointer is to a table of static lifetime that begins as `Api` does.
        let version = unsafe { check(&path, api)? };
        let mut plugin = Inner { path, api, version, attributes: Vec::new(), handlers: Mutex::default() };
        // SAFETY: no pointers in the arguments.
        unsafe { plugin.call(&mut ffi::PluginInitialize::new())? };
        plugin.attributes = plugin.read_attributes()?;
        Ok(Plugin { inner: Arc::new(plugin) })
    }

    /// The library.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// The version of the C API that it has, major and minor.
    pub fn api_version(&self) -> (i32, i32) {
        self.inner.version
    }

    /// What it says of itself: `xla_version`, …
    pub fn attributes(&self) -> &[(String, Attribute)] {
        &self.inner.attributes
    }

    /// Calls a function of the API.
    ///
    /// # Safety
    /// The pointers in the arguments must be what the header asks of this function, and live through the call.
    pub(crate) unsafe fn call<A: Arguments>(&self, arguments: &mut A) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.inner.call(arguments) }
    }

    /// What the table is extended by: a list, null when it is empty.
    pub(crate) fn extensions(&self) -> *const c_void {
        // SAFETY: the table is the plugin's, and reaches beyond this field (`check`).
        unsafe { (*self.inner.api).extension_start }
    }

    /// The kernels that it was told of, by target, for one caller at a time.
    pub(crate) fn handlers(&self) -> MutexGuard<'_, Vec<(&'static str, TypeId)>> {
        self.inner.handlers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes an error of what a function of an extension returned.
    pub(crate) fn done(&self, function: &'static str, error: *mut RawError) -> Result<()> {
        if error.is_null() { Ok(()) } else { Err(self.inner.error(function, error)) }
    }
}

impl std::fmt::Debug for Plugin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (major, minor) = self.api_version();
        write!(f, "Plugin({}, PJRT C API {major}.{minor})", self.path().display())
    }
}

/// What a table must hold before anything of it is called. Gives its version.
///
/// # Safety
/// The pointer is to a table that has as many bytes as it says.
unsafe fn check(path: &Path, api: *const Api) -> Result<(i32, i32)> {
    // SAFETY: the size stands first, so it is there whatever the table is.
    let size = unsafe { *api.cast::<usize>() };
    if size < FIRST_SLOT {
        let reason = format!("its table has {size} bytes, expected at least {FIRST_SLOT}");
        return Err(PjrtError::plugin(path, reason));
    }
    // SAFETY: the version ends before `FIRST_SLOT`.
    let ApiVersion { major, minor, .. } = unsafe { &(*api).version };
    let (major, minor) = (*major, *minor);
    if (major, minor) < (0, OLDEST) {
        let reason = format!("is too old: it has PJRT C API {major}.{minor}, needed is 0.{OLDEST} or later");
        return Err(PjrtError::plugin(path, reason));
    }
    if major != 0 {
        let reason =
            format!("has PJRT C API {major}.{minor}, which is not known here; expected 0.{OLDEST} or later");
        return Err(PjrtError::plugin(path, reason));
    }
    // Without these an error could not be read.
    for slot in [ffi::ErrorDestroy::SLOT, ffi::ErrorMessage::SLOT, ffi::ErrorGetCode::SLOT] {
        // SAFETY: the caller's promise.
        if unsafe { slot_of(api, slot) }.is_none() {
            return Err(PjrtError::plugin(path, "lacks the functions that read errors"));
        }
    }
    Ok((major, minor))
}

/// A function's address, when the table reaches so far and has something there.
///
/// # Safety
/// As [`check`].
unsafe fn slot_of(api: *const Api, slot: usize) -> Option<*const c_void> {
    let offset = FIRST_SLOT + slot * size_of::<*const c_void>();
    // SAFETY: the size stands first.
    let size = unsafe { *api.cast::<usize>() };
    if offset + size_of::<*const c_void>() > size {
        return None;
    }
    // SAFETY: the table has `size` bytes and the slot ends before them; it is aligned, as the table is and slots have the
    // size of a pointer.
    let function = unsafe { *api.cast::<u8>().add(offset).cast::<*const c_void>() };
    (!function.is_null()).then_some(function)
}

impl Inner {
    fn function<A: Arguments>(&self) -> Result<unsafe extern "C" fn(*mut A) -> *mut RawError> {
        let missing = || PjrtError::Missing {
            path: self.path.clone(),
            version: format!("{}.{}", self.version.0, self.version.1),
            function: A::FUNCTION,
        };
        // SAFETY: the table is the plugin's, and was checked.
        let function = unsafe { slot_of(self.api, A::SLOT) }.ok_or_else(missing)?;
        // SAFETY: the slot holds the function that takes `A` (see `Arguments`); all but those that read and destroy
        // errors, which `void` calls, return an error or null.
        Ok(unsafe {
            std::mem::transmute::<*const c_void, unsafe extern "C" fn(*mut A) -> *mut RawError>(function)
        })
    }

    /// Calls a function, and makes an error of what it returns.
    ///
    /// # Safety
    /// As [`Plugin::call`].
    unsafe fn call<A: Arguments>(&self, arguments: &mut A) -> Result<()> {
        let function = self.function::<A>()?;
        // SAFETY: the struct is `A` with its true size, its pointers are the caller's promise.
        let error = unsafe { function(arguments) };
        if error.is_null() { Ok(()) } else { Err(self.error(A::FUNCTION, error)) }
    }

    /// Calls a function that returns nothing.
    ///
    /// # Safety
    /// As [`Plugin::call`], and the function is one of those that return nothing.
    unsafe fn void<A: Arguments>(&self, arguments: &mut A) {
        // SAFETY: the table is the plugin's, and was checked.
        if let Some(function) = unsafe { slot_of(self.api, A::SLOT) } {
            // SAFETY: the slot holds the function that takes `A` and returns nothing.
            let function =
                unsafe { std::mem::transmute::<*const c_void, unsafe extern "C" fn(*mut A)>(function) };
            // SAFETY: the struct is `A` with its true size, its pointers are the caller's promise.
            unsafe { function(arguments) };
        }
    }

    /// Reads an error and destroys it.
    fn error(&self, function: &'static str, error: *mut RawError) -> PjrtError {
        let mut message = ffi::ErrorMessage { error, ..ffi::ErrorMessage::new() };
        // SAFETY: the error is alive until the end of this function.
        unsafe { self.void(&mut message) };
        // SAFETY: the message is the error's, and as long as it says.
        let message = unsafe { text(message.message, message.message_size) };
        let mut code = ffi::ErrorGetCode { error, ..ffi::ErrorGetCode::new() };
        // SAFETY: as above; should the code itself not be had, the second error is destroyed like the first.
        let again = unsafe { self.function().map(|function| function(&mut code)) };
        for error in [error, again.unwrap_or(std::ptr::null_mut())] {
            if !error.is_null() {
                // SAFETY: it is ours, and nothing uses it any more.
                unsafe { self.void(&mut ffi::ErrorDestroy { error, ..ffi::ErrorDestroy::new() }) };
            }
        }
        PjrtError::Call { function, code: Code::of(code.code), message }
    }

    fn read_attributes(&self) -> Result<Vec<(String, Attribute)>> {
        let mut arguments = ffi::PluginAttributes::new();
        // SAFETY: no pointers go in.
        match unsafe { self.call(&mut arguments) } {
            Ok(()) => {}
            // Not every plugin says something.
            Err(PjrtError::Missing { .. } | PjrtError::Call { .. }) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        }
        // SAFETY: the plugin gives so many values, which live as long as it does.
        let values = unsafe { slice(arguments.attributes, arguments.num_attributes) };
        // SAFETY: the same holds for the names and lists in them.
        Ok(values.iter().filter_map(|value| unsafe { attribute(value) }).collect())
    }
}

/// # Safety
/// The value's pointers are valid for its sizes.
unsafe fn attribute(value: &ffi::NamedValue) -> Option<(String, Attribute)> {
    // SAFETY: the name has `name_size` bytes; which member of the union is meant `kind` says, and a text or list has
    // `value_size` elements.
    unsafe {
        let name = text(value.name, value.name_size);
        let attribute = match value.kind {
            ffi::NamedValue::STRING => Attribute::Text(text(value.value.string, value.value_size)),
            ffi::NamedValue::INT64 => Attribute::Int(value.value.int64),
            ffi::NamedValue::INT64_LIST => {
                Attribute::Ints(slice(value.value.int64_list, value.value_size).to_vec())
            }
            ffi::NamedValue::FLOAT => Attribute::Float(value.value.float),
            ffi::NamedValue::BOOL => Attribute::Bool(value.value.boolean != 0),
            _ => return None,
        };
        Some((name, attribute))
    }
}

/// A slice of what a plugin gave; empty for null.
///
/// # Safety
/// Unless null, the pointer is aligned and valid for `count` elements for as long as the slice is used.
pub(crate) unsafe fn slice<'a, T>(pointer: *const T, count: usize) -> &'a [T] {
    if pointer.is_null() || count == 0 {
        return &[];
    }
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(pointer, count) }
}

/// A text of the plugin's, copied.
///
/// # Safety
/// As [`slice`].
pub(crate) unsafe fn text(pointer: *const u8, count: usize) -> String {
    // SAFETY: the caller's promise.
    String::from_utf8_lossy(unsafe { slice(pointer, count) }).into_owned()
}

/// An error and its sources, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table of `slots` null functions, by its own word `size` bytes long.
    #[repr(C)]
    struct Table {
        /// Read through a pointer.
        _api: Api,
        _slots: [*const c_void; 8],
    }

    extern "C" fn nothing() {}

    fn table(minor: i32, functions: usize, size: usize) -> Table {
        let mut slots = [std::ptr::null(); 8];
        slots[..functions].fill(nothing as *const c_void);
        let version = ApiVersion { struct_size: 24, extension_start: std::ptr::null_mut(), major: 0, minor };
        Table {
            _api: Api { struct_size: size, extension_start: std::ptr::null_mut(), version },
            _slots: slots,
        }
    }

    #[test]
    fn tables_are_checked_before_they_are_used() {
        let whole = size_of::<Table>();
        let rows = [
            (table(OLDEST, 3, whole), None),
            (table(OLDEST - 1, 3, whole), Some("too old")),
            (table(44, 3, whole), Some("too old")),
            (table(OLDEST, 2, whole), Some("lacks")),
            (table(OLDEST, 3, FIRST_SLOT + 16), Some("lacks")),
            (table(OLDEST, 3, 16), Some("16 bytes")),
        ];
        for (index, (table, expected)) in rows.iter().enumerate() {
            // SAFETY: `size` is at most the table's.
            let found = unsafe { check(Path::new("plugin.so"), std::ptr::from_ref(table).cast()) }
                .err()
                .map(|e| e.to_string());
            let right = match (&found, expected) {
                (None, None) => true,
                (Some(found), Some(expected)) => found.contains(expected),
                _ => false,
            };
            assert!(right, "row {index}: {found:?}, expected {expected:?}");
        }
    }

    #[test]
    fn a_function_that_is_not_there_is_an_error() {
        // As a table is: static.
        let table: &'static Table = Box::leak(Box::new(table(OLDEST, 3, size_of::<Table>())));
        let plugin = Inner {
            path: PathBuf::from("plugin.so"),
            api: std::ptr::from_ref(table).cast(),
            version: (0, OLDEST),
            attributes: Vec::new(),
            handlers: Mutex::default(),
        };
        let null = plugin.function::<ffi::PluginInitialize>().err();
        let beyond = plugin.function::<ffi::BufferToHostBuffer>().err();
        for (error, function) in [(null, "PJRT_Plugin_Initialize"), (beyond, "PJRT_Buffer_ToHostBuffer")] {
            let error = error.map(|e| e.to_string()).unwrap_or_default();
            assert!(error.contains(function) && error.contains("0.63"), "{error}");
        }
    }
    /// The real plugin says how large it wants each struct, when it is given one that is too small.
    #[test]
    fn sizes_are_the_plugins() {
        let Ok(path) = crate::find(crate::Kind::Cpu) else {
            eprintln!("skipped: no CPU plugin");
            return;
        };
        let plugin = Plugin::load(path).unwrap().inner;
        let mut wrong = Vec::new();
        for (name, slot, size, _) in ffi::ALL {
            // Those that read and destroy errors return none.
            if *slot <= ffi::ErrorGetCode::SLOT {
                continue;
            }
            // SAFETY: the table is the plugin's; the block is larger than any struct, and its size, which every function
            // looks at first, is wrong.
            let said = unsafe {
                let function = slot_of(plugin.api, *slot).unwrap();
                let function = std::mem::transmute::<
                    *const c_void,
                    unsafe extern "C" fn(*mut usize) -> *mut RawError,
                >(function);
                let mut block = [0usize; 128];
                block[0] = 1;
                let error = function(block.as_mut_ptr());
                if error.is_null() { String::new() } else { plugin.error("test", error).to_string() }
            };
            let expected =
                said.split("size: expected ").nth(1).and_then(|rest| rest.split(',').next()?.parse().ok());
            let named = said.to_ascii_lowercase().contains(&name.to_ascii_lowercase());
            // A later plugin may have fields more.
            if !named || expected.is_none_or(|expected: usize| *size > expected || expected > size + 64) {
                wrong.push(format!("{name}: ours has {size}; {said}"));
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }
}
