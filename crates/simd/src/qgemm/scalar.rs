//! The portable kernel.

use std::ops::Range;

use super::{GROUP, Kernel, PANEL, Packed, Rows, Workspace};

/// Needs nothing of the machine.
pub(super) struct Scalar;

impl Kernel for Scalar {
    fn name(&self) -> &'static str {
        "scalar"
    }

    fn run(&self, rows: Rows<'_>, b: Packed<'_>, columns: Range<usize>, out: &mut [i32], _: &mut Workspace) {
        let width = columns.len();
        for (r, out) in out.chunks_exact_mut(width).enumerate() {
            let row = rows.row(r);
            for (p, out) in out.chunks_mut(PANEL).enumerate() {
                let mut sums = [0i32; PANEL];
                let panel = b.panel(columns.start / PANEL + p);
                for (a, group) in row.chunks(GROUP).zip(panel.chunks_exact(GROUP * PANEL)) {
                    for (sum, b) in sums.iter_mut().zip(group.chunks_exact(GROUP)) {
                        let dot: i32 = a.iter().zip(b).map(|(&a, &b)| a as i32 * b as i32).sum();
                        *sum = sum.wrapping_add(dot);
                    }
                }
                out.copy_from_slice(&sums[..out.len()]);
            }
        }
    }
}
