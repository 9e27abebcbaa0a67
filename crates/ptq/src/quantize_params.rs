//! Float parameters into the parameters of a quantized graph.

use std::collections::BTreeMap;
use std::fmt;

use qwix_array::Array;
use qwix_eval::{Params, Value};
use qwix_graph::{ArrayType, Graph, Parameter, Path, Prep, Slot, Type};
use qwix_quant::{QuantError, check_finite, quantize};

use crate::error::nearest;
use crate::{PtqError, QuantStats};

/// The parameters of a graph: what each is, and what it is made from. Holds no values.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Template {
    parameters: BTreeMap<Path, Parameter>,
    /// For the path of a float parameter, the parameters made from it.
    made_from: BTreeMap<Path, Vec<Path>>,
}

/// What [`quantize_params`] is told beside the parameters.
#[derive(Clone, Copy, Default, Debug)]
pub struct QuantizeParams<'a> {
    /// Skips parameters that the template does not know, instead of refusing them.
    pub allow_extra_params: bool,
    /// Statistics for the static scales of activations.
    pub quant_stats: Option<&'a QuantStats>,
}

impl Template {
    /// The template of a graph's variables.
    pub fn of(graph: &Graph) -> Self {
        let mut template = Template::default();
        for (_, parameter) in graph.variables() {
            let source = parameter.slot.as_ref().map_or(&parameter.path, |slot| &slot.source);
            template.made_from.entry(source.clone()).or_default().push(parameter.path.clone());
            template.parameters.insert(parameter.path.clone(), parameter.clone());
        }
        template
    }

    /// The parameters, by path.
    pub fn parameters(&self) -> &BTreeMap<Path, Parameter> {
        &self.parameters
    }

    /// The paths of the float parameters that it takes.
    pub fn sources(&self) -> impl Iterator<Item = &Path> {
        self.made_from.keys()
    }

    /// The parameters that quantized ones do not hold yet.
    pub fn missing(&self, params: &Params) -> Vec<&Path> {
        self.parameters.keys().filter(|path| !params.contains_key(*path)).collect()
    }
}

impl fmt::Display for Template {
    /// A tree: a line a module, and below it a line a parameter with its type.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut open: Vec<&str> = vec![];
        for (path, parameter) in &self.parameters {
            let segments: Vec<&str> = path.segments().collect();
            let Some((name, modules)) = segments.split_last() else { continue };
            let shared = open.iter().zip(modules).take_while(|(a, b)| a == b).count();
            open.truncate(shared);
            for module in &modules[shared..] {
                writeln!(f, "{}{module}", "  ".repeat(open.len()))?;
                open.push(module);
            }
            write!(f, "{}{name}: {}", "  ".repeat(open.len()), parameter.ty)?;
            match &parameter.slot {
                Some(slot) if slot.source != *path || !slot.prep.is_empty() => {
                    writeln!(f, " from {} {}", slot.source, slot.source_type)?;
                }
                Some(_) | None => writeln!(f)?,
            }
        }
        Ok(())
    }
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
    // No graph has static scales yet, so there is nothing that statistics could be for.
    if let Some(path) = options.quant_stats.and_then(|stats| stats.keys().next()) {
        return Err(PtqError::UnknownParam {
            path: path.clone(),
            hint: "; the model has no static scales, so it takes no statistics".to_owned(),
        });
    }
    let mut quantized = Params::new();
    for (path, value) in params {
        if options.allow_extra_params && !template.made_from.contains_key(path) {
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
    let Some(made) = template.made_from.get(path) else {
        let hint = nearest(path.as_str(), template.made_from.keys().map(Path::as_str));
        return Err(PtqError::UnknownParam {
            path: path.clone(),
            hint: hint.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default(),
        });
    };
    made.iter()
        .filter_map(|target| template.parameters.get(target))
        .map(|parameter| {
            let value = match (&parameter.slot, &parameter.ty) {
                (Some(slot), _) => round_to_nearest(slot, array)?,
                (None, Type::Array(expected)) => {
                    check_type(path, expected, array)?;
                    Value::Array(array.clone())
                }
                (None, ty) => {
                    return Err(PtqError::WrongParam {
                        path: path.clone(),
                        expected: ty.to_string(),
                        found: array_type(array).to_string(),
                    });
                }
            };
            Ok((parameter.path.clone(), value))
        })
        .collect()
}

/// The quantized form of a slot's source.
pub(crate) fn round_to_nearest(slot: &Slot, array: &Array) -> Result<Value, PtqError> {
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
