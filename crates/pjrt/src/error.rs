//! What can go wrong between here and a device.

use std::path::{Path, PathBuf};

use qwix_array::ArrayError;
use qwix_eval::EvalError;
use qwix_graph::{ExportError, GraphError};

/// Why a plugin could not be found, loaded or used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PjrtError {
    /// A file that is no plugin, or none that can be used here.
    #[error("plugin `{}`: {reason}", path.display())]
    Plugin {
        /// The library.
        path: PathBuf,
        /// What was found, and what was expected.
        reason: String,
    },
    /// No plugin for a kind of device.
    #[error("there is no plugin for {kind}: {reason}")]
    NotFound {
        /// The kind of device.
        kind: String,
        /// Where was looked, and what would install one.
        reason: String,
    },
    /// A function that this plugin does not have.
    #[error("plugin `{}` (PJRT C API {version}) does not have {function}", path.display())]
    Missing {
        /// The library.
        path: PathBuf,
        /// The version of the API that it says it has.
        version: String,
        /// The function.
        function: &'static str,
    },
    /// What the plugin answered.
    #[error("{function}: {message} ({code})")]
    Call {
        /// The function that failed.
        function: &'static str,
        /// What kind of error.
        code: Code,
        /// The plugin's words.
        message: String,
    },
    /// An argument that is refused before the plugin sees it.
    #[error("{what}: {reason}")]
    Invalid {
        /// Which argument.
        what: String,
        /// What was found, and what was expected.
        reason: String,
    },
    /// A plugin that could not be fetched or unpacked, or a file of the cache.
    #[error("cannot {action}: {reason}")]
    Install {
        /// What was tried, and on what.
        action: String,
        /// Why not.
        reason: String,
    },
    /// A graph that has no form as an HLO module.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// A graph that cannot be lowered.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// An array could not be made.
    #[error(transparent)]
    Array(#[from] ArrayError),
}

/// The kinds of errors, the C API's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Code {
    /// The operation was cancelled.
    Cancelled,
    /// Nobody knows.
    Unknown,
    /// An argument that cannot be right.
    InvalidArgument,
    /// It took too long.
    DeadlineExceeded,
    /// Something that is not there.
    NotFound,
    /// Something that is there already.
    AlreadyExists,
    /// Not allowed.
    PermissionDenied,
    /// Out of memory, mostly.
    ResourceExhausted,
    /// Not in this state.
    FailedPrecondition,
    /// Given up.
    Aborted,
    /// Outside the valid range.
    OutOfRange,
    /// The plugin cannot do it.
    Unimplemented,
    /// A mistake in the plugin, or a program that its compiler does not take.
    Internal,
    /// Not now.
    Unavailable,
    /// Data is lost.
    DataLoss,
    /// Nobody knows who asks.
    Unauthenticated,
    /// A number that the API did not have when this was written.
    Other(u32),
}

impl Code {
    pub(crate) fn of(number: u32) -> Self {
        match number {
            1 => Code::Cancelled,
            2 => Code::Unknown,
            3 => Code::InvalidArgument,
            4 => Code::DeadlineExceeded,
            5 => Code::NotFound,
            6 => Code::AlreadyExists,
            7 => Code::PermissionDenied,
            8 => Code::ResourceExhausted,
            9 => Code::FailedPrecondition,
            10 => Code::Aborted,
            11 => Code::OutOfRange,
            12 => Code::Unimplemented,
            13 => Code::Internal,
            14 => Code::Unavailable,
            15 => Code::DataLoss,
            16 => Code::Unauthenticated,
            other => Code::Other(other),
        }
    }
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = match self {
            Code::Cancelled => "cancelled",
            Code::Unknown => "unknown",
            Code::InvalidArgument => "invalid argument",
            Code::DeadlineExceeded => "deadline exceeded",
            Code::NotFound => "not found",
            Code::AlreadyExists => "already exists",
            Code::PermissionDenied => "permission denied",
            Code::ResourceExhausted => "resource exhausted",
            Code::FailedPrecondition => "failed precondition",
            Code::Aborted => "aborted",
            Code::OutOfRange => "out of range",
            Code::Unimplemented => "unimplemented",
            Code::Internal => "internal",
            Code::Unavailable => "unavailable",
            Code::DataLoss => "data loss",
            Code::Unauthenticated => "unauthenticated",
            Code::Other(number) => return write!(f, "code {number}"),
        };
        f.write_str(name)
    }
}

impl PjrtError {
    pub(crate) fn plugin(path: &Path, reason: impl Into<String>) -> Self {
        PjrtError::Plugin { path: path.to_owned(), reason: reason.into() }
    }

    pub(crate) fn invalid(what: impl Into<String>, reason: impl Into<String>) -> Self {
        PjrtError::Invalid { what: what.into(), reason: reason.into() }
    }

    pub(crate) fn install(action: impl Into<String>, reason: impl ToString) -> Self {
        PjrtError::Install { action: action.into(), reason: reason.to_string() }
    }
}

impl From<PjrtError> for EvalError {
    fn from(error: PjrtError) -> Self {
        EvalError::Device { device: "xla".to_owned(), reason: error.to_string() }
    }
}

/// This crate's results.
pub type Result<T, E = PjrtError> = std::result::Result<T, E>;
