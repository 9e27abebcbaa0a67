//! Layers, with the names, parameters and arithmetic of Flax Linen's.

mod activation;
mod attention;
mod combine;
mod conv;
mod conv_transpose;
mod embed;
mod linear;
mod norm;
mod pool;

pub use activation::{
    celu, elu, gelu, gelu_exact, glu, hard_sigmoid, hard_silu, hard_tanh, leaky_relu, log_sigmoid,
    log_softmax, logsumexp, relu, relu6, selu, sigmoid, silu, soft_sign, softmax, softplus, tanh,
};
pub use attention::{
    AttentionInputs, KvCache, MultiHeadDotProductAttention, causal_mask, combine_masks,
    dot_product_attention, make_attention_mask, make_causal_mask,
};
pub use combine::{Dropout, Sequential};
pub use conv::{Conv, ConvPadding};
pub use conv_transpose::ConvTranspose;
pub use embed::Embed;
pub use linear::{Dense, DenseGeneral, Einsum};
pub use norm::{BatchNorm, LayerNorm, RMSNorm};
pub use pool::{Pool, PoolPadding, avg_pool, max_pool, min_pool};

/// Functions that set a layer's options one by one: `Dense::new(8).use_bias(false)`.
macro_rules! options {
    ($layer:ident { $($(#[$doc:meta])* $name:ident: $ty:ty),* $(,)? }) => {
        impl $layer {
            $(
                $(#[$doc])*
                pub fn $name(mut self, $name: $ty) -> Self {
                    self.$name = $name.into();
                    self
                }
            )*
        }
    };
}
use options;
