//! `OpSharding` and how HLO text writes it: `{replicated}`, `{devices=[2,1]<=[2]}`.
//!
//! Nothing here acts on shardings; they are kept so that a file that is read and written still has them.

use std::fmt::Write as _;

use crate::proto::OpSharding;

/// `OpSharding.Type`, by number; a tuple (2) and a tiling (3) are written otherwise.
const TYPES: [(i32, &str); 5] =
    [(0, "replicated"), (1, "maximal"), (4, "manual"), (5, "unknown"), (6, "unreduced")];
const MAXIMAL: i32 = 1;
const TUPLE: i32 = 2;
const TILED: i32 = 3;

/// The text of a sharding, `None` when it is of a kind that has no such text.
pub(crate) fn text_of(sharding: &OpSharding) -> Option<String> {
    if sharding.named_sharding.is_some() {
        return None;
    }
    let mut text = String::from("{");
    match sharding.r#type {
        TUPLE => {
            let elements: Option<Vec<String>> = sharding.tuple_shardings.iter().map(text_of).collect();
            text.push_str(&elements?.join(", "));
        }
        TILED => {
            let _ = write!(text, "devices=[{}]", list(&sharding.tile_assignment_dimensions));
            if sharding.iota_reshape_dims.is_empty() {
                text.push_str(&list(&sharding.tile_assignment_devices));
            } else {
                let _ = write!(text, "<=[{}]", list(&sharding.iota_reshape_dims));
                let permutation = &sharding.iota_transpose_perm;
                if !permutation.iter().copied().eq(0..permutation.len() as i32) {
                    let _ = write!(text, "T({})", list(permutation));
                }
            }
            if sharding.replicate_on_last_tile_dim {
                text.push_str(" last_tile_dim_replicate");
            }
            if !sharding.last_tile_dims.is_empty() {
                let names: Option<Vec<&str>> =
                    sharding.last_tile_dims.iter().map(|&t| type_name(t)).collect();
                let _ = write!(text, " last_tile_dims={{{}}}", names?.join(","));
            }
        }
        MAXIMAL => {
            let [device] = sharding.tile_assignment_devices[..] else { return None };
            let _ = write!(text, "maximal device={device}");
        }
        other => text.push_str(type_name(other)?),
    }
    text.push('}');
    Some(text)
}

/// The sharding of a text that [`text_of`] wrote.
pub(crate) fn parse(text: &str) -> Result<OpSharding, String> {
    let wrong = || {
        format!(
            "sharding: found `{text}`, expected HLO's text, such as {{replicated}} or {{devices=[2]<=[2]}}"
        )
    };
    let inner = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).ok_or_else(wrong)?;
    if inner.is_empty() || inner.starts_with('{') {
        let mut tuple = OpSharding { r#type: TUPLE, ..OpSharding::default() };
        for element in elements(inner).ok_or_else(wrong)? {
            // The elements of nested tuples stand in one row.
            tuple.tuple_shardings.push(leaf(element).ok_or_else(wrong)?);
        }
        return Ok(tuple);
    }
    leaf(text).ok_or_else(wrong)
}

fn leaf(text: &str) -> Option<OpSharding> {
    let inner = text.strip_prefix('{')?.strip_suffix('}')?;
    if let Some(device) = inner.strip_prefix("maximal device=") {
        let tile_assignment_devices = vec![device.parse().ok()?];
        return Some(OpSharding { r#type: MAXIMAL, tile_assignment_devices, ..OpSharding::default() });
    }
    let Some(rest) = inner.strip_prefix("devices=[") else {
        let r#type = TYPES.iter().find(|row| row.1 == inner && row.0 != MAXIMAL)?.0;
        return Some(OpSharding { r#type, ..OpSharding::default() });
    };
    let mut sharding = OpSharding { r#type: TILED, ..OpSharding::default() };
    let (dimensions, rest) = rest.split_once(']')?;
    sharding.tile_assignment_dimensions = numbers(dimensions)?;
    let mut words = rest.split(' ');
    let devices = words.next()?;
    match devices.strip_prefix("<=[") {
        None => sharding.tile_assignment_devices = numbers(devices)?,
        Some(iota) => {
            let (dims, permutation) = iota.split_once(']')?;
            sharding.iota_reshape_dims = numbers(dims)?;
            sharding.iota_transpose_perm = match permutation {
                "" => (0..sharding.iota_reshape_dims.len() as i32).collect(),
                permutation => numbers(permutation.strip_prefix("T(")?.strip_suffix(')')?)?,
            };
        }
    }
    for word in words {
        if word == "last_tile_dim_replicate" {
            sharding.replicate_on_last_tile_dim = true;
        } else {
            let names = word.strip_prefix("last_tile_dims={")?.strip_suffix('}')?;
            let number = |name| TYPES.iter().find(|row| row.1 == name).map(|row| row.0);
            sharding.last_tile_dims = names.split(',').map(number).collect::<Option<_>>()?;
        }
    }
    Some(sharding)
}

/// `{..}, {..}` at the outermost braces.
fn elements(text: &str) -> Option<Vec<&str>> {
    let mut found = Vec::new();
    let (mut depth, mut start) = (0usize, 0);
    for (at, c) in text.char_indices() {
        match c {
            '{' => {
                if depth == 0 {
                    start = at;
                }
                depth += 1;
            }
            '}' => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    found.push(&text[start..=at]);
                }
            }
            _ => {}
        }
    }
    (depth == 0).then_some(found)
}

fn type_name(number: i32) -> Option<&'static str> {
    TYPES.iter().find(|row| row.0 == number).map(|row| row.1)
}

fn list<T: ToString>(values: &[T]) -> String {
    values.iter().map(T::to_string).collect::<Vec<_>>().join(",")
}

fn numbers<T: std::str::FromStr>(text: &str) -> Option<Vec<T>> {
    text.split(',').map(|value| value.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_come_back() {
        for text in [
            "{replicated}",
            "{manual}",
            "{unknown}",
            "{unreduced}",
            "{maximal device=3}",
            "{devices=[2,1]0,1}",
            "{devices=[2,4]<=[8]}",
            "{devices=[4,2]<=[2,4]T(1,0)}",
            "{devices=[2,1,2]<=[4] last_tile_dim_replicate}",
            "{devices=[2,1,1,2]0,1,2,3 last_tile_dims={manual,replicated}}",
            "{{replicated}, {maximal device=0}, {devices=[2,1,2]<=[4] last_tile_dims={manual}}}",
            "{}",
        ] {
            let sharding = parse(text).unwrap();
            assert_eq!(text_of(&sharding).as_deref(), Some(text), "{sharding:?}");
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "replicated",
            "{other}",
            "{maximal}",
            "{maximal device=x}",
            "{devices=[2}",
            "{devices=[2]<=[2]T}",
            "{devices=[2]0,1 last}",
            "{{replicated}",
            "{{{replicated}}}",
            "{devices=[]0}",
            "{}}",
        ] {
            assert!(parse(text).is_err(), "{text}: {:?}", parse(text));
        }
    }

    #[test]
    fn what_has_no_text() {
        let maximal = OpSharding { r#type: MAXIMAL, ..OpSharding::default() };
        let named = OpSharding { named_sharding: Some(vec![]), ..OpSharding::default() };
        let nested =
            OpSharding { r#type: TUPLE, tuple_shardings: vec![named.clone()], ..OpSharding::default() };
        for sharding in [maximal, named, nested, OpSharding { r#type: 77, ..OpSharding::default() }] {
            assert_eq!(text_of(&sharding), None, "{sharding:?}");
        }
    }
}
