//! SHA-256, in hexadecimal digits.

use std::fs::File;
use std::io::Read;
use std::path::Path as FilePath;

use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// A hash in the making.
#[derive(Clone, Default)]
pub(crate) struct Hash(Sha256);

impl Hash {
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// 64 hexadecimal digits.
    pub fn hex(self) -> String {
        self.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The hash of bytes.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    let mut hash = Hash::default();
    hash.update(bytes);
    hash.hex()
}

/// The length of a file, and the hash of its bytes.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn hash_file(file: &FilePath) -> Result<(u64, String)> {
    let io = |e| Error::io("read", file, e);
    let mut input = File::open(file).map_err(io)?;
    let (mut hash, mut bytes) = (Hash::default(), 0u64);
    let mut buffer = vec![0; 1 << 16];
    loop {
        let n = input.read(&mut buffer).map_err(io)?;
        if n == 0 {
            return Ok((bytes, hash.hex()));
        }
        hash.update(&buffer[..n]);
        bytes += n as u64;
    }
}
