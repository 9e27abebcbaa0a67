fn main() {
    for f in std::env::args().skip(1) {
        let bytes = std::fs::read(&f).unwrap();
        let t = std::time::Instant::now();
        let g = qwix_graph::Graph::from_hlo_proto(&bytes).unwrap();
        println!("{f}: import {:?}, {} nodes", t.elapsed(), g.entry.nodes.len());
        let p = qwix_ptq::PtqProvider::new(vec![
            qwix_ptq::QuantizationRule::new(".*").weight_qtype("int8").act_qtype("int8"),
        ])
        .unwrap();
        let t = std::time::Instant::now();
        let s = qwix_ptq::find_sites(&g);
        println!("sites {:?} {}", t.elapsed(), s.len());
        let t = std::time::Instant::now();
        let r = qwix_ptq::explain(&g, &p).unwrap();
        println!("explain {:?} {} {}", t.elapsed(), r.quantized, r.sites.len());
    }
}
