//! Rules from JSON and TOML.

use qwix_graph::nearest;
use serde_json::{Map, Value};

use super::{QuantizationRule, TileSize};
use crate::PtqError;

const FIELDS: [&str; 10] = [
    "module_path",
    "op_names",
    "weight_qtype",
    "act_qtype",
    "tile_size",
    "act_static_scale",
    "weight_calibration_method",
    "act_calibration_method",
    "act_batch_axes",
    "disable_channelwise_axes",
];

/// Fields of Qwix's `QtRule` that say how gradients are quantized: the forward pass does not depend on them.
const OF_TRAINING: [&str; 5] = [
    "bwd_qtype",
    "bwd_calibration_method",
    "bwd_weight_grad_tile_size",
    "bwd_stochastic_rounding",
    "channelwise_noise_axes",
];

impl QuantizationRule {
    /// Rules from JSON: a list of objects with Qwix's field names, or `{"rules": […]}`.
    ///
    /// # Errors
    /// Names the rule and the field that cannot be read.
    pub fn from_json(text: &str) -> Result<Vec<Self>, PtqError> {
        list(value_of_json(text)?, &FIELDS, one)
    }

    /// Rules from TOML: `[[rules]]` tables with Qwix's field names.
    ///
    /// # Errors
    /// Names the rule and the field that cannot be read.
    pub fn from_toml(text: &str) -> Result<Vec<Self>, PtqError> {
        list(value_of_toml(text)?, &FIELDS, one)
    }
}

/// What JSON says; a key that stands twice in one object is refused.
pub(super) fn value_of_json(text: &str) -> Result<Value, PtqError> {
    let value: Pairs = serde_json::from_str(text).map_err(|e| PtqError::Rules { reason: e.to_string() })?;
    value.check("").map_err(|reason| PtqError::Rules { reason })
}

/// What TOML says, as JSON.
pub(super) fn value_of_toml(text: &str) -> Result<Value, PtqError> {
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| {
        let message = e.message().to_owned();
        let line = e.span().map(|s| text[..s.start.min(text.len())].matches('\n').count() + 1);
        PtqError::Rules { reason: line.map_or(message.clone(), |line| format!("{message} at line {line}")) }
    })?;
    json(toml::Value::Table(table))
}

/// The rules of a list, each read by `one`.
pub(super) fn list<T>(
    value: Value,
    fields: &[&str],
    one: impl Fn(usize, Value) -> Result<T, PtqError>,
) -> Result<Vec<T>, PtqError> {
    let fail = |reason: String| PtqError::Rules { reason };
    let rules = match value {
        Value::Array(rules) => rules,
        Value::Object(mut object) => {
            if let Some(key) = object.keys().find(|key| *key != "rules") {
                let meant = if fields.contains(&key.as_str()) { "; a rule stands in a list" } else { "" };
                return Err(fail(format!("unknown key `{key}`; the only one is `rules`{meant}")));
            }
            match object.remove("rules") {
                Some(Value::Array(rules)) => rules,
                Some(other) => return Err(fail(format!("`rules` should be a list, found {}", kind(&other)))),
                None => return Err(fail("expected a list of rules under `rules`".to_owned())),
            }
        }
        other => return Err(fail(format!("expected a list of rules, found {}", kind(&other)))),
    };
    rules.into_iter().enumerate().map(|(index, value)| one(index, value)).collect()
}

fn one(index: usize, value: Value) -> Result<QuantizationRule, PtqError> {
    let Value::Object(object) = value else {
        return Err(PtqError::Rules {
            reason: format!("rules[{index}] should be an object, found {}", kind(&value)),
        });
    };
    let mut rule = QuantizationRule::default();
    for (field, value) in object {
        let wrong = |wanted: &str| PtqError::Rule {
            index,
            field: field.clone(),
            reason: format!("expected {wanted}, found {}", kind(&value)),
        };
        let text = || value.as_str().map(str::to_owned);
        let optional = |wanted: &str| match &value {
            Value::Null => Ok(None),
            Value::String(text) => Ok(Some(text.clone())),
            _ => Err(wrong(wanted)),
        };
        match field.as_str() {
            "module_path" => rule.module_path = text().ok_or_else(|| wrong("a pattern in quotes"))?,
            "op_names" => {
                let names: Option<Vec<String>> = value
                    .as_array()
                    .and_then(|names| names.iter().map(|n| n.as_str().map(str::to_owned)).collect());
                rule.op_names = names.ok_or_else(|| wrong("a list of op names"))?;
            }
            "weight_qtype" => rule.weight_qtype = optional("the name of a type in quotes")?,
            "act_qtype" => rule.act_qtype = optional("the name of a type in quotes")?,
            "tile_size" => rule.tile_size = tile_size(&value).ok_or_else(|| wrong("a number"))?,
            "act_static_scale" => {
                rule.act_static_scale = match &value {
                    Value::Null => None,
                    Value::Bool(b) => Some(*b),
                    _ => return Err(wrong("true or false")),
                };
            }
            "weight_calibration_method" => {
                rule.weight_calibration_method = text().ok_or_else(|| wrong("a method in quotes"))?;
            }
            "act_calibration_method" => rule.act_calibration_method = optional("a method in quotes")?,
            "act_batch_axes" => {
                let axes: Option<Vec<i64>> =
                    value.as_array().and_then(|axes| axes.iter().map(Value::as_i64).collect());
                rule.act_batch_axes = axes.ok_or_else(|| wrong("a list of axes"))?;
            }
            "disable_channelwise_axes" => {
                rule.disable_channelwise_axes = value.as_bool().ok_or_else(|| wrong("true or false"))?;
            }
            "additional_qt_config" => {
                if !value.is_null() {
                    return Err(PtqError::Rule {
                        index,
                        field,
                        reason: "it overrides the internals of Qwix's training ops, which this library has not; leave it \
                                 out, and say what you want with the rule's other fields"
                            .to_owned(),
                    });
                }
            }
            training if OF_TRAINING.contains(&training) => rule.of_training.push(field),
            unknown => {
                let hint = match nearest(unknown, FIELDS) {
                    Some(name) => format!("did you mean `{name}`?"),
                    None => format!("fields are {}", FIELDS.join(", ")),
                };
                return Err(PtqError::Rule {
                    index,
                    field: unknown.to_owned(),
                    reason: format!("a rule has no such field; {hint}"),
                });
            }
        }
    }
    Ok(rule)
}

/// A tile size, or none; `None` for anything else.
pub(super) fn tile_size(value: &Value) -> Option<Option<TileSize>> {
    match value {
        Value::Null => Some(None),
        Value::Number(n) => Some(Some(match n.as_i64() {
            Some(size) => TileSize::Elements(size),
            None => TileSize::Fraction(n.as_f64().unwrap_or(f64::NAN)),
        })),
        _ => None,
    }
}

pub(super) fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(b) => b.to_string(),
        Value::Number(n) => n.to_string(),
        Value::String(s) => format!("the text {s:?}"),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}

/// TOML as JSON; what JSON lacks cannot stand in a rule either.
fn json(value: toml::Value) -> Result<Value, PtqError> {
    Ok(match value {
        toml::Value::String(s) => Value::String(s),
        toml::Value::Integer(i) => i.into(),
        toml::Value::Boolean(b) => b.into(),
        toml::Value::Float(x) => match serde_json::Number::from_f64(x) {
            Some(n) => Value::Number(n),
            None => {
                return Err(PtqError::Rules { reason: format!("{x} is not a number that a rule can have") });
            }
        },
        toml::Value::Datetime(d) => {
            return Err(PtqError::Rules { reason: format!("{d}: a rule has no dates") });
        }
        toml::Value::Array(items) => Value::Array(items.into_iter().map(json).collect::<Result<_, _>>()?),
        toml::Value::Table(table) => {
            let mut map = Map::new();
            for (key, value) in table {
                map.insert(key, json(value)?);
            }
            Value::Object(map)
        }
    })
}

/// JSON that remembers when an object has a key twice, which `serde_json` settles silently.
enum Pairs {
    Plain(Value),
    List(Vec<Pairs>),
    Object(Vec<(String, Pairs)>),
}

impl Pairs {
    fn check(self, place: &str) -> Result<Value, String> {
        Ok(match self {
            Pairs::Plain(value) => value,
            Pairs::List(items) => Value::Array(
                items
                    .into_iter()
                    .enumerate()
                    .map(|(i, item)| item.check(&format!("{place}[{i}]")))
                    .collect::<Result<_, _>>()?,
            ),
            Pairs::Object(pairs) => {
                let mut map = Map::new();
                for (key, value) in pairs {
                    let value = value.check(&format!("{place}.{key}"))?;
                    if map.contains_key(&key) {
                        return Err(format!(
                            "`{key}` stands twice in {}",
                            if place.is_empty() { "the file" } else { place }
                        ));
                    }
                    map.insert(key, value);
                }
                Value::Object(map)
            }
        })
    }
}

impl<'de> serde::Deserialize<'de> for Pairs {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Pairs;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("JSON")
            }
            fn visit_unit<E>(self) -> Result<Pairs, E> {
                Ok(Pairs::Plain(Value::Null))
            }
            fn visit_bool<E>(self, v: bool) -> Result<Pairs, E> {
                Ok(Pairs::Plain(v.into()))
            }
            fn visit_i64<E>(self, v: i64) -> Result<Pairs, E> {
                Ok(Pairs::Plain(v.into()))
            }
            fn visit_u64<E>(self, v: u64) -> Result<Pairs, E> {
                Ok(Pairs::Plain(v.into()))
            }
            fn visit_f64<E>(self, v: f64) -> Result<Pairs, E> {
                Ok(Pairs::Plain(v.into()))
            }
            fn visit_str<E>(self, v: &str) -> Result<Pairs, E> {
                Ok(Pairs::Plain(v.into()))
            }
            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Pairs, A::Error> {
                let mut items = vec![];
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Pairs::List(items))
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = vec![];
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs::Object(pairs))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}
