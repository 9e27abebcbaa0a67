//! Checkpoints: what is written is read back, by us and by the format's own library, and lies are refused by name.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path as FilePath;

use qwix::{Checkpoint, TensorFile, write_tensors};
use qwix_array::{Array, DType};
use qwix_graph::Path;

fn file_of(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

fn tensors(rows: &[(&str, Array)]) -> Vec<u8> {
    let map: BTreeMap<String, Array> = rows.iter().map(|(k, a)| ((*k).to_owned(), a.clone())).collect();
    let mut bytes = Vec::new();
    write_tensors(&mut bytes, &map).unwrap();
    bytes
}

fn error_of(folder: &FilePath, name: &str) -> String {
    match Checkpoint::open(folder.join(name)) {
        Ok(_) => "no error".to_owned(),
        Err(e) => e.to_string(),
    }
}

#[test]
fn every_dtype_comes_back_as_it_went() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("all.safetensors");
    let mut written = BTreeMap::new();
    for dtype in DType::all().filter(|d| !matches!(d, DType::S2 | DType::S4 | DType::U4)) {
        let shape = [2, 3, 2];
        let count = dtype.byte_len(12).unwrap();
        let bytes: Vec<u8> =
            (0..count).map(|i| if dtype == DType::Pred { i as u8 % 2 } else { i as u8 }).collect();
        written.insert(format!("of_{dtype}"), Array::from_bytes(dtype, &shape, bytes).unwrap());
    }
    written.insert("empty".to_owned(), Array::zeros(DType::F32, &[0, 4]).unwrap());
    written.insert("scalar".to_owned(), Array::scalar(7i64));
    let mut bytes = Vec::new();
    write_tensors(&mut bytes, &written).unwrap();
    fs::write(&file, &bytes).unwrap();

    let ours = TensorFile::open(&file).unwrap();
    let theirs = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(theirs.len(), written.len());
    let mut wrong = Vec::new();
    for (key, array) in &written {
        if ours.read(key).unwrap() != *array {
            wrong.push(format!("{key}: read back differently"));
        }
        if ours.map(key).unwrap() != *array {
            wrong.push(format!("{key}: mapped differently"));
        }
        let view = theirs.tensor(key).unwrap();
        if view.data() != array.bytes() || view.shape() != array.shape() {
            wrong.push(format!("{key}: the format's library reads it differently"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn keys_are_paths_with_slashes_or_dots() {
    let folder = tempfile::tempdir().unwrap();
    let one = Array::scalar(1f32);
    let rows =
        [("Dense_0.kernel", one.clone()), ("Dense_0/bias", one.clone()), ("a.b/c", one.clone()), ("x", one)];
    fs::write(folder.path().join("p.safetensors"), tensors(&rows)).unwrap();
    let paths = Checkpoint::open(folder.path().join("p.safetensors")).unwrap().paths();
    let paths: Vec<&str> = paths.iter().map(Path::as_str).collect();
    assert_eq!(paths, ["Dense_0/bias", "Dense_0/kernel", "a.b/c", "x"]);
}

#[test]
fn shards_are_one_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).unwrap();
    write(
        "m-1.safetensors",
        &tensors(&[("a.kernel", Array::scalar(1f32)), ("b.kernel", Array::scalar(2f32))]),
    );
    write("m-2.safetensors", &tensors(&[("c.kernel", Array::scalar(3f32))]));
    let index = |map: &str| format!(r#"{{"metadata": {{"total_size": 12}}, "weight_map": {map}}}"#);
    let (one, two) = ("m-1.safetensors", "m-2.safetensors");
    write(
        "index.json",
        index(&format!(r#"{{"a.kernel": "{one}", "b.kernel": "{one}", "c.kernel": "{two}"}}"#)).as_bytes(),
    );
    let checkpoint = Checkpoint::open(folder.path().join("index.json")).unwrap();
    assert_eq!(checkpoint.read(&Path::new("c/kernel")).unwrap(), Array::scalar(3f32));
    assert_eq!(checkpoint.read_all().unwrap().len(), 3);

    let rows = [
        (format!(r#"{{"a.kernel": "{one}", "c.kernel": "{two}"}}"#), "tensor `b.kernel`: is not listed"),
        (
            format!(
                r#"{{"a.kernel": "{one}", "b.kernel": "{one}", "d.kernel": "{two}", "c.kernel": "{two}"}}"#
            ),
            "tensor `d.kernel`: is missing",
        ),
        (r#"{"a.kernel": "../m-1.safetensors"}"#.to_owned(), "not a plain file name"),
        (r#"{"a.kernel": "/etc/passwd"}"#.to_owned(), "not a plain file name"),
        (r#"{"a.kernel": "absent.safetensors"}"#.to_owned(), "cannot read"),
        (r#"{"a.kernel": 3}"#.to_owned(), "is not an index"),
    ];
    let mut wrong = Vec::new();
    for (map, expected) in &rows {
        write("bad.json", index(map).as_bytes());
        let found = error_of(folder.path(), "bad.json");
        if !found.contains(expected) {
            wrong.push(format!("{map}: expected `{expected}`, found `{found}`"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_that_lie_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let good = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    let mut huge = file_of(good, &[0; 8]);
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let rows: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty file", vec![], "too short"),
        ("no header", vec![200, 0, 0, 0, 0, 0, 0, 0, b'{'], "truncated"),
        ("huge header", huge, "truncated"),
        ("not json", file_of("{]", &[]), "not what safetensors writes"),
        ("truncated data", file_of(good, &[0; 7]), "tensor `a`: ends past the end"),
        ("data left over", file_of(good, &[0; 9]), "its tensors end at"),
        (
            "shape too large",
            file_of(r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}}"#, &[0; 8]),
            "tensor `a`: shape",
        ),
        (
            "shape does not fit",
            file_of(r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#, &[0; 8]),
            "tensor `a`: f32 of shape [3] takes 12 bytes",
        ),
        (
            "backwards",
            file_of(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#, &[0; 8]),
            "the offsets 8..0",
        ),
        (
            "overlap",
            file_of(
                r#"{"a":{"dtype":"U8","shape":[6],"data_offsets":[0,6]},"b":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}"#,
                &[0; 8],
            ),
            "tensor `b`: overlaps",
        ),
        (
            "gap",
            file_of(r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}"#, &[0; 8]),
            "tensor `a`: leaves a gap",
        ),
        (
            "twice",
            file_of(
                r#"{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#,
                &[],
            ),
            "tensor `a` stands in the header twice",
        ),
        (
            "unknown dtype",
            file_of(r#"{"a":{"dtype":"Q7","shape":[2],"data_offsets":[0,8]}}"#, &[0; 8]),
            "tensor `a`: unknown variant `Q7`",
        ),
        (
            "complex",
            file_of(r#"{"a":{"dtype":"C64","shape":[1],"data_offsets":[0,8]}}"#, &[0; 8]),
            "tensor `a`: dtype C64 is not supported",
        ),
        (
            "one path, two keys",
            file_of(
                r#"{"a.b":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a/b":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#,
                &[],
            ),
            "are both the parameter `a/b`",
        ),
    ];
    let mut wrong = Vec::new();
    for (what, bytes, expected) in rows {
        fs::write(folder.path().join("bad.safetensors"), bytes).unwrap();
        let found = error_of(folder.path(), "bad.safetensors");
        if !found.contains(expected) || !found.contains("bad.safetensors") || found.contains('\n') {
            wrong.push(format!("{what}: expected `{expected}`, found `{found}`"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_boolean_is_0_or_1() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = file_of(r#"{"a":{"dtype":"BOOL","shape":[2],"data_offsets":[0,2]}}"#, &[1, 2]);
    fs::write(folder.path().join("b.safetensors"), bytes).unwrap();
    let error =
        Checkpoint::open(folder.path().join("b.safetensors")).unwrap().read(&Path::new("a")).unwrap_err();
    assert!(error.to_string().contains("tensor `a`: holds a boolean"), "{error}");
}

/// Where elements do not lie as they must, at any distance, a copy is made; everything else borrows one map.
#[test]
fn what_is_mapped_is_what_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let name = folder.path().join("crooked.safetensors");
    let mut wrong = Vec::new();
    for pad in 0..9usize {
        let end = pad + 16;
        let header = format!(
            r#"{{"pad":{{"dtype":"U8","shape":[{pad}],"data_offsets":[0,{pad}]}},"x":{{"dtype":"F32","shape":[4],"data_offsets":[{pad},{end}]}},"none":{{"dtype":"F64","shape":[0],"data_offsets":[{end},{end}]}}}}"#
        );
        let mut data = vec![7u8; pad];
        data.extend([1f32, -2.0, f32::NAN, 1e-40].iter().flat_map(|v| v.to_le_bytes()));
        fs::write(&name, file_of(&header, &data)).unwrap();
        let file = TensorFile::open(&name).unwrap();
        for key in ["pad", "x", "none"] {
            if file.map(key).unwrap() != file.read(key).unwrap() {
                wrong.push(format!("{key} behind {pad} bytes differs"));
            }
        }
        let x = file.map("x").unwrap();
        if !(x.bytes().as_ptr() as usize).is_multiple_of(4) {
            wrong.push(format!("x behind {pad} bytes cannot be borrowed as f32"));
        }
        let same = file.map("x").unwrap().bytes().as_ptr() == x.bytes().as_ptr();
        if same != (header.len() + pad).is_multiple_of(4) {
            wrong.push(format!("x behind {pad} bytes is {}copied", if same { "not " } else { "" }));
        }
        // What was mapped outlives the file's name, and another file in its place.
        fs::remove_file(&name).unwrap();
        fs::write(&name, b"another").unwrap();
        if x != file.read("x").unwrap() {
            wrong.push(format!("x behind {pad} bytes is gone with the file's name"));
        }
        fs::remove_file(&name).unwrap();
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn maps_are_checked_as_reads_are() {
    let folder = tempfile::tempdir().unwrap();
    let name = folder.path().join("bools.safetensors");
    let header = r#"{"b":{"dtype":"BOOL","shape":[2],"data_offsets":[0,2]}}"#;
    fs::write(&name, file_of(header, &[1, 2])).unwrap();
    let file = TensorFile::open(&name).unwrap();
    let said = |result: qwix::Result<Array>| result.map_or_else(|e| e.to_string(), |_| "no error".to_owned());
    let (mapped, read) = (said(file.map("b")), said(file.read("b")));
    assert!(mapped.contains("neither 0 nor 1") && mapped == read, "{mapped}; {read}");
    assert_eq!(said(file.map("c")), said(file.read("c")));

    // The file shrinks, or grows, between its opening and its first use.
    for len in [3, 200] {
        fs::write(&name, file_of(header, &[1, 0])).unwrap();
        let file = TensorFile::open(&name).unwrap();
        fs::OpenOptions::new().write(true).open(&name).unwrap().set_len(len).unwrap();
        let mapped = said(file.map("b"));
        assert!(mapped.contains(&format!("has {len} bytes")) && mapped.contains("bools"), "{mapped}");
    }
}
