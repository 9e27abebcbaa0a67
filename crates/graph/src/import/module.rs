//! A module's outer levels, read without decoding its instructions.

use std::collections::HashMap;

use prost::Message as _;

use super::error::{ImportError, quoted};
use super::wire::{Fields, Value};
use crate::passes::inline::MAX_NODES;
use crate::proto::{HloInstructionProto, InstructionHead};

/// The most bytes of an instruction that are not data (a literal's values, a custom call's configuration). Decoded, such
/// bytes may take a hundred times their size.
const MAX_INSTRUCTION: usize = 1 << 20;

/// The module's bytes: all of them, or those inside an `HloProto`.
///
/// An `HloProto` has fields 1 (the module) and 3 (buffers) and no others; a module has its entry computation's name or
/// id, fields 2 and 6, as well.
pub(super) fn module_bytes(bytes: &[u8]) -> Result<&[u8], ImportError> {
    let not_hlo = |reason: String| ImportError::NotHlo { reason };
    if bytes.is_empty() {
        return Err(not_hlo("it is empty".to_owned()));
    }
    let mut inner = None;
    for field in Fields::new(bytes) {
        match field.map_err(not_hlo)? {
            (1, Value::Bytes(module)) => inner = Some(module),
            (3, _) => {}
            _ => return Ok(bytes),
        }
    }
    inner.ok_or_else(|| not_hlo("it has no module".to_owned()))
}

/// A module whose computations are not decoded yet.
pub(super) struct Module<'a> {
    pub name: &'a str,
    pub computations: Vec<RawComputation<'a>>,
    pub by_id: HashMap<i64, usize>,
    pub entry: usize,
}

pub(super) struct RawComputation<'a> {
    pub name: &'a str,
    id: i64,
    pub root: i64,
    instructions: Vec<&'a [u8]>,
}

impl<'a> Module<'a> {
    pub fn read(bytes: &'a [u8]) -> Result<Self, ImportError> {
        let (mut name, mut entry_name, mut entry_id) = ("", "", None);
        let mut computations = Vec::new();
        for field in Fields::new(bytes) {
            field
                .and_then(|(number, value)| {
                    match number {
                        1 => name = value.text()?,
                        2 => entry_name = value.text()?,
                        3 => computations.push(RawComputation::read(value.bytes()?)?),
                        6 => entry_id = Some(value.int()?),
                        _ => {}
                    }
                    Ok(())
                })
                .map_err(|reason| ImportError::NotHlo { reason })?;
        }
        let wrong = |reason| ImportError::Module { module: quoted(name), reason };
        if computations.is_empty() {
            return Err(wrong("it has no computations".to_owned()));
        }
        let mut by_id = HashMap::new();
        for (index, computation) in computations.iter().enumerate() {
            if let Some(other) = by_id.insert(computation.id, index) {
                return Err(wrong(format!(
                    "computations `{}` and `{}` have the same id {}",
                    quoted(computations[other].name),
                    quoted(computation.name),
                    computation.id
                )));
            }
        }
        let entry = match entry_id {
            Some(id) => by_id.get(&id).copied(),
            None => computations.iter().position(|computation| computation.name == entry_name),
        };
        let entry = entry.ok_or_else(|| {
            wrong(format!(
                "its entry computation `{}` (id {}) is not among its {} computations",
                quoted(entry_name),
                entry_id.unwrap_or(0),
                computations.len()
            ))
        })?;
        Ok(Module { name, computations, by_id, entry })
    }
}

impl<'a> RawComputation<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, String> {
        let mut computation = RawComputation { name: "", id: 0, root: 0, instructions: Vec::new() };
        for field in Fields::new(bytes) {
            let mut read = |(number, value): (u32, Value<'a>)| {
                match number {
                    1 => computation.name = value.text()?,
                    2 => computation.instructions.push(value.bytes()?),
                    5 => computation.id = value.int()?,
                    6 => computation.root = value.int()?,
                    _ => {}
                }
                Ok(())
            };
            field
                .and_then(&mut read)
                .map_err(|reason: String| format!("computation `{}`: {reason}", quoted(computation.name)))?;
        }
        Ok(computation)
    }

    /// What says how the instructions hang together.
    pub fn heads(&self) -> Result<Vec<InstructionHead>, ImportError> {
        let wrong = |reason| ImportError::Computation { computation: quoted(self.name), reason };
        let count = self.instructions.len();
        if count as u64 > MAX_NODES {
            return Err(wrong(format!("found {count} instructions, expected at most {MAX_NODES}")));
        }
        let decode = |(index, bytes): (usize, &&[u8])| {
            let undecodable =
                |reason| wrong(format!("instruction {index} of {count} cannot be decoded: {reason}"));
            match structure_size(bytes).map_err(undecodable)? {
                size if size > MAX_INSTRUCTION => Err(wrong(format!(
                    "instruction {index} of {count} has {size} bytes without its data, expected at most {MAX_INSTRUCTION}"
                ))),
                _ => InstructionHead::decode(*bytes).map_err(|error| undecodable(error.to_string())),
            }
        };
        self.instructions.iter().enumerate().map(decode).collect()
    }

    /// All of an instruction.
    pub fn instruction(&self, index: usize) -> Result<HloInstructionProto, ImportError> {
        let bytes = self.instructions.get(index).copied().unwrap_or_default();
        HloInstructionProto::decode(bytes).map_err(|error| ImportError::Computation {
            computation: quoted(self.name),
            reason: format!("instruction {index} of {} cannot be decoded: {error}", self.instructions.len()),
        })
    }
}

/// How many bytes of an instruction describe it: all but a literal's values and a custom call's configuration.
fn structure_size(bytes: &[u8]) -> Result<usize, String> {
    let (literal, literal_shape, backend_config) = (8, 1, 43);
    let mut size = bytes.len();
    for field in Fields::new(bytes) {
        match field? {
            (number, Value::Bytes(value)) if number == backend_config => size -= value.len(),
            (number, Value::Bytes(value)) if number == literal => {
                size -= value.len();
                for field in Fields::new(value) {
                    match field? {
                        (number, Value::Bytes(shape)) if number == literal_shape => size += shape.len(),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Ok(size)
}
