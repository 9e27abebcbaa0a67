//! However a parameter is cut, the package is the one that quantizing it whole gives.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path as FilePath, PathBuf};

use qwix_array::{Array, DType};
use qwix_eval::{Params, Value};
use qwix_graph::{ArrayType, Parameter, Path, Prep, QArrayType, Role, SliceDim, Slot, Type, WeightSlot};
use qwix_ptq::{WeightLayout, WeightRule, quantize_params, weights_only};
use qwix_quant::{HowToQuantize, QType};

use super::*;
use crate::{Error, Package, PtqProvider, QuantizationRule, quantize_model, verify_package, write_tensors};

/// Repeatable numbers of all magnitudes.
fn numbers(dtype: DType, shape: &[usize], seed: u64) -> Array {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    let values: Vec<f64> =
        (0..shape.iter().product()).map(|_| (next() - 0.5) * 6.0 * (next() * 4.0).exp()).collect();
    Array::from_f64(dtype, shape, &values).unwrap()
}

fn write(file: &FilePath, arrays: &BTreeMap<String, Array>) -> Checkpoint {
    let mut bytes = vec![];
    write_tensors(&mut bytes, arrays).unwrap();
    fs::write(file, bytes).unwrap();
    Checkpoint::open(file).unwrap()
}

/// Every file of a package.
fn files(dir: &FilePath) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries
        .map(|file| (file.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&file).unwrap()))
        .collect()
}

/// Packages in pieces of several sizes, on one thread and several; the first is whole. What differs.
fn differences(job: &QuantizeJob<'_>, folder: &FilePath, expected: &Params) -> Vec<String> {
    let mut wrong = vec![];
    let mut first: Option<BTreeMap<String, Vec<u8>>> = None;
    for (piece, threads) in [(1 << 40, 1), (1 << 12, 3), (700, 2), (96, 4), (8, 1)] {
        let target = folder.join(format!("package-{piece}-{threads}"));
        let job = QuantizeJob { threads, ..*job };
        if let Err(error) = job.run_in_pieces(&target, false, piece) {
            wrong.push(format!("pieces of {piece}: {error}"));
            continue;
        }
        let found = files(&target);
        match &first {
            None => {
                let package = Package::open(&target).unwrap();
                if package.read_all().unwrap() != *expected {
                    wrong.push("the values are not those of quantize_params".to_owned());
                }
                assert_eq!(verify_package(&target, &Default::default()).unwrap(), []);
                first = Some(found);
            }
            Some(first) if *first != found => {
                let names = first.keys().filter(|name| first.get(*name) != found.get(*name));
                wrong.push(format!("pieces of {piece}: {:?} differ", names.collect::<Vec<_>>()));
            }
            Some(_) => {}
        }
        fs::remove_dir_all(&target).unwrap();
    }
    wrong
}

#[test]
fn pieces_give_the_bytes_of_the_whole() {
    let shapes: [&[usize]; 9] = [
        &[64, 48],
        &[96, 7],
        &[32, 1],
        &[1, 64],
        &[3, 64, 10],
        &[5, 2, 32, 3],
        &[64, 33],
        &[0, 32],
        &[128, 128],
    ];
    let ways = [
        ("int8", None, "absmax", None),
        ("int8", None, "absmax,0.9", Some(vec![-1])),
        ("int8", Some(32), "minmax", None),
        ("int4", Some(32), "absmax", None),
        ("int4", Some(16), "minmax", Some(vec![0])),
        ("int4", None, "fixed,-2,3.5", None),
        ("int2", None, "fixed,3", None),
        ("nf4", None, "rms,3", None),
        ("nf4", None, "absmax", Some(vec![0, 1])),
        ("int16", None, "absmax", Some(vec![-1])),
        ("int8", None, "rms,2", Some(vec![-1])),
        ("float8_e4m3fn", None, "absmax", None),
        ("mxfp8", Some(32), "absmax", None),
        ("nvfp4", Some(16), "absmax", Some(vec![-1])),
    ];
    let folder = tempfile::tempdir().unwrap();
    let (mut wrong, mut compared) = (vec![], 0);
    for (number, (qtype, tile, method, axes)) in ways.iter().enumerate() {
        for dtype in [DType::BF16, DType::F32, DType::F16] {
            let mut arrays = BTreeMap::new();
            for (i, shape) in shapes.iter().enumerate() {
                arrays.insert(format!("m{i}/kernel"), numbers(dtype, shape, (number * 10 + i) as u64));
            }
            arrays.insert("norm/scale".to_owned(), numbers(dtype, &[37], 3));
            arrays.insert("ids".to_owned(), Array::from_vec(&[3, 5], (0..15i32).collect()).unwrap());
            let checkpoint = write(&folder.path().join("params.safetensors"), &arrays);
            // Those that the tiles do not divide stay in float.
            let divides = |shape: &[usize]| {
                let rank = shape.len() as i64;
                let axes = axes.clone().unwrap_or(vec![-2]);
                let axis = axes.iter().map(|axis| if *axis < 0 { axis + rank } else { *axis }).max().unwrap();
                tile.is_none_or(|tile: i64| shape[axis as usize] as i64 % tile == 0)
            };
            let names: Vec<String> =
                shapes.iter().enumerate().filter(|s| divides(s.1)).map(|(i, _)| format!("m{i}")).collect();
            let mut rule = WeightRule::new(&format!("({})/kernel", names.join("|"))).weight_qtype(qtype);
            rule = rule.weight_calibration_method(method);
            (rule.tile_size, rule.contracting_axes) = (tile.map(Into::into), axes.clone());
            let (template, _) = weights_only(checkpoint.types(), &[rule], WeightLayout::Flax).unwrap();
            let expected = quantize_params(&checkpoint.read_all().unwrap(), &template, None).unwrap();
            let job = QuantizeJob { shard_size: 9000, ..QuantizeJob::new(&checkpoint, &template, "[]") };
            compared += names.len();
            for what in differences(&job, folder.path(), &expected) {
                wrong.push(format!("{qtype} {tile:?} {method} {axes:?} {dtype}: {what}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(compared > 200, "{compared}");
}

/// Weights that are reshaped, turned and sliced on their way.
#[test]
fn pieces_of_prepared_weights_give_the_bytes_of_the_whole() {
    let full = |size| SliceDim { start: 0, limit: size, stride: 1 };
    let part = |start, limit| SliceDim { start, limit, stride: 1 };
    let cases: Vec<(Vec<usize>, Vec<Prep>, Vec<usize>)> = vec![
        (vec![32, 20], vec![Prep::Transpose(vec![1, 0])], vec![20, 32]),
        (vec![32, 4, 6], vec![Prep::Reshape(vec![32, 24])], vec![32, 24]),
        (vec![32, 4, 6], vec![Prep::Reshape(vec![128, 6]), Prep::Transpose(vec![1, 0])], vec![6, 128]),
        (
            vec![3, 32, 8],
            vec![Prep::Slice(vec![part(1, 2), full(32), full(8)]), Prep::Reshape(vec![32, 8])],
            vec![32, 8],
        ),
        (vec![32, 24], vec![Prep::Slice(vec![full(32), part(8, 16)])], vec![32, 8]),
        (vec![34, 6], vec![Prep::Slice(vec![part(1, 33), full(6)])], vec![32, 6]),
        (vec![24, 32], vec![Prep::Reshape(vec![4, 6, 32]), Prep::Transpose(vec![2, 0, 1])], vec![32, 4, 6]),
    ];
    let folder = tempfile::tempdir().unwrap();
    let mut wrong = vec![];
    for (qtype, tile, method) in [
        ("int8", 32, "absmax"),
        ("int4", 2, "absmax"),
        ("nf4", 4, "absmax"),
        ("int4", 32, "minmax"),
        ("int8", 2, "rms,3"),
    ] {
        use qwix_quant::{Granularity, Tile};
        let (mut arrays, mut parameters) = (BTreeMap::new(), vec![]);
        for (i, (from, prep, to)) in cases.iter().enumerate() {
            for turned in [false, true] {
                // Tiles along the first axis, or along the last.
                let tiled = if turned { to.len() - 1 } else { 0 };
                let axis = |axis: usize| match axis == tiled && to[axis].is_multiple_of(tile) {
                    true if to[axis] == tile => Granularity::Shared,
                    true => Granularity::Tiled(Tile::Size(tile)),
                    false if axis == tiled => Granularity::Shared,
                    false => Granularity::Channelwise,
                };
                let granularity = (0..to.len()).map(axis).collect();
                let qtype = QType::by_name(qtype).unwrap();
                let Ok(how) = HowToQuantize::new(qtype, granularity, method.parse().unwrap()) else {
                    continue;
                };
                let source = Path::new(&format!("w{i}"));
                let source_type = ArrayType::new(DType::BF16, from.clone());
                arrays.insert(source.to_string(), numbers(DType::BF16, from, i as u64));
                let array = ArrayType::new(DType::BF16, to.clone());
                parameters.push(Parameter {
                    path: Path::new(&format!("w{i}/{}", if turned { "b" } else { "a" })),
                    key_path: None,
                    role: Role::Variable,
                    ambiguous: false,
                    ty: Type::QArray(QArrayType { array, how: how.clone() }),
                    slot: Some(Slot::Weight(WeightSlot { source, source_type, prep: prep.clone(), how })),
                });
            }
        }
        if parameters.is_empty() {
            continue;
        }
        let checkpoint = write(&folder.path().join("params.safetensors"), &arrays);
        let template = Template::of_parameters(&parameters);
        let expected = quantize_params(&checkpoint.read_all().unwrap(), &template, None).unwrap();
        let job = QuantizeJob::new(&checkpoint, &template, "[]");
        for what in differences(&job, folder.path(), &expected) {
            wrong.push(format!("{qtype} {tile} {method}: {what}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn golden(name: &str) -> PathBuf {
    FilePath::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens/models/linen_mlp").join(name)
}

/// A job that fails at a parameter leaves the others done, and the next one does the rest.
#[test]
fn the_same_command_goes_on_where_another_ended() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("params.safetensors");
    let mut arrays: BTreeMap<String, Array> =
        (0..6).map(|i| (format!("m{i}/kernel"), numbers(DType::F32, &[32, 8], i))).collect();
    let rules = [WeightRule::new(".*").weight_qtype("int8")];
    let good = arrays.clone();
    let mut values = arrays["m4/kernel"].to_f64_vec();
    values[9] = f64::NAN;
    arrays.insert("m4/kernel".to_owned(), Array::from_f64(DType::F32, &[32, 8], &values).unwrap());
    let target = folder.path().join("package");
    let run = |force: bool, shard_size: u64, threads: usize| {
        let checkpoint = Checkpoint::open(&file).unwrap();
        let (template, _) = weights_only(checkpoint.types(), &rules, WeightLayout::Flax).unwrap();
        let job = QuantizeJob { shard_size, threads, ..QuantizeJob::new(&checkpoint, &template, "[]") };
        // What a checkpoint that cannot be quantized leaves is removed by `run` alone: here it is as if killed.
        job.run_in_pieces(&target, force, PIECE)
    };
    write(&file, &arrays);
    let said = run(false, 1 << 20, 1).unwrap_err().to_string();
    assert!(said.contains("`m4/kernel`") && said.contains("NaN at index [1, 1]"), "{said}");
    assert!(!target.exists() && QuantizeJob::folder(&target).exists());

    // Another plan is never mixed in; a checkpoint that was written to since is one.
    let said = run(false, 1 << 19, 1).unwrap_err().to_string();
    assert!(said.contains("shard_size") && said.contains("--force"), "{said}");
    let again = run(false, 1 << 20, 2).unwrap_err().to_string();
    assert!(again.contains("`m4/kernel`"), "{again}");
    std::thread::sleep(std::time::Duration::from_millis(20));
    write(&file, &good);
    let said = run(false, 1 << 20, 1).unwrap_err().to_string();
    assert!(said.contains("checkpoint differ"), "{said}");

    let done = run(true, 1 << 20, 1).unwrap();
    assert_eq!((done.worked_on, done.resumed), (6, 0));
    let expected = files(&target);
    assert!(!QuantizeJob::folder(&target).exists());
    let said = run(false, 1 << 20, 1).unwrap_err().to_string();
    assert!(said.contains("exists"), "{said}");
    let done = run(true, 1 << 20, 1).unwrap();
    assert_eq!((done.worked_on, done.resumed), (6, 0));
    assert_eq!(files(&target), expected);
    Package::open(&target).unwrap().verify().unwrap();

    // Another process at work.
    fs::remove_dir_all(&target).unwrap();
    let held = QuantizeJob::folder(&target);
    fs::create_dir_all(&held).unwrap();
    let lock = fs::File::create(held.join("lock")).unwrap();
    lock.lock().unwrap();
    let said = run(false, 1 << 20, 1).unwrap_err().to_string();
    assert!(said.contains("another process"), "{said}");
    drop(lock);
    run(false, 1 << 20, 1).unwrap();
    assert_eq!(files(&target), expected);
}

#[test]
fn too_little_memory_is_refused_with_the_least_that_works() {
    let folder = tempfile::tempdir().unwrap();
    let array = numbers(DType::F32, &[1, 1 << 20], 1);
    let checkpoint =
        write(&folder.path().join("p.safetensors"), &BTreeMap::from([("w/kernel".to_owned(), array)]));
    // The order of a mean's sum allows no pieces here.
    let rule =
        WeightRule::new(".*").weight_qtype("int8").contracting_axes([1]).weight_calibration_method("rms,3");
    let (template, _) = weights_only(checkpoint.types(), &[rule], WeightLayout::Flax).unwrap();
    let job = QuantizeJob { max_memory: 1 << 20, ..QuantizeJob::new(&checkpoint, &template, "[]") };
    let error = job.run(folder.path().join("package"), false).unwrap_err();
    let Error::Memory { least, path, .. } = &error else { panic!("{error}") };
    assert_eq!(path, &Path::new("w/kernel"));
    assert!(error.to_string().contains(&format!("--max-memory {}MiB", least.div_ceil(1 << 20))), "{error}");
    // Other tests of this process take memory as well; a margin for them.
    let job = QuantizeJob { max_memory: least + (1 << 30), ..job };
    job.run(folder.path().join("package"), false).unwrap();
}

/// The package of a model, made in pieces, runs as the one made of values does.
#[test]
fn a_model_and_its_values_give_the_same_package() {
    let folder = tempfile::tempdir().unwrap();
    let model = Model::load(golden("model.hlo.pb")).unwrap();
    let checkpoint = Checkpoint::open(golden("params.safetensors")).unwrap();
    let rules = vec![QuantizationRule::new(".*").weight_qtype("int8")];
    let ptq_model = quantize_model(&model, &PtqProvider::new(rules).unwrap()).unwrap();
    let template = ptq_model.abstract_params();
    let quantized = Model::from(ptq_model.graph);
    let job = QuantizeJob { model: Some(&quantized), ..QuantizeJob::new(&checkpoint, &template, "[]") };
    job.run(folder.path().join("job"), false).unwrap();
    let mut writer = crate::PackageWriter::begin(folder.path().join("values"), &quantized, false).unwrap();
    let params = quantize_params(&checkpoint.read_all().unwrap(), &template, None).unwrap();
    params.iter().for_each(|(path, value): (&Path, &Value)| writer.write(path, value).unwrap());
    writer.finish("[]", false).unwrap();
    let (mut job, mut values) = (files(&folder.path().join("job")), files(&folder.path().join("values")));
    // The writer was not told of the checkpoint.
    for name in ["manifest.json", "manifest.json.sha256"] {
        assert_ne!(job.remove(name), values.remove(name));
    }
    assert_eq!(job, values);
}
