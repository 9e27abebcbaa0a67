//! AVX-512 VNNI and AVX2.

use std::arch::x86_64::*;
use std::ops::Range;

use crate::qgemm::{GROUP, Kernel, PANEL, Packed, Rows, Workspace};

pub(in crate::qgemm) fn kernels() -> Vec<Box<dyn Kernel>> {
    let mut kernels: Vec<Box<dyn Kernel>> = Vec::new();
    if let Some(kernel) = Vnni::new() {
        kernels.push(Box::new(kernel));
    }
    if let Some(kernel) = Avx2::new() {
        kernels.push(Box::new(kernel));
    }
    kernels
}

/// `vpdpbusd` multiplies unsigned by signed bytes, so the left side is moved up by 128, and 128 times each column's sum is
/// taken off again. It adds without saturating, hence the result is exact modulo 2^32.
struct Vnni(());

/// Rows that a tile of accumulators has: 12 rows of two registers, and eight registers to spare.
const VNNI_ROWS: usize = 12;
/// Rows that are moved up at a time, to be used with every panel: a multiple of the tile's.
const VNNI_BLOCK: usize = 4 * VNNI_ROWS;

impl Vnni {
    fn new() -> Option<Self> {
        (is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vnni"))
        .then_some(Vnni(()))
    }
}

impl Kernel for Vnni {
    fn name(&self) -> &'static str {
        "avx512-vnni"
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
        for (block, out) in out.chunks_mut(VNNI_BLOCK * width).enumerate() {
            let count = out.len() / width;
            space.bytes.clear();
            for r in 0..count {
                space.bytes.extend(rows.row(block * VNNI_BLOCK + r).iter().map(|&v| v as u8 ^ 0x80));
                // What stands against the padding of `b`, which is 0, does not matter.
                space.bytes.resize((r + 1) * depth, 0);
            }
            for panel in 0..width.div_ceil(PANEL) {
                let b_panel = b.panel(columns.start / PANEL + panel);
                let sums = &b.sums[columns.start + panel * PANEL..][..PANEL];
                for first in (0..count).step_by(VNNI_ROWS) {
                    let tile = Tile {
                        a: &space.bytes[first * depth..],
                        depth,
                        b: b_panel,
                        sums,
                        out: &mut out[first * width + panel * PANEL..],
                        width,
                        columns: PANEL.min(width - panel * PANEL),
                    };
                    // SAFETY: `new` found the features on the running machine.
                    unsafe {
                        match (count - first).min(VNNI_ROWS) {
                            1 => vnni_tile::<1>(tile),
                            2 => vnni_tile::<2>(tile),
                            3 => vnni_tile::<3>(tile),
                            4 => vnni_tile::<4>(tile),
                            5 => vnni_tile::<5>(tile),
                            6 => vnni_tile::<6>(tile),
                            7 => vnni_tile::<7>(tile),
                            8 => vnni_tile::<8>(tile),
                            9 => vnni_tile::<9>(tile),
                            10 => vnni_tile::<10>(tile),
                            11 => vnni_tile::<11>(tile),
                            _ => vnni_tile::<12>(tile),
                        }
                    }
                }
            }
        }
    }
}

/// A few rows by one panel.
struct Tile<'a, A> {
    /// The rows, `depth` apart.
    a: &'a [A],
    depth: usize,
    /// `depth · PANEL` values.
    b: &'a [i8],
    sums: &'a [i32],
    /// Rows `width` apart, of which `columns` values are written.
    out: &'a mut [i32],
    width: usize,
    columns: usize,
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn vnni_tile<const ROWS: usize>(tile: Tile<'_, u8>) {
    let Tile { a, depth, b, sums, out, width, columns } = tile;
    assert!(a.len() >= ROWS * depth && b.len() >= depth * PANEL && sums.len() >= PANEL && columns <= PANEL);
    assert!(out.len() >= (ROWS - 1) * width + columns);
    let mut total = [[_mm512_setzero_si512(); 2]; ROWS];
    for k in (0..depth).step_by(GROUP) {
        // SAFETY: `b` has `depth · PANEL` bytes (asserted), and a group, 128 of them, starts at `k · PANEL`, `k + GROUP ≤ depth`
        // as `depth` is a multiple of GROUP.
        let (b0, b1) = unsafe {
            let group = b.as_ptr().add(k * PANEL);
            (_mm512_loadu_si512(group.cast()), _mm512_loadu_si512(group.add(64).cast()))
        };
        for (row, total) in total.iter_mut().enumerate() {
            // SAFETY: `a` has `ROWS · depth` bytes (asserted), and `k + 4 ≤ depth`.
            let four = unsafe { a.as_ptr().add(row * depth + k).cast::<i32>().read_unaligned() };
            let four = _mm512_set1_epi32(four);
            total[0] = _mm512_dpbusd_epi32(total[0], four, b0);
            total[1] = _mm512_dpbusd_epi32(total[1], four, b1);
        }
    }
    // SAFETY: `sums` has PANEL = 32 values (asserted).
    let (s0, s1) = unsafe {
        (_mm512_loadu_si512(sums.as_ptr().cast()), _mm512_loadu_si512(sums.as_ptr().add(16).cast()))
    };
    let (s0, s1) = (_mm512_slli_epi32::<7>(s0), _mm512_slli_epi32::<7>(s1));
    let mask = if columns == PANEL { u32::MAX } else { (1u32 << columns) - 1 };
    for (row, total) in total.iter().enumerate() {
        // SAFETY: `out` has `columns` values from `row · width` on (asserted), and the mask lets no others be written; a
        // masked store does not touch the rest, and the second pointer is only offset, never used, when it is past the end.
        unsafe {
            let to = out.as_mut_ptr().add(row * width);
            _mm512_mask_storeu_epi32(to, mask as u16, _mm512_sub_epi32(total[0], s0));
            _mm512_mask_storeu_epi32(
                to.wrapping_add(16),
                (mask >> 16) as u16,
                _mm512_sub_epi32(total[1], s1),
            );
        }
    }
}

/// Bytes are widened to 16 bits; `vpmaddwd` sums two products in 32 bits, exactly: 2 · 128 · 128 is far from the limit.
struct Avx2(());

/// Rows of a tile: 3 rows of 4 registers, each four columns in halves.
const AVX2_ROWS: usize = 3;
const AVX2_BLOCK: usize = 8 * AVX2_ROWS;

impl Avx2 {
    fn new() -> Option<Self> {
        is_x86_feature_detected!("avx2").then_some(Avx2(()))
    }
}

impl Kernel for Avx2 {
    fn name(&self) -> &'static str {
        "avx2"
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
        for (block, out) in out.chunks_mut(AVX2_BLOCK * width).enumerate() {
            let count = out.len() / width;
            space.words.clear();
            for r in 0..count {
                space.words.extend(rows.row(block * AVX2_BLOCK + r).iter().map(|&v| v as i16));
                space.words.resize((r + 1) * depth, 0);
            }
            for panel in 0..width.div_ceil(PANEL) {
                let b_panel = b.panel(columns.start / PANEL + panel);
                for first in (0..count).step_by(AVX2_ROWS) {
                    let tile = Tile {
                        a: &space.words[first * depth..],
                        depth,
                        b: b_panel,
                        sums: &[],
                        out: &mut out[first * width + panel * PANEL..],
                        width,
                        columns: PANEL.min(width - panel * PANEL),
                    };
                    // SAFETY: `new` found the feature on the running machine.
                    unsafe {
                        match (count - first).min(AVX2_ROWS) {
                            1 => avx2_tile::<1>(tile),
                            2 => avx2_tile::<2>(tile),
                            _ => avx2_tile::<3>(tile),
                        }
                    }
                }
            }
        }
    }
}

#[target_feature(enable = "avx2")]
fn avx2_tile<const ROWS: usize>(tile: Tile<'_, i16>) {
    let Tile { a, depth, b, out, width, columns, .. } = tile;
    assert!(a.len() >= ROWS * depth && b.len() >= depth * PANEL && columns <= PANEL);
    // Sixteen columns at a time.
    for half in 0..columns.div_ceil(16) {
        let mut total = [[_mm256_setzero_si256(); 4]; ROWS];
        for k in (0..depth).step_by(GROUP) {
            let mut four = [_mm256_setzero_si256(); ROWS];
            for (row, four) in four.iter_mut().enumerate() {
                // SAFETY: `a` has `ROWS · depth` words (asserted), and `k + 4 ≤ depth` as `depth` is a multiple of GROUP.
                let words = unsafe { a.as_ptr().add(row * depth + k).cast::<i64>().read_unaligned() };
                *four = _mm256_set1_epi64x(words);
            }
            for quarter in 0..4 {
                // SAFETY: `b` has `depth · PANEL` bytes (asserted); this reads the 16 of four columns within the group's 128.
                let bytes =
                    unsafe { _mm_loadu_si128(b.as_ptr().add(k * PANEL + half * 64 + quarter * 16).cast()) };
                let words = _mm256_cvtepi8_epi16(bytes);
                for (total, &four) in total.iter_mut().zip(&four) {
                    total[quarter] = _mm256_add_epi32(total[quarter], _mm256_madd_epi16(words, four));
                }
            }
        }
        for (row, total) in total.iter().enumerate() {
            let mut sums = [0i32; 16];
            for (quarter, &total) in total.iter().enumerate() {
                let mut halves = [0i32; 8];
                // SAFETY: eight values are written to an array of eight.
                unsafe { _mm256_storeu_si256(halves.as_mut_ptr().cast(), total) };
                for column in 0..4 {
                    sums[quarter * 4 + column] = halves[2 * column].wrapping_add(halves[2 * column + 1]);
                }
            }
            let count = 16.min(columns - half * 16);
            out[row * width + half * 16..][..count].copy_from_slice(&sums[..count]);
        }
    }
}
