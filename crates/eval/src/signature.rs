//! Holds parameters and inputs against a graph's signature.

use qwix_array::Array;
use qwix_graph::{Graph, Parameter, Role, nearest};

use crate::{EvalError, Params, Value};

/// The variables of a graph by parameter number; `None` where an input goes.
///
/// # Errors
/// When a variable is missing, one is too many, or one is of another type than the graph's.
pub fn bind_variables(graph: &Graph, mut params: Params) -> Result<Vec<Option<Value>>, EvalError> {
    let mut bound = Vec::with_capacity(graph.parameters.len());
    for parameter in &graph.parameters {
        bound.push(match parameter.role {
            Role::Input => None,
            Role::Variable => {
                let value = params.remove(&parameter.path).ok_or_else(|| EvalError::MissingParam {
                    path: parameter.path.clone(),
                    expected: parameter.ty.to_string(),
                })?;
                check(parameter, format!("parameter `{}`", parameter.path), &value)?;
                Some(value)
            }
        });
    }
    match params.into_keys().next() {
        None => Ok(bound),
        Some(path) => {
            let known = graph.variables().map(|(_, p)| p.path.as_str());
            let hint = nearest(path.as_str(), known).map(|near| format!(" (did you mean `{near}`?)"));
            let hint = hint.unwrap_or_default();
            Err(EvalError::ExtraParam { path, hint })
        }
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
