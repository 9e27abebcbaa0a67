//! The digits' model written in Rust, with the checkpoint trained in Flax: all that can be done with the exported one
//! can be done with it, with the same numbers.

use std::path::PathBuf;

use qwix::nn::{Conv, Dense, Module, Pool, Result, Scope, Tensor, max_pool, relu, trace};
use qwix::{
    Array, ArrayType, Checkpoint, CpuBackend, Model, Package, PackageWriter, Params, PtqModel, PtqProvider,
    QuantizationRule, TensorFile, quantize_model, quantize_params,
};

struct DigitsNet;

impl Module for DigitsNet {
    fn call(&self, scope: &Scope, images: Tensor) -> Result<Tensor> {
        let x = relu(&scope.call(Conv::new(16, [3, 3]), images)?);
        let x = relu(&scope.call(Conv::new(32, [3, 3]), x)?);
        let x = max_pool(&x, &Pool::new([2, 2]).strides([2, 2]))?;
        let x = relu(&scope.call(Dense::new(128), x.flatten(1, -1))?);
        scope.call(Dense::new(10), x)
    }
}

fn digits() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../examples/digits")
}

fn quantized(model: &Model, fp_params: &Params, rules: &[QuantizationRule]) -> (PtqModel, Params) {
    let ptq_model = quantize_model(model, &PtqProvider::new(rules.to_vec()).unwrap()).unwrap();
    let params = quantize_params(fp_params, &ptq_model.abstract_params(), None).unwrap();
    (ptq_model, params)
}

#[test]
fn a_model_in_rust_is_the_exported_one() {
    let checkpoint = Checkpoint::open(digits().join("params.safetensors")).unwrap();
    let images = TensorFile::open(digits().join("images.safetensors")).unwrap().read("images").unwrap();
    let exported = Model::load(digits().join("model.hlo.pb")).unwrap();
    let traced = trace(&DigitsNet, &[ArrayType::new(images.dtype(), images.shape())]).unwrap();
    let traced = Model::from(traced);

    // The checkpoint fits, nothing missing and nothing too much.
    let fp_params = traced.read_params(&checkpoint, false).unwrap();
    assert_eq!(fp_params, exported.read_params(&checkpoint, false).unwrap());
    let run = |model: &Model, params: &Params| -> Array {
        let executable = model.compile(&CpuBackend::default(), params.clone()).unwrap();
        executable.run(std::slice::from_ref(&images)).unwrap().remove(0)
    };
    assert_eq!(run(&traced, &fp_params), run(&exported, &fp_params));

    let int8 = |path: &str| QuantizationRule::new(path).weight_qtype("int8").act_qtype("int8");
    for rules in [
        vec![int8(".*")],
        vec![QuantizationRule::new("Dense_.*").weight_qtype("int4").tile_size(32), int8("Conv_.*")],
    ] {
        let (ours, params) = quantized(&traced, &fp_params, &rules);
        let (theirs, wanted) = quantized(&exported, &fp_params, &rules);
        assert!(params == wanted, "quantized parameters differ under {rules:?}");
        let verdicts = |model: &PtqModel| -> Vec<String> {
            model.verdicts.iter().map(|v| format!("{} {} {:?}", v.module_path, v.op_id, v.outcome)).collect()
        };
        assert_eq!(verdicts(&ours), verdicts(&theirs));
        let (ours, theirs) = (Model::from(ours.graph), Model::from(theirs.graph));
        assert_eq!(run(&ours, &params), run(&theirs, &params));

        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("digits");
        let mut writer = PackageWriter::begin(&target, &ours, false).unwrap();
        for (path, value) in &params {
            writer.write(path, value).unwrap();
        }
        writer.finish("[]", false).unwrap();
        let package = Package::open(&target).unwrap();
        assert_eq!(run(package.model().unwrap(), &package.read_all().unwrap()), run(&ours, &params));
    }
}
