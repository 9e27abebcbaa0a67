//! Attention.

use qwix_array::DType;

use super::options;
use crate::initializers::{lecun_normal, zeros};
use crate::layers::{DenseGeneral, LayerNorm, softmax};
use crate::module::{InputReader, Inputs, Outputs};
use crate::tensor::{Operand, Tensor, computed_in};
use crate::{Child, Initializer, Module, Result, Scope};

/// What [`MultiHeadDotProductAttention`] takes. A tensor alone attends to itself.
#[derive(Clone, Debug)]
pub struct AttentionInputs {
    query: Tensor,
    key: Option<Tensor>,
    value: Option<Tensor>,
    mask: Option<Tensor>,
}

impl AttentionInputs {
    /// Queries [batch…, length, features], which are keys and values too unless these are given.
    pub fn new(query: &Tensor) -> Self {
        AttentionInputs { query: query.clone(), key: None, value: None, mask: None }
    }

    /// Keys [batch…, length, features], which are the values too unless these are given: cross attention.
    pub fn key(mut self, key: &Tensor) -> Self {
        self.key = Some(key.clone());
        self
    }

    /// Values [batch…, length, features].
    pub fn value(mut self, value: &Tensor) -> Self {
        self.value = Some(value.clone());
        self
    }

    /// Where a query (of [batch…, heads, queries, keys], sizes of 1 repeat) sees a key.
    pub fn mask(mut self, mask: &Tensor) -> Self {
        self.mask = Some(mask.clone());
        self
    }
}

impl From<&Tensor> for AttentionInputs {
    fn from(query: &Tensor) -> Self {
        AttentionInputs::new(query)
    }
}

impl From<Tensor> for AttentionInputs {
    fn from(query: Tensor) -> Self {
        AttentionInputs::new(&query)
    }
}

/// As inputs of a whole model: the queries alone.
impl Inputs for AttentionInputs {
    fn read(reader: &mut InputReader) -> Result<Self> {
        Ok(AttentionInputs::from(reader.tensor()?))
    }
}

/// Keys and values of the positions so far, each [batch…, max_length, heads, features of a head].
///
/// It is plain state of the model: an input and an output, so that a server keeps it, one for each conversation, and
/// a backend may write it in place. Start with zeros.
///
/// ```
/// use qwix_nn::*;
///
/// /// One layer of attention, for a prompt or for a token at a time.
/// struct Decoder;
///
/// impl Module<(Tensor, KvCache, Tensor), (Tensor, KvCache)> for Decoder {
///     fn call(&self, scope: &Scope, inputs: (Tensor, KvCache, Tensor)) -> Result<(Tensor, KvCache)> {
///         let (x, cache, position) = inputs;
///         let attention = scope.child(MultiHeadDotProductAttention::new(2))?;
///         attention.decode(&x, &cache, &position, None)
///     }
/// }
///
/// let cache = ArrayType::new(DType::F32, [1, 64, 2, 4]); // 64 positions, two heads of four features
/// let types = |length| {
///     let x = ArrayType::new(DType::F32, [1, length, 8]);
///     [x, cache.clone(), cache.clone(), ArrayType::new(DType::S32, [])]
/// };
/// let prompt = trace(&Decoder, &types(10))?;
/// let step = trace(&Decoder, &types(1))?;
/// assert_eq!(prompt.inputs().count(), 4);
/// # assert_eq!(step.variables().count(), prompt.variables().count());
/// # Ok::<(), NnError>(())
/// ```
#[derive(Clone, Debug)]
pub struct KvCache {
    /// The keys.
    pub key: Tensor,
    /// The values.
    pub value: Tensor,
}

impl Inputs for KvCache {
    fn read(reader: &mut InputReader) -> Result<Self> {
        Ok(KvCache { key: reader.tensor()?, value: reader.tensor()? })
    }
}

impl Outputs for KvCache {
    fn write(self, into: &mut Vec<Tensor>) {
        into.extend([self.key, self.value]);
    }
}

impl KvCache {
    /// The cache with keys and values of new positions [batch…, length, heads, features] written from `index` on.
    ///
    /// # Errors
    /// When more axes than the length differ, or there are more positions than the cache has.
    pub fn update(&self, key: &Tensor, value: &Tensor, index: &Tensor) -> Result<KvCache> {
        let written = |cache: &Tensor, new: &Tensor| -> Result<Tensor> {
            let (held, given) = (cache.shape()?, new.shape()?);
            let rank = held.len();
            let fits = rank >= 3
                && given.len() == rank
                && (0..rank).all(|a| if a == rank - 3 { given[a] <= held[a] } else { given[a] == held[a] });
            if !fits {
                let reason = format!("positions of shape {given:?} do not fit a cache of shape {held:?}");
                return Err(cache.tracer().op_error("KvCache::update", reason));
            }
            let start = |a: usize| if a == rank - 3 { Operand::from(index) } else { Operand::from(0) };
            cache.dynamic_update_slice(new, (0..rank).map(start)).ok()
        };
        Ok(KvCache { key: written(&self.key, key)?, value: written(&self.value, value)? })
    }
}

/// Attention with several heads: submodules `query`, `key`, `value` and `out`, each with `kernel` and `bias`.
///
/// Called with a tensor it attends to itself; with [`AttentionInputs`] to others, or under a mask;
/// [`Child::decode`] adds positions to a [`KvCache`] and attends to all that it holds.
#[derive(Clone, Debug)]
pub struct MultiHeadDotProductAttention {
    /// How many heads.
    pub num_heads: usize,
    /// The dtype to compute in; the common one of inputs and parameters when `None`.
    pub dtype: Option<DType>,
    /// The parameters' dtype.
    pub param_dtype: DType,
    /// The features of all heads together; the queries' when `None`.
    pub qkv_features: Option<usize>,
    /// The result's features; the queries' when `None`.
    pub out_features: Option<usize>,
    /// Whether the projections add biases.
    pub use_bias: bool,
    /// How the kernels start.
    pub kernel_init: Initializer,
    /// How the kernel of `out` starts; as the others when `None`.
    pub out_kernel_init: Option<Initializer>,
    /// How the biases start.
    pub bias_init: Initializer,
    /// Whether queries and keys are normalised (submodules `query_ln` and `key_ln`).
    pub normalize_qk: bool,
    /// Whether softmax runs in f32 whatever the dtype.
    pub force_fp32_for_softmax: bool,
}

impl MultiHeadDotProductAttention {
    /// So many heads, with biases, in f32.
    pub fn new(num_heads: usize) -> Self {
        MultiHeadDotProductAttention {
            num_heads,
            dtype: None,
            param_dtype: DType::F32,
            qkv_features: None,
            out_features: None,
            use_bias: true,
            kernel_init: lecun_normal(),
            out_kernel_init: None,
            bias_init: zeros(),
            normalize_qk: false,
            force_fp32_for_softmax: false,
        }
    }

    /// Queries, keys and values, split into heads.
    fn projected(&self, scope: &Scope, query: &Tensor, key: &Tensor, value: &Tensor) -> Result<[Tensor; 3]> {
        let features = match self.qkv_features {
            Some(features) => features,
            None => query.dim(-1)?,
        };
        if self.num_heads == 0 || features % self.num_heads != 0 {
            return Err(
                scope.error(format!("{features} features do not split into {} heads", self.num_heads))
            );
        }
        let shape = [self.num_heads, features / self.num_heads];
        let project = |name: &str, x: &Tensor| scope.call_as(name, self.dense(&shape, &self.kernel_init), x);
        let (mut query, mut key, value) =
            (project("query", query)?, project("key", key)?, project("value", value)?);
        if self.normalize_qk {
            let norm = || LayerNorm {
                dtype: self.dtype,
                ..LayerNorm::new().use_bias(false).param_dtype(self.param_dtype)
            };
            query = scope.call_as("query_ln", norm(), query)?;
            key = scope.call_as("key_ln", norm(), key)?;
        }
        Ok([query, key, value])
    }

    fn dense(&self, features: &[usize], kernel_init: &Initializer) -> DenseGeneral {
        DenseGeneral {
            dtype: self.dtype,
            param_dtype: self.param_dtype,
            use_bias: self.use_bias,
            kernel_init: kernel_init.clone(),
            bias_init: self.bias_init.clone(),
            ..DenseGeneral::new(features)
        }
    }

    /// The heads together again.
    fn out(&self, scope: &Scope, x: &Tensor, features: usize) -> Result<Tensor> {
        let init = self.out_kernel_init.as_ref().unwrap_or(&self.kernel_init);
        let features = self.out_features.unwrap_or(features);
        scope.call_as("out", self.dense(&[features], init).axis([-2, -1]), x)
    }

    fn attend(&self, query: &Tensor, key: &Tensor, value: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        attention(query, key, value, mask, self.dtype, self.force_fp32_for_softmax)
    }

    /// Adds the positions of x [batch…, length, features] to the cache, from position `index` (a scalar of s32) on, and
    /// attends from each to all positions up to its own (under `mask` too, if given). One function for a prompt and
    /// for a single token. `index` + length must not be more than the cache's max_length.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn decode(
        &self,
        scope: &Scope,
        x: &Tensor,
        cache: &KvCache,
        index: &Tensor,
        mask: Option<&Tensor>,
    ) -> Result<(Tensor, KvCache)> {
        let [query, key, value] = self.projected(scope, x, x, x)?;
        let cache = cache.update(&key, &value, index)?;
        let (length, max_length) = (x.dim(-2)?, cache.key.dim(-3)?);
        let seen = causal_mask(scope, length, max_length, index);
        let mask = match mask {
            Some(mask) => combine_masks(&[mask, &seen])?,
            None => seen,
        };
        let y = self.attend(&query, &cache.key, &cache.value, Some(&mask))?;
        Ok((self.out(scope, &y, x.dim(-1)?)?, cache))
    }
}

options!(MultiHeadDotProductAttention {
    /// The dtype to compute in.
    dtype: impl Into<Option<DType>>,
    /// The parameters' dtype.
    param_dtype: DType,
    /// The features of all heads together.
    qkv_features: usize,
    /// The result's features.
    out_features: usize,
    /// Whether the projections add biases.
    use_bias: bool,
    /// How the kernels start.
    kernel_init: Initializer,
    /// How the kernel of `out` starts.
    out_kernel_init: Initializer,
    /// How the biases start.
    bias_init: Initializer,
    /// Whether queries and keys are normalised.
    normalize_qk: bool,
    /// Whether softmax runs in f32 whatever the dtype.
    force_fp32_for_softmax: bool,
});

impl Module<AttentionInputs> for MultiHeadDotProductAttention {
    fn call(&self, scope: &Scope, inputs: AttentionInputs) -> Result<Tensor> {
        let AttentionInputs { query: x, key, value, mask } = inputs;
        let key = key.unwrap_or_else(|| x.clone());
        let value = value.unwrap_or_else(|| key.clone());
        let [query, key, value] = self.projected(scope, &x, &key, &value)?;
        let y = self.attend(&query, &key, &value, mask.as_ref())?;
        self.out(scope, &y, x.dim(-1)?)
    }
}

impl Child<MultiHeadDotProductAttention> {
    /// [`MultiHeadDotProductAttention::decode`].
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn decode(
        &self,
        x: &Tensor,
        cache: &KvCache,
        index: &Tensor,
        mask: Option<&Tensor>,
    ) -> Result<(Tensor, KvCache)> {
        self.run(|module, scope| module.decode(scope, x, cache, index, mask))
    }
}

/// Attention of queries [batch…, queries, heads, features] to keys and values [batch…, keys, heads, features], where the
/// mask [batch…, heads, queries, keys] allows: softmax(q / √features · kᵀ) · v.
///
/// # Errors
/// When shapes do not fit.
pub fn dot_product_attention(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    mask: Option<&Tensor>,
) -> Result<Tensor> {
    attention(query, key, value, mask, None, false)
}

fn attention(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    mask: Option<&Tensor>,
    dtype: Option<DType>,
    wide_softmax: bool,
) -> Result<Tensor> {
    let dtype = computed_in(dtype, &[query, key, value])?;
    let (query, key, value) = (query.astype(dtype), key.astype(dtype), value.astype(dtype));
    let (q, k, v) = (query.shape()?, key.shape()?, value.shape()?);
    let rank = q.len();
    let fits = rank >= 3
        && k.len() == rank
        && v.len() == rank
        && (0..rank).all(|a| a == rank - 3 || (q[a] == k[a] && (a == rank - 1 || k[a] == v[a])))
        && k[rank - 3] == v[rank - 3];
    if !fits {
        let reason = format!("queries {q:?}, keys {k:?} and values {v:?} do not fit each other");
        return Err(query.tracer().op_error("dot_product_attention", reason));
    }
    let root = (q[rank - 1] as f32).sqrt();
    let scaled = &query / root;
    let mut weights = scaled.einsum("...qhd,...khd->...hqk", &key);
    if let Some(mask) = mask {
        weights = mask.select(&weights, lowest(dtype));
    }
    let weights = if wide_softmax {
        softmax(&weights.astype(DType::F32), -1)
    } else {
        softmax(&weights, -1).astype(dtype)
    };
    weights.einsum("...hqk,...khd->...qhd", &value).ok()
}

/// The lowest finite value.
fn lowest(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => f64::MIN,
        DType::BF16 => half::bf16::MIN.to_f64(),
        DType::F16 => half::f16::MIN.to_f64(),
        _ => f64::from(f32::MIN),
    }
}

/// Where positions from `index` on, `length` of them, see the `max_length` positions of a cache: [1, length, max_length],
/// each up to its own position.
pub fn causal_mask(scope: &Scope, length: usize, max_length: usize, index: &Tensor) -> Tensor {
    let own = scope.arange(length, DType::S32) + index.astype(DType::S32).reshape(&[]);
    let all = scope.arange(max_length, DType::S32);
    all.expand_dims(0).less_equal(own.expand_dims(-1)).expand_dims(0)
}

/// Where both a query (of `query` [batch…, queries]) and a key (of `key` [batch…, keys]) are valid, that is true or other
/// than 0: [batch…, 1, queries, keys] in f32, as Flax makes it.
pub fn make_attention_mask(query: &Tensor, key: &Tensor) -> Tensor {
    (query.expand_dims(-1) * key.expand_dims(-2)).expand_dims(-3).astype(DType::F32)
}

/// Where each position of x [batch…, length] sees those up to its own: [batch…, 1, length, length] in f32, as Flax makes
/// it. Only the shape of x counts.
///
/// # Errors
/// When x is a scalar.
pub fn make_causal_mask(scope: &Scope, x: &Tensor) -> Result<Tensor> {
    let shape = x.shape()?;
    let Some(last) = shape.len().checked_sub(1) else {
        return Err(scope.error("a causal mask is for positions along an axis, found a scalar"));
    };
    let index = scope.iota(&shape, last, DType::S32);
    index.expand_dims(-1).greater_equal(index.expand_dims(-2)).expand_dims(-3).astype(DType::F32).ok()
}

/// Where all masks allow.
///
/// # Errors
/// When there is none, or they do not broadcast.
pub fn combine_masks(masks: &[&Tensor]) -> Result<Tensor> {
    let mut all: Option<Tensor> = None;
    for mask in masks {
        let mask = mask.astype(DType::Pred);
        all = Some(match all {
            Some(before) => before & mask,
            None => mask,
        });
    }
    match all {
        Some(mask) => mask.ok(),
        None => Err(crate::NnError::Layer {
            module: String::new(),
            reason: "combine_masks takes at least one mask".to_owned(),
        }),
    }
}
