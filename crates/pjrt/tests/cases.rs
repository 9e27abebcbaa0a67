//! Every quantized case of the goldens on an XLA device: its outputs against the native engine's, against Qwix's, and on
//! the CPU bit for bit against those of the model as it is exported.

#[path = "common/cases.rs"]
mod cases;
mod common;
#[path = "../../ptq/tests/common/mod.rs"]
mod goldens;

use qwix_pjrt::XlaBackend;

#[test]
fn outputs_are_the_native_engines_and_qwixs() {
    let Some(client) = common::client() else { return };
    let (wrong, count) = cases::complaints_of_all(&XlaBackend::on(client, 0).unwrap(), common::is_cpu());
    assert!(wrong.is_empty(), "{} of {count}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(count > 0, "no case");
}
