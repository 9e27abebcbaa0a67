//! Damaged files, thousands of them: refused, or read as something else; never a panic.

use std::fs;
use std::path::{Path as FilePath, PathBuf};

use qwix::{
    ActOrder, Checkpoint, ImportOptions, Model, Package, PackageWriter, Prequantized, PtqProvider,
    QuantizationRule, TensorFile, Verifying, explain, quantize_model, quantize_params, verify_package,
};

fn digits(name: &str) -> PathBuf {
    FilePath::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/digits").join(name)
}

/// Numbers that look random and are the same each time.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound.max(1) as u64) as usize
    }

    /// Bits flipped, bytes replaced, a piece cut out, doubled or moved, or the end missing.
    fn damage(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for _ in 0..=self.below(3) {
            let at = self.below(bytes.len());
            let end = (at + self.below(16)).min(bytes.len());
            match self.below(6) {
                0 | 1 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
                2 if at < bytes.len() => bytes[at] = self.below(256) as u8,
                3 => drop(bytes.drain(at..end)),
                4 => {
                    let piece = bytes[at..end].to_vec();
                    let to = self.below(bytes.len());
                    bytes.splice(to..to, piece);
                }
                _ => bytes.truncate(at),
            }
        }
        bytes
    }
}

#[test]
fn damaged_models_are_loaded_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("damaged.hlo.pb");
    let good = fs::read(digits("model.hlo.pb")).unwrap();
    let rules = vec![QuantizationRule::new(".*").weight_qtype("int8").act_qtype("int8")];
    let provider = PtqProvider::new(rules).unwrap();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut loaded = 0;
    for _ in 0..2000 {
        fs::write(&file, random.damage(&good)).unwrap();
        if let Ok(model) = Model::load(&file) {
            loaded += 1;
            let _ = explain(&model, &provider);
            let _ = quantize_model(&model, &provider);
        }
    }
    assert!(loaded > 20, "only {loaded} were loaded; the damage is too great to test what comes after");
}

#[test]
fn damaged_checkpoints_are_read_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("damaged.safetensors");
    let good = fs::read(digits("labels.safetensors")).unwrap();
    let header = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    for round in 0..3000 {
        // The header alone in two rounds of three: the rest is numbers.
        let bytes = if round % 3 == 0 {
            random.damage(&good)
        } else {
            [random.damage(&good[..header]), good[header..].to_vec()].concat()
        };
        fs::write(&file, bytes).unwrap();
        if let Ok(opened) = TensorFile::open(&file) {
            let keys: Vec<String> = opened.iter().map(|(key, _)| key.to_owned()).collect();
            keys.iter().for_each(|key| drop(opened.read(key)));
        }
        let _ = Checkpoint::open(&file).map(|checkpoint| checkpoint.read_all());
    }
}

#[test]
fn damaged_packages_are_opened_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("package");
    let model = Model::load(digits("model.hlo.pb")).unwrap();
    let fp_params = Checkpoint::open(digits("params.safetensors")).unwrap().read_all().unwrap();
    let rules = vec![QuantizationRule::new("Dense_.*").weight_qtype("int4").tile_size(0.25)];
    let ptq_model = quantize_model(&model, &PtqProvider::new(rules).unwrap()).unwrap();
    let params = quantize_params(&fp_params, &ptq_model.abstract_params(), None).unwrap();
    let mut writer = PackageWriter::begin(&target, &Model::from(ptq_model.graph), false).unwrap();
    for (path, value) in &params {
        writer.write(path, value).unwrap();
    }
    writer.finish("[]", false).unwrap();
    let mut random = Random(0xda94_2042_e4dd_58b5);
    let files: Vec<PathBuf> = fs::read_dir(&target).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 6);
    let mut missed = vec![];
    for file in &files {
        let good = fs::read(file).unwrap();
        for round in 0..300 {
            let mut bad = good.clone();
            if round % 3 == 0 {
                bad = random.damage(&good);
            } else {
                bad[random.below(good.len())] ^= 1 << random.below(8);
            }
            fs::write(file, &bad).unwrap();
            let _ = Package::open(&target).map(|package| (package.verify(), package.read_all()));
            if bad != good && verify_package(&target, &Verifying::default()).unwrap().is_empty() {
                missed.push(format!("{} in round {round}", file.display()));
            }
        }
        fs::remove_file(file).unwrap();
        let _ = Package::open(&target);
        if verify_package(&target, &Verifying::default()).unwrap().is_empty() {
            missed.push(format!("{} is gone", file.display()));
        }
        fs::write(file, good).unwrap();
    }
    for foreign in ["notes.txt", ".hidden", "params-00002-of-00002.safetensors"] {
        fs::write(target.join(foreign), "x").unwrap();
        let faults = verify_package(&target, &Verifying::default()).unwrap();
        if !faults.iter().any(|fault| fault.file == foreign) {
            missed.push(format!("{foreign}: {faults:?}"));
        }
        fs::remove_file(target.join(foreign)).unwrap();
    }
    assert!(missed.is_empty(), "{missed:#?}");
    assert_eq!(Package::open(&target).unwrap().read_all().unwrap(), params);
}

/// Every format: its config and its tensors, bytes and header.
#[test]
fn damaged_prequantized_checkpoints_are_read_or_refused() {
    let goldens = FilePath::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens/prequantized");
    let mut random = Random(0x6a09_e667_f3bc_c908);
    let (mut read, mut refused) = (0, 0);
    let mut cases: Vec<PathBuf> =
        fs::read_dir(&goldens).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.retain(|case| case.join("model.safetensors").is_file());
    cases.sort();
    assert!(cases.len() > 25, "{cases:?}");
    for (number, case) in cases.iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let config = if case.join("config.json").is_file() { "config.json" } else { "hf_quant_config.json" };
        let (text, good) =
            (fs::read(case.join(config)).unwrap(), fs::read(case.join("model.safetensors")).unwrap());
        let header = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
        for round in 0..150 {
            let (mut text, mut bytes) = (text.clone(), good.clone());
            match round % 3 {
                0 => text = random.damage(&text),
                1 => bytes = [random.damage(&good[..header]), good[header..].to_vec()].concat(),
                _ => {
                    // The length stays, so that the header is believed.
                    for _ in 0..=random.below(8) {
                        let at = header + random.below(good.len() - header);
                        bytes[at] = random.below(256) as u8;
                    }
                }
            }
            fs::write(folder.path().join(config), &text).unwrap();
            fs::write(folder.path().join("model.safetensors"), &bytes).unwrap();
            let options = ImportOptions {
                act_order: [ActOrder::Refuse, ActOrder::Permute, ActOrder::Expand][(number + round) % 3],
                weights_only: round % 2 == 0,
                ..ImportOptions::default()
            };
            let opened = Prequantized::open(folder.path(), &options);
            match opened.and_then(|checkpoint| checkpoint.values().collect::<Result<Vec<_>, _>>()) {
                Ok(_) => read += 1,
                Err(_) => refused += 1,
            }
        }
    }
    assert!(read > 300 && refused > 300, "{read} were read, {refused} refused: the damage is no test");
}
