//! Embeddings.

use qwix_array::DType;

use super::options;
use crate::initializers::embedding;
use crate::tensor::{Tensor, computed_in};
use crate::{Child, Initializer, Module, Result, Scope};

/// A vector for each integer below `num_embeddings`: parameter `embedding` [num_embeddings, features].
///
/// Called with integers it looks them up: the result has one axis more. An integer from `num_embeddings` on gives NaN,
/// a negative one counts from the back. [`Child::attend`] multiplies with the same parameter, for logits.
#[derive(Clone, Debug)]
pub struct Embed {
    /// How many vectors there are.
    pub num_embeddings: usize,
    /// Their size.
    pub features: usize,
    /// The dtype of the vectors; the parameter's when `None`.
    pub dtype: Option<DType>,
    /// The parameter's dtype.
    pub param_dtype: DType,
    /// How the parameter starts.
    pub embedding_init: Initializer,
}

impl Embed {
    /// So many vectors of so many features, in f32.
    pub fn new(num_embeddings: usize, features: usize) -> Self {
        Embed { num_embeddings, features, dtype: None, param_dtype: DType::F32, embedding_init: embedding() }
    }

    fn embedding(&self, scope: &Scope) -> Result<Tensor> {
        let shape = [self.num_embeddings, self.features];
        scope.param("embedding", &shape, self.param_dtype, &self.embedding_init)
    }

    /// Products of queries [..., features] with every vector: [..., num_embeddings].
    ///
    /// # Errors
    /// When the last axis is not `features` long.
    pub fn attend(&self, scope: &Scope, query: Tensor) -> Result<Tensor> {
        let embedding = self.embedding(scope)?;
        if query.dim(-1)? != self.features {
            let reason = format!("attend takes queries of {} features, found {}", self.features, query.ty()?);
            return Err(scope.error(reason));
        }
        let dtype = computed_in(self.dtype, &[&query, &embedding])?;
        query.astype(dtype).dot(&embedding.astype(dtype).t()).ok()
    }
}

options!(Embed {
    /// The dtype of the vectors.
    dtype: impl Into<Option<DType>>,
    /// The parameter's dtype.
    param_dtype: DType,
    /// How the parameter starts.
    embedding_init: Initializer,
});

impl Module for Embed {
    fn call(&self, scope: &Scope, indices: Tensor) -> Result<Tensor> {
        let embedding = self.embedding(scope)?;
        let ty = indices.ty()?;
        if !ty.dtype.is_int() {
            return Err(scope.error(format!("takes integers, found {ty}")));
        }
        let embedding = match self.dtype {
            Some(dtype) => embedding.astype(dtype),
            None => embedding,
        };
        if self.num_embeddings == 1 {
            let mut shape = ty.shape;
            shape.push(self.features);
            return embedding.broadcast_to(&shape).ok();
        }
        scope.named_scope("jit(_take)", || embedding.take(&indices, 0)).ok()
    }
}

impl Child<Embed> {
    /// Products of queries [..., features] with every vector: [..., num_embeddings].
    ///
    /// # Errors
    /// When the last axis is not `features` long.
    pub fn attend(&self, query: &Tensor) -> Result<Tensor> {
        self.method("attend", |embed, scope| embed.attend(scope, query.clone()))
    }
}
