//! XLA's programs on CPUs with kernels of the native engine in them.

#[path = "../../pjrt/tests/common/cases.rs"]
mod cases;
#[path = "../../pjrt/tests/common/mod.rs"]
mod common;
#[path = "../../ptq/tests/common/mod.rs"]
mod goldens;

use qwix::{NativeKernels, XlaBackend};

#[test]
fn golden_cases_are_the_native_engines_and_qwixs() {
    let Some(client) = common::client() else { return };
    let xla = XlaBackend::on(client, 0).unwrap().with_kernels(NativeKernels, |note| println!("{note}"));
    let (wrong, count) = cases::complaints_of_all(&xla);
    assert!(wrong.is_empty(), "{} of {count}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(count > 0, "no case");
}
