//! The sharding of what is made from an array by moving its elements.

use super::{Group, Groups, Order, Sharding, Tiling, transposed};
use crate::Prep;

impl Sharding {
    /// The sharding of an array of the same rank that has an entry, or a smaller number of them, where this one's array has
    /// elements: the scales of a quantized array, a slice of a weight.
    ///
    /// An axis of the same size keeps its tiles; so does one whose size they divide: where a scale serves a tile of a
    /// quantized array, it then stands on the device that has the elements. An axis that they do not divide (a scale that
    /// is shared along it) is whole on every device that had a part of it.
    pub fn fitted(&self, from: &[usize], to: &[usize]) -> Sharding {
        match self {
            Sharding::Tiled(tiling) if tiling.rank() == from.len() && from.len() == to.len() => {
                let keeps =
                    |axis: usize| from[axis] == to[axis] || to[axis].is_multiple_of(tiling.dims[axis]);
                tiling.replicated((0..from.len()).filter(|&axis| !keeps(axis)).collect())
            }
            // One that does not fit its array stays, for an error to name it.
            other => other.clone(),
        }
    }

    /// The sharding of an array after these steps.
    ///
    /// # Errors
    /// When tiles do not stay tiles: why.
    pub fn followed(&self, shape: &[usize], steps: &[Prep]) -> Result<Sharding, String> {
        let (mut sharding, mut shape) = (self.clone(), shape.to_vec());
        for step in steps {
            let next: Vec<usize> = match step {
                Prep::Reshape(to) => to.clone(),
                Prep::Transpose(permutation) => permutation
                    .iter()
                    .map(|&axis| shape.get(axis).copied())
                    .collect::<Option<_>>()
                    .ok_or_else(|| format!("a transpose by {permutation:?} of {} axes", shape.len()))?,
                Prep::Slice(dims) => {
                    dims.iter().map(|d| d.limit.saturating_sub(d.start).div_ceil(d.stride.max(1))).collect()
                }
            };
            sharding = match (&sharding, step) {
                (Sharding::Tiled(tiling), _) if tiling.rank() != shape.len() => {
                    return Err(format!("{sharding} is not for an array of {} axes", shape.len()));
                }
                (Sharding::Tiled(tiling), Prep::Reshape(_)) => tiling.reshaped(&shape, &next)?,
                (Sharding::Tiled(tiling), Prep::Transpose(permutation)) => tiling.transposed(permutation)?,
                (Sharding::Tiled(_), Prep::Slice(_)) => sharding.fitted(&shape, &next),
                (other, _) => other.clone(),
            };
            shape = next;
        }
        Ok(sharding)
    }
}

impl Tiling {
    /// The axes in another order.
    fn transposed(&self, permutation: &[usize]) -> Result<Sharding, String> {
        let rank = self.rank();
        if !super::is_permutation(permutation, rank) {
            return Err(format!("a transpose by {permutation:?} of {rank} axes"));
        }
        let permutation: Vec<usize> = permutation.iter().copied().chain(rank..self.dims.len()).collect();
        let dims = permutation.iter().map(|&axis| self.dims[axis]).collect();
        Ok(Tiling { dims, order: self.order_of(&permutation), groups: self.groups.clone() }.simple())
    }

    /// The devices of the tiles with their axes in another order.
    fn order_of(&self, permutation: &[usize]) -> Order {
        let devices = transposed(&self.devices(), &self.dims, permutation);
        match devices.is_sorted() {
            true => Order::Iota { dims: vec![devices.len()], permutation: vec![0] },
            false => Order::List(devices),
        }
    }

    /// An array in one tile is a replicated one.
    fn simple(self) -> Sharding {
        match self.groups {
            Groups::None | Groups::Replicate if self.tiles().iter().all(|&tiles| tiles == 1) => {
                Sharding::Replicated
            }
            Groups::None | Groups::Replicate | Groups::Each(_) => Sharding::Tiled(self),
        }
    }

    /// These axes whole on all devices that had a part of them: their tiles become groups of devices.
    fn replicated(&self, axes: Vec<usize>) -> Sharding {
        let axes: Vec<usize> = axes.into_iter().filter(|&axis| self.dims[axis] > 1).collect();
        if axes.is_empty() {
            return Sharding::Tiled(self.clone());
        }
        let rank = self.rank();
        // The axis keeps one tile, and all of its old ones stand after the last axis.
        let mut dims: Vec<usize> = self.dims[..rank].to_vec();
        for &axis in &axes {
            dims[axis] = 1;
        }
        let kept = (0..rank).filter(|axis| !axes.contains(axis));
        let (permutation, groups): (Vec<usize>, Groups) = match &self.groups {
            Groups::None | Groups::Replicate => {
                let last: Vec<usize> = axes.iter().copied().chain(rank..self.dims.len()).collect();
                dims.push(last.iter().map(|&axis| self.dims[axis]).product());
                (kept.chain(last).collect(), Groups::Replicate)
            }
            Groups::Each(groups) => {
                let own = rank..self.dims.len();
                let new = axes.iter().copied();
                dims.extend(own.clone().chain(new.clone()).map(|axis| self.dims[axis]));
                let mut groups = groups.clone();
                groups.extend(axes.iter().map(|_| Group::Replicated));
                (kept.chain(own).chain(new).collect(), Groups::Each(groups))
            }
        };
        Tiling { dims, order: self.order_of(&permutation), groups }.simple()
    }

    /// The same elements in another shape. Axes fall into groups of equal products; in each, the tiles must be runs of
    /// elements that follow one another, and must be so again in the new shape.
    fn reshaped(&self, from: &[usize], to: &[usize]) -> Result<Sharding, String> {
        let no = || format!("a reshape of {from:?} to {to:?} cuts through the tiles of {{{self}}}");
        let mut tiles: Vec<usize> = Vec::with_capacity(to.len());
        let (mut i, mut j) = (0, 0);
        while i < from.len() || j < to.len() {
            let (start, begin) = (i, j);
            let (mut a, mut b) = (1usize, 1usize);
            if i < from.len() {
                a = from[i];
                i += 1;
            }
            if j < to.len() {
                b = to[j];
                j += 1;
            }
            while a != b {
                let (product, sizes, at) = if a < b { (&mut a, from, &mut i) } else { (&mut b, to, &mut j) };
                let size = sizes.get(*at).ok_or_else(no)?;
                *product = product.checked_mul(*size).filter(|&p| p > 0).ok_or_else(no)?;
                *at += 1;
            }
            match (&from[start..i], &to[begin..j]) {
                ([_], [_]) => tiles.push(self.dims[start]),
                (old, new) => {
                    let runs = runs(old, &self.dims[start..i]).ok_or_else(no)?;
                    tiles.extend(tiles_of_runs(new, runs).ok_or_else(no)?);
                }
            }
        }
        tiles.extend(&self.dims[self.rank()..]);
        Self::checked(tiles, self.order.clone(), self.groups.clone()).map(Tiling::simple)
    }
}

/// How many runs of elements the tiles of some axes are: the first axes have a tile for each index, the next one any that
/// divide it, the rest one.
fn runs(sizes: &[usize], tiles: &[usize]) -> Option<usize> {
    let (mut count, mut whole) = (1, false);
    for (&size, &tiles) in sizes.iter().zip(tiles) {
        match tiles {
            1 if size == 1 => {}
            1 => whole = true,
            _ if whole || !size.is_multiple_of(tiles) => return None,
            _ => {
                count *= tiles;
                whole = tiles < size;
            }
        }
    }
    Some(count)
}

/// The tiles of axes of these sizes that are so many runs.
fn tiles_of_runs(sizes: &[usize], mut runs: usize) -> Option<Vec<usize>> {
    let mut tiles = Vec::with_capacity(sizes.len());
    for &size in sizes {
        let own = if size > 0 && runs.is_multiple_of(size) {
            size
        } else if size.is_multiple_of(runs) {
            runs
        } else {
            return None;
        };
        tiles.push(own);
        runs /= own;
    }
    (runs == 1).then_some(tiles)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use qwix_array::{DType, strides};

    use super::*;
    use crate::{ArrayType, SliceDim};

    /// For each device, the elements of its tile, by row-major number.
    fn held(sharding: &Sharding, shape: &[usize], devices: usize) -> Vec<BTreeSet<usize>> {
        let shards = sharding.shards(&ArrayType::new(DType::F32, shape), devices).unwrap();
        let strides = strides(shape);
        let of = |start: &Vec<usize>| {
            (0..shape.iter().product())
                .filter(|&element: &usize| {
                    (0..shape.len()).all(|axis| {
                        let index = element / strides[axis] % shape[axis];
                        (start[axis]..start[axis] + shards.shape[axis]).contains(&index)
                    })
                })
                .collect()
        };
        shards.starts.iter().map(of).collect()
    }

    fn product(values: &[usize]) -> usize {
        values.iter().product()
    }

    /// Tilings of arrays of some axes on 8 devices.
    fn tilings(rank: usize) -> Vec<Sharding> {
        let mut all = Vec::new();
        for code in 0..4usize.pow(rank as u32) {
            let mut tiles: Vec<usize> =
                (0..rank).map(|axis| 1 << (code / 4usize.pow(axis as u32) % 4)).collect();
            let count = product(&tiles);
            if 8 % count != 0 {
                continue;
            }
            let mut last = "";
            if count < 8 {
                tiles.push(8 / count);
                last = " last_tile_dim_replicate";
            }
            let tiles: Vec<String> = tiles.iter().map(usize::to_string).collect();
            for devices in ["<=[8]", "<=[2,4]T(1,0)", "<=[2,2,2]T(2,0,1)", "3,1,4,5,0,2,7,6"] {
                all.push(format!("{{devices=[{}]{devices}{last}}}", tiles.join(",")).parse().unwrap());
            }
        }
        all
    }

    #[test]
    fn each_device_keeps_the_elements_that_it_had() {
        let shapes: [&[usize]; 9] =
            [&[16], &[2, 8], &[8, 2], &[4, 4], &[2, 2, 4], &[1, 16], &[16, 1], &[4, 1, 4], &[6, 4]];
        let mut followed = 0;
        for from in shapes {
            for sharding in tilings(from.len()) {
                for to in shapes.into_iter().filter(|to| product(to) == product(from)) {
                    let Ok(found) = sharding.followed(from, &[Prep::Reshape(to.to_vec())]) else { continue };
                    followed += 1;
                    assert_eq!(
                        held(&found, to, 8),
                        held(&sharding, from, 8),
                        "{sharding} {from:?} {to:?} {found}"
                    );
                }
                if from.len() == 2 {
                    let to = [from[1], from[0]];
                    let found = sharding.followed(from, &[Prep::Transpose(vec![1, 0])]).unwrap();
                    let turned = |set: &BTreeSet<usize>| {
                        set.iter().map(|e| e % from[1] * from[0] + e / from[1]).collect::<BTreeSet<_>>()
                    };
                    let expected: Vec<_> = held(&sharding, from, 8).iter().map(turned).collect();
                    assert_eq!(held(&found, &to, 8), expected, "{sharding} {from:?} {found}");
                }
            }
        }
        assert!(followed > 300, "{followed}");
    }

    #[test]
    fn a_scale_is_where_its_elements_are() {
        let rows: [(&[usize], &[usize]); 7] = [
            (&[16], &[1]),
            (&[16], &[4]),
            (&[8, 16], &[1, 16]),
            (&[8, 16], &[8, 1]),
            (&[8, 16], &[4, 16]),
            (&[8, 8], &[2, 1]),
            (&[2, 8, 4], &[2, 2, 1]),
        ];
        for (shape, scale) in rows {
            for sharding in tilings(shape.len()) {
                let found = sharding.fitted(shape, scale);
                let scales = held(&found, scale, 8);
                let (from, to) = (strides(shape), strides(scale));
                for (device, elements) in held(&sharding, shape, 8).iter().enumerate() {
                    for element in elements {
                        let of = |axis: usize| {
                            element / from[axis] % shape[axis] * scale[axis] / shape[axis] * to[axis]
                        };
                        let entry: usize = (0..shape.len()).map(of).sum();
                        assert!(scales[device].contains(&entry), "{sharding} {shape:?} {scale:?} {found}");
                    }
                }
            }
        }
    }

    #[test]
    fn shardings_follow_or_say_why_not() {
        let slice = |start, limit| SliceDim { start, limit, stride: 1 };
        let rows: [(&str, &[usize], Vec<Prep>, &str); 11] = [
            ("{devices=[1,4]<=[4]}", &[8, 8], vec![], "{devices=[1,4]<=[4]}"),
            ("{replicated}", &[8], vec![Prep::Reshape(vec![2, 4])], "{replicated}"),
            ("{devices=[1,4]<=[4]}", &[8, 8], vec![Prep::Transpose(vec![1, 0])], "{devices=[4,1]<=[4]}"),
            ("{devices=[1,4]<=[4]}", &[6, 8], vec![Prep::Reshape(vec![6, 4, 2])], "{devices=[1,4,1]<=[4]}"),
            ("{devices=[1,4,1]<=[4]}", &[6, 4, 2], vec![Prep::Reshape(vec![6, 8])], "{devices=[1,4]<=[4]}"),
            ("{devices=[1,4]<=[4]}", &[6, 8], vec![Prep::Reshape(vec![6, 2, 4])], "{devices=[1,2,2]<=[4]}"),
            ("{devices=[1,1,4]<=[4]}", &[6, 2, 4], vec![Prep::Reshape(vec![6, 8])], "cuts through the tiles"),
            ("{devices=[4]<=[4]}", &[12], vec![Prep::Reshape(vec![3, 4])], "cuts through the tiles"),
            (
                "{devices=[1,4]<=[4]}",
                &[6, 24],
                vec![Prep::Slice(vec![slice(0, 6), slice(8, 16)])],
                "{devices=[1,4]<=[4]}",
            ),
            (
                "{devices=[2,4]<=[8]}",
                &[6, 24],
                vec![Prep::Slice(vec![slice(0, 6), slice(3, 9)])],
                "{devices=[2,1,4]<=[8] last_tile_dim_replicate}",
            ),
            ("{devices=[4]<=[4]}", &[6, 8], vec![Prep::Reshape(vec![48])], "is not for an array of 2 axes"),
        ];
        for (text, shape, steps, expected) in rows {
            let sharding: Sharding = text.parse().unwrap();
            match sharding.followed(shape, &steps) {
                Ok(found) => assert_eq!(found.to_string(), expected, "{text} {steps:?}"),
                Err(reason) => assert!(reason.contains(expected), "{text} {steps:?}: {reason}"),
            }
        }
    }

    #[test]
    fn groups_stay() {
        let rows: [(&str, &[usize], &[usize], &str); 5] = [
            ("{devices=[2,2]<=[4]}", &[4, 4], &[1, 4], "{devices=[1,2,2]0,2,1,3 last_tile_dim_replicate}"),
            ("{devices=[2,2]<=[4]}", &[4, 4], &[1, 1], "{replicated}"),
            (
                "{devices=[2,2,2]<=[8] last_tile_dim_replicate}",
                &[4, 4],
                &[4, 1],
                "{devices=[2,1,4]<=[8] last_tile_dim_replicate}",
            ),
            (
                "{devices=[2,2,2]<=[8] last_tile_dims={manual}}",
                &[4, 4],
                &[4, 1],
                "{devices=[2,1,2,2]0,2,1,3,4,6,5,7 last_tile_dims={manual,replicated}}",
            ),
            ("{manual}", &[4, 4], &[4, 1], "{manual}"),
        ];
        for (text, from, to, expected) in rows {
            let sharding: Sharding = text.parse().unwrap();
            assert_eq!(sharding.fitted(from, to).to_string(), expected, "{text}");
        }
    }
}
