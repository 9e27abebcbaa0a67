//! Files and directories written whole or not at all.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path as FilePath, PathBuf};

use crate::{Error, Result};

/// The most that a model may have: protobuf's own limit.
pub const MAX_MODEL: u64 = (1 << 31) - 1;
/// The most that rules, an index of shards or a manifest may have.
pub const MAX_TEXT: u64 = 1 << 28;

/// Reads a file of up to `most` bytes.
///
/// # Errors
/// [`Error::Io`], also when there is more to read (a device never ends).
pub fn read_file(file: &FilePath, most: u64) -> Result<Vec<u8>> {
    let io = |source| Error::io("read", file, source);
    let opened = File::open(file).map_err(io)?;
    let size = opened.metadata().map_or(0, |stat| stat.len().min(most));
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
    opened.take(most.saturating_add(1)).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > most {
        let reason = format!("it has more than {most} bytes, the most that is read of such a file");
        return Err(io(io::Error::new(io::ErrorKind::FileTooLarge, reason)));
    }
    Ok(bytes)
}

/// Reads a text file of up to [`MAX_TEXT`] bytes.
///
/// # Errors
/// [`Error::Io`], also when it is larger or not UTF-8.
pub fn read_text(file: &FilePath) -> Result<String> {
    let not_text = |e| Error::io("read", file, io::Error::new(io::ErrorKind::InvalidData, e));
    String::from_utf8(read_file(file, MAX_TEXT)?).map_err(not_text)
}

/// Writes a file through a temporary one beside it: at any time the target is the old one or the whole new one.
/// A target that is no regular file (a pipe, a device) is written straight.
///
/// # Errors
/// [`Error::Io`]; the temporary file is removed.
pub fn write_file(target: &FilePath, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let io = |source| Error::io("write", target, source);
    if fs::metadata(target).is_ok_and(|stat| !stat.is_file() && !stat.is_dir()) {
        let mut out = BufWriter::new(File::options().write(true).open(target).map_err(io)?);
        return write(&mut out).and_then(|()| out.flush()).map_err(io);
    }
    replace_file(target, |file| {
        let mut out = BufWriter::new(file);
        write(&mut out).and_then(|()| out.flush()).map_err(io)
    })
}

/// As [`write_file`], for what is not written from the first byte to the last: a regular file only.
///
/// # Errors
/// [`Error::Io`], [`Error::Target`], or what `write` returns; the temporary file is removed.
pub fn write_file_in_parts(target: &FilePath, write: impl FnOnce(&File) -> Result<()>) -> Result<()> {
    if fs::metadata(target).is_ok_and(|stat| !stat.is_file() && !stat.is_dir()) {
        return Err(Error::Target {
            target: target.to_owned(),
            reason: "is no regular file, and this is not written in one go; give a file name".into(),
        });
    }
    replace_file(target, write)
}

fn replace_file(target: &FilePath, write: impl FnOnce(&File) -> Result<()>) -> Result<()> {
    if target.is_dir() {
        return Err(Error::Target {
            target: target.to_owned(),
            reason: "is a directory; give a file name".into(),
        });
    }
    // A link stays a link, and what it points to is replaced.
    let target = &fs::canonicalize(target).unwrap_or_else(|_| target.to_owned());
    let io = |source| Error::io("write", target, source);
    let temp = temp_file(target).map_err(io)?;
    write(temp.as_file())?;
    temp.as_file().sync_all().map_err(io)?;
    temp.persist(target).map_err(|e| io(e.error))?;
    sync_folder(parent(target));
    Ok(())
}

/// Fills a buffer from a place in a file.
#[cfg(unix)]
pub(crate) fn read_exact_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

/// Writes at a place in a file.
#[cfg(unix)]
pub(crate) fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

/// Fills a buffer from a place in a file.
#[cfg(windows)]
pub(crate) fn read_exact_at(file: &File, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let n = std::os::windows::fs::FileExt::seek_read(file, bytes, offset)?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bytes = &mut bytes[n..];
        offset += n as u64;
    }
    Ok(())
}

/// Writes at a place in a file.
#[cfg(windows)]
pub(crate) fn write_all_at(file: &File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let n = std::os::windows::fs::FileExt::seek_write(file, bytes, offset)?;
        if n == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        bytes = &bytes[n..];
        offset += n as u64;
    }
    Ok(())
}

/// So many threads as were asked for; for 0, as many as the machine has cores.
pub(crate) fn available_threads(asked: usize) -> usize {
    match asked {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        asked => asked,
    }
}

/// A directory in the making beside its target; gone when it is dropped before [`NewDir::commit`].
#[derive(Debug)]
pub struct NewDir {
    target: PathBuf,
    temp: tempfile::TempDir,
}

impl NewDir {
    /// Begins a directory that will stand at `target`.
    ///
    /// # Errors
    /// When something is in the way already (unless `replace`), or the parent does not exist or cannot be written.
    pub fn begin(target: &FilePath, replace: bool) -> Result<Self> {
        if !replace && is_taken(target) {
            return Err(in_the_way(target));
        }
        let temp = tempfile::Builder::new()
            .prefix(&hidden_prefix(target))
            .tempdir_in(parent(target))
            .map_err(|source| Error::io("write", target, source))?;
        Ok(NewDir { target: target.to_owned(), temp })
    }

    /// Begins one file of it.
    ///
    /// # Errors
    /// [`Error::Io`], under the name that the file will have.
    pub fn create(&self, name: &str) -> Result<NewFile> {
        let shown = self.target.join(name);
        let file =
            File::create_new(self.temp.path().join(name)).map_err(|e| Error::io("write", &shown, e))?;
        Ok(NewFile { name: shown, out: BufWriter::new(file) })
    }

    /// Writes one file of it.
    ///
    /// # Errors
    /// [`Error::Io`], under the name that the file will have.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let mut file = self.create(name)?;
        file.out.write_all(bytes).map_err(|e| Error::io("write", &file.name, e))?;
        file.finish()
    }

    /// The name that a file of it will have.
    pub(crate) fn shown(&self, name: &str) -> PathBuf {
        self.target.join(name)
    }

    /// Puts it at its target: where nothing is, in place of an empty directory, or, with `replace`, in place of the
    /// directory that is there (moved aside first, and back when something fails).
    ///
    /// # Errors
    /// When the target is in the way or the rename fails; the target is as it was.
    pub fn commit(self, replace: bool) -> Result<()> {
        let io = |source| Error::io("write", &self.target, source);
        set_readable(self.temp.path()).map_err(io)?;
        sync_folder(self.temp.path());
        let folder = parent(&self.target).to_owned();
        match fs::symlink_metadata(&self.target) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(io(e)),
            // Fails unless the directory is empty, which is what we want to know.
            Ok(_) if fs::remove_dir(&self.target).is_ok() => {}
            Ok(_) if !replace => {
                return Err(in_the_way(&self.target));
            }
            Ok(_) => {
                let aside = tempfile::Builder::new()
                    .prefix(&hidden_prefix(&self.target))
                    .tempdir_in(&folder)
                    .map_err(io)?;
                let old = aside.path().join("old");
                fs::rename(&self.target, &old).map_err(io)?;
                if let Err(e) = fs::rename(self.temp.path(), &self.target) {
                    // The directory that was there goes back; should even that fail, it stays aside, not deleted.
                    if fs::rename(&old, &self.target).is_err() {
                        let kept = aside.keep();
                        return Err(Error::Target {
                            target: self.target.clone(),
                            reason: format!(
                                "could not be replaced ({e}); what was there is in `{}`",
                                kept.display()
                            ),
                        });
                    }
                    return Err(io(e));
                }
                let _ = self.temp.keep();
                sync_folder(&folder);
                return Ok(());
            }
        }
        fs::rename(self.temp.path(), &self.target).map_err(io)?;
        let _ = self.temp.keep();
        sync_folder(&folder);
        Ok(())
    }
}

/// A file of a directory in the making.
#[derive(Debug)]
pub struct NewFile {
    name: PathBuf,
    /// What is written goes here.
    pub out: BufWriter<File>,
}

impl NewFile {
    /// The file, to which nothing was written yet.
    pub(crate) fn into_file(self) -> File {
        self.out.into_parts().0
    }

    /// The name that it will have.
    pub fn name(&self) -> &FilePath {
        &self.name
    }

    /// Writes what is buffered, down to the disk.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn finish(mut self) -> Result<()> {
        let done = self.out.flush().and_then(|()| self.out.get_ref().sync_all());
        done.map_err(|e| Error::io("write", &self.name, e))
    }
}

pub(crate) fn parent(target: &FilePath) -> &FilePath {
    match target.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => FilePath::new("."),
    }
}

/// Whether something other than an empty directory is there.
pub(crate) fn is_taken(target: &FilePath) -> bool {
    match fs::read_dir(target) {
        Ok(mut entries) => entries.next().is_some(),
        Err(_) => fs::symlink_metadata(target).is_ok(),
    }
}

pub(crate) fn in_the_way(target: &FilePath) -> Error {
    Error::Target {
        target: target.to_owned(),
        reason: "exists and is not an empty directory; choose another name, or remove it first".into(),
    }
}

pub(crate) fn hidden_prefix(target: &FilePath) -> OsString {
    let mut prefix = OsString::from(".");
    prefix.push(target.file_name().unwrap_or_default());
    prefix.push(".");
    prefix
}

/// A rename is on the disk when its folder is. Not every system can, and the data itself is already there.
pub(crate) fn sync_folder(folder: &FilePath) {
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
}

/// A temporary file beside its target. Such files are private by default; this one is to be as readable as any new file.
fn temp_file(target: &FilePath) -> io::Result<tempfile::NamedTempFile> {
    let prefix = hidden_prefix(target);
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(parent(target))
}

#[cfg(unix)]
fn set_readable(folder: &FilePath) -> io::Result<()> {
    // 0o777 less the umask, which a fresh directory shows.
    let probe = folder.join("mode");
    fs::create_dir(&probe)?;
    let mode = fs::metadata(&probe)?.permissions();
    fs::remove_dir(&probe)?;
    fs::set_permissions(folder, mode)
}

#[cfg(not(unix))]
fn set_readable(_: &FilePath) -> io::Result<()> {
    Ok(())
}
