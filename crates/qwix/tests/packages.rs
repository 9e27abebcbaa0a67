//! Packages: every golden model under every set of rules comes back from the disk as it went.

use std::fs;
use std::path::{Path as FilePath, PathBuf};

use qwix::{
    Checkpoint, CpuBackend, Error, Model, Package, PackageWriter, Params, Path, PtqProvider, QuantStats,
    QuantizationRule, TensorFile, Value, Verifying, quantize_model, quantize_params, read_rules,
    verify_package, widened,
};

fn goldens() -> PathBuf {
    FilePath::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens")
}

/// What one case shows, or why not.
fn round_trip(case: &FilePath, target: &FilePath) -> Result<(), String> {
    let say = |e: Error| e.to_string();
    let description = fs::read_to_string(case.join("case.json")).map_err(|e| e.to_string())?;
    let description: serde_json::Value = serde_json::from_str(&description).map_err(|e| e.to_string())?;
    let name = description["model"].as_str().ok_or("the case names no model")?;
    let folder = goldens().join("models").join(name);
    let mut model = Model::load(folder.join("model.hlo.pb")).map_err(say)?;
    let checkpoint = Checkpoint::open(folder.join("params.safetensors")).map_err(say)?;
    model.resolve_roles(&checkpoint);
    let fp_params = model.read_params(&checkpoint, false).map_err(say)?;
    let rules = read_rules(case.join("rules.json")).map_err(say)?;
    let rules_text = serde_json::to_string(&rules).map_err(|e| e.to_string())?;
    if QuantizationRule::from_json(&rules_text) != Ok(rules.clone()) {
        return Err("the rules change when they are written".into());
    }
    let provider = PtqProvider::new(rules).map_err(|e| e.to_string())?;
    let ptq_model = match quantize_model(&model, &provider) {
        Ok(ptq_model) => ptq_model,
        // Qwix refuses as well: there is nothing to keep.
        Err(_) if description.get("qwix_refuses").is_some() => return Ok(()),
        Err(e) => return Err(e.to_string()),
    };
    let stats = statistics(&case.join("expected.safetensors")).map_err(say)?;
    let params = match quantize_params(&fp_params, &ptq_model.abstract_params(), stats.as_ref()) {
        Ok(params) => params,
        // Statistics of other shapes, which Qwix does not take either.
        Err(_) if description.get("ptq_refuses").is_some() => return Ok(()),
        Err(e) => return Err(e.to_string()),
    };

    let quantized = Model::from(ptq_model.graph);
    let mut writer = PackageWriter::begin(target, &quantized, false).map_err(say)?;
    for (path, value) in &params {
        writer.write(path, value).map_err(say)?;
    }
    writer.finish(&rules_text, true).map_err(say)?;
    let package = Package::open(target).map_err(say)?;
    package.verify().map_err(say)?;
    if package.parameters() != quantized.parameters {
        return Err("the signature differs".into());
    }
    if **package.model().unwrap() != *quantized {
        return Err("the graph differs".into());
    }
    if package.read_all().map_err(say)? != params {
        return Err("the parameters differ".into());
    }
    if !package.qwix_compat() || package.rules() != rules_text {
        return Err("what was said of the rules differs".into());
    }
    Ok(())
}

/// The statistics of a case with static ranges.
fn statistics(expected: &FilePath) -> Result<Option<QuantStats>, Error> {
    if !expected.exists() {
        return Ok(None);
    }
    let file = TensorFile::open(expected)?;
    let mut params = Params::new();
    for (key, _) in file.iter() {
        if let Some(path) = key.strip_prefix("stats/") {
            params.insert(Path::new(path), file.read(key)?.into());
        }
    }
    Ok((!params.is_empty()).then(|| QuantStats::from_params(&params).unwrap()))
}

#[test]
fn every_golden_case_comes_back_as_it_went() {
    let folder = tempfile::tempdir().unwrap();
    let mut cases: Vec<PathBuf> =
        fs::read_dir(goldens().join("cases")).unwrap().map(|e| e.unwrap().path()).collect();
    for model in fs::read_dir(goldens().join("static")).unwrap() {
        let folders = fs::read_dir(model.unwrap().path()).unwrap().map(|e| e.unwrap().path());
        cases.extend(folders.filter(|path| path.is_dir()));
    }
    cases.sort();
    assert!(cases.len() > 25, "only {} cases", cases.len());
    let mut wrong = Vec::new();
    for case in &cases {
        let name = case.strip_prefix(goldens()).unwrap();
        let target = folder.path().join(name.to_string_lossy().replace(['/', '\\'], "__"));
        if let Err(reason) = round_trip(case, &target) {
            wrong.push(format!("{}: {reason}", name.display()));
        }
    }
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    let left = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name());
    let hidden: Vec<_> = left.filter(|name| name.as_encoded_bytes().starts_with(b".")).collect();
    assert!(hidden.is_empty(), "temporary directories were left: {hidden:?}");
}

#[test]
fn a_package_given_up_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let model = Model::load(goldens().join("models/linen_mlp/model.hlo.pb")).unwrap();
    let rules = vec![QuantizationRule::new(".*").weight_qtype("int8")];
    let quantized = Model::from(quantize_model(&model, &PtqProvider::new(rules).unwrap()).unwrap().graph);
    let target = folder.path().join("given_up");
    drop(PackageWriter::begin(&target, &quantized, false).unwrap());
    let incomplete = PackageWriter::begin(&target, &quantized, false).unwrap().finish("[]", false);
    assert!(incomplete.unwrap_err().to_string().contains("is missing"));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// A model computes the same on parameters that borrow the mapped file as on parameters in memory.
#[test]
fn mapped_parameters_compute_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let digits = FilePath::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/digits");
    let model = Model::load(digits.join("model.hlo.pb")).unwrap();
    let checkpoint = Checkpoint::open(digits.join("params.safetensors")).unwrap();
    let inputs = model.read_inputs(&TensorFile::open(digits.join("images.safetensors")).unwrap()).unwrap();
    let outputs = |model: &Model, params: Params| {
        model.compile(&CpuBackend::default(), params).unwrap().run(&inputs).unwrap()
    };
    let (read, mapped) = (checkpoint.read_all().unwrap(), model.read_params(&checkpoint, false).unwrap());
    assert_eq!(outputs(&model, read.clone()), outputs(&model, mapped));

    let rules = vec![
        QuantizationRule::new("Dense_.*").weight_qtype("int4").tile_size(32),
        QuantizationRule::new(".*").weight_qtype("int8").act_qtype("int8"),
    ];
    let ptq_model = quantize_model(&model, &PtqProvider::new(rules).unwrap()).unwrap();
    let params = quantize_params(&read, &ptq_model.abstract_params(), None).unwrap();
    let quantized = Model::from(ptq_model.graph);
    let target = folder.path().join("package");
    let mut writer = PackageWriter::begin(&target, &quantized, false).unwrap();
    for (path, value) in &params {
        writer.write(path, value).unwrap();
    }
    writer.finish("[]", false).unwrap();
    let package = Package::open(&target).unwrap();
    assert_eq!(outputs(package.model().unwrap(), package.read_all().unwrap()), outputs(&quantized, params));
}

/// What `qwix 0.1.0` wrote before there were shards opens as it did: `expected.safetensors` is what its `qwix dump` said.
#[test]
fn a_package_of_version_1_still_opens() {
    let fixtures = FilePath::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/package-v1");
    let package = Package::open(fixtures.join("package")).unwrap();
    package.verify().unwrap();
    assert_eq!(verify_package(fixtures.join("package"), &Verifying::default()).unwrap(), []);
    assert_eq!(package.model().unwrap().parameters, package.parameters());
    let expected = TensorFile::open(fixtures.join("expected.safetensors")).unwrap();
    let mut compared = 0;
    for (path, value) in package.read_all().unwrap() {
        let parts = match value {
            Value::Array(array) => vec![(path.to_string(), array)],
            Value::QArray(q) => {
                [("qvalue", Some(q.qvalue())), ("scale", Some(q.scale())), ("zero_point", q.zero_point())]
                    .into_iter()
                    .filter_map(|(part, array)| Some((format!("{path}/{part}"), array?.clone())))
                    .collect()
            }
            Value::Tuple(_) => vec![],
        };
        for (key, array) in parts {
            assert_eq!(expected.read(&key).unwrap(), widened(&array), "{key}");
            compared += 1;
        }
    }
    assert_eq!(compared, expected.iter().count());
    // Its parameters are covered by the hash of their file.
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixtures.join("package")).unwrap() {
        let file = entry.unwrap().path();
        fs::copy(&file, folder.path().join(file.file_name().unwrap())).unwrap();
    }
    let file = folder.path().join("params.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&file, bytes).unwrap();
    let faults = verify_package(folder.path(), &Verifying::default()).unwrap();
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert!(Package::open(folder.path()).unwrap().verify().is_err());
}
