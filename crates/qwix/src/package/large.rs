//! What opening a large package takes.

use std::fs::File;
use std::time::{Duration, Instant};

use super::*;
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
    std::fs::write(target.join(MODEL), model.to_text(TextOptions::default())).unwrap();
    std::fs::write(target.join(RULES), "[]").unwrap();
    let types = all_stored(&model).unwrap();
    let len: usize = types.values().map(|ty| ty.byte_len().unwrap()).sum();
    let name = target.join(PARAMS);
    let mut writer = TensorWriter::new(File::create_new(&name).unwrap(), types).unwrap();
    writer.write("Dense_0/kernel/scale", &Array::zeros(DType::F32, &[1, 131072]).unwrap()).unwrap();
    drop(writer);
    let len = header_len(&name) + len as u64;
    File::options().write(true).open(&name).unwrap().set_len(len).unwrap();

    let mut files = BTreeMap::new();
    for name in [MODEL, RULES] {
        files.insert(name.to_owned(), hash(&target.join(name)).unwrap());
    }
    files.insert(PARAMS.to_owned(), FileEntry { bytes: len, sha256: String::new() });
    let parameters = model.parameters.iter().map(|p| ParameterEntry::of(p).unwrap()).collect();
    let (format, tool) = (FORMAT.to_owned(), "test".to_owned());
    let manifest = Manifest { format, version: VERSION, tool, qwix_compat: false, files, parameters };
    std::fs::write(target.join(MANIFEST), serde_json::to_string(&manifest).unwrap()).unwrap();
}

/// The length of what stands before the tensors.
fn header_len(name: &FilePath) -> u64 {
    let mut prefix = [0; 8];
    File::open(name).unwrap().read_exact(&mut prefix).unwrap();
    8 + u64::from_le_bytes(prefix)
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
