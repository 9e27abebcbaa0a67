//! Arrays that are spread over the devices of a program: cut into tiles, put there, and read back whole.

use std::collections::BTreeMap;

use qwix_array::{Array, DType, element_count, strides};
use qwix_graph::{ArrayType, Computation, Graph, NodeId, Sharding, Shards};

use crate::buffer::Buffer;
use crate::{Client, Device, PjrtError, Result};

/// Which part of each parameter and result is on which device of a program.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Spread {
    pub devices: usize,
    pub parameters: Vec<Shards>,
    pub results: Vec<Shards>,
}

/// The devices of a program, and what of its parameters and results is on each.
pub(crate) struct Placement {
    pub client: Client,
    pub devices: Vec<Device>,
    pub spread: Spread,
}

/// An array on the devices of a program: a tile, or all of it, on each.
pub(crate) struct Placed {
    tiles: Vec<Buffer>,
}

impl Spread {
    /// As the graph's shardings say. What they say nothing of is whole on each device, as XLA's partitioner has it.
    ///
    /// # Errors
    /// When they do not go together, or do not fit.
    pub fn of(graph: &Graph, parameters: &[ArrayType], results: &[ArrayType]) -> Result<Self> {
        let devices = graph.device_count()?.unwrap_or(1);
        let entry = &graph.entry;
        let place = |what: String, sharding: Option<&Sharding>, ty: &ArrayType| {
            let whole = Sharding::Replicated;
            let sharding = sharding.filter(|_| devices > 1).unwrap_or(&whole);
            sharding.shards(ty, devices).map_err(|reason| PjrtError::invalid(what, reason))
        };
        let sharding_of = |id: NodeId| entry.nodes.get(id.index()).and_then(|node| node.sharding.as_ref());
        let numbers = entry.parameters().into_iter().zip(parameters).enumerate();
        let parameters = numbers
            .map(|(i, (id, ty))| place(format!("parameter {i}"), sharding_of(id), ty))
            .collect::<Result<_>>()?;
        let of_results = result_shardings(entry);
        let results = results
            .iter()
            .enumerate()
            .map(|(i, ty)| place(format!("result {i}"), of_results.get(i), ty))
            .collect::<Result<_>>()?;
        Ok(Spread { devices, parameters, results })
    }

    /// A result as one array, of its parts on the devices. Parts that several devices have are read once.
    ///
    /// # Errors
    /// When what computes it failed, or a part is not what the shardings say.
    pub fn read(&self, number: usize, ty: &ArrayType, parts: &[&Buffer]) -> Result<Array> {
        let shards = self.results.get(number).ok_or_else(|| missing(format!("result {number}")))?;
        // The first device of each tile.
        let mut distinct: BTreeMap<&[usize], &Buffer> = BTreeMap::new();
        for (start, part) in shards.starts.iter().zip(parts) {
            distinct.entry(start).or_insert(part);
            if part.ty().dtype != ty.dtype || part.ty().shape != shards.shape {
                let expected = ArrayType::new(ty.dtype, shards.shape.clone());
                let reason = format!("a device has {}, expected {expected}", part.ty());
                return Err(PjrtError::invalid(format!("result {number}"), reason));
            }
        }
        match distinct.values().next() {
            Some(whole) if shards.shape == ty.shape => whole.to_array(),
            _ => {
                let tiles = distinct.into_iter().map(|(start, part)| Ok((start, part.to_array()?)));
                join(ty, &tiles.collect::<Result<Vec<_>>>()?)
            }
        }
    }
}

impl Placement {
    /// Puts a parameter's array on the devices, a part on each.
    ///
    /// # Errors
    /// When a device's memory is full, or there is no such parameter.
    pub fn upload(&self, number: usize, array: &Array) -> Result<Placed> {
        let shards = self.spread.parameters.get(number);
        let shards = shards.ok_or_else(|| missing(format!("parameter {number}")))?;
        let places = self.devices.iter().zip(&shards.starts);
        let tiles: Result<Vec<Buffer>> = if shards.shape == array.shape() {
            places.map(|(device, _)| self.client.upload(array, device)).collect()
        } else {
            let bytes = elements(array)?;
            let ty = ArrayType::new(array.dtype(), array.shape());
            let cut = |start: &[usize]| cut(&ty, &bytes, &shards.shape, start);
            places.map(|(device, start)| self.client.upload(&cut(start)?, device)).collect()
        };
        Ok(Placed { tiles: tiles? })
    }
}

impl Placed {
    /// Its part on each device.
    pub fn tiles(&self) -> &[Buffer] {
        &self.tiles
    }
}

/// The shardings of the results, where the root says them.
fn result_shardings(entry: &Computation) -> Vec<Sharding> {
    let root = entry.nodes.get(entry.root.index());
    root.and_then(|root| root.sharding.as_ref()?.leaves(&root.ty)).unwrap_or_default()
}

fn missing(what: String) -> PjrtError {
    PjrtError::invalid(what, "the program has none")
}

/// The bytes of an element, when each takes whole ones.
fn width(dtype: DType) -> usize {
    dtype.bits().div_ceil(8)
}

/// An array's elements, each in whole bytes.
fn elements(array: &Array) -> Result<std::borrow::Cow<'_, [u8]>> {
    Ok(if array.dtype().is_packed() { array.unpack_u8()? } else { array.bytes().into() })
}

fn of_elements(dtype: DType, shape: &[usize], bytes: Vec<u8>) -> Result<Array> {
    Ok(if dtype.is_packed() {
        Array::pack(dtype, shape, &bytes)?
    } else {
        Array::from_bytes(dtype, shape, bytes)?
    })
}

/// A tile of an array of these elements, zeros where it reaches past the end.
fn cut(ty: &ArrayType, from: &[u8], tile: &[usize], start: &[usize]) -> Result<Array> {
    let width = width(ty.dtype);
    let count = element_count(tile).and_then(|count| count.checked_mul(width));
    let mut to = vec![0; count.ok_or_else(|| PjrtError::invalid("a tile", "is too large for this machine"))?];
    rows(&ty.shape, tile, start, |whole, part, count| {
        let (whole, part, count) = (whole * width, part * width, count * width);
        to[part..part + count].copy_from_slice(&from[whole..whole + count]);
    });
    of_elements(ty.dtype, tile, to)
}

/// An array of its tiles, what reaches past the end left out.
fn join(ty: &ArrayType, tiles: &[(&[usize], Array)]) -> Result<Array> {
    let width = width(ty.dtype);
    let count = element_count(&ty.shape).and_then(|count| count.checked_mul(width));
    let mut to =
        vec![0; count.ok_or_else(|| PjrtError::invalid("a result", "is too large for this machine"))?];
    for (start, tile) in tiles {
        let from = elements(tile)?;
        rows(&ty.shape, tile.shape(), start, |whole, part, count| {
            let (whole, part, count) = (whole * width, part * width, count * width);
            to[whole..whole + count].copy_from_slice(&from[part..part + count]);
        });
    }
    of_elements(ty.dtype, &ty.shape, to)
}

/// The rows that a tile and its array have in common: where each begins in the array and in the tile, and its length, in
/// elements.
fn rows(whole: &[usize], tile: &[usize], start: &[usize], mut row: impl FnMut(usize, usize, usize)) {
    let sizes: Vec<usize> = whole
        .iter()
        .zip(tile)
        .zip(start)
        .map(|((&whole, &tile), &start)| tile.min(whole.saturating_sub(start)))
        .collect();
    let Some((&length, outer)) = sizes.split_last() else { return row(0, 0, 1) };
    if sizes.contains(&0) {
        return;
    }
    let (in_whole, in_tile) = (strides(whole), strides(tile));
    let first: usize = start.iter().zip(&in_whole).map(|(start, stride)| start * stride).sum();
    for number in 0..outer.iter().product() {
        let (mut rest, mut to_whole, mut to_tile) = (number, first, 0);
        for (axis, &size) in outer.iter().enumerate().rev() {
            let index = rest % size;
            rest /= size;
            to_whole += index * in_whole[axis];
            to_tile += index * in_tile[axis];
        }
        row(to_whole, to_tile, length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_come_together_again() {
        let rows: [(&[usize], &str); 8] = [
            (&[], "{replicated}"),
            (&[0, 3], "{devices=[2,1]<=[2]}"),
            (&[7], "{devices=[2]<=[2]}"),
            (&[5], "{devices=[4]<=[4]}"),
            (&[4, 6], "{devices=[2,2]<=[2,2]T(1,0)}"),
            (&[3, 5, 7], "{devices=[2,1,2]3,0,2,1}"),
            (&[3, 5, 7], "{devices=[1,4,1]<=[4]}"),
            (&[3, 4, 2], "{devices=[1,2,1,2]<=[4] last_tile_dim_replicate}"),
        ];
        for (shape, text) in rows {
            for dtype in [DType::F32, DType::BF16, DType::S8, DType::S4, DType::S2] {
                let count: usize = shape.iter().product();
                let values: Vec<i64> = (0..count as i64).map(|i| i % 3 - 1).collect();
                let array = Array::from_i64(dtype, shape, &values).unwrap();
                let ty = ArrayType::new(dtype, shape);
                let sharding: Sharding = text.parse().unwrap();
                let devices = sharding.device_count().unwrap().unwrap_or(1);
                let shards = sharding.shards(&ty, devices).unwrap();
                let tiles: Vec<(&[usize], Array)> = shards
                    .starts
                    .iter()
                    .map(|start| {
                        (
                            start.as_slice(),
                            cut(&ty, &elements(&array).unwrap(), &shards.shape, start).unwrap(),
                        )
                    })
                    .collect();
                assert_eq!(join(&ty, &tiles).unwrap(), array, "{ty} {text}");
            }
        }
    }

    #[test]
    fn a_tile_is_the_slice_that_it_should_be() {
        let array = Array::from_i64(DType::S4, &[3, 4], &[0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5]).unwrap();
        let ty = ArrayType::new(DType::S4, [3, 4]);
        let rows: [(&[usize], &[usize], &[i64]); 3] = [
            (&[2, 2], &[0, 2], &[2, 3, 6, 7]),
            (&[2, 2], &[2, 0], &[-8, -7, 0, 0]),
            (&[2, 4], &[4, 0], &[0; 8]),
        ];
        for (tile, start, expected) in rows {
            assert_eq!(
                cut(&ty, &elements(&array).unwrap(), tile, start).unwrap().to_i64_vec(),
                expected,
                "{tile:?} {start:?}"
            );
        }
    }
}
