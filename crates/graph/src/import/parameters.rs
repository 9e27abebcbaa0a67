//! What the entry computation's parameters are for.

use std::collections::{BTreeSet, HashSet};

use crate::key_path::CACHE;
use crate::{Computation, Graph, KeyPath, Node, Parameter, Path, Role};

/// Arguments that hold a model's variables.
const VARIABLE_ARGUMENTS: [&str; 4] = ["params", "variables", "state", "weights"];

/// The collection that keeps its plain paths when two collide.
const PARAMS: &str = "params";

/// The entry's parameters by number, with paths that are unique among variables and among inputs.
pub(crate) fn signature(entry: &Computation) -> Vec<Parameter> {
    let nodes: Vec<&Node> = entry.parameters().into_iter().map(|id| entry.node(id)).collect();
    let mut parameters: Vec<Parameter> = nodes.iter().map(|node| parameter(node)).collect();
    let mut taken = HashSet::new();
    let keeps_path = |parameter: &Parameter| {
        parameter.key_path.as_ref().is_none_or(|key_path| key_path.collection().is_none_or(|c| c == PARAMS))
    };
    // Those of `params` choose first.
    let (first, second): (Vec<usize>, Vec<usize>) =
        (0..parameters.len()).partition(|&number| keeps_path(&parameters[number]));
    for number in first.into_iter().chain(second) {
        let parameter = &parameters[number];
        let path = unique(parameter, &nodes[number].name, &taken);
        taken.insert((parameter.role, path.clone()));
        parameters[number].path = path;
    }
    parameters
}

/// A parameter with the path that it should have.
fn parameter(node: &Node) -> Parameter {
    let key_path = KeyPath::parse(&node.metadata.op_name);
    let (role, ambiguous) = role_of(&node.metadata.op_name);
    let path = match (&key_path, role) {
        (None, _) => Path::new(&node.name),
        (Some(key_path), Role::Variable) => key_path.path(),
        (Some(key_path), Role::Input) => key_path.path_with_argument(),
    };
    Parameter { path, key_path, role, ambiguous, ty: node.ty.clone(), slot: None }
}

/// What a parameter of this name is for, and whether that is a guess.
pub(crate) fn role_of(op_name: &str) -> (Role, bool) {
    match KeyPath::parse(op_name) {
        None => (Role::Input, true),
        Some(key_path) => {
            let is_variable = match key_path.collection() {
                // A cache stands beside the variables and is none: every call passes another one.
                Some(collection) => collection != CACHE,
                None => {
                    VARIABLE_ARGUMENTS.contains(&key_path.argument.as_str()) && !key_path.keys.is_empty()
                        || is_nnx_variable(op_name)
                }
            };
            if is_variable { (Role::Variable, false) } else { (Role::Input, !key_path.keys.is_empty()) }
        }
    }
}

/// Only NNX's variables end like that.
fn is_nnx_variable(op_name: &str) -> bool {
    op_name.ends_with(".value")
}

/// The parameter's path, or one with more of its key path, or in the end with a number.
fn unique(parameter: &Parameter, name: &str, taken: &HashSet<(Role, Path)>) -> Path {
    let mut candidates = vec![parameter.path.clone()];
    if let Some(key_path) = &parameter.key_path {
        candidates.extend([key_path.path_with_collection(), key_path.path_with_argument()]);
    }
    candidates.push(Path::new(name));
    let free = |path: &Path| !path.is_root() && !taken.contains(&(parameter.role, path.clone()));
    if let Some(path) = candidates.into_iter().find(free) {
        return path;
    }
    let mut number = 1usize;
    loop {
        let path = Path::new(&format!("{name}.{number}"));
        if free(&path) {
            return path;
        }
        number += 1;
    }
}

impl Graph {
    /// Corrects guesses: an input that might be a variable (`ambiguous`) becomes one when the checkpoint holds its path
    /// and no variable has it yet. The path is then the keys' without the argument, as a variable's is.
    pub fn resolve_roles(&mut self, checkpoint: &BTreeSet<Path>) {
        let mut taken: HashSet<Path> =
            self.variables().map(|(_, parameter)| parameter.path.clone()).collect();
        for parameter in &mut self.parameters {
            if parameter.role != Role::Input || !parameter.ambiguous {
                continue;
            }
            let candidates = match &parameter.key_path {
                Some(key_path) => {
                    vec![key_path.path(), key_path.path_with_collection(), key_path.path_with_argument()]
                }
                None => vec![parameter.path.clone()],
            };
            let found = candidates.into_iter().find(|path| {
                // A position in `*args` is no name: a checkpoint's `0` would be found by accident.
                !path.as_str().bytes().all(|b| b.is_ascii_digit())
                    && checkpoint.contains(path)
                    && !taken.contains(path)
            });
            if let Some(path) = found {
                taken.insert(path.clone());
                *parameter = Parameter { path, role: Role::Variable, ambiguous: false, ..parameter.clone() };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use qwix_array::DType;

    use super::*;
    use crate::{Metadata, NodeId, Op, Type};

    fn entry(op_names: &[&str]) -> Computation {
        let node = |(number, op_name): (usize, &&str)| Node {
            name: format!("p{number}"),
            op: Op::Parameter(number),
            operands: vec![],
            ty: Type::array(DType::F32, []),
            metadata: Metadata { op_name: (*op_name).to_owned(), id: 0 },
            sharding: None,
        };
        let nodes = op_names.iter().enumerate().map(node).collect();
        Computation { name: "main".to_owned(), nodes, root: NodeId(0) }
    }

    /// One letter a parameter: variable, input, or input that may be a variable; and its path.
    fn described(parameters: &[Parameter]) -> Vec<String> {
        let letter = |parameter: &Parameter| match (parameter.role, parameter.ambiguous) {
            (Role::Variable, false) => "v",
            (Role::Input, false) => "i",
            (Role::Input, true) => "?",
            (Role::Variable, true) => "!",
        };
        parameters.iter().map(|parameter| format!("{} {}", letter(parameter), parameter.path)).collect()
    }

    #[test]
    fn roles_and_paths() {
        let entry = entry(&[
            "variables['batch_stats']['norm']['x']",
            "variables['params']['norm']['x']",
            "variables['params']['a']['w']",
            "variables['cache']['a']['k']",
            "state['layers'][0]['kernel'].value",
            "model.a.kernel.value",
            "p['enc']['w']",
            "state['enc']['w']",
            "args[0]",
            "x",
            "x",
            "",
            "weights['a']['w']",
            "params",
        ]);
        assert_eq!(
            described(&signature(&entry)),
            [
                "v batch_stats/norm/x",
                "v norm/x",
                "v a/w",
                "? variables/cache/a/k",
                "v layers/0/kernel",
                "v a/kernel",
                "? p/enc/w",
                "v enc/w",
                "? args/0",
                "i x",
                "i p10",
                "? p11",
                "v weights/a/w",
                "i params",
            ]
        );
    }

    #[test]
    fn a_checkpoint_decides() {
        let entry =
            entry(&["p['enc']['w']", "p['dec']['w']", "params['dec']['w']", "args[0]", "args[1]['b']", ""]);
        let parameters = signature(&entry);
        let mut graph = Graph { name: "m".to_owned(), entry: entry.into(), parameters };
        let before = ["? p/enc/w", "? p/dec/w", "v dec/w", "? args/0", "? args/1/b", "? p5"];
        assert_eq!(described(&graph.parameters), before);
        graph.resolve_roles(&BTreeSet::new());
        assert_eq!(described(&graph.parameters), before);
        let checkpoint = ["enc/w", "dec/w", "0", "1/b", "p5"].into_iter().map(Path::new).collect();
        graph.resolve_roles(&checkpoint);
        assert_eq!(
            described(&graph.parameters),
            ["v enc/w", "? p/dec/w", "v dec/w", "? args/0", "v 1/b", "v p5"]
        );
    }
}
