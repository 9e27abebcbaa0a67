//! A graph and a provider make a quantized graph.

use std::collections::{BTreeMap, BTreeSet};

use qwix_eval::{Backend, EvalError, Executable, Params};
use qwix_graph::{Graph, Patch};

use crate::explain::{Outcome, Verdict};
use crate::providers::{Choice, Decision, Phase, Provider, Side};
use crate::sharding;
use crate::share::share_quantized;
use crate::{PtqError, QuantizationRule, Rules, Site, Storage, Template, Warning, find_sites};

/// A quantized graph, and why it is as it is.
#[derive(Clone, Debug)]
pub struct PtqModel {
    /// The graph; its signature says how its parameters are made.
    pub graph: Graph,
    /// What happened to every dot and convolution, in trace order.
    pub verdicts: Vec<Verdict>,
    /// What is probably not meant.
    pub warnings: Vec<Warning>,
    /// The rules.
    pub rules: Rules,
    /// The graph that calibration runs, for a provider that has one: it takes the statistics so far as inputs, after the
    /// model's own, and gives the new ones as further results, in the same order.
    pub calibration: Option<Graph>,
    /// For each rule, the sites (by number) that it is the first to match.
    pub(crate) matched: Vec<Vec<usize>>,
    /// For each rule without a site, the rules that go before it wherever it would match.
    pub(crate) shadows: Vec<BTreeSet<usize>>,
}

impl PtqModel {
    /// What the model's parameters are, and how they are made; nothing is allocated.
    pub fn abstract_params(&self) -> Template {
        Template::of(&self.graph)
    }

    /// Prepares the quantized model for running.
    ///
    /// # Errors
    /// When the parameters are not the template's, or the backend cannot run the graph.
    pub fn compile(&self, backend: &dyn Backend, params: Params) -> Result<Box<dyn Executable>, EvalError> {
        backend.compile(&self.graph, params)
    }

    /// The rules that are for no site, because they match none or others always go before them.
    pub fn get_unused_rules(&self) -> Vec<&QuantizationRule> {
        self.unused().map(|index| &self.rules.as_slice()[index].rule).collect()
    }

    pub(crate) fn unused(&self) -> impl Iterator<Item = usize> {
        (0..self.matched.len()).filter(|&index| self.matched[index].is_empty())
    }
}

/// Quantizes a graph: finds its sites, matches the provider's rules, and has the provider rewrite what they match. Weights
/// are not read.
///
/// # Errors
/// When a rule asks for what a site that it matches cannot do: names the site.
pub fn quantize_model(graph: &Graph, provider: &dyn Provider) -> Result<PtqModel, PtqError> {
    Ok(plan(graph, provider, false)?.0)
}

/// [`quantize_model`]; with `go_on`, a site that fails stays as it is, its verdict says why, and the number of such
/// sites is returned.
pub(crate) fn plan(
    graph: &Graph,
    provider: &dyn Provider,
    go_on: bool,
) -> Result<(PtqModel, usize), PtqError> {
    let mut sites = find_sites(graph);
    let rules = provider.rules();
    let mut warnings = rules.warnings().to_vec();
    let mut matched = vec![vec![]; rules.as_slice().len()];
    let mut decided = Decided { rules: vec![None; sites.len()], outcomes: vec![], choices: vec![] };
    let mut failed = 0;
    for (number, site) in sites.iter().enumerate() {
        let rule = rules.find(site.module_path.as_str(), site.op_name)?;
        decided.rules[number] = rule;
        let (outcome, choice) = match rule {
            None => (Outcome::Left { reason: "no rule matches".to_owned() }, None),
            Some(rule) => {
                matched[rule].push(number);
                match provider.decide(site, rule) {
                    Ok(Decision::Leave(reason)) => (Outcome::Left { reason }, None),
                    Ok(Decision::Quantize { choice, warnings: said }) => {
                        let about = format!("site `{}` {}", site.module_path, site.op_id);
                        warnings.extend(
                            said.into_iter().map(|message| Warning { about: about.clone(), message }),
                        );
                        // Written when it is known where weights are stored.
                        (Outcome::Left { reason: String::new() }, Some(*choice))
                    }
                    Err(error) if go_on => {
                        failed += 1;
                        (Outcome::Failed { reason: error.to_string() }, None)
                    }
                    Err(error) => return Err(error),
                }
            }
        };
        decided.outcomes.push(outcome);
        decided.choices.push(choice);
    }

    for (site, choice) in sites.iter_mut().zip(&decided.choices) {
        let Some(choice) = choice else { continue };
        for (operand, side) in [(&mut site.lhs, &choice.lhs), (&mut site.rhs, &choice.rhs)] {
            if let (Some(weight), Some(side)) = (&mut operand.weight, side)
                && side.is_stored()
                && !weight.can_keep(&side.how)
            {
                weight.fall_back("part of it is taken along an axis that shares scales");
            }
        }
    }
    let mut patches = rewrite(graph, provider, &sites, &decided, Phase::Run)?;
    settle_in_place(graph, provider, &mut sites, &decided, &mut patches)?;
    warn_of_storage(graph, &sites, &decided, &mut warnings);
    let edits: Vec<Patch> = patches.into_iter().flatten().collect();
    let quantized = graph.apply(&edits).map_err(|e| PtqError::Graph { reason: e.to_string() })?;
    let quantized = share_quantized(&quantized);
    let calibration = if provider.calibrates() {
        let patches = rewrite(graph, provider, &sites, &decided, Phase::Calibrate)?;
        let edits: Vec<Patch> = patches.into_iter().flatten().collect();
        let calibration = graph.apply(&edits).map_err(|e| PtqError::Graph { reason: e.to_string() })?;
        Some(share_quantized(&calibration))
    } else {
        None
    };

    let verdicts = sites
        .iter()
        .zip(&decided.rules)
        .zip(decided.outcomes.iter().zip(&decided.choices))
        .map(|((site, &rule), (outcome, choice))| {
            let outcome = match choice {
                Some(choice) => Outcome::of(graph, site, choice),
                None => outcome.clone(),
            };
            Verdict::new(graph, site, rule, outcome)
        })
        .collect();
    let mut shadows = vec![BTreeSet::new(); matched.len()];
    for index in (0..matched.len()).filter(|&i| matched[i].is_empty()) {
        for (site, &first) in sites.iter().zip(&decided.rules) {
            if let Some(first) = first
                && rules.matches(index, site.module_path.as_str(), site.op_name)?
            {
                shadows[index].insert(first);
            }
        }
    }
    Ok((
        PtqModel {
            graph: quantized,
            verdicts,
            warnings,
            rules: rules.clone(),
            calibration,
            matched,
            shadows,
        },
        failed,
    ))
}

/// Weights that stay floats take as much room as before, and time on each run; those that are whole on each device take
/// more than their variable's share.
fn warn_of_storage(graph: &Graph, sites: &[Site], decided: &Decided, warnings: &mut Vec<Warning>) {
    for (site, choice) in sites.iter().zip(&decided.choices) {
        let Some(choice) = choice else { continue };
        for (operand, side) in [(&site.lhs, &choice.lhs), (&site.rhs, &choice.rhs)] {
            if side.as_ref().is_some_and(Side::is_stored)
                && let Some(weight) = &operand.weight
                && let Some(parameter) = graph.parameters.get(weight.parameter)
            {
                let what = match (&weight.storage, sharding::stored(graph, weight)) {
                    (Storage::EachRun { reason }, _) => {
                        format!("stays a float and is quantized on each run: {reason}")
                    }
                    (_, Some((_, Some(reason)))) => format!("is stored whole on each device: {reason}"),
                    (_, Some((_, None)) | None) => continue,
                };
                warnings.push(Warning {
                    about: format!("site `{}` {}", site.module_path, site.op_id),
                    message: format!("its weight `{}` {what}", parameter.path),
                });
            }
        }
    }
}

struct Decided {
    rules: Vec<Option<usize>>,
    outcomes: Vec<Outcome>,
    choices: Vec<Option<Choice>>,
}

fn rewrite(
    graph: &Graph,
    provider: &dyn Provider,
    sites: &[Site],
    decided: &Decided,
    phase: Phase,
) -> Result<Vec<Option<Patch>>, PtqError> {
    let numbers = 0..sites.len();
    numbers.map(|number| rewrite_one(graph, provider, sites, decided, number, phase)).collect()
}

fn rewrite_one(
    graph: &Graph,
    provider: &dyn Provider,
    sites: &[Site],
    decided: &Decided,
    number: usize,
    phase: Phase,
) -> Result<Option<Patch>, PtqError> {
    let (site, Some(choice), Some(rule)) = (&sites[number], &decided.choices[number], decided.rules[number])
    else {
        return Ok(None);
    };
    let fail = |reason: String| PtqError::Site {
        module_path: site.module_path.clone(),
        op_id: site.op_id.clone(),
        rule,
        reason,
    };
    provider.rewrite(graph, site, choice, phase).map(Some).map_err(fail)
}

/// Weights that are taken in parts, or in loops, are quantized in place only if all their uses can take that; where one
/// cannot, each use has a quantized weight of its own, or in a loop quantizes on each run.
fn settle_in_place(
    graph: &Graph,
    provider: &dyn Provider,
    sites: &mut [Site],
    decided: &Decided,
    patches: &mut [Option<Patch>],
) -> Result<(), PtqError> {
    // For each variable that is to be quantized in place, its sites; for every variable, whether a site reads it as it is.
    let mut in_place: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    let mut read: BTreeSet<usize> = BTreeSet::new();
    for (number, site) in sites.iter().enumerate() {
        let choice = decided.choices[number].as_ref();
        for (operand, side) in [(&site.lhs, choice.map(|c| &c.lhs)), (&site.rhs, choice.map(|c| &c.rhs))] {
            let Some(weight) = &operand.weight else { continue };
            let stored = side.and_then(Option::as_ref).is_some_and(Side::is_stored);
            match &weight.storage {
                Storage::InPlace { .. } if stored => {
                    in_place.entry(weight.parameter).or_default().push(number)
                }
                Storage::Folded { .. } if stored => {}
                Storage::InPlace { .. } | Storage::Folded { .. } | Storage::EachRun { .. } => {
                    read.insert(weight.parameter);
                }
            }
        }
    }
    for (parameter, users) in in_place {
        let tried = if read.contains(&parameter) {
            Err("another op uses it unquantized".to_owned())
        } else {
            let together: Vec<Patch> = users.iter().filter_map(|&n| patches[n].clone()).collect();
            graph
                .apply(&together)
                .map(drop)
                .map_err(|e| format!("not all its uses can take it quantized: {e}"))
        };
        let Err(reason) = tried else { continue };
        for number in users {
            let site = &mut sites[number];
            for operand in [&mut site.lhs, &mut site.rhs] {
                if let Some(weight) = operand.weight.as_mut().filter(|w| w.parameter == parameter) {
                    weight.fall_back(&reason);
                }
            }
            patches[number] = rewrite_one(graph, provider, sites, decided, number, Phase::Run)?;
        }
    }
    Ok(())
}
