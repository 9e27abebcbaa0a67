//! One body, compiled once for each width of vector, the widest that the machine has chosen on each call.

#[cfg(target_arch = "x86_64")]
#[path = "x86_64.rs"]
pub(crate) mod arch;
#[cfg(not(target_arch = "x86_64"))]
#[path = "portable.rs"]
pub(crate) mod arch;

pub(crate) use arch::versions;
