//! Attributes of the ops that pick elements.

/// One axis of a static slice.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SliceDim {
    /// First index.
    pub start: usize,
    /// One past the last index.
    pub limit: usize,
    /// Step, at least 1.
    pub stride: usize,
}

/// One axis of a pad.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PadDim {
    /// Elements before; removed when negative.
    pub low: i64,
    /// Elements after; removed when negative.
    pub high: i64,
    /// Elements between two of the operand's.
    pub interior: usize,
}

/// HLO's `GatherDimensionNumbers`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct GatherDims {
    /// Result axes that come from the slice.
    pub offset_dims: Vec<usize>,
    /// Operand axes of slice size 1 that the result does not have.
    pub collapsed_slice_dims: Vec<usize>,
    /// Operand axis that each component of an index vector is for.
    pub start_index_map: Vec<usize>,
    /// Operand axes paired with batch axes of the indices.
    pub operand_batching_dims: Vec<usize>,
    /// Axes of the indices paired with those.
    pub start_indices_batching_dims: Vec<usize>,
    /// Axis of the indices that holds the index vectors; their rank when indices are scalars.
    pub index_vector_dim: usize,
    /// The slice's shape, in the operand's rank.
    pub slice_sizes: Vec<usize>,
    /// A promise of the author.
    pub indices_are_sorted: bool,
}

/// HLO's `ScatterDimensionNumbers`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ScatterDims {
    /// Update axes that are the window.
    pub update_window_dims: Vec<usize>,
    /// Operand axes of window size 1 that updates do not have.
    pub inserted_window_dims: Vec<usize>,
    /// Operand axis that each component of an index vector is for.
    pub scatter_dims_to_operand_dims: Vec<usize>,
    /// Operand axes paired with batch axes of the indices.
    pub input_batching_dims: Vec<usize>,
    /// Axes of the indices paired with those.
    pub scatter_indices_batching_dims: Vec<usize>,
    /// Axis of the indices that holds the index vectors.
    pub index_vector_dim: usize,
    /// A promise of the author.
    pub indices_are_sorted: bool,
    /// A promise of the author.
    pub unique_indices: bool,
}
