use qwix_graph::*;
#[test]
fn t() {
    for f in std::env::var("FILES").unwrap().split(' ') {
        let b = std::fs::read(f).unwrap();
        let n = 20u32;
        let s = std::time::Instant::now();
        for _ in 0..n {
            Graph::from_hlo_proto(&b).unwrap();
        }
        let mut t = s.elapsed() / n;
        for _ in 0..200 {
            let s = std::time::Instant::now();
            Graph::from_hlo_proto(&b).unwrap();
            t = t.min(s.elapsed());
        }
        let g = Graph::from_hlo_proto(&b).unwrap();
        let s = std::time::Instant::now();
        for _ in 0..n {
            g.verify().unwrap();
        }
        let mut v = s.elapsed() / n;
        for _ in 0..200 {
            let s = std::time::Instant::now();
            g.verify().unwrap();
            v = v.min(s.elapsed());
        }
        let s = std::time::Instant::now();
        for _ in 0..n {
            g.to_hlo_proto().unwrap();
        }
        println!(
            "{f} {} bytes {} nodes import {t:?} verify {v:?} export {:?}",
            b.len(),
            g.entry.nodes.len(),
            s.elapsed() / n
        );
    }
}
