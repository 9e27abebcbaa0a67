//! Graphs put together at random: the native engine against the reference evaluator, and quantized graphs against what they are
//! lowered to.

use std::fmt::Write;

use qwix_array::{Array, DType};
use qwix_cpu::CpuBackend;
use qwix_eval::{Backend, Params, ReferenceBackend, Value};
use qwix_graph::{
    BinaryOp, Comparison, ComputationBuilder, ConvDims, DotDims, Graph, GraphBuilder, NodeId, Op, PadDim,
    SliceDim, Type, UnaryOp, WindowDim,
};
use qwix_quant::{Calibration, Granularity, HowToQuantize, QType, Tile};

/// Numbers that repeat from run to run.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    fn array(&mut self, dtype: DType, shape: &[usize]) -> Array {
        let values: Vec<f64> = (0..shape.iter().product())
            .map(|_| (self.next() >> 11) as f64 / (1u64 << 52) as f64 - 1.0)
            .collect();
        Array::from_f64(dtype, shape, &values).unwrap()
    }
}

const SIZES: [usize; 9] = [1, 2, 3, 5, 8, 16, 17, 33, 64];

/// A graph of `steps` ops over f32 arrays (and what comparisons and iotas bring), with its inputs.
fn graph(random: &mut Random, steps: usize) -> (Graph, Vec<Array>) {
    let mut b = GraphBuilder::new("random");
    let mut inputs = Vec::new();
    let mut pool: Vec<NodeId> = Vec::new();
    for i in 0..3 {
        let shape: Vec<usize> = (0..1 + random.below(3)).map(|_| random.pick(&SIZES)).collect();
        let id = b.input(&format!("x{i}"), Type::array(DType::F32, shape.clone())).unwrap();
        inputs.push(random.array(DType::F32, &shape));
        pool.push(id);
    }
    for _ in 0..steps {
        let at = pool[pool.len() - 1 - random.below(pool.len().min(4))];
        if let Some(id) = step(random, &mut b, at, &pool) {
            let small = b.shape(id).unwrap().iter().product::<usize>() <= 1 << 15;
            if small {
                pool.push(id);
            }
        }
    }
    let used: Vec<NodeId> = pool[3..].to_vec();
    let outputs: Vec<NodeId> = used.iter().rev().take(4).copied().collect();
    let root = b.tuple(&outputs).unwrap();
    (b.finish(root).unwrap(), inputs)
}

/// One more op on `x`; `None` when what was drawn does not fit it.
fn step(random: &mut Random, b: &mut ComputationBuilder, x: NodeId, pool: &[NodeId]) -> Option<NodeId> {
    let shape = b.shape(x).ok()?.to_vec();
    let rank = shape.len();
    let axis = |random: &mut Random| random.below(rank.max(1));
    match random.below(16) {
        0..=2 => {
            let op = random.pick(&[
                UnaryOp::Tanh,
                UnaryOp::Negate,
                UnaryOp::Abs,
                UnaryOp::Logistic,
                UnaryOp::Erf,
                UnaryOp::Floor,
                UnaryOp::Sin,
            ]);
            b.unary(op, x).ok()
        }
        3..=5 => {
            let op = random.pick(&[
                BinaryOp::Add,
                BinaryOp::Multiply,
                BinaryOp::Subtract,
                BinaryOp::Maximum,
                BinaryOp::Minimum,
            ]);
            let other = pool.iter().rev().find(|&&o| o != x && b.shape(o).is_ok_and(|s| s == shape)).copied();
            let other = match other {
                Some(other) => other,
                None => {
                    let scalar = b.scalar(0.75f32).ok()?;
                    b.broadcast(scalar, &shape, &[]).ok()?
                }
            };
            b.binary(op, x, other).ok()
        }
        6 => {
            let zero = b.scalar(0.1f32).ok()?;
            let zero = b.broadcast(zero, &shape, &[]).ok()?;
            let mask = b.compare(Comparison::Gt, x, zero).ok()?;
            let other = b.unary(UnaryOp::Negate, x).ok()?;
            b.select(mask, x, other).ok()
        }
        7 if rank > 1 => {
            let mut permutation: Vec<usize> = (0..rank).collect();
            for i in (1..rank).rev() {
                permutation.swap(i, random.below(i + 1));
            }
            b.transpose(x, &permutation).ok()
        }
        8 => b.reshape(x, &[shape.iter().product()]).ok(),
        9 if rank > 0 && rank < 4 => {
            let size = random.pick(&[1, 3, 4]);
            let at = random.below(rank + 1);
            let mut wider = shape.clone();
            wider.insert(at, size);
            let dims: Vec<usize> = (0..=rank).filter(|&a| a != at).collect();
            b.broadcast(x, &wider, &dims).ok()
        }
        10 if rank > 0 => {
            let a = axis(random);
            let op = random.pick(&[BinaryOp::Add, BinaryOp::Maximum, BinaryOp::Minimum]);
            let init = b.scalar(if op == BinaryOp::Add { 0.0f32 } else { 0.3 }).ok()?;
            let mut dims = vec![a];
            if rank > 1 && random.below(2) == 0 {
                dims.push((a + 1) % rank);
                dims.sort_unstable();
            }
            b.reduce(op, x, init, &dims).ok()
        }
        11 if rank > 0 => {
            let dims: Vec<SliceDim> = shape
                .iter()
                .map(|&size| {
                    let start = random.below(size);
                    SliceDim {
                        start,
                        limit: start + 1 + random.below(size - start),
                        stride: 1 + random.below(2),
                    }
                })
                .collect();
            b.slice(x, &dims).ok()
        }
        12 if rank > 0 => {
            let value = b.scalar(-0.5f32).ok()?;
            let dims = shape
                .iter()
                .map(|_| PadDim {
                    low: random.below(4) as i64 - 1,
                    high: random.below(3) as i64,
                    interior: random.below(2),
                })
                .collect();
            b.add(Op::Pad(dims), &[x, value]).ok()
        }
        13 if rank > 0 => {
            let a = axis(random);
            b.add(Op::Concatenate { dimension: a }, &[x, x]).ok()
        }
        14 if rank > 0 => b.add(Op::Reverse { dimensions: vec![axis(random)] }, &[x]).ok(),
        15 if rank > 0 => {
            // With itself: every axis but one free, or one of them a batch.
            let a = axis(random);
            let batch: Vec<usize> =
                if rank > 1 && random.below(2) == 0 { vec![(a + 1) % rank] } else { vec![] };
            let dims = DotDims {
                lhs_contracting: vec![a],
                rhs_contracting: vec![a],
                lhs_batch: batch.clone(),
                rhs_batch: batch,
                ..DotDims::default()
            };
            let product = b.dot(x, x, &dims, DType::F32).ok()?;
            // Keep numbers near 1.
            b.unary(UnaryOp::Tanh, product).ok()
        }
        _ => None,
    }
}

fn largest(a: &Array) -> f64 {
    a.to_f64_vec().iter().fold(0.0, |m, v| v.abs().max(m))
}

/// How far apart two runs are, relative to the largest value of each output; infinite when shapes differ or a NaN is on one side.
fn apart(found: &[Array], expected: &[Array]) -> f64 {
    let mut worst: f64 = 0.0;
    for (a, b) in found.iter().zip(expected) {
        if a.shape() != b.shape() || a.dtype() != b.dtype() {
            return f64::INFINITY;
        }
        // Sums of numbers near 1 may cancel: errors are those of the terms.
        let size = largest(b).max(0.1);
        for (x, y) in a.to_f64_vec().iter().zip(b.to_f64_vec()) {
            if x.is_nan() != y.is_nan() {
                return f64::INFINITY;
            }
            if !x.is_nan() && *x != y {
                worst = worst.max((x - y).abs() / size);
            }
        }
    }
    if found.len() == expected.len() { worst } else { f64::INFINITY }
}

#[test]
fn native_is_the_reference_on_float_graphs() {
    let mut wrong = String::new();
    for seed in 1..400 {
        let mut random = Random::new(seed);
        let steps = 3 + random.below(14);
        let (graph, inputs) = graph(&mut random, steps);
        let run = |backend: &dyn Backend| backend.compile(&graph, Params::new()).and_then(|m| m.run(&inputs));
        let expected = run(&ReferenceBackend::default()).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        match run(&CpuBackend::default()) {
            // A chain of up to sixteen steps, each a few units in the last place off; floor makes a step of a last bit, and none was met.
            Ok(found) => {
                let apart = apart(&found, &expected);
                if apart > 2e-5 {
                    writeln!(wrong, "seed {seed}: {apart:e}").unwrap();
                }
            }
            Err(error) => writeln!(wrong, "seed {seed}: {error}").unwrap(),
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// How a side of a product is quantized: channelwise, but shared or tiled along `contracted`.
fn how(
    random: &mut Random,
    rank: usize,
    contracted: usize,
    size: usize,
    qtype: &str,
    asymmetric: bool,
) -> HowToQuantize {
    let qtype = QType::by_name(qtype).unwrap();
    let tiles: Vec<usize> =
        [8, 16, 32, 128].into_iter().filter(|t| size.is_multiple_of(*t) && *t < size).collect();
    let along = match qtype.tile {
        Some(tile) => Granularity::Tiled(Tile::Size(tile)),
        None if !tiles.is_empty() && random.below(2) == 0 => {
            Granularity::Tiled(Tile::Size(random.pick(&tiles)))
        }
        None => Granularity::Shared,
    };
    let free = random.pick(&[Granularity::Channelwise, Granularity::Channelwise, Granularity::Shared]);
    HowToQuantize {
        qtype,
        granularity: (0..rank).map(|a| if a == contracted { along } else { free }).collect(),
        calibration: if asymmetric {
            Calibration::MinMax { scale: None }
        } else {
            Calibration::AbsMax { scale: Some(0.93) }
        },
    }
}

/// A weight and an activation multiplied, each quantized or not.
fn product(random: &mut Random, case: usize) -> Option<(Graph, Params, Vec<Array>)> {
    const QTYPES: [&str; 11] = [
        "int8",
        "int8",
        "int4",
        "int3",
        "int16",
        "nf4",
        "float8_e4m3fn",
        "float8_e5m2",
        "float4_e2m1fn",
        "mxfp8",
        "mxfp4",
    ];
    let depth = random.pick(&[1, 7, 32, 64, 96, 128, 256, 384]);
    let (rows, columns) = (random.pick(&[1, 2, 5, 13, 33]), random.pick(&[1, 3, 16, 33, 70]));
    let batch = random.pick(&[0, 0, 2, 3]);
    let dtype = random.pick(&[DType::F32, DType::F32, DType::BF16]);
    let weight_first = random.below(4) == 0;
    let contracted_last = random.below(2) == 0;
    let mut b = GraphBuilder::new("product");
    let with_batch = |shape: &[usize]| if batch > 0 { [&[batch], shape].concat() } else { shape.to_vec() };
    let x_shape = with_batch(&[rows, depth]);
    let w_shape = with_batch(&if contracted_last { [columns, depth] } else { [depth, columns] });
    let rank = x_shape.len();
    let w_axis = if contracted_last { rank - 1 } else { rank - 2 };
    let x = b.input("x", Type::array(dtype, x_shape.clone())).ok()?;
    let inputs = vec![random.array(dtype, &x_shape)];
    let mut params = Params::new();
    let w_dtype = random.pick(&[dtype, DType::F32]);
    let w_float = random.array(w_dtype, &w_shape);
    let qtype = random.pick(&QTYPES);
    let asymmetric = matches!(qtype, "int8" | "int4") && random.below(4) == 0;
    let w_how = how(random, rank, w_axis, depth, qtype, asymmetric);
    let quantized = qwix_quant::quantize(&w_float, &w_how).ok()?;
    let slot = qwix_graph::WeightSlot {
        source: "w".into(),
        source_type: qwix_graph::ArrayType::new(w_float.dtype(), w_shape.clone()),
        prep: vec![],
        how: w_how,
    };
    let w = b.quantized_variable("w", slot).ok()?;
    params.insert("w".into(), Value::QArray(quantized));
    let x = if random.below(3) > 0 {
        // Whether both sides are tiled, and alike, is for the plan to accept.
        let qtype = random.pick(&["int8", "int8", "int4", "int16", "float8_e4m3fn"]);
        let asymmetric = qtype == "int8" && random.below(4) == 0;
        let how = how(random, rank, rank - 1, depth, qtype, asymmetric);
        b.quantize(x, &how).ok()?
    } else {
        x
    };
    let batches: Vec<usize> = if batch > 0 { vec![0] } else { vec![] };
    let (l, r, lc, rc) = if weight_first { (w, x, w_axis, rank - 1) } else { (x, w, rank - 1, w_axis) };
    let dims = DotDims {
        lhs_contracting: vec![lc],
        rhs_contracting: vec![rc],
        lhs_batch: batches.clone(),
        rhs_batch: batches,
        ..DotDims::default()
    };
    let result = random.pick(&[DType::F32, dtype]);
    let root = b.dot(l, r, &dims, result).ok()?;
    let _ = case;
    Some((b.finish(root).ok()?, params, inputs))
}

/// Compares a quantized graph with the reference; what the graph refuses is skipped, and counted.
fn compare(name: &str, graph: &Graph, params: &Params, inputs: &[Array], wrong: &mut String) -> bool {
    let run = |backend: &dyn Backend| backend.compile(graph, params.clone()).and_then(|m| m.run(inputs));
    let Ok(expected) = run(&ReferenceBackend::default()) else { return false };
    // 16-bit results are rounded in steps, on either side of a tie.
    let bound = if expected.iter().any(|a| a.dtype() == DType::BF16)
        || graph.entry.nodes.iter().any(|n| n.ty.to_string().contains("bf16"))
    {
        2f64.powi(-7)
    } else {
        2e-6
    };
    match run(&CpuBackend::default()) {
        Ok(found) => {
            let apart = apart(&found, &expected);
            if apart > bound {
                writeln!(
                    wrong,
                    "{name}: {apart:e}, {:?}",
                    graph.entry.nodes.iter().map(|n| n.ty.to_string()).collect::<Vec<_>>()
                )
                .unwrap();
            }
        }
        Err(error) => writeln!(wrong, "{name}: {error}").unwrap(),
    }
    true
}

#[test]
fn native_is_the_reference_on_quantized_products() {
    let mut wrong = String::new();
    let mut compared = 0;
    for seed in 1..1500usize {
        let mut random = Random::new(seed as u64);
        let Some((graph, params, inputs)) = product(&mut random, seed) else { continue };
        compared += usize::from(compare(&format!("seed {seed}"), &graph, &params, &inputs, &mut wrong));
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert!(compared > 700, "only {compared} graphs");
}

#[test]
fn native_is_the_reference_on_convolutions() {
    let mut wrong = String::new();
    let mut compared = 0;
    for seed in 1..400u64 {
        let mut random = Random::new(seed);
        let groups = random.pick(&[1, 1, 2, 3]);
        let (inputs, outputs) = (random.pick(&[1, 2, 5]), random.pick(&[1, 2, 4]));
        let space = [random.pick(&[1, 4, 7, 9]), random.pick(&[3, 5, 8])];
        let taps = [random.pick(&[1, 2, 3]), random.pick(&[1, 3])];
        let batch = random.pick(&[1, 2]);
        let window: Vec<WindowDim> = taps
            .iter()
            .map(|&size| WindowDim {
                size,
                stride: random.pick(&[1, 1, 2]),
                padding_low: random.below(3) as i64 - 1,
                padding_high: random.below(3) as i64,
                base_dilation: random.pick(&[1, 1, 2]),
                window_dilation: random.pick(&[1, 1, 2]),
                reversal: random.below(4) == 0,
            })
            .collect();
        let channels_last = random.below(2) == 0;
        let (x_shape, f, s) = if channels_last {
            ([batch, space[0], space[1], groups * inputs], 3, [1, 2])
        } else {
            ([batch, groups * inputs, space[0], space[1]], 1, [2, 3])
        };
        let w_shape = [taps[0], taps[1], inputs, groups * outputs];
        let dims = ConvDims {
            input_batch: 0,
            input_feature: f,
            input_spatial: s.to_vec(),
            kernel_input_feature: 2,
            kernel_output_feature: 3,
            kernel_spatial: vec![0, 1],
            output_batch: 0,
            output_feature: f,
            output_spatial: s.to_vec(),
            window,
            feature_group_count: groups,
            batch_group_count: 1,
            operand_precision: Default::default(),
        };
        let mut b = GraphBuilder::new("convolution");
        let x = b.input("x", Type::array(DType::F32, x_shape)).unwrap();
        let input = vec![random.array(DType::F32, &x_shape)];
        let w_float = random.array(DType::F32, &w_shape);
        let mut params = Params::new();
        let channelwise = |axis: usize| -> Vec<Granularity> {
            (0..4).map(|a| if a == axis { Granularity::Channelwise } else { Granularity::Shared }).collect()
        };
        let qtype = random.pick(&["none", "int8", "int8", "int4", "float8_e4m3fn", "nf4"]);
        let (w, x) = if qtype == "none" {
            params.insert("w".into(), Value::Array(w_float));
            (b.variable("w", Type::array(DType::F32, w_shape)).unwrap(), x)
        } else {
            let qtype = QType::by_name(qtype).unwrap();
            let w_how = HowToQuantize {
                qtype,
                granularity: channelwise(3),
                calibration: Calibration::AbsMax { scale: None },
            };
            params.insert("w".into(), Value::QArray(qwix_quant::quantize(&w_float, &w_how).unwrap()));
            let slot = qwix_graph::WeightSlot {
                source: "w".into(),
                source_type: qwix_graph::ArrayType::new(DType::F32, w_shape),
                prep: vec![],
                how: w_how,
            };
            let w = b.quantized_variable("w", slot).unwrap();
            let asymmetric = qtype.asymmetric_bounds.is_some() && random.below(3) == 0;
            let calibration = if asymmetric {
                Calibration::MinMax { scale: None }
            } else {
                Calibration::AbsMax { scale: Some(0.93) }
            };
            let how = HowToQuantize { qtype, granularity: channelwise(0), calibration };
            let x = if random.below(4) > 0 { b.quantize(x, &how).unwrap() } else { x };
            (w, x)
        };
        let Ok(root) = b.convolution(x, w, &dims, DType::F32) else { continue };
        let Ok(graph) = b.finish(root) else { continue };
        compared += usize::from(compare(&format!("seed {seed}"), &graph, &params, &input, &mut wrong));
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert!(compared > 200, "only {compared} graphs");
}
