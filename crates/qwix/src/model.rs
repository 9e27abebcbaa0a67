//! A model: a graph with a file's name, and how its parameters are found in a checkpoint.

use std::collections::BTreeSet;
use std::ops::Deref;
use std::path::Path as FilePath;
use std::sync::Arc;

use qwix_array::Array;
use qwix_eval::{Backend, EvalError, Executable, Params, Value};
use qwix_graph::{ArrayType, Graph, Metadata, Node, NodeId, Op, Parameter, Path, Type, nearest};

use crate::files::{MAX_MODEL, read_file};
use crate::package::{stored, value_of};
use crate::tensors::widened_dtype;
use crate::{Checkpoint, Error, Result, TensorFile, narrowed};

/// A model: a [`Graph`], float or quantized.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    graph: Graph,
}

impl Model {
    /// Reads a model: an `HloModuleProto` or `HloProto` as JAX writes it, or HLO text when the name ends in `.hlo` or
    /// `.txt`. No parameters are needed.
    ///
    /// # Errors
    /// When the file cannot be read or is no model.
    pub fn load(file: impl AsRef<FilePath>) -> Result<Self> {
        let file = file.as_ref();
        let bytes = read_file(file, MAX_MODEL)?;
        let bad = |reason: String| Error::Model { file: file.to_owned(), reason };
        let is_text = file.extension().is_some_and(|e| e == "hlo" || e == "txt");
        let graph = if is_text {
            let text = String::from_utf8(bytes).map_err(|_| bad("is not UTF-8 text".into()))?;
            Graph::from_text(&text).map_err(|e| bad(e.to_string()))?
        } else {
            Graph::from_hlo_proto(&bytes).map_err(|e| bad(e.to_string()))?
        };
        Ok(Model { graph })
    }

    /// The graph.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Settles which parameters are variables and which inputs, where their names leave that open: those that the
    /// checkpoint holds are variables.
    pub fn resolve_roles(&mut self, checkpoint: &Checkpoint) {
        self.resolve_roles_of(&checkpoint.paths());
    }

    /// As [`resolve_roles`](Self::resolve_roles), by the paths of the variables.
    pub fn resolve_roles_of(&mut self, variables: &BTreeSet<Path>) {
        self.graph.resolve_roles(variables);
    }

    /// Makes sure that a checkpoint holds every variable in the type that the model wants, and nothing else (unless
    /// `allow_extra_params`), without reading it. Returns the paths that are too many. A quantized variable is its parts,
    /// `<path>/qvalue`, `<path>/scale` and `<path>/zero_point`, as they are or as [`widened`](crate::widened) makes them.
    ///
    /// # Errors
    /// Names the first parameter that is missing, of another type, or too many.
    pub fn check_params(&self, checkpoint: &Checkpoint, allow_extra_params: bool) -> Result<BTreeSet<Path>> {
        let of_file = |source| Error::Params { file: checkpoint.name().to_owned(), source: Box::new(source) };
        let mut extra = checkpoint.paths();
        let mut wanted = Vec::new();
        for (_, parameter) in self.graph.variables() {
            let keys = stored(parameter)?.into_iter().map(|(key, ty)| (Path::new(&key), ty, parameter));
            wanted.extend(keys);
        }
        for (path, ty, parameter) in &wanted {
            let found = checkpoint.type_of(path).ok_or_else(|| {
                let held = checkpoint.paths();
                let wanted: BTreeSet<Path> = wanted.iter().map(|(path, ..)| path.clone()).collect();
                let more = match wanted.difference(&held).count().saturating_sub(1) {
                    0 => String::new(),
                    more => format!(" (and {more} more are missing)"),
                };
                let instead = if held.contains(&parameter.path) {
                    format!("; the file has `{}`, which is not quantized", parameter.path)
                } else {
                    elsewhere(path, held.difference(&wanted))
                };
                let reason = format!("is missing: expected {ty}{instead}{more}");
                Error::checkpoint(checkpoint.name(), Some(path.as_str()), reason)
            })?;
            let is_part = matches!(parameter.ty, Type::QArray(_));
            let wide = ArrayType::new(widened_dtype(ty.dtype), ty.shape.clone());
            if found != ty && !(is_part && *found == wide) {
                return Err(of_file(EvalError::WrongType {
                    what: format!("parameter `{path}`"),
                    expected: ty.to_string(),
                    found: found.to_string(),
                }));
            }
            extra.remove(path);
        }
        match extra.first() {
            Some(path) if !allow_extra_params => Err(of_file(EvalError::ExtraParam {
                path: path.clone(),
                hint: "; leave it out of the file, or allow extra parameters".to_owned(),
            })),
            _ => Ok(extra),
        }
    }

    /// The variables from a checkpoint, those of the model and no other, over the mapped file (see [`Checkpoint::map`]).
    ///
    /// # Errors
    /// As [`Model::check_params`], or when the checkpoint cannot be read or has changed.
    pub fn read_params(&self, checkpoint: &Checkpoint, allow_extra_params: bool) -> Result<Params> {
        self.check_params(checkpoint, allow_extra_params)?;
        let mut params = Params::new();
        for (_, parameter) in self.graph.variables() {
            let mut arrays = Vec::new();
            for (key, ty) in stored(parameter)? {
                let array = checkpoint.map(&Path::new(&key))?;
                let fitting =
                    if array.dtype() == ty.dtype { Some(array) } else { narrowed(&array, ty.dtype) };
                arrays.push(fitting.ok_or_else(|| {
                    let reason = format!("has a value that {} has not", ty.dtype);
                    Error::checkpoint(checkpoint.name(), Some(&key), reason)
                })?);
            }
            params.insert(parameter.path.clone(), value_of(parameter, arrays)?);
        }
        Ok(params)
    }

    /// Reads the inputs of one call: keys `0`, `1`, … in the model's order, or the inputs' names. A dtype that the
    /// format does not have is taken in the wider form that [`widened`](crate::widened) gives.
    ///
    /// # Errors
    /// Names the first input that is missing, of another type, or too many.
    pub fn read_inputs(&self, file: &TensorFile) -> Result<Vec<Array>> {
        let inputs: Vec<&Parameter> = self.graph.inputs().map(|(_, p)| p).collect();
        let by_number = file.iter().all(|(key, _)| key.parse::<usize>().is_ok_and(|n| n < inputs.len()));
        let mut used = BTreeSet::new();
        let mut arrays = Vec::new();
        for (number, parameter) in inputs.iter().enumerate() {
            let name = parameter.path.as_str();
            let keys = [number.to_string(), name.to_owned(), name.replace('/', ".")];
            let key = keys.iter().take(if by_number { 1 } else { 3 }).find(|key| file.get(key).is_some());
            let key = key.ok_or_else(|| {
                let reason = format!(
                    "is missing: input {number} of the model, `{name}`, {}; the file holds {}",
                    parameter.ty,
                    listed(file.iter().map(|(key, _)| key))
                );
                Error::checkpoint(file.name(), Some(&keys[0]), reason)
            })?;
            used.insert(key.clone());
            let array = file.read(key)?;
            let wanted = parameter.ty.as_array().filter(|ty| ty.shape == array.shape());
            let fitting = wanted.and_then(|ty| {
                if ty.dtype == array.dtype() { Some(array.clone()) } else { narrowed(&array, ty.dtype) }
            });
            arrays.push(fitting.ok_or_else(|| {
                let found = Value::Array(array).describe();
                let reason = format!("input {number} `{name}` is {}, found {found}", parameter.ty);
                Error::checkpoint(file.name(), Some(key), reason)
            })?);
        }
        match file.iter().find(|(key, _)| !used.contains(*key)) {
            Some((key, _)) => {
                let names = listed(inputs.iter().map(|p| p.path.as_str()));
                let reason = format!("is no input of the model, which takes {names}");
                Err(Error::checkpoint(file.name(), Some(key), reason))
            }
            None => Ok(arrays),
        }
    }

    /// The types of the outputs, tuples flattened, as they come from a run.
    pub fn outputs(&self) -> Vec<Type> {
        fn flatten(ty: &Type, into: &mut Vec<Type>) {
            match ty {
                Type::Tuple(types) => types.iter().for_each(|ty| flatten(ty, into)),
                Type::Array(_) | Type::QArray(_) | Type::Token | Type::Opaque(_) => into.push(ty.clone()),
            }
        }
        let mut types = Vec::new();
        if let Some(root) = self.graph.entry.nodes.get(self.graph.entry.root.index()) {
            flatten(&root.ty, &mut types);
        }
        types
    }

    /// A model whose outputs are this one's and then the values of these nodes of the entry computation: to look
    /// inside.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn with_probes(&self, nodes: &[NodeId]) -> Result<Model> {
        let mut graph = self.graph.clone();
        let entry = Arc::make_mut(&mut graph.entry);
        let operands: Vec<NodeId> = [entry.root].iter().chain(nodes).copied().collect();
        let types = operands.iter().map(|id| entry.nodes.get(id.index()).map(|n| n.ty.clone()));
        let ty = types.collect::<Option<Vec<_>>>().map(Type::Tuple);
        let ty =
            ty.ok_or_else(|| Error::Unsupported("a probe is on a node that the model does not have".into()))?;
        let mut name = "probes".to_owned();
        while entry.nodes.iter().any(|n| n.name == name) {
            name.push('.');
        }
        entry.root = NodeId(entry.nodes.len() as u32);
        let metadata = Metadata::default();
        entry.nodes.push(Node { name, op: Op::Tuple, operands, ty, metadata, sharding: None });
        Ok(Model { graph })
    }

    /// The model as a serialized `HloModuleProto` in plain HLO, which any XLA compiles. A quantized parameter becomes two
    /// or three of them: `<path>/qvalue`, `<path>/scale` and `<path>/zero_point`; an op on quantized arrays becomes a
    /// call of what it computes. [`Model::load`] reads all of it back: types, ops, and how the parameters are made.
    ///
    /// Three things are written as XLA takes them, and come back so: bounds of a clamp have the shape of what they bound,
    /// operands of products that are narrower than a byte are widened, and a result in nested tuples is a flat one.
    ///
    /// # Errors
    /// When the model has something that HLO cannot say, or that was read and not understood.
    pub fn to_hlo_proto(&self) -> Result<Vec<u8>> {
        Ok(qwix_pjrt::Program::new(&qwix_pjrt::portable(&self.graph)?)?.bytes().to_vec())
    }

    /// Prepares the model for running.
    ///
    /// # Errors
    /// When the parameters are not the model's, or the backend cannot run it.
    pub fn compile(&self, backend: &dyn Backend, params: Params) -> Result<Box<dyn Executable>> {
        Ok(backend.compile(&self.graph, params)?)
    }
}

impl Deref for Model {
    type Target = Graph;

    fn deref(&self) -> &Graph {
        &self.graph
    }
}

impl From<Graph> for Model {
    fn from(graph: Graph) -> Self {
        Model { graph }
    }
}

/// What a checkpoint may have in place of a path that it does not hold: the same below another one, or one like it.
fn elsewhere<'a>(path: &Path, extra: impl Iterator<Item = &'a Path> + Clone) -> String {
    let tail = format!("/{path}");
    let mut texts = extra.map(Path::as_str);
    let found = texts.clone().find(|p| p.ends_with(&tail)).or_else(|| nearest(path.as_str(), &mut texts));
    match found {
        Some(found) => format!("; the file has `{found}`, rename that to `{path}`"),
        None => String::new(),
    }
}

/// Names for a message, not more than fit a line.
fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut names: Vec<String> = names.map(|n| format!("`{n}`")).collect();
    if names.is_empty() {
        return "nothing".to_owned();
    }
    let more = names.len().saturating_sub(8);
    names.truncate(8);
    if more > 0 {
        names.push(format!("{more} more"));
    }
    names.join(", ")
}
