//! Layers, functions and a cache, as they stand in `goldens/make_nn.py`.

use qwix_nn::*;

use super::models::Row;

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
    activations => Activations,
    activations_bf16 => Activations,
    layers => Layers,
    functions => Functions,
    decode => Decoder,
}

struct Activations;

impl Module<Tensor, Vec<Tensor>> for Activations {
    fn call(&self, _: &Scope, x: Tensor) -> Result<Vec<Tensor>> {
        let x = &x;
        Ok(vec![
            relu(x),
            relu6(x),
            gelu(x),
            gelu_exact(x),
            silu(x),
            sigmoid(x),
            tanh(x),
            elu(x, 1.0),
            elu(x, 0.7),
            celu(x, 1.0),
            celu(x, 1.5),
            selu(x),
            leaky_relu(x, 0.01),
            leaky_relu(x, 0.2),
            softplus(x),
            log_sigmoid(x),
            soft_sign(x),
            hard_tanh(x),
            hard_sigmoid(x),
            hard_silu(x),
            glu(x, -1)?,
            softmax(x, -1),
            softmax(x, 0),
            log_softmax(x, -1),
            logsumexp(x, -1),
        ])
    }
}

struct Layers;

impl Module<[Tensor; 3], Vec<Tensor>> for Layers {
    fn call(&self, scope: &Scope, [image, x, tokens]: [Tensor; 3]) -> Result<Vec<Tensor>> {
        const BF16: DType = DType::BF16;
        let image = &image;
        let x = &x;
        let conv = |size: &[usize]| Conv::new(4, size);
        let attention = MultiHeadDotProductAttention::new;
        let causal = make_causal_mask(scope, &x.index(-1, 0))?;
        Ok(vec![
            scope.call(conv(&[3, 3]).padding(ConvPadding::Circular), image)?,
            scope.call(conv(&[3, 2]).padding(ConvPadding::Reflect).strides([2, 1]), image)?,
            scope.call(
                conv(&[3, 3]).padding(ConvPadding::Valid).kernel_dilation([2]).use_bias(false),
                image,
            )?,
            scope.call(conv(&[2, 3]).strides([3, 2]), image)?,
            scope.call(conv(&[3, 3]).padding([(1, 2), (0, 1)]).input_dilation([2, 1]), image)?,
            scope.call(conv(&[3]).padding(ConvPadding::Causal).kernel_dilation([2]), x)?,
            scope.call(conv(&[3]), x.index(0, 0))?,
            scope.call(conv(&[2]).feature_group_count(2).dtype(BF16), x.expand_dims(0))?,
            scope.call(
                ConvTranspose::new(3, [3, 2]).strides([2, 3]).padding(ConvPadding::Valid).use_bias(false),
                image,
            )?,
            scope.call(
                ConvTranspose::new(3, [2, 3]).strides([3, 1]).kernel_dilation([1, 2]).transpose_kernel(true),
                image,
            )?,
            scope.call(ConvTranspose::new(3, [4]).padding([(1, 2)]), x)?,
            max_pool(image, &Pool::new([3, 2]).strides([2, 2]).padding(PoolPadding::Same))?,
            min_pool(image, &Pool::new([2, 2]).padding(PoolPadding::Explicit(vec![(1, 0), (0, 1)])))?,
            avg_pool(
                image,
                &Pool::new([3, 3]).strides([2, 2]).padding(PoolPadding::Same).count_include_pad(false),
            )?,
            avg_pool(image, &Pool::new([2, 3]).strides([1, 2]).padding(PoolPadding::Same))?,
            scope.call(LayerNorm::new().use_fast_variance(false).epsilon(1e-3), x)?,
            scope
                .call(LayerNorm::new().use_bias(false).reduction_axes([-2, -1]).feature_axes([-2, -1]), x)?,
            scope.call(LayerNorm::new().use_scale(false).dtype(BF16), x)?,
            scope.call(LayerNorm::new(), x.astype(BF16))?,
            scope.call(RMSNorm::new().use_scale(false), x)?,
            scope.call(RMSNorm::new().param_dtype(BF16).dtype(BF16), x)?,
            scope.call(BatchNorm::new().axis(1).use_scale(false), image)?,
            scope.call(BatchNorm::new().dtype(BF16), image)?,
            scope.call(Dense::new(5).dtype(BF16), x)?,
            scope.call(Dense::new(5).use_bias(false), x.index(0, 0).index(0, 0))?,
            scope.call(DenseGeneral::new([2, 3]).axis([1, -1]), image)?,
            scope.call(DenseGeneral::new([3]).batch_dims([0]), x)?,
            scope.call(DenseGeneral::new([3]).axis([-2, -1]).use_bias(false), image)?,
            scope.call(Einsum::new([6, 2, 4], "...d,dhk->...hk"), x)?,
            scope.call(Einsum::new([2, 6, 4], "bsd,hdk->bhsk"), x)?,
            scope.call(Embed::new(7, 4), &tokens)?,
            scope.call(Embed::new(1, 4), &tokens)?,
            scope.call(Embed::new(7, 4).dtype(BF16), &tokens)?,
            scope.call(
                attention(3).qkv_features(12).out_features(5).use_bias(false),
                AttentionInputs::new(x).key(&x.slice(1, 0..2)),
            )?,
            scope.call(attention(2).normalize_qk(true), AttentionInputs::new(x).mask(&causal))?,
            scope.call(attention(2).dtype(BF16), x)?,
            scope.call(
                attention(2).dtype(BF16).force_fp32_for_softmax(true),
                AttentionInputs::new(x).key(x).value(&(x + 1.0)),
            )?,
            scope.call(Dropout::new(0.5), x)?,
        ])
    }
}

struct Functions;

impl Module<[Tensor; 5], Vec<Tensor>> for Functions {
    fn call(&self, scope: &Scope, [x, y, i, u, b]: [Tensor; 5]) -> Result<Vec<Tensor>> {
        const BF16: DType = DType::BF16;
        let (x, y, i, u, b) = (&x, &y, &i, &u, &b);
        let p = &x.greater(0);
        let i42 = &i.slice(0, 0..4).slice(1, 0..2);
        let row = |t: &Tensor, n| t.index(0, n);
        let element = |t: &Tensor, m, n| t.index(0, m).index(0, n);
        let (values, indices) = x.top_k(3)?;
        let mut all = vec![
            p.select(x, y),
            p.select(1.0, x),
            p.select(2, 3),
            p & y.less(1),
            !p | y.greater_equal(2),
            p ^ x.not_equal(y),
            x + i.slice(0, 0..4).slice(1, 0..1),
            i.floor_div(3),
            i.floor_div(-2),
            i.modulo(4).equal(0),
            i.modulo(4),
            i % 4,
            i / 2,
            x / element(i, 0, 0),
            2 / y,
            3 - i,
            -i,
            x.pow(2.5),
            x.pow_of(10000.0),
            x.clip(-0.5, 0.5),
            x.maximum(y),
            x.minimum(0),
            x.take(i, 1),
            i.take(i, 0),
            x.take_along_axis(&i42.modulo(6), 1),
            row(x, 1),
            x.index(1, -1),
            x.slice_by(1, 1..5, 2),
            x.reverse(&[0]),
            x.cumsum(1),
            i.cumsum(0),
            x.argmax(-1),
            x.argmin(0),
            i.argmax(1),
            values,
            indices,
            i.one_hot(5, DType::F32),
            i.one_hot(5, BF16),
            x.sum(&[]),
            x.sum(&[0]),
            x.mean(&[-1]),
            x.mean_keepdims(&[-1]),
            i.mean(&[]),
            x.var(&[-1]),
            x.max(&[0]),
            x.min(&[-1]).expand_dims(-1),
            i.max(&[]),
            x.prod(&[-1]),
            p.all(&[-1]),
            p.any(&[0]),
            p.sum(&[]),
            b.sum(&[-1]),
            b.mean(&[]),
            b.max(&[-1]),
            concatenate([x, y, i42], 1)?,
            stack([x, y], 1)?,
            x.pad(&[(1, 0), (0, 2)], 3.0),
            x.tril(0),
            x.tril(1),
            u.matmul(&x.t()),
            u.expand_dims(1).matmul(&u.swap_axes(1, 2)),
            x.dot(&row(y, 0)),
            u.dot(&row(u, 0).t()),
            x.einsum("ij,kj", y),
            u.slice(1, 0..3).einsum("aij,ij->a", &x.slice(0, 0..3)),
            u.einsum("aij,kj->ki", x),
            u.slice(1, 0..1).einsum("aij,abj->bi", u),
            u.einsum("...j,kj->...k", x),
            x + b,
            b * 2,
            b / 3,
            x.astype(DType::S32),
            i.astype(DType::Pred),
            p.astype(BF16) + b,
            x.exp(),
            x.expm1(),
            x.abs().log(),
            x.abs().log1p(),
            x.abs().sqrt(),
            x.abs().rsqrt(),
            x.sin(),
            x.cos(),
            x.tanh(),
            x.erf(),
            x.floor(),
            x.ceil(),
            (x * 4).round() / 4,
            x.sign(),
            i.abs(),
            x.cbrt(),
            (x / 0).is_finite(),
            x.square(),
            i.square(),
            scope.full(&[2, 3], 7, DType::S32),
            scope.arange(5, DType::F32),
            x.dynamic_slice([element(i, 0, 0).into(), 1.into()], &[2, 3]),
            x.dynamic_update_slice(&y.slice(0, 0..2).slice(1, 0..2), [1.into(), element(i, 0, 1).into()]),
            x.unflatten(0, &[2, 2]),
            u.flatten(1, 2),
            u.transpose(&[2, 0, 1]),
            x.expand_dims(-1),
            x.expand_dims(0).slice(1, 0..1).squeeze(1),
            x.slice(1, 0..1).broadcast_to(&[3, 4, 6]),
            i.equal(2),
            x.less_equal(y),
        ];
        all.extend(x.split(3, 1)?);
        Ok(all)
    }
}

/// What Flax keeps for each attention in the collection `cache`, in the order of its keys.
struct Cache {
    index: Tensor,
    kv: KvCache,
}

impl Inputs for Cache {
    fn read(reader: &mut InputReader) -> Result<Self> {
        Ok(Cache { index: Tensor::read(reader)?, kv: KvCache::read(reader)? })
    }
}

impl Outputs for Cache {
    fn write(self, into: &mut Vec<Tensor>) {
        self.index.write(into);
        self.kv.write(into);
    }
}

struct Decoder;

impl Module<([Cache; 2], Tensor), (Tensor, Vec<Cache>)> for Decoder {
    fn call(&self, scope: &Scope, inputs: ([Cache; 2], Tensor)) -> Result<(Tensor, Vec<Cache>)> {
        let (caches, tokens) = inputs;
        let mut x = scope.call(Embed::new(13, 8), tokens)?;
        let mut new = vec![];
        for cache in caches {
            // Named in the order in which Flax makes them: the attention before the norm that feeds it.
            let attention = scope.child(MultiHeadDotProductAttention::new(2))?;
            let h = scope.call(LayerNorm::new(), &x)?;
            let (h, kv) = attention.decode(&h, &cache.kv, &cache.index, None)?;
            new.push(Cache { index: &cache.index + 1, kv });
            x = x + h;
            let h = scope.call(LayerNorm::new(), &x)?;
            let [wide, narrow] = [Dense::new(16), Dense::new(8)];
            let narrow = scope.child(narrow)?;
            x = &x + narrow.call(gelu(&scope.call(wide, h)?))?;
        }
        Ok((scope.call(Dense::new(13), x)?, new))
    }
}
