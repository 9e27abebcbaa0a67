//! The printer.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;

use super::constant::write_constant;
use super::signature;
use crate::{
    ArrayType, CompareOrder, Computation, ConvDims, Graph, Node, Op, Parameter, Precision, RngAlgorithm,
    Type, WindowDim, sharding,
};

/// What [`Graph::to_text`] writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TextOptions {
    /// Constants with more elements than this are written as `{...}`, which cannot be read back.
    pub largest_constant: usize,
}

impl Default for TextOptions {
    fn default() -> Self {
        TextOptions { largest_constant: usize::MAX }
    }
}

impl TextOptions {
    /// For people: constants of more than 16 elements are left out.
    pub fn short() -> Self {
        TextOptions { largest_constant: 16 }
    }
}

impl Graph {
    /// The graph as HLO text, a block for each computation, callees first; see the crate's `text` module for what is
    /// added to XLA's syntax.
    pub fn to_text(&self, options: TextOptions) -> String {
        let mut printer = Printer::new(options);
        let _ = writeln!(printer.out, "HloModule {}, frontend_attributes={{qwix=\"1\"}}", name(&self.name));
        // The entry's own name is taken before its callees'.
        let label = printer.label(&self.entry.name);
        printer.callees(&self.entry);
        let _ = write!(printer.out, "\nENTRY ");
        printer.block(&self.entry, &label, Some(&self.parameters));
        printer.out
    }
}

struct Printer {
    out: String,
    options: TextOptions,
    /// What each computation that was printed is called in the text.
    labels: HashMap<*const Computation, String>,
    /// Names in use, and for each the suffix that was tried last for another computation of that name.
    taken: HashMap<String, usize>,
}

/// The attributes of an op that calls no computation.
pub(super) fn op_attributes(op: &Op) -> String {
    Printer::new(TextOptions::default()).attributes(op)
}

impl Printer {
    fn new(options: TextOptions) -> Self {
        Printer { out: String::new(), options, labels: HashMap::new(), taken: HashMap::new() }
    }

    /// The computation's name, or one like it that is free.
    fn label(&mut self, own: &str) -> String {
        let mut suffix = self.taken.get(own).copied().unwrap_or(0);
        let mut label = own.to_owned();
        while label.is_empty() || self.taken.contains_key(&label) {
            suffix += 1;
            label = format!("{own}.{suffix}");
        }
        self.taken.insert(own.to_owned(), suffix);
        self.taken.insert(label.clone(), 0);
        label
    }

    /// Prints the computations that this one calls, if they are not yet.
    fn callees(&mut self, computation: &Computation) {
        for node in &computation.nodes {
            for called in node.op.called() {
                if self.labels.contains_key(&Arc::as_ptr(called)) {
                    continue;
                }
                self.callees(called);
                let label = self.label(&called.name);
                self.out.push('\n');
                self.block(called, &label, None);
                self.labels.insert(Arc::as_ptr(called), label);
            }
        }
    }

    fn block(&mut self, computation: &Computation, label: &str, signature: Option<&[Parameter]>) {
        let _ = write!(self.out, "%{} (", name(label));
        for (index, id) in computation.parameters().into_iter().enumerate() {
            let node = computation.node(id);
            let separator = if index == 0 { "" } else { ", " };
            let _ = write!(self.out, "{separator}{}: {}", name(&node.name), node.ty);
        }
        let root = computation.nodes.get(computation.root.index());
        let _ = write!(self.out, ") -> {} {{", root.map_or(String::new(), |n| n.ty.to_string()));
        if label != computation.name {
            let quoted = quote(computation.name.as_bytes()).replace("*/", "*\\057");
            let _ = write!(self.out, " /*name={quoted}*/");
        }
        self.out.push('\n');
        for (id, node) in computation.iter() {
            let root = if id == computation.root { "ROOT " } else { "" };
            let _ = write!(self.out, "  {root}%{} = ", name(&node.name));
            write_type(&mut self.out, &node.ty);
            let _ = write!(self.out, " {}(", node.op.name());
            match &node.op {
                Op::Parameter(number) => {
                    let _ = write!(self.out, "{number}");
                }
                Op::Constant(array) => write_constant(&mut self.out, array, self.options.largest_constant),
                _ => {
                    for (index, &operand) in node.operands.iter().enumerate() {
                        let separator = if index == 0 { "" } else { ", " };
                        let operand = computation.nodes.get(operand.index()).map_or("", |n| n.name.as_str());
                        let _ = write!(self.out, "{separator}%{}", name(operand));
                    }
                }
            }
            self.out.push(')');
            let attributes = self.attributes(&node.op);
            self.out.push_str(&attributes);
            if let Op::Parameter(number) = node.op
                && let Some(parameter) = signature.and_then(|s| s.get(number))
            {
                write_parameter(&mut self.out, parameter);
            }
            write_tail(&mut self.out, node);
            self.out.push('\n');
        }
        self.out.push_str("}\n");
    }

    fn called(&self, computation: &Arc<Computation>) -> String {
        let label = self.labels.get(&Arc::as_ptr(computation)).map_or("", String::as_str);
        format!("%{}", name(label))
    }

    /// What follows the operands.
    fn attributes(&self, op: &Op) -> String {
        match op {
            Op::Parameter(_)
            | Op::Constant(_)
            | Op::Unary(_)
            | Op::Binary(_)
            | Op::Select
            | Op::Clamp
            | Op::Convert
            | Op::BitcastConvert
            | Op::Reshape
            | Op::DynamicUpdateSlice
            | Op::Tuple
            | Op::OptimizationBarrier
            | Op::Quantize(_)
            | Op::Dequantize => String::new(),
            Op::Sharding { open } => {
                let config = String::from_utf8_lossy(&sharding::config_of(open)).into_owned();
                let config =
                    if config.is_empty() { config } else { format!(", backend_config=\"{config}\"") };
                format!(", custom_call_target=\"{}\"{config}", sharding::TARGET)
            }
            Op::Iota { dimension } => format!(", iota_dimension={dimension}"),
            Op::Compare { comparison, order } => format!(
                ", direction={}{}",
                comparison.name(),
                match order {
                    CompareOrder::Partial => "",
                    CompareOrder::Total => ", type=TOTALORDER",
                }
            ),
            Op::ReducePrecision { exponent_bits, mantissa_bits } => {
                format!(", exponent_bits={exponent_bits}, mantissa_bits={mantissa_bits}")
            }
            Op::Broadcast { dimensions }
            | Op::Transpose { permutation: dimensions }
            | Op::Reverse { dimensions } => {
                format!(", dimensions={}", list(dimensions))
            }
            Op::Concatenate { dimension } => format!(", dimensions={{{dimension}}}"),
            Op::Slice(dims) => {
                let dim = |d: &crate::SliceDim| match d.stride {
                    1 => format!("[{}:{}]", d.start, d.limit),
                    stride => format!("[{}:{}:{stride}]", d.start, d.limit),
                };
                format!(", slice={{{}}}", dims.iter().map(dim).collect::<Vec<_>>().join(", "))
            }
            Op::DynamicSlice { sizes } => format!(", dynamic_slice_sizes={}", list(sizes)),
            Op::Pad(dims) => {
                let dim = |d: &crate::PadDim| match d.interior {
                    0 => format!("{}_{}", d.low, d.high),
                    interior => format!("{}_{}_{interior}", d.low, d.high),
                };
                format!(", padding={}", dims.iter().map(dim).collect::<Vec<_>>().join("x"))
            }
            Op::Gather(d) => {
                let mut text = format!(
                    ", offset_dims={}, collapsed_slice_dims={}, start_index_map={}",
                    list(&d.offset_dims),
                    list(&d.collapsed_slice_dims),
                    list(&d.start_index_map)
                );
                text += &non_empty("operand_batching_dims", &d.operand_batching_dims);
                text += &non_empty("start_indices_batching_dims", &d.start_indices_batching_dims);
                let _ = write!(text, ", index_vector_dim={}", d.index_vector_dim);
                let _ = write!(text, ", slice_sizes={}", list(&d.slice_sizes));
                text + &flag("indices_are_sorted", d.indices_are_sorted)
            }
            Op::Scatter { dims: d, update } => {
                let mut text = format!(
                    ", update_window_dims={}, inserted_window_dims={}, scatter_dims_to_operand_dims={}",
                    list(&d.update_window_dims),
                    list(&d.inserted_window_dims),
                    list(&d.scatter_dims_to_operand_dims)
                );
                text += &non_empty("input_batching_dims", &d.input_batching_dims);
                text += &non_empty("scatter_indices_batching_dims", &d.scatter_indices_batching_dims);
                let _ = write!(text, ", index_vector_dim={}", d.index_vector_dim);
                text += &flag("indices_are_sorted", d.indices_are_sorted);
                text += &flag("unique_indices", d.unique_indices);
                format!("{text}, to_apply={}", self.called(update))
            }
            Op::Dot(d) => {
                non_empty("lhs_batch_dims", &d.lhs_batch)
                    + &format!(", lhs_contracting_dims={}", list(&d.lhs_contracting))
                    + &non_empty("rhs_batch_dims", &d.rhs_batch)
                    + &format!(", rhs_contracting_dims={}", list(&d.rhs_contracting))
                    + &precision(d.operand_precision)
            }
            Op::Convolution(dims) => {
                let mut text = window(&dims.window) + &format!(", dim_labels={}", dim_labels(dims));
                if dims.feature_group_count != 1 {
                    let _ = write!(text, ", feature_group_count={}", dims.feature_group_count);
                }
                if dims.batch_group_count != 1 {
                    let _ = write!(text, ", batch_group_count={}", dims.batch_group_count);
                }
                text + &precision(dims.operand_precision)
            }
            Op::Reduce { dimensions, computation } => {
                format!(", dimensions={}, to_apply={}", list(dimensions), self.called(computation))
            }
            Op::ReduceWindow { window: dims, computation } => {
                format!("{}, to_apply={}", window(dims), self.called(computation))
            }
            Op::SelectAndScatter { window: dims, select, scatter } => {
                format!("{}, select={}, scatter={}", window(dims), self.called(select), self.called(scatter))
            }
            Op::Sort { dimension, stable, comparator } => {
                format!(", dimensions={{{dimension}}}")
                    + &flag("is_stable", *stable)
                    + &format!(", to_apply={}", self.called(comparator))
            }
            Op::TopK { k, largest } => format!(", k={k}, largest={largest}"),
            Op::Map { computation } => {
                format!(", to_apply={}", self.called(computation))
            }
            Op::Call { computation, composite } => {
                let mut text = format!(", to_apply={}", self.called(computation));
                if let Some(composite) = composite {
                    let texts: Vec<String> = composite
                        .texts()
                        .into_iter()
                        .map(|(key, text)| {
                            // A dictionary stands as it is.
                            let plain = text.starts_with('{') && text.is_ascii();
                            format!("{key}={}", if plain { text } else { quote(text.as_bytes()) })
                        })
                        .collect();
                    let _ = write!(text, ", is_composite=true, frontend_attributes={{{}}}", texts.join(","));
                }
                text
            }
            Op::GetTupleElement(index) => format!(", index={index}"),
            Op::While { condition, body } => {
                format!(", condition={}, body={}", self.called(condition), self.called(body))
            }
            Op::Conditional { branches } => {
                let branches: Vec<String> = branches.iter().map(|b| self.called(b)).collect();
                format!(", branch_computations={{{}}}", branches.join(", "))
            }
            Op::RngBitGenerator(algorithm) => format!(
                ", algorithm={}",
                match algorithm {
                    RngAlgorithm::Default => "rng_default",
                    RngAlgorithm::ThreeFry => "rng_three_fry",
                    RngAlgorithm::Philox => "rng_philox",
                }
            ),
            Op::CustomCall(call) => {
                let mut text = format!(", custom_call_target={}", quote(call.target.as_bytes()));
                if !call.called.is_empty() {
                    let called: Vec<String> = call.called.iter().map(|c| format!("%{}", name(c))).collect();
                    let _ = write!(text, ", called_computations={{{}}}", called.join(", "));
                }
                if call.typed {
                    text.push_str(", api_version=API_VERSION_TYPED_FFI");
                }
                if !call.config.is_empty() {
                    let _ = write!(text, ", backend_config={}", quote(&call.config));
                }
                text
            }
            Op::Unsupported(unsupported) => {
                format!(", unsupported={}", quote(unsupported.reason.as_bytes()))
            }
        }
    }
}

/// A name as it stands in the text: in quotes when it has characters that end one.
pub(super) fn name(name: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if !name.is_empty() && name.chars().all(plain) { name.to_owned() } else { quote(name.as_bytes()) }
}

/// Bytes between quotes, escaped as C does.
pub(super) fn quote(bytes: &[u8]) -> String {
    let mut out = String::from("\"");
    for &byte in bytes {
        match byte {
            b'\n' => out.push_str("\\n"),
            b'\r' => out.push_str("\\r"),
            b'\t' => out.push_str("\\t"),
            b'"' | b'\'' | b'\\' => {
                out.push('\\');
                out.push(byte as char);
            }
            0x20..=0x7e => out.push(byte as char),
            other => {
                let _ = write!(out, "\\{other:03o}");
            }
        }
    }
    out.push('"');
    out
}

pub(super) fn list(values: &[usize]) -> String {
    format!("{{{}}}", values.iter().map(usize::to_string).collect::<Vec<_>>().join(","))
}

/// Left out where it is the default, as XLA does.
fn precision(sides: [Precision; 2]) -> String {
    if sides == [Precision::Default; 2] {
        return String::new();
    }
    format!(", operand_precision={{{},{}}}", sides[0].name(), sides[1].name())
}

fn non_empty(name: &str, values: &[usize]) -> String {
    if values.is_empty() { String::new() } else { format!(", {name}={}", list(values)) }
}

/// A promise that is written only when it is made.
fn flag(name: &str, set: bool) -> String {
    if set { format!(", {name}=true") } else { String::new() }
}

fn window(dims: &[WindowDim]) -> String {
    if dims.is_empty() {
        return String::new();
    }
    let join = |f: &dyn Fn(&WindowDim) -> String| dims.iter().map(f).collect::<Vec<_>>().join("x");
    let mut text = format!(", window={{size={}", join(&|d| d.size.to_string()));
    if dims.iter().any(|d| d.stride != 1) {
        let _ = write!(text, " stride={}", join(&|d| d.stride.to_string()));
    }
    if dims.iter().any(|d| d.padding_low != 0 || d.padding_high != 0) {
        let _ = write!(text, " pad={}", join(&|d| format!("{}_{}", d.padding_low, d.padding_high)));
    }
    if dims.iter().any(|d| d.base_dilation != 1) {
        let _ = write!(text, " lhs_dilate={}", join(&|d| d.base_dilation.to_string()));
    }
    if dims.iter().any(|d| d.window_dilation != 1) {
        let _ = write!(text, " rhs_dilate={}", join(&|d| d.window_dilation.to_string()));
    }
    if dims.iter().any(|d| d.reversal) {
        let _ = write!(text, " rhs_reversal={}", join(&|d| u8::from(d.reversal).to_string()));
    }
    text + "}"
}

fn dim_labels(dims: &ConvDims) -> String {
    let label = |first: usize, first_name: char, second: usize, second_name: char, spatial: &[usize]| {
        let mut axes = vec![(first, first_name.to_string()), (second, second_name.to_string())];
        axes.extend(spatial.iter().enumerate().map(|(i, &axis)| (axis, i.to_string())));
        axes.sort();
        axes.into_iter().map(|(_, name)| name).collect::<String>()
    };
    format!(
        "{}_{}->{}",
        label(dims.input_batch, 'b', dims.input_feature, 'f', &dims.input_spatial),
        label(dims.kernel_input_feature, 'i', dims.kernel_output_feature, 'o', &dims.kernel_spatial),
        label(dims.output_batch, 'b', dims.output_feature, 'f', &dims.output_spatial)
    )
}

/// A type with the layouts that XLA prints: row-major.
fn write_type(out: &mut String, ty: &Type) {
    match ty {
        Type::Array(ArrayType { shape, .. }) => {
            let _ = write!(out, "{ty}");
            if !shape.is_empty() {
                let axes: Vec<String> = (0..shape.len()).rev().map(|axis| axis.to_string()).collect();
                let _ = write!(out, "{{{}}}", axes.join(","));
            }
        }
        Type::Tuple(elements) => {
            out.push('(');
            for (index, element) in elements.iter().enumerate() {
                match index {
                    0 => {}
                    // As XLA does, for those who count.
                    i if i % 5 == 0 => {
                        let _ = write!(out, ", /*index={i}*/");
                    }
                    _ => out.push_str(", "),
                }
                write_type(out, element);
            }
            out.push(')');
        }
        Type::QArray(_) | Type::Token | Type::Opaque(_) => {
            let _ = write!(out, "{ty}");
        }
    }
}

fn write_parameter(out: &mut String, parameter: &Parameter) {
    let texts: Vec<String> = signature::attributes(parameter)
        .into_iter()
        .map(|(name, text)| format!("{name}={}", quote(text.as_bytes())))
        .collect();
    let _ = write!(out, ", frontend_attributes={{{}}}", texts.join(","));
}

fn write_tail(out: &mut String, node: &Node) {
    if let Some(sharding) = &node.sharding {
        let _ = write!(out, ", sharding={sharding}");
    }
    if !node.metadata.op_name.is_empty() {
        let _ = write!(out, ", metadata={{op_name={}}}", quote(node.metadata.op_name.as_bytes()));
    }
    if node.metadata.id != 0 {
        let _ = write!(out, " /*id={}*/", node.metadata.id);
    }
}
