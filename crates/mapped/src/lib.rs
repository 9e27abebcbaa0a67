//! A file's bytes as memory that arrays borrow: the one thing that loading a checkpoint needs `unsafe` for.
//!
//! Nothing is read when a file is mapped; the system fetches each page when it is first looked at, and may drop it again.
//! While a file is mapped it must be left alone: put a new one in its place by renaming, as all writers of ours do,
//! instead of writing into it. A program that writes into it all the same changes the numbers of arrays in use. One that
//! truncates it ends this process at its next look behind the new end: with `SIGBUS` on Unix; Windows refuses to truncate.

#![deny(unsafe_op_in_unsafe_fn)]

use std::fs::File;
use std::io;

use memmap2::{Mmap, MmapOptions};
use qwix_array::Buffer;

/// A mapped file, read-only. It stays mapped, and its bytes where they are, until this is dropped; the file's name may
/// be given to another file meanwhile.
#[derive(Debug)]
pub struct MappedFile(Mmap);

impl MappedFile {
    /// Maps a file that was opened for reading and should have `len` bytes.
    ///
    /// No lock is taken: locks are advice that only those follow who ask for them, and none of the programs that write
    /// checkpoints does.
    ///
    /// # Errors
    /// When the file has another length, has more bytes than this machine can address, or cannot be mapped.
    pub fn new(file: &File, len: u64) -> io::Result<Self> {
        let found = file.metadata()?.len();
        if found != len {
            let reason = format!("it has {found} bytes, and had {len} when it was opened");
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        let too_large =
            || io::Error::new(io::ErrorKind::FileTooLarge, format!("{len} bytes cannot be mapped"));
        let size = usize::try_from(len).ok().filter(|&size| isize::try_from(size).is_ok());
        let mut options = MmapOptions::new();
        options.len(size.ok_or_else(too_large)?);
        // SAFETY: the map is as long as the file, checked above; nobody in this process can write to it, for it is mapped
        // without that right and this type hands out shared slices only; and every value of a byte is a valid `u8`. That
        // no other process writes to the file cannot be made sure of, and is asked of the user in this crate's
        // documentation. Where one does, no memory of ours is harmed: the pages lie outside of what the allocator hands
        // out, no code trusts a byte of them for its bounds, and a page that is gone ends the process.
        let map = unsafe { options.map(file)? };
        Ok(MappedFile(map))
    }
}

impl Buffer for MappedFile {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use qwix_array::{Array, DType};

    use super::*;

    fn file_of(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn bytes_are_the_files() {
        let bytes: Vec<u8> = (0..9001u32).map(|i| (i % 251) as u8).collect();
        for len in [0, 1, 4095, 4096, 4097, 9001] {
            let map = MappedFile::new(&file_of(&bytes[..len]), len as u64).unwrap();
            assert_eq!(map.bytes(), &bytes[..len]);
        }
    }

    #[test]
    fn a_file_of_another_length_is_refused() {
        for (has, said) in [(3, 4), (5, 4), (0, 1), (4, u64::MAX)] {
            let error = MappedFile::new(&file_of(&vec![0; has]), said).unwrap_err();
            assert!(error.to_string().contains(&format!("it has {has} bytes, and had {said}")), "{error}");
        }
    }

    #[test]
    fn arrays_borrow_and_do_not_write() {
        let map: Arc<dyn Buffer> = Arc::new(MappedFile::new(&file_of(&[1, 0, 2, 0]), 4).unwrap());
        let mut array = Array::from_buffer(DType::U16, &[2], Arc::clone(&map), 0..4).unwrap();
        assert_eq!(*array.values::<u16>().unwrap(), [1, 2]);
        assert_eq!(array.bytes().as_ptr(), map.bytes().as_ptr());
        drop(map);
        assert!(array.bytes_mut().is_none());
    }
}
