//! Every bf16 and every f16 number, converted to every narrow type: XLA's answers.

use std::path::Path;

use qwix_array::{Array, DType, bf16, f16};

/// The bits of one element: what the files hold.
fn bits(array: &Array) -> Vec<u16> {
    match array.dtype() {
        DType::S2 | DType::S4 | DType::S8 => {
            array.unpack_i8().unwrap().into_iter().map(|x| x as u8 as u16).collect()
        }
        DType::BF16 => array.values::<bf16>().unwrap().iter().map(|x| x.to_bits()).collect(),
        DType::F16 => array.values::<f16>().unwrap().iter().map(|x| x.to_bits()).collect(),
        DType::S16 => array.values::<i16>().unwrap().iter().map(|&x| x as u16).collect(),
        DType::U16 => array.values::<u16>().unwrap().to_vec(),
        _ => array.unpack_u8().unwrap().iter().map(|&x| x as u16).collect(),
    }
}

/// The expected bits of all 65536 patterns.
fn expected(runs: &[u8]) -> Vec<u16> {
    let pairs: Vec<(u16, u16)> = runs
        .as_chunks::<4>()
        .0
        .iter()
        .map(|&[a, b, c, d]| (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d])))
        .collect();
    let ends = pairs.iter().skip(1).map(|p| p.0 as usize).chain([65536]);
    pairs.iter().zip(ends).flat_map(|(&(first, value), end)| vec![value; end - first as usize]).collect()
}

#[test]
fn every_number_converts_as_in_xla() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens/dtypes");
    let mut wrong = Vec::new();
    let mut files = 0;
    for from in [DType::BF16, DType::F16] {
        let patterns: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let array = Array::from_bytes(from, &[65536], patterns).unwrap();
        let is_nan: Vec<bool> = array.to_f32_vec().iter().map(|x| x.is_nan()).collect();
        for to in DType::all() {
            let Ok(runs) = std::fs::read(folder.join(format!("xla_{from}_{to}.runs"))) else { continue };
            files += 1;
            let converted = array.convert(to);
            let has_nan = to.is_float() && to != DType::F4E2M1FN;
            let found = converted.to_f32_vec();
            let different: Vec<String> = expected(&runs)
                .into_iter()
                .zip(bits(&converted))
                .enumerate()
                .filter(
                    |&(i, (want, bits))| if is_nan[i] && has_nan { !found[i].is_nan() } else { want != bits },
                )
                .map(|(i, (want, bits))| format!("{i:#06x}: {bits:#x}, not {want:#x}"))
                .collect();
            if let Some(first) = different.first() {
                wrong.push(format!("{from} to {to}: {} differ, first {first}", different.len()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(files >= 20, "only {files} files in {}", folder.display());
}
