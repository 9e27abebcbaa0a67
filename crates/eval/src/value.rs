//! Values and the parameters of a model.

use std::collections::BTreeMap;

use qwix_array::Array;
use qwix_graph::Path;
use qwix_quant::QArray;

/// What a node yields.
#[derive(Clone, PartialEq, Debug)]
pub enum Value {
    /// Plain numbers.
    Array(Array),
    /// Quantized numbers.
    QArray(QArray),
    /// Several values.
    Tuple(Vec<Value>),
}

/// The variables of a model, by path: any subtree of them, or all.
pub type Params = BTreeMap<Path, Value>;
