//! Float variables fed to a quantized model: quantized on the way, and given back quantized.

use qwix_array::Array;
use qwix_eval::{Backend, Params, Value};
use qwix_graph::Parameter;

use crate::quantize_params::quantize_to;
use crate::{PtqError, PtqModel, QuantStats, Template, quantize_stats};

impl PtqModel {
    /// Runs the model on variables that need not be quantized yet, as Qwix does where a quantized module is applied with
    /// mutable variables. Returns the outputs and all variables as the model has them; fed again, those pass as they are.
    ///
    /// Variables are float arrays by the paths of the float model, and values that are quantized already by the paths of
    /// [`PtqModel::abstract_params`]; where one is there, it is not made again. Statistics of activations
    /// ([`QuantStats::to_params`]) may be among them, where the model has static ranges.
    ///
    /// # Errors
    /// Names the variable that the model does not have, that is of another type or cannot be quantized; lists those that
    /// are missing; or why the backend cannot run the model on these inputs.
    pub fn apply_mut(
        &self,
        backend: &dyn Backend,
        variables: &Params,
        inputs: &[Array],
    ) -> Result<(Vec<Array>, Params), PtqError> {
        let variables = quantize_variables(variables, &self.abstract_params())?;
        let eval = |e| PtqError::Eval(Box::new(e));
        let outputs = self.compile(backend, variables.clone()).and_then(|e| e.run(inputs)).map_err(eval)?;
        Ok((outputs, variables))
    }
}

/// Variables as the template wants them, from any mixture of float arrays, statistics and what is quantized already.
///
/// # Errors
/// As [`PtqModel::apply_mut`].
pub fn quantize_variables(variables: &Params, template: &Template) -> Result<Params, PtqError> {
    let given = |p: &Parameter| variables.get(&p.path).is_some_and(|value| value.is_of(&p.ty));
    let (mut ready, mut statistics) = (Params::new(), Params::new());
    for (path, value) in variables {
        let parameter = template.parameters().get(path);
        let passes = parameter.is_some_and(given);
        if passes {
            ready.insert(path.clone(), value.clone());
        }
        match value {
            // A float may pass and be what others are made from as well.
            Value::Array(array) if template.made_of(path).next().is_some() => {
                for made in template.made_of(path).filter(|p| !given(p)) {
                    ready.insert(made.path.clone(), quantize_to(made, path, array)?);
                }
            }
            _ if passes => {}
            _ if parameter.is_some() || template.made_of(path).next().is_some() => {
                let expected = parameter.map_or("a float array".to_owned(), |p| p.ty.to_string());
                return Err(PtqError::WrongParam { path: path.clone(), expected, found: value.describe() });
            }
            _ if template.made_of_statistics(&path.parent()).next().is_some() => {
                statistics.insert(path.clone(), value.clone());
            }
            _ => return Err(template.unknown(path, template.sources().chain(template.parameters().keys()))),
        }
    }
    if !statistics.is_empty() {
        for (path, value) in quantize_stats(&QuantStats::from_params(&statistics)?, template)? {
            ready.entry(path).or_insert(value);
        }
    }
    Ok(template.finish(ready)?)
}
