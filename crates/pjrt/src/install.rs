//! Plugins from PyPI: pip fetches, the library and its licence are unpacked, nothing else.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};
use zip::ZipArchive;

use crate::plugins::{Wheel, installed_path, plugins_dir};
use crate::{PjrtError, Result};

/// The most that a library may have; a larger one is not what was asked for.
const MAX_LIBRARY: u64 = 4 << 30;

/// A plugin that was installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// The library.
    pub path: PathBuf,
    /// The wheel's file name; nothing when the plugin was there already.
    pub wheel: Option<String>,
    /// The texts of the licences in the wheel.
    pub licences: Vec<String>,
}

/// Installs a plugin for this user, unless it is there: fetches the wheel with pip, checks its hash where the version is
/// pinned, and unpacks the library and the licences. `python` runs pip.
///
/// # Errors
/// When there is no Python with pip, pip fails, or the wheel is not the one expected.
pub fn install(wheel: &Wheel, python: &str, force: bool) -> Result<Installed> {
    let path = installed_path(wheel)?;
    if path.is_file() && !force {
        return Ok(Installed { path, wheel: None, licences: Vec::new() });
    }
    let dir = plugins_dir()?;
    std::fs::create_dir_all(&dir).map_err(|e| failed("make", &dir, e))?;
    // In the same folder, so that the plugin is whole or not there.
    let temporary = tempfile::tempdir_in(&dir).map_err(|e| failed("make a folder in", &dir, e))?;
    let downloads = temporary.path().join("download");
    let fetched = download(wheel, python, &downloads)?;
    if let Some(expected) = wheel.sha256 {
        let found = sha256(&fetched).map_err(|e| failed("read", &fetched, e))?;
        if found != expected {
            let reason = format!("its SHA-256 is {found}, expected {expected}");
            return Err(PjrtError::install(format!("use {}", fetched.display()), reason));
        }
    }
    let unpacked = temporary.path().join("unpacked");
    let licences = unpack(wheel, &fetched, &unpacked)?;
    let target = dir.join(wheel.name);
    if target.exists() && (force || !path.is_file()) {
        std::fs::remove_dir_all(&target).map_err(|e| failed("replace", &target, e))?;
    }
    if let Err(error) = std::fs::rename(&unpacked, &target) {
        // Somebody else was faster.
        if !path.is_file() {
            return Err(failed("write", &target, error));
        }
    }
    let name = fetched.file_name().map(|name| name.to_string_lossy().into_owned());
    Ok(Installed { path, wheel: name, licences })
}

fn failed(action: &str, path: &Path, error: impl ToString) -> PjrtError {
    PjrtError::install(format!("{action} `{}`", path.display()), error)
}

/// Lets pip fetch the wheel; gives its path.
fn download(wheel: &Wheel, python: &str, into: &Path) -> Result<PathBuf> {
    let action = format!("fetch {}", wheel.requirement);
    let output = Command::new(python)
        .args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"])
        .args(["--no-deps", "--only-binary=:all:", "--dest"])
        .arg(into)
        .arg(wheel.requirement)
        .output()
        .map_err(|e| PjrtError::install(&action, format!("`{python}` does not start: {e}")))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let reason = format!("`{python} -m pip download` failed: {}", said.join("; "));
        return Err(PjrtError::install(action, reason));
    }
    let entries = std::fs::read_dir(into).map_err(|e| failed("read", into, e))?;
    let found = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"));
    found.ok_or_else(|| PjrtError::install(action, "pip left no wheel"))
}

fn sha256(file: &Path) -> io::Result<String> {
    let (mut file, mut hash) = (File::open(file)?, Sha256::new());
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => hash.update(&buffer[..count]),
        }
    }
    let mut text = String::new();
    for byte in hash.finalize() {
        let _ = write!(text, "{byte:02x}");
    }
    Ok(text)
}

/// Unpacks the library and the licences into a new folder; gives the texts of the licences.
fn unpack(wheel: &Wheel, archive: &Path, into: &Path) -> Result<Vec<String>> {
    let bad = |reason: String| failed("unpack", archive, reason);
    let file = File::open(archive).map_err(|e| bad(e.to_string()))?;
    let mut zip = ZipArchive::new(file).map_err(|e| bad(e.to_string()))?;
    std::fs::create_dir_all(into).map_err(|e| failed("make", into, e))?;
    let (mut has_library, mut licences) = (false, Vec::new());
    for index in 0..zip.len() {
        let mut entry = zip.by_index(index).map_err(|e| bad(e.to_string()))?;
        // Only the last part of a name is used: no entry can be written elsewhere.
        let name = entry.name().rsplit('/').next().unwrap_or_default().to_owned();
        if name == wheel.library {
            let path = into.join(wheel.library);
            let mut out = File::create(&path).map_err(|e| failed("write", &path, e))?;
            let copied = io::copy(&mut entry.by_ref().take(MAX_LIBRARY), &mut out);
            let copied = copied.map_err(|e| failed("write", &path, e))?;
            if copied != entry.size() {
                return Err(bad(format!("`{name}` has more than {MAX_LIBRARY} bytes")));
            }
            has_library = true;
        } else if is_licence(entry.name(), &name) {
            let mut text = Vec::new();
            entry.by_ref().take(16 << 20).read_to_end(&mut text).map_err(|e| bad(e.to_string()))?;
            let path = into.join(&name);
            std::fs::write(&path, &text).map_err(|e| failed("write", &path, e))?;
            licences.push(String::from_utf8_lossy(&text).into_owned());
        }
    }
    if has_library { Ok(licences) } else { Err(bad(format!("it has no `{}`", wheel.library))) }
}

fn is_licence(path: &str, name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    path.contains(".dist-info/") && (name.starts_with("LICEN") || name.contains("NOTICE"))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    use super::*;
    use crate::plugins::WHEELS;

    fn archive(dir: &Path, entries: &[(&str, &[u8])]) -> PathBuf {
        let path = dir.join("some.whl");
        let mut zip = ZipWriter::new(File::create(&path).unwrap());
        for (name, bytes) in entries {
            zip.start_file(*name, SimpleFileOptions::default()).unwrap();
            zip.write_all(bytes).unwrap();
        }
        zip.finish().unwrap();
        path
    }

    #[test]
    fn only_library_and_licences_are_unpacked() {
        let dir = tempfile::tempdir().unwrap();
        let wheel = &WHEELS[0];
        let whole = archive(
            dir.path(),
            &[
                ("x/__init__.py", b"1"),
                ("x/../../pjrt_c_api_cpu_plugin.so", b"library"),
                ("x-1.dist-info/licenses/LICENSE", b"terms"),
                ("x-1.dist-info/METADATA", b"2"),
            ],
        );
        let into = dir.path().join("unpacked");
        assert_eq!(unpack(wheel, &whole, &into).unwrap(), ["terms"]);
        let mut names: Vec<_> = std::fs::read_dir(&into)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["LICENSE", "pjrt_c_api_cpu_plugin.so"]);
        assert_eq!(std::fs::read(into.join("pjrt_c_api_cpu_plugin.so")).unwrap(), b"library");
    }

    #[test]
    fn what_is_no_such_wheel_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let without = archive(dir.path(), &[("x/__init__.py", b"1")]);
        let error = unpack(&WHEELS[0], &without, &dir.path().join("a")).unwrap_err().to_string();
        assert!(error.contains("has no `pjrt_c_api_cpu_plugin.so`"), "{error}");
        let text = dir.path().join("text.whl");
        std::fs::write(&text, "no archive").unwrap();
        assert!(unpack(&WHEELS[0], &text, &dir.path().join("b")).is_err());
    }

    #[test]
    fn without_python_there_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let error = download(&WHEELS[0], "no-such-python", dir.path()).unwrap_err().to_string();
        assert!(error.contains("no-such-python"), "{error}");
    }
}
