//! Quantizing checkpoints without a model, in little memory, and through kill -9.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{Folder, command, qwix};
use qwix::{Array, DType, HowToQuantize, QType, TensorFile, write_tensors};
use serde_json::Value;

/// bf16 numbers that repeat.
fn numbers(shape: &[usize], seed: u32) -> Array {
    let count = shape.iter().product::<usize>() as u32;
    let values: Vec<f64> = (0..count)
        .map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 16) as f64 / 65536.0 - 0.5)
        .collect();
    Array::from_f64(DType::BF16, shape, &values).unwrap()
}

fn write(file: &Path, arrays: &BTreeMap<String, Array>) {
    let mut bytes = vec![];
    write_tensors(&mut bytes, arrays).unwrap();
    std::fs::write(file, bytes).unwrap();
}

fn files(dir: &str) -> BTreeMap<PathBuf, Vec<u8>> {
    let paths = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    paths.map(|path| (path.file_name().unwrap().into(), std::fs::read(&path).unwrap())).collect()
}

#[test]
fn weights_are_chosen_by_path_and_quantized_along_the_axis_of_their_layout() {
    let folder = Folder::new();
    std::fs::create_dir(folder.file("model")).unwrap();
    let arrays = BTreeMap::from([
        ("model.layers.0.up_proj.weight".to_owned(), numbers(&[24, 64], 1)),
        ("model.layers.0.norm.weight".to_owned(), numbers(&[64], 2)),
        ("model.layers.0.down_proj.weight".to_owned(), numbers(&[64, 24], 3)),
    ]);
    write(&folder.file("model/model.safetensors"), &arrays);
    let (params, out, flat) = (folder.path("model"), folder.path("out"), folder.path("flat"));
    let quantize = ["quantize", "--params", &params, "-o", &out, "--force"];
    let up = "model/layers/0/up_proj/weight";
    let rules = folder.write("r.toml", "[[rules]]\nparam_path = '.*up_proj.*'\nweight_qtype = 'int8'\n");
    let rows: [(&[&str], &str, &[usize], usize); 5] = [
        (&["--weights-only", ".*/weight", "--weight-qtype", "int8", "--layout", "hf"], "int8", &[24, 1], 2),
        (&["--weights-only", ".*up_proj/weight", "--weight-qtype", "int8"], "int8", &[1, 64], 1),
        (
            &["--weights-only", ".*up.*", "--weight-qtype", "int4", "--tile-size", "32", "--layout", "hf"],
            "int4",
            &[24, 2],
            1,
        ),
        (
            &["--weights-only", ".*up.*", "--weight-qtype", "nf4", "--contracting-axis", "-1"],
            "nf4",
            &[24, 1],
            1,
        ),
        (&["--rules", &rules, "--layout", "hf"], "int8", &[24, 1], 1),
    ];
    for (more, qtype, scales, count) in rows {
        let said = qwix(quantize.iter().chain(more)).ok();
        assert!(said.contains(&format!("{count} of 3 parameters quantized")), "{more:?}: {said}");
        qwix(["verify", &out]).ok();
        qwix(["dump", &out, "-o", &flat]).ok();
        let file = TensorFile::open(&flat).unwrap();
        assert_eq!(file.get(&format!("{up}/scale")).unwrap().shape, scales, "{more:?}");
        let granularity = scales.iter().zip([24, 64]).map(|(&count, size)| match count {
            1 => qwix::Granularity::Shared,
            count if count == size => qwix::Granularity::Channelwise,
            count => qwix::Granularity::Tiled(qwix::Tile::Size(size / count)),
        });
        let qtype = QType::by_name(qtype).unwrap();
        let how = HowToQuantize::new(qtype, granularity.collect(), "absmax".parse().unwrap()).unwrap();
        let expected = qwix::quantize(&arrays["model.layers.0.up_proj.weight"], &how).unwrap();
        assert_eq!(file.read(&format!("{up}/qvalue")).unwrap(), qwix::widened(expected.qvalue()), "{more:?}");
        assert_eq!(file.read(&format!("{up}/scale")).unwrap(), *expected.scale(), "{more:?}");
    }
    let run = qwix(["run", &out, "--inputs", &flat, "-o", &folder.path("y")]);
    assert!(run.status == 1 && run.stderr.contains("no model"), "{}", run.stderr);

    let wrong: [(&[&str], &[&str]); 4] = [
        (&["--weights-only", "up_proj", "--weight-qtype", "int8"], &["no float matrix", "whole path"]),
        (&["--weights-only", ".*", "--weight-qtype", "int9"], &["int9", "did you mean"]),
        (
            &["--weights-only", ".*", "--weight-qtype", "int8", "--tile-size", "48"],
            &["weight", "tiles of 48"],
        ),
        (
            &["--weights-only", ".*", "--weight-qtype", "int8", "--max-memory", "1MB"],
            &["--max-memory", "MiB or more"],
        ),
    ];
    for (more, expected) in wrong {
        let ran = qwix(quantize.iter().chain(more));
        let said = expected.iter().all(|e| ran.stderr.contains(e));
        assert!(ran.status == 1 && said && ran.stderr.lines().count() == 1, "{more:?}: {}", ran.stderr);
    }
}

/// A plan is made of names and shapes: sparse files of any size will do.
#[test]
fn memory_stays_within_the_budget_and_changes_nothing() {
    let folder = Folder::new();
    let (big, small) = ([160 << 10, 1024], [4096, 1024]);
    let mut header = serde_json::Map::new();
    let mut at = 0;
    for (key, shape) in [("big/kernel", big), ("small/kernel", small)] {
        let end = at + shape[0] * shape[1] * 2;
        let entry = serde_json::json!({ "dtype": "BF16", "shape": shape, "data_offsets": [at, end] });
        header.insert(key.to_owned(), entry);
        at = end;
    }
    let mut text = serde_json::to_vec(&header).unwrap();
    text.resize(text.len().next_multiple_of(8), b' ');
    let params = folder.write("p.safetensors", [&(text.len() as u64).to_le_bytes()[..], &text].concat());
    std::fs::File::options()
        .write(true)
        .open(&params)
        .unwrap()
        .set_len((8 + text.len() + at) as u64)
        .unwrap();
    let mut first = None;
    for (budget, jobs) in [(80, "1"), (120, "3"), (1000, "2")] {
        let (out, memory) = (folder.path(&format!("out{budget}")), format!("{budget}MiB"));
        let quantize =
            ["quantize", "--params", &params, "-o", &out, "--weights-only", ".*", "--weight-qtype", "int4"];
        let more = ["--tile-size", "64", "--max-memory", &memory, "--jobs", jobs, "--json"];
        let said: Value = serde_json::from_str(&qwix(quantize.iter().chain(&more)).ok()).unwrap();
        if cfg!(target_os = "linux") {
            let peak = said["peak_memory"].as_u64().unwrap();
            assert!(peak <= budget << 20, "{peak} bytes of {budget} MiB");
        }
        let manifest = std::fs::read(Path::new(&out).join("manifest.json")).unwrap();
        assert!(*first.get_or_insert(manifest.clone()) == manifest, "{budget} MiB give another package");
    }
}

/// Killed at any moment there is nothing at the target, and the same command ends with the same bytes.
#[test]
fn a_job_that_is_killed_goes_on() {
    let folder = Folder::new();
    let arrays = (0..24).map(|i| (format!("l{i}/kernel"), numbers(&[512, 256 + 128 * (i as usize % 4)], i)));
    write(&folder.file("p.safetensors"), &arrays.collect());
    let (params, out) = (folder.path("p.safetensors"), folder.path("out"));
    let args =
        ["quantize", "--params", &params, "-o", &out, "--weights-only", ".*", "--weight-qtype", "int8"];
    let args: Vec<&str> = args.into_iter().chain(["--shard-size", "1MB"]).collect();
    let start = Instant::now();
    qwix(&args).ok();
    let whole = start.elapsed();
    let expected = files(&out);
    let mut seed = 0x2545_f491_u64;
    let mut killed = 0;
    for _ in 0..10 {
        std::fs::remove_dir_all(&out).unwrap();
        for _ in 0..3 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let mut child = command().args(&args).stdout(std::process::Stdio::null()).spawn().unwrap();
            std::thread::sleep(Duration::from_micros((seed >> 33) % (whole.as_micros() as u64 + 1)));
            child.kill().unwrap();
            if child.wait().unwrap().success() || Path::new(&out).exists() {
                break;
            }
            killed += 1;
            assert_eq!(qwix(["verify", &out]).status, 1);
        }
        let ran = qwix(&args);
        // Killed after the package was put at its target and the folder was removed, there is nothing to do.
        assert!(ran.status == 0 || ran.stderr.contains("exists"), "{}", ran.stderr);
        assert!(files(&out) == expected, "another package");
        assert_eq!(folder.names(), ["out", "p.safetensors"]);
    }
    assert!(killed > 5, "{killed} were killed before their end");
}
