//! Which dtype an op of several dtypes has.

use qwix_array::DType;

/// JAX's promotion of two dtypes, as it is without 64-bit mode: a float wins over an integer, bf16 with f16 gives f32,
/// u32 with a signed integer s32. `None` for floats of at most 8 bits and integers of less: these are never converted
/// without being asked.
pub fn promote_types(a: DType, b: DType) -> Option<DType> {
    if a == b {
        return Some(a);
    }
    let narrow = |d: DType| d.is_packed() || (d.is_float() && !d.is_wide_float());
    if narrow(a) || narrow(b) {
        return None;
    }
    Some(match (a.is_float(), b.is_float()) {
        (true, false) => a,
        (false, true) => b,
        (true, true) if a.bits() == b.bits() => DType::F32,
        (true, true) => {
            if a.bits() > b.bits() {
                a
            } else {
                b
            }
        }
        (false, false) => promote_ints(a, b),
    })
}

fn promote_ints(a: DType, b: DType) -> DType {
    let rank = |d: DType| if d == DType::Pred { 1 } else { d.bits() };
    let (wide, narrow) = if rank(a) >= rank(b) { (a, b) } else { (b, a) };
    if narrow == DType::Pred || wide.is_signed_int() == narrow.is_signed_int() {
        return wide;
    }
    if wide.is_signed_int() && wide.bits() > narrow.bits() {
        return wide;
    }
    match wide.bits() {
        ..=8 => DType::S16,
        16 | 32 => DType::S32,
        _ => DType::F32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promotions() {
        use DType::*;
        let mut wrong = Vec::new();
        for (a, b, wanted) in [
            (F32, F32, Some(F32)),
            (BF16, F16, Some(F32)),
            (BF16, F32, Some(F32)),
            (S32, BF16, Some(BF16)),
            (Pred, S8, Some(S8)),
            (U8, S8, Some(S16)),
            (U8, S32, Some(S32)),
            (U32, S32, Some(S32)),
            (U32, S8, Some(S32)),
            (U4, S4, None),
            (U16, S16, Some(S32)),
            (Pred, F16, Some(F16)),
            (F8E4M3FN, F32, None),
            (F8E4M3FN, F8E4M3FN, Some(F8E4M3FN)),
        ] {
            for (a, b) in [(a, b), (b, a)] {
                if promote_types(a, b) != wanted {
                    wrong.push(format!("{a} with {b}: {:?}", promote_types(a, b)));
                }
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }
}
