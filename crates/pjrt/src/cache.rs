//! Compiled programs on disk.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::{Client, CompileOptions, Executable, PjrtError, Program, Result};

/// A folder of compiled programs.
///
/// An entry is found by what it was made from: program, options, platform, plugin and kind of machine. It carries a
/// checksum, because plugins need not survive damaged code.
#[derive(Clone, Debug)]
pub struct Cache {
    dir: PathBuf,
}

/// Where an executable came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The cache had it.
    Cached,
    /// It was compiled; the cache did not have it.
    Compiled,
    /// It was compiled although the cache had an entry, which was not usable, or could not be written: why.
    Instead(String),
}

/// How an entry begins; then the checksum of the rest.
const MAGIC: &[u8] = b"qwix-xla-executable-1\n";
const CHECKSUM: usize = 32;

impl Cache {
    /// A cache in this folder, which is made when the first entry is written.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Cache { dir: dir.into() }
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The entry of a program, whether it is there or not.
    pub fn entry(&self, client: &Client, program: &Program, options: &CompileOptions) -> PathBuf {
        let mut name = String::with_capacity(2 * CHECKSUM + 4);
        for byte in key(client, program, options) {
            let _ = write!(name, "{byte:02x}");
        }
        self.dir.join(name).with_extension("xla")
    }

    /// The executable of a program, from the cache, or compiled and then put there. Trouble with the cache is never an
    /// error: the program is compiled, and [`Origin::Instead`] says why.
    ///
    /// # Errors
    /// When the program cannot be compiled.
    pub fn compile(
        &self,
        client: &Client,
        program: &Program,
        options: &CompileOptions,
    ) -> Result<(Executable, Origin)> {
        let file = self.entry(client, program, options);
        let mut origin = Origin::Compiled;
        match std::fs::read(&file) {
            Ok(bytes) => {
                let loaded = payload(&bytes)
                    .and_then(|code| client.deserialize(code, program, options).map_err(|e| e.to_string()));
                match loaded {
                    Ok(executable) => return Ok((executable, Origin::Cached)),
                    Err(reason) => {
                        origin = Origin::Instead(format!("`{}` was compiled anew: {reason}", file.display()));
                    }
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => origin = Origin::Instead(format!("`{}` cannot be read: {error}", file.display())),
        }
        let executable = client.compile(program, options)?;
        let written = executable.serialize().and_then(|code| {
            write(&file, &code).map_err(|e| PjrtError::install(format!("write `{}`", file.display()), e))
        });
        if let Err(error) = written {
            origin = Origin::Instead(error.to_string());
        }
        Ok((executable, origin))
    }
}

/// The code of an entry, when the entry is whole.
fn payload(bytes: &[u8]) -> Result<&[u8], String> {
    let rest = bytes.strip_prefix(MAGIC).ok_or("it is no entry of this cache")?;
    let (checksum, code) = rest.split_at_checked(CHECKSUM).ok_or("it is cut short")?;
    if Sha256::digest(code).as_slice() == checksum { Ok(code) } else { Err("it is damaged".to_owned()) }
}

/// Whole or not there.
fn write(file: &Path, code: &[u8]) -> std::io::Result<()> {
    let dir = file.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir)?;
    let mut new = tempfile::NamedTempFile::new_in(dir)?;
    new.write_all(MAGIC)?;
    new.write_all(&Sha256::digest(code))?;
    new.write_all(code)?;
    new.persist(file)?;
    Ok(())
}

/// What a compiled program depends on, hashed: each part with its length before it.
fn key(client: &Client, program: &Program, options: &CompileOptions) -> [u8; CHECKSUM] {
    let plugin = client.plugin();
    let file = std::fs::metadata(plugin.path()).ok();
    let library = file.map(|file| (file.len(), file.modified().ok()));
    let devices: Vec<&str> = client.devices().iter().map(|device| device.kind()).collect();
    let machine = if client.platform_name() == "cpu" { cpu_features() } else { String::new() };
    let options = options.encode();
    let versions = format!("{:?} {:?} {library:?} {devices:?}", plugin.api_version(), plugin.attributes());
    let parts: [&[u8]; 6] = [
        &program.bytes,
        &options,
        client.platform_name().as_bytes(),
        client.platform_version().as_bytes(),
        versions.as_bytes(),
        machine.as_bytes(),
    ];
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

/// What sets one CPU apart from another for a compiler, where the system says.
fn cpu_features() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let of = |name: &str| info.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
    format!("{} {} {} {}", std::env::consts::ARCH, of("model name"), of("flags"), of("Features"))
}
