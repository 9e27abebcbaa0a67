//! Float parameters into the parameters of a quantized graph.

use qwix_array::Array;
use qwix_eval::{Params, Value};
use qwix_graph::{ArrayType, Parameter, Path, Prep, Slot, Type, WeightSlot};
use qwix_quant::{QuantError, check_finite, quantize};

use crate::{PtqError, QuantStats, Template, quantize_stats};

/// What [`quantize_params`] is told beside the parameters.
#[derive(Clone, Copy, Default, Debug)]
pub struct QuantizeParams<'a> {
    /// Skips parameters that the template does not know, instead of refusing them.
    pub allow_extra_params: bool,
    /// Statistics for the static scales of activations.
    pub quant_stats: Option<&'a QuantStats>,
}

/// Quantizes float parameters as the template says: all, or any subtree. What the template leaves in float passes.
///
/// # Errors
/// Names the parameter that the template does not know, that has another type, or that cannot be quantized.
pub fn quantize_params(
    params: &Params,
    template: &Template,
    quant_stats: Option<&QuantStats>,
) -> Result<Params, PtqError> {
    quantize_params_with(params, template, QuantizeParams { quant_stats, ..QuantizeParams::default() })
}

/// [`quantize_params`] with options.
///
/// # Errors
/// As [`quantize_params`].
pub fn quantize_params_with(
    params: &Params,
    template: &Template,
    options: QuantizeParams<'_>,
) -> Result<Params, PtqError> {
    let none = QuantStats::new();
    let mut quantized = quantize_stats(options.quant_stats.unwrap_or(&none), template)?;
    for (path, value) in params {
        if options.allow_extra_params && template.made_of(path).next().is_none() {
            continue;
        }
        match value {
            Value::Array(array) => quantized.extend(quantize_param(template, path, array)?),
            Value::QArray(_) | Value::Tuple(_) => {
                return Err(PtqError::WrongParam {
                    path: path.clone(),
                    expected: "a float array".to_owned(),
                    found: match value {
                        Value::QArray(q) => format!("an array that is quantized to {} already", q.qtype()),
                        Value::Array(_) | Value::Tuple(_) => "a tuple".to_owned(),
                    },
                });
            }
        }
    }
    Ok(quantized)
}

/// Quantizes one float parameter: what the model makes of it, by path; several values where several ops use it in several
/// ways.
///
/// # Errors
/// As [`quantize_params`].
pub fn quantize_param(
    template: &Template,
    path: &Path,
    array: &Array,
) -> Result<Vec<(Path, Value)>, PtqError> {
    if template.made_of(path).next().is_none() {
        return Err(template.unknown_source(path));
    }
    template
        .made_of(path)
        .map(|parameter| Ok((parameter.path.clone(), quantize_to(parameter, path, array)?)))
        .collect()
}

/// What a parameter is when it is made from a float parameter.
pub(crate) fn quantize_to(parameter: &Parameter, path: &Path, array: &Array) -> Result<Value, PtqError> {
    match (&parameter.slot, &parameter.ty) {
        (Some(Slot::Weight(slot)), _) => round_to_nearest(slot, array),
        (None, Type::Array(expected)) => {
            check_type(path, expected, array)?;
            Ok(Value::Array(array.clone()))
        }
        (Some(Slot::Statistic(_)) | None, ty) => Err(PtqError::WrongParam {
            path: path.clone(),
            expected: ty.to_string(),
            found: array_type(array).to_string(),
        }),
    }
}

/// The quantized form of a slot's source.
fn round_to_nearest(slot: &WeightSlot, array: &Array) -> Result<Value, PtqError> {
    let path = &slot.source;
    check_type(path, &slot.source_type, array)?;
    let fail = |error: QuantError| PtqError::Param { path: path.clone(), error };
    // Checked before data is moved, so that the index is the one in the file.
    check_finite(array).map_err(fail)?;
    let mut prepared = array.clone();
    for step in &slot.prep {
        prepared = match step {
            Prep::Reshape(shape) => prepared.reshape(shape),
            Prep::Transpose(permutation) => prepared.transpose(permutation),
            Prep::Slice(dims) => {
                let pick = |f: fn(&qwix_graph::SliceDim) -> usize| dims.iter().map(f).collect::<Vec<_>>();
                prepared.slice(&pick(|d| d.start), &pick(|d| d.limit), &pick(|d| d.stride))
            }
        }
        .map_err(|e| fail(e.into()))?;
    }
    quantize(&prepared, &slot.how).map(Value::QArray).map_err(fail)
}

fn array_type(array: &Array) -> ArrayType {
    ArrayType::new(array.dtype(), array.shape())
}

fn check_type(path: &Path, expected: &ArrayType, array: &Array) -> Result<(), PtqError> {
    let found = array_type(array);
    if found == *expected {
        return Ok(());
    }
    Err(PtqError::WrongParam { path: path.clone(), expected: expected.to_string(), found: found.to_string() })
}
