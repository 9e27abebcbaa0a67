//! Every struct against what a C compiler makes of the header.

use std::collections::BTreeMap;
use std::mem::{offset_of, size_of};

use super::arguments::ALL;
use super::{Api, ApiVersion, ExecuteOptions, FIRST_SLOT, MemoryLayout, NamedValue, RawProgram, TiledLayout};

/// A line a function: slot, name, size, and `field:offset` for each field.
const HEADER: &str = include_str!("pjrt_c_api_0_114.txt");

#[test]
fn arguments_lie_as_in_the_header() {
    let ours: BTreeMap<&str, _> = ALL.iter().map(|row| (row.0, row)).collect();
    assert_eq!(ours.len(), ALL.len(), "a function stands twice");
    let mut wrong = Vec::new();
    let mut seen = 0;
    for line in HEADER.lines().filter(|line| !line.starts_with('#')) {
        let mut words = line.split(' ');
        let mut word = || words.next().unwrap();
        let (slot, name, size) = (word(), word(), word());
        let Some(&&(_, our_slot, our_size, fields)) = ours.get(name) else {
            wrong.push(format!("{name} is not among ours"));
            continue;
        };
        seen += 1;
        if slot != our_slot.to_string() {
            wrong.push(format!("{name}: slot {our_slot}, expected {slot}"));
        }
        let header: Vec<(&str, usize)> = words
            .map(|field| field.split_once(':').unwrap())
            .map(|(field, offset)| (field, offset.parse().unwrap()))
            .collect();
        let named: Vec<(&str, usize)> =
            fields.iter().map(|&(field, offset)| (field.trim_start_matches("r#"), offset)).collect();
        // A later version may have added fields; ours are then the first of them, and the size their end.
        if !header.starts_with(&named) {
            wrong.push(format!("{name}: {named:?}, expected {header:?}"));
        }
        let end = header.get(named.len()).map_or(size.parse().unwrap(), |next| next.1);
        if our_size > end || our_size + 8 <= end {
            wrong.push(format!("{name}: size {our_size}, expected {size} or just below {end}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(seen, ALL.len());
}

#[test]
fn other_structs_lie_as_in_the_header() {
    let rows = [
        ("first slot", FIRST_SLOT, 40),
        ("Api.version", offset_of!(Api, version), 16),
        ("Api_Version.minor", offset_of!(ApiVersion, minor), 20),
        ("NamedValue", NamedValue::SIZE, 56),
        ("NamedValue.type", offset_of!(NamedValue, kind), 32),
        ("NamedValue.value", offset_of!(NamedValue, value), 40),
        ("Program", RawProgram::SIZE, 48),
        ("Program.format", offset_of!(RawProgram, format), 32),
        ("MemoryLayout", MemoryLayout::SIZE, 76),
        ("MemoryLayout.tiled", offset_of!(MemoryLayout, tiled), 16),
        ("MemoryLayout_Tiled", size_of::<TiledLayout>(), 56),
        ("MemoryLayout_Tiled.num_tiles", offset_of!(TiledLayout, num_tiles), 48),
        ("ExecuteOptions", ExecuteOptions::SIZE, 112),
        ("ExecuteOptions.launch_id", offset_of!(ExecuteOptions, launch_id), 48),
        (
            "ExecuteOptions.non_donatable_input_indices",
            offset_of!(ExecuteOptions, non_donatable_input_indices),
            56,
        ),
        ("ExecuteOptions.task_ids", offset_of!(ExecuteOptions, task_ids), 96),
    ];
    let wrong: Vec<_> = rows.iter().filter(|row| row.1 != row.2).collect();
    assert!(wrong.is_empty(), "name, found, expected: {wrong:?}");
}
