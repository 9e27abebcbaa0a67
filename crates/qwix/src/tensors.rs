//! The safetensors format: a file opened to be read or mapped tensor by tensor, and a writer.
//!
//! The header is believed only after every size in it was checked against the file's.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path as FilePath, PathBuf};
use std::sync::{Arc, OnceLock};

use qwix_array::{Array, Buffer, DType};
use qwix_graph::ArrayType;
use qwix_mapped::MappedFile;
use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::files::read_exact_at;
use crate::hash::sha256;
use crate::{Error, Result};

/// The largest header that is read, as in the format's own library.
const MAX_HEADER: u64 = 100_000_000;

/// A safetensors file whose header was read and checked. Its tensors are read into memory when asked for
/// ([`TensorFile::read`]), or borrow the mapped file ([`TensorFile::map`]).
pub struct TensorFile {
    name: PathBuf,
    file: File,
    size: u64,
    /// Of the file's first bytes: the header's length and the header.
    header_sha256: String,
    tensors: BTreeMap<String, Entry>,
    /// The whole file, from the first [`TensorFile::map`] on; nothing where it cannot be mapped.
    mapped: OnceLock<Option<Arc<dyn Buffer>>>,
}

#[derive(Debug)]
struct Entry {
    ty: ArrayType,
    offset: u64,
    len: usize,
}

impl TensorFile {
    /// Opens a file and checks its header: sizes, dtypes, and that the tensors fill the file without gap or overlap.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read, [`Error::Checkpoint`] naming the tensor when the header is wrong.
    pub fn open(name: impl AsRef<FilePath>) -> Result<Self> {
        let name = name.as_ref();
        let io = |source| Error::io("read", name, source);
        let bad = |reason: String| Error::checkpoint(name, None, reason);
        let mut file = File::open(name).map_err(io)?;
        let stat = file.metadata().map_err(io)?;
        if stat.is_dir() {
            return Err(bad("is a directory; expected a .safetensors file or an index.json".into()));
        }
        let size = stat.len();
        let mut prefix = [0; 8];
        if size < 8 {
            return Err(bad(format!("is {size} bytes long, too short for a safetensors file")));
        }
        file.read_exact(&mut prefix).map_err(io)?;
        let header_len = u64::from_le_bytes(prefix);
        if header_len > MAX_HEADER || header_len > size - 8 {
            return Err(bad(format!(
                "the header is said to be {header_len} bytes long in a file of {size}; not a safetensors file, or truncated"
            )));
        }
        // At most MAX_HEADER, so it fits a usize.
        let mut bytes = prefix.to_vec();
        bytes.resize(8 + header_len as usize, 0);
        file.read_exact(&mut bytes[8..]).map_err(io)?;
        let header: Header = serde_json::from_slice(&bytes[8..])
            .map_err(|e| bad(format!("the header is not what safetensors writes: {e}")))?;
        let tensors = check(name, header, 8 + header_len, size)?;
        let header_sha256 = sha256(&bytes);
        Ok(TensorFile { name: name.to_owned(), file, size, header_sha256, tensors, mapped: OnceLock::new() })
    }

    /// The file's name, as it was given.
    pub fn name(&self) -> &FilePath {
        &self.name
    }

    /// Keys and types, in order of the keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &ArrayType)> {
        self.tensors.iter().map(|(key, entry)| (key.as_str(), &entry.ty))
    }

    /// The type of one tensor.
    pub fn get(&self, key: &str) -> Option<&ArrayType> {
        self.tensors.get(key).map(|entry| &entry.ty)
    }

    /// The SHA-256 of the file's first bytes: the header's length and the header.
    pub(crate) fn header_sha256(&self) -> &str {
        &self.header_sha256
    }

    /// Each tensor's key, where its bytes begin in the file, and how many they are.
    pub(crate) fn spans(&self) -> impl Iterator<Item = (&str, u64, u64)> {
        self.tensors.iter().map(|(key, entry)| (key.as_str(), entry.offset, entry.len as u64))
    }

    /// Where the bytes of one tensor begin in the file.
    pub fn offset(&self, key: &str) -> Option<u64> {
        self.tensors.get(key).map(|entry| entry.offset)
    }

    /// Reads one tensor into memory.
    ///
    /// # Errors
    /// When there is none of that key, or the file cannot be read.
    pub fn read(&self, key: &str) -> Result<Array> {
        let entry = self.entry(key)?;
        let mut bytes = vec![0; entry.len];
        read_exact_at(&self.file, &mut bytes, entry.offset)
            .map_err(|source| Error::io("read", &self.name, source))?;
        self.checked(key, Array::from_bytes(entry.ty.dtype, &entry.ty.shape, bytes)?)
    }

    /// One tensor over the mapped file: its bytes are fetched when they are looked at, and stay the system's to drop and
    /// fetch again. The file is to be left alone while such arrays are in use (see [`qwix_mapped`]): replace it, do not
    /// write into it. A tensor that does not lie as its elements need it, or whose file the system cannot map, is read
    /// into memory.
    ///
    /// # Errors
    /// When there is none of that key, the file has another length than when it was opened, or it cannot be read.
    pub fn map(&self, key: &str) -> Result<Array> {
        let entry = self.entry(key)?;
        let aligned = entry.offset.is_multiple_of(entry.ty.dtype.bits().div_ceil(8) as u64);
        let Some(buffer) = self.mapped()?.filter(|_| aligned) else { return self.read(key) };
        // The whole file was mapped, so an offset in it fits a usize.
        let start = entry.offset as usize;
        let array = Array::from_buffer(
            entry.ty.dtype,
            &entry.ty.shape,
            Arc::clone(buffer),
            start..start + entry.len,
        )?;
        self.checked(key, array)
    }

    /// Reads part of a tensor's bytes, from so many bytes after its first.
    ///
    /// # Errors
    /// When there is no tensor of that key, it has fewer bytes, or the file cannot be read.
    pub fn read_part(&self, key: &str, from: u64, bytes: &mut [u8]) -> Result<()> {
        let bad = |reason: &str| Error::checkpoint(&self.name, Some(key), reason);
        let entry = self.entry(key)?;
        let end = from.checked_add(bytes.len() as u64).filter(|&end| end <= entry.len as u64);
        if end.is_none() {
            return Err(bad("has fewer bytes than were asked for"));
        }
        read_exact_at(&self.file, bytes, entry.offset.saturating_add(from))
            .map_err(|source| Error::io("read", &self.name, source))?;
        if entry.ty.dtype == DType::Pred && bytes.iter().any(|&b| b > 1) {
            return Err(bad("holds a boolean that is neither 0 nor 1"));
        }
        Ok(())
    }

    fn mapped(&self) -> Result<Option<&Arc<dyn Buffer>>> {
        if self.mapped.get().is_none() {
            let size = self.file.metadata().map_err(|source| Error::io("read", &self.name, source))?.len();
            if size != self.size {
                let reason = format!("has {size} bytes, and had {} when it was opened", self.size);
                return Err(Error::checkpoint(&self.name, None, reason));
            }
            // Some file systems have no maps, and some files are larger than an address space.
            let mapped = MappedFile::new(&self.file, size).ok().map(|map| Arc::new(map) as Arc<dyn Buffer>);
            // Another thread may have been faster, with the same.
            let _ = self.mapped.set(mapped);
        }
        Ok(self.mapped.get().and_then(Option::as_ref))
    }

    fn entry(&self, key: &str) -> Result<&Entry> {
        self.tensors.get(key).ok_or_else(|| Error::checkpoint(&self.name, Some(key), "is not in the file"))
    }

    /// The array, unless it has bytes that its dtype does not have.
    fn checked(&self, key: &str, array: Array) -> Result<Array> {
        if array.dtype() == DType::Pred && array.bytes().iter().any(|&b| b > 1) {
            return Err(Error::checkpoint(&self.name, Some(key), "holds a boolean that is neither 0 nor 1"));
        }
        Ok(array)
    }
}

impl fmt::Debug for TensorFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TensorFile")
            .field("name", &self.name)
            .field("tensors", &self.tensors)
            .finish_non_exhaustive()
    }
}

fn check(name: &FilePath, header: Header, start: u64, size: u64) -> Result<BTreeMap<String, Entry>> {
    let mut tensors = BTreeMap::new();
    let mut spans = Vec::new();
    for (key, info) in header.0 {
        let bad = |reason: String| Error::checkpoint(name, Some(&key), reason);
        let dtype =
            dtype_of(info.dtype).ok_or_else(|| bad(format!("dtype {} is not supported", info.dtype)))?;
        let len = qwix_array::element_count(&info.shape)
            .and_then(|count| dtype.byte_len(count))
            .ok_or_else(|| bad(format!("shape {:?} is too large for this machine", info.shape)))?;
        let (begin, end) = info.data_offsets;
        if end < begin || end - begin != len {
            return Err(bad(format!(
                "{dtype} of shape {:?} takes {len} bytes, the offsets {begin}..{end} say otherwise",
                info.shape
            )));
        }
        let past =
            u64::try_from(end).ok().and_then(|end| start.checked_add(end)).is_none_or(|end| end > size);
        if past {
            return Err(bad(format!("ends past the end of the file of {size} bytes; truncated?")));
        }
        spans.push((begin, end, key.clone()));
        tensors
            .insert(key, Entry { ty: ArrayType::new(dtype, info.shape), offset: start + begin as u64, len });
    }
    spans.sort();
    let mut at = 0;
    for (begin, end, key) in &spans {
        if *begin != at {
            let what = if *begin < at { "overlaps another tensor" } else { "leaves a gap before it" };
            return Err(Error::checkpoint(name, Some(key), format!("{what} (offsets {begin}..{end})")));
        }
        at = *end;
    }
    if start + at as u64 != size {
        return Err(Error::checkpoint(
            name,
            None,
            format!("has {size} bytes, but its tensors end at {}", start + at as u64),
        ));
    }
    Ok(tensors)
}

/// The header, every key once.
struct Header(Vec<(String, TensorInfo)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with one entry a tensor")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Header, A::Error> {
                let mut seen = BTreeMap::new();
                while let Some(key) = map.next_key::<String>()? {
                    if key == "__metadata__" {
                        map.next_value::<BTreeMap<String, String>>()?;
                        continue;
                    }
                    let info = map
                        .next_value::<TensorInfo>()
                        .map_err(|e| de::Error::custom(format!("tensor `{key}`: {e}")))?;
                    if seen.contains_key(&key) {
                        return Err(de::Error::custom(format!("tensor `{key}` stands in the header twice")));
                    }
                    seen.insert(key, info);
                }
                Ok(Header(seen.into_iter().collect()))
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

/// Our dtype for the format's.
fn dtype_of(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::BOOL => DType::Pred,
        Dtype::I8 => DType::S8,
        Dtype::I16 => DType::S16,
        Dtype::I32 => DType::S32,
        Dtype::I64 => DType::S64,
        Dtype::U8 => DType::U8,
        Dtype::U16 => DType::U16,
        Dtype::U32 => DType::U32,
        Dtype::U64 => DType::U64,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::F32 => DType::F32,
        Dtype::F64 => DType::F64,
        Dtype::F8_E4M3 => DType::F8E4M3FN,
        Dtype::F8_E5M2 => DType::F8E5M2,
        Dtype::F4 => DType::F4E2M1FN,
        // The format's enum is open; the rest has no arrays here (complex numbers, six-bit floats, bare scales).
        _ => return None,
    })
}

/// The format's dtype for ours; `None` for integers narrower than a byte, which the format does not have.
fn name_of(dtype: DType) -> Option<Dtype> {
    Some(match dtype {
        DType::Pred => Dtype::BOOL,
        DType::S8 => Dtype::I8,
        DType::S16 => Dtype::I16,
        DType::S32 => Dtype::I32,
        DType::S64 => Dtype::I64,
        DType::U8 => Dtype::U8,
        DType::U16 => Dtype::U16,
        DType::U32 => Dtype::U32,
        DType::U64 => Dtype::U64,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::F32 => Dtype::F32,
        DType::F64 => Dtype::F64,
        DType::F8E4M3FN => Dtype::F8_E4M3,
        DType::F8E5M2 => Dtype::F8_E5M2,
        DType::F4E2M1FN => Dtype::F4,
        DType::S2 | DType::S4 | DType::U4 => return None,
    })
}

/// Where each tensor of a file to be written goes: widest elements first, then by key, so that every tensor is
/// aligned and the same tensors give the same bytes.
pub(crate) struct Layout {
    /// The file's first bytes.
    pub header: Vec<u8>,
    /// Key, type, offset from the end of the header; in the order of the file.
    pub order: Vec<(String, ArrayType, usize)>,
}

impl Layout {
    pub fn new(types: BTreeMap<String, ArrayType>) -> io::Result<Self> {
        let invalid = |reason: String| io::Error::new(io::ErrorKind::InvalidInput, reason);
        let mut order: Vec<(String, ArrayType)> = types.into_iter().collect();
        order.sort_by_key(|(_, ty)| std::cmp::Reverse(ty.dtype.bits()));
        let mut header = serde_json::Map::new();
        let mut at = 0usize;
        let mut placed = Vec::new();
        for (key, ty) in order {
            let dtype = name_of(ty.dtype)
                .ok_or_else(|| invalid(format!("tensor `{key}`: safetensors has no {}", ty.dtype)))?;
            let end = qwix_array::element_count(&ty.shape)
                .and_then(|count| ty.dtype.byte_len(count))
                .and_then(|len| at.checked_add(len))
                .ok_or_else(|| invalid(format!("tensor `{key}`: {ty} is too large for this machine")))?;
            let info = TensorInfo { dtype, shape: ty.shape.clone(), data_offsets: (at, end) };
            header.insert(key.clone(), serde_json::to_value(info)?);
            placed.push((key, ty, at));
            at = end;
        }
        let mut header = serde_json::to_vec(&header)?;
        header.resize(header.len().next_multiple_of(8), b' ');
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.append(&mut header);
        Ok(Layout { header: bytes, order: placed })
    }
}

/// Writes arrays as one safetensors file.
///
/// # Errors
/// When writing fails, or an array has a dtype that the format does not have (integers narrower than a byte).
pub fn write_tensors(out: &mut dyn Write, tensors: &BTreeMap<String, Array>) -> io::Result<()> {
    let types = tensors.iter().map(|(k, a)| (k.clone(), ArrayType::new(a.dtype(), a.shape()))).collect();
    let layout = Layout::new(types)?;
    out.write_all(&layout.header)?;
    for (key, _, _) in &layout.order {
        if let Some(array) = tensors.get(key) {
            out.write_all(array.bytes())?;
        }
    }
    Ok(())
}

/// A safetensors file whose tensors are known by type and come one by one, in any order.
pub struct TensorWriter<W> {
    out: W,
    /// Key → type and offset in the file; those still to come.
    missing: BTreeMap<String, (ArrayType, u64)>,
}

impl<W: Write + Seek> TensorWriter<W> {
    /// Writes the header.
    ///
    /// # Errors
    /// As [`write_tensors`].
    pub fn new(mut out: W, types: BTreeMap<String, ArrayType>) -> io::Result<Self> {
        let layout = Layout::new(types)?;
        out.write_all(&layout.header)?;
        let start = layout.header.len() as u64;
        let missing = layout.order.into_iter().map(|(key, ty, at)| (key, (ty, start + at as u64))).collect();
        Ok(TensorWriter { out, missing })
    }

    /// Writes one tensor.
    ///
    /// # Errors
    /// When writing fails, the key was not announced or was written already, or the type is another.
    pub fn write(&mut self, key: &str, array: &Array) -> io::Result<()> {
        let invalid = |reason: String| io::Error::new(io::ErrorKind::InvalidInput, reason);
        let (ty, offset) =
            self.missing.remove(key).ok_or_else(|| invalid(format!("tensor `{key}` was not expected")))?;
        let found = ArrayType::new(array.dtype(), array.shape());
        if found != ty {
            return Err(invalid(format!("tensor `{key}`: expected {ty}, found {found}")));
        }
        self.out.seek(SeekFrom::Start(offset))?;
        self.out.write_all(array.bytes())
    }

    /// Ends the file.
    ///
    /// # Errors
    /// When writing fails or a tensor never came.
    pub fn finish(mut self) -> io::Result<W> {
        if let Some(key) = self.missing.keys().next() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("tensor `{key}` was never written"),
            ));
        }
        self.out.flush()?;
        Ok(self.out)
    }
}

/// An array in the form that readers elsewhere understand, exactly: integers narrower than a byte as `S8`,
/// fp8 and fp4 as `F32`, anything else as it is.
pub fn widened(array: &Array) -> Array {
    match widened_dtype(array.dtype()) {
        same if same == array.dtype() => array.clone(),
        wide => array.convert(wide),
    }
}

/// The dtype that [`widened`] gives.
pub(crate) fn widened_dtype(dtype: DType) -> DType {
    match dtype {
        DType::S2 | DType::S4 | DType::U4 => DType::S8,
        DType::F8E4M3FN | DType::F8E5M2 | DType::F4E2M1FN => DType::F32,
        DType::Pred
        | DType::S8
        | DType::S16
        | DType::S32
        | DType::S64
        | DType::U8
        | DType::U16
        | DType::U32
        | DType::U64
        | DType::F16
        | DType::BF16
        | DType::F32
        | DType::F64 => dtype,
    }
}

/// The array that [`widened`] made `wide` of, when there is one of this dtype.
pub fn narrowed(wide: &Array, dtype: DType) -> Option<Array> {
    let narrow = wide.convert(dtype);
    (widened(&narrow) == *wide).then_some(narrow)
}
