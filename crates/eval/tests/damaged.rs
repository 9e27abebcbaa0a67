//! Damaged modules: whatever still reads as a graph runs, or fails with an error; nothing panics, and nothing takes
//! more memory or time than its types say.

use std::path::Path;

use qwix_array::{Array, DType, element_count};
use qwix_eval::{Backend, Limits, Params, ReferenceBackend};
use qwix_graph::{Graph, Role, Type};

/// Numbers that look random enough; Vigna's SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

const LARGEST: usize = 1 << 16;

fn input(ty: &Type, random: &mut Random) -> Option<Array> {
    let Type::Array(ty) = ty else { return None };
    let count = element_count(&ty.shape).filter(|&n| n <= LARGEST)?;
    let bytes = (0..ty.dtype.byte_len(count)?).map(|_| random.next() as u8).collect();
    let array = Array::from_bytes(ty.dtype, &ty.shape, bytes).ok()?;
    // Small numbers index something more often than any number does.
    Some(if random.below(2) == 0 && ty.dtype != DType::Pred {
        array.convert(DType::S4).convert(ty.dtype)
    } else {
        array
    })
}

#[test]
fn damaged_modules_fail_with_errors() {
    let mut files: Vec<_> =
        std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens/ops"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|e| e == "pb"))
            .collect();
    files.sort();
    let backend =
        ReferenceBackend { limits: Limits { max_iterations: Some(20), max_elements: Some(LARGEST) } };
    let mut random = Random(7);
    let (mut tried, mut read, mut ran) = (0, 0, 0);
    for file in files {
        let bytes = std::fs::read(&file).unwrap();
        for _ in 0..40 {
            tried += 1;
            let mut damaged = bytes.clone();
            for _ in 0..1 + random.below(3) {
                let at = random.below(damaged.len());
                damaged[at] = match random.below(3) {
                    0 => damaged[at] ^ 1 << random.below(8),
                    1 => random.below(8) as u8,
                    _ => random.next() as u8,
                };
            }
            let Ok(mut graph) = Graph::from_hlo_proto(&damaged) else { continue };
            read += 1;
            for parameter in &mut graph.parameters {
                parameter.role = Role::Input;
            }
            let Some(inputs) =
                graph.parameters.iter().map(|p| input(&p.ty, &mut random)).collect::<Option<Vec<_>>>()
            else {
                continue;
            };
            let Ok(model) = backend.compile(&graph, Params::new()) else { continue };
            ran += usize::from(model.run(&inputs).is_ok());
        }
    }
    assert!(read > tried / 20 && ran > tried / 50, "of {tried} modules {read} were read and {ran} ran");
}
