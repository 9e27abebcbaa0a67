//! How products are planned, and that both ways of computing one agree.

use qwix_array::{Array, DType};
use qwix_quant::{
    ConvDims, ConvPlan, DotDims, DotPlan, Granularity, HowToQuantize, Operand, OperandInfo, QArray, QType,
    QuantizedInfo, Side, Tile, WindowDim, broadcast_views, conv_plan, dequantize, dot_general, dot_plan,
    how_to_quantize_conv, how_to_quantize_dot, how_to_quantize_einsum, quantize,
};

fn quantized(
    shape: &[usize],
    dtype: DType,
    qtype: &str,
    scale_shape: &[usize],
    has_zero_point: bool,
) -> OperandInfo {
    let qtype = QType::by_name(qtype).unwrap();
    let quantized = QuantizedInfo { qtype, scale_shape: scale_shape.to_vec(), has_zero_point };
    OperandInfo { shape: shape.to_vec(), dtype, quantized: Some(quantized) }
}

fn matmul() -> DotDims {
    DotDims { lhs_contracting: vec![1], rhs_contracting: vec![0], ..DotDims::default() }
}

#[test]
fn strategies_are_qwixs() {
    use DType::*;
    let q = |qtype: &str, scale: &[usize]| quantized(&[4, 256], F32, qtype, scale, false);
    let w = |qtype: &str, scale: &[usize]| quantized(&[256, 3], F32, qtype, scale, false);
    let float = OperandInfo::array(&[4, 256], F32);
    let raw = OperandInfo::array(&[4, 256], S8);
    let half = quantized(&[4, 256], F16, "int8", &[4, 1], false);
    let brain = |qtype: &str| quantized(&[256, 3], BF16, qtype, &[1, 3], false);
    let mut wrong = Vec::new();
    // The accumulator when stored values are multiplied, and the result's dtype.
    for (name, lhs, rhs, accumulator, result) in [
        ("int8 × int8", q("int8", &[4, 1]), w("int8", &[1, 3]), Some(S32), F32),
        ("int8 × int4", q("int8", &[4, 1]), w("int4", &[1, 1]), Some(S32), F32),
        ("int8 × fp8", q("int8", &[4, 1]), w("float8_e4m3fn", &[1, 3]), Some(F32), F32),
        ("fp8 × fp8", q("float8_e5m2", &[4, 1]), w("float8_e4m3fn", &[1, 3]), Some(F32), F32),
        ("float × int8", float.clone(), w("int8", &[1, 3]), None, F32),
        ("nf4 × int8", q("nf4", &[4, 1]), w("int8", &[1, 3]), None, F32),
        ("tiles of 128", q("int8", &[4, 2]), w("int8", &[2, 3]), Some(S32), F32),
        ("one side in tiles", q("int8", &[4, 1]), w("int8", &[2, 3]), Some(S32), F32),
        ("tiles of 64", q("int8", &[4, 1]), w("int8", &[4, 3]), None, F32),
        ("contracted axis channelwise", q("int8", &[4, 256]), w("int8", &[1, 3]), None, F32),
        ("raw int8", raw.clone(), w("int8", &[1, 3]), Some(S32), F32),
        ("raw int8 × bf16", raw, brain("int8"), Some(S32), BF16),
        ("f16 × bf16", half.clone(), brain("int8"), Some(S32), F32),
        ("f16 × bf16, dequantized", half, brain("nf4"), None, BF16),
        ("f32 × bf16", float, brain("int8"), None, F32),
    ] {
        let found = match dot_plan(&lhs, &rhs, &matmul(), None).unwrap() {
            DotPlan::Dequantize { result, shape } => (None, result, shape),
            DotPlan::Multiply(plan) => (Some(plan.accumulator), plan.result, plan.shape),
        };
        if found != (accumulator, result, vec![4, 3]) {
            wrong.push(format!("{name}: {found:?}"));
        }
    }
    for (name, lhs, rhs) in [
        (
            "two zero points",
            quantized(&[4, 256], F32, "int8", &[4, 1], true),
            quantized(&[256, 3], F32, "int8", &[1, 3], true),
        ),
        ("a scale that does not divide", q("int8", &[3, 1]), w("int8", &[1, 3])),
        ("another size", OperandInfo::array(&[4, 255], F32), w("int8", &[1, 3])),
    ] {
        if dot_plan(&lhs, &rhs, &matmul(), None).is_ok() {
            wrong.push(format!("{name}: accepted"));
        }
    }
    let wide = quantized(&[4, 768], F32, "int8", &[4, 2], false);
    let other = quantized(&[768, 3], F32, "int8", &[3, 3], false);
    let message = dot_plan(&wide, &other, &matmul(), None).unwrap_err().to_string();
    if !message.contains("384") || !message.contains("256") {
        wrong.push(message);
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn tiles_become_a_batch_that_is_summed() {
    let lhs = quantized(&[2, 6, 256], DType::F32, "int8", &[2, 6, 2], true);
    let rhs = quantized(&[2, 256, 5], DType::F32, "int8", &[1, 1, 5], false);
    let dims = DotDims {
        lhs_contracting: vec![2],
        rhs_contracting: vec![1],
        lhs_batch: vec![0],
        rhs_batch: vec![0],
        ..DotDims::default()
    };
    let DotPlan::Multiply(plan) = dot_plan(&lhs, &rhs, &dims, None).unwrap() else { panic!("dequantizes") };
    assert_eq!(plan.lhs.shape, [2, 6, 2, 128]);
    assert_eq!(plan.rhs.shape, [2, 2, 128, 5]);
    assert_eq!(plan.dims.lhs_batch, [0, 2]);
    assert_eq!(plan.dims.rhs_batch, [0, 1]);
    assert_eq!((&plan.dims.lhs_contracting[..], &plan.dims.rhs_contracting[..]), (&[3][..], &[2][..]));
    assert_eq!(plan.product_shape, [2, 2, 6, 5]);
    assert_eq!(plan.sum_axes, [1]);
    assert_eq!(plan.shape, [2, 6, 5]);
    let scale = plan.lhs.scale.as_ref().unwrap();
    assert_eq!(
        (&scale.split[..], &scale.permutation[..], &scale.shape[..]),
        (&[2, 6, 2][..], &[0, 2, 1][..], &[2, 2, 6, 1][..])
    );
    assert_eq!(plan.rhs.scale.as_ref().unwrap().shape, [1, 1, 1, 5]);
    let zero_point = plan.lhs.zero_point.as_ref().unwrap();
    assert_eq!(zero_point.split, [2, 6, 2, 1]);
    assert_eq!(zero_point.broadcast, [2, 6, 2, 128]);
    assert_eq!(zero_point.correction_shape, [2, 2, 6, 5]);
}

fn nhwc() -> ConvDims {
    ConvDims {
        input_batch: 0,
        input_feature: 2,
        input_spatial: vec![1],
        kernel_input_feature: 1,
        kernel_output_feature: 2,
        kernel_spatial: vec![0],
        output_batch: 0,
        output_feature: 2,
        output_spatial: vec![1],
        window: vec![WindowDim::new(3)],
        feature_group_count: 1,
        batch_group_count: 1,
        operand_precision: Default::default(),
    }
}

#[test]
fn convolutions_are_planned() {
    use DType::F32;
    let input = |qtype: &str, scale: &[usize], z| quantized(&[2, 9, 4], F32, qtype, scale, z);
    let kernel = |qtype: &str, scale: &[usize], z| quantized(&[3, 4, 6], F32, qtype, scale, z);
    let multiplies = |l: &OperandInfo, r: &OperandInfo, dims: &ConvDims| {
        conv_plan(l, r, dims, None).ok().map(|plan| match plan {
            ConvPlan::Dequantize { .. } => false,
            ConvPlan::Multiply(_) => true,
        })
    };
    let grouped = ConvDims { batch_group_count: 2, ..nhwc() };
    let float = OperandInfo::array(&[2, 9, 4], F32);
    let mut wrong = Vec::new();
    for (name, lhs, rhs, dims, want) in [
        ("int8", input("int8", &[2, 1, 1], false), kernel("int8", &[1, 1, 6], false), nhwc(), Some(true)),
        (
            "zero point",
            input("int8", &[2, 1, 1], true),
            kernel("int8", &[1, 1, 6], false),
            nhwc(),
            Some(true),
        ),
        ("float input", float, kernel("int8", &[1, 1, 6], false), nhwc(), Some(false)),
        ("nf4", input("nf4", &[2, 1, 1], false), kernel("nf4", &[1, 1, 6], false), nhwc(), Some(false)),
        (
            "batch groups",
            input("int8", &[2, 1, 1], false),
            kernel("int8", &[1, 1, 6], false),
            grouped,
            Some(false),
        ),
        ("two types", input("int8", &[2, 1, 1], false), kernel("int4", &[1, 1, 6], false), nhwc(), None),
        (
            "kernel's zero point",
            input("int8", &[2, 1, 1], false),
            kernel("int8", &[1, 1, 6], true),
            nhwc(),
            None,
        ),
        ("tiles", input("int8", &[2, 1, 2], false), kernel("int8", &[1, 1, 6], false), nhwc(), None),
        (
            "channels that are summed",
            input("int8", &[2, 1, 4], false),
            kernel("int8", &[1, 1, 6], false),
            nhwc(),
            None,
        ),
    ] {
        let found = multiplies(&lhs, &rhs, &dims);
        if found != want {
            wrong.push(format!("{name}: {found:?}, not {want:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn shapes_that_make_no_sense_are_refused() {
    let mut wrong = Vec::new();
    let window = |f: fn(&mut WindowDim)| {
        let mut dims = nhwc();
        f(&mut dims.window[0]);
        dims
    };
    for (name, dims) in [
        ("stride 0", window(|w| w.stride = 0)),
        ("dilation 0", window(|w| w.base_dilation = 0)),
        ("huge padding", window(|w| (w.padding_low, w.padding_high) = (i64::MAX, i64::MAX))),
        ("huge dilation", window(|w| w.window_dilation = usize::MAX)),
        ("window of another size", window(|w| w.size = 2)),
        ("no window", ConvDims { window: Vec::new(), ..nhwc() }),
        ("no groups", ConvDims { feature_group_count: 0, ..nhwc() }),
        ("groups that do not divide", ConvDims { feature_group_count: 3, ..nhwc() }),
        ("an axis twice", ConvDims { input_feature: 0, ..nhwc() }),
        ("an axis too many", ConvDims { output_feature: 7, ..nhwc() }),
    ] {
        if let Ok(shape) = dims.output_shape(&[2, 9, 4], &[3, 4, 6]) {
            wrong.push(format!("{name}: {shape:?}"));
        }
    }
    let dims = |lc: &[usize], rc: &[usize], lb: &[usize], rb: &[usize]| DotDims {
        lhs_contracting: lc.to_vec(),
        rhs_contracting: rc.to_vec(),
        lhs_batch: lb.to_vec(),
        rhs_batch: rb.to_vec(),
        ..DotDims::default()
    };
    for (name, dims) in [
        ("no such axis", dims(&[2], &[0], &[], &[])),
        ("an axis twice", dims(&[1, 1], &[0, 0], &[], &[])),
        ("contracted and batch", dims(&[1], &[0], &[1], &[0])),
        ("unpaired", dims(&[1], &[], &[], &[])),
        ("sizes", dims(&[0], &[0], &[], &[])),
    ] {
        if let Ok(shape) = dims.output_shape(&[4, 5], &[5, 3]) {
            wrong.push(format!("{name}: {shape:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn generic_broadcast_splits_tiles() {
    let views = broadcast_views(&[6, 4, 1, 5], &[3, 1, 7, 5]).unwrap();
    assert_eq!(views.x, [3, 2, 4, 1, 5]);
    assert_eq!(views.y, [3, 1, 1, 7, 5]);
    assert_eq!(views.output, [6, 4, 7, 5]);
    assert!(broadcast_views(&[6], &[4]).is_err() && broadcast_views(&[6], &[6, 1]).is_err());
}

#[test]
fn granularities_are_read_off_the_axes() {
    use Granularity::{Channelwise, Shared, Tiled};
    let tile = Tile::Size(32);
    let dims = DotDims {
        lhs_contracting: vec![3, 1],
        rhs_contracting: vec![0, 2],
        lhs_batch: vec![0],
        rhs_batch: vec![1],
        ..DotDims::default()
    };
    assert_eq!(
        how_to_quantize_dot(&dims, 4, Side::Lhs, Some(tile)),
        [Channelwise, Tiled(tile), Channelwise, Shared]
    );
    assert_eq!(how_to_quantize_dot(&dims, 4, Side::Rhs, None), [Shared, Channelwise, Shared, Channelwise]);
    let einsum = |side, tile| how_to_quantize_einsum("...nh,nhd->...d", (4, 3), side, tile).unwrap();
    assert_eq!(einsum(Side::Lhs, Some(tile)), [Channelwise, Channelwise, Shared, Tiled(tile)]);
    assert_eq!(einsum(Side::Rhs, Some(tile)), [Shared, Tiled(tile), Channelwise]);
    assert_eq!(how_to_quantize_conv(&nhwc(), Side::Lhs), [Channelwise, Shared, Shared]);
    assert_eq!(how_to_quantize_conv(&nhwc(), Side::Rhs), [Shared, Shared, Channelwise]);
}

/// Multiplying stored values and multiplying what they stand for is the same up to rounding.
#[test]
fn both_ways_agree() {
    let numbers = |shape: &[usize], seed: f64| {
        let values: Vec<f64> =
            (0..shape.iter().product::<usize>()).map(|i| (i as f64 * seed).sin() + 0.2).collect();
        Array::from_f64(DType::F32, shape, &values).unwrap()
    };
    let (x, w) = (numbers(&[3, 2, 256], 0.7), numbers(&[256, 3, 5], 1.3));
    let dims = DotDims {
        lhs_contracting: vec![2],
        rhs_contracting: vec![0],
        lhs_batch: vec![0],
        rhs_batch: vec![1],
        ..DotDims::default()
    };
    let plain = |a: &QArray| dequantize(a).unwrap();
    let mut wrong = Vec::new();
    for (lq, lt, lm) in [("int8", None, "absmax"), ("int8", Some(128), "minmax"), ("int3", None, "absmax")] {
        for (rq, rt, rm) in
            [("int8", None, "absmax"), ("int4", Some(128), "absmax"), ("fp8", Some(256), "absmax")]
        {
            let quantize = |array: &Array, side, q: &str, tile: Option<usize>, method: &str| {
                let granularity = how_to_quantize_dot(&dims, 3, side, tile.map(Tile::Size));
                let how =
                    HowToQuantize::new(QType::by_name(q).unwrap(), granularity, method.parse().unwrap())
                        .unwrap();
                quantize(array, &how).unwrap()
            };
            let (l, r) = (quantize(&x, Side::Lhs, lq, lt, lm), quantize(&w, Side::Rhs, rq, rt, rm));
            let stored = dot_general((&l).into(), (&r).into(), &dims, None).unwrap().to_f64_vec();
            let plain =
                dot_general(Operand::Array(&plain(&l)), Operand::Array(&plain(&r)), &dims, None).unwrap();
            let largest = plain.to_f64_vec().iter().fold(0.0, |m: f64, v| m.max(v.abs()));
            let error =
                stored.iter().zip(plain.to_f64_vec()).fold(0.0, |m: f64, (a, b)| m.max((a - b).abs()));
            if error > 1e-6 * largest {
                wrong.push(format!("{lq} {lt:?} {lm} × {rq} {rt:?} {rm}: {:e}", error / largest));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
