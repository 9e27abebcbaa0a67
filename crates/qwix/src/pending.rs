//! Temporary.
#![allow(missing_docs)]
use qwix_graph::*;
pub trait Pending: Sized {
    fn from_text(t: &str) -> std::result::Result<Self, GraphError>;
    fn to_text(&self) -> String;
}
impl Pending for Graph {
    fn from_text(_: &str) -> std::result::Result<Self, GraphError> {
        Ok(Graph::default())
    }
    fn to_text(&self) -> String {
        String::new()
    }
}
