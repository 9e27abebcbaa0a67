//! Which plugins there are, and where they are found.

use std::path::{Path, PathBuf};

use crate::{PjrtError, Result};

/// A kind of device that has plugins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// The CPU, by XLA.
    Cpu,
    /// NVIDIA's GPUs.
    Cuda,
    /// AMD's GPUs.
    Rocm,
    /// Google's TPUs.
    Tpu,
}

/// A wheel on PyPI that holds a plugin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wheel {
    /// What `qwix plugin install` calls it.
    pub name: &'static str,
    /// The kind of device.
    pub kind: Kind,
    /// What pip is asked for.
    pub requirement: &'static str,
    /// The wheel's hash, where the version is pinned.
    pub sha256: Option<&'static str>,
    /// The library's file name.
    pub library: &'static str,
    /// Where the library lies in the folder of installed packages.
    pub installed: &'static str,
    /// What else must be known.
    pub note: &'static str,
}

/// Every wheel known, the one to be preferred of each kind first.
pub const WHEELS: &[Wheel] = &[
    Wheel {
        name: "cpu",
        kind: Kind::Cpu,
        requirement: "lammps-jax-pjrt-cpu==0.11.2",
        sha256: Some("1319390d948b39f69f7dade496b7c385149d9ca6097a6b62114da113216d9ad1"),
        library: "pjrt_c_api_cpu_plugin.so",
        installed: "lammps_jax_pjrt_cpu",
        note: "XLA for x86-64 Linux, built by a third party. Licence: Apache-2.0.",
    },
    Wheel {
        name: "cuda13",
        kind: Kind::Cuda,
        requirement: "jax-cuda13-pjrt",
        sha256: None,
        library: "xla_cuda_plugin.so",
        installed: "jax_plugins/xla_cuda13",
        note: "Needs the libraries of CUDA 13 and cuDNN: as pip installs them (jax[cuda13]), or where the system's loader finds them (LD_LIBRARY_PATH). Licence: Apache-2.0.",
    },
    Wheel {
        name: "cuda12",
        kind: Kind::Cuda,
        requirement: "jax-cuda12-pjrt",
        sha256: None,
        library: "xla_cuda_plugin.so",
        installed: "jax_plugins/xla_cuda12",
        note: "Needs the libraries of CUDA 12 and cuDNN: as pip installs them (jax[cuda12]), or where the system's loader finds them (LD_LIBRARY_PATH). Licence: Apache-2.0.",
    },
    Wheel {
        name: "rocm",
        kind: Kind::Rocm,
        requirement: "jax-rocm7-pjrt",
        sha256: None,
        library: "xla_rocm_plugin.so",
        installed: "jax_plugins/xla_rocm7",
        note: "Needs the libraries of ROCm 7. Licence: Apache-2.0.",
    },
    Wheel {
        name: "tpu",
        kind: Kind::Tpu,
        requirement: "libtpu",
        sha256: None,
        library: "libtpu.so",
        installed: "libtpu",
        note: "Licence: the terms of Google Cloud; it may not be passed on. Outside Google Cloud it waits for a metadata server; one process a TPU.",
    },
];

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 4] = [Kind::Cpu, Kind::Cuda, Kind::Rocm, Kind::Tpu];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Cpu => "cpu",
            Kind::Cuda => "cuda",
            Kind::Rocm => "rocm",
            Kind::Tpu => "tpu",
        }
    }

    /// The environment variable that names a library of this kind.
    pub fn variable(self) -> &'static str {
        match self {
            Kind::Cpu => "QWIX_PJRT_PLUGIN_CPU",
            Kind::Cuda => "QWIX_PJRT_PLUGIN_CUDA",
            Kind::Rocm => "QWIX_PJRT_PLUGIN_ROCM",
            Kind::Tpu => "QWIX_PJRT_PLUGIN_TPU",
        }
    }

    /// The wheels of this kind, the best first.
    pub fn wheels(self) -> impl Iterator<Item = &'static Wheel> {
        WHEELS.iter().filter(move |wheel| wheel.kind == self)
    }
}

/// Where a plugin was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// Its environment variable.
    Variable,
    /// `qwix plugin install`.
    Installed,
    /// A wheel that pip installed.
    Wheel,
}

/// The libraries of a kind that are on this machine, the one that is used first.
pub fn candidates(kind: Kind) -> Vec<(Source, PathBuf)> {
    let mut found = Vec::new();
    if let Some(path) = std::env::var_os(kind.variable()).filter(|path| !path.is_empty()) {
        found.push((Source::Variable, PathBuf::from(path)));
    }
    let installed = kind.wheels().filter_map(|wheel| Some((Source::Installed, installed_path(wheel).ok()?)));
    let folders = package_folders();
    let wheels = kind.wheels().flat_map(|wheel| {
        let path = |folder: &PathBuf| (Source::Wheel, folder.join(wheel.installed).join(wheel.library));
        folders.iter().map(path).collect::<Vec<_>>()
    });
    found.extend(installed.chain(wheels).filter(|(_, path)| path.is_file()));
    found
}

/// The library of a kind: that of its environment variable, else what `qwix plugin install` installed, else a wheel that
/// pip installed.
///
/// # Errors
/// When there is none; the error says what installs one.
pub fn find(kind: Kind) -> Result<PathBuf> {
    if let Some((_, path)) = candidates(kind).into_iter().next() {
        return Ok(path);
    }
    let names: Vec<&str> = kind.wheels().map(|wheel| wheel.name).collect();
    Err(PjrtError::NotFound {
        kind: kind.name().to_owned(),
        reason: format!(
            "install one with `qwix plugin install {}`, or name a library in {}",
            names.join("` or `qwix plugin install "),
            kind.variable()
        ),
    })
}

/// The library that a name means: nothing or `cpu`, `cuda`, `rocm`, `tpu`, or a path.
///
/// # Errors
/// As [`find`].
pub fn resolve(name: &str) -> Result<PathBuf> {
    match Kind::ALL.into_iter().find(|kind| kind.name() == name) {
        Some(kind) => find(kind),
        None if name.is_empty() => find(Kind::Cpu),
        None => {
            let path = PathBuf::from(name);
            if path.exists() {
                return Ok(path);
            }
            let kinds: Vec<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
            let reason = format!("is neither a library nor one of {}", kinds.join(", "));
            Err(PjrtError::plugin(&path, reason))
        }
    }
}

/// Where `qwix plugin install` puts plugins: a folder of the user's cache.
///
/// # Errors
/// When there is no home.
pub fn plugins_dir() -> Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let cache = set("XDG_CACHE_HOME").filter(|path| path.is_absolute());
    let cache = cache.or_else(|| set("HOME").map(|home| home.join(".cache")));
    let cache = cache.ok_or_else(|| {
        PjrtError::install("find the user's cache", "neither XDG_CACHE_HOME nor HOME is set")
    })?;
    Ok(cache.join("qwix").join("plugins"))
}

/// Where the library of a wheel is once installed.
pub(crate) fn installed_path(wheel: &Wheel) -> Result<PathBuf> {
    Ok(plugins_dir()?.join(wheel.name).join(wheel.library))
}

/// The folders of installed Python packages: of the active environment, of the `python3` that is found first, of the user
/// and of the system.
pub(crate) fn package_folders() -> Vec<PathBuf> {
    let mut roots: Vec<PathBuf> = Vec::new();
    roots.extend(std::env::var_os("VIRTUAL_ENV").map(PathBuf::from));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let python = std::env::split_paths(&path).find(|dir| dir.join("python3").is_file());
    roots.extend(python.as_deref().and_then(Path::parent).map(Path::to_owned));
    roots.extend(std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local")));
    roots.extend([PathBuf::from("/usr/local"), PathBuf::from("/usr")]);
    let mut folders = Vec::new();
    for root in roots {
        let Ok(entries) = std::fs::read_dir(root.join("lib")) else { continue };
        let mut versions: Vec<PathBuf> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("python3")))
            .collect();
        // The latest first.
        versions.sort_by_key(|path| std::cmp::Reverse(minor_version(path)));
        for version in versions {
            for packages in ["site-packages", "dist-packages"] {
                let folder = version.join(packages);
                if folder.is_dir() && !folders.contains(&folder) {
                    folders.push(folder);
                }
            }
        }
    }
    folders
}

fn minor_version(path: &Path) -> u32 {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    name.trim_start_matches("python3").trim_start_matches('.').parse().unwrap_or(0)
}
