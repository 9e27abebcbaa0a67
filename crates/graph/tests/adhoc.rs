use qwix_graph::*;
#[test]
fn adhoc() {
    let dir = std::env::var("MODS").unwrap();
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    for f in files {
        let b = std::fs::read(&f).unwrap();
        match Graph::from_hlo_proto(&b) {
            Err(e) => println!("ERR {} {e}", f.display()),
            Ok(g) => {
                println!("ok {} {} nodes", f.file_name().unwrap().to_str().unwrap(), g.entry.nodes.len());
                fn show(c: &Computation, d: usize) {
                    for n in &c.nodes {
                        if std::env::var("V").is_ok() {
                            println!(
                                "{:d$}{} {} {} {:?} {} [{}] {}",
                                "",
                                n.name,
                                n.op.name(),
                                n.ty,
                                n.operands.iter().map(|o| &c.node(*o).name).collect::<Vec<_>>(),
                                n.metadata.id,
                                n.metadata.op_name,
                                n.sharding.clone().unwrap_or_default()
                            );
                        }
                        if let Op::Unsupported(u) = &n.op {
                            println!("   U {} {} {}", n.name, u.opcode, u.reason)
                        }
                        if let Op::CustomCall(u) = &n.op {
                            println!(
                                "   C {} {} {:?} {:?}",
                                n.name,
                                u.target,
                                String::from_utf8_lossy(&u.config),
                                u.called
                            )
                        }
                        for c in n.op.called() {
                            show(c, d + 4)
                        }
                    }
                }
                show(&g.entry, 4);
                for p in &g.parameters {
                    println!("   P {:?} {} {} {}", p.role, p.ambiguous, p.path, p.ty);
                }
            }
        }
    }
}
