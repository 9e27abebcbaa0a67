//! Layers made of layers, and layers without an effect at inference.

use std::fmt;

use crate::tensor::Tensor;
use crate::{Module, Result, Scope};

type Function = dyn Fn(&Tensor) -> Tensor;

enum Layer {
    Module(Box<dyn Module>),
    Function(Box<Function>),
}

/// Layers one after the other.
///
/// As in Linen, where a `Sequential` made in a module's function owns no parameters: inside another model its layers are
/// named in that model (`Dense_0`), as if they were called there. As a model itself, or after
/// [`Sequential::own_layers`], it names them by their place, functions counted too: `layers_0`, `layers_2`.
///
/// ```
/// use qwix_nn::{ArrayType, DType, Dense, Sequential, abstract_init, relu};
///
/// let model = Sequential::new().layer(Dense::new(16)).function(relu).layer(Dense::new(4));
/// let variables = abstract_init(&model, &[ArrayType::new(DType::F32, [1, 8])])?;
/// let paths: Vec<&str> = variables.keys().map(|path| path.as_str()).collect();
/// assert_eq!(paths, ["layers_0/bias", "layers_0/kernel", "layers_2/bias", "layers_2/kernel"]);
/// # Ok::<(), qwix_nn::NnError>(())
/// ```
#[derive(Default)]
pub struct Sequential {
    layers: Vec<Layer>,
    own: bool,
}

impl fmt::Debug for Sequential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |layer: &Layer| match layer {
            Layer::Module(module) => module.class_name(),
            Layer::Function(_) => "function".to_owned(),
        };
        f.debug_list().entries(self.layers.iter().map(name)).finish()
    }
}

impl Sequential {
    /// No layers yet.
    pub fn new() -> Self {
        Sequential::default()
    }

    /// A layer more.
    pub fn layer(mut self, module: impl Module + 'static) -> Self {
        self.layers.push(Layer::Module(Box::new(module)));
        self
    }

    /// A function more.
    pub fn function(mut self, function: impl Fn(&Tensor) -> Tensor + 'static) -> Self {
        self.layers.push(Layer::Function(Box::new(function)));
        self
    }

    /// Names the layers by their place, under this module's own path: what Linen does with a `Sequential` that is made
    /// in `setup` or is a field of its parent.
    pub fn own_layers(mut self) -> Self {
        self.own = true;
        self
    }
}

impl Module for Sequential {
    fn call(&self, scope: &Scope, mut x: Tensor) -> Result<Tensor> {
        for (i, layer) in self.layers.iter().enumerate() {
            x = match layer {
                Layer::Function(function) => function(&x).ok()?,
                Layer::Module(module) if self.own || scope.is_root() => {
                    scope.call_as(&format!("layers_{i}"), module, x)?
                }
                Layer::Module(module) => scope.adopted(i, module)?.call(x)?,
            };
        }
        Ok(x)
    }
}

/// Dropout, which is the identity at inference.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Dropout {
    /// The share of elements that training drops.
    pub rate: f64,
}

impl Dropout {
    /// That training drops this share of elements has no effect here.
    pub fn new(rate: f64) -> Self {
        Dropout { rate }
    }
}

impl Module for Dropout {
    fn call(&self, _: &Scope, x: Tensor) -> Result<Tensor> {
        Ok(x)
    }
}
