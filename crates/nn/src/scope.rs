//! Where a module's parameters and submodules are made.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use qwix_array::{Array, DType};
use qwix_graph::{ArrayType, Op, Type};

use crate::tensor::{Scalar, Tensor};
use crate::tracer::{CACHE, PARAMS, Tracer};
use crate::{Initializer, Module, NnError, Result};

/// What a module sees of the model: it makes parameters here, and submodules, which get scopes of their own.
///
/// Names are Linen's: a submodule is called by its class and a count, `Dense_0`, `Dense_1`, in the order in which they
/// are made, unless it is given a name. A name belongs to one submodule or parameter of a call; asking for it twice is
/// an error. To share parameters, keep the [`Child`] and call it again.
#[derive(Clone, Debug)]
pub struct Scope {
    tracer: Rc<Tracer>,
    path: Rc<Vec<String>>,
    frame: Rc<RefCell<Frame>>,
    parent: Option<Box<Scope>>,
    /// By place, the names in the parent that its layers have: the same in every call.
    adopted: Rc<RefCell<HashMap<usize, String>>>,
}

/// The names that a call has given away.
#[derive(Debug, Default)]
struct Frame {
    taken: HashMap<String, Holder>,
    counts: HashMap<String, usize>,
}

/// What holds a name. Variables of several collections may share one.
#[derive(Debug, PartialEq)]
enum Holder {
    Submodule,
    Variables(Vec<String>),
}

impl Scope {
    pub(crate) fn root(tracer: &Rc<Tracer>) -> Self {
        Scope {
            tracer: Rc::clone(tracer),
            path: Rc::default(),
            frame: Rc::default(),
            parent: None,
            adopted: Rc::default(),
        }
    }

    /// The module's path: empty for the model itself.
    pub fn path(&self) -> String {
        self.path.join("/")
    }

    /// An error of the layer that is called: what was found, and what was expected.
    pub fn error(&self, reason: impl Into<String>) -> NnError {
        NnError::Layer { module: self.tracer.place(), reason: reason.into() }
    }

    /// Calls a submodule, named by its class and a count.
    ///
    /// # Errors
    /// As [`Scope::child`], and what the module itself refuses.
    pub fn call<M: Module<I, O>, I, O>(&self, module: M, inputs: impl Into<I>) -> Result<O> {
        self.child(module)?.call(inputs)
    }

    /// Calls a submodule of this name.
    ///
    /// # Errors
    /// As [`Scope::child_as`], and what the module itself refuses.
    pub fn call_as<M: Module<I, O>, I, O>(&self, name: &str, module: M, inputs: impl Into<I>) -> Result<O> {
        self.child_as(name, module)?.call(inputs)
    }

    /// A submodule, named by its class and a count, to be called once or more often.
    ///
    /// # Errors
    /// When something else has that name.
    pub fn child<M: Module<I, O>, I, O>(&self, module: M) -> Result<Child<M>> {
        let name = self.next_name(module.class_name());
        self.child_as(&name, module)
    }

    fn next_name(&self, class: String) -> String {
        let mut frame = self.frame.borrow_mut();
        let count = frame.counts.entry(class.clone()).or_default();
        let name = format!("{class}_{count}");
        *count += 1;
        name
    }

    /// A submodule of this name, to be called once or more often.
    ///
    /// # Errors
    /// When something else has that name.
    pub fn child_as<M: Module<I, O>, I, O>(&self, name: &str, module: M) -> Result<Child<M>> {
        self.reserve(name, None)?;
        Ok(self.known_child(name, module))
    }

    fn known_child<M>(&self, name: &str, module: M) -> Child<M> {
        let mut path = Vec::clone(&self.path);
        path.push(name.to_owned());
        let scope = Scope {
            tracer: Rc::clone(&self.tracer),
            path: Rc::new(path),
            frame: Rc::default(),
            parent: Some(Box::new(self.clone())),
            adopted: Rc::default(),
        };
        Child { module, scope, name: name.to_owned() }
    }

    /// Whether this is the model itself.
    pub(crate) fn is_root(&self) -> bool {
        self.parent.is_none()
    }

    /// A submodule that lies in the parent, known here by its place.
    pub(crate) fn adopted<M: Module<I, O>, I, O>(&self, place: usize, module: M) -> Result<Child<M>> {
        let parent = self.parent.as_deref().unwrap_or(self);
        if let Some(name) = self.adopted.borrow().get(&place) {
            return Ok(parent.known_child(name, module));
        }
        let child = parent.child(module)?;
        self.adopted.borrow_mut().insert(place, child.name.clone());
        Ok(child)
    }

    /// A trained parameter of this module.
    ///
    /// # Errors
    /// When the name is taken, or another call made it with another type.
    pub fn param(&self, name: &str, shape: &[usize], dtype: DType, init: &Initializer) -> Result<Tensor> {
        self.variable(PARAMS, name, shape, dtype, init)
    }

    /// A variable of this module in another of Flax's collections, such as `batch_stats`. Its initializer gets no key of
    /// its own. Its path is without the collection, unless that is none of Flax's or the path is a parameter's too.
    ///
    /// # Errors
    /// When the name is taken, or another call made it with another type; for the collection `cache`, whose state is to
    /// be an input and an output.
    pub fn variable(
        &self,
        collection: &str,
        name: &str,
        shape: &[usize],
        dtype: DType,
        init: &Initializer,
    ) -> Result<Tensor> {
        if collection == CACHE {
            return Err(self.error(
                "state that changes with every call is no variable; make it an input and an output, as `KvCache` is",
            ));
        }
        self.reserve(name, Some(collection))?;
        self.tracer.variable(collection, &self.path, name, &ArrayType::new(dtype, shape), init)
    }

    /// Gives a name away: to a submodule, or to a variable of a collection.
    fn reserve(&self, name: &str, collection: Option<&str>) -> Result<()> {
        if [name, collection.unwrap_or(name)].iter().any(|text| text.is_empty() || text.contains('/')) {
            return Err(self.error(format!("`{name}` is no name: it should be one segment of a path")));
        }
        let mut frame = self.frame.borrow_mut();
        let holder = match (frame.taken.get_mut(name), collection) {
            (None, _) => {
                let holder = match collection {
                    Some(collection) => Holder::Variables(vec![collection.to_owned()]),
                    None => Holder::Submodule,
                };
                frame.taken.insert(name.to_owned(), holder);
                return Ok(());
            }
            (Some(Holder::Variables(held)), Some(new)) if !held.iter().any(|c| c == new) => {
                held.push(new.to_owned());
                return Ok(());
            }
            (Some(Holder::Variables(_)), _) => "a parameter",
            (Some(Holder::Submodule), _) => "a submodule",
        };
        Err(NnError::NameTaken {
            module: self.tracer.place(),
            name: name.to_owned(),
            what: if collection.is_some() { "parameter" } else { "submodule" },
            holder,
        })
    }

    /// Runs `f` with its ops under one more segment of op names, as `jax.named_scope` does.
    pub fn named_scope<T>(&self, segment: &str, f: impl FnOnce() -> T) -> T {
        self.tracer.inside(segment, f)
    }

    /// An array that is known when the model is traced.
    pub fn constant(&self, array: Array) -> Tensor {
        let made = if array.rank() == 0 {
            self.tracer.scalar(array)
        } else {
            self.tracer.emit(Op::Constant(array), &[], Type::Token)
        };
        Tensor::wrap(&self.tracer, made)
    }

    /// A tensor all of one number.
    pub fn full(&self, shape: &[usize], value: impl Into<Scalar>, dtype: DType) -> Tensor {
        let scalar = value.into().array(dtype).and_then(|array| self.tracer.scalar(array));
        Tensor::wrap(&self.tracer, scalar).broadcast_to(shape)
    }

    /// A tensor of zeros.
    pub fn zeros(&self, shape: &[usize], dtype: DType) -> Tensor {
        self.full(shape, 0, dtype)
    }

    /// A tensor of ones.
    pub fn ones(&self, shape: &[usize], dtype: DType) -> Tensor {
        self.full(shape, 1, dtype)
    }

    /// 0, 1, … below `length`.
    pub fn arange(&self, length: usize, dtype: DType) -> Tensor {
        self.iota(&[length], 0, dtype)
    }

    /// A tensor that counts along one axis.
    pub fn iota(&self, shape: &[usize], axis: usize, dtype: DType) -> Tensor {
        let made = self.tracer.emit(Op::Iota { dimension: axis }, &[], Type::array(dtype, shape));
        Tensor::wrap(&self.tracer, made)
    }
}

/// A submodule with its name: what it makes lies under that name, however often it is called.
#[derive(Clone, Debug)]
pub struct Child<M> {
    module: M,
    scope: Scope,
    name: String,
}

impl<M> Child<M> {
    /// The name under which its parameters lie in the parent.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The module.
    pub fn module(&self) -> &M {
        &self.module
    }

    /// Calls it.
    ///
    /// # Errors
    /// What the module refuses.
    pub fn call<I, O>(&self, inputs: impl Into<I>) -> Result<O>
    where
        M: Module<I, O>,
    {
        let inputs = inputs.into();
        self.run(|module, scope| module.call(scope, inputs))
    }

    /// Calls another method than [`Module::call`]; in op names it stands as Linen writes it, `name.method`.
    ///
    /// # Errors
    /// What the method refuses.
    pub fn method<T>(&self, method: &str, f: impl FnOnce(&M, &Scope) -> Result<T>) -> Result<T> {
        self.run_as(&format!("{}.{method}", self.name), f)
    }

    /// What [`Child::call`] does with another function of the module in the place of [`Module::call`].
    pub(crate) fn run<T>(&self, f: impl FnOnce(&M, &Scope) -> Result<T>) -> Result<T> {
        self.run_as(&self.name, f)
    }

    /// Each call may ask for the names anew: what it makes is then shared.
    fn run_as<T>(&self, segment: &str, f: impl FnOnce(&M, &Scope) -> Result<T>) -> Result<T> {
        let scope = Scope { frame: Rc::default(), ..self.scope.clone() };
        self.scope.tracer.inside(segment, || f(&self.module, &scope))
    }
}
