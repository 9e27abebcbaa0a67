//! What a plugin compiles.

use qwix_graph::passes::{lower_quant, unsafe_instruction};
use qwix_graph::{ArrayType, Computation, Graph, Type};

use crate::spread::Spread;
use crate::{PjrtError, Result};

/// Where protobuf ends.
const MAX_BYTES: usize = i32::MAX as usize;

/// An HLO module, and the types of its parameters and results.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    pub(crate) bytes: Vec<u8>,
    pub(crate) parameters: Vec<ArrayType>,
    pub(crate) results: Vec<ArrayType>,
    pub(crate) spread: Spread,
}

impl Program {
    /// The program of a graph whose parameters are arrays, quantized or not, and whose result is an array or a tuple of
    /// arrays. A quantized parameter is two or three of the program's: qvalue, scale and zero point.
    ///
    /// # Errors
    /// When the graph is not like that, cannot be written as HLO, or is past 2 GiB, or its shardings do not go together.
    pub fn new(graph: &Graph) -> Result<Self> {
        Self::sized(graph.to_hlo_proto()?, graph)
    }

    /// A serialized `HloModuleProto`. It is read once here, so that no plugin sees a module that does not hang
    /// together, and handed on as it is.
    ///
    /// # Errors
    /// When it is no module, or as [`Program::new`].
    pub fn from_hlo_proto(bytes: Vec<u8>) -> Result<Self> {
        let graph =
            Graph::from_hlo_proto(&bytes).map_err(|e| PjrtError::invalid("program", e.to_string()))?;
        graph.verify()?;
        Self::sized(bytes, &graph)
    }

    /// The program of these bytes, which are of this graph.
    fn sized(bytes: Vec<u8>, graph: &Graph) -> Result<Self> {
        check(graph)?;
        let plain = lower_quant(graph)?;
        let (parameters, results) = (parameters(&plain)?, results(&plain.entry)?);
        let spread = Spread::of(&plain, &parameters, &results)?;
        if bytes.len() > MAX_BYTES {
            let reason = format!(
                "has {} bytes, at most {MAX_BYTES} can be; make its constants parameters",
                bytes.len()
            );
            return Err(PjrtError::invalid("program", reason));
        }
        Ok(Program { bytes, parameters, results, spread })
    }

    /// The serialized `HloModuleProto`.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The types of the parameters, by number.
    pub fn parameters(&self) -> &[ArrayType] {
        &self.parameters
    }

    /// Over how many devices its shardings spread it; 1 when it has none.
    pub fn devices(&self) -> usize {
        self.spread.devices
    }

    /// The types of the results.
    pub fn results(&self) -> &[ArrayType] {
        &self.results
    }
}

/// Refuses what would end the process.
fn check(graph: &Graph) -> Result<()> {
    match unsafe_instruction(&graph.entry) {
        None => Ok(()),
        Some(name) => Err(PjrtError::invalid(
            "program",
            format!(
                "instruction `{name}`: XLA may not survive a clamp of an array by scalars; broadcast its bounds"
            ),
        )),
    }
}

fn array(what: String, ty: &Type) -> Result<ArrayType> {
    match ty {
        Type::Array(ty) => Ok(ty.clone()),
        Type::QArray(_) | Type::Tuple(_) | Type::Token | Type::Opaque(_) => {
            Err(PjrtError::invalid(what, format!("is {ty}, expected an array")))
        }
    }
}

fn parameters(graph: &Graph) -> Result<Vec<ArrayType>> {
    graph.parameters.iter().map(|p| array(format!("parameter `{}`", p.path), &p.ty)).collect()
}

fn results(entry: &Computation) -> Result<Vec<ArrayType>> {
    let root = entry
        .nodes
        .get(entry.root.index())
        .ok_or_else(|| PjrtError::invalid("program", "its root is not there"))?;
    match &root.ty {
        Type::Tuple(types) => {
            types.iter().enumerate().map(|(i, ty)| array(format!("result {i}"), ty)).collect()
        }
        ty => Ok(vec![array("result".to_owned(), ty)?]),
    }
}
