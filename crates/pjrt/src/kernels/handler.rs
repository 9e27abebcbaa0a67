//! What XLA calls.

use std::ffi::{CString, c_int};
use std::mem::{offset_of, size_of};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

use super::{Attribute, Attributes, BufferView, BufferViewMut, Kernel};
use crate::ffi::{
    ApiVersion, BUFFER, Buffers, ByteSpan, CallFrame, EXECUTE, Extension, METADATA, Metadata,
    MetadataExtension, RawAttributes, RawBufferView, RawScalar, SCALAR, STRING, XlaApi, XlaError,
    XlaErrorCreate, ffi_dtype_of,
};
use crate::plugin::slice;

/// The version of XLA's FFI that is spoken here; the structs used are the same in all minor versions before it.
const VERSION: (c_int, c_int) = (0, 4);

/// An `XLA_FFI_Handler`: answers who it is, or runs the kernel.
///
/// # Safety
/// The frame is one that XLA made for this call: it has as many bytes as it says, and its pointers are valid until the
/// handler returns.
pub(super) unsafe extern "C" fn handle<K: Kernel>(frame: *mut CallFrame) -> *mut XlaError {
    // Nothing may unwind into XLA.
    let done = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: the caller's promise.
        unsafe { answer::<K>(frame) }
    }));
    let reason = match done {
        Ok(Ok(())) => return ptr::null_mut(),
        Ok(Err(reason)) => reason,
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
            format!("it panicked: {}", text.as_deref().unwrap_or("without a word"))
        }
    };
    // SAFETY: the frame is XLA's; its table is looked at as far as both say that they reach.
    unsafe { error(frame, &format!("kernel `{}`: {reason}", K::TARGET)) }
}

/// Makes an error of XLA's.
///
/// # Safety
/// As [`handle`].
unsafe fn error(frame: *const CallFrame, reason: &str) -> *mut XlaError {
    let message = CString::new(reason.replace('\0', " ")).unwrap_or_default();
    let mut arguments = XlaErrorCreate {
        struct_size: XlaErrorCreate::SIZE,
        extension_start: ptr::null(),
        message: message.as_ptr(),
        code: XlaErrorCreate::INTERNAL,
    };
    // SAFETY: the caller's promise.
    match unsafe { api(frame) }.and_then(|api| api.error_create) {
        // SAFETY: the function is the table's; the message lives through the call, which copies it.
        Some(create) => unsafe { create(&mut arguments) },
        // No run gets so far: without this table the handler was not registered (see `metadata`).
        None => std::process::abort(),
    }
}

/// The table of XLA's functions, when it reaches as far as it is used here.
///
/// # Safety
/// As [`handle`].
unsafe fn api<'a>(frame: *const CallFrame) -> Option<&'a XlaApi> {
    // SAFETY: a frame begins with its size; the table likewise.
    unsafe {
        if frame.is_null() || (*frame).struct_size < offset_of!(CallFrame, api) + size_of::<usize>() {
            return None;
        }
        let api = (*frame).api;
        (!api.is_null() && *api.cast::<usize>() >= size_of::<XlaApi>()).then(|| &*api)
    }
}

/// # Safety
/// As [`handle`].
unsafe fn answer<K: Kernel>(frame: *const CallFrame) -> Result<(), String> {
    // SAFETY: a frame begins with its size, and has so many bytes.
    let frame = unsafe {
        if frame.is_null() || (*frame).struct_size < size_of::<CallFrame>() {
            return Err("the call is of an older kind than is known here".to_owned());
        }
        &*frame
    };
    // SAFETY: extensions are a list of structs that begin with their size, kind and successor.
    if let Some(asked) = unsafe { find(frame.extension_start, METADATA) } {
        // SAFETY: an extension of this kind is this struct.
        return unsafe { metadata(frame, asked.cast()) };
    }
    if frame.stage != EXECUTE {
        return Err(format!("is called in stage {}, expected {EXECUTE}", frame.stage));
    }
    // SAFETY: what the frame holds is valid while the handler runs; operands are not written meanwhile.
    let (operands, mut results, attributes) = unsafe {
        let operands = buffers(&frame.args, "operand")?;
        let results = buffers(&frame.rets, "result")?;
        apart(&operands, &results)?;
        let operands: Vec<BufferView<'_>> = operands
            .into_iter()
            .map(|found| BufferView {
                dtype: found.dtype,
                shape: found.shape,
                bytes: slice(found.data, found.bytes),
            })
            .collect();
        (
            operands,
            results.into_iter().map(|found| found.into_result()).collect::<Vec<_>>(),
            attributes(&frame.attrs)?,
        )
    };
    K::run(&operands, &mut results, &attributes)
}

/// The first of some extensions that is of a kind.
///
/// # Safety
/// The list is whole, and each of its structs has as many bytes as it says.
pub(super) unsafe fn find(mut extension: *const Extension, kind: c_int) -> Option<*const Extension> {
    while !extension.is_null() {
        // SAFETY: the caller's promise.
        let found = unsafe { &*extension };
        if found.struct_size >= size_of::<Extension>() && found.kind == kind {
            return Some(extension);
        }
        extension = found.next;
    }
    None
}

/// Says which version of the FFI the handler is for.
///
/// # Safety
/// The extension is XLA's question: it has as many bytes as it says.
unsafe fn metadata(frame: &CallFrame, asked: *const MetadataExtension) -> Result<(), String> {
    // SAFETY: the caller's promise.
    unsafe {
        // A handler that could not make errors must not run; with an error here it is not registered.
        let api = api(frame).filter(|api| api.error_create.is_some());
        let api = api.ok_or("XLA's table of functions is too short")?;
        let (major, minor) = (api.version.major, api.version.minor);
        if major != VERSION.0 || minor < 1 {
            return Err(format!("XLA FFI {major}.{minor} is not known here"));
        }
        let metadata = (*asked).metadata;
        let fits = (*asked).base.struct_size >= MetadataExtension::SIZE
            && !metadata.is_null()
            && (*metadata).struct_size >= Metadata::SIZE;
        if !fits {
            return Err("the question is of an older kind than is known here".to_owned());
        }
        (*metadata).version = ApiVersion {
            struct_size: size_of::<ApiVersion>(),
            extension_start: ptr::null_mut(),
            major: VERSION.0,
            minor: minor.min(VERSION.1),
        };
        (*metadata).traits = 0;
        if minor >= 3 {
            (*metadata).state_type_id = 0;
        }
    }
    Ok(())
}

/// A buffer of a frame, before anything says who may write it.
struct Found {
    dtype: qwix_array::DType,
    shape: Vec<usize>,
    data: *mut u8,
    bytes: usize,
}

impl Found {
    /// # Safety
    /// The memory is valid for writing, and nothing else uses it, for as long as the result is used.
    unsafe fn into_result<'a>(self) -> BufferViewMut<'a> {
        let bytes = match self.bytes {
            0 => Default::default(),
            // SAFETY: the caller's promise; what is in the memory, XLA's allocator or an earlier step left there.
            bytes => unsafe { std::slice::from_raw_parts_mut(self.data, bytes) },
        };
        BufferViewMut { dtype: self.dtype, shape: self.shape, bytes }
    }
}

/// # Safety
/// The lists are as long as they say, and what they point to is valid.
unsafe fn buffers(buffers: &Buffers, what: &str) -> Result<Vec<Found>, String> {
    let count = usize::try_from(buffers.size).map_err(|_| format!("{} {what}s", buffers.size))?;
    // SAFETY: the caller's promise.
    let (types, list) = unsafe { (slice(buffers.types, count), slice(buffers.buffers, count)) };
    let found = types.iter().zip(list).enumerate().map(|(i, (&ty, &buffer))| {
        let bad = |reason: String| format!("{what} {i} {reason}");
        if ty != BUFFER || buffer.is_null() {
            return Err(bad(format!("is of kind {ty}, expected a buffer")));
        }
        // SAFETY: a buffer begins with its size, and the rest is there when that is large enough.
        let buffer = unsafe {
            if (*buffer).struct_size < size_of::<RawBufferView>() {
                return Err(bad("is of an older kind than is known here".to_owned()));
            }
            &*buffer
        };
        let dtype = ffi_dtype_of(buffer.dtype);
        let dtype =
            dtype.ok_or_else(|| bad(format!("is of a type ({}) that no kernel takes", buffer.dtype)))?;
        // SAFETY: the dimensions are as many as the rank.
        let dims = unsafe { slice(buffer.dims, usize::try_from(buffer.rank).unwrap_or(0)) };
        let shape = dims.iter().map(|&d| usize::try_from(d)).collect::<Result<Vec<_>, _>>();
        let shape = shape.map_err(|_| bad(format!("has the shape {dims:?}")))?;
        let bytes = qwix_array::element_count(&shape).and_then(|count| dtype.byte_len(count));
        let bytes = bytes.filter(|&bytes| bytes <= isize::MAX as usize);
        let bytes = bytes.ok_or_else(|| bad("is too large".to_owned()))?;
        if bytes > 0 && buffer.data.is_null() {
            return Err(bad("has no memory".to_owned()));
        }
        Ok(Found { dtype, shape, data: buffer.data.cast(), bytes })
    });
    found.collect()
}

/// Makes sure that no result shares memory with an operand or another result.
fn apart(operands: &[Found], results: &[Found]) -> Result<(), String> {
    let range = |found: &Found| (found.data.addr(), found.data.addr().saturating_add(found.bytes));
    for (i, result) in results.iter().enumerate().filter(|(_, result)| result.bytes > 0) {
        let (start, end) = range(result);
        let meets = |other: &Found| other.bytes > 0 && range(other).0 < end && start < range(other).1;
        if operands.iter().any(meets) || results[..i].iter().any(meets) {
            return Err(format!("result {i} has the memory of another buffer"));
        }
    }
    Ok(())
}

/// # Safety
/// The lists are as long as they say, and what they point to is valid.
unsafe fn attributes<'a>(attributes: &RawAttributes) -> Result<Attributes<'a>, String> {
    let count = usize::try_from(attributes.size).map_err(|_| format!("{} attributes", attributes.size))?;
    // SAFETY: the caller's promise.
    let (types, names, values) = unsafe {
        (slice(attributes.types, count), slice(attributes.names, count), slice(attributes.attrs, count))
    };
    let mut list = Vec::with_capacity(count);
    for ((&ty, &name), &value) in types.iter().zip(names).zip(values) {
        // SAFETY: names are spans of bytes; a value is what its type says.
        unsafe {
            let name = std::str::from_utf8(span(name)).map_err(|_| "an attribute's name is no text")?;
            let value = match ty {
                STRING => std::str::from_utf8(span(value.cast())).ok().map(|t| Attribute::Text(t.to_owned())),
                SCALAR => int(value.cast()).map(Attribute::Int),
                _ => None,
            };
            list.push((name, value.ok_or_else(|| format!("attribute `{name}` is neither number nor text"))?));
        }
    }
    Ok(Attributes { list })
}

/// # Safety
/// The pointer is null or to a span that is valid as long as the result is used.
unsafe fn span<'a>(span: *const ByteSpan) -> &'a [u8] {
    // SAFETY: the caller's promise.
    unsafe { if span.is_null() { &[] } else { slice((*span).ptr, (*span).len) } }
}

/// # Safety
/// The pointer is null or to a scalar whose value is of its type.
unsafe fn int(scalar: *const RawScalar) -> Option<i64> {
    // SAFETY: the caller's promise.
    unsafe {
        let scalar = scalar.as_ref().filter(|scalar| !scalar.value.is_null())?;
        match ffi_dtype_of(scalar.dtype)? {
            qwix_array::DType::S64 => Some(scalar.value.cast::<i64>().read_unaligned()),
            qwix_array::DType::S32 => Some(scalar.value.cast::<i32>().read_unaligned().into()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::ffi::{CStr, c_void};

    use super::*;

    struct Copies;

    impl Kernel for Copies {
        const TARGET: &'static str = "test.copies";

        fn run(
            operands: &[BufferView<'_>],
            results: &mut [BufferViewMut<'_>],
            _: &Attributes<'_>,
        ) -> Result<(), String> {
            results[0].values_mut::<i32>()?.copy_from_slice(operands[0].values()?);
            Ok(())
        }
    }

    thread_local! {
        /// What the last error said.
        static SAID: RefCell<String> = const { RefCell::new(String::new()) };
    }

    unsafe extern "C" fn create(arguments: *mut XlaErrorCreate) -> *mut XlaError {
        // SAFETY: the handler's arguments are whole.
        let message = unsafe { CStr::from_ptr((*arguments).message) }.to_string_lossy().into_owned();
        SAID.set(message);
        ptr::dangling_mut()
    }

    fn table(version: (c_int, c_int)) -> XlaApi {
        XlaApi {
            struct_size: size_of::<XlaApi>(),
            extension_start: ptr::null(),
            version: ApiVersion {
                struct_size: size_of::<ApiVersion>(),
                extension_start: ptr::null_mut(),
                major: version.0,
                minor: version.1,
            },
            internal: ptr::null(),
            error_create: Some(create),
        }
    }

    fn frame(api: &XlaApi) -> CallFrame {
        let none = || Buffers {
            struct_size: size_of::<Buffers>(),
            extension_start: ptr::null(),
            size: 0,
            types: ptr::null(),
            buffers: ptr::null(),
        };
        CallFrame {
            struct_size: size_of::<CallFrame>(),
            extension_start: ptr::null(),
            api,
            context: ptr::null_mut(),
            stage: EXECUTE,
            args: none(),
            rets: none(),
            attrs: RawAttributes {
                struct_size: size_of::<RawAttributes>(),
                extension_start: ptr::null(),
                size: 0,
                types: ptr::null(),
                names: ptr::null(),
                attrs: ptr::null(),
            },
        }
    }

    /// Calls the handler; what its error says, if there is one.
    fn call(frame: &mut CallFrame) -> Option<String> {
        // SAFETY: the frames here are whole, as far as they say.
        let error = unsafe { handle::<Copies>(frame) };
        (!error.is_null()).then(|| SAID.take())
    }

    fn buffer(values: &mut [i32], dims: &[i64], dtype: c_int) -> RawBufferView {
        RawBufferView {
            struct_size: size_of::<RawBufferView>(),
            extension_start: ptr::null(),
            dtype,
            data: values.as_mut_ptr().cast::<c_void>(),
            rank: dims.len() as i64,
            dims: dims.as_ptr(),
        }
    }

    #[test]
    fn the_question_for_the_version_is_answered() {
        let rows = [
            ((0, 4), Ok((0, 4))),
            ((0, 1), Ok((0, 1))),
            ((0, 9), Ok((0, 4))),
            ((1, 0), Err("XLA FFI 1.0 is not known")),
            ((0, 0), Err("XLA FFI 0.0 is not known")),
        ];
        for (version, expected) in rows {
            let api = table(version);
            let mut metadata = Metadata {
                struct_size: Metadata::SIZE,
                version: table((7, 7)).version,
                traits: 7,
                state_type_id: 0,
            };
            let asked = MetadataExtension {
                base: Extension { struct_size: MetadataExtension::SIZE, kind: METADATA, next: ptr::null() },
                metadata: &mut metadata,
            };
            let mut frame = frame(&api);
            frame.extension_start = ptr::from_ref(&asked).cast();
            match (call(&mut frame), expected) {
                (None, Ok(expected)) => {
                    assert_eq!((metadata.version.major, metadata.version.minor), expected);
                    assert_eq!(metadata.traits, 0);
                }
                (Some(found), Err(expected)) => assert!(found.contains(expected), "{found}"),
                (found, _) => panic!("{version:?}: {found:?}, expected {expected:?}"),
            }
        }
    }

    #[test]
    fn frames_are_held_against_what_is_known() {
        let api = table((0, 4));
        let (mut from, mut to, dims) = ([1, 2, 3, 4], [0; 4], [2i64, 2]);
        let (source, target) = (buffer(&mut from, &dims, 4), buffer(&mut to, &dims, 4));
        let kinds = [BUFFER];
        let list = |buffer: &*const RawBufferView| Buffers {
            struct_size: size_of::<Buffers>(),
            extension_start: ptr::null(),
            size: 1,
            types: kinds.as_ptr(),
            buffers: buffer,
        };
        let negative = [-2i64, 2];
        let small = RawBufferView { struct_size: 8, ..buffer(&mut [], &dims, 4) };
        let narrow = buffer(&mut [], &dims, 21);
        let backwards = buffer(&mut [], &negative, 4);
        let nowhere = RawBufferView { data: ptr::null_mut(), ..buffer(&mut [], &dims, 4) };
        let rows = [
            (&source, &target, None),
            (&source, &source, Some("result 0 has the memory of another buffer")),
            (&small, &target, Some("operand 0 is of an older kind")),
            (&narrow, &target, Some("operand 0 is of a type (21) that no kernel takes")),
            (&backwards, &target, Some("operand 0 has the shape [-2, 2]")),
            (&nowhere, &target, Some("operand 0 has no memory")),
        ];
        for (operand, result, expected) in rows {
            let (operand, result) = (ptr::from_ref(operand), ptr::from_ref(result));
            let mut frame = CallFrame { args: list(&operand), rets: list(&result), ..frame(&api) };
            match (call(&mut frame), expected) {
                (None, None) => {}
                (Some(found), Some(expected)) => assert!(found.contains(expected), "{found}"),
                (found, expected) => panic!("{found:?}, expected {expected:?}"),
            }
        }
        assert_eq!(to, [1, 2, 3, 4]);
        let mut short = CallFrame { struct_size: 40, ..frame(&api) };
        assert!(call(&mut short).unwrap().contains("older kind"));
        let mut early = CallFrame { stage: 0, ..frame(&api) };
        assert!(call(&mut early).unwrap().contains("stage 0"));
        // Without operands it panics.
        assert!(call(&mut frame(&api)).unwrap().contains("it panicked: index out of bounds"));
    }
}
