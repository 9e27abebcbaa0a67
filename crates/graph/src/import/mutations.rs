//! Real modules whose fields are changed one by one: what random bytes would hardly ever reach.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use prost::Message as _;

use crate::Graph;
use crate::proto::*;

pub(super) struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    fn number(&mut self) -> i64 {
        const ODD: [i64; 14] =
            [0, 1, 2, 3, 7, 64, -1, -2, 1 << 31, 1 << 40, i64::MAX, i64::MIN, i64::MAX / 4, 1 << 62];
        match self.below(3) {
            0 => self.below(6) as i64,
            _ => ODD[self.below(ODD.len())],
        }
    }

    fn list(&mut self, list: &mut Vec<i64>) {
        let at = self.below(list.len());
        match self.below(4) {
            0 => list.push(self.number()),
            1 => drop(list.pop()),
            2 => {
                let other = self.below(list.len());
                if !list.is_empty() {
                    list.swap(at, other);
                }
            }
            _ => {
                let number = self.number();
                list.iter_mut().skip(at).take(1).for_each(|value| *value = number);
            }
        }
    }
}

/// Changes one field of an instruction, most often one that its op has.
pub(super) fn change(i: &mut HloInstructionProto, other: &HloInstructionProto, random: &mut Random) {
    loop {
        match random.below(26) {
            0 => i.opcode = other.opcode.clone(),
            1 => i.operand_ids = other.operand_ids.clone(),
            2 => random.list(&mut i.operand_ids),
            3 => i.shape = other.shape.clone(),
            4 | 5 => {
                let Some(shape) = &mut i.shape else { continue };
                random.list(&mut shape.dimensions);
            }
            6 => {
                let Some(shape) = &mut i.shape else { continue };
                shape.element_type = random.below(36) as i32;
            }
            7 => {
                let Some(shape) = i.shape.as_mut().filter(|shape| !shape.tuple_shapes.is_empty()) else {
                    continue;
                };
                let at = random.below(shape.tuple_shapes.len());
                random.list(&mut shape.tuple_shapes[at].dimensions);
            }
            8 if !i.dimensions.is_empty() => random.list(&mut i.dimensions),
            9 => {
                let Some(dims) = i.window.as_mut().map(|window| &mut window.dimensions) else { continue };
                let at = random.below(dims.len());
                let number = random.number();
                let Some(dim) = dims.get_mut(at) else { continue };
                match random.below(7) {
                    0 => dim.size = number,
                    1 => dim.stride = number,
                    2 => dim.padding_low = number,
                    3 => dim.padding_high = number,
                    4 => dim.window_dilation = number,
                    5 => dim.base_dilation = number,
                    _ => drop(dims.pop()),
                }
            }
            10 => {
                let Some(dims) = &mut i.convolution_dimension_numbers else { continue };
                let number = random.number();
                match random.below(9) {
                    0 => dims.input_batch_dimension = number,
                    1 => dims.input_feature_dimension = number,
                    2 => dims.kernel_input_feature_dimension = number,
                    3 => dims.kernel_output_feature_dimension = number,
                    4 => dims.output_batch_dimension = number,
                    5 => dims.output_feature_dimension = number,
                    6 => random.list(&mut dims.input_spatial_dimensions),
                    7 => random.list(&mut dims.kernel_spatial_dimensions),
                    _ => random.list(&mut dims.output_spatial_dimensions),
                }
            }
            11 if i.feature_group_count != 0 => i.feature_group_count = random.number(),
            12 if i.batch_group_count != 0 => i.batch_group_count = random.number(),
            13 => {
                let count = i.slice_dimensions.len();
                let Some(dim) = i.slice_dimensions.get_mut(random.below(count)) else { continue };
                let number = random.number();
                match random.below(3) {
                    0 => dim.start = number,
                    1 => dim.limit = number,
                    _ => dim.stride = number,
                }
            }
            14 => {
                let Some(config) = &mut i.padding_config else { continue };
                let at = random.below(config.dimensions.len());
                let Some(dim) = config.dimensions.get_mut(at) else { continue };
                let number = random.number();
                match random.below(3) {
                    0 => dim.edge_padding_low = number,
                    1 => dim.edge_padding_high = number,
                    _ => dim.interior_padding = number,
                }
            }
            15 => {
                let Some(dims) = &mut i.dot_dimension_numbers else { continue };
                match random.below(4) {
                    0 => random.list(&mut dims.lhs_contracting_dimensions),
                    1 => random.list(&mut dims.rhs_contracting_dimensions),
                    2 => random.list(&mut dims.lhs_batch_dimensions),
                    _ => random.list(&mut dims.rhs_batch_dimensions),
                }
            }
            16 => {
                let Some(dims) = &mut i.gather_dimension_numbers else { continue };
                match random.below(7) {
                    0 => random.list(&mut dims.offset_dims),
                    1 => random.list(&mut dims.collapsed_slice_dims),
                    2 => random.list(&mut dims.start_index_map),
                    3 => random.list(&mut dims.operand_batching_dims),
                    4 => random.list(&mut dims.start_indices_batching_dims),
                    5 => dims.index_vector_dim = random.number(),
                    _ => random.list(&mut i.gather_slice_sizes),
                }
            }
            17 => {
                let Some(dims) = &mut i.scatter_dimension_numbers else { continue };
                match random.below(6) {
                    0 => random.list(&mut dims.update_window_dims),
                    1 => random.list(&mut dims.inserted_window_dims),
                    2 => random.list(&mut dims.scatter_dims_to_operand_dims),
                    3 => random.list(&mut dims.input_batching_dims),
                    4 => random.list(&mut dims.scatter_indices_batching_dims),
                    _ => dims.index_vector_dim = random.number(),
                }
            }
            18 if !i.dynamic_slice_sizes.is_empty() => random.list(&mut i.dynamic_slice_sizes),
            19 if !i.called_computation_ids.is_empty() => match random.below(2) {
                0 => i.called_computation_ids = vec![1 + random.below(12) as i64],
                _ => random.list(&mut i.called_computation_ids),
            },
            20 => i.parameter_number = random.number(),
            21 => i.tuple_index = random.number(),
            22 if i.k != 0 => i.k = random.number(),
            23 => i.id = other.id,
            24 | 25 => {
                let Some(sharding) = &mut i.sharding else { continue };
                let number = random.number();
                match random.below(7) {
                    0 => sharding.r#type = number as i32,
                    1 => random.list(&mut sharding.tile_assignment_dimensions),
                    2 => random.list(&mut sharding.tile_assignment_devices),
                    3 => random.list(&mut sharding.iota_reshape_dims),
                    4 => sharding.iota_transpose_perm.push(number as i32),
                    5 => sharding.last_tile_dims.push(number as i32),
                    _ => sharding.replicate_on_last_tile_dim ^= true,
                }
            }
            _ => continue,
        }
        return;
    }
}

fn modules() -> Vec<(String, HloModuleProto)> {
    let goldens = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../goldens");
    let mut files: Vec<PathBuf> = ["models", "ops", "sharded/mlp", "sharded/decoder"]
        .iter()
        .flat_map(|folder| std::fs::read_dir(goldens.join(folder)).unwrap())
        .map(|entry| entry.unwrap().path())
        .map(|path| if path.is_dir() { path.join("model.hlo.pb") } else { path })
        .filter(|path| path.extension().is_some_and(|extension| extension == "pb"))
        .collect();
    files.sort();
    let read = |path: &PathBuf| {
        let module = HloModuleProto::decode(&*std::fs::read(path).unwrap()).unwrap();
        (path.display().to_string(), module)
    };
    files.iter().map(read).collect()
}

#[test]
fn fields_changed_at_random() {
    const LONGEST: Duration = Duration::from_secs(60);
    let modules = modules();
    assert!(modules.len() > 100, "found {} modules", modules.len());
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let (mut accepted, mut refused, mut wrong) = (0, 0, Vec::new());
    for (name, module) in &modules {
        for round in 0..25 {
            let mut module = module.clone();
            for _ in 0..=random.below(2) {
                let at = random.below(module.computations.len());
                let instructions = &mut module.computations[at].instructions;
                let other = instructions[random.below(instructions.len())].clone();
                let at = random.below(instructions.len());
                change(&mut instructions[at], &other, &mut random);
            }
            let bytes = module.encode_to_vec();
            let start = Instant::now();
            let result = catch_unwind(AssertUnwindSafe(|| {
                let graph = Graph::from_hlo_proto(&bytes)?;
                crate::passes::eliminate_dead_code(&graph).verify()?;
                // Whether it goes together or not.
                let _ = graph.device_count();
                if let Ok(written) = graph.to_hlo_proto() {
                    Graph::from_hlo_proto(&written)?;
                }
                Ok::<_, super::ImportError>(())
            }));
            match result {
                Ok(Ok(())) => accepted += 1,
                Ok(Err(error)) if error.to_string().contains('\n') => {
                    wrong.push(format!("{name}, round {round}: {error}"))
                }
                Ok(Err(_)) => refused += 1,
                Err(_) => wrong.push(format!("{name}, round {round}: panics")),
            }
            if start.elapsed() > LONGEST {
                wrong.push(format!("{name}, round {round}: takes {:?}", start.elapsed()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(accepted > 100 && refused > 1000, "{accepted} accepted, {refused} refused");
}
