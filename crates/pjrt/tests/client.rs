//! The client against the real CPU plugin.
mod common;

use qwix_array::{Array, DType};
use qwix_graph::{BinaryOp, GraphBuilder, Type};
use qwix_pjrt::{Argument, CompileOptions, Program};

#[test]
fn a_program_runs() {
    let Some(client) = common::client() else { return };
    println!("{client:?} {} {:?} {:?}", client.platform_version(), client.plugin(), client.plugin().attributes());
    println!("{:?} {:?}", client.devices(), client.devices()[0].memory_stats());
    let mut b = GraphBuilder::new("sum");
    let x = b.input("x", Type::array(DType::F32, [2, 3])).unwrap();
    let y = b.binary(BinaryOp::Add, x, x).unwrap();
    let root = b.tuple(&[y, x]).unwrap();
    let program = Program::new(&b.finish(root).unwrap()).unwrap();
    let executable = client.compile(&program, &CompileOptions::default()).unwrap();
    let x = Array::from_vec(&[2, 3], vec![1f32, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
    let buffer = client.upload(&x, &client.devices()[0]).unwrap();
    let results = executable.run(&[&buffer]).unwrap();
    assert_eq!(results[0].to_array().unwrap().to_f64_vec(), [2.0, 4.0, 6.0, 8.0, 10.0, 12.0]);
    let bytes = executable.serialize().unwrap();
    println!("{} bytes", bytes.len());
    let again = client.deserialize(&bytes, &program, &CompileOptions::default()).unwrap();
    let results = again.execute(vec![vec![Argument::Donate(buffer)]]).unwrap().wait().unwrap();
    assert_eq!(results[0][0].to_array().unwrap().to_f64_vec(), [2.0, 4.0, 6.0, 8.0, 10.0, 12.0]);
}
