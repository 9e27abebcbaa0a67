//! Every byte of a package against its manifest.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path as FilePath;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use super::{Described, MANIFEST, Package, ShardHashes, check_hash, check_size, known_files, read_manifest};
use crate::files::{available_threads, read_exact_at};
use crate::hash::Hash;
use crate::tensors::TensorFile;
use crate::{Error, Result};

/// Something in a package that is not as it was written.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Fault {
    /// The file in the package, by name.
    pub file: String,
    /// The tensor, where it is one.
    pub tensor: Option<String>,
    /// What is wrong.
    pub what: String,
}

impl Fault {
    fn of(file: &str, what: impl Into<String>) -> Self {
        Fault { file: file.to_owned(), tensor: None, what: what.into() }
    }

    /// What opening said, without the package's name, which stands before.
    fn said(file: &str, error: &Error) -> Self {
        match error {
            Error::Package { reason, .. } => Fault::of(file, reason.clone()),
            other => Fault::of(file, other.to_string()),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.file)?;
        if let Some(tensor) = &self.tensor {
            write!(f, ", tensor `{tensor}`")?;
        }
        write!(f, ": {}", self.what)
    }
}

/// How [`verify_package`] works.
#[derive(Clone, Copy, Default)]
pub struct Verifying<'a> {
    /// Threads; 0: as many as the machine has cores.
    pub threads: usize,
    /// Is told how many of how many bytes have been read.
    pub progress: Option<&'a (dyn Fn(u64, u64) + Sync)>,
}

/// A piece of work: the bytes of a file from `offset` on, and the hash that they should have.
struct Check {
    shard: usize,
    name: String,
    tensor: Option<String>,
    offset: u64,
    bytes: u64,
    expected: String,
}

/// Reads everything that a package holds and says what is not as it was written: flipped bits, files that are missing or
/// of another length, and files that are no part of it (hidden ones and folders too).
///
/// The manifest is held against its own hash. Who can change a file can change the hashes as well: they find damage, not
/// malice. A package of version 1 has no hash of its manifest, and a change there that still means something is not found.
///
/// # Errors
/// When the directory cannot be read at all; what is wrong inside is no error, but told.
pub fn verify_package(dir: impl AsRef<FilePath>, how: &Verifying<'_>) -> Result<Vec<Fault>> {
    let dir = dir.as_ref();
    if !dir.is_dir() {
        return Err(Error::package(dir, "is not a directory; expected one that `qwix quantize` wrote"));
    }
    let (described, tensors) = match read_manifest(dir) {
        Ok(read) => read,
        Err(error) => return Ok(vec![Fault::said(MANIFEST, &error)]),
    };
    let mut faults = foreign(dir, &described)?;
    for (name, entry) in &described.files {
        let checked = check_size(dir, name, entry.bytes).and_then(|()| check_hash(dir, name, entry));
        faults.extend(checked.err().map(|error| Fault::said(name, &error)));
    }
    let mut checks = Vec::new();
    let mut files = Vec::new();
    let mut unseen: BTreeSet<&String> = tensors.keys().collect();
    for (name, shard) in &described.shards {
        if let Err(error) = check_size(dir, name, shard.bytes()) {
            faults.push(Fault::said(name, &error));
            continue;
        }
        let file = match std::fs::File::open(dir.join(name)) {
            Ok(file) => file,
            Err(error) => {
                faults.push(Fault::said(name, &Error::io("read", &dir.join(name), error)));
                continue;
            }
        };
        match shard {
            ShardHashes::Whole(entry) => checks.push(Check {
                shard: files.len(),
                name: name.clone(),
                tensor: None,
                offset: 0,
                bytes: entry.bytes,
                expected: entry.sha256.clone(),
            }),
            ShardHashes::Parts { header, .. } => {
                // Of a header that is damaged nothing is believed.
                let read = TensorFile::open(dir.join(name)).and_then(|opened| {
                    if opened.header_sha256() == header {
                        return Ok(opened);
                    }
                    Err(Error::package(dir, "its header is not as it was written (its sha256 differs)"))
                });
                match read {
                    Err(error) => faults.push(Fault::said(name, &error)),
                    Ok(opened) => {
                        for (key, offset, bytes) in opened.spans() {
                            unseen.remove(&key.to_owned());
                            let Some(expected) = tensors.get(key) else {
                                let tensor = Some(key.to_owned());
                                let what = "the manifest has no hash of it".to_owned();
                                faults.push(Fault { file: name.clone(), tensor, what });
                                continue;
                            };
                            checks.push(Check {
                                shard: files.len(),
                                name: name.clone(),
                                tensor: Some(key.to_owned()),
                                offset,
                                bytes,
                                expected: expected.clone(),
                            });
                        }
                    }
                }
            }
        }
        files.push(file);
    }
    faults.extend(hashed(&checks, &files, how));
    if faults.is_empty() {
        if let Some(key) = unseen.first() {
            faults.push(Fault::of(MANIFEST, format!("lists tensor `{key}`, which no shard holds")));
        }
        // That the parts fit each other as well.
        faults.extend(Package::open(dir).err().map(|error| Fault::said(MANIFEST, &error)));
    }
    faults.sort();
    Ok(faults)
}

/// What is no part of the package, or should be there and is not.
fn foreign(dir: &FilePath, described: &Described) -> Result<Vec<Fault>> {
    let io = |e| Error::io("read", dir, e);
    let mut missing = known_files(described);
    let mut faults = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io)? {
        let entry = entry.map_err(io)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !missing.remove(name.as_str()) {
            faults.push(Fault::of(&name, "is no part of the package"));
        } else if !entry.path().is_file() {
            faults.push(Fault::of(&name, "is no regular file"));
        }
    }
    // Those whose length is checked below are found missing there.
    missing.retain(|name| !described.files.contains_key(*name) && !described.shards.contains_key(*name));
    faults.extend(missing.into_iter().map(|name| Fault::of(name, "is missing")));
    Ok(faults)
}

fn hashed(checks: &[Check], files: &[std::fs::File], how: &Verifying<'_>) -> Vec<Fault> {
    let total: u64 = checks.iter().map(|check| check.bytes).sum();
    let (next, done, faults) = (AtomicUsize::new(0), AtomicU64::new(0), Mutex::new(Vec::new()));
    let work = || {
        let mut buffer = vec![0; 1 << 20];
        while let Some(check) = checks.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut hash = Hash::default();
            let mut at = 0;
            let mut failed = None;
            while at < check.bytes && failed.is_none() {
                let n = (check.bytes - at).min(buffer.len() as u64) as usize;
                let read =
                    files.get(check.shard).map(|f| read_exact_at(f, &mut buffer[..n], check.offset + at));
                match read {
                    Some(Ok(())) => hash.update(&buffer[..n]),
                    Some(Err(error)) => failed = Some(format!("cannot be read: {error}")),
                    None => failed = Some("cannot be read".to_owned()),
                }
                at += n as u64;
                let done = done.fetch_add(n as u64, Ordering::Relaxed) + n as u64;
                if let Some(progress) = how.progress {
                    progress(done, total);
                }
            }
            if failed.is_none() && hash.hex() != check.expected {
                failed = Some("is not as it was written (its sha256 differs)".to_owned());
            }
            if let Some(what) = failed {
                let fault = Fault { file: check.name.clone(), tensor: check.tensor.clone(), what };
                faults.lock().unwrap_or_else(PoisonError::into_inner).push(fault);
            }
        }
    };
    let threads = available_threads(how.threads).min(checks.len());
    thread::scope(|scope| {
        for _ in 1..threads {
            // One thread less is slower, and no more.
            let _ = thread::Builder::new().name("qwix-verify".to_owned()).spawn_scoped(scope, work);
        }
        work();
    });
    faults.into_inner().unwrap_or_else(PoisonError::into_inner)
}
