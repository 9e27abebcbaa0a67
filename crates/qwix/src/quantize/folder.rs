//! The folder in which a package is made: beside its target, under a name of its own, so that the same command finds it
//! again. It holds
//!
//! | file | what |
//! | --- | --- |
//! | `lock` | held while a process works here |
//! | `plan.json` | what is being made, of what: another plan is never mixed in |
//! | `journal` | a line for each parameter that is written |
//! | `package/` | the package; renamed to its target at the very end |

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path as FilePath, PathBuf};

use serde::{Deserialize, Serialize};

use crate::files::{hidden_prefix, in_the_way, is_taken, parent, sync_folder, write_all_at};
use crate::hash::sha256;
use crate::package::shards::Shards;
use crate::package::{MANIFEST_HASH, is_package};
use crate::{Error, Result};

const LOCK: &str = "lock";
const PLAN: &str = "plan.json";
const JOURNAL: &str = "journal";
const PACKAGE: &str = "package";
const OLD: &str = "old";

/// What is being made: by what it depends on, a hash or a number in words.
pub(crate) type PlanId = BTreeMap<String, String>;

/// A line of the journal.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Record {
    /// A float parameter and what was made of it are written; perhaps not yet on the disk itself.
    Done(Written),
    /// These float parameters, of which lines stand before, are on the disk.
    Flushed(Vec<String>),
    /// The package is whole; its manifest has this hash.
    Finished(String),
}

/// A float parameter that was quantized and written.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Written {
    pub path: String,
    /// Of its bytes in the checkpoint.
    pub sha256: String,
    /// Of the bytes of each tensor made of it, by key.
    pub tensors: BTreeMap<String, String>,
}

impl Record {
    fn line(&self) -> Result<String> {
        let text = serde_json::to_string(self).map_err(|e| Error::Unsupported(e.to_string()))?;
        Ok(format!("{} {text}\n", &sha256(text.as_bytes())[..16]))
    }

    /// `None` for a line that is not as it was written.
    fn read(line: &str) -> Option<Self> {
        let (hash, text) = line.split_once(' ')?;
        if !sha256(text.as_bytes()).starts_with(hash) || hash.len() != 16 {
            return None;
        }
        serde_json::from_str(text).ok()
    }
}

/// The folder, held by this process alone.
#[derive(Debug)]
pub(crate) struct Folder {
    target: PathBuf,
    dir: PathBuf,
    replace: bool,
    journal: File,
    _lock: File,
}

/// What was found there.
#[derive(Debug)]
pub(crate) enum Begun {
    /// Work to do, and what was done before: on the disk for certain, and perhaps.
    Going { folder: Folder, flushed: Vec<Written>, perhaps: Vec<Written> },
    /// The package stands at its target.
    Finished,
}

impl Folder {
    /// Where the package for a target is made.
    pub fn place(target: &FilePath) -> PathBuf {
        let mut name = hidden_prefix(target);
        name.push("partial");
        parent(target).join(name)
    }

    /// Begins, or goes on where a process before this one ended.
    ///
    /// # Errors
    /// When something is in the way at the target, another process is at work, or what was begun there is another plan
    /// (unless `force`, which starts over).
    pub fn begin(target: &FilePath, plan: &PlanId, shards: &Shards, force: bool) -> Result<Begun> {
        // Only what we wrote may be replaced: a wrong name must not cost somebody a folder.
        let replace = force && is_package(target)?;
        let dir = Self::place(target);
        let text = serde_json::to_string_pretty(plan).map_err(|e| Error::Unsupported(e.to_string()))? + "\n";
        if !replace && is_taken(target) {
            // A process that ended between its last two steps leaves the package at its target and this folder.
            if finished(target, &dir, &text) {
                let lock = lock(target, &dir)?;
                remove(&dir)?;
                drop(lock);
                return Ok(Begun::Finished);
            }
            // One that ended while it removed this folder leaves what nobody can go on from.
            if dir.is_dir() && !(dir.join(PLAN).exists() && dir.join(JOURNAL).exists()) {
                let _ = Self::give_up(target);
            }
            return Err(in_the_way(target));
        }
        match fs::create_dir(&dir) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(Error::io("write", target, e)),
            Ok(()) | Err(_) => {}
        }
        let lock = lock(target, &dir)?;
        let said = fs::read_to_string(dir.join(PLAN)).ok();
        let resumed = match said {
            Some(said) if said == text && dir.join(JOURNAL).is_file() => prepared(&dir, shards),
            Some(said) if said != text && !force => return Err(another_plan(target, &dir, &said, plan)),
            Some(_) | None => false,
        };
        if !resumed {
            clear(&dir)?;
            create(&dir, &text, shards)?;
        }
        let (journal, records) = open_journal(&dir.join(JOURNAL))?;
        let (mut flushed, mut perhaps) = (Vec::new(), Vec::new());
        for record in records {
            match record {
                Record::Done(written) => perhaps.push(written),
                Record::Flushed(paths) => {
                    let paths: BTreeSet<String> = paths.into_iter().collect();
                    flushed.extend(perhaps.extract_if(.., |written| paths.contains(&written.path)));
                }
                Record::Finished(_) => {}
            }
        }
        let folder = Folder { target: target.to_owned(), dir, replace, journal, _lock: lock };
        Ok(Begun::Going { folder, flushed, perhaps })
    }

    /// Removes all that was done for a target; no other process may be at work there.
    ///
    /// # Errors
    /// When one is, or something cannot be removed.
    pub fn give_up(target: &FilePath) -> Result<()> {
        let dir = Self::place(target);
        let lock = lock(target, &dir)?;
        remove(&dir)?;
        drop(lock);
        Ok(())
    }

    /// Where a file of the package lies until the end.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(PACKAGE).join(name)
    }

    /// Adds lines to the journal; to the disk itself with `sync`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn record(&self, records: &[Record], sync: bool) -> Result<()> {
        let lines: String = records.iter().map(Record::line).collect::<Result<_>>()?;
        let mut journal = &self.journal;
        let written = journal.write_all(lines.as_bytes());
        let written = written.and_then(|()| if sync { self.journal.sync_data() } else { Ok(()) });
        written.map_err(|e| self.failed(JOURNAL, e))
    }

    /// Writes a small file of the package, down to the disk.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        write_whole(&self.file(name), bytes).map_err(|e| self.failed(name, e))
    }

    /// The error for a write that failed, with what to do where the disk is full.
    pub fn failed(&self, name: &str, error: io::Error) -> Error {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::Target {
                target: self.target.clone(),
                reason: format!(
                    "is not whole: the disk is full (`{name}`). What is done is kept in `{}`; free some space and \
                     run the same command again, which goes on from there",
                    self.dir.display()
                ),
            },
            _ => Error::io("write", &self.target.join(name), error),
        }
    }

    /// Puts the package at its target, and removes the folder.
    ///
    /// # Errors
    /// When something is in the way there by now, or a rename fails; the same command then ends what is left to do.
    pub fn finish(self, manifest_sha256: &str) -> Result<()> {
        let io = |e| Error::io("write", &self.target, e);
        let package = self.dir.join(PACKAGE);
        self.record(&[Record::Finished(manifest_sha256.to_owned())], true)?;
        sync_folder(&package);
        if self.replace {
            // A process that ended between these steps leaves the old one here, and the next one goes on.
            let old = self.dir.join(OLD);
            remove_all(&old)?;
            fs::rename(&self.target, &old).map_err(io)?;
        } else if fs::symlink_metadata(&self.target).is_ok() {
            // Fails unless the directory is empty.
            fs::remove_dir(&self.target).map_err(|_| in_the_way(&self.target))?;
        }
        fs::rename(&package, &self.target).map_err(io)?;
        sync_folder(parent(&self.target));
        remove(&self.dir)
    }
}

fn lock(target: &FilePath, dir: &FilePath) -> Result<File> {
    let name = dir.join(LOCK);
    let open = File::options().create(true).truncate(false).write(true).open(&name);
    let file = open.map_err(|e| Error::io("write", &name, e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::Target {
            target: target.to_owned(),
            reason: "is being written by another process; wait for it, or give another name".to_owned(),
        }),
        Err(TryLockError::Error(e)) => Err(Error::io("lock", &name, e)),
    }
}

/// Whether the package at the target is the one that this folder was for.
fn finished(target: &FilePath, dir: &FilePath, plan: &str) -> bool {
    if fs::read_to_string(dir.join(PLAN)).ok().as_deref() != Some(plan) || dir.join(PACKAGE).exists() {
        return false;
    }
    let Ok(text) = fs::read_to_string(dir.join(JOURNAL)) else { return false };
    let Ok(line) = fs::read_to_string(target.join(MANIFEST_HASH)) else { return false };
    text.lines().filter_map(Record::read).any(|record| match record {
        Record::Finished(hash) => line.starts_with(&hash),
        Record::Done(_) | Record::Flushed(_) => false,
    })
}

/// Whether every shard is there in its length.
fn prepared(dir: &FilePath, shards: &Shards) -> bool {
    shards.list.iter().all(|shard| {
        fs::metadata(dir.join(PACKAGE).join(&shard.name)).is_ok_and(|stat| stat.len() == shard.bytes)
    })
}

fn another_plan(target: &FilePath, dir: &FilePath, said: &str, plan: &PlanId) -> Error {
    let said: PlanId = serde_json::from_str(said).unwrap_or_default();
    let keys = said.keys().chain(plan.keys());
    let mut differ: Vec<&str> =
        keys.filter(|key| said.get(*key) != plan.get(*key)).map(String::as_str).collect();
    differ.sort_unstable();
    differ.dedup();
    Error::Target {
        target: target.to_owned(),
        reason: format!(
            "was begun with another plan ({} differ), in `{}`; run the command that began it to go on with that, or \
             this one with --force to start over",
            differ.join(", "),
            dir.display()
        ),
    }
}

/// Removes all but the lock.
fn clear(dir: &FilePath) -> Result<()> {
    let io = |e| Error::io("write", dir, e);
    // The plan goes first: without it the rest is not believed.
    for name in [PLAN, JOURNAL] {
        match fs::remove_file(dir.join(name)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(io(e)),
            Ok(()) | Err(_) => {}
        }
    }
    remove_all(&dir.join(PACKAGE))?;
    remove_all(&dir.join(OLD))
}

/// Removes a folder that may not be there.
fn remove_all(dir: &FilePath) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", dir, e)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Makes shards with nothing but headers in them, then the plan, then the journal.
fn create(dir: &FilePath, plan: &str, shards: &Shards) -> Result<()> {
    let package = dir.join(PACKAGE);
    let io = |e| Error::io("write", &package, e);
    fs::create_dir(&package).map_err(io)?;
    for shard in &shards.list {
        let file = File::create_new(package.join(&shard.name)).map_err(io)?;
        file.set_len(shard.bytes).and_then(|()| write_all_at(&file, &shard.header, 0)).map_err(io)?;
        file.sync_all().map_err(io)?;
    }
    sync_folder(&package);
    let temp = dir.join(format!("{PLAN}.new"));
    write_whole(&temp, plan.as_bytes()).map_err(io)?;
    fs::rename(&temp, dir.join(PLAN)).map_err(io)?;
    write_whole(&dir.join(JOURNAL), b"").map_err(io)?;
    sync_folder(dir);
    Ok(())
}

fn write_whole(file: &FilePath, bytes: &[u8]) -> io::Result<()> {
    let mut out = File::create(file)?;
    out.write_all(bytes)?;
    out.sync_all()
}

/// The journal, ready for more lines, and the lines that were written whole. What comes after the first that was not is
/// cut off.
fn open_journal(name: &FilePath) -> Result<(File, Vec<Record>)> {
    let io = |e| Error::io("read", name, e);
    let mut file = File::options().read(true).write(true).open(name).map_err(io)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(io)?;
    let (mut records, mut good) = (Vec::new(), 0);
    for line in bytes.split_inclusive(|&byte| byte == b'\n') {
        let record =
            line.strip_suffix(b"\n").and_then(|line| std::str::from_utf8(line).ok()).and_then(Record::read);
        let Some(record) = record else { break };
        good += line.len() as u64;
        records.push(record);
    }
    file.set_len(good).and_then(|()| file.seek(SeekFrom::Start(good))).map_err(io)?;
    Ok((file, records))
}

fn remove(dir: &FilePath) -> Result<()> {
    remove_all(&dir.join(OLD))?;
    remove_all(&dir.join(PACKAGE))?;
    remove_all(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_journal_is_read_as_far_as_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let name = folder.path().join(JOURNAL);
        let written = |path: &str| {
            let tensors = BTreeMap::from([(format!("{path}/qvalue"), "aa".to_owned())]);
            Record::Done(Written { path: path.to_owned(), sha256: "bb".to_owned(), tensors })
        };
        let records = [
            written("a"),
            Record::Flushed(vec!["a".to_owned()]),
            written("b"),
            Record::Finished("cc".to_owned()),
        ];
        let lines: Vec<String> = records.iter().map(|r| r.line().unwrap()).collect();
        let text = lines.concat();
        for cut in 0..=text.len() {
            fs::write(&name, &text[..cut]).unwrap();
            let whole = (0..=records.len()).rfind(|&n| lines[..n].concat().len() <= cut).unwrap();
            let (file, found) = open_journal(&name).unwrap();
            assert_eq!(found, records[..whole], "{cut} bytes");
            assert_eq!(file.metadata().unwrap().len() as usize, lines[..whole].concat().len());
        }
        // A flipped bit ends it there.
        for at in 0..lines[0].len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            fs::write(&name, bytes).unwrap();
            assert_eq!(open_journal(&name).unwrap().1, [], "bit at {at}");
        }
    }
}
