//! Random numbers, initializers and whole models' first parameters, against JAX's and Flax's.

mod common;

use common::{goldens, tensors};
use qwix_eval::Value;
use qwix_nn::initializers::{self as i, Distribution, Fan, FanAxes, Initializer};
use qwix_nn::*;

/// Units in the last place of the dtype between two floats, the largest over an array.
fn ulps(found: &Array, wanted: &Array) -> u64 {
    let shift = match found.dtype() {
        DType::BF16 => 16,
        _ => 0,
    };
    let ordered = |x: f32| {
        let bits = i64::from(x.to_bits() >> shift);
        let sign = 1i64 << (31 - shift);
        if bits >= sign { sign - bits } else { bits }
    };
    let half = |x: f32| {
        let bits = i64::from(half::f16::from_f32(x).to_bits());
        if bits >= 0x8000 { 0x8000 - bits } else { bits }
    };
    let order = |x: f32| if found.dtype() == DType::F16 { half(x) } else { ordered(x) };
    let pairs = found.to_f32_vec().into_iter().zip(wanted.to_f32_vec());
    pairs.map(|(a, b)| order(a).abs_diff(order(b))).max().unwrap_or(0)
}

/// XLA's `log1p` is an approximation of its own, so that what passes through it may be these units in the last place away.
const NORMAL_ULPS: u64 = 4;

#[test]
fn keys_and_uniform_numbers_are_jax_bit_for_bit() {
    let wanted = tensors(&goldens().join("init/random.safetensors"));
    let words = |name: &str| wanted[name].values::<u32>().unwrap().to_vec();
    let key = Key::new(3_000_000_007);
    assert_eq!(key.words().to_vec(), words("key"));
    assert_eq!(key.fold_in(77).words().to_vec(), words("fold_in"));
    for (n, key) in key.split(3).into_iter().enumerate() {
        assert_eq!(key.words().to_vec(), words(&format!("split/{n}")));
    }
    let found = random::uniform(key, &ArrayType::new(DType::F32, [7]), -0.3, 0.9).unwrap();
    assert_eq!(found, wanted["uniform"], "{:?}", found.to_f32_vec());
}

fn initializer(name: &str) -> Initializer {
    match name {
        "zeros" => i::zeros(),
        "ones" => i::ones(),
        "constant" => i::constant(0.3),
        "uniform" => i::uniform(0.2),
        "normal" => i::normal(0.05),
        "truncated_normal" => i::truncated_normal(0.7, -1.5, 2.5),
        "lecun_normal" => i::lecun_normal(),
        "lecun_uniform" => i::lecun_uniform(),
        "he_normal" => i::he_normal(),
        "he_uniform" => i::he_uniform(),
        "xavier_normal" => i::xavier_normal(),
        "xavier_uniform" => i::xavier_uniform(),
        "embedding" => i::embedding(),
        "geometric" => i::variance_scaling(0.5, Fan::GeometricAverage, Distribution::TruncatedNormal),
        "fan_out" => {
            let axes = FanAxes { input: vec![0, 1], output: vec![2], batch: vec![] };
            i::variance_scaling_with(3.0, Fan::Out, Distribution::Normal, axes)
        }
        other => panic!("no initializer {other}"),
    }
}

#[test]
fn initializers_are_flax() {
    let folder = goldens().join("init");
    let cases: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.join("initializers.json")).unwrap()).unwrap();
    let wanted = tensors(&folder.join("initializers.safetensors"));
    let mut wrong = vec![];
    for (number, case) in cases["cases"].as_array().unwrap().iter().enumerate() {
        let name = case["initializer"].as_str().unwrap();
        let shape: Vec<usize> =
            case["shape"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap() as usize).collect();
        let dtype: DType = case["dtype"].as_str().unwrap().parse().unwrap();
        let key = Key::new(case["seed"].as_u64().unwrap() as u32);
        let found = initializer(name).call(key, &ArrayType::new(dtype, shape.clone())).unwrap();
        let wanted = &wanted[&number.to_string()];
        // Only what is drawn from a normal distribution passes through a logarithm.
        let exact = name.contains("uniform") || matches!(name, "zeros" | "ones" | "constant");
        let budget = if exact { 0 } else { NORMAL_ULPS };
        let off = ulps(&found, wanted);
        if found.shape() != wanted.shape() || found.dtype() != wanted.dtype() || off > budget {
            wrong.push(format!("{name} {dtype}{shape:?}: {off} ulps off, {found:?} for {wanted:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

struct Block;

impl Module for Block {
    fn call(&self, scope: &Scope, x: Tensor) -> Result<Tensor> {
        let shared = scope.child_as("shared", Dense::new(6))?;
        let x: Tensor = shared.call(scope.call(LayerNorm::new(), x)?)?;
        let x: Tensor = shared.call(relu(&x))?;
        let w = scope.param("w", &[6, 6], DType::F32, &i::xavier_uniform())?;
        let x = x.dot(&w) + scope.param("b", &[6], DType::F32, &i::normal(0.5))?;
        scope.call(Dense::new(6), x)
    }
}

struct Zoo;

impl Module<(Tensor, Tensor), (Tensor, Tensor)> for Zoo {
    fn call(&self, scope: &Scope, (tokens, image): (Tensor, Tensor)) -> Result<(Tensor, Tensor)> {
        let embed = scope.child(Embed::new(11, 6))?;
        let x: Tensor = embed.call(tokens)?;
        let x = scope.call(Block, x)?;
        let x = scope.call_as("named", Block, x)?;
        let layers =
            Sequential::new().layer(Dense::new(6)).function(relu).layer(Dense::new(6).use_bias(false));
        let x = scope.call(layers, x)?;
        let attention = MultiHeadDotProductAttention::new(2).qkv_features(8).normalize_qk(true);
        let x = scope.call(attention, x)?;
        let x = scope.call(DenseGeneral::new([2, 3]).batch_dims([0]).bias_init(i::normal(0.1)), x)?;
        let x = scope.call_as("joined", DenseGeneral::new([6]).axis([-2, -1]), x)?;
        let x = scope.call(Einsum::new([6, 2, 4], "bsd,dhk->bshk"), x)?;
        let x = scope.call(RMSNorm::new(), x)?;
        let y = scope.call(Conv::new(4, [3, 3]).feature_group_count(2), image)?;
        let y = scope.call(BatchNorm::new(), y)?;
        let conv = Conv::new(3, [2]).param_dtype(DType::BF16).padding(ConvPadding::Valid);
        let y = scope.call(conv, y.reshape(&[2, 16, 4]))?;
        let x = scope.call(Dense::new(6), x.reshape(&[2, 3, 8]))?;
        Ok((embed.attend(&x)?, y))
    }
}

/// Each parameter gets the key that Flax folds for its path; so its path is Flax's too.
#[test]
fn a_model_starts_as_in_flax() {
    let wanted = tensors(&goldens().join("init/zoo.safetensors"));
    let inputs = [ArrayType::new(DType::S32, [2, 3]), ArrayType::new(DType::F32, [2, 4, 4, 2])];
    let found = init(&Zoo, Key::new(5), &inputs).unwrap();
    let mut wrong = vec![];
    let mut paths: Vec<String> = vec![];
    for (key, wanted) in &wanted {
        let path = key.split_once('/').map_or("", |(_, path)| path);
        paths.push(path.to_owned());
        match found.get(&qwix_graph::Path::new(path)) {
            Some(Value::Array(a)) if a.dtype() == wanted.dtype() && a.shape() == wanted.shape() => {
                let off = ulps(a, wanted);
                if off > NORMAL_ULPS {
                    wrong.push(format!("{path}: {off} ulps off"));
                }
            }
            other => wrong.push(format!("{path}: {:?} for {wanted:?}", other.map(Value::describe))),
        }
    }
    let extra = found.keys().filter(|p| !paths.iter().any(|path| path == p.as_str()));
    wrong.extend(extra.map(|p| format!("{p} is not Flax's")));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
