//! What a model is.

use crate::tensor::Tensor;
use crate::{NnError, Result, Scope};

/// A model, or a part of one: a struct of options and one function.
///
/// `I` is what it takes and `O` what it gives: a tensor each, unless other types are named ([`Inputs`] and [`Outputs`]
/// say which a whole model may have; a submodule may take and give anything).
///
/// ```
/// use qwix_nn::{Dense, Module, Result, Scope, Tensor, relu};
///
/// struct Mlp {
///     features: Vec<usize>,
/// }
///
/// impl Module for Mlp {
///     fn call(&self, scope: &Scope, mut x: Tensor) -> Result<Tensor> {
///         for (i, &features) in self.features.iter().enumerate() {
///             if i > 0 {
///                 x = relu(&x);
///             }
///             x = scope.call(Dense::new(features), x)?; // Dense_0, Dense_1, …
///         }
///         Ok(x)
///     }
/// }
/// ```
pub trait Module<I = Tensor, O = Tensor> {
    /// The module's function. It makes parameters and submodules in its scope.
    ///
    /// # Errors
    /// When inputs or options do not fit.
    fn call(&self, scope: &Scope, inputs: I) -> Result<O>;

    /// The name of the class, from which submodules get their names: that of the Rust type, unless it is to be called
    /// otherwise (as in the Flax model whose checkpoint it loads).
    fn class_name(&self) -> String {
        let path = std::any::type_name::<Self>();
        let plain = path.split('<').next().unwrap_or(path);
        plain.rsplit("::").next().unwrap_or(plain).to_owned()
    }
}

impl<I, O, M: Module<I, O> + ?Sized> Module<I, O> for &M {
    fn call(&self, scope: &Scope, inputs: I) -> Result<O> {
        (**self).call(scope, inputs)
    }

    fn class_name(&self) -> String {
        (**self).class_name()
    }
}

impl<I, O, M: Module<I, O> + ?Sized> Module<I, O> for Box<M> {
    fn call(&self, scope: &Scope, inputs: I) -> Result<O> {
        (**self).call(scope, inputs)
    }

    fn class_name(&self) -> String {
        (**self).class_name()
    }
}

/// The inputs of a model, one after the other.
#[derive(Debug)]
pub struct InputReader {
    tensors: std::vec::IntoIter<Tensor>,
    count: usize,
}

impl InputReader {
    pub(crate) fn new(tensors: Vec<Tensor>) -> Self {
        let count = tensors.len();
        InputReader { tensors: tensors.into_iter(), count }
    }

    /// The next input.
    ///
    /// # Errors
    /// When there is none left.
    pub fn tensor(&mut self) -> Result<Tensor> {
        self.tensors
            .next()
            .ok_or(NnError::InputCount { expected: format!("more than {}", self.count), found: self.count })
    }

    /// How many inputs are left.
    pub fn remaining(&self) -> usize {
        self.tensors.len()
    }

    /// Makes sure that all inputs were taken.
    pub(crate) fn finish(self) -> Result<()> {
        let taken = self.count - self.tensors.len();
        if taken == self.count {
            return Ok(());
        }
        Err(NnError::InputCount { expected: taken.to_string(), found: self.count })
    }
}

/// What a whole model may take: tensors, and tuples, arrays and vectors of such. A vector takes all that are left.
pub trait Inputs: Sized {
    /// Takes what it needs.
    ///
    /// # Errors
    /// When there are not enough inputs.
    fn read(reader: &mut InputReader) -> Result<Self>;
}

/// What a whole model may give: tensors, and tuples, arrays and vectors of such.
pub trait Outputs {
    /// Adds its tensors, in order.
    fn write(self, into: &mut Vec<Tensor>);
}

impl Inputs for Tensor {
    fn read(reader: &mut InputReader) -> Result<Self> {
        reader.tensor()
    }
}

impl Outputs for Tensor {
    fn write(self, into: &mut Vec<Tensor>) {
        into.push(self);
    }
}

impl<T: Inputs> Inputs for Vec<T> {
    fn read(reader: &mut InputReader) -> Result<Self> {
        let mut all = Vec::new();
        while reader.remaining() > 0 {
            let before = reader.remaining();
            all.push(T::read(reader)?);
            // What takes nothing would never come to an end.
            if reader.remaining() == before {
                break;
            }
        }
        Ok(all)
    }
}

impl<T: Outputs> Outputs for Vec<T> {
    fn write(self, into: &mut Vec<Tensor>) {
        self.into_iter().for_each(|t| t.write(into));
    }
}

impl<T: Inputs, const N: usize> Inputs for [T; N] {
    fn read(reader: &mut InputReader) -> Result<Self> {
        let all = (0..N).map(|_| T::read(reader)).collect::<Result<Vec<T>>>()?;
        let count = reader.count;
        all.try_into().map_err(|_| NnError::InputCount { expected: N.to_string(), found: count })
    }
}

impl<T: Outputs, const N: usize> Outputs for [T; N] {
    fn write(self, into: &mut Vec<Tensor>) {
        self.into_iter().for_each(|t| t.write(into));
    }
}

macro_rules! tuples {
    ($(($($name:ident),*)),* $(,)?) => {
        $(
            impl<$($name: Inputs),*> Inputs for ($($name,)*) {
                fn read(_reader: &mut InputReader) -> Result<Self> {
                    Ok(($($name::read(_reader)?,)*))
                }
            }

            impl<$($name: Outputs),*> Outputs for ($($name,)*) {
                #[allow(non_snake_case)]
                fn write(self, _into: &mut Vec<Tensor>) {
                    let ($($name,)*) = self;
                    $($name.write(_into);)*
                }
            }
        )*
    };
}

tuples! { (), (A), (A, B), (A, B, C), (A, B, C, D), (A, B, C, D, E), (A, B, C, D, E, F) }
