//! What opening a large package takes.

use std::fs::File;
use std::time::{Duration, Instant};

use qwix_graph::text::TextOptions;

use super::shards::Shards;
use super::*;
use crate::files::write_all_at;
use crate::{PtqProvider, QuantizationRule, quantize_model};

/// A package whose one weight takes 8 GiB, nearly all of it a hole in the file. Its hash is none.
fn write_large(target: &FilePath) {
    let kernel = "variables['params']['Dense_0']['kernel']";
    let text = format!(
        "HloModule large\n\nENTRY main {{\n  x = f32[1,65536] parameter(0), metadata={{op_name=\"x\"}}\n  \
         w = f32[65536,131072] parameter(1), metadata={{op_name=\"{kernel}\"}}\n  \
         ROOT dot = f32[1,131072] dot(x, w), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}\n}}\n"
    );
    let float = Model::from(Graph::from_text(&text).unwrap());
    let rules = vec![QuantizationRule::new(".*").weight_qtype("int8")];
    let ptq_model = quantize_model(&float, &PtqProvider::new(rules).unwrap()).unwrap();
    let model = Model::from(ptq_model.graph);

    std::fs::create_dir(target).unwrap();
    let variables = variables(&model.parameters);
    let shards = Shards::plan(variables.values(), u64::MAX).unwrap();
    for shard in &shards.list {
        let file = File::create_new(target.join(&shard.name)).unwrap();
        file.set_len(shard.bytes).unwrap();
        write_all_at(&file, &shard.header, 0).unwrap();
    }
    let contents = Contents {
        parameters: &model.parameters,
        model: Some(&model.to_text(TextOptions::default())),
        rules: "[]",
        qwix_compat: false,
        inputs: BTreeMap::new(),
        sources: BTreeMap::new(),
        tensors: BTreeMap::new(),
    };
    let write = |name: &str, bytes: &[u8]| {
        std::fs::write(target.join(name), bytes).unwrap();
        Ok(())
    };
    finish_manifest(&shards, contents, &write).unwrap();
}

/// The memory that this process has, in bytes, where the system says.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096
}

#[test]
fn opening_does_not_depend_on_size() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("large");
    write_large(&target);
    let (before, start) = (resident(), Instant::now());
    let package = Package::open(&target).unwrap();
    let params = package.read_all().unwrap();
    let (time, memory) = (start.elapsed(), resident().saturating_sub(before));
    println!("8 GiB opened in {time:?}, with {memory} bytes of memory");
    let Some(Value::QArray(kernel)) = params.get(&Path::new("Dense_0/kernel")) else { panic!("no kernel") };
    assert_eq!(kernel.qvalue().bytes().len(), 8 << 30);
    assert_eq!(kernel.qvalue().bytes().last(), Some(&0));
    // Reading it would take seconds, and the memory. Other tests run beside this one.
    assert!(time < Duration::from_secs(2), "{time:?}");
    assert!(memory < 256 << 20, "{memory} bytes");
}
