//! Which axes a product contracts, in HLO's terms.

use crate::QuantError;

/// How exactly a product of floats is computed, on devices that have faster ways than their dtype's arithmetic.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum Precision {
    /// As the device likes it best: f32 in TF32 on NVIDIA's GPUs, in bf16 on TPUs.
    #[default]
    Default,
    /// Somewhere between.
    High,
    /// The dtype's own arithmetic.
    Highest,
}

impl Precision {
    /// All, the fastest first.
    pub const ALL: [Precision; 3] = [Precision::Default, Precision::High, Precision::Highest];

    /// HLO's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Precision::Default => "default",
            Precision::High => "high",
            Precision::Highest => "highest",
        }
    }
}

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
    /// How exactly each side is multiplied; nothing to the CPU, whose arithmetic is always the dtype's.
    pub operand_precision: [Precision; 2],
}

impl DotDims {
    /// The left side's axes that are neither contracted nor batch, in order.
    pub fn lhs_free(&self, rank: usize) -> Vec<usize> {
        free(rank, &self.lhs_contracting, &self.lhs_batch)
    }

    /// The right side's axes that are neither contracted nor batch, in order.
    pub fn rhs_free(&self, rank: usize) -> Vec<usize> {
        free(rank, &self.rhs_contracting, &self.rhs_batch)
    }

    /// The shape of the product.
    ///
    /// # Errors
    /// When an axis is named twice or is not there, or paired axes differ in size.
    pub fn output_shape(&self, lhs: &[usize], rhs: &[usize]) -> Result<Vec<usize>, QuantError> {
        side("left", lhs, &self.lhs_contracting, &self.lhs_batch)?;
        side("right", rhs, &self.rhs_contracting, &self.rhs_batch)?;
        paired("contracted", lhs, rhs, &self.lhs_contracting, &self.rhs_contracting)?;
        paired("batch", lhs, rhs, &self.lhs_batch, &self.rhs_batch)?;
        let batch = self.lhs_batch.iter().map(|&a| lhs[a]);
        let lhs_free = self.lhs_free(lhs.len()).into_iter().map(|a| lhs[a]);
        let rhs_free = self.rhs_free(rhs.len()).into_iter().map(|a| rhs[a]);
        Ok(batch.chain(lhs_free).chain(rhs_free).collect())
    }
}

fn free(rank: usize, contracting: &[usize], batch: &[usize]) -> Vec<usize> {
    (0..rank).filter(|a| !contracting.contains(a) && !batch.contains(a)).collect()
}

fn side(name: &str, shape: &[usize], contracting: &[usize], batch: &[usize]) -> Result<(), QuantError> {
    let mut seen = vec![false; shape.len()];
    for &axis in contracting.iter().chain(batch) {
        match seen.get_mut(axis) {
            Some(seen) if !*seen => *seen = true,
            Some(_) => {
                return Err(QuantError::Invalid(format!(
                    "dot: axis {axis} of the {name} side is named twice"
                )));
            }
            None => {
                return Err(QuantError::Invalid(format!(
                    "dot: the {name} side of shape {shape:?} has no axis {axis}"
                )));
            }
        }
    }
    Ok(())
}

fn paired(what: &str, lhs: &[usize], rhs: &[usize], l: &[usize], r: &[usize]) -> Result<(), QuantError> {
    if l.len() != r.len() {
        return Err(QuantError::Invalid(format!(
            "dot: {} {what} axes on the left, {} on the right",
            l.len(),
            r.len()
        )));
    }
    match l.iter().zip(r).find(|&(&l, &r)| lhs[l] != rhs[r]) {
        None => Ok(()),
        Some((&l, &r)) => Err(QuantError::Invalid(format!(
            "dot: {what} axis {l} of the left side {lhs:?} and axis {r} of the right side {rhs:?} differ in size"
        ))),
    }
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

impl WindowDim {
    /// A window of so many elements: step 1, no padding, no dilation.
    pub fn new(size: usize) -> Self {
        WindowDim {
            size,
            stride: 1,
            padding_low: 0,
            padding_high: 0,
            base_dilation: 1,
            window_dilation: 1,
            reversal: false,
        }
    }

    /// How many positions the window has over a base of this size, or `None` when the numbers make no sense.
    pub fn output_size(&self, base: usize) -> Option<usize> {
        let dilated = |size: usize, by: usize| -> Option<i64> {
            let size = i64::try_from(size).ok()?;
            let by = i64::try_from(by).ok().filter(|&by| by > 0)?;
            if size == 0 { Some(0) } else { (size - 1).checked_mul(by)?.checked_add(1) }
        };
        let stride = i64::try_from(self.stride).ok().filter(|&s| s > 0)?;
        let padded = dilated(base, self.base_dilation)?
            .checked_add(self.padding_low)?
            .checked_add(self.padding_high)?;
        let window = dilated(self.size, self.window_dilation)?;
        if padded < window || padded < 0 {
            return Some(0);
        }
        usize::try_from((padded - window) / stride).ok()?.checked_add(1)
    }
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
    /// How exactly input and kernel are multiplied, as in [`DotDims::operand_precision`].
    pub operand_precision: [Precision; 2],
}

impl ConvDims {
    /// The shape of the result.
    ///
    /// # Errors
    /// When axes, window and shapes do not fit each other.
    pub fn output_shape(&self, input: &[usize], kernel: &[usize]) -> Result<Vec<usize>, QuantError> {
        let bad = |what: String| Err(QuantError::Invalid(format!("convolution: {what}")));
        let n = self.input_spatial.len();
        let lists = [
            ("kernel spatial axes", self.kernel_spatial.len()),
            ("output spatial axes", self.output_spatial.len()),
            ("window dimensions", self.window.len()),
        ];
        if let Some((what, found)) = lists.into_iter().find(|list| list.1 != n) {
            return bad(format!("{found} {what} for {n} spatial axes of the input"));
        }
        if input.len() != n + 2 || kernel.len() != n + 2 {
            return bad(format!("input {input:?} and kernel {kernel:?} should have {} axes each", n + 2));
        }
        for (what, b, f, s) in [
            ("input", self.input_batch, self.input_feature, &self.input_spatial),
            ("kernel", self.kernel_output_feature, self.kernel_input_feature, &self.kernel_spatial),
            ("output", self.output_batch, self.output_feature, &self.output_spatial),
        ] {
            let mut axes: Vec<usize> = [b, f].into_iter().chain(s.iter().copied()).collect();
            axes.sort_unstable();
            if !axes.iter().copied().eq(0..n + 2) {
                return bad(format!("the {what}'s axes {b}, {f}, {s:?} are not each axis once"));
            }
        }
        let (fgc, bgc) = (self.feature_group_count, self.batch_group_count);
        let (batch, features) = (input[self.input_batch], input[self.input_feature]);
        let (out, in_group) = (kernel[self.kernel_output_feature], kernel[self.kernel_input_feature]);
        if fgc == 0 || bgc == 0 || (fgc > 1 && bgc > 1) {
            return bad(format!("feature_group_count {fgc} with batch_group_count {bgc}"));
        }
        if features % fgc != 0 || out % fgc != 0 || features / fgc != in_group {
            return bad(format!(
                "{features} input features in {fgc} groups do not fit a kernel of {in_group} input and {out} output features"
            ));
        }
        if batch % bgc != 0 || out % bgc != 0 {
            return bad(format!("batch {batch} and {out} output features do not split into {bgc} groups"));
        }
        let mut shape = vec![0; n + 2];
        shape[self.output_batch] = batch / bgc;
        shape[self.output_feature] = out;
        for i in 0..n {
            let (window, size) = (&self.window[i], kernel[self.kernel_spatial[i]]);
            if window.size != size {
                return bad(format!(
                    "window of {} over spatial axis {i}, but the kernel has {size}",
                    window.size
                ));
            }
            let Some(size) = window.output_size(input[self.input_spatial[i]]) else {
                return bad(format!("{window:?} makes no sense for spatial axis {i} of input {input:?}"));
            };
            shape[self.output_spatial[i]] = size;
        }
        Ok(shape)
    }
}
