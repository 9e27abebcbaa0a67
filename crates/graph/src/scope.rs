//! Where JAX says that an op was traced.

/// An op's `op_name`, taken apart: `jit(apply)/Net/attn/bsd,dhk->bshk/dot_general`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Scope {
    /// The first module or named scope under the exported function. Linen writes the root module's class here, which
    /// is no part of a parameter's path; a function without modules may have a scope of its own here.
    pub root: Option<String>,
    /// The modules below it, outermost first, methods cut off (`embedder.attend` → `embedder`); without what JAX and
    /// Flax add: functions (`jit(f)`), transforms and control flow.
    pub modules: Vec<String>,
    /// The equation, when the op comes from an einsum.
    pub einsum: Option<String>,
    /// JAX's primitive: `dot_general`.
    pub primitive: Option<String>,
}

/// Segments that transforms add.
const TRANSFORMS: [&str; 13] = [
    "checkpoint",
    "closed_call",
    "core_call",
    "core_closed_call",
    "custom_jvp_call",
    "custom_lin",
    "custom_vjp_call",
    "custom_vjp_call_jaxpr",
    "pjit",
    "remat",
    "remat2",
    "rematted_computation",
    "shard_map",
];

impl Scope {
    /// Takes an op_name apart. Of fused locations (`a/x;b/y`) the first counts.
    pub fn parse(op_name: &str) -> Scope {
        let op_name = op_name.split(';').next().unwrap_or_default();
        let mut segments = split(op_name);
        let primitive =
            segments.pop().filter(|last| !last.is_empty() && !last.contains('(')).map(str::to_owned);
        let mut scope = Scope { primitive, ..Scope::default() };
        let mut names = Vec::new();
        for segment in segments {
            unwrap(segment, &mut names);
        }
        let mut names = names.into_iter().peekable();
        let mut modules = Vec::new();
        while let Some(name) = names.next() {
            // A loop and a branch are two segments each, so that modules may have any of these names.
            let next = names.peek().copied().unwrap_or_default();
            if matches!((name, next), ("while", "body" | "cond")) || (name == "cond" && is_branch(next)) {
                names.next();
            } else if is_equation(name) {
                scope.einsum = Some(name.to_owned());
            } else if !TRANSFORMS.contains(&name) {
                let module = name.split('.').next().unwrap_or_default();
                if !module.is_empty() {
                    modules.push(module.to_owned());
                }
            }
        }
        if !modules.is_empty() {
            scope.root = Some(modules.remove(0));
        }
        scope.modules = modules;
        scope
    }
}

/// Segments between slashes that are not in parentheses.
fn split(text: &str) -> Vec<&str> {
    let mut depth = 0usize;
    text.split(|c| {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == '/' && depth == 0
    })
    .collect()
}

/// The names in a segment: what transforms wrap around them goes, and functions go as a whole.
fn unwrap<'a>(segment: &'a str, names: &mut Vec<&'a str>) {
    // Transforms around transforms, outermost first; each round takes one off, so that no depth is too deep.
    let mut rest = segment;
    while let Some((head, inner)) = rest.strip_suffix(')').and_then(|rest| rest.split_once('(')) {
        if matches!(head, "jit" | "pjit" | "xla_call") {
            return;
        }
        rest = inner;
    }
    names.extend(split(rest).into_iter().filter(|name| !name.is_empty()));
}

fn is_branch(name: &str) -> bool {
    name.strip_prefix("branch_")
        .and_then(|rest| rest.strip_suffix("_fun"))
        .is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

/// Whether a segment is an einsum's equation: subscripts of several operands, or an output.
fn is_equation(name: &str) -> bool {
    (name.contains(',') || name.contains("->"))
        && name.chars().all(|c| c.is_alphabetic() || matches!(c, ',' | '.' | '-' | '>' | ' '))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes() {
        type Row = (&'static str, &'static [&'static str], Option<&'static str>, &'static str);
        let rows: &[Row] = &[
            ("jit(apply)/Net/Dense_0/dot_general", &["Net", "Dense_0"], None, "dot_general"),
            ("jit(apply)/Net/Dense_0/jit(relu)/max", &["Net", "Dense_0"], None, "max"),
            (
                "jit(apply)/Net/attn/bsd,dhk->bshk/dot_general",
                &["Net", "attn"],
                Some("bsd,dhk->bshk"),
                "dot_general",
            ),
            (
                "jit(apply)/Net/attn/...hqk,...khd->...qhd/transpose",
                &["Net", "attn"],
                Some("...hqk,...khd->...qhd"),
                "transpose",
            ),
            ("jit(apply)/Net/...b,...o/dot_general", &["Net"], Some("...b,...o"), "dot_general"),
            ("jit(f)/vmap(BTNH,BSNH->BNTS)/dot_general", &[], Some("BTNH,BSNH->BNTS"), "dot_general"),
            ("jit(apply)/Net/embedder.attend/dot_general", &["Net", "embedder"], None, "dot_general"),
            ("jit(apply)/Multi.encode/d/dot_general", &["Multi", "d"], None, "dot_general"),
            ("jit(apply)/Multi/Multi.encode/d/add", &["Multi", "Multi", "d"], None, "add"),
            (
                "jit(apply)/Scan/while/body/closed_call/layers/up/dot_general",
                &["Scan", "layers", "up"],
                None,
                "dot_general",
            ),
            ("jit(apply)/Scan/while/cond/lt", &["Scan"], None, "lt"),
            ("jit(apply)/Net/cond/branch_1_fun/a/add", &["Net", "a"], None, "add"),
            ("jit(apply)/Net/cond/body/add", &["Net", "cond", "body"], None, "add"),
            ("jit(apply)/Remat/checkpoint/first/Dense_0/add", &["Remat", "first", "Dense_0"], None, "add"),
            ("jit(apply)/Net/vmap(experts)/Dense_0/add", &["Net", "experts", "Dense_0"], None, "add"),
            ("jit(f)/transpose(jvp(M))/Dense_0/transpose", &["M", "Dense_0"], None, "transpose"),
            ("jit(f)/transpose(jvp(jvp()))/checkpoint/rematted_computation/cos", &[], None, "cos"),
            ("jit(f)/vmap(jit(_where))/select_n", &[], None, "select_n"),
            ("jit(f)/vmap()/gt", &[], None, "gt"),
            ("jit(f)/vmap(a/b)/gt", &["a", "b"], None, "gt"),
            ("jit(<lambda>)/jit(main)/dot_general", &[], None, "dot_general"),
            ("jit(f)/M/x/add;jit(f)/M/y/reshape", &["M", "x"], None, "add"),
            ("jit(apply)/Mlp/jit(relu)", &["Mlp"], None, ""),
            ("dot_general", &[], None, "dot_general"),
            ("", &[], None, ""),
            ("jit(f)/((((", &[], None, ""),
            ("a//b", &["a"], None, "b"),
        ];
        let mut wrong = Vec::new();
        for &(text, names, einsum, primitive) in rows {
            let found = Scope::parse(text);
            let wanted = Scope {
                root: names.first().map(|&name| name.to_owned()),
                modules: names.iter().skip(1).map(|&name| name.to_owned()).collect(),
                einsum: einsum.map(str::to_owned),
                primitive: Some(primitive.to_owned()).filter(|primitive| !primitive.is_empty()),
            };
            if found != wanted {
                wrong.push(format!("{text}: found {found:?}"));
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn deep_nesting_is_no_trouble() {
        let deep = format!("jit(f)/{}M{}/add", "vmap(".repeat(100_000), ")".repeat(100_000));
        assert_eq!(Scope::parse(&deep).root.as_deref(), Some("M"));
    }
}
