//! README's example is the file in `examples/`, and runs.

include!("../../../examples/quantize.rs");

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

#[test]
fn the_example_in_the_readme_runs() {
    let readme = std::fs::read_to_string(format!("{ROOT}/README.md")).unwrap();
    let example = include_str!("../../../examples/quantize.rs");
    assert!(
        readme.contains(&format!("```rust\n{example}```\n")),
        "README's Rust example is not examples/quantize.rs"
    );
    std::env::set_current_dir(ROOT).unwrap();
    main().unwrap();
}
