//! NVIDIA's libraries, as pip installs them: in folders of a folder `nvidia` of Python packages, where the system's loader
//! does not look.

use std::path::{Path, PathBuf};

use crate::plugins::package_folders;

/// What the plugin for CUDA 13 may load: folder and library, each after those that it needs itself.
const CUDA13: &[(&str, &str)] = &[
    ("cu13", "libcudart.so.13"),
    ("cu13", "libnvrtc.so.13"),
    ("cu13", "libnvJitLink.so.13"),
    ("cu13", "libcublasLt.so.13"),
    ("cu13", "libcublas.so.13"),
    ("cu13", "libcupti.so.13"),
    ("cu13", "libcusparse.so.12"),
    ("cu13", "libcusolver.so.12"),
    ("cu13", "libcufft.so.12"),
    ("nccl", "libnccl.so.2"),
    ("nvshmem", "libnvshmem_host.so.3"),
    ("cudnn", "libcudnn.so.9"),
];

/// As [`CUDA13`], for CUDA 12.
const CUDA12: &[(&str, &str)] = &[
    ("cuda_runtime", "libcudart.so.12"),
    ("cuda_nvrtc", "libnvrtc.so.12"),
    ("nvjitlink", "libnvJitLink.so.12"),
    ("cublas", "libcublasLt.so.12"),
    ("cublas", "libcublas.so.12"),
    ("cuda_cupti", "libcupti.so.12"),
    ("cusparse", "libcusparse.so.12"),
    ("cusolver", "libcusolver.so.11"),
    ("cufft", "libcufft.so.11"),
    ("nccl", "libnccl.so.2"),
    ("nvshmem", "libnvshmem_host.so.3"),
    ("cudnn", "libcudnn.so.9"),
];

/// The libraries that a plugin at this path may load, those of them that pip installed: beside the plugin's own package,
/// or else in the first folder of packages that has any. None when it is no plugin of NVIDIA's.
pub(crate) fn libraries(plugin: &Path) -> Vec<PathBuf> {
    let folder = plugin.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
    let known = match folder.trim_start_matches("xla_") {
        "cuda13" => CUDA13,
        "cuda12" => CUDA12,
        _ => return Vec::new(),
    };
    let beside = plugin.ancestors().nth(3).map(Path::to_owned);
    let found = |packages: PathBuf| {
        let paths =
            known.iter().map(|(folder, name)| packages.join("nvidia").join(folder).join("lib").join(name));
        let there: Vec<PathBuf> = paths.filter(|path| path.is_file()).collect();
        (!there.is_empty()).then_some(there)
    };
    beside.into_iter().chain(package_folders()).find_map(found).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_found_beside_the_plugin() {
        let packages = tempfile::tempdir().unwrap();
        let touch = |path: &str| {
            let path = packages.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, "").unwrap();
            path
        };
        let plugin = touch("jax_plugins/xla_cuda13/xla_cuda_plugin.so");
        let cublas = touch("nvidia/cu13/lib/libcublas.so.13");
        touch("nvidia/cublas/lib/libcublas.so.12");
        let cudnn = touch("nvidia/cudnn/lib/libcudnn.so.9");
        assert_eq!(libraries(&plugin), [cublas, cudnn]);
        assert!(libraries(&touch("lammps_jax_pjrt_cpu/pjrt_c_api_cpu_plugin.so")).is_empty());
    }
}
