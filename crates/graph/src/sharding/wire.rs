//! Shardings as protobuf: `OpSharding`.

use super::{Group, Groups, Order, Sharding, Tiling};
use crate::proto::OpSharding;

/// The target of the custom call that annotates a value with a sharding.
pub(crate) const TARGET: &str = "Sharding";

/// `API_VERSION_ORIGINAL`, as JAX writes it on such a call.
pub(crate) const API_VERSION: i32 = 1;

/// The attribute in which a module that comes from Shardy says more of such a call.
pub(crate) const SHARDY: &str = "xla.sdy.sharding";

/// The axes that such a call leaves to the partitioner: GSPMD's are in its `backend_config`, `unspecified_dims=[0,2]`,
/// Shardy's in the frontend attribute, `…<@mesh, [{?}, {"x"}, {?}]>…`. `None` when the `backend_config` says something
/// else.
pub(crate) fn open_axes(config: &[u8], shardy: Option<&str>) -> Option<Vec<usize>> {
    if config.is_empty() {
        let axes = shardy.and_then(|text| text.split_once(", [")).and_then(|(_, rest)| rest.split_once("]>"));
        let axes = axes.map_or("", |(axes, _)| axes).split('}').enumerate();
        return Some(axes.filter(|(_, axis)| axis.ends_with("{?")).map(|(number, _)| number).collect());
    }
    let text = std::str::from_utf8(config).ok()?;
    let list = text.strip_prefix("unspecified_dims=[")?.strip_suffix(']')?;
    list.split(',').map(|axis| axis.trim().parse().ok()).collect()
}

/// The `backend_config` for those axes.
pub(crate) fn config_of(open: &[usize]) -> Vec<u8> {
    if open.is_empty() {
        return Vec::new();
    }
    let axes: Vec<String> = open.iter().map(usize::to_string).collect();
    format!("unspecified_dims=[{}]", axes.join(",")).into_bytes()
}

// `OpSharding.Type`, by number.
const REPLICATED: i32 = 0;
const MAXIMAL: i32 = 1;
const TUPLE: i32 = 2;
const TILED: i32 = 3;
const MANUAL: i32 = 4;
const UNKNOWN: i32 = 5;
const UNREDUCED: i32 = 6;

/// What the message says. A kind that is not known becomes [`Sharding::Opaque`].
///
/// # Errors
/// When it contradicts itself.
pub(crate) fn from_proto(sharding: &OpSharding) -> Result<Sharding, String> {
    let wrong = |reason: String| format!("sharding: {reason}");
    if sharding.r#type == TUPLE && sharding.named_sharding.is_none() {
        let leaf = |element: &OpSharding| match element.r#type {
            TUPLE => Err("found a tuple in a tuple, expected the elements in one row".to_owned()),
            _ => leaf_of(element),
        };
        let elements: Result<_, _> = sharding.tuple_shardings.iter().map(leaf).collect();
        return Ok(Sharding::Tuple(elements.map_err(wrong)?));
    }
    leaf_of(sharding).map_err(wrong)
}

fn leaf_of(sharding: &OpSharding) -> Result<Sharding, String> {
    if sharding.named_sharding.is_some() {
        return Ok(Sharding::Opaque("named_sharding".to_owned()));
    }
    Ok(match sharding.r#type {
        REPLICATED => Sharding::Replicated,
        MANUAL => Sharding::Manual,
        UNKNOWN => Sharding::Unknown,
        UNREDUCED => Sharding::Unreduced,
        MAXIMAL => match sizes("device", &sharding.tile_assignment_devices)?[..] {
            [device] => Sharding::Maximal(device),
            ref devices => return Err(format!("found devices {devices:?}, expected one")),
        },
        TILED => Sharding::Tiled(tiling(sharding)?),
        other => Sharding::Opaque(format!("type {other}")),
    })
}

fn tiling(sharding: &OpSharding) -> Result<Tiling, String> {
    let order = if sharding.iota_reshape_dims.is_empty() {
        Order::List(sizes("device", &sharding.tile_assignment_devices)?)
    } else {
        let axes: Vec<i64> = sharding.iota_transpose_perm.iter().map(|&axis| axis.into()).collect();
        Order::Iota { dims: sizes("size", &sharding.iota_reshape_dims)?, permutation: sizes("axis", &axes)? }
    };
    let groups = match (&sharding.last_tile_dims[..], sharding.replicate_on_last_tile_dim) {
        ([], false) => Groups::None,
        ([], true) => Groups::Replicate,
        (_, true) => return Err("found both last_tile_dims and replicate_on_last_tile_dim".to_owned()),
        (groups, false) => {
            Groups::Each(groups.iter().map(|&number| group(number)).collect::<Result<_, _>>()?)
        }
    };
    Tiling::checked(sizes("tiles", &sharding.tile_assignment_dimensions)?, order, groups)
}

fn group(number: i32) -> Result<Group, String> {
    match number {
        REPLICATED => Ok(Group::Replicated),
        MANUAL => Ok(Group::Manual),
        UNREDUCED => Ok(Group::Unreduced),
        UNKNOWN => Ok(Group::Unknown),
        other => Err(format!("last_tile_dims has {other}, expected 0 (replicated), 4, 5 or 6")),
    }
}

fn sizes(what: &str, values: &[i64]) -> Result<Vec<usize>, String> {
    values
        .iter()
        .map(|&value| {
            usize::try_from(value).map_err(|_| format!("{what}: found {value}, expected 0 or more"))
        })
        .collect()
}

/// The message of a sharding.
///
/// # Errors
/// When it is one that was read and not understood.
pub(crate) fn to_proto(sharding: &Sharding) -> Result<OpSharding, String> {
    let plain = |r#type| OpSharding { r#type, ..OpSharding::default() };
    Ok(match sharding {
        Sharding::Replicated => plain(REPLICATED),
        Sharding::Manual => plain(MANUAL),
        Sharding::Unknown => plain(UNKNOWN),
        Sharding::Unreduced => plain(UNREDUCED),
        Sharding::Maximal(device) => OpSharding {
            // XLA writes the one tile that there is, too.
            tile_assignment_dimensions: vec![1],
            tile_assignment_devices: vec![*device as i64],
            ..plain(MAXIMAL)
        },
        Sharding::Tiled(tiling) => of_tiling(tiling, plain(TILED)),
        Sharding::Tuple(elements) => OpSharding {
            tuple_shardings: elements.iter().map(to_proto).collect::<Result<_, _>>()?,
            ..plain(TUPLE)
        },
        Sharding::Opaque(_) => {
            return Err(format!("the sharding {sharding} cannot be written: its kind is not known"));
        }
    })
}

fn of_tiling(tiling: &Tiling, mut message: OpSharding) -> OpSharding {
    let longs = |values: &[usize]| values.iter().map(|&value| value as i64).collect();
    message.tile_assignment_dimensions = longs(&tiling.dims);
    match &tiling.order {
        Order::List(devices) => message.tile_assignment_devices = longs(devices),
        Order::Iota { dims, permutation } => {
            message.iota_reshape_dims = longs(dims);
            message.iota_transpose_perm = permutation.iter().map(|&axis| axis as i32).collect();
        }
    }
    match &tiling.groups {
        Groups::None => {}
        Groups::Replicate => message.replicate_on_last_tile_dim = true,
        Groups::Each(groups) => {
            let number = |group: &Group| match group {
                Group::Replicated => REPLICATED,
                Group::Manual => MANUAL,
                Group::Unreduced => UNREDUCED,
                Group::Unknown => UNKNOWN,
            };
            message.last_tile_dims = groups.iter().map(number).collect();
        }
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_back() {
        for text in super::super::text::tests::TEXTS {
            let sharding: Sharding = text.parse().unwrap();
            match to_proto(&sharding) {
                Ok(message) => assert_eq!(from_proto(&message).as_ref(), Ok(&sharding), "{text}"),
                Err(reason) => assert!(text.starts_with("{mesh") && reason.contains(text), "{reason}"),
            }
        }
    }

    #[test]
    fn axes_that_are_left_open() {
        type Row<'a> = (&'a [u8], Option<&'a str>, Option<&'a [usize]>);
        let rows: [Row; 8] = [
            (b"", None, Some(&[])),
            (b"unspecified_dims=[1]", None, Some(&[1])),
            (b"unspecified_dims=[0,2]", None, Some(&[0, 2])),
            (b"unspecified_dims=[x]", None, None),
            (b"something", None, None),
            (b"", Some("#sdy.sharding_per_value<[<@mesh, [{\"d\"}, {?}]>]>"), Some(&[1])),
            (b"", Some("#sdy.sharding_per_value<[<@mesh, [{?}, {\"d\", \"m\"}, {?}]>]>"), Some(&[0, 2])),
            (b"", Some("#sdy.sharding_per_value<[<@mesh, []>]>"), Some(&[])),
        ];
        for (config, shardy, expected) in rows {
            assert_eq!(open_axes(config, shardy).as_deref(), expected, "{config:?} {shardy:?}");
        }
        for open in [vec![], vec![0], vec![1, 2]] {
            assert_eq!(open_axes(&config_of(&open), None), Some(open));
        }
    }

    #[test]
    fn what_is_not_known_is_kept_and_what_cannot_be_is_refused() {
        let plain = |r#type| OpSharding { r#type, ..OpSharding::default() };
        let named = OpSharding { named_sharding: Some(vec![]), ..plain(REPLICATED) };
        let tuple = OpSharding { tuple_shardings: vec![named.clone()], ..plain(TUPLE) };
        for (message, text) in
            [(named, "{named_sharding}"), (tuple.clone(), "{{named_sharding}}"), (plain(77), "{type 77}")]
        {
            assert_eq!(from_proto(&message).unwrap().to_string(), text);
        }
        let tiled = OpSharding { tile_assignment_dimensions: vec![2], ..plain(TILED) };
        for message in [
            plain(MAXIMAL),
            tiled.clone(),
            OpSharding { tile_assignment_devices: vec![0, -1], ..tiled.clone() },
            OpSharding { iota_reshape_dims: vec![2], ..tiled.clone() },
            OpSharding { iota_reshape_dims: vec![1 << 62, 4], iota_transpose_perm: vec![1, 0], ..tiled },
            OpSharding { tuple_shardings: vec![tuple], ..plain(TUPLE) },
        ] {
            let error = from_proto(&message).unwrap_err();
            assert!(error.starts_with("sharding: "), "{error}");
        }
    }
}
