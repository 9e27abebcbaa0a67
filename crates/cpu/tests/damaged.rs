//! Damaged modules on the native engine: whatever still reads as a graph runs, or fails with an error; nothing panics.

use std::path::Path;

use qwix_array::{Array, DType, element_count};
use qwix_cpu::CpuBackend;
use qwix_eval::{Backend, Limits, Params, ReferenceBackend};
use qwix_graph::{Computation, Graph, Op, Role, Type};

/// Numbers that repeat from run to run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
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
    let small = random.below(2) == 0 && ty.dtype != DType::Pred;
    Some(if small { array.convert(DType::S4).convert(ty.dtype) } else { array })
}

/// Whether all types are small, and nothing can run for ever.
fn is_tame(computation: &Computation) -> bool {
    fn small(ty: &Type) -> bool {
        match ty {
            Type::Array(ty) => element_count(&ty.shape).is_some_and(|n| n <= LARGEST),
            Type::QArray(ty) => element_count(&ty.array.shape).is_some_and(|n| n <= LARGEST),
            Type::Tuple(types) => types.iter().all(small),
            Type::Token | Type::Opaque(_) => true,
        }
    }
    computation.nodes.iter().all(|node| {
        small(&node.ty)
            && !matches!(node.op, Op::While { .. })
            && node.op.called().into_iter().all(|called| is_tame(called))
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
    let limits = Limits { max_iterations: Some(20), max_elements: Some(LARGEST) };
    let reference = ReferenceBackend { limits };
    let mut random = Random(7);
    let (mut tried, mut ran) = (0, 0);
    let mut wrong = Vec::new();
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
            graph.parameters.iter_mut().for_each(|p| p.role = Role::Input);
            let inputs =
                graph.parameters.iter().map(|p| input(&p.ty, &mut random)).collect::<Option<Vec<_>>>();
            let Some(inputs) = inputs else { continue };
            let expected = reference.compile(&graph, Params::new()).and_then(|m| m.run(&inputs));
            if expected.is_err() && !is_tame(&graph.entry) {
                continue;
            }
            let found =
                CpuBackend::with_threads(1).compile(&graph, Params::new()).and_then(|m| m.run(&inputs));
            ran += usize::from(found.is_ok());
            if let (Ok(_), Err(error)) = (&expected, &found) {
                wrong.push(format!("{}: {error}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(ran > tried / 50, "of {tried} modules {ran} ran");
}
