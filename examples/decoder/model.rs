//! The decoder of `train.py` in Rust: the same names of modules and parameters, so the same checkpoint fits. Beside that
//! it keeps what it has read in a cache, so that a token costs the same wherever in the text it stands.

use qwix::nn::{
    Dense, DenseGeneral, Embed, KvCache, Module, RMSNorm, Result, Scope, Tensor, causal_mask, concatenate,
    silu, softmax,
};
use qwix::{ArrayType, DType};

/// The sizes of the model.
#[derive(Clone, Copy, Debug)]
pub struct Decoder {
    pub vocabulary: usize,
    pub width: usize,
    pub heads: usize,
    pub hidden: usize,
    pub layers: usize,
    /// The most tokens that it reads.
    pub context: usize,
}

impl Decoder {
    /// The sizes in `train.py`.
    pub const TRAINED: Decoder =
        Decoder { vocabulary: 512, width: 128, heads: 4, hidden: 192, layers: 4, context: 128 };

    /// What the model takes: `length` new tokens for each of `batch` texts [batch, length], how many it has read before,
    /// and what it kept of those: keys and values [batch, context, heads, features] for each layer.
    pub fn inputs(&self, batch: usize, length: usize) -> Vec<ArrayType> {
        let kept = ArrayType::new(DType::F32, [batch, self.context, self.heads, self.width / self.heads]);
        let mut inputs = vec![ArrayType::new(DType::S32, [batch, length]), ArrayType::new(DType::S32, [])];
        inputs.resize(2 + 2 * self.layers, kept);
        inputs
    }
}

/// Gives the logits of the token that follows each [batch, length, vocabulary], and what it keeps.
impl Module<(Tensor, Tensor, Vec<KvCache>), (Tensor, Vec<KvCache>)> for Decoder {
    fn call(
        &self,
        scope: &Scope,
        (tokens, read, caches): (Tensor, Tensor, Vec<KvCache>),
    ) -> Result<(Tensor, Vec<KvCache>)> {
        let window = Window::new(scope, tokens.dim(1)?, self, &read)?;
        let mut x = scope.call_as("tokens", Embed::new(self.vocabulary, self.width), tokens)?;
        let mut kept = Vec::new();
        for cache in caches {
            let (out, cache) = scope.call(Block(*self), (x, window.clone(), cache))?;
            x = out;
            kept.push(cache);
        }
        x = scope.call(RMSNorm::new(), x)?;
        let logits = scope.call_as("logits", Dense::new(self.vocabulary).use_bias(false), x)?;
        Ok((logits, kept))
    }
}

/// Where the new tokens stand in their text, and what follows from it.
#[derive(Clone)]
struct Window {
    /// The position of the first.
    start: Tensor,
    /// Which kept positions each may look at.
    visible: Tensor,
    sin: Tensor,
    cos: Tensor,
}

impl Window {
    fn new(scope: &Scope, length: usize, model: &Decoder, start: &Tensor) -> Result<Self> {
        let half = model.width / model.heads / 2;
        let frequencies = (scope.arange(half, DType::F32) / -(half as f64)).pow_of(10000.0);
        let positions = scope.arange(length, DType::S32) + start;
        let angles = positions.astype(DType::F32).reshape(&[length, 1, 1]) * frequencies;
        Ok(Window {
            start: start.clone(),
            visible: causal_mask(scope, length, model.context, start),
            sin: angles.sin(),
            cos: angles.cos(),
        })
    }

    /// Turns each pair of features by an angle that grows with the position (rotary embedding).
    fn rotate(&self, x: &Tensor) -> Result<Tensor> {
        let halves = x.split(2, -1)?;
        let [first, second] = halves.as_slice() else { return x.ok() };
        let turned = [first * &self.cos - second * &self.sin, second * &self.cos + first * &self.sin];
        concatenate(&turned, -1)
    }
}

/// Attention, then the MLP; each adds to its input.
struct Block(Decoder);

impl Module<(Tensor, Window, KvCache), (Tensor, KvCache)> for Block {
    fn call(
        &self,
        scope: &Scope,
        (x, window, cache): (Tensor, Window, KvCache),
    ) -> Result<(Tensor, KvCache)> {
        let normed = scope.call(RMSNorm::new(), &x)?;
        let (mixed, cache) = scope.call_as("attention", Attention(self.0), (normed, window, cache))?;
        let x = x + mixed;
        let normed = scope.call(RMSNorm::new(), &x)?;
        Ok((x + scope.call_as("mlp", Mlp(self.0), normed)?, cache))
    }
}

/// Each position looks at itself and at what came before.
struct Attention(Decoder);

impl Module<(Tensor, Window, KvCache), (Tensor, KvCache)> for Attention {
    fn call(
        &self,
        scope: &Scope,
        (x, window, cache): (Tensor, Window, KvCache),
    ) -> Result<(Tensor, KvCache)> {
        let Decoder { width, heads, .. } = self.0;
        let features = width / heads;
        let split = |name| scope.call_as(name, DenseGeneral::new([heads, features]).use_bias(false), &x);
        let (query, key, value) =
            (window.rotate(&split("query")?)?, window.rotate(&split("key")?)?, split("value")?);
        let cache = cache.update(&key, &value, &window.start)?;
        let scores = query.einsum("bqhd,bkhd->bhqk", &cache.key) / (features as f64).sqrt();
        let weights = softmax(&window.visible.select(scores, -1e9), -1);
        let mixed = weights.einsum("bhqk,bkhd->bqhd", &cache.value);
        let out = DenseGeneral::new([width]).axis([-2, -1]).use_bias(false);
        Ok((scope.call_as("out", out, mixed)?, cache))
    }
}

/// SwiGLU: one projection gates the other.
struct Mlp(Decoder);

impl Module for Mlp {
    fn call(&self, scope: &Scope, x: Tensor) -> Result<Tensor> {
        let dense = |features| Dense::new(features).use_bias(false);
        let gate: Tensor = scope.call_as("gate", dense(self.0.hidden), &x)?;
        let up: Tensor = scope.call_as("up", dense(self.0.hidden), &x)?;
        scope.call_as("down", dense(self.0.width), silu(&gate) * up)
    }
}
