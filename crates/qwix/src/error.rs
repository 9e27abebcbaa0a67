//! What can go wrong between files and models.

use std::io;
use std::path::{Path as FilePath, PathBuf};

/// Why a model, a checkpoint or a package could not be read, written or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("cannot {action} `{}`: {source}", file.display())]
    Io {
        /// What was tried: `read`, `write`, …
        action: &'static str,
        /// On which file.
        file: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// A safetensors file (or the index of several) that says something impossible.
    #[error("`{}`{}: {reason}", file.display(), tensor.as_ref().map(|t| format!(", tensor `{t}`")).unwrap_or_default())]
    Checkpoint {
        /// The file.
        file: PathBuf,
        /// The tensor, when it is about one.
        tensor: Option<String>,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// A directory that is not a whole package of a version known here.
    #[error("package `{}`: {reason}", dir.display())]
    Package {
        /// The directory.
        dir: PathBuf,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// A target that is in the way.
    #[error("`{}` {reason}", target.display())]
    Target {
        /// Where something was to be written.
        target: PathBuf,
        /// Why it was not.
        reason: String,
    },
    /// Less memory than quantizing needs.
    #[error(
        "{} of memory are too little: parameter `{path}` needs {}; give --max-memory {}MiB or more",
        mib(*given), mib(*least), least.div_ceil(1 << 20)
    )]
    Memory {
        /// What was allowed, in bytes.
        given: u64,
        /// The least that works.
        least: u64,
        /// The parameter that needs most.
        path: qwix_graph::Path,
    },
    /// Something that has no form on disk or no meaning here.
    #[error("{0}")]
    Unsupported(String),
    /// A model that cannot be read.
    #[error("model `{}`: {reason}", file.display())]
    Model {
        /// The file.
        file: PathBuf,
        /// What is wrong, and where.
        reason: String,
    },
    /// A checkpoint whose parameters are not the model's.
    #[error("`{}`: {source}", file.display())]
    Params {
        /// The checkpoint.
        file: PathBuf,
        /// Which parameter, and what is wrong with it.
        source: Box<qwix_eval::EvalError>,
    },
    /// Rules that cannot be read.
    #[error("`{}`: {source}", file.display())]
    Rules {
        /// The file.
        file: PathBuf,
        /// Which rule and field, and what is wrong.
        source: Box<qwix_ptq::PtqError>,
    },
    /// A batch of calibration data that the model does not take.
    #[error("`{}`, batch {batch}: {reason}", file.display())]
    Batch {
        /// The file.
        file: PathBuf,
        /// The batch's number in it.
        batch: u64,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// Statistics that cannot be read.
    #[error("`{}`: {source}", file.display())]
    Stats {
        /// The file.
        file: PathBuf,
        /// Which statistics, and what is wrong with them.
        source: Box<qwix_ptq::PtqError>,
    },
    /// A model or its parameters that cannot be quantized.
    #[error(transparent)]
    Ptq(#[from] qwix_ptq::PtqError),
    /// A graph that is damaged or cannot be changed as asked.
    #[error(transparent)]
    Graph(#[from] qwix_graph::GraphError),
    /// An array could not be made or read.
    #[error(transparent)]
    Array(#[from] qwix_array::ArrayError),
    /// An array could not be quantized, or a quantized array not put together.
    #[error(transparent)]
    Quant(#[from] qwix_quant::QuantError),
    /// A plugin cannot be found, loaded or used.
    #[error(transparent)]
    Pjrt(#[from] qwix_pjrt::PjrtError),
    /// The graph cannot be compiled or run.
    #[error(transparent)]
    Eval(#[from] qwix_eval::EvalError),
}

/// Bytes for people.
fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

impl Error {
    pub(crate) fn io(action: &'static str, file: &FilePath, source: io::Error) -> Self {
        Error::Io { action, file: file.to_owned(), source }
    }

    pub(crate) fn checkpoint(file: &FilePath, tensor: Option<&str>, reason: impl Into<String>) -> Self {
        Error::Checkpoint { file: file.to_owned(), tensor: tensor.map(str::to_owned), reason: reason.into() }
    }

    pub(crate) fn package(dir: &FilePath, reason: impl Into<String>) -> Self {
        Error::Package { dir: dir.to_owned(), reason: reason.into() }
    }
}

/// The facade's results.
pub type Result<T, E = Error> = std::result::Result<T, E>;
