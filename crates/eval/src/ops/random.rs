//! `rng-bit-generator`: counter-based generators, bit for bit as XLA expands them.
//!
//! ThreeFry-2x32 with 20 rounds and Philox-4x32 with 10 are those of Salmon and others, "Parallel random numbers: as
//! easy as 1, 2, 3" (2011). How counters are laid out over the result is XLA's doing.

use qwix_array::{Array, DType, element_count};
use qwix_graph::{ArrayType, RngAlgorithm};

use crate::EvalError;
use crate::cells::each_index;
use crate::lanes::Lanes;

fn low(x: u64) -> u32 {
    x as u32
}

fn high(x: u64) -> u32 {
    (x >> 32) as u32
}

/// Twenty rounds of ThreeFry-2x32.
fn threefry(key: [u32; 2], counter: [u32; 2]) -> [u32; 2] {
    const ROTATIONS: [[u32; 4]; 2] = [[13, 15, 26, 6], [17, 29, 16, 24]];
    let keys = [key[0], key[1], 0x1BD1_1BDA ^ key[0] ^ key[1]];
    let [mut x, mut y] = [counter[0].wrapping_add(keys[0]), counter[1].wrapping_add(keys[1])];
    for group in 0..5u32 {
        for rotation in ROTATIONS[group as usize % 2] {
            x = x.wrapping_add(y);
            y = y.rotate_left(rotation) ^ x;
        }
        x = x.wrapping_add(keys[(group as usize + 1) % 3]);
        y = y.wrapping_add(keys[(group as usize + 2) % 3]).wrapping_add(group + 1);
    }
    [x, y]
}

/// Ten rounds of Philox-4x32.
fn philox(mut key: [u32; 2], counter: u128) -> [u32; 4] {
    let mut x: [u32; 4] = std::array::from_fn(|i| (counter >> (32 * i)) as u32);
    for _ in 0..10 {
        let first = 0xD251_1F53 * u64::from(x[0]);
        let second = 0xCD9E_8D57 * u64::from(x[2]);
        x = [high(second) ^ x[1] ^ key[0], low(second), high(first) ^ x[3] ^ key[1], low(first)];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    x
}

/// The state after, and random bits. The state is a key and a counter of 64 bits (Philox: or 128) as u64.
pub(crate) fn rng_bit_generator(
    algorithm: RngAlgorithm,
    state: &Array,
    ty: &ArrayType,
) -> Result<(Array, Array), EvalError> {
    let wrong = || EvalError::reason(format!("rng-bit-generator of {ty} from the state {state:?}"));
    let words: Vec<u64> = match state.dtype() {
        DType::U64 => state.values::<u64>()?.into_owned(),
        // Pairs of u32, the low half first.
        DType::U32 => state
            .values::<u32>()?
            .as_chunks()
            .0
            .iter()
            .map(|&[l, h]| u64::from(h) << 32 | u64::from(l))
            .collect(),
        _ => return Err(wrong()),
    };
    let count = element_count(&ty.shape).ok_or_else(wrong)?;
    let (after, bits) = match algorithm {
        RngAlgorithm::ThreeFry => {
            let &[key, counter] = &words[..] else { return Err(wrong()) };
            let (used, bits) = threefry_bits(key, counter, ty);
            (vec![key, counter.wrapping_add(used)], bits)
        }
        RngAlgorithm::Default | RngAlgorithm::Philox => {
            // A state of two words has its key for the counter's upper half too, and does not keep it.
            let (key, counter) = match words[..] {
                [key, low] => (key, u128::from(key) << 64 | u128::from(low)),
                [key, low, high] => (key, u128::from(high) << 64 | u128::from(low)),
                _ => return Err(wrong()),
            };
            let (used, bits) = philox_bits(key, counter, count, ty.dtype.bits() == 64);
            let counter = counter.wrapping_add(used);
            let all = [key, counter as u64, (counter >> 64) as u64];
            (all[..words.len()].to_vec(), bits)
        }
    };
    let after = match state.dtype() {
        DType::U32 => {
            Array::from_vec(state.shape(), after.iter().flat_map(|&x| [low(x), high(x)]).collect())?
        }
        _ => Array::from_vec(state.shape(), after)?,
    };
    // Narrower integers take the low bits.
    let lanes = if ty.dtype.is_signed_int() {
        Lanes::Int(bits.into_iter().map(|x| x as i64).collect())
    } else if ty.dtype.is_unsigned_int() {
        Lanes::Uint(bits)
    } else {
        return Err(wrong());
    };
    Ok((after, lanes.write(ty.dtype, &ty.shape)?))
}

/// A call yields two words of 32 bits, for one element of 64 bits or for two neighbours along the first even axis (or,
/// when there is none, the first of the longest).
fn threefry_bits(key: u64, counter: u64, ty: &ArrayType) -> (u64, Vec<u64>) {
    let word = |number: u64| {
        let counter = counter.wrapping_add(number);
        threefry([low(key), high(key)], [low(counter), high(counter)])
    };
    let count = element_count(&ty.shape).unwrap_or(0) as u64;
    if ty.dtype.bits() == 64 {
        let bits = (0..count).map(word).map(|[l, h]| u64::from(h) << 32 | u64::from(l));
        return (count, bits.collect());
    }
    let longest = || {
        let most = ty.shape.iter().max();
        ty.shape.iter().position(|d| Some(d) == most)
    };
    let Some(split) = ty.shape.iter().position(|d| d % 2 == 0).or_else(longest) else {
        return (1, vec![u64::from(word(0)[0])]);
    };
    let mut half = ty.shape.clone();
    half[split] = half[split].div_ceil(2);
    let mut bits = Vec::new();
    let walked = each_index(&ty.shape, |index| {
        let mut number = 0;
        for (axis, (&i, &size)) in index.iter().zip(&half).enumerate() {
            number = number * size + if axis == split { i / 2 } else { i };
        }
        bits.push(u64::from(word(number as u64)[index[split] % 2]));
        Ok::<(), std::convert::Infallible>(())
    });
    match walked {
        Ok(()) => (half.iter().product::<usize>() as u64, bits),
        Err(never) => match never {},
    }
}

/// A call yields four words of 32 bits, for four elements in row-major order, or for two of 64 bits.
fn philox_bits(key: u64, counter: u128, count: usize, wide: bool) -> (u128, Vec<u64>) {
    let words = if wide { count.saturating_mul(2) } else { count };
    let calls = words.div_ceil(4);
    let mut bits = Vec::new();
    for call in 0..calls {
        let [a, b, c, d] = philox([low(key), high(key)], counter.wrapping_add(call as u128)).map(u64::from);
        if wide {
            bits.extend([b << 32 | a, d << 32 | c]);
        } else {
            bits.extend([a, b, c, d]);
        }
    }
    bits.truncate(count);
    (calls as u128, bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `lax.rng_bit_generator` yields (jax 0.10, CPU).
    #[test]
    fn bits_are_those_of_xla() {
        use DType::{U8, U16, U32, U64};
        use RngAlgorithm::{Default, Philox, ThreeFry};
        const FULL: u64 = u64::MAX;
        // algorithm, state, dtype, shape, state after, first bits
        type Row = (RngAlgorithm, [u64; 2], DType, &'static [usize], [u64; 2], &'static [u64]);
        let rows: &[Row] = &[
            (ThreeFry, [1, 2], U32, &[], [1, 3], &[0x296e954]),
            (ThreeFry, [1, 2], U64, &[], [1, 3], &[0x802fd53b0296e954]),
            (
                ThreeFry,
                [1, 2],
                U32,
                &[5],
                [1, 5],
                &[0x296e954, 0x802fd53b, 0xed3492d3, 0xdf435003, 0x63b40bd3],
            ),
            (ThreeFry, [1, 2], U32, &[2, 3], [1, 5], &[0x296e954, 0xed3492d3, 0x63b40bd3, 0x802fd53b]),
            (ThreeFry, [1, 2], U32, &[3, 4], [1, 8], &[0x296e954, 0x802fd53b, 0xed3492d3, 0xdf435003]),
            (
                ThreeFry,
                [1, 2],
                U32,
                &[3, 5],
                [1, 0xb],
                &[0x296e954, 0x802fd53b, 0xed3492d3, 0xdf435003, 0x63b40bd3, 0x7dbb1d60, 0x24e4d334],
            ),
            (
                ThreeFry,
                [1, 2],
                U32,
                &[3, 3],
                [1, 8],
                &[
                    0x296e954, 0xed3492d3, 0x63b40bd3, 0x802fd53b, 0xdf435003, 0xfcc0f261, 0x7dbb1d60,
                    0x9718c0ad,
                ],
            ),
            (ThreeFry, [1, 2], U64, &[2, 3], [1, 8], &[0x802fd53b0296e954, 0xdf435003ed3492d3]),
            (ThreeFry, [1, 2], U16, &[5], [1, 5], &[0xe954, 0xd53b, 0x92d3, 0x5003, 0xbd3]),
            (ThreeFry, [1, 2], U32, &[0], [1, 2], &[]),
            (
                ThreeFry,
                [FULL, FULL],
                U32,
                &[6],
                [FULL, 2],
                &[0x1cb996fc, 0xbb002be7, 0x413979c4, 0x4e58fb3f, 0x9feae161, 0xf48aea97],
            ),
            (
                Philox,
                [1, 2],
                U32,
                &[5],
                [1, 4],
                &[0x7d34a749, 0xa9b8bbe8, 0x7ba423d7, 0x2fb324d9, 0x6cf923fe],
            ),
            (
                Default,
                [1, 2],
                U64,
                &[5],
                [1, 5],
                &[0xa9b8bbe87d34a749, 0x2fb324d97ba423d7, 0xbadf79c36cf923fe],
            ),
            (Default, [1, 2], U8, &[2, 3], [1, 4], &[0x49, 0xe8, 0xd7, 0xd9, 0xfe, 0xc3]),
            (
                Philox,
                [FULL, FULL],
                U32,
                &[6],
                [FULL, 1],
                &[0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd, 0x72a47709, 0x15474739],
            ),
        ];
        let mut wrong = Vec::new();
        for (algorithm, state, dtype, shape, want_state, want) in rows {
            let state = Array::from_vec(&[2], state.to_vec()).unwrap();
            let ty = ArrayType::new(*dtype, *shape);
            let (after, bits) = rng_bit_generator(*algorithm, &state, &ty).unwrap();
            let Lanes::Uint(bits) = Lanes::read(&bits).unwrap() else { unreachable!() };
            let after = after.values::<u64>().unwrap().into_owned();
            if after != want_state || !bits.starts_with(want) || bits.len() != shape.iter().product::<usize>()
            {
                wrong.push(format!("{algorithm:?} {ty}: {after:x?} {bits:x?}"));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}
