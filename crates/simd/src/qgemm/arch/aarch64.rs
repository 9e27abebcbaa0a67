//! NEON. Compiled, but not yet run on such a machine: the tests of the module run it where there is one.

use std::arch::aarch64::*;
use std::ops::Range;

use crate::qgemm::{GROUP, Kernel, PANEL, Packed, Rows, Workspace};

pub(in crate::qgemm) fn kernels() -> Vec<Box<dyn Kernel>> {
    Neon::new().map(|kernel| Box::new(kernel) as Box<dyn Kernel>).into_iter().collect()
}

/// Products of bytes are exact in 16 bits (at most 2^14), and pairs of them are added into 32 bits.
struct Neon(());

impl Neon {
    fn new() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("neon").then_some(Neon(()))
    }
}

impl Kernel for Neon {
    fn name(&self) -> &'static str {
        "neon"
    }

    fn run(
        &self,
        rows: Rows<'_>,
        b: Packed<'_>,
        columns: Range<usize>,
        out: &mut [i32],
        space: &mut Workspace,
    ) {
        let depth = b.groups() * GROUP;
        let width = columns.len();
        for (r, out) in out.chunks_exact_mut(width).enumerate() {
            space.bytes.clear();
            space.bytes.extend(rows.row(r).iter().map(|&v| v as u8));
            space.bytes.resize(depth, 0);
            for (p, out) in out.chunks_mut(PANEL).enumerate() {
                // SAFETY: `new` found the feature on the running machine.
                unsafe { neon_row(&space.bytes, b.panel(columns.start / PANEL + p), out) };
            }
        }
    }
}

#[target_feature(enable = "neon")]
fn neon_row(a: &[u8], b: &[i8], out: &mut [i32]) {
    let depth = a.len();
    assert!(depth.is_multiple_of(GROUP) && b.len() >= depth * PANEL && out.len() <= PANEL);
    // Four columns at a time, each in two halves.
    for (block, out) in out.chunks_mut(4).enumerate() {
        let mut low = vdupq_n_s32(0);
        let mut high = vdupq_n_s32(0);
        for k in (0..depth).step_by(GROUP) {
            // SAFETY: `a` has `depth` bytes and `k + 4 ≤ depth`; `b` has `depth · PANEL` bytes (asserted), and this reads the
            // 16 of four columns within the group's 128.
            let (four, bytes) = unsafe {
                (
                    a.as_ptr().add(k).cast::<u32>().read_unaligned(),
                    vld1q_s8(b.as_ptr().add(k * PANEL + block * 16)),
                )
            };
            let four = vreinterpret_s8_u32(vdup_n_u32(four));
            low = vpadalq_s16(low, vmull_s8(vget_low_s8(bytes), four));
            high = vpadalq_s16(high, vmull_s8(vget_high_s8(bytes), four));
        }
        let mut sums = [0i32; 4];
        // SAFETY: four values are written to an array of four.
        unsafe { vst1q_s32(sums.as_mut_ptr(), vpaddq_s32(low, high)) };
        out.copy_from_slice(&sums[..out.len()]);
    }
}
