//! Models of the goldens, written in Rust line by line as they stand in `goldens/models.py`.

use qwix_nn::initializers::{lecun_normal, normal};
use qwix_nn::*;

/// A model under the goldens' name.
pub struct Row {
    pub golden: &'static str,
    pub trace: fn(&[ArrayType]) -> Result<qwix_graph::Graph>,
    pub init: fn(Key, &[ArrayType]) -> Result<qwix_eval::Params>,
    pub shapes: fn(&[ArrayType]) -> Result<std::collections::BTreeMap<qwix_graph::Path, ArrayType>>,
}

macro_rules! rows {
    ($($golden:ident => $module:expr),* $(,)?) => {
        pub const ROWS: &[Row] = &[$(Row {
            golden: stringify!($golden),
            trace: |inputs| trace(&$module, inputs),
            init: |key, inputs| init(&$module, key, inputs),
            shapes: |inputs| abstract_init(&$module, inputs),
        }),*];
    };
}

rows! {
    linen_mlp => Mlp::new(&[32, 32, 8]),
    linen_mlp_wide => Mlp::new(&[16, 8]),
    linen_mlp_bf16 => Mlp { dtype: Some(DType::BF16), ..Mlp::new(&[32, 32, 8]) },
    linen_mlp_bf16_params => Mlp { dtype: Some(DType::BF16), param_dtype: DType::BF16, ..Mlp::new(&[32, 32, 8]) },
    linen_mlp_f16 => Mlp { dtype: Some(DType::F16), param_dtype: DType::F16, ..Mlp::new(&[32, 32, 8]) },
    linen_mlp_3d => Mlp { act: gelu, ..Mlp::new(&[32, 16]) },
    linen_cnn => Cnn,
    linen_conv1d => Conv1d,
    encoder_einsum => EinsumEncoder { layers: 2 },
    encoder_mha => MhaEncoder { layers: 2, dtype: None },
    encoder_mha_bf16 => MhaEncoder { layers: 1, dtype: Some(DType::BF16) },
    decoder_prefill => Decoder,
    decoder_step => Decoder,
    moe => Moe,
    left_weight => Left,
    weight_views => Views,
    weight_stack => Stacked,
    einsums => Einsums,
}

pub struct Mlp {
    features: Vec<usize>,
    dtype: Option<DType>,
    param_dtype: DType,
    act: fn(&Tensor) -> Tensor,
}

impl Mlp {
    pub fn new(features: &[usize]) -> Self {
        Mlp { features: features.to_vec(), dtype: None, param_dtype: DType::F32, act: relu }
    }
}

impl Module for Mlp {
    fn call(&self, scope: &Scope, mut x: Tensor) -> Result<Tensor> {
        for (i, &features) in self.features.iter().enumerate() {
            if i > 0 {
                x = (self.act)(&x);
            }
            let dense = Dense { dtype: self.dtype, param_dtype: self.param_dtype, ..Dense::new(features) };
            x = scope.call(dense, x)?;
        }
        Ok(x)
    }
}

struct Cnn;

impl Module for Cnn {
    fn call(&self, scope: &Scope, x: Tensor) -> Result<Tensor> {
        let x = scope.call(Conv::new(8, [3, 3]).strides([2, 2]), x)?;
        let x = scope.call(BatchNorm::new(), x)?;
        let x = relu(&x);
        let x = scope.call(Conv::new(8, [3, 3]).kernel_dilation([2, 2]), x)?;
        let x = relu(&x);
        let x = max_pool(&x, &Pool::new([2, 2]).strides([2, 2]))?;
        let x = scope.call(Conv::new(16, [3, 3]).feature_group_count(2).use_bias(false), x)?;
        let x = scope.call(BatchNorm::new().use_bias(false), x)?;
        let x = relu(&x);
        let depthwise = Conv::new(16, [3, 3]).feature_group_count(16).padding([(1, 0), (0, 1)]);
        let x = scope.call_as("depthwise", depthwise, x)?;
        let x = silu(&x);
        let x = avg_pool(&x, &Pool::new([2, 2]).padding(PoolPadding::Same))?;
        scope.call(Dense::new(10), x.flatten(1, -1))
    }
}

struct Conv1d;

impl Module for Conv1d {
    fn call(&self, scope: &Scope, x: Tensor) -> Result<Tensor> {
        let x = gelu_exact(&scope.call(Conv::new(12, [5]).padding(ConvPadding::Causal), x)?);
        let x = tanh(&scope.call(ConvTranspose::new(8, [4]).strides([2]), x)?);
        scope.call(Conv::new(4, [3]).padding(ConvPadding::Circular), x)
    }
}

struct EinsumAttention {
    heads: usize,
    dim: usize,
}

impl Module for EinsumAttention {
    fn call(&self, scope: &Scope, x: Tensor) -> Result<Tensor> {
        let d = x.dim(-1)?;
        let shape = [d, self.heads, self.dim];
        let param = |name: &str, shape: &[usize]| scope.param(name, shape, DType::F32, &lecun_normal());
        let q = x.einsum("bsd,dhk->bshk", &param("wq", &shape)?);
        let k = x.einsum("bsd,dhk->bshk", &param("wk", &shape)?);
        let v = x.einsum("bsd,dhk->bshk", &param("wv", &shape)?);
        let logits = q.einsum("bqhk,bthk->bhqt", &k) * (self.dim as f64).powf(-0.5);
        let probs = softmax(&logits, -1);
        let o = probs.einsum("bhqt,bthk->bqhk", &v);
        o.einsum("bqhk,hkd->bqd", &param("wo", &[self.heads, self.dim, d])?).ok()
    }
}

struct EinsumEncoder {
    layers: usize,
}

impl Module for EinsumEncoder {
    fn call(&self, scope: &Scope, mut x: Tensor) -> Result<Tensor> {
        for i in 0..self.layers {
            let h = scope.call_as(&format!("ln1_{i}"), LayerNorm::new(), &x)?;
            x = &x + scope.call_as(&format!("attn_{i}"), EinsumAttention { heads: 2, dim: 8 }, h)?;
            let h = scope.call_as(&format!("ln2_{i}"), LayerNorm::new(), &x)?;
            let h = scope.call_as(&format!("up_{i}"), Dense::new(32), h)?;
            x = &x + scope.call_as(&format!("down_{i}"), Dense::new(16), gelu(&h))?;
        }
        Ok(x)
    }
}

struct MhaEncoder {
    layers: usize,
    dtype: Option<DType>,
}

impl MhaEncoder {
    fn dense(&self, features: usize) -> Dense {
        Dense { dtype: self.dtype, ..Dense::new(features) }
    }

    fn norm(&self) -> LayerNorm {
        LayerNorm { dtype: self.dtype, ..LayerNorm::new() }
    }
}

impl Module<(Tensor, Tensor), (Tensor, Tensor)> for MhaEncoder {
    fn call(&self, scope: &Scope, (tokens, lengths): (Tensor, Tensor)) -> Result<(Tensor, Tensor)> {
        let length = tokens.dim(1)?;
        let embed = |vectors| Embed { dtype: self.dtype, ..Embed::new(vectors, 16) };
        let x = scope.call(embed(40), &tokens)?;
        let positions = scope.arange(length, DType::S32);
        let mut x = x + scope.call_as("positions", embed(12), &positions)?;
        let valid = positions.expand_dims(0).less(lengths.expand_dims(1));
        let mask = make_attention_mask(&valid, &valid);
        for _ in 0..self.layers {
            let attention =
                MultiHeadDotProductAttention { dtype: self.dtype, ..MultiHeadDotProductAttention::new(2) };
            let h = scope.call(attention, AttentionInputs::new(&x).key(&x).mask(&mask))?;
            x = scope.call(self.norm(), x + h)?;
            let h = gelu_exact(&scope.call(self.dense(32), &x)?);
            let h = scope.call(self.dense(16), h)?;
            x = scope.call(self.norm(), x + h)?;
        }
        let pooled = scope.call_as("pooler", self.dense(16), x.index(1, 0))?;
        Ok((x, tanh(&pooled)))
    }
}

fn rotary(scope: &Scope, x: &Tensor, positions: &Tensor) -> Result<Tensor> {
    let half = x.dim(-1)? / 2;
    let frequencies = (-scope.arange(half, DType::S32) / half).pow_of(10000.0);
    let angles = positions.expand_dims(1) * frequencies;
    let expand = |t: Tensor| t.expand_dims(0).expand_dims(2);
    let (sin, cos) = (expand(angles.sin()), expand(angles.cos()));
    match x.split(2, -1)?.as_slice() {
        [a, b] => concatenate(&[a * &cos - b * &sin, b * &cos + a * &sin], -1),
        _ => unreachable!(),
    }
}

struct DecoderAttention {
    heads: usize,
    kv_heads: usize,
    dim: usize,
}

impl Module<(Tensor, KvCache, Tensor), (Tensor, KvCache)> for DecoderAttention {
    fn call(&self, scope: &Scope, inputs: (Tensor, KvCache, Tensor)) -> Result<(Tensor, KvCache)> {
        let (x, cache, index) = inputs;
        let [b, s, d] = x.dims()?;
        let project =
            |name: &str, heads| scope.call_as(name, DenseGeneral::new([heads, self.dim]).use_bias(false), &x);
        let (q, k, v) =
            (project("q", self.heads)?, project("k", self.kv_heads)?, project("v", self.kv_heads)?);
        let positions = scope.arange(s, DType::S32) + &index;
        let (q, k) = (rotary(scope, &q, &positions)?, rotary(scope, &k, &positions)?);
        let cache = cache.update(&k, &v, &index)?;
        let q = q.reshape(&[b, s, self.kv_heads, self.heads / self.kv_heads, self.dim]);
        let logits = q.einsum("bsngk,btnk->bngst", &cache.key) / (self.dim as f64).sqrt();
        let causal =
            scope.arange(cache.key.dim(1)?, DType::S32).expand_dims(0).less_equal(positions.expand_dims(1));
        let logits = causal.select(logits, -1e30);
        let o = softmax(&logits, -1).einsum("bngst,btnk->bsngk", &cache.value);
        let o = o.reshape(&[b, s, self.heads, self.dim]);
        let out = DenseGeneral::new([d]).axis([-2, -1]).use_bias(false);
        Ok((scope.call_as("o", out, o)?, cache))
    }
}

struct SwiGlu;

impl Module for SwiGlu {
    fn call(&self, scope: &Scope, x: Tensor) -> Result<Tensor> {
        let gate = scope.call_as("gate", Dense::new(32).use_bias(false), &x)?;
        let up = scope.call_as("up", Dense::new(32).use_bias(false), &x)?;
        scope.call_as("down", Dense::new(x.dim(-1)?).use_bias(false), silu(&gate) * up)
    }
}

struct Decoder;

impl Module<(Tensor, [KvCache; 2], Tensor), (Tensor, Vec<KvCache>)> for Decoder {
    fn call(&self, scope: &Scope, inputs: (Tensor, [KvCache; 2], Tensor)) -> Result<(Tensor, Vec<KvCache>)> {
        let (tokens, caches, index) = inputs;
        let embed = scope.child_as("embedder", Embed::new(24, 16))?;
        let mut x = embed.call(&tokens)? * 4.0;
        let mut new = Vec::new();
        for (i, cache) in caches.into_iter().enumerate() {
            let h = scope.call_as(&format!("attn_norm_{i}"), RMSNorm::new(), &x)?;
            let attention = DecoderAttention { heads: 4, kv_heads: 2, dim: 8 };
            let (h, cache) = scope.call_as(&format!("attn_{i}"), attention, (h, cache, index.clone()))?;
            new.push(cache);
            x = x + h;
            let h = scope.call_as(&format!("mlp_norm_{i}"), RMSNorm::new(), &x)?;
            x = &x + scope.call_as(&format!("mlp_{i}"), SwiGlu, h)?;
        }
        let x = scope.call_as("final_norm", RMSNorm::new(), &x)?;
        Ok((embed.attend(&x)?, new))
    }
}

struct Moe;

impl Module for Moe {
    fn call(&self, scope: &Scope, x: Tensor) -> Result<Tensor> {
        let (d, e, f) = (x.dim(-1)?, 4, 24);
        let param = |name: &str, shape: &[usize]| scope.param(name, shape, DType::F32, &lecun_normal());
        let probs = softmax(&scope.call_as("router", Dense::new(e).use_bias(false), &x)?, -1);
        let (weights, chosen) = probs.top_k(2)?;
        let weights = &weights / weights.sum_keepdims(&[-1]);
        let hot = chosen.one_hot(e, DType::F32);
        let dispatch = hot.sum(&[-2]);
        let combine = weights.einsum("tk,tke->te", &hot);
        let xe = dispatch.einsum("te,td->etd", &x);
        let h = xe.einsum("etd,edf->etf", &param("up", &[e, d, f])?);
        let y = relu(&h).einsum("etf,efd->etd", &param("down", &[e, f, d])?);
        y.einsum("etd,te->td", &combine).ok()
    }
}

struct Left;

impl Module for Left {
    fn call(&self, scope: &Scope, x: Tensor) -> Result<Tensor> {
        let w = scope.param("w", &[12, 16], DType::F32, &lecun_normal())?;
        let v = scope.param("v", &[12, 6], DType::F32, &lecun_normal())?;
        w.dot(&x).einsum("cb,ck->bk", &v).ok()
    }
}

struct Views;

impl Module for Views {
    fn call(&self, scope: &Scope, x: Tensor) -> Result<Tensor> {
        let flat = scope.param("flat", &[16, 24], DType::F32, &lecun_normal())?;
        let turned = scope.param("turned", &[20, 24], DType::F32, &lecun_normal())?;
        let half = scope.param("half", &[20, 12], DType::BF16, &lecun_normal())?;
        let dims = DotDims { lhs_contracting: vec![1], rhs_contracting: vec![0], ..DotDims::default() };
        let x = dot_general(&x, &flat.reshape(&[16, 4, 6]), &dims);
        let x = relu(&x.flatten(1, 2));
        let x = relu(&x.dot(&turned.t()));
        x.dot(&half.astype(DType::F32)).ok()
    }
}

struct Stacked;

impl Module for Stacked {
    fn call(&self, scope: &Scope, mut x: Tensor) -> Result<Tensor> {
        let w = scope.param("stack", &[3, 16, 16], DType::F32, &lecun_normal())?;
        for i in 0..3 {
            x = relu(&x.dot(&w.index(0, i)));
        }
        Ok(x)
    }
}

struct Einsums;

impl Module<Tensor, [Tensor; 4]> for Einsums {
    fn call(&self, scope: &Scope, x: Tensor) -> Result<[Tensor; 4]> {
        let param = |name: &str, shape: &[usize]| scope.param(name, shape, DType::F32, &normal(0.2));
        let a = x.einsum("bsd,hdk->bhsk", &param("a", &[3, 8, 4])?);
        let b = a.einsum("bhsk,hkf->fbs", &param("b", &[3, 4, 6])?);
        let c = b.einsum("fbs,sfg->gb", &param("c", &[5, 6, 7])?);
        let d = c.einsum("...b,...o", &param("d", &[7, 4])?);
        Ok([a, b, c, d])
    }
}
