//! `qwix dump`: every parameter of a package in one flat file.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use qwix::{Array, Package, Role, Value, files, widened, write_tensors};

use crate::args::Dump;

pub fn run(args: &Dump) -> Result<()> {
    let package = Package::open(&args.package)?;
    package.verify()?;
    let mut tensors: BTreeMap<String, Array> = BTreeMap::new();
    let mut put = |key: String, array: &Array| match tensors.insert(key.clone(), widened(array)) {
        None => Ok(()),
        Some(_) => bail!("two parameters would be written as `{key}`"),
    };
    for parameter in package.parameters().iter().filter(|p| p.role == Role::Variable) {
        let path = &parameter.path;
        match package.read(parameter)? {
            Value::Array(array) => put(path.to_string(), &array)?,
            Value::QArray(q) => {
                put(format!("{path}/qvalue"), q.qvalue())?;
                put(format!("{path}/scale"), q.scale())?;
                if let Some(zero_point) = q.zero_point() {
                    put(format!("{path}/zero_point"), zero_point)?;
                }
            }
            Value::Tuple(_) => bail!("parameter `{path}` is a tuple"),
        }
    }
    Ok(files::write_file(&args.output, |out| write_tensors(out, &tensors))?)
}
