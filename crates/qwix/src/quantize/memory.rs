//! How much memory the process has, and how much a piece of work takes.

use qwix_array::DType;
use qwix_graph::{ArrayType, Prep};
use qwix_quant::Whole;

use super::cut::{Cut, Region, followed, scale_region, sizes};

/// Memory of this process beside what pieces of work take, where the system does not say.
const UNKNOWN_RESIDENT: u64 = 64 << 20;

/// Bytes of memory of this process that are resident now.
pub(crate) fn resident() -> u64 {
    status("VmRSS:").unwrap_or(UNKNOWN_RESIDENT)
}

/// The most bytes of memory that were resident at once since the process began, where the system says.
pub fn peak_resident() -> Option<u64> {
    status("VmHWM:")
}

/// A line of Linux's account of this process, in bytes.
fn status(name: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Bytes of a piece of a source while it is quantized in each of these ways, from types alone: what is read, the copies
/// in which it is turned, the stored values before and after they are packed, and the scales with what they are computed from.
pub(crate) fn of_piece(source: &ArrayType, cut: Cut, ways: &[(&[Prep], &Whole)]) -> u64 {
    let region = cut.region(&source.shape, 0);
    let count = |region: &Region| sizes(region).iter().fold(1u64, |n, &size| n.saturating_mul(size as u64));
    let elements = count(&region);
    let bytes = elements.saturating_mul(source.dtype.bits() as u64).div_ceil(8);
    let way = |(prep, whole): &(&[Prep], &Whole)| {
        let moves = prep.iter().filter(|step| !matches!(step, Prep::Reshape(_))).count().min(2) as u64;
        let codes = elements.saturating_mul(if whole.qtype().storage == DType::S16 { 2 } else { 1 });
        let packed = if whole.qtype().storage.is_packed() { elements.div_ceil(2) } else { 0 };
        // Ranges, scales and reciprocals stand as f64 on the way.
        let met =
            followed(&region, &source.shape, prep).map_or(elements, |to| count(&scale_region(whole, &to)));
        bytes
            .saturating_mul(moves)
            .saturating_add(codes)
            .saturating_add(packed)
            .saturating_add(met.saturating_mul(48))
    };
    let most = ways.iter().map(way).max().unwrap_or(0);
    // What the allocator rounds up, and the buffers of reading and hashing.
    bytes.saturating_add(most).saturating_mul(9) / 8 + (256 << 10)
}

/// Bytes that are kept while a source is quantized in two passes: the ranges and the scales of the whole.
pub(crate) fn of_ranges(whole: &Whole) -> u64 {
    let entries = whole.scale_shape().iter().fold(1u64, |n, &size| n.saturating_mul(size as u64));
    entries.saturating_mul(64)
}
