//! Opcode and attributes → [`Op`].

use std::collections::HashMap;
use std::sync::Arc;

use super::attributes::{Attributes, braces};
use super::scan::{Fault, Scanner};
use crate::import::{annotation, carries_any_type, opaque_part};
use crate::{
    BinaryOp, CompareOrder, Comparison, Composite, Computation, ConvDims, CustomCall, DotDims, GatherDims,
    Op, RngAlgorithm, ScatterDims, Type, UnaryOp, Unsupported, sharding,
};

/// Computations that stand above, by the names that the text calls them, with how deep they call others.
pub(super) type Known = HashMap<String, (Arc<Computation>, usize)>;

/// The op of an instruction whose parentheses are read already, and how deep the computations that it calls go.
pub(super) fn op_of(
    opcode: &str,
    ty: &Type,
    operands: &[&Type],
    attributes: &Attributes<'_>,
    known: &Known,
) -> Result<(Op, usize), Fault> {
    let a = attributes;
    if let Some(mut s) = a.get("unsupported") {
        let reason = s.text_string()?;
        return Ok((Op::Unsupported(Unsupported { opcode: opcode.to_owned(), reason }), 0));
    }
    let unsupported =
        |reason: String| Ok((Op::Unsupported(Unsupported { opcode: opcode.to_owned(), reason }), 0));
    if !carries_any_type(opcode)
        && let Some(part) = opaque_part(ty).or_else(|| operands.iter().find_map(|ty| opaque_part(ty)))
    {
        return unsupported(format!("the type {part} is not supported"));
    }
    if let Some(op) = UnaryOp::by_name(opcode) {
        return Ok((Op::Unary(op), 0));
    }
    if let Some(op) = BinaryOp::by_name(opcode) {
        return Ok((Op::Binary(op), 0));
    }
    let mut height = 0;
    let mut called = |name: &str| -> Result<Arc<Computation>, Fault> {
        let (computation, its) = look_up(&mut a.need(name)?, known)?;
        height = height.max(its + 1);
        Ok(computation)
    };
    let op = match opcode {
        "iota" => Op::Iota { dimension: a.count("iota_dimension")? },
        "compare" => Op::Compare {
            comparison: word(a, "direction", Comparison::by_name)?,
            order: match a.raw("type") {
                Some("TOTALORDER") => CompareOrder::Total,
                None | Some("FLOAT" | "SIGNED" | "UNSIGNED") => CompareOrder::Partial,
                Some(other) => {
                    return Err(a.fault(format!(
                        "`type`: expected FLOAT, TOTALORDER, SIGNED or UNSIGNED, found {other}"
                    )));
                }
            },
        },
        "select" => Op::Select,
        "clamp" => Op::Clamp,
        "convert" => Op::Convert,
        "bitcast-convert" => Op::BitcastConvert,
        "reduce-precision" => Op::ReducePrecision {
            exponent_bits: bits(a, "exponent_bits")?,
            mantissa_bits: bits(a, "mantissa_bits")?,
        },
        "broadcast" => Op::Broadcast { dimensions: a.counts("dimensions")? },
        "reshape" => Op::Reshape,
        "transpose" => Op::Transpose { permutation: a.counts("dimensions")? },
        "slice" => Op::Slice(a.slice()?),
        "dynamic-slice" => Op::DynamicSlice { sizes: a.need_counts("dynamic_slice_sizes")? },
        "dynamic-update-slice" => Op::DynamicUpdateSlice,
        "concatenate" => Op::Concatenate { dimension: a.one("dimensions")? },
        "pad" => Op::Pad(a.padding()?),
        "reverse" => Op::Reverse { dimensions: a.counts("dimensions")? },
        "gather" => Op::Gather(GatherDims {
            offset_dims: a.counts("offset_dims")?,
            collapsed_slice_dims: a.counts("collapsed_slice_dims")?,
            start_index_map: a.counts("start_index_map")?,
            operand_batching_dims: a.counts("operand_batching_dims")?,
            start_indices_batching_dims: a.counts("start_indices_batching_dims")?,
            index_vector_dim: a.count("index_vector_dim")?,
            slice_sizes: a.need_counts("slice_sizes")?,
            indices_are_sorted: a.flag("indices_are_sorted")?,
        }),
        "scatter" => Op::Scatter {
            dims: ScatterDims {
                update_window_dims: a.counts("update_window_dims")?,
                inserted_window_dims: a.counts("inserted_window_dims")?,
                scatter_dims_to_operand_dims: a.counts("scatter_dims_to_operand_dims")?,
                input_batching_dims: a.counts("input_batching_dims")?,
                scatter_indices_batching_dims: a.counts("scatter_indices_batching_dims")?,
                index_vector_dim: a.count("index_vector_dim")?,
                indices_are_sorted: a.flag("indices_are_sorted")?,
                unique_indices: a.flag("unique_indices")?,
            },
            update: called("to_apply")?,
        },
        "dot" => {
            if a.get("sparsity").is_some() {
                return unsupported("sparse operands".into());
            }
            Op::Dot(DotDims {
                lhs_contracting: a.counts("lhs_contracting_dims")?,
                rhs_contracting: a.counts("rhs_contracting_dims")?,
                lhs_batch: a.counts("lhs_batch_dims")?,
                rhs_batch: a.counts("rhs_batch_dims")?,
                operand_precision: a.precision()?,
            })
        }
        "convolution" => Op::Convolution(convolution(a)?),
        "reduce" => Op::Reduce { dimensions: a.counts("dimensions")?, computation: called("to_apply")? },
        "reduce-window" => Op::ReduceWindow { window: a.window()?, computation: called("to_apply")? },
        "select-and-scatter" => Op::SelectAndScatter {
            window: a.window()?,
            select: called("select")?,
            scatter: called("scatter")?,
        },
        "sort" => Op::Sort {
            dimension: a.one("dimensions")?,
            stable: a.flag("is_stable")?,
            comparator: called("to_apply")?,
        },
        "topk" => Op::TopK { k: a.count("k")?, largest: a.flag("largest")? },
        "map" => Op::Map { computation: called("to_apply")? },
        "tuple" => Op::Tuple,
        "get-tuple-element" => Op::GetTupleElement(a.count("index")?),
        "while" => Op::While { condition: called("condition")?, body: called("body")? },
        "conditional" => {
            if a.get("branch_computations").is_none() {
                Op::Conditional { branches: vec![called("true_computation")?, called("false_computation")?] }
            } else {
                let mut s = a.need("branch_computations")?;
                let found = braces(&mut s, |s| look_up(s, known))?;
                height = found.iter().map(|(_, its)| its + 1).max().unwrap_or(0);
                Op::Conditional { branches: found.into_iter().map(|(branch, _)| branch).collect() }
            }
        }
        "call" => Op::Call { computation: called("to_apply")?, composite: composite(a)? },
        "rng-bit-generator" => Op::RngBitGenerator(match a.raw("algorithm") {
            None | Some("rng_default") => RngAlgorithm::Default,
            Some("rng_three_fry" | "rng_threefry") => RngAlgorithm::ThreeFry,
            Some("rng_philox") => RngAlgorithm::Philox,
            Some(other) => {
                return Err(a.fault(format!(
                    "`algorithm`: expected rng_default, rng_three_fry or rng_philox, found {other}"
                )));
            }
        }),
        "opt-barrier" => Op::OptimizationBarrier,
        "custom-call" => custom_call(a, ty, operands)?,
        "quantize" => match ty {
            Type::QArray(q) => Op::Quantize(q.how.clone()),
            Type::Array(_) | Type::Tuple(_) | Type::Token | Type::Opaque(_) => {
                return Err(a.fault(format!("quantize should yield a quantized array, yields {ty}")));
            }
        },
        "dequantize" => Op::Dequantize,
        "constant" => return unsupported("only arrays can be constants".into()),
        _ => return unsupported("the op is not known".into()),
    };
    Ok((op, height))
}

/// What a call stands for.
fn composite(a: &Attributes<'_>) -> Result<Option<Arc<Composite>>, Fault> {
    if !a.flag("is_composite")? {
        return Ok(None);
    }
    let texts = a.strings("frontend_attributes")?;
    let text = |key: &str| texts.get(key).map(String::as_str);
    Composite::read(text).map(|c| c.map(Arc::new)).map_err(|reason| a.fault(reason))
}

fn look_up(s: &mut Scanner<'_>, known: &Known) -> Result<(Arc<Computation>, usize), Fault> {
    let at = s.position();
    let name = s.name("a computation")?;
    known
        .get(&name)
        .cloned()
        .ok_or_else(|| s.fault_at(at, format!("the computation `{name}` does not stand above")))
}

/// A word that is one of a few.
fn word<T>(a: &Attributes<'_>, name: &str, f: impl Fn(&str) -> Option<T>) -> Result<T, Fault> {
    let mut s = a.need(name)?;
    let at = s.position();
    let found = s.word();
    f(found).ok_or_else(|| s.fault_at(at, format!("`{name}` cannot be `{found}`")))
}

fn bits(a: &Attributes<'_>, name: &str) -> Result<u32, Fault> {
    let count = a.count(name)?;
    u32::try_from(count).map_err(|_| a.fault(format!("`{name}` cannot be {count}")))
}

fn custom_call(a: &Attributes<'_>, ty: &Type, operands: &[&Type]) -> Result<Op, Fault> {
    let target = a.need("custom_call_target")?.text_string()?;
    let config = match (a.get("backend_config"), a.raw("backend_config")) {
        (Some(mut s), Some(raw)) if raw.starts_with('"') => s.string()?,
        // JSON stands as it is.
        (_, Some(raw)) => raw.as_bytes().to_vec(),
        (_, None) => Vec::new(),
    };
    let shardy = a.string_in("frontend_attributes", sharding::SHARDY)?;
    if let Some(op) = annotation(&target, &config, shardy.as_deref(), ty, operands) {
        return Ok(op);
    }
    let called = match (a.get("called_computations"), a.get("to_apply")) {
        (Some(mut s), _) => braces(&mut s, |s| s.name("a computation"))?,
        (None, Some(mut s)) => vec![s.name("a computation")?],
        (None, None) => Vec::new(),
    };
    let more = [
        "operand_layout_constraints",
        "custom_call_has_side_effect",
        "output_to_operand_aliasing",
        "schedule",
    ];
    let typed = a.raw("api_version") == Some("API_VERSION_TYPED_FFI")
        && called.is_empty()
        && more.iter().all(|name| a.get(name).is_none());
    Ok(Op::CustomCall(CustomCall { target, config, called, typed }))
}

fn convolution(a: &Attributes<'_>) -> Result<ConvDims, Fault> {
    let mut s = a.need("dim_labels")?;
    let at = s.position();
    let text = a.raw("dim_labels").unwrap_or("");
    let labels = text
        .split_once('_')
        .and_then(|(input, rest)| rest.split_once("->").map(|(kernel, output)| [input, kernel, output]));
    let wrong = || s.fault_at(at, format!("`dim_labels` should be like b01f_01io->b01f, found {text}"));
    let [input, kernel, output] = labels.ok_or_else(wrong)?;
    let (input_batch, input_feature, input_spatial) = axes(input, 'b', 'f').ok_or_else(wrong)?;
    let (kernel_input_feature, kernel_output_feature, kernel_spatial) =
        axes(kernel, 'i', 'o').ok_or_else(wrong)?;
    let (output_batch, output_feature, output_spatial) = axes(output, 'b', 'f').ok_or_else(wrong)?;
    let groups = |name: &str| if a.get(name).is_some() { a.count(name) } else { Ok(1) };
    Ok(ConvDims {
        input_batch,
        input_feature,
        input_spatial,
        kernel_input_feature,
        kernel_output_feature,
        kernel_spatial,
        output_batch,
        output_feature,
        output_spatial,
        window: a.window()?,
        feature_group_count: groups("feature_group_count")?,
        batch_group_count: groups("batch_group_count")?,
        operand_precision: a.precision()?,
    })
}

/// Where two letters and the spatial axes 0, 1, … stand.
fn axes(label: &str, first: char, second: char) -> Option<(usize, usize, Vec<usize>)> {
    let position = |wanted: char| label.chars().position(|c| c == wanted);
    let count = label.chars().count().checked_sub(2)?;
    let spatial = (0..count).map(|i| position(char::from_digit(i as u32, 10)?)).collect::<Option<_>>()?;
    Some((position(first)?, position(second)?, spatial))
}
