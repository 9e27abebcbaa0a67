//! A graph with quantized types and its lowered form compute the same, bit for bit: on every qtype, granularity,
//! calibration and dtype that go together, and on products of them.

use std::sync::Arc;

use qwix_array::{Array, DType};
use qwix_eval::{Backend, Params, ReferenceBackend, Value};
use qwix_graph::passes::lower_quant;
use qwix_graph::*;
use qwix_quant::{Calibration, Granularity, HowToQuantize, QArray, QType, Tile, WindowDim};

/// Numbers that repeat from run to run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// About normal, now and then zero, large, or a round number that lands on a tie.
    fn number(&mut self) -> f64 {
        let uniform = |r: &mut Self| (r.next() >> 11) as f64 / (1u64 << 53) as f64;
        let normal = (0..4).map(|_| uniform(self)).sum::<f64>() - 2.0;
        match self.next() % 16 {
            0 => 0.0,
            1 => normal * 20.0,
            2 => (normal * 4.0).round() / 2.0,
            _ => normal,
        }
    }

    fn array(&mut self, dtype: DType, shape: &[usize]) -> Array {
        let count = shape.iter().product();
        let mut values: Vec<f64> = (0..count).map(|_| self.number()).collect();
        // A row of zeros has no range.
        let row = shape.last().copied().unwrap_or(1);
        if count > row && self.next().is_multiple_of(4) {
            values[..row].fill(0.0);
        }
        Array::from_f64(dtype, shape, &values).unwrap()
    }
}

fn run(graph: &Graph, params: Params, inputs: &[Array]) -> Result<Vec<Array>, String> {
    let executable = ReferenceBackend::default().compile(graph, params).map_err(|e| e.to_string())?;
    executable.run(inputs).map_err(|e| e.to_string())
}

/// Quantized variables as the lowered graph takes them.
fn parts(params: &Params) -> Params {
    let mut lowered = Params::new();
    for (path, value) in params {
        match value {
            Value::QArray(q) => {
                lowered.insert(path.join("qvalue"), Value::Array(q.qvalue().clone()));
                lowered.insert(path.join("scale"), Value::Array(q.scale().clone()));
                if let Some(zero_point) = q.zero_point() {
                    lowered.insert(path.join("zero_point"), Value::Array(zero_point.clone()));
                }
            }
            Value::Array(_) | Value::Tuple(_) => {
                lowered.insert(path.clone(), value.clone());
            }
        }
    }
    lowered
}

fn has_quantized(computation: &Computation) -> bool {
    computation.nodes.iter().any(|node| {
        matches!(node.op, Op::Quantize(_) | Op::Dequantize)
            || node.ty.to_string().contains("q[")
            || node.op.called().into_iter().any(|called| has_quantized(called))
    })
}

/// What is different between a graph and its lowered form, `None` when nothing is. `tolerance` is relative to each
/// number, 0 for the same bits.
fn difference(graph: &Graph, params: &Params, inputs: &[Array], tolerance: f64) -> Option<String> {
    let lowered = match lower_quant(graph) {
        Ok(lowered) => lowered,
        Err(error) => return Some(format!("cannot be lowered: {error}")),
    };
    if has_quantized(&lowered.entry) {
        return Some("something quantized is left".into());
    }
    match (run(graph, params.clone(), inputs), run(&lowered, parts(params), inputs)) {
        (Ok(expected), Ok(found)) => expected.iter().zip(&found).find_map(|(e, f)| {
            if e == f {
                return None;
            }
            let (e, f) = (e.to_f64_vec(), f.to_f64_vec());
            let close = |i: &usize| (e[*i] - f[*i]).abs() <= tolerance * e[*i].abs() && tolerance > 0.0;
            let at: Vec<usize> = (0..e.len()).filter(|i| !close(i)).collect();
            let &i = at.iter().find(|&&i| e[i].to_bits() != f[i].to_bits())?;
            Some(format!("{} of {} differ, at {i}: {:e}, lowered {:e}", at.len(), e.len(), e[i], f[i]))
        }),
        (Err(error), _) => Some(format!("cannot run: {error}")),
        (_, Err(error)) => Some(format!("cannot run lowered: {error}")),
    }
}

fn report(failures: Vec<String>, cases: usize) {
    assert!(cases > 0);
    assert!(failures.is_empty(), "{} of {cases} differ:\n{}", failures.len(), failures.join("\n"));
}

fn calibrations() -> Vec<Calibration> {
    ["absmax", "absmax,0.9", "minmax", "minmax,0.9", "rms,3", "fixed,2", "fixed,-1,3"]
        .iter()
        .map(|text| text.parse().unwrap())
        .collect()
}

fn granularities(rank: usize) -> Vec<Vec<Granularity>> {
    use Granularity::{Channelwise, Shared, Tiled};
    let last = |last: Granularity, others: Granularity| {
        let mut all = vec![others; rank];
        all[rank - 1] = last;
        all
    };
    let mut list = vec![
        last(Shared, Shared),
        last(Shared, Channelwise),
        last(Channelwise, Shared),
        last(Channelwise, Channelwise),
    ];
    for tile in [Tile::Size(1), Tile::Size(16), Tile::Size(32), Tile::Fraction(0.5)] {
        list.push(last(Tiled(tile), Channelwise));
        list.push(last(Tiled(tile), Shared));
    }
    list
}

/// A mean is summed in another order: its scale may differ by a unit in the last place.
fn mean_tolerance(dtype: DType) -> f64 {
    if dtype == DType::F64 { 1e-15 } else { 4e-6 }
}

const FLOATS: [DType; 4] = [DType::F32, DType::BF16, DType::F16, DType::F64];

#[test]
fn every_way_to_quantize() {
    let mut random = Random(7);
    let (mut failures, mut cases) = (Vec::new(), 0);
    for qtype in QType::all() {
        for calibration in calibrations() {
            for dtype in FLOATS {
                for shape in [&[3, 64][..], &[1, 32], &[2, 3, 32], &[1, 1]] {
                    for granularity in granularities(shape.len()) {
                        let how = HowToQuantize { qtype, granularity, calibration };
                        if how.validate(shape).is_err() {
                            continue;
                        }
                        cases += 1;
                        let mut b = GraphBuilder::new("quantize");
                        let x = b.input("x", Type::array(dtype, shape)).unwrap();
                        let q = b.quantize(x, &how).unwrap();
                        let y = b.dequantize(q).unwrap();
                        let graph = b.finish(y).unwrap();
                        let x = random.array(dtype, shape);
                        let tolerance = match calibration {
                            Calibration::Rms { .. } => mean_tolerance(dtype),
                            // One fused instruction of XLA's, for which f64 has no wider type.
                            Calibration::MinMax { scale: Some(_) } if dtype == DType::F64 => 1e-15,
                            _ => 0.0,
                        };
                        if let Some(what) = difference(&graph, &Params::new(), &[x], tolerance) {
                            let Type::QArray(ty) = &graph.entry.nodes[1].ty else { unreachable!() };
                            failures.push(format!("{ty}: {what}"));
                        }
                    }
                }
            }
        }
    }
    report(failures, cases);
}

fn how(qtype: &str, calibration: &str, granularity: &[Granularity]) -> HowToQuantize {
    HowToQuantize {
        qtype: QType::by_name(qtype).unwrap(),
        granularity: granularity.to_vec(),
        calibration: calibration.parse().unwrap(),
    }
}

/// A side of a product: plain, or quantized in the graph, or a quantized variable.
fn side(
    b: &mut GraphBuilder,
    name: &str,
    array: &Array,
    how: Option<&HowToQuantize>,
    is_variable: bool,
    params: &mut Params,
    inputs: &mut Vec<Array>,
) -> NodeId {
    let ty = ArrayType::new(array.dtype(), array.shape());
    match how {
        Some(how) if is_variable => {
            let slot =
                WeightSlot { source: Path::new(name), source_type: ty, prep: vec![], how: how.clone() };
            let q = qwix_quant::quantize(array, how).unwrap();
            params.insert(Path::new(name), Value::QArray(q));
            b.quantized_variable(name, slot).unwrap()
        }
        Some(how) => {
            inputs.push(array.clone());
            let x = b.input(name, ty.into()).unwrap();
            b.quantize(x, how).unwrap()
        }
        None => {
            inputs.push(array.clone());
            b.input(name, ty.into()).unwrap()
        }
    }
}

#[test]
fn dots() {
    use Granularity::{Channelwise, Shared, Tiled};
    let mut random = Random(11);
    let (mut failures, mut cases) = (Vec::new(), 0);
    let side_hows = |contracted_last: bool, tiles: &[Tile]| {
        let mut list: Vec<Option<HowToQuantize>> = vec![None];
        for (qtype, calibration) in [
            ("int8", "absmax"),
            ("int8", "minmax"),
            ("int4", "absmax,0.9"),
            ("int4", "minmax"),
            ("int5", "absmax"),
            ("int16", "absmax"),
            ("nf4", "absmax"),
            ("float8_e4m3fn", "absmax"),
            ("float8_e5m2", "absmax,0.8"),
            ("float4_e2m1fn", "fixed,3"),
            ("mxfp8", "absmax"),
            ("nvfp4", "absmax"),
        ] {
            for tile in [None].into_iter().chain(tiles.iter().copied().map(Some)) {
                let contracted = tile.map_or(Shared, Tiled);
                // [batch, free, contracted], or [batch, contracted, free].
                let granularity = if contracted_last {
                    [Channelwise, Channelwise, contracted]
                } else {
                    [Channelwise, contracted, Channelwise]
                };
                let how = how(qtype, calibration, &granularity);
                if how.validate(if contracted_last { &[2, 3, 256] } else { &[2, 256, 5] }).is_ok() {
                    list.push(Some(how));
                }
            }
        }
        list
    };
    let tiles = [Tile::Size(16), Tile::Size(32), Tile::Size(128), Tile::Fraction(0.5)];
    let dims = DotDims {
        lhs_contracting: vec![2],
        rhs_contracting: vec![1],
        lhs_batch: vec![0],
        rhs_batch: vec![0],
        ..DotDims::default()
    };
    for lhs in side_hows(true, &tiles) {
        for rhs in side_hows(false, &tiles) {
            if lhs.is_none() && rhs.is_none() {
                continue;
            }
            let both = |f: &dyn Fn(&HowToQuantize) -> bool| lhs.iter().chain(&rhs).filter(|h| f(h)).count();
            if both(&|h| h.calibration.is_asymmetric()) > 1 {
                continue;
            }
            let [ld, rd] = *random_pair(&mut random);
            let (x, w) = (random.array(ld, &[2, 3, 256]), random.array(rd, &[2, 256, 5]));
            let (mut params, mut inputs) = (Params::new(), Vec::new());
            let mut b = GraphBuilder::new("dot");
            let l = side(&mut b, "x", &x, lhs.as_ref(), false, &mut params, &mut inputs);
            let r = side(
                &mut b,
                "w",
                &w,
                rhs.as_ref(),
                random.next().is_multiple_of(2),
                &mut params,
                &mut inputs,
            );
            let result = if random.next().is_multiple_of(2) { ld } else { rd };
            let y = b.dot(l, r, &dims, result).unwrap();
            let graph = b.finish(y).unwrap();
            cases += 1;
            if let Some(what) = difference(&graph, &params, &inputs, 0.0) {
                let ty = |h: &Option<HowToQuantize>| {
                    h.as_ref().map_or("plain".to_owned(), |h| {
                        format!("{} {:?} {}", h.qtype, h.granularity, h.calibration)
                    })
                };
                failures.push(format!("{ld} {} x {rd} {} -> {result}: {what}", ty(&lhs), ty(&rhs)));
            }
        }
    }
    report(failures, cases);
}

fn random_pair(random: &mut Random) -> &'static [DType; 2] {
    use DType::{BF16, F16, F32, F64};
    const PAIRS: [[DType; 2]; 6] =
        [[F32, F32], [F32, F32], [BF16, BF16], [BF16, F32], [F16, F16], [F64, F64]];
    &PAIRS[(random.next() % PAIRS.len() as u64) as usize]
}

#[test]
fn convolutions() {
    use Granularity::{Channelwise, Shared};
    let mut random = Random(13);
    let (mut failures, mut cases) = (Vec::new(), 0);
    let window = WindowDim { padding_low: 1, padding_high: 1, stride: 2, ..WindowDim::new(3) };
    for (groups, features) in [(1, 4), (2, 2), (4, 1)] {
        let dims = ConvDims {
            input_batch: 0,
            input_feature: 2,
            input_spatial: vec![1],
            kernel_input_feature: 1,
            kernel_output_feature: 2,
            kernel_spatial: vec![0],
            output_batch: 0,
            output_feature: 2,
            output_spatial: vec![1],
            window: vec![window],
            feature_group_count: groups,
            batch_group_count: 1,
            operand_precision: Default::default(),
        };
        for (lhs, rhs) in [
            (None, Some(("int8", "absmax"))),
            (Some(("int8", "absmax")), Some(("int8", "absmax"))),
            (Some(("int8", "minmax")), Some(("int8", "absmax"))),
            (Some(("int4", "minmax")), Some(("int4", "fixed,1"))),
            (Some(("nf4", "absmax")), Some(("nf4", "absmax"))),
            (Some(("float8_e4m3fn", "absmax")), Some(("float8_e4m3fn", "absmax,0.9"))),
            (Some(("int7", "rms,3")), Some(("int7", "absmax"))),
        ] {
            for dtype in FLOATS {
                let (x, w) = (random.array(dtype, &[2, 9, 4]), random.array(dtype, &[3, features, 8]));
                let l = lhs.map(|(q, c)| how(q, c, &[Channelwise, Shared, Shared]));
                let r = rhs.map(|(q, c)| how(q, c, &[Shared, Shared, Channelwise]));
                let (mut params, mut inputs) = (Params::new(), Vec::new());
                let mut b = GraphBuilder::new("conv");
                let x = side(&mut b, "x", &x, l.as_ref(), false, &mut params, &mut inputs);
                let w = side(&mut b, "w", &w, r.as_ref(), true, &mut params, &mut inputs);
                let y = b.convolution(x, w, &dims, dtype).unwrap();
                let graph = b.finish(y).unwrap();
                cases += 1;
                let has_mean = lhs.is_some_and(|(_, c)| c.starts_with("rms"));
                let tolerance = if has_mean { mean_tolerance(dtype) } else { 0.0 };
                if let Some(what) = difference(&graph, &params, &inputs, tolerance) {
                    failures.push(format!("{dtype} {lhs:?} x {rhs:?}, {groups} groups: {what}"));
                }
            }
        }
    }
    report(failures, cases);
}

#[test]
fn static_ranges() {
    use Granularity::{Channelwise, Shared};
    let mut random = Random(17);
    let (mut failures, mut cases) = (Vec::new(), 0);
    for qtype in QType::all().iter().filter(|q| q.tile.is_none()) {
        for (calibration, granularity) in [
            ("absmax", [Shared, Shared]),
            ("absmax", [Channelwise, Shared]),
            ("minmax", [Shared, Channelwise]),
        ] {
            for dtype in FLOATS {
                let how = how(qtype.name, calibration, &granularity);
                if how.validate(&[3, 8]).is_err() {
                    continue;
                }
                let shape = how.scale_shape(&[3, 8]).unwrap();
                let count = shape.iter().product();
                let mut b = GraphBuilder::new("static");
                let x = b.input("x", Type::array(dtype, [3, 8])).unwrap();
                let scale = b.input("scale", Type::array(dtype, shape.clone())).unwrap();
                let scales: Vec<f64> = (0..count).map(|_| 0.01 + random.number().abs() / 8.0).collect();
                let mut inputs =
                    vec![random.array(dtype, &[3, 8]), Array::from_f64(dtype, &shape, &scales).unwrap()];
                let mut operands = vec![x, scale];
                if how.calibration.is_asymmetric() {
                    operands.push(b.input("zero", Type::array(qtype.storage, shape.clone())).unwrap());
                    let zeros: Vec<i64> = (0..count).map(|_| (random.number() * 3.0) as i64).collect();
                    inputs.push(Array::from_i64(qtype.storage, &shape, &zeros).unwrap());
                }
                let q = b.add(Op::Quantize(how.clone()), &operands).unwrap();
                let y = b.dequantize(q).unwrap();
                let graph = b.finish(y).unwrap();
                cases += 1;
                if let Some(what) = difference(&graph, &Params::new(), &inputs, 0.0) {
                    failures.push(format!("{qtype} {dtype} {calibration} {granularity:?}: {what}"));
                }
            }
        }
    }
    report(failures, cases);
}

/// Stacked quantized weights pass through a loop, are sliced and lose an axis there; and through a conditional.
#[test]
fn quantized_values_through_control_flow() {
    use Granularity::{Channelwise, Shared, Tiled};
    let mut random = Random(19);
    let (mut failures, mut cases) = (Vec::new(), 0);
    for (qtype, calibration, contracted) in [
        ("int8", "absmax", Shared),
        ("int4", "minmax", Shared),
        ("nf4", "absmax", Tiled(Tile::Size(4))),
        ("int8", "fixed,-1,2", Shared),
    ] {
        let how = how(qtype, calibration, &[Channelwise, contracted, Channelwise]);
        let array = random.array(DType::F32, &[4, 8, 8]);
        let slot = WeightSlot {
            source: Path::new("layers/kernel"),
            source_type: ArrayType::new(DType::F32, [4, 8, 8]),
            prep: vec![],
            how: how.clone(),
        };
        let graph = scan(slot);
        let q: QArray = qwix_quant::quantize(&array, &how).unwrap();
        let params = Params::from([(Path::new("layers/kernel"), Value::QArray(q))]);
        let x = random.array(DType::F32, &[2, 8]);
        cases += 1;
        if let Some(what) = difference(&graph, &params, &[x], 0.0) {
            failures.push(format!("{qtype} {calibration}: {what}"));
        }
    }
    report(failures, cases);
}

fn scan(slot: WeightSlot) -> Graph {
    let mut b = GraphBuilder::new("scan");
    let x = b.input("x", Type::array(DType::F32, [2, 8])).unwrap();
    let w = b.quantized_variable("layers/kernel", slot).unwrap();
    let zero = b.scalar(0i32).unwrap();
    let state = b.tuple(&[zero, x, w]).unwrap();
    let ty = b.ty(state).unwrap().clone();

    let mut c = ComputationBuilder::new("condition");
    let s = c.parameter("s", ty.clone()).unwrap();
    let i = c.get_tuple_element(s, 0).unwrap();
    let n = c.scalar(4i32).unwrap();
    let less = c.compare(Comparison::Lt, i, n).unwrap();
    let condition = Arc::new(c.finish(less).unwrap());

    let dims = DotDims { lhs_contracting: vec![1], rhs_contracting: vec![0], ..DotDims::default() };
    let mut c = ComputationBuilder::new("body");
    let s = c.parameter("s", ty).unwrap();
    let i = c.get_tuple_element(s, 0).unwrap();
    let activation = c.get_tuple_element(s, 1).unwrap();
    let stack = c.get_tuple_element(s, 2).unwrap();
    let zero = c.scalar(0i32).unwrap();
    let layer = c.add(Op::DynamicSlice { sizes: vec![1, 8, 8] }, &[stack, i, zero, zero]).unwrap();
    let layer = c.reshape(layer, &[8, 8]).unwrap();
    let y = c.dot(activation, layer, &dims, DType::F32).unwrap();
    let one = c.scalar(1i32).unwrap();
    let next = c.binary(BinaryOp::Add, i, one).unwrap();
    let root = c.tuple(&[next, y, stack]).unwrap();
    let body = Arc::new(c.finish(root).unwrap());
    let state = b.add(Op::While { condition, body }, &[state]).unwrap();
    let y = b.get_tuple_element(state, 1).unwrap();

    // The first layer once more, chosen by a conditional that takes the quantized weights whole.
    let whole = |s: usize, l: usize| SliceDim { start: s, limit: l, stride: 1 };
    let layer = b.slice(w, &[whole(1, 2), whole(0, 8), whole(0, 8)]).unwrap();
    let layer = b.reshape(layer, &[8, 8]).unwrap();
    let ty = b.ty(layer).unwrap().clone();
    let branches = [false, true]
        .map(|negate| {
            let mut c = ComputationBuilder::new("branch");
            let w = c.parameter("w", ty.clone()).unwrap();
            let w = c.dequantize(w).unwrap();
            let root = if negate { c.unary(UnaryOp::Negate, w).unwrap() } else { w };
            Arc::new(c.finish(root).unwrap())
        })
        .to_vec();
    let index = b.scalar(1i32).unwrap();
    let w = b.add(Op::Conditional { branches }, &[index, layer, layer]).unwrap();
    let y = b.dot(y, w, &dims, DType::F32).unwrap();
    b.finish(y).unwrap()
}
