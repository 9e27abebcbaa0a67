//! Qwix's own parameters, flat: `<path>/qvalue`, `<path>/scale`, and `<path>/zero_point` where there is one.
//!
//! What `qwix dump` writes, and what `flax.traverse_util.flatten_dict` makes of the parameters of a Qwix model. The type is
//! that of the stored values: `int8` for s8, `float8_e4m3fn` for f8e4m3fn, and so on. Where values are stored wider than they
//! are (`qwix dump` writes int4 as s8, fp8 and fp4 as f32), a type that is given says what they are; an int4 read as int8
//! stands for the same numbers.

use std::collections::BTreeMap;

use qwix_array::DType;
use qwix_eval::Value;
use qwix_graph::{ArrayType, Path, Type};
use qwix_ptq::type_of_parts;
use qwix_quant::{QArray, QType};

use super::plan::{Entry, Plan};
use super::source::Source;
use super::{Format, ImportOptions};
use crate::Result;

pub(super) struct QwixFlat;

const PARTS: [&str; 3] = ["qvalue", "scale", "zero_point"];

impl Format for QwixFlat {
    fn name(&self) -> &'static str {
        "qwix"
    }

    fn is(&self, source: &Source) -> bool {
        source.method().is_none() && source.checkpoint.paths().iter().any(|path| path.name() == "qvalue")
    }

    fn plan(&self, source: &Source, options: &ImportOptions) -> Result<Plan> {
        let mut arrays: BTreeMap<Path, Vec<Path>> = BTreeMap::new();
        let paths = source.checkpoint.paths();
        let mut plan = Plan::default();
        for path in &paths {
            let parent = path.parent();
            // A module may well have a parameter `scale` (a norm has): only beside a `qvalue` is it part of one.
            if paths.contains(&parent.join("qvalue")) {
                arrays.entry(parent).or_default().push(path.clone());
            } else {
                plan.add(source, path.clone(), Entry::plain(source, path)?)?;
            }
        }
        for (path, parts) in arrays {
            if let Some(part) = parts.iter().find(|part| !PARTS.contains(&part.name())) {
                return Err(
                    source.bad(part, "stands beside `qvalue`; expected `scale` and `zero_point` alone")
                );
            }
            let entry = array(source, &path, options)?;
            plan.add(source, path, entry)?;
        }
        Ok(plan)
    }
}

fn array(source: &Source, path: &Path, options: &ImportOptions) -> Result<Entry> {
    let [qvalue, scale, zero_point] = PARTS.map(|part| path.join(part));
    let stored = source.ty(&qvalue)?;
    let qtype = qtype(source, &qvalue, stored.dtype, options)?;
    let zero_point = source.checkpoint.contains(&zero_point).then_some(zero_point);
    for part in [&scale].into_iter().chain(&zero_point) {
        let ty = source.ty(part)?;
        let divides =
            |(&size, &count): (&usize, &usize)| if count == 0 { size == 0 } else { size % count == 0 };
        if ty.shape.len() != stored.shape.len() || !stored.shape.iter().zip(&ty.shape).all(divides) {
            return Err(source.bad(part, format!("{ty} does not divide `qvalue`, which is {stored}")));
        }
    }
    let scale_ty = source.ty(&scale)?;
    if !scale_ty.dtype.is_wide_float() {
        return Err(source.bad(&scale, format!("expected floats, found {scale_ty}")));
    }
    if let Some(zero_point) = &zero_point {
        let ty = source.ty(zero_point)?;
        if ty.shape != scale_ty.shape {
            return Err(
                source.bad(zero_point, format!("expected the shape of `scale`, {scale_ty}, found {ty}"))
            );
        }
    }
    let array = ArrayType::new(scale_ty.dtype, stored.shape.clone());
    let ty = type_of_parts(qtype, array, &scale_ty.shape, zero_point.is_some());
    Ok(Entry::as_stored(Type::QArray(ty), move |source| {
        let narrow = |path: &Path| {
            let array = source.read(path)?;
            let narrow = array.convert_exactly(qtype.storage);
            narrow.ok_or_else(|| source.bad(path, format!("holds a number that {qtype} does not have")))
        };
        let zero_point = zero_point.as_ref().map(narrow).transpose()?;
        Ok(Value::QArray(QArray::new(narrow(&qvalue)?, source.read_finite(&scale)?, zero_point, qtype)?))
    }))
}

fn qtype(source: &Source, path: &Path, stored: DType, options: &ImportOptions) -> Result<&'static QType> {
    if let Some(qtype) = options.qtype {
        return Ok(qtype);
    }
    let name = match stored {
        DType::S8 => "int8",
        DType::S16 => "int16",
        DType::F8E4M3FN | DType::F8E5M2 | DType::F4E2M1FN => stored.jax_name(),
        DType::S4 => "int4",
        DType::Pred
        | DType::S2
        | DType::S32
        | DType::S64
        | DType::U4
        | DType::U8
        | DType::U16
        | DType::U32
        | DType::U64
        | DType::F16
        | DType::BF16
        | DType::F32
        | DType::F64 => {
            return Err(source.bad(
                path,
                format!("is stored as {stored}, which does not say what type it is; give it (--qtype)"),
            ));
        }
    };
    Ok(QType::by_name(name)?)
}
