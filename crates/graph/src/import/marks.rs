//! What a file says of its parameters beside plain HLO → the signature.

use std::collections::BTreeMap;

use super::parameters::signature;
use crate::export::marks::{NAME_SPACE, OP_NAME, QUANTIZED, QUANTIZED_PART};
use crate::passes::lower_quant::composite::PARTS;
use crate::passes::lower_quant::part_types;
use crate::text::{read_quantized, signature as texts};
use crate::{Computation, GraphError, Node, Parameter, Type};

/// Our `frontend_attributes` of the entry's parameters, by number, without the name space.
#[derive(Clone, Default, Debug)]
pub(crate) struct Marks(BTreeMap<usize, BTreeMap<String, String>>);

/// A parameter of the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// The number of the parameter that it is, or is a part of.
    pub number: usize,
    /// Which part of it.
    pub part: Option<usize>,
}

impl Marks {
    /// Adds those of our name space.
    pub(crate) fn add<'t>(&mut self, number: usize, texts: impl IntoIterator<Item = (&'t str, &'t str)>) {
        let ours: BTreeMap<String, String> = texts
            .into_iter()
            .filter_map(|(key, text)| Some((key.strip_prefix(NAME_SPACE)?.to_owned(), text.to_owned())))
            .collect();
        if !ours.is_empty() {
            self.0.insert(number, ours);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn text(&self, number: usize, key: &str) -> Option<&str> {
        self.0.get(&number)?.get(key).map(String::as_str)
    }

    /// The `op_name` of a parameter.
    pub(super) fn op_name<'n>(&'n self, number: usize, node: &'n Node) -> &'n str {
        self.text(number, OP_NAME).unwrap_or(&node.metadata.op_name)
    }

    /// The signature, and what each parameter of the file is in it.
    ///
    /// # Errors
    /// Names the parameter whose attributes are not what a quantized model's are.
    pub(super) fn signature(&self, entry: &Computation) -> Result<(Vec<Parameter>, Vec<Place>), GraphError> {
        let nodes: Vec<&Node> = entry.parameters().into_iter().map(|id| entry.node(id)).collect();
        if self.is_empty() {
            let places = (0..nodes.len()).map(|number| Place { number, part: None }).collect();
            return Ok((signature(entry), places));
        }
        let mut parameters = Vec::new();
        let mut places = Vec::new();
        while let Some(&node) = nodes.get(places.len()) {
            let first = places.len();
            let (parameter, parts) =
                self.parameter(first, &nodes).map_err(|reason| entry.error(node, reason))?;
            let place = |part| Place { number: parameters.len(), part };
            match parts {
                None => places.push(place(None)),
                Some(count) => places.extend((0..count).map(|part| place(Some(part)))),
            }
            parameters.push(parameter);
        }
        Ok((parameters, places))
    }

    /// The parameter that begins with one of the file's, and how many parts it has when it is quantized.
    fn parameter(&self, first: usize, nodes: &[&Node]) -> Result<(Parameter, Option<usize>), String> {
        let known =
            |key: &str| texts::NAMES.contains(&key) || [QUANTIZED, QUANTIZED_PART, OP_NAME].contains(&key);
        let mut keys = self.0.get(&first).into_iter().flat_map(BTreeMap::keys);
        if let Some(key) = keys.find(|key| !known(key)) {
            return Err(format!("the attribute `{NAME_SPACE}{key}` is none that this program knows"));
        }
        let text = |key: &str| self.text(first, key);
        let (ty, parts) = match (text(QUANTIZED), text(QUANTIZED_PART)) {
            (None, None) => (nodes[first].ty.clone(), None),
            (Some(quantized), Some(_)) => {
                let q = read_quantized(quantized)?;
                let types = part_types(&q).map_err(|error| format!("{q}: {error}"))?;
                for (part, (name, ty)) in types.iter().enumerate() {
                    self.part(first, part, nodes, &Type::Array(ty.clone()))
                        .map_err(|reason| format!("{q}: its {name}, parameter {}, {reason}", first + part))?;
                }
                (Type::QArray(q), Some(types.len()))
            }
            (None, Some(part)) => {
                return Err(format!("is the {part} of a quantized parameter, which does not begin with it"));
            }
            (Some(_), None) => {
                return Err(format!("the attribute `{NAME_SPACE}{QUANTIZED_PART}` is missing"));
            }
        };
        let parameter = texts::parameter(text, &ty)?;
        let missing = || format!("the attribute `{NAME_SPACE}path` is missing, which other parameters have");
        Ok((parameter.ok_or_else(missing)?, parts))
    }

    /// That a part of a quantized parameter is there, behind its first one.
    fn part(&self, first: usize, part: usize, nodes: &[&Node], ty: &Type) -> Result<(), String> {
        let number = first + part;
        let Some(node) = nodes.get(number) else { return Err("is missing".to_owned()) };
        if node.ty != *ty {
            return Err(format!("should be {ty}, found {}", node.ty));
        }
        let says = |key: &str| self.text(number, key).unwrap_or("nothing");
        for (key, expected) in
            [(QUANTIZED_PART, PARTS[part]), ("path", self.text(first, "path").unwrap_or("nothing"))]
        {
            if says(key) != expected {
                return Err(format!("says `{NAME_SPACE}{key}` = {:?}, expected {expected:?}", says(key)));
            }
        }
        Ok(())
    }
}
