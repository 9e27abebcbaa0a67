//! Between memory and registers, and back into a narrow type's range after each instruction.

use bytemuck::{Pod, pod_read_unaligned};
use half::{bf16, f16};

use super::{Num, lanes, lanes_mut};
use crate::convert::{f16_value, f32_to_bf16, f32_to_f16, nearest_bf16, nearest_f16};

#[inline(always)]
fn each<A: Pod, T: Pod>(bytes: &[u8], register: &mut [u64], count: usize, f: impl Fn(A) -> T) {
    let size = size_of::<A>();
    for (to, from) in lanes_mut::<T>(register, count).iter_mut().zip(bytes.chunks_exact(size)) {
        *to = f(pod_read_unaligned(from));
    }
}

/// Widens `count` elements of memory into a register.
pub(super) fn load(num: Num, bytes: &[u8], register: &mut [u64], count: usize) {
    match num {
        Num::Pred => each(bytes, register, count, |v: u8| (v != 0) as u8),
        Num::S8 => each(bytes, register, count, |v: i8| v as i32),
        Num::S16 => each(bytes, register, count, |v: i16| v as i32),
        Num::S32 => each(bytes, register, count, |v: i32| v),
        Num::S64 => each(bytes, register, count, |v: i64| v),
        Num::U8 => each(bytes, register, count, |v: u8| v as u32),
        Num::U16 => each(bytes, register, count, |v: u16| v as u32),
        Num::U32 => each(bytes, register, count, |v: u32| v),
        Num::U64 => each(bytes, register, count, |v: u64| v),
        Num::F16 => each(bytes, register, count, f16_value),
        Num::BF16 => each(bytes, register, count, |v: u16| f32::from_bits((v as u32) << 16)),
        Num::F32 => each(bytes, register, count, |v: f32| v),
        Num::F64 => each(bytes, register, count, |v: f64| v),
    }
}

/// Fills a register with one element of memory.
pub(super) fn splat(num: Num, bytes: &[u8], register: &mut [u64]) {
    load(num, &bytes[..num.size()], register, 1);
    match num {
        Num::Pred => fill::<u8>(register),
        Num::S64 | Num::U64 | Num::F64 => fill::<u64>(register),
        Num::S8 | Num::S16 | Num::S32 | Num::U8 | Num::U16 | Num::U32 | Num::F16 | Num::BF16 | Num::F32 => {
            fill::<u32>(register)
        }
    }
}

fn fill<T: Pod>(register: &mut [u64]) {
    let count = register.len();
    let lanes = lanes_mut::<T>(register, count);
    let first = lanes[0];
    lanes.fill(first);
}

#[inline(always)]
fn put<T: Pod, A: Pod>(bytes: &[u8], out: &mut [u8], count: usize, f: impl Fn(T) -> A) {
    let size = size_of::<A>();
    for (to, &from) in out.chunks_exact_mut(size).zip(lanes::<T>(bytes, count)) {
        to.copy_from_slice(bytemuck::bytes_of(&f(from)));
    }
}

/// Writes `count` lanes to memory. The lanes are in the type's range already.
pub(super) fn store(num: Num, bytes: &[u8], out: &mut [u8], count: usize) {
    let out = &mut out[..count * num.size()];
    match num {
        Num::S8 => put(bytes, out, count, |v: i32| v as i8),
        Num::S16 => put(bytes, out, count, |v: i32| v as i16),
        Num::U8 => put(bytes, out, count, |v: u32| v as u8),
        Num::U16 => put(bytes, out, count, |v: u32| v as u16),
        Num::F16 => match bytemuck::try_cast_slice_mut::<u8, f16>(out) {
            Ok(out) => f32_to_f16(lanes(bytes, count), out),
            Err(_) => put(bytes, out, count, f16::from_f32),
        },
        Num::BF16 => match bytemuck::try_cast_slice_mut::<u8, bf16>(out) {
            Ok(out) => f32_to_bf16(lanes(bytes, count), out),
            Err(_) => put(bytes, out, count, bf16::from_f32),
        },
        Num::Pred | Num::S32 | Num::S64 | Num::U32 | Num::U64 | Num::F32 | Num::F64 => {
            out.copy_from_slice(&bytes[..out.len()])
        }
    }
}

#[inline(always)]
fn apply<T: Pod>(register: &mut [u64], count: usize, f: impl Fn(T) -> T) {
    for lane in lanes_mut::<T>(register, count) {
        *lane = f(*lane);
    }
}

/// Brings each lane back into the range, or to the precision, of its type.
#[inline(always)]
pub(super) fn settle(num: Num, register: &mut [u64], count: usize) {
    match num {
        Num::S8 => apply(register, count, |v: i32| v as i8 as i32),
        Num::S16 => apply(register, count, |v: i32| v as i16 as i32),
        Num::U8 => apply(register, count, |v: u32| v & 0xff),
        Num::U16 => apply(register, count, |v: u32| v & 0xffff),
        Num::F16 => apply(register, count, nearest_f16),
        Num::BF16 => apply(register, count, nearest_bf16),
        Num::Pred | Num::S32 | Num::S64 | Num::U32 | Num::U64 | Num::F32 | Num::F64 => {}
    }
}
