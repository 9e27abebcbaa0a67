//! Inputs of odd shapes and layers of odd options: a graph or an error, and no panic.

use std::panic::{AssertUnwindSafe, catch_unwind};

use qwix_nn::*;

type Function = fn(&Scope, Tensor) -> Result<Tensor>;

struct Model(Function);

impl Module for Model {
    fn call(&self, scope: &Scope, x: Tensor) -> Result<Tensor> {
        (self.0)(scope, x)
    }
}

const ROWS: &[(&str, Function)] = &[
    ("Dense", |s, x| s.call(Dense::new(3), x)),
    ("Dense of nothing", |s, x| s.call(Dense::new(0), x)),
    ("Dense too large", |s, x| s.call(Dense::new(usize::MAX), x)),
    ("DenseGeneral", |s, x| s.call(DenseGeneral::new([2, 0]).axis([-1, 0]), x)),
    ("DenseGeneral batch", |s, x| s.call(DenseGeneral::new([2]).batch_dims([0, 1]), x)),
    ("DenseGeneral too large", |s, x| s.call(DenseGeneral::new([usize::MAX, 2]).batch_dims([0]), x)),
    ("Einsum", |s, x| s.call(Einsum::new([3, 2], "...d,dk->...k"), x)),
    ("Einsum odd", |s, x| s.call(Einsum::new([0, usize::MAX], "...a,bc->...cb"), x)),
    ("Conv", |s, x| s.call(Conv::new(2, [2]), x)),
    ("Conv 2d", |s, x| s.call(Conv::new(2, [2, 3]).strides([5]).kernel_dilation([usize::MAX]), x)),
    ("Conv circular", |s, x| s.call(Conv::new(2, [3]).padding(ConvPadding::Circular), x)),
    ("Conv reflect", |s, x| s.call(Conv::new(2, [3]).padding(ConvPadding::Reflect), x)),
    ("Conv causal", |s, x| {
        s.call(Conv::new(2, [3]).padding(ConvPadding::Causal).kernel_dilation([usize::MAX]), x)
    }),
    ("Conv large padding", |s, x| s.call(Conv::new(2, [3]).padding([(i64::MAX, i64::MAX)]), x)),
    ("Conv cut away", |s, x| s.call(Conv::new(2, [3]).padding([(i64::MIN, 0)]), x)),
    ("Conv window", |s, x| s.call(Conv::new(2, [usize::MAX]), x)),
    ("Conv groups", |s, x| s.call(Conv::new(2, [1]).feature_group_count(usize::MAX), x)),
    ("ConvTranspose", |s, x| s.call(ConvTranspose::new(2, [2]).strides([3]), x)),
    ("ConvTranspose odd", |s, x| {
        s.call(ConvTranspose::new(2, [2, usize::MAX]).padding(ConvPadding::Valid), x)
    }),
    ("Embed", |s, x| s.call(Embed::new(3, 2), x.astype(DType::S32))),
    ("Embed of nothing", |s, x| s.call(Embed::new(0, 2), x.astype(DType::S32))),
    ("Embed u8", |s, x| s.call(Embed::new(300, 2), x.astype(DType::U8))),
    ("Embed attend", |s, x| s.child(Embed::new(3, 2))?.attend(&x)),
    ("LayerNorm", |s, x| s.call(LayerNorm::new(), x)),
    ("LayerNorm axes", |s, x| s.call(LayerNorm::new().reduction_axes([0, 1]).feature_axes([1, 0]), x)),
    ("RMSNorm", |s, x| s.call(RMSNorm::new().reduction_axes([]), x)),
    ("BatchNorm", |s, x| s.call(BatchNorm::new().axis(0), x)),
    ("attention", |s, x| s.call(MultiHeadDotProductAttention::new(1), x)),
    ("attention without heads", |s, x| s.call(MultiHeadDotProductAttention::new(0), x)),
    ("causal", |s, x| make_causal_mask(s, &x)),
    ("decode", |s, x| {
        let cache = KvCache { key: x.clone(), value: x.clone() };
        Ok(s.child(MultiHeadDotProductAttention::new(1))?.decode(&x, &cache, &x, Some(&x))?.0)
    }),
    ("max_pool", |_, x| max_pool(&x, &Pool::new([2]).padding(PoolPadding::Same))),
    ("avg_pool", |_, x| {
        avg_pool(&x, &Pool::new([usize::MAX, 2]).padding(PoolPadding::Same).count_include_pad(false))
    }),
    ("pool of nothing", |_, x| avg_pool(&x, &Pool::new([]).count_include_pad(false))),
    ("softmax", |_, x| softmax(&x, -1).ok()),
    ("log_softmax", |_, x| log_softmax(&x, 0).ok()),
    ("logsumexp", |_, x| logsumexp(&x, 0).ok()),
    ("gelu_exact", |_, x| gelu_exact(&x).ok()),
    ("glu", |_, x| glu(&x, 0)),
    ("argmax", |_, x| x.argmax(-1).ok()),
    ("cumsum", |_, x| x.cumsum(0).ok()),
    ("matmul", |_, x| x.matmul(&x.t()).ok()),
    ("matmul broadcast", |_, x| x.expand_dims(0).matmul(&x).ok()),
    ("einsum", |_, x| x.einsum("...a,...b", &x).ok()),
    ("take", |_, x| x.take(&x.astype(DType::S32), 0).ok()),
    ("take_along_axis", |_, x| x.take_along_axis(&x.astype(DType::S32), -1).ok()),
    ("flatten", |_, x| x.flatten(1, 0).ok()),
    ("unflatten", |_, x| x.unflatten(0, &[usize::MAX, 2]).ok()),
    ("broadcast", |_, x| x.broadcast_to(&[usize::MAX, 1, 2, 3]).ok()),
    ("pad", |_, x| x.pad(&[(usize::MAX, 1)], 0).ok()),
    ("reshape", |_, x| x.reshape(&[usize::MAX, usize::MAX]).ok()),
    ("split", |_, x| Ok(x.split(0, 0)?.remove(0))),
    ("tril", |_, x| x.tril(i64::MIN).ok()),
    ("one_hot", |_, x| x.astype(DType::S32).one_hot(usize::MAX, DType::F32).ok()),
    ("mean", |_, x| x.mean(&[]).ok()),
    ("slice", |_, x| x.slice_by(0, 0..usize::MAX, usize::MAX).ok()),
    ("index", |_, x| x.index(isize::MIN, isize::MIN).ok()),
    ("full", |s, _| s.full(&[usize::MAX, 2], f64::NAN, DType::S8).ok()),
    ("iota", |s, _| s.iota(&[2], 1, DType::F32).ok()),
    ("top_k", |_, x| Ok(x.top_k(usize::MAX)?.0)),
    ("s4", |_, x| (x.astype(DType::S4) + 1000).sum(&[]).ok()),
    ("floor_div", |_, x| x.astype(DType::S32).floor_div(0).ok()),
    ("nothing", |_, x| concatenate(&[x], 5)),
    ("stack", |_, x| stack([&x, &x], -9)),
    ("where", |_, x| x.select(1, 2.5).ok()),
];

const SHAPES: &[&[usize]] = &[
    &[],
    &[0],
    &[1],
    &[3],
    &[2, 3],
    &[2, 0],
    &[0, 3],
    &[2, 3, 4],
    &[2, 0, 4],
    &[0, 0, 0],
    &[1, 1, 1, 1],
    &[2, 5, 4, 3],
    &[2, 1, 3, 1, 2, 2],
    &[1 << 40, 1 << 18],
];

#[test]
fn no_panic() {
    std::panic::set_hook(Box::new(|_| {}));
    let mut wrong = vec![];
    let (mut traced, mut refused) = (0, 0);
    for (name, function) in ROWS {
        for shape in SHAPES {
            for dtype in [DType::F32, DType::BF16, DType::S32, DType::Pred, DType::F8E4M3FN, DType::S4] {
                let input = ArrayType::new(dtype, *shape);
                let model = Model(*function);
                match catch_unwind(AssertUnwindSafe(|| trace(&model, std::slice::from_ref(&input)))) {
                    Err(_) => wrong.push(format!("{name} of {input}")),
                    Ok(Ok(_)) => traced += 1,
                    Ok(Err(_)) => refused += 1,
                }
            }
        }
    }
    let _ = std::panic::take_hook();
    assert!(traced > 1000 && refused > 1000, "{traced} traced, {refused} refused");
    assert!(wrong.is_empty(), "{} panics:\n{}", wrong.len(), wrong.join("\n"));
}
