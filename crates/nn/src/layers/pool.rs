//! Pooling.

use qwix_array::DType;
use qwix_graph::{BinaryOp, WindowDim};

use crate::Result;
use crate::tensor::Tensor;

/// Padding of a pooling window.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum PoolPadding {
    /// Nothing: the window stays inside.
    #[default]
    Valid,
    /// So much that the result is as large as the input over the stride.
    Same,
    /// So many elements before and after each spatial axis.
    Explicit(Vec<(i64, i64)>),
}

/// A pooling window over the axes before the last, channels last: [batch…, spatial…, features].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pool {
    /// The window's size along each spatial axis.
    pub window_shape: Vec<usize>,
    /// Its steps along each.
    pub strides: Vec<usize>,
    /// What lies beyond the edges: nothing that would count as a largest or smallest, and zeros for a mean.
    pub padding: PoolPadding,
    /// Whether a mean divides by the whole window everywhere, or by what of it lies inside.
    pub count_include_pad: bool,
}

impl Pool {
    /// A window of this size, step 1, without padding.
    pub fn new(window_shape: impl Into<Vec<usize>>) -> Self {
        let window_shape = window_shape.into();
        let strides = vec![1; window_shape.len()];
        Pool { window_shape, strides, padding: PoolPadding::Valid, count_include_pad: true }
    }

    /// Its steps along each spatial axis.
    pub fn strides(mut self, strides: impl Into<Vec<usize>>) -> Self {
        self.strides = strides.into();
        self
    }

    /// What lies beyond the edges.
    pub fn padding(mut self, padding: PoolPadding) -> Self {
        self.padding = padding;
        self
    }

    /// Whether a mean divides by the whole window everywhere, or by what of it lies inside.
    pub fn count_include_pad(mut self, count: bool) -> Self {
        self.count_include_pad = count;
        self
    }

    fn reduce(&self, x: &Tensor, op: BinaryOp) -> Result<Tensor> {
        let ty = x.ty()?;
        let n = self.window_shape.len();
        let wrong = |reason: String| Err(x.tracer().op_error("pool", reason));
        let Some(batch) = ty.shape.len().checked_sub(n + 1) else {
            return wrong(format!("a window {:?} is too large for {ty}", self.window_shape));
        };
        if self.strides.len() != n || self.strides.contains(&0) || self.window_shape.contains(&0) {
            let (window, strides) = (&self.window_shape, &self.strides);
            return wrong(format!(
                "window {window:?} and strides {strides:?} should be numbers above 0, as many"
            ));
        }
        let mut window = vec![WindowDim::new(1); ty.shape.len()];
        for i in 0..n {
            let (size, stride) = (self.window_shape[i], self.strides[i]);
            let (padding_low, padding_high) = match &self.padding {
                PoolPadding::Valid => (0, 0),
                PoolPadding::Same => same_padding(ty.shape[batch + i], size, stride),
                PoolPadding::Explicit(widths) => match widths.get(i) {
                    Some(&width) if widths.len() == n => width,
                    _ => return wrong(format!("{} pairs of padding for a window of {n} axes", widths.len())),
                },
            };
            window[batch + i] = WindowDim { stride, padding_low, padding_high, ..WindowDim::new(size) };
        }
        x.reduce_window(op, &window)
    }
}

/// How much is added before and after an axis for a result of its size over the stride, rounded up.
pub(super) fn same_padding(size: usize, window: usize, stride: usize) -> (i64, i64) {
    let out = size.div_ceil(stride);
    let needed = out.saturating_sub(1).saturating_mul(stride).saturating_add(window);
    let total = needed.saturating_sub(size);
    let low = total / 2;
    (low as i64, (total - low) as i64)
}

/// The largest of each window.
///
/// # Errors
/// When the window does not fit.
pub fn max_pool(x: &Tensor, pool: &Pool) -> Result<Tensor> {
    pool.reduce(x, BinaryOp::Maximum)
}

/// The smallest of each window.
///
/// # Errors
/// When the window does not fit.
pub fn min_pool(x: &Tensor, pool: &Pool) -> Result<Tensor> {
    pool.reduce(x, BinaryOp::Minimum)
}

/// The mean of each window: its sum, divided.
///
/// # Errors
/// When the window does not fit.
pub fn avg_pool(x: &Tensor, pool: &Pool) -> Result<Tensor> {
    let sum = pool.reduce(x, BinaryOp::Add)?;
    if pool.count_include_pad {
        return (sum / pool.window_shape.iter().product::<usize>()).ok();
    }
    // One batch and one feature are enough to count in.
    let mut shape = x.shape()?;
    let batch = shape.len() - pool.window_shape.len() - 1;
    let spatial = batch..shape.len() - 1;
    for (axis, size) in shape.iter_mut().enumerate() {
        if !spatial.contains(&axis) {
            *size = 1;
        }
    }
    let ones = x.filled(&shape, 1.0, DType::F32)?;
    (sum / pool.reduce(&ones, BinaryOp::Add)?).ok()
}
