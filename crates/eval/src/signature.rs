//! Holds parameters and inputs against a graph's signature.

use std::collections::BTreeMap;

use qwix_array::Array;
use qwix_graph::{Graph, Parameter, Path, Role, nearest};

use crate::{EvalError, Value};

/// The variables of a graph as they come, one by one and in any order. Each is held against the graph's signature, and
/// kept as the backend wants it.
pub struct Variables<T> {
    parameters: Vec<Parameter>,
    /// The numbers of the variables among the parameters.
    numbers: BTreeMap<Path, usize>,
    kept: Vec<Option<T>>,
}

impl<T> Variables<T> {
    /// Those of a graph, none of which is there yet.
    pub fn of(graph: &Graph) -> Self {
        let numbers = graph.variables().map(|(number, p)| (p.path.clone(), number)).collect();
        let parameters = graph.parameters.clone();
        Variables { kept: parameters.iter().map(|_| None).collect(), numbers, parameters }
    }

    /// Checks a variable, and keeps what `keep` makes of it.
    ///
    /// # Errors
    /// When the graph does not have the variable, it was given already, or it is of another type than the graph's; or
    /// what `keep` says.
    pub fn put(
        &mut self,
        path: &Path,
        value: Value,
        keep: impl FnOnce(Value) -> Result<T, EvalError>,
    ) -> Result<(), EvalError> {
        let number = self.numbers.get(path).copied();
        let place =
            number.and_then(|number| Some((self.parameters.get(number)?, self.kept.get_mut(number)?)));
        let Some((parameter, kept)) = place else {
            let known = self.numbers.keys().map(Path::as_str);
            let hint = nearest(path.as_str(), known).map(|near| format!(" (did you mean `{near}`?)"));
            return Err(EvalError::ExtraParam { path: path.clone(), hint: hint.unwrap_or_default() });
        };
        if kept.is_some() {
            return Err(EvalError::RepeatedParam { path: path.clone() });
        }
        check(parameter, format!("parameter `{path}`"), &value)?;
        *kept = Some(keep(value)?);
        Ok(())
    }

    /// What was kept, by parameter number; `None` where an input goes.
    ///
    /// # Errors
    /// When a variable is missing.
    pub fn finish(self) -> Result<Vec<Option<T>>, EvalError> {
        for (parameter, kept) in self.parameters.iter().zip(&self.kept) {
            match parameter.role {
                Role::Variable if kept.is_none() => {
                    return Err(EvalError::MissingParam {
                        path: parameter.path.clone(),
                        expected: parameter.ty.to_string(),
                    });
                }
                Role::Variable | Role::Input => {}
            }
        }
        Ok(self.kept)
    }
}

/// Makes sure that inputs are as many as the graph takes, and of its types.
///
/// # Errors
/// When they are not; the first that is not is named.
pub fn check_inputs(graph: &Graph, inputs: &[Array]) -> Result<(), EvalError> {
    let expected: Vec<&Parameter> = graph.inputs().map(|(_, p)| p).collect();
    if expected.len() != inputs.len() {
        return Err(EvalError::InputCount { expected: expected.len(), found: inputs.len() });
    }
    for (number, (parameter, input)) in expected.into_iter().zip(inputs).enumerate() {
        check(parameter, format!("input {number} `{}`", parameter.path), &Value::Array(input.clone()))?;
    }
    Ok(())
}

fn check(parameter: &Parameter, what: String, value: &Value) -> Result<(), EvalError> {
    if value.is_of(&parameter.ty) {
        return Ok(());
    }
    Err(EvalError::WrongType { what, expected: parameter.ty.to_string(), found: value.describe() })
}
