//! Products on an XLA device against the reference evaluator: those of integers to the last bit, those of f32 in f32.

mod common;

use qwix_array::{Array, DType};
use qwix_eval::{Backend, Params, ReferenceBackend};
use qwix_graph::{ConvDims, DotDims, Graph, GraphBuilder, Type, WindowDim};
use qwix_pjrt::XlaBackend;

/// All values of an integer type, the least one included, or floats with many digits.
fn filled(dtype: DType, shape: &[usize], seed: usize) -> Array {
    let count = shape.iter().product::<usize>();
    let mut state = seed as u64 + 1;
    let mut next = move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as i64
    };
    if dtype.is_float() {
        let values = (0..count).map(|_| next() as f64 / 2f64.powi(30) - 1.0).collect::<Vec<_>>();
        return Array::from_f64(dtype, shape, &values).unwrap();
    }
    let bits = dtype.bits() as u32;
    let least = if dtype.is_signed_int() { -(1i64 << (bits - 1)) } else { 0 };
    let values = (0..count).map(|_| least + next() % (1i64 << bits)).collect::<Vec<_>>();
    Array::from_i64(dtype, shape, &values).unwrap()
}

fn dot(types: [DType; 3], batch: usize, m: usize, k: usize, n: usize) -> (Graph, Vec<Array>) {
    let [lhs, rhs, result] = types;
    let (left, right) = ([batch, m, k], [batch, k, n]);
    let mut b = GraphBuilder::new("dot");
    let x = b.input("x", Type::array(lhs, left)).unwrap();
    let y = b.input("y", Type::array(rhs, right)).unwrap();
    let dims = DotDims {
        lhs_contracting: vec![2],
        rhs_contracting: vec![1],
        lhs_batch: vec![0],
        rhs_batch: vec![0],
        ..DotDims::default()
    };
    let product = b.dot(x, y, &dims, result).unwrap();
    (b.finish(product).unwrap(), vec![filled(lhs, &left, m), filled(rhs, &right, n)])
}

/// A convolution of `size`² pixels with 3² windows.
fn conv(types: [DType; 3], size: usize, features: [usize; 2], groups: usize) -> (Graph, Vec<Array>) {
    let [lhs, rhs, result] = types;
    let [from, to] = features;
    let (input, kernel) = ([2, size, size, from], [3, 3, from / groups, to]);
    let mut b = GraphBuilder::new("conv");
    let x = b.input("x", Type::array(lhs, input)).unwrap();
    let w = b.input("w", Type::array(rhs, kernel)).unwrap();
    let window = WindowDim { padding_low: 1, padding_high: 1, stride: 2, ..WindowDim::new(3) };
    let dims = ConvDims {
        input_batch: 0,
        input_feature: 3,
        input_spatial: vec![1, 2],
        kernel_input_feature: 2,
        kernel_output_feature: 3,
        kernel_spatial: vec![0, 1],
        output_batch: 0,
        output_feature: 3,
        output_spatial: vec![1, 2],
        window: vec![window; 2],
        feature_group_count: groups,
        batch_group_count: 1,
        operand_precision: Default::default(),
    };
    let product = b.convolution(x, w, &dims, result).unwrap();
    (b.finish(product).unwrap(), vec![filled(lhs, &input, size), filled(rhs, &kernel, to)])
}

#[test]
fn products_are_what_their_types_say() {
    let Some(client) = common::client() else { return };
    let xla = XlaBackend::on(client, 0).unwrap();
    use DType::{F32, S4, S8, S32};
    let int8 = [S8, S8, S32];
    // name, graph and inputs; how far the result may be away, relative to its largest value
    let rows = [
        ("one", dot(int8, 1, 1, 1, 1), 0.0),
        ("row", dot(int8, 1, 1, 257, 33), 0.0),
        ("column", dot(int8, 1, 65, 31, 1), 0.0),
        ("odd", dot(int8, 1, 5, 7, 3), 0.0),
        ("even", dot(int8, 1, 32, 128, 64), 0.0),
        ("long", dot(int8, 1, 3, 5000, 17), 0.0),
        ("batch", dot(int8, 3, 9, 66, 10), 0.0),
        ("int4", dot([S8, S4, S32], 1, 6, 130, 24), 0.0),
        ("int4 both", dot([S4, S4, S32], 2, 6, 13, 8), 0.0),
        ("conv", conv(int8, 8, [3, 16], 1), 0.0),
        ("deep conv", conv(int8, 5, [300, 8], 1), 0.0),
        ("depthwise conv", conv(int8, 7, [6, 6], 6), 0.0),
        ("int4 conv", conv([S8, S4, S32], 6, [8, 4], 2), 0.0),
        // Computed in fewer bits than f32's it would be off by a thousandth.
        ("f32", dot([F32; 3], 1, 64, 256, 48), 2e-6),
        ("f32 batch", dot([F32; 3], 2, 7, 129, 5), 2e-6),
        ("f32 conv", conv([F32; 3], 9, [16, 8], 1), 2e-6),
    ];
    let mut wrong = Vec::new();
    for (name, (graph, inputs), bound) in rows {
        let run = |backend: &dyn Backend| {
            let found = backend.compile(&graph, Params::new()).and_then(|model| model.run(&inputs));
            found.map(|outputs| outputs[0].to_f64_vec())
        };
        let expected = run(&ReferenceBackend::default()).unwrap();
        match run(&xla) {
            Err(error) => wrong.push(format!("{name}: {error}")),
            Ok(found) => {
                let largest = expected.iter().fold(1e-30, |m: f64, v| v.abs().max(m));
                let far = found.iter().zip(&expected).fold(0.0, |m: f64, (a, b)| m.max((a - b).abs()));
                let far = far / largest;
                println!("{name}: {far:.1e}");
                // Written so that NaN fails.
                if !(far <= bound && found.len() == expected.len()) {
                    wrong.push(format!("{name}: off by {far:.1e}, at most {bound:.1e}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
