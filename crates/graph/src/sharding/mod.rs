//! Shardings: how the value of a node is spread over several devices, as GSPMD says it.
//!
//! XLA's partitioner acts on them; here they are read, checked, carried along when a weight changes its shape
//! (`follow`), and written (`text`, `wire`). On a single device they mean nothing.

mod follow;
mod graph;
mod text;
mod wire;

use crate::Type;
pub(crate) use wire::{API_VERSION, SHARDY, TARGET, config_of, from_proto, open_axes, to_proto};

/// The most devices that a sharding may name.
pub const MAX_DEVICES: usize = 1 << 16;

/// How a node's value is spread over devices, which are numbered from 0.
///
/// That of a quantized array is the sharding of the array that it stands for; its parts get what fits their shapes
/// ([`Sharding::fitted`]). Text is HLO's: `{devices=[2,1]<=[2]}`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Sharding {
    /// Whole on each device.
    Replicated,
    /// Whole on one device, and nowhere else.
    Maximal(usize),
    /// Already a part: the program says itself what each device does.
    Manual,
    /// The partitioner's choice.
    Unknown,
    /// A share of a sum on each device.
    Unreduced,
    /// In tiles.
    Tiled(Tiling),
    /// Of a tuple: one for each array in it, those of inner tuples in the same row.
    Tuple(Vec<Sharding>),
    /// One without a meaning here, as it was read: it can be looked at, not acted upon.
    Opaque(String),
}

/// An array in tiles of one size, those at the end of an axis smaller or empty, each on a device or a group of devices.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Tiling {
    /// How many tiles each axis has, then the sizes of the groups.
    dims: Vec<usize>,
    order: Order,
    groups: Groups,
}

/// Which device each tile is on: tiles in row-major order.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Order {
    /// 0, 1, … in an array of this shape, its axes in this order.
    Iota { dims: Vec<usize>, permutation: Vec<usize> },
    /// As listed.
    List(Vec<usize>),
}

/// What devices have in common that have the same tile: the axes at the end of a tiling.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Groups {
    /// Each tile is on one device.
    None,
    /// One axis more: each tile is whole on all devices of a group.
    Replicate,
    /// One axis for each.
    Each(Vec<Group>),
}

/// What the devices of a group hold.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Group {
    Replicated,
    Manual,
    Unreduced,
    Unknown,
}

/// Where the tiles of an array are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shards {
    /// The shape of each tile; one that reaches past the end of an axis holds anything there.
    pub shape: Vec<usize>,
    /// For each device, where its tile starts in the array; past the end for a tile of nothing.
    pub starts: Vec<Vec<usize>>,
}

impl Tiling {
    /// An array in so many tiles along each axis, on the devices 0, 1, … in row-major order.
    ///
    /// # Errors
    /// When there is no axis, an axis has no tile, or the tiles are more than [`MAX_DEVICES`].
    pub fn new(tiles: &[usize]) -> Result<Self, String> {
        let count = tiles.iter().try_fold(1usize, |n, &t| n.checked_mul(t)).unwrap_or(usize::MAX);
        let order = Order::Iota { dims: vec![count], permutation: vec![0] };
        Self::checked(tiles.to_vec(), order, Groups::None)
    }

    fn checked(dims: Vec<usize>, order: Order, groups: Groups) -> Result<Self, String> {
        let count = count(&dims).ok_or_else(|| {
            format!(
                "found tiles {dims:?}, expected one or more along each axis, at most {MAX_DEVICES} in all"
            )
        })?;
        if groups.len() > dims.len() {
            return Err(format!("found {} groups and {} axes of tiles", groups.len(), dims.len()));
        }
        let fits = match &order {
            Order::Iota { dims: from, permutation } => {
                self::count(from) == Some(count) && is_permutation(permutation, from.len())
            }
            Order::List(devices) => is_permutation(devices, count),
        };
        if !fits {
            return Err(format!("tiles {dims:?} are on devices {order}, expected each of {count} once"));
        }
        Ok(Tiling { dims, order, groups })
    }

    /// The rank of the arrays that it is for.
    pub fn rank(&self) -> usize {
        self.dims.len() - self.groups.len()
    }

    /// How many tiles each axis has.
    pub fn tiles(&self) -> &[usize] {
        &self.dims[..self.rank()]
    }

    /// How many devices there are.
    pub fn device_count(&self) -> usize {
        self.dims.iter().product()
    }

    /// The devices in the order of the tiles, row-major, those of a group side by side.
    pub fn devices(&self) -> Vec<usize> {
        match &self.order {
            Order::List(devices) => devices.clone(),
            Order::Iota { dims, permutation } => {
                transposed(&(0..self.device_count()).collect::<Vec<_>>(), dims, permutation)
            }
        }
    }

    /// Whether all devices with the same tile hold the same.
    fn only_replicates(&self) -> bool {
        match &self.groups {
            Groups::None | Groups::Replicate => true,
            Groups::Each(groups) => groups.iter().all(|group| *group == Group::Replicated),
        }
    }
}

impl Groups {
    fn len(&self) -> usize {
        match self {
            Groups::None => 0,
            Groups::Replicate => 1,
            Groups::Each(groups) => groups.len(),
        }
    }
}

impl Sharding {
    /// How many devices it names; `None` when it names none.
    ///
    /// # Errors
    /// When parts of it name different numbers.
    pub fn device_count(&self) -> Result<Option<usize>, String> {
        match self {
            Sharding::Tiled(tiling) => Ok(Some(tiling.device_count())),
            Sharding::Tuple(elements) => {
                let mut found = None;
                for element in elements {
                    if let Some(count) = element.device_count()?
                        && *found.get_or_insert(count) != count
                    {
                        return Err(format!("{self} is for different numbers of devices"));
                    }
                }
                Ok(found)
            }
            Sharding::Replicated
            | Sharding::Maximal(_)
            | Sharding::Manual
            | Sharding::Unknown
            | Sharding::Unreduced
            | Sharding::Opaque(_) => Ok(None),
        }
    }

    /// Whether a value of this type can be spread like that by XLA's partitioner.
    ///
    /// # Errors
    /// When it has another rank or number of elements, or the sharding is of a kind that is not supported: which.
    pub fn check(&self, ty: &Type) -> Result<(), String> {
        let unsupported = |what: &str| Err(format!("the sharding {self} is not supported: {what}"));
        match (self, ty) {
            (Sharding::Tuple(elements), Type::Tuple(_)) => {
                let leaves = leaf_types(ty);
                // That of an empty tuple has one, too.
                if leaves.len().max(1) != elements.len() {
                    return Err(format!(
                        "the sharding {self} has {} elements, {ty} has {}",
                        elements.len(),
                        leaves.len()
                    ));
                }
                elements.iter().zip(leaves).try_for_each(|(element, ty)| element.check(ty))
            }
            (Sharding::Tuple(_), _) => Err(format!("the sharding {self} is that of a tuple, found {ty}")),
            (Sharding::Tiled(tiling), ty) => match ty.as_array() {
                _ if !tiling.only_replicates() => {
                    unsupported("parts of the program that say themselves what each device does (shard_map)")
                }
                Some(array) if array.shape.len() == tiling.rank() => Ok(()),
                Some(_) | None => {
                    Err(format!("the sharding {self} is for arrays of rank {}, found {ty}", tiling.rank()))
                }
            },
            (Sharding::Replicated | Sharding::Unknown, _) => Ok(()),
            (Sharding::Maximal(_), _) => unsupported("values on one of several devices"),
            (Sharding::Manual, _) => {
                unsupported("parts of the program that say themselves what each device does (shard_map)")
            }
            (Sharding::Unreduced, _) => unsupported("sums that are left open"),
            (Sharding::Opaque(_), _) => unsupported("it is of a kind that is not known"),
        }
    }

    /// Roughly the bytes that it takes, as text.
    pub(crate) fn weight(&self) -> usize {
        match self {
            Sharding::Tiled(tiling) => {
                let order = match &tiling.order {
                    Order::Iota { dims, permutation } => dims.len() + permutation.len(),
                    Order::List(devices) => devices.len(),
                };
                8 * (tiling.dims.len() + order)
            }
            Sharding::Tuple(elements) => {
                elements.iter().map(|element| size_of::<Sharding>() + element.weight()).sum()
            }
            Sharding::Opaque(text) => text.len(),
            Sharding::Replicated
            | Sharding::Maximal(_)
            | Sharding::Manual
            | Sharding::Unknown
            | Sharding::Unreduced => 0,
        }
    }

    /// Where the tiles of an array of this shape are, on so many devices.
    ///
    /// # Errors
    /// When the sharding is for another number of devices or another rank, or is not supported.
    pub fn shards(&self, array: &crate::ArrayType, devices: usize) -> Result<Shards, String> {
        self.check(&Type::Array(array.clone()))?;
        let shape = &array.shape;
        let Sharding::Tiled(tiling) = self else {
            return Ok(Shards { shape: shape.clone(), starts: vec![vec![0; shape.len()]; devices] });
        };
        if tiling.device_count() != devices {
            return Err(format!(
                "the sharding {self} is for {} devices, found {devices}",
                tiling.device_count()
            ));
        }
        let tile: Vec<usize> =
            shape.iter().zip(tiling.tiles()).map(|(&size, &tiles)| size.div_ceil(tiles)).collect();
        let mut starts = vec![Vec::new(); devices];
        for (mut number, device) in tiling.devices().into_iter().enumerate() {
            let mut start = vec![0; tiling.dims.len()];
            for (axis, &count) in tiling.dims.iter().enumerate().rev() {
                start[axis] = number % count * tile.get(axis).copied().unwrap_or(0);
                number /= count;
            }
            start.truncate(tiling.rank());
            if let Some(place) = starts.get_mut(device) {
                *place = start;
            }
        }
        Ok(Shards { shape: tile, starts })
    }

    /// One sharding for each array of a type, when this is that of a value of the type.
    pub fn leaves(&self, ty: &Type) -> Option<Vec<Sharding>> {
        match (self, ty) {
            (Sharding::Tuple(elements), Type::Tuple(_)) if elements.len() == leaf_types(ty).len() => {
                Some(elements.clone())
            }
            (Sharding::Tuple(_), _) | (_, Type::Tuple(_)) => None,
            (one, _) => Some(vec![one.clone()]),
        }
    }
}

/// The types in a type that are no tuples, in order.
pub(crate) fn leaf_types(ty: &Type) -> Vec<&Type> {
    match ty {
        Type::Tuple(elements) => elements.iter().flat_map(leaf_types).collect(),
        Type::Array(_) | Type::QArray(_) | Type::Token | Type::Opaque(_) => vec![ty],
    }
}

/// The product, when it is from 1 to [`MAX_DEVICES`], and there is something to multiply.
fn count(dims: &[usize]) -> Option<usize> {
    let product = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
    (!dims.is_empty() && (1..=MAX_DEVICES).contains(&product)).then_some(product)
}

fn is_permutation(values: &[usize], count: usize) -> bool {
    let mut seen = vec![false; count];
    values.len() == count
        && values.iter().all(|&v| seen.get_mut(v).is_some_and(|seen| !std::mem::replace(seen, true)))
}

/// The entries of a row-major array with its axes in another order: axis i of the result is axis `permutation[i]`.
fn transposed(values: &[usize], dims: &[usize], permutation: &[usize]) -> Vec<usize> {
    let from = qwix_array::strides(dims);
    let mut offsets = vec![0];
    for &axis in permutation {
        let steps = |&offset: &usize| (0..dims[axis]).map(move |i| (offset, i));
        offsets = offsets.iter().flat_map(steps).map(|(offset, i)| offset + i * from[axis]).collect();
    }
    offsets.into_iter().map(|offset| values[offset]).collect()
}

#[cfg(test)]
mod tests {
    use qwix_array::DType;

    use super::*;
    use crate::ArrayType;

    fn sharding(text: &str) -> Sharding {
        text.parse().unwrap()
    }

    #[test]
    fn tiles_are_where_gspmd_puts_them() {
        type Row<'a> = (&'a str, &'a [usize], &'a [usize], &'a [&'a [usize]]);
        let rows: [Row; 8] = [
            ("{replicated}", &[3], &[3], &[&[0], &[0]]),
            ("{devices=[2,1]<=[2]}", &[4, 3], &[2, 3], &[&[0, 0], &[2, 0]]),
            ("{devices=[2,2]<=[4]}", &[4, 6], &[2, 3], &[&[0, 0], &[0, 3], &[2, 0], &[2, 3]]),
            ("{devices=[2,2]<=[2,2]T(1,0)}", &[4, 6], &[2, 3], &[&[0, 0], &[2, 0], &[0, 3], &[2, 3]]),
            ("{devices=[1,2]1,0}", &[4, 6], &[4, 3], &[&[0, 3], &[0, 0]]),
            ("{devices=[2,2]<=[4] last_tile_dim_replicate}", &[4], &[2], &[&[0], &[0], &[2], &[2]]),
            ("{devices=[2,2]<=[2,2]T(1,0) last_tile_dim_replicate}", &[4], &[2], &[&[0], &[2], &[0], &[2]]),
            // The last tile is smaller, and one is empty.
            ("{devices=[4]<=[4]}", &[5], &[2], &[&[0], &[2], &[4], &[6]]),
        ];
        for (text, shape, tile, starts) in rows {
            let found = sharding(text).shards(&ArrayType::new(DType::F32, shape), starts.len()).unwrap();
            let starts = starts.iter().map(|start| start.to_vec()).collect();
            assert_eq!(found, Shards { shape: tile.to_vec(), starts }, "{text}");
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let array = |shape: &[usize]| Type::array(DType::F32, shape);
        let pair = Type::Tuple(vec![array(&[2]), Type::Tuple(vec![array(&[2, 2])])]);
        let rows = [
            ("{devices=[2,1]<=[2]}", array(&[4]), "rank 2, found f32[4]"),
            ("{devices=[2]<=[2]}", pair.clone(), "rank 1"),
            ("{{replicated}}", pair.clone(), "has 1 elements"),
            ("{{replicated}, {devices=[2]<=[2]}}", pair.clone(), "rank 1, found f32[2,2]"),
            ("{{replicated}}", array(&[4]), "that of a tuple"),
            ("{maximal device=1}", array(&[4]), "one of several devices"),
            ("{manual}", array(&[4]), "shard_map"),
            ("{unreduced}", array(&[4]), "left open"),
            ("{devices=[2,2]<=[4] last_tile_dims={manual}}", array(&[4]), "shard_map"),
            ("{mesh['a'=2], [{'a'}]}", array(&[4]), "not known"),
        ];
        for (text, ty, expected) in rows {
            let error = sharding(text).check(&ty).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
        for text in ["{replicated}", "{{devices=[2]<=[2]}, {devices=[1,2]<=[2]}}"] {
            sharding(text).check(&pair).unwrap();
        }
        let array = ArrayType::new(DType::F32, [4]);
        let error = sharding("{devices=[4]<=[4]}").shards(&array, 8).unwrap_err();
        assert!(error.contains("for 4 devices, found 8"), "{error}");
        let error = sharding("{{devices=[4]<=[4]}, {devices=[2]<=[2]}}").device_count().unwrap_err();
        assert!(error.contains("different numbers"), "{error}");
    }
}
