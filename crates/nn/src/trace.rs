//! From a module to a graph, to parameters, to outputs.

use std::collections::BTreeMap;

use qwix_array::Array;
use qwix_eval::{Backend, Params, Value};
use qwix_graph::{ArrayType, Graph, Path};

use crate::module::{InputReader, Inputs, Outputs};
use crate::random::Key;
use crate::tracer::{Tracer, Variable};
use crate::{Module, NnError, Result, Scope};

/// The graph of a model on inputs of these types. Nothing is computed, and no parameter is allocated.
///
/// Its parameters are first the variables (in JAX's order, under Linen's paths), then the inputs, `x` or `x0`, `x1`, …;
/// used or not. Ops are named as JAX names them, so that rules find modules and ops as in an exported model.
///
/// # Errors
/// What the model refuses; the first error that a tensor carried.
pub fn trace<M: Module<I, O> + ?Sized, I: Inputs, O: Outputs>(
    module: &M,
    inputs: &[ArrayType],
) -> Result<Graph> {
    Ok(traced(module, inputs)?.0)
}

type Traced = (Graph, Vec<(Path, Variable)>);

fn traced<M: Module<I, O> + ?Sized, I: Inputs, O: Outputs>(
    module: &M,
    inputs: &[ArrayType],
) -> Result<Traced> {
    let class = module.class_name();
    let tracer = Tracer::new("jit_apply");
    let tensors = inputs
        .iter()
        .enumerate()
        .map(|(i, ty)| {
            let name = if inputs.len() == 1 { "x".to_owned() } else { format!("x{i}") };
            tracer.input(&name, ty)
        })
        .collect::<Result<Vec<_>>>()?;
    let mut reader = InputReader::new(tensors);
    let given = I::read(&mut reader)?;
    reader.finish()?;
    let scope = Scope::root(&tracer);
    let mut outputs = Vec::new();
    tracer.inside(&class, || module.call(&scope, given))?.write(&mut outputs);
    tracer.finish(&outputs)
}

/// The model's variables, each initialised with a key of its own, as `Module.init` of Flax does: the same key gives
/// the same parameters.
///
/// # Errors
/// As [`trace`], and when an initializer refuses the shape or dtype of its parameter.
pub fn init<M: Module<I, O> + ?Sized, I: Inputs, O: Outputs>(
    module: &M,
    key: Key,
    inputs: &[ArrayType],
) -> Result<Params> {
    let (_, variables) = traced(module, inputs)?;
    let mut params = Params::new();
    for (path, variable) in variables {
        let key = match &variable.rng {
            Some(data) => key.fold_in_bytes(data),
            None => key,
        };
        let array = variable.init.call(key, &variable.ty)?;
        let found = ArrayType::new(array.dtype(), array.shape());
        if found != variable.ty {
            return Err(NnError::VariableChanged {
                path: path.to_string(),
                expected: variable.ty.to_string(),
                found: format!("{found}, as its initializer makes it,"),
            });
        }
        params.insert(path, Value::Array(array));
    }
    Ok(params)
}

/// The model's variables as types: what [`init`] would make, without an element of it.
///
/// # Errors
/// As [`trace`].
pub fn abstract_init<M: Module<I, O> + ?Sized, I: Inputs, O: Outputs>(
    module: &M,
    inputs: &[ArrayType],
) -> Result<BTreeMap<Path, ArrayType>> {
    let (_, variables) = traced(module, inputs)?;
    Ok(variables.into_iter().map(|(path, variable)| (path, variable.ty)).collect())
}

/// The model's outputs on these inputs, with these variables: traced, compiled and run. To run it often, compile the
/// [`trace`]d graph once.
///
/// # Errors
/// As [`trace`]; when a variable is missing, too many or of another type than the model's; when the backend cannot run
/// it.
pub fn apply<M: Module<I, O> + ?Sized, I: Inputs, O: Outputs>(
    module: &M,
    params: &Params,
    inputs: &[Array],
    backend: &dyn Backend,
) -> Result<Vec<Array>> {
    let types: Vec<ArrayType> = inputs.iter().map(|a| ArrayType::new(a.dtype(), a.shape())).collect();
    let graph = trace(module, &types)?;
    Ok(backend.compile(&graph, params.clone())?.run(inputs)?)
}
