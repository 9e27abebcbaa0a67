//! Which axes a product contracts, in HLO's terms.

/// The axes of a `dot`. The result's axes are: batch, the lhs's others in order, the rhs's others in order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DotDims {
    /// Axes of the lhs that are summed over, paired with those of the rhs.
    pub lhs_contracting: Vec<usize>,
    /// Axes of the rhs that are summed over.
    pub rhs_contracting: Vec<usize>,
    /// Axes of the lhs that both sides share, paired with those of the rhs.
    pub lhs_batch: Vec<usize>,
    /// Axes of the rhs that both sides share.
    pub rhs_batch: Vec<usize>,
}

/// One spatial dimension of a window, as HLO has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WindowDim {
    /// Elements that the window covers.
    pub size: usize,
    /// Step between two positions of the window.
    pub stride: usize,
    /// Elements added before the base; removed when negative.
    pub padding_low: i64,
    /// Elements added after the base; removed when negative.
    pub padding_high: i64,
    /// Distance between two elements of the base after dilation, 1 for none.
    pub base_dilation: usize,
    /// Distance between two elements of the window, 1 for none.
    pub window_dilation: usize,
    /// Whether the window is walked backwards.
    pub reversal: bool,
}

/// Which axis of input, kernel and output is which, and how the window moves.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConvDims {
    /// Axis of the input that holds the batch.
    pub input_batch: usize,
    /// Axis of the input that holds the features.
    pub input_feature: usize,
    /// Spatial axes of the input.
    pub input_spatial: Vec<usize>,
    /// Axis of the kernel that holds the input features (of one group).
    pub kernel_input_feature: usize,
    /// Axis of the kernel that holds the output features.
    pub kernel_output_feature: usize,
    /// Spatial axes of the kernel.
    pub kernel_spatial: Vec<usize>,
    /// Axis of the output that holds the batch.
    pub output_batch: usize,
    /// Axis of the output that holds the features.
    pub output_feature: usize,
    /// Spatial axes of the output.
    pub output_spatial: Vec<usize>,
    /// One entry a spatial axis.
    pub window: Vec<WindowDim>,
    /// Groups that the features are split into.
    pub feature_group_count: usize,
    /// Groups that the batch is split into.
    pub batch_group_count: usize,
}
