use qwix_graph::*;
#[test]
fn export() {
    let out = std::env::var("OUT").unwrap();
    for f in std::fs::read_dir(std::env::var("MODS").unwrap()).unwrap().map(|e| e.unwrap().path()) {
        let Ok(g) = Graph::from_hlo_proto(&std::fs::read(&f).unwrap()) else { continue };
        match g.to_hlo_proto() {
            Ok(b) => {
                std::fs::write(format!("{out}/{}", f.file_name().unwrap().to_str().unwrap()), b).unwrap()
            }
            Err(e) => println!("{e}"),
        }
    }
}
