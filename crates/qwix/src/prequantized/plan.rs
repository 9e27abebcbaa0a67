//! What the parameters of a checkpoint are, and how each is read.

use std::collections::{BTreeMap, BTreeSet};

use qwix_array::Array;
use qwix_eval::Value;
use qwix_graph::{Path, QArrayType, Type};
use qwix_quant::{Granularity, QArray, QType};

use super::blocks::{Blocks, signed};
use super::source::Source;
use crate::Result;

type Read = Box<dyn Fn(&Source) -> Result<Value> + Send + Sync>;

/// Which of the last two axes of a weight is contracted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Axes {
    /// […, in, out].
    InOut,
    /// […, out, in].
    OutIn,
    /// The format does not say.
    Unknown,
}

/// One parameter.
pub(super) struct Entry {
    pub ty: Type,
    axes: Axes,
    /// Whether the last two axes are exchanged on the way out.
    pub turned: bool,
    pub read: Read,
}

impl Entry {
    /// A parameter of which the format does not say more than its type.
    pub fn as_stored(ty: Type, read: impl Fn(&Source) -> Result<Value> + Send + Sync + 'static) -> Self {
        Entry { ty, axes: Axes::Unknown, turned: false, read: Box::new(read) }
    }

    /// A quantized weight as […, in, out].
    pub fn in_out(ty: Type, read: impl Fn(&Source) -> Result<Value> + Send + Sync + 'static) -> Self {
        Entry { axes: Axes::InOut, ..Entry::as_stored(ty, read) }
    }

    /// A quantized weight as […, out, in].
    pub fn out_in(ty: Type, read: impl Fn(&Source) -> Result<Value> + Send + Sync + 'static) -> Self {
        Entry { axes: Axes::OutIn, ..Entry::as_stored(ty, read) }
    }

    /// The type of a quantized weight as a rule can ask for it: tiles along the contracted axis alone, where that is
    /// known; scales for every index of an axis that is tiled beside it.
    pub fn by_rule(&self) -> Option<QArrayType> {
        let Type::QArray(q) = &self.ty else { return None };
        let mut q = q.clone();
        let from_end = match self.axes {
            Axes::InOut => 1,
            Axes::OutIn => 2,
            Axes::Unknown => return Some(q),
        };
        // Turned, the other one of the two.
        let from_end = if self.turned { 3 - from_end } else { from_end };
        let outputs = q.array.shape.len().checked_sub(from_end);
        if let Some(granularity) = outputs.and_then(|axis| q.how.granularity.get_mut(axis))
            && matches!(granularity, Granularity::Tiled(_))
        {
            *granularity = Granularity::Channelwise;
        }
        Some(q)
    }

    /// A tensor as it is.
    pub fn plain(source: &Source, path: &Path) -> Result<Self> {
        let (ty, path) = (source.ty(path)?.clone(), path.clone());
        Ok(Entry::as_stored(Type::Array(ty), move |source| Ok(Value::Array(source.read(&path)?))))
    }
}

/// The parameters by path.
#[derive(Default)]
pub(super) struct Plan {
    pub entries: BTreeMap<Path, Entry>,
}

impl Plan {
    /// Adds a parameter.
    pub fn add(&mut self, source: &Source, path: Path, entry: Entry) -> Result<()> {
        if self.entries.contains_key(&path) {
            return Err(source.bad(&path, "is there twice: quantized in parts, and as a tensor of its own"));
        }
        self.entries.insert(path, entry);
        Ok(())
    }

    /// A plan of the modules of a checkpoint. `weights` takes from each the tensors that it knows and gives the
    /// parameters that they are; what it leaves stays as it is, unless it is one of `parts`, which mean nothing alone.
    pub fn by_module(
        source: &Source,
        parts: &[&str],
        mut weights: impl FnMut(&mut Module<'_>) -> Result<Vec<(&'static str, Entry)>>,
    ) -> Result<Self> {
        let mut modules: BTreeMap<Path, BTreeSet<String>> = BTreeMap::new();
        for path in source.checkpoint.paths() {
            modules.entry(path.parent()).or_default().insert(path.name().to_owned());
        }
        let mut plan = Plan::default();
        for (path, names) in modules {
            let mut module = Module { source, path, names };
            for (name, entry) in weights(&mut module)? {
                plan.add(source, module.path.join(name), entry)?;
            }
            for name in &module.names {
                let path = module.path.join(name);
                if parts.contains(&name.as_str()) {
                    return Err(source.bad(
                        &path,
                        "is part of a quantized weight, the rest of which is not in the checkpoint",
                    ));
                }
                plan.add(source, path.clone(), Entry::plain(source, &path)?)?;
            }
        }
        Ok(plan)
    }

    /// Gives out weights that are stored as […, out, in] as […, in, out].
    pub fn turn(&mut self) {
        for entry in self.entries.values_mut().filter(|entry| entry.axes == Axes::OutIn) {
            let Type::QArray(q) = &mut entry.ty else { continue };
            let rank = q.array.shape.len();
            if rank >= 2 {
                q.array.shape.swap(rank - 2, rank - 1);
                q.how.granularity.swap(rank - 2, rank - 1);
                entry.turned = true;
            }
        }
    }
}

/// The tensors of one module that are not taken yet.
pub(super) struct Module<'a> {
    pub source: &'a Source,
    pub path: Path,
    names: BTreeSet<String>,
}

impl Module<'_> {
    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// The path of a tensor, without taking it.
    pub fn at(&self, name: &str) -> Path {
        self.path.join(name)
    }

    /// Takes a tensor that may be there.
    pub fn take(&mut self, name: &str) -> Option<Path> {
        self.names.remove(name).then(|| self.path.join(name))
    }

    /// Takes a tensor that must be there.
    pub fn need(&mut self, name: &str) -> Result<Path> {
        let path = self.path.join(name);
        match self.names.remove(name) {
            true => Ok(path),
            false => Err(self.source.bad(&path, "is missing")),
        }
    }

    /// The module's name as the model's own code has it, with `.`.
    pub fn dotted(&self) -> String {
        self.path.as_str().replace('/', ".")
    }
}

/// The last two axes exchanged.
pub(super) fn turned(value: Value) -> Result<Value> {
    let swap = |rank: usize| -> Vec<usize> {
        let mut axes: Vec<usize> = (0..rank).collect();
        if rank >= 2 {
            axes.swap(rank - 2, rank - 1);
        }
        axes
    };
    Ok(match value {
        Value::Array(array) => Value::Array(array.transpose(&swap(array.rank()))?),
        Value::QArray(q) => Value::QArray(q.transpose(&swap(q.shape().len()))?),
        Value::Tuple(values) => Value::Tuple(values),
    })
}

/// The quantized matrix of unsigned codes (a byte each), scales a group each, and unsigned zero points.
pub(super) fn affine(
    blocks: &Blocks,
    qtype: &'static QType,
    codes: Array,
    scale: &Array,
    zeros: Option<&Array>,
) -> Result<Value> {
    let bits = qtype.storage.bits();
    let qvalue = signed(&blocks.in_order(codes)?, bits)?;
    let scale = blocks.per_tile(scale)?;
    let zero_point = zeros.map(|zeros| signed(&blocks.per_tile(zeros)?, bits)).transpose()?;
    Ok(Value::QArray(QArray::new(qvalue, scale, zero_point, qtype)?))
}
