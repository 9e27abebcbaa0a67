//! What is refused, and with which words.

use std::cell::RefCell;

use qwix_eval::{ReferenceBackend, Value};
use qwix_graph::Path;
use qwix_nn::*;

/// A model from a closure.
struct Model<F>(F);

impl<F: Fn(&Scope, Tensor) -> Result<Tensor>> Module for Model<F> {
    fn call(&self, scope: &Scope, x: Tensor) -> Result<Tensor> {
        (self.0)(scope, x)
    }
}

type Function = fn(&Scope, Tensor) -> Result<Tensor>;

fn dense(features: usize) -> Dense {
    Dense::new(features)
}

/// Functions of x, f32[2,3,4], and a part of the message that each should give.
const ROWS: &[(Function, &str)] = &[
    // Names.
    (
        |s, x| s.call_as("a", dense(4), s.call_as("a", dense(4), x)?),
        "in `Model`: submodule `a` is already taken by a submodule",
    ),
    (
        |s, x| s.call(dense(4), s.call_as("Dense_0", dense(4), x)?),
        "in `Model`: submodule `Dense_0` is already taken by a submodule",
    ),
    (
        |s, x| {
            s.param("w", &[4], DType::F32, &initializers::ones())?;
            s.param("w", &[4], DType::F32, &initializers::ones())?;
            Ok(x)
        },
        "in `Model`: parameter `w` is already taken by a parameter",
    ),
    (
        |s, x| {
            s.param("a", &[4], DType::F32, &initializers::ones())?;
            s.call_as("a", dense(4), x)
        },
        "in `Model`: submodule `a` is already taken by a parameter",
    ),
    (
        |s, _| s.variable("cache", "k", &[4], DType::F32, &initializers::zeros()),
        "make it an input and an output",
    ),
    (|s, x| s.call_as("a/b", dense(4), x), "`a/b` is no name"),
    (|s, x| s.call_as("", dense(4), x), "`` is no name"),
    (
        |s, x| {
            let shared = s.child_as("shared", dense(4))?;
            shared.call(shared.call(x)?.slice(-1, 0..3))
        },
        "variable `shared/kernel` is f32[3,4] in one call and f32[4,4] in another",
    ),
    // Arithmetic: the first wrong op is named, wherever its result goes.
    (
        |s, x| s.call(dense(4), tanh(&(&x + x.slice(1, 0..2))) * 2.0),
        "in `Model`: add: f32[2,3,4] and f32[2,2,4] do not broadcast",
    ),
    (|_, x| x.sum(&[3]).ok(), "reduce: f32[2,3,4] has no axis 3"),
    (|_, x| x.sum(&[-4]).ok(), "has no axis -4"),
    (|_, x| x.mean(&[0, -3]).ok(), "name one twice"),
    (|_, x| x.reshape(&[5, 5]).ok(), "reshape: cannot reshape f32[2,3,4] into [5, 5]"),
    (|_, x| x.transpose(&[0, 1]).ok(), "does not name each axis of f32[2,3,4]"),
    (|_, x| x.slice(1, 2..5).ok(), "2..5 by 1 is outside axis 1 of f32[2,3,4]"),
    (|_, x| x.index(1, 3).ok(), "axis 1 of f32[2,3,4] has no element 3"),
    (|_, x| x.squeeze(0).ok(), "axis 0 of f32[2,3,4] should have size 1"),
    (|_, x| x.split(3, -1)?.remove(0).ok(), "does not split into 3 equal parts"),
    (|_, x| x.broadcast_to(&[2, 2, 4]).ok(), "f32[2,3,4] does not broadcast to [2, 2, 4]"),
    (|_, x| x.dot(&x).ok(), "dot_general: dot: contracted axis 2"),
    (|_, x| x.matmul(&x).ok(), "contracted axis 2 of the left side"),
    (|_, x| x.einsum("bsd,dk->bsk", &x).ok(), "`dk` does not fit a tensor of 3 axes"),
    (|_, x| x.einsum("bsd,bsd,k->b", &x).ok(), "has 3 operands"),
    (|_, x| concatenate([&x, &x.slice(1, 0..2)], 0), "differ in more than axis 0"),
    (|_, _| concatenate(&[], 0), "at least one tensor"),
    (|_, x| x.take(&x, 0).ok(), "indices should be integers, found f32[2,3,4]"),
    (|_, x| Ok(x.top_k(5)?.0), "the 5 largest along the last axis"),
    (|_, x| x.astype(DType::F8E4M3FN).maximum(&x).ok(), "have no common dtype; convert one with `astype`"),
    (|_, x| (!(&x & x.square())).ok(), "and: takes integers or pred, found f32"),
    (|_, x| x.dims::<2>().map(|_| x), "2 axes are wanted, found f32[2,3,4]"),
    (|_, x| x.dynamic_slice([0.into()], &[1, 1, 1]).ok(), "1 start indices for f32[2,3,4]"),
    // Layers.
    (|s, x| s.call(dense(4), x.sum(&[])), "layer `Model/Dense_0`: takes an input with at least one axis"),
    (|s, x| s.call(dense(4).dtype(DType::S32), x), "the dtype of a layer should be a float, found s32"),
    (|s, x| s.call(DenseGeneral::new([4]).batch_dims([1]), x), "batch_dims [1] should be the first axes"),
    (
        |s, x| s.call(DenseGeneral::new([4]).axis([0]).batch_dims([0]), x),
        "axis 0 is both mapped and in batch_dims",
    ),
    (|s, x| s.call(Einsum::new([4, 4], "bsd,dhk->bshk"), x), "`dhk` does not fit a tensor of 2 axes"),
    (
        |s, x| s.call(Conv::new(4, [3]).feature_group_count(3), x),
        "layer `Model/Conv_0`: 4 input features do not split into 3 groups",
    ),
    (|s, x| s.call(Conv::new(4, [3]).strides([0]), x), "strides [0] should be one number above 0"),
    (|s, x| s.call(Conv::new(4, [3]).padding([(1, 1), (1, 1)]), x), "2 pairs of padding"),
    (|s, x| s.call(Conv::new(4, [9]).padding(ConvPadding::Circular), x), "reaches 4 beyond axis 1"),
    (|s, x| s.call(Conv::new(4, [3, 3, 3]), x), "takes an input of at least 4 axes"),
    (
        |s, x| s.call(Conv::new(4, [3, 3]).padding(ConvPadding::Causal), x),
        "causal padding is for one spatial axis",
    ),
    (|_, x| max_pool(&x, &Pool::new([2]).strides([0])), "should be numbers above 0"),
    (|_, x| avg_pool(&x, &Pool::new([2, 2, 2])), "a window [2, 2, 2] is too large"),
    (|s, x| s.call(Embed::new(5, 4), x), "layer `Model/Embed_0`: takes integers, found f32[2,3,4]"),
    (
        |s, x| s.child(Embed::new(5, 3))?.attend(&x),
        "layer `Model/Embed_0.attend`: attend takes queries of 3 features, found f32[2,3,4]",
    ),
    (
        |s, x| s.call(MultiHeadDotProductAttention::new(3), x),
        "layer `Model/MultiHeadDotProductAttention_0`: 4 features do not split into 3 heads",
    ),
    (
        |s, x| {
            let mask = s.ones(&[5, 5], DType::Pred);
            s.call(MultiHeadDotProductAttention::new(2), AttentionInputs::new(&x).mask(&mask))
        },
        "do not broadcast to one shape",
    ),
    (
        |s, x| {
            let short = s.zeros(&[2, 2, 2, 2], DType::F32);
            let cache = KvCache { key: short.clone(), value: short };
            let attention = s.child(MultiHeadDotProductAttention::new(2))?;
            Ok(attention.decode(&x, &cache, &s.full(&[], 0, DType::S32), None)?.0)
        },
        "positions of shape [2, 3, 2, 2] do not fit a cache of shape [2, 2, 2, 2]",
    ),
    (|s, x| s.call(BatchNorm::new().axis(3), x), "f32[2,3,4] has no axis 3"),
    (|s, x| s.call(LayerNorm::new(), x.astype(DType::F8E5M2)), "normalises floats of at least 16 bits"),
    (|_, _| combine_masks(&[]), "at least one mask"),
];

fn x() -> [ArrayType; 1] {
    [ArrayType::new(DType::F32, [2, 3, 4])]
}

#[test]
fn each_mistake_has_its_message() {
    let mut wrong = vec![];
    for &(function, wanted) in ROWS {
        match trace(&Model(function), &x()) {
            Ok(_) => wrong.push(format!("accepted, wanted: {wanted}")),
            Err(e) if e.to_string().contains(wanted) => {}
            Err(e) => wrong.push(format!("found: {e}\n  wanted: {wanted}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_tensor_belongs_to_its_trace() {
    let kept: RefCell<Option<Tensor>> = RefCell::new(None);
    let keeps = Model(|_: &Scope, x: Tensor| {
        *kept.borrow_mut() = Some(x.clone());
        Ok(x)
    });
    trace(&keeps, &x()).unwrap();
    let uses = Model(|_: &Scope, x: Tensor| match kept.borrow().as_ref() {
        Some(old) => (x + old).ok(),
        None => Ok(x),
    });
    assert_eq!(trace(&uses, &x()), Err(NnError::ForeignTensor));
    assert_eq!((kept.borrow().clone().unwrap() + 1).ok().unwrap_err(), NnError::ForeignTensor);
}

struct Two;

impl Module<[Tensor; 2]> for Two {
    fn call(&self, _: &Scope, [a, b]: [Tensor; 2]) -> Result<Tensor> {
        (a + b).ok()
    }
}

#[test]
fn inputs_are_counted() {
    let one = x()[0].clone();
    let message = |n: usize| trace(&Two, &vec![one.clone(); n]).unwrap_err().to_string();
    assert_eq!(message(1), "the model takes more than 1, found 1 inputs");
    assert_eq!(message(3), "the model takes 2, found 3 inputs");
}

#[test]
fn parameters_are_checked_when_a_model_is_applied() {
    let model = Model(|s: &Scope, x: Tensor| s.call(Dense::new(2), x));
    let input = Array::zeros(DType::F32, &[2, 3, 4]).unwrap();
    let params = init(&model, Key::new(1), &x()).unwrap();
    let run = |params: &qwix_eval::Params| {
        let inputs = std::slice::from_ref(&input);
        apply(&model, params, inputs, &ReferenceBackend::default()).map_err(|e| e.to_string())
    };
    assert!(run(&params).is_ok());
    let mut missing = params.clone();
    missing.remove(&Path::new("Dense_0/bias"));
    assert_eq!(run(&missing), Err("parameter `Dense_0/bias` is missing: expected f32[2]".to_owned()));
    let mut other = params.clone();
    let wrong = Value::Array(Array::zeros(DType::F32, &[4, 3]).unwrap());
    other.insert(Path::new("Dense_0/kernel"), wrong.clone());
    assert_eq!(run(&other), Err("parameter `Dense_0/kernel`: expected f32[4,2], found f32[4,3]".to_owned()));
    let mut extra = params;
    extra.insert(Path::new("Dense_1/kernel"), wrong);
    let message = run(&extra).unwrap_err();
    assert!(message.contains("`Dense_1/kernel` is not one of the model's"), "{message}");
}

#[test]
fn an_initializer_makes_what_was_asked_for() {
    let ones = |_, _: &ArrayType| Ok(Array::zeros(DType::F32, &[1])?);
    let model =
        Model(move |s: &Scope, x: Tensor| s.call(Dense::new(2).kernel_init(Initializer::new(ones)), x));
    let message = init(&model, Key::new(1), &x()).unwrap_err().to_string();
    assert!(message.contains("`Dense_0/kernel` is f32[1], as its initializer makes it,"), "{message}");
}
