//! One instruction's opcode and attributes → [`Op`].

use std::sync::Arc;

use super::literal;
use super::shape::{is_row_major, one_an_axis, opaque_part, size, sizes};
use crate::proto::{
    ConvolutionDimensionNumbers, GatherDimensionNumbers, HloInstructionProto, PrecisionConfig,
    ScatterDimensionNumbers, TYPED_FFI, Window,
};
use crate::{
    BinaryOp, CompareOrder, Comparison, Composite, Computation, ConvDims, CustomCall, DotDims, GatherDims,
    Op, PadDim, Precision, RngAlgorithm, ScatterDims, SliceDim, Type, UnaryOp, Unsupported, WindowDim,
    sharding,
};

/// How many computations an instruction calls that the graph has to know, or `None` when it does not have to.
pub(super) fn called_count(opcode: &str) -> Option<std::ops::RangeInclusive<usize>> {
    match opcode {
        "call" | "map" | "reduce" | "reduce-window" | "scatter" | "sort" => Some(1..=1),
        "while" | "select-and-scatter" => Some(2..=2),
        "conditional" => Some(1..=usize::MAX),
        _ => None,
    }
}

/// The op of an instruction. `operands` are the types of its operands, `called` what [`called_count`] asks for, and
/// `called_names` the names of all computations that it calls.
///
/// # Errors
/// When an attribute is missing or cannot be. Whether attributes, operands and type fit together is the verifier's
/// business.
pub(super) fn op_of(
    mut instruction: HloInstructionProto,
    ty: &Type,
    operands: &[&Type],
    called: Vec<Arc<Computation>>,
    called_names: Vec<String>,
) -> Result<Op, String> {
    let opcode = std::mem::take(&mut instruction.opcode);
    if opcode.is_empty() {
        return Err("it has no opcode".to_owned());
    }
    if !carries_any_type(&opcode)
        && let Some(part) = opaque_part(ty).or_else(|| operands.iter().find_map(|ty| opaque_part(ty)))
    {
        let reason = format!("the type {part} is not supported");
        return Ok(Op::Unsupported(Unsupported { opcode, reason }));
    }
    let unsupported =
        |opcode: String, reason: &str| Ok(Op::Unsupported(Unsupported { opcode, reason: reason.to_owned() }));
    let i = instruction;
    if let Some(op) = UnaryOp::by_name(&opcode) {
        return Ok(Op::Unary(op));
    }
    if let Some(op) = BinaryOp::by_name(&opcode) {
        return Ok(Op::Binary(op));
    }
    let mut called = called.into_iter();
    let mut next_called = || called.next().ok_or("a computation that it calls is missing");
    Ok(match opcode.as_str() {
        "parameter" => Op::Parameter(size("parameter number", i.parameter_number)?),
        "constant" => {
            let literal = *i.literal.ok_or("it has no literal")?;
            match ty {
                Type::Array(ty) => Op::Constant(literal::array_of(literal, ty)?),
                Type::QArray(_) | Type::Tuple(_) | Type::Token | Type::Opaque(_) => {
                    return unsupported(opcode, "only arrays can be constants");
                }
            }
        }
        "iota" => Op::Iota { dimension: one("dimensions", &i.dimensions)? },

        "compare" => Op::Compare {
            comparison: Comparison::by_name(&i.comparison_direction).ok_or_else(|| {
                format!("direction: found {:?}, expected EQ, NE, LT, LE, GT or GE", i.comparison_direction)
            })?,
            order: match i.comparison_type.as_str() {
                "TOTALORDER" => CompareOrder::Total,
                "" | "FLOAT" | "SIGNED" | "UNSIGNED" => CompareOrder::Partial,
                other => {
                    return Err(format!(
                        "type: found {other:?}, expected FLOAT, TOTALORDER, SIGNED or UNSIGNED"
                    ));
                }
            },
        },
        "select" => Op::Select,
        "clamp" => Op::Clamp,
        "convert" => Op::Convert,
        "bitcast-convert" => Op::BitcastConvert,
        "reduce-precision" => Op::ReducePrecision {
            exponent_bits: bits("exponent bits", i.exponent_bits)?,
            mantissa_bits: bits("mantissa bits", i.mantissa_bits)?,
        },

        "broadcast" => Op::Broadcast { dimensions: sizes("dimensions", &i.dimensions)? },
        "reshape" => Op::Reshape,
        "transpose" => Op::Transpose { permutation: sizes("dimensions", &i.dimensions)? },
        "slice" => {
            let dim = |d: &crate::proto::SliceDimensions| {
                Ok::<_, String>(SliceDim {
                    start: size("slice start", d.start)?,
                    limit: size("slice limit", d.limit)?,
                    stride: positive("slice stride", d.stride)?,
                })
            };
            one_an_axis("slice", &i.slice_dimensions)?;
            Op::Slice(i.slice_dimensions.iter().map(dim).collect::<Result<_, _>>()?)
        }
        "dynamic-slice" | "dynamic-update-slice" => {
            let starts = operands.get(if opcode == "dynamic-slice" { 1.. } else { 2.. }).unwrap_or_default();
            if matches!(starts, [Type::Array(start)] if !start.shape.is_empty()) {
                return unsupported(opcode, "starts in one vector; expected a scalar for each axis");
            }
            if opcode == "dynamic-slice" {
                Op::DynamicSlice { sizes: sizes("sizes", &i.dynamic_slice_sizes)? }
            } else {
                Op::DynamicUpdateSlice
            }
        }
        "concatenate" => Op::Concatenate { dimension: one("dimensions", &i.dimensions)? },
        "pad" => {
            let config = i.padding_config.ok_or("it has no padding config")?;
            let dim = |d: &crate::proto::PaddingConfigDimension| {
                Ok::<_, String>(PadDim {
                    low: d.edge_padding_low,
                    high: d.edge_padding_high,
                    interior: size("interior padding", d.interior_padding)?,
                })
            };
            one_an_axis("padding", &config.dimensions)?;
            Op::Pad(config.dimensions.iter().map(dim).collect::<Result<_, _>>()?)
        }
        "reverse" => Op::Reverse { dimensions: sizes("dimensions", &i.dimensions)? },
        "gather" => {
            let dims = i.gather_dimension_numbers.ok_or("it has no dimension numbers")?;
            Op::Gather(gather(&dims, &i.gather_slice_sizes, i.indices_are_sorted)?)
        }
        "scatter" => {
            let dims = i.scatter_dimension_numbers.ok_or("it has no dimension numbers")?;
            let dims = scatter(&dims, i.indices_are_sorted, i.unique_indices)?;
            Op::Scatter { dims, update: next_called()? }
        }

        "dot" => {
            if !i.dot_sparsity.is_empty() {
                return unsupported(opcode, "sparse operands");
            }
            let operand_precision = match precision(i.precision_config.as_ref()) {
                Ok(sides) => sides,
                Err(reason) => return unsupported(opcode, &reason),
            };
            let dims = i.dot_dimension_numbers.ok_or("it has no dimension numbers")?;
            Op::Dot(DotDims {
                lhs_contracting: sizes("lhs contracting", &dims.lhs_contracting_dimensions)?,
                rhs_contracting: sizes("rhs contracting", &dims.rhs_contracting_dimensions)?,
                lhs_batch: sizes("lhs batch", &dims.lhs_batch_dimensions)?,
                rhs_batch: sizes("rhs batch", &dims.rhs_batch_dimensions)?,
                operand_precision,
            })
        }
        "convolution" => {
            let dims = i.convolution_dimension_numbers.as_ref().ok_or("it has no dimension numbers")?;
            let window = window(i.window.as_ref())?;
            let mut dims = convolution(dims, window, i.feature_group_count, i.batch_group_count)?;
            match precision(i.precision_config.as_ref()) {
                Ok(sides) => dims.operand_precision = sides,
                Err(reason) => return unsupported(opcode, &reason),
            }
            Op::Convolution(dims)
        }

        "reduce" => {
            Op::Reduce { dimensions: sizes("dimensions", &i.dimensions)?, computation: next_called()? }
        }
        "reduce-window" => {
            Op::ReduceWindow { window: window(i.window.as_ref())?, computation: next_called()? }
        }
        "select-and-scatter" => Op::SelectAndScatter {
            window: window(i.window.as_ref())?,
            select: next_called()?,
            scatter: next_called()?,
        },
        "sort" => Op::Sort {
            dimension: one("dimensions", &i.dimensions)?,
            stable: i.is_stable,
            comparator: next_called()?,
        },
        "topk" => Op::TopK { k: size("k", i.k)?, largest: i.largest },
        "map" => Op::Map { computation: next_called()? },

        "tuple" => Op::Tuple,
        "get-tuple-element" => Op::GetTupleElement(size("index", i.tuple_index)?),
        "while" => {
            // HLO writes the body first.
            let body = next_called()?;
            Op::While { condition: next_called()?, body }
        }
        "conditional" => Op::Conditional { branches: called.collect() },
        "call" => {
            let texts = i.frontend_attributes.unwrap_or_default().map;
            let text = |key: &str| texts.get(key).map(String::as_str);
            let composite = if i.is_composite { Composite::read(text)?.map(Arc::new) } else { None };
            Op::Call { computation: next_called()?, composite }
        }
        "rng-bit-generator" => Op::RngBitGenerator(match i.rng_algorithm {
            0 => RngAlgorithm::Default,
            1 => RngAlgorithm::ThreeFry,
            2 => RngAlgorithm::Philox,
            other => return Err(format!("algorithm: found {other}, expected 0, 1 or 2")),
        }),
        "opt-barrier" => Op::OptimizationBarrier,
        "custom-call" => {
            let attributes = i.frontend_attributes.as_ref().map(|attributes| &attributes.map);
            let shardy = attributes.and_then(|map| map.get(sharding::SHARDY)).map(String::as_str);
            if let Some(op) = annotation(&i.custom_call_target, &i.backend_config, shardy, ty, operands) {
                op
            } else {
                Op::CustomCall(CustomCall {
                    typed: is_plain_typed_call(&i),
                    target: i.custom_call_target,
                    config: i.backend_config,
                    called: called_names,
                })
            }
        }
        _ => return unsupported(opcode, "the op is not known"),
    })
}

/// Ops that pass values on without looking at them, and those that are looked at by name.
pub(crate) fn carries_any_type(opcode: &str) -> bool {
    matches!(
        opcode,
        "parameter"
            | "tuple"
            | "get-tuple-element"
            | "while"
            | "conditional"
            | "call"
            | "opt-barrier"
            | "custom-call"
    )
}

/// Whether a custom call says nothing that is not kept: see [`CustomCall::typed`].
fn is_plain_typed_call(i: &HloInstructionProto) -> bool {
    i.custom_call_api_version == TYPED_FFI
        && !i.custom_call_has_side_effect
        && i.output_operand_aliasing.is_empty()
        && i.custom_call_schedule == 0
        && i.called_computation_ids.is_empty()
        && i.constrain_layout
        && i.operand_shapes_with_layout.len() == i.operand_ids.len()
        && i.operand_shapes_with_layout.iter().chain(&i.shape).all(is_row_major)
}

/// The op of a custom call that says something to a partitioner or a memory planner and leaves the value alone.
/// `shardy` is what the frontend attribute of that name says.
pub(crate) fn annotation(
    target: &str,
    config: &[u8],
    shardy: Option<&str>,
    ty: &Type,
    operands: &[&Type],
) -> Option<Op> {
    if !matches!(operands, [operand] if *operand == ty) {
        return None;
    }
    if target == sharding::TARGET {
        return sharding::open_axes(config, shardy).map(|open| Op::Sharding { open });
    }
    is_annotation(target).then_some(Op::OptimizationBarrier)
}

fn is_annotation(target: &str) -> bool {
    matches!(
        target,
        "SPMDFullToShardShape"
            | "SPMDShardToFullShape"
            | "LayoutConstraint"
            | "annotate_device_placement"
            | "MoveToHost"
            | "MoveToDevice"
            | "PinToDevice"
            | "PinToDeviceSram"
    ) || target.starts_with("xla.sdy.")
}

fn one(what: &str, values: &[i64]) -> Result<usize, String> {
    match values {
        [value] => size(what, *value),
        _ => Err(format!("{what}: found {values:?}, expected one")),
    }
}

fn positive(what: &str, value: i64) -> Result<usize, String> {
    usize::try_from(value)
        .ok()
        .filter(|&value| value > 0)
        .ok_or_else(|| format!("{what}: found {value}, expected 1 or more"))
}

fn bits(what: &str, value: i32) -> Result<u32, String> {
    u32::try_from(value).map_err(|_| format!("{what}: found {value}, expected 0 or more"))
}

fn window(window: Option<&Window>) -> Result<Vec<WindowDim>, String> {
    let dim = |d: &crate::proto::WindowDimension| {
        Ok(WindowDim {
            size: size("window size", d.size)?,
            stride: positive("window stride", d.stride)?,
            padding_low: d.padding_low,
            padding_high: d.padding_high,
            base_dilation: positive("base dilation", d.base_dilation)?,
            window_dilation: positive("window dilation", d.window_dilation)?,
            reversal: d.window_reversal,
        })
    };
    let dimensions = window.map_or(&[][..], |window| &window.dimensions);
    one_an_axis("window", dimensions)?;
    dimensions.iter().map(dim).collect()
}

fn convolution(
    dims: &ConvolutionDimensionNumbers,
    window: Vec<WindowDim>,
    feature_groups: i64,
    batch_groups: i64,
) -> Result<ConvDims, String> {
    // 0 is what files say that do not say it.
    let groups = |what: &str, count: i64| if count == 0 { Ok(1) } else { positive(what, count) };
    Ok(ConvDims {
        input_batch: size("input batch", dims.input_batch_dimension)?,
        input_feature: size("input feature", dims.input_feature_dimension)?,
        input_spatial: sizes("input spatial", &dims.input_spatial_dimensions)?,
        kernel_input_feature: size("kernel input feature", dims.kernel_input_feature_dimension)?,
        kernel_output_feature: size("kernel output feature", dims.kernel_output_feature_dimension)?,
        kernel_spatial: sizes("kernel spatial", &dims.kernel_spatial_dimensions)?,
        output_batch: size("output batch", dims.output_batch_dimension)?,
        output_feature: size("output feature", dims.output_feature_dimension)?,
        output_spatial: sizes("output spatial", &dims.output_spatial_dimensions)?,
        window,
        feature_group_count: groups("feature group count", feature_groups)?,
        batch_group_count: groups("batch group count", batch_groups)?,
        operand_precision: [Precision::Default; 2],
    })
}

/// Of both sides of a product; nothing said is the default.
fn precision(config: Option<&PrecisionConfig>) -> Result<[Precision; 2], String> {
    let Some(config) = config else { return Ok([Precision::Default; 2]) };
    if config.algorithm != 0 {
        return Err(format!("algorithm {} of PrecisionConfig", config.algorithm));
    }
    let known = |number: i32| match number {
        0 => Ok(Precision::Default),
        1 => Ok(Precision::High),
        2 => Ok(Precision::Highest),
        other => Err(format!("precision {other} of PrecisionConfig")),
    };
    match config.operand_precision[..] {
        [] => Ok([Precision::Default; 2]),
        [both] => Ok([known(both)?; 2]),
        [lhs, rhs] => Ok([known(lhs)?, known(rhs)?]),
        _ => Err(format!("a product has 2 sides, found {} precisions", config.operand_precision.len())),
    }
}

fn gather(
    dims: &GatherDimensionNumbers,
    slice_sizes: &[i64],
    indices_are_sorted: bool,
) -> Result<GatherDims, String> {
    Ok(GatherDims {
        offset_dims: sizes("offset dims", &dims.offset_dims)?,
        collapsed_slice_dims: sizes("collapsed slice dims", &dims.collapsed_slice_dims)?,
        start_index_map: sizes("start index map", &dims.start_index_map)?,
        operand_batching_dims: sizes("operand batching dims", &dims.operand_batching_dims)?,
        start_indices_batching_dims: sizes("start indices batching dims", &dims.start_indices_batching_dims)?,
        index_vector_dim: size("index vector dim", dims.index_vector_dim)?,
        slice_sizes: sizes("slice sizes", slice_sizes)?,
        indices_are_sorted,
    })
}

fn scatter(
    dims: &ScatterDimensionNumbers,
    indices_are_sorted: bool,
    unique_indices: bool,
) -> Result<ScatterDims, String> {
    Ok(ScatterDims {
        update_window_dims: sizes("update window dims", &dims.update_window_dims)?,
        inserted_window_dims: sizes("inserted window dims", &dims.inserted_window_dims)?,
        scatter_dims_to_operand_dims: sizes(
            "scatter dims to operand dims",
            &dims.scatter_dims_to_operand_dims,
        )?,
        input_batching_dims: sizes("input batching dims", &dims.input_batching_dims)?,
        scatter_indices_batching_dims: sizes(
            "scatter indices batching dims",
            &dims.scatter_indices_batching_dims,
        )?,
        index_vector_dim: size("index vector dim", dims.index_vector_dim)?,
        indices_are_sorted,
        unique_indices,
    })
}
