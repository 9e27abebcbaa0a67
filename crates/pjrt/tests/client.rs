//! The client against a real plugin.

mod common;

use std::sync::Arc;

use qwix_array::{Array, DType};
use qwix_graph::{ArrayType, BinaryOp, Graph, GraphBuilder, Op, Type};
use qwix_pjrt::{Argument, Cache, Client, CompileOptions, OptionValue, Origin, Plugin, Program, XlaOption};

fn options() -> CompileOptions {
    CompileOptions::default()
}

/// x + x and x, of f32[2,3].
fn doubled() -> Graph {
    let mut b = GraphBuilder::new("doubled");
    let x = b.input("x", Type::array(DType::F32, [2, 3])).unwrap();
    let y = b.binary(BinaryOp::Add, x, x).unwrap();
    let root = b.tuple(&[y, x]).unwrap();
    b.finish(root).unwrap()
}

const X: [f32; 6] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];

fn x() -> Array {
    Array::from_vec(&[2, 3], X.to_vec()).unwrap()
}

fn values(array: &Array) -> Vec<f64> {
    array.to_f64_vec()
}

#[test]
fn a_program_runs_and_comes_back_from_bytes() {
    let Some(client) = common::client() else { return };
    assert_eq!(client.platform_name(), common::kind().name());
    let stats = client.devices()[0].memory_stats().unwrap();
    if common::is_cpu() {
        assert_eq!(client.devices().len(), 8);
        // The CPU plugin does not count its memory.
        assert_eq!(stats, None);
    } else {
        let stats = stats.expect("a device counts its memory");
        assert!(stats.limit.is_none_or(|limit| stats.in_use <= limit), "{stats:?}");
    }
    let program = Program::new(&doubled()).unwrap();
    let executable = client.compile(&program, &options()).unwrap();
    let bytes = executable.serialize().unwrap();
    let again = client.deserialize(&bytes, &program, &options()).unwrap();
    for executable in [executable, again] {
        let buffer = client.upload(&x(), &client.devices()[0]).unwrap();
        let results = executable.run(&[&buffer]).unwrap();
        assert_eq!(values(&results[0].to_array().unwrap()), [2.0, 4.0, 6.0, 8.0, 10.0, 12.0]);
        assert_eq!(results[1].to_array().unwrap(), x());
        // A result is an argument like another.
        let results = executable.run(&[&results[0]]).unwrap();
        assert_eq!(values(&results[0].to_array().unwrap()), [4.0, 8.0, 12.0, 16.0, 20.0, 24.0]);
    }
}

#[test]
fn arrays_of_every_dtype_come_back() {
    let Some(client) = common::client() else { return };
    let mut wrong = Vec::new();
    for dtype in DType::all() {
        for shape in [&[][..], &[1], &[5], &[2, 3], &[256], &[7, 1, 9], &[0], &[3, 0, 2]] {
            let count = shape.iter().product::<usize>();
            let array = if dtype.bits() <= 8 {
                let codes: Vec<u8> = (0..count)
                    .map(|i| if dtype == DType::Pred { (i % 3 == 1).into() } else { i as u8 })
                    .collect();
                Array::pack(dtype, shape, &codes).unwrap()
            } else {
                let bytes = (0..dtype.byte_len(count).unwrap()).map(|i| (i * 37 + 11) as u8).collect();
                Array::from_bytes(dtype, shape, bytes).unwrap()
            };
            for device in [common::device(client, 0), common::device(client, 3)] {
                let buffer = client.upload(&array, device).unwrap();
                if buffer.ty() != &ArrayType::new(dtype, shape) || buffer.device_id() != device.id() {
                    wrong.push(format!("{array:?}: {buffer:?}"));
                }
                match buffer.to_array() {
                    Ok(found) if found == array => {}
                    found => wrong.push(format!("{array:?}: {found:?}")),
                }
                let copy = buffer.copy_to(common::device(client, 5)).and_then(|copy| copy.to_array());
                if copy.as_ref() != Ok(&array) {
                    wrong.push(format!("{array:?} copied: {copy:?}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn narrow_types_are_packed_on_the_device() {
    let Some(client) = common::client() else { return };
    for (dtype, bytes) in
        [(DType::S4, 32), (DType::U4, 32), (DType::F4E2M1FN, 32), (DType::S2, 16), (DType::S8, 64)]
    {
        let array = Array::zeros(dtype, &[64]).unwrap();
        let buffer = client.upload(&array, &client.devices()[0]).unwrap();
        assert_eq!(buffer.device_bytes(), Ok(bytes), "{dtype}");
    }
}

#[test]
fn wrong_arguments_are_refused_before_the_plugin_sees_them() {
    let Some(client) = common::client() else { return };
    let plugin = client.plugin();
    let other = Client::new(plugin, &common::options(1)).unwrap();
    let executable = client.compile(&Program::new(&doubled()).unwrap(), &options()).unwrap();
    let device = &client.devices()[0];
    let right = client.upload(&x(), device).unwrap();
    let transposed = client.upload(&x().reshape(&[3, 2]).unwrap(), device).unwrap();
    let wide = client.upload(&x().convert(DType::F64), device).unwrap();
    let elsewhere = client.upload(&x(), common::device(client, 1)).unwrap();
    let foreign = other.upload(&x(), &other.devices()[0]).unwrap();
    let mut rows = vec![
        (vec![], "found 0, expected 1"),
        (vec![&right, &right], "found 2, expected 1"),
        (vec![&transposed], "is f32[3,2], expected f32[2,3]"),
        (vec![&wide], "is f64[2,3], expected f32[2,3]"),
        (vec![&foreign], "another client"),
    ];
    if client.devices().len() > 1 {
        rows.push((vec![&elsewhere], "is on device 1, expected 0"));
    }
    for (arguments, expected) in rows {
        let error = executable.run(&arguments).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let error = executable.execute(vec![]).err().unwrap().to_string();
    assert!(error.contains("1 devices"), "{error}");
    assert!(client.upload(&x(), &other.devices()[0]).is_err());
    assert!(right.copy_to(&other.devices()[0]).is_err());
    assert!(client.device(client.devices().len()).is_err());
    // It still runs.
    assert_eq!(values(&executable.run(&[&right]).unwrap()[1].to_array().unwrap()), values(&x()));
}

#[test]
fn what_cannot_be_compiled_is_an_error() {
    let Some(client) = common::client() else { return };
    let program = Program::new(&doubled()).unwrap();
    let with = |replicas, partitions| CompileOptions { replicas, partitions, ..options() };
    let devices = client.devices().len();
    for options in [with(0, 1), with(1, 0), with(devices + 1, 1), with(3, devices / 2 + 1)] {
        assert!(client.compile(&program, &options).is_err(), "{options:?}");
    }
    let mut unknown = options();
    unknown.xla.insert("xla_no_such_option".into(), XlaOption::Bool(true));
    let error = client.compile(&program, &unknown).unwrap_err().to_string();
    assert!(error.contains("xla_no_such_option"), "{error}");
    for bytes in [&b""[..], b"no module", &program.bytes()[..program.bytes().len() / 2]] {
        assert!(Program::from_hlo_proto(bytes.to_vec()).is_err(), "{bytes:?}");
    }
    assert_eq!(Program::from_hlo_proto(program.bytes().to_vec()).as_ref(), Ok(&program));
    // A type that is not the one that the operands have.
    let error = client.deserialize(b"no executable", &program, &options()).unwrap_err().to_string();
    assert!(error.contains("PJRT_Executable_DeserializeAndLoad"), "{error}");
    assert!(client.deserialize(b"", &program, &options()).is_err());
}

#[test]
fn options_of_clients_are_checked() {
    let Some(plugin) = common::plugin() else { return };
    for (name, value) in [
        ("no_such_option", OptionValue::Bool(true)),
        ("cpu_device_count", OptionValue::Int(0)),
        ("cpu_device_count", OptionValue::Int(-1)),
        ("", OptionValue::Int(1)),
    ] {
        assert!(Client::new(&plugin, &[(name, value.clone())]).is_err(), "{name} {value:?}");
    }
}

#[test]
fn donated_buffers_are_used_up_and_kept_ones_are_not() {
    let Some(client) = common::client() else { return };
    let mut bytes = Program::new(&doubled()).unwrap().bytes().to_vec();
    // HloModuleProto.input_output_alias (8): an entry (1) with output_shape_index (1) [0] and kind (4) may-alias (1).
    bytes.extend([0x42, 0x07, 0x0a, 0x05, 0x0a, 0x01, 0x00, 0x20, 0x01]);
    let program = Program::from_hlo_proto(bytes).unwrap();
    let executable = client.compile(&program, &options()).unwrap();
    let buffer = client.upload(&x(), &client.devices()[0]).unwrap();
    let expected = [2.0, 4.0, 6.0, 8.0, 10.0, 12.0];
    for _ in 0..3 {
        let results = executable.run(&[&buffer]).unwrap();
        assert_eq!(values(&results[0].to_array().unwrap()), expected);
        assert_eq!(buffer.to_array().unwrap(), x());
    }
    let execution = executable.execute(vec![vec![Argument::Donate(buffer)]]).unwrap();
    let results = execution.wait().unwrap();
    assert_eq!(values(&results[0][0].to_array().unwrap()), expected);
    assert_eq!(results[0][1].to_array().unwrap(), x());
}

#[test]
fn replicas_run_on_devices_of_their_own() {
    let Some(client) = common::client() else { return };
    let program = Program::new(&doubled()).unwrap();
    let replicas = client.devices().len().min(4);
    let executable = client.compile(&program, &CompileOptions { replicas, ..options() }).unwrap();
    assert_eq!(executable.devices().len(), replicas);
    let inputs: Vec<Array> =
        (0..replicas).map(|r| Array::from_vec(&[2, 3], X.map(|v| v + r as f32).to_vec()).unwrap()).collect();
    let lists = inputs
        .iter()
        .zip(executable.devices())
        .map(|(input, device)| vec![Argument::Donate(client.upload(input, device).unwrap())])
        .collect();
    let execution = executable.execute(lists).unwrap();
    let results = execution.wait().unwrap();
    for (input, results) in inputs.iter().zip(&results) {
        let expected: Vec<f64> = values(input).iter().map(|v| 2.0 * v).collect();
        assert_eq!(values(&results[0].to_array().unwrap()), expected);
    }
}

#[test]
fn a_program_is_spread_over_devices_as_its_shardings_say() {
    let Some(client) = common::client() else { return };
    if client.devices().len() < 2 {
        eprintln!("skipped: a program for two devices, there is one");
        return;
    }
    let rows = "{devices=[2,1]<=[2]}";
    let mut graph = doubled();
    let entry = Arc::make_mut(&mut graph.entry);
    for node in &mut entry.nodes {
        let sharding = match node.op {
            Op::Tuple => format!("{{{rows}, {{replicated}}}}"),
            _ => rows.to_owned(),
        };
        node.sharding = Some(sharding.parse().unwrap());
    }
    let program = Program::new(&graph).unwrap();
    let row = |r: usize| Array::from_vec(&[1, 3], X[3 * r..3 * r + 3].to_vec()).unwrap();
    // On devices of the plugin's choice, or of ours.
    let turned = vec![client.devices()[1].id(), client.devices()[0].id()];
    for device_ids in [vec![], turned] {
        let options = CompileOptions { partitions: 2, device_ids: device_ids.clone(), ..options() };
        let executable = client.compile(&program, &options).unwrap();
        let ids: Vec<i32> = executable.devices().iter().map(|device| device.id()).collect();
        assert!(device_ids.is_empty() || ids == device_ids, "{ids:?}");
        let lists = executable
            .devices()
            .iter()
            .enumerate()
            .map(|(r, device)| vec![Argument::Donate(client.upload(&row(r), device).unwrap())])
            .collect();
        let results = executable.execute(lists).unwrap().wait().unwrap();
        for (r, results) in results.iter().enumerate() {
            // The first result is spread as the input is, the second whole on each device.
            let expected: Vec<f64> = values(&row(r)).iter().map(|v| 2.0 * v).collect();
            assert_eq!(values(&results[0].to_array().unwrap()), expected);
            assert_eq!(results[1].to_array().unwrap(), x());
        }
    }
    let options = CompileOptions { partitions: 2, device_ids: vec![0], ..options() };
    let error = client.compile(&program, &options).unwrap_err().to_string();
    assert!(error.contains("device ids: found [0], expected 2"), "{error}");
}

#[test]
fn a_started_run_becomes_ready() {
    let Some(client) = common::client() else { return };
    let executable = client.compile(&Program::new(&doubled()).unwrap(), &options()).unwrap();
    let buffer = client.upload(&x(), &client.devices()[0]).unwrap();
    let execution = executable.execute(vec![vec![Argument::Keep(&buffer)]]).unwrap();
    // Results can be read before the run is known to be done.
    assert_eq!(values(&execution.results[0][1].to_array().unwrap()), values(&x()));
    while !execution.is_ready().unwrap() {
        std::thread::yield_now();
    }
    execution.wait().unwrap();
}

#[test]
fn files_that_are_no_plugins_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("text.so");
    std::fs::write(&text, "no library").unwrap();
    let libc = ["/lib/x86_64-linux-gnu/libm.so.6", "/lib64/libm.so.6", "/usr/lib/libm.so.6"];
    let libc = libc.into_iter().map(std::path::PathBuf::from).find(|path| path.exists());
    let rows = [
        (Some(dir.path().join("none.so")), "No such file"),
        (Some(dir.path().to_owned()), "directory"),
        (Some(text), "cannot be loaded"),
        (libc, "no PJRT plugin"),
    ];
    for (path, expected) in rows {
        let Some(path) = path else { continue };
        let error = Plugin::load(&path).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn the_cache_gives_back_what_was_compiled_and_nothing_else() {
    let Some(client) = common::client() else { return };
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::new(dir.path().join("made/when/needed"));
    let program = Program::new(&doubled()).unwrap();
    let compile = |program: &Program, options: &CompileOptions| {
        let (executable, origin) = cache.compile(client, program, options).unwrap();
        let buffer = client.upload(&x(), &client.devices()[0]).unwrap();
        let lists =
            executable.devices().iter().map(|device| vec![Argument::Donate(buffer.copy_to(device).unwrap())]);
        let results = executable.execute(lists.collect()).unwrap().wait().unwrap();
        (values(&results[0][0].to_array().unwrap())[0], origin)
    };
    assert_eq!(compile(&program, &options()), (2.0, Origin::Compiled));
    assert_eq!(compile(&program, &options()), (2.0, Origin::Cached));
    // Other options, or another program, are something else.
    if client.devices().len() > 1 {
        let two = CompileOptions { replicas: 2, ..options() };
        assert_eq!(compile(&program, &two).1, Origin::Compiled);
    }
    let entries: Vec<_> = [(1, 1), (1, 2), (2, 1), (1, 4)]
        .into_iter()
        .map(|(replicas, partitions)| CompileOptions { replicas, partitions, ..options() })
        .map(|options| cache.entry(client, &program, &options))
        .collect();
    assert!((1..entries.len()).all(|i| !entries[..i].contains(&entries[i])), "{entries:?}");
    let mut b = GraphBuilder::new("doubled");
    let x = b.input("x", Type::array(DType::F32, [2, 3])).unwrap();
    let y = b.binary(BinaryOp::Multiply, x, x).unwrap();
    let root = b.tuple(&[y, x]).unwrap();
    let squared = Program::new(&b.finish(root).unwrap()).unwrap();
    assert_eq!(compile(&squared, &options()), (1.0, Origin::Compiled));
    // A damaged entry is compiled anew, said so, and mended.
    let entry = cache.entry(client, &program, &options());
    let whole = std::fs::read(&entry).unwrap();
    let mut damaged: Vec<Vec<u8>> = [0, 10, 30, 60, whole.len() / 2, whole.len() - 1]
        .iter()
        .map(|&at| {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            bytes
        })
        .collect();
    damaged.extend([0, 5, 40, whole.len() - 1].map(|length| whole[..length].to_vec()));
    for bytes in damaged {
        std::fs::write(&entry, &bytes).unwrap();
        let (value, origin) = compile(&program, &options());
        assert_eq!(value, 2.0);
        assert!(matches!(&origin, Origin::Instead(reason) if reason.contains("compiled anew")), "{origin:?}");
        assert_eq!(compile(&program, &options()), (2.0, Origin::Cached));
    }
    // A folder that cannot be written costs the entry, not the program.
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let (_, origin) = Cache::new(file).compile(client, &program, &options()).unwrap();
    assert!(matches!(origin, Origin::Instead(_)), "{origin:?}");
}
