//! `CompileOptionsProto`, with the public field numbers of `xla/pjrt/proto/compile_options.proto`.

use std::collections::BTreeMap;

use prost::Message as _;

use crate::{PjrtError, Result};

/// How a program is compiled.
#[derive(Clone, Debug, PartialEq)]
pub struct CompileOptions {
    /// How many copies of the program run side by side, each on inputs of its own.
    pub replicas: usize,
    /// Over how many devices each copy is spread, as the shardings in the program say.
    pub partitions: usize,
    /// The ids of the devices of the first copy's parts, then of the next copy's; empty for the plugin's choice.
    pub device_ids: Vec<i32>,
    /// Options of XLA (`xla_…`), as they would stand in `XLA_FLAGS`, for this program alone.
    pub xla: BTreeMap<String, XlaOption>,
}

/// The value of an option of XLA.
#[derive(Clone, Debug, PartialEq)]
pub enum XlaOption {
    /// Yes or no.
    Bool(bool),
    /// A number.
    Int(i64),
    /// A text, or the name of an alternative.
    Text(String),
}

impl Default for CompileOptions {
    /// One device.
    fn default() -> Self {
        CompileOptions { replicas: 1, partitions: 1, device_ids: Vec::new(), xla: BTreeMap::new() }
    }
}

impl CompileOptions {
    /// How many devices the program runs on.
    ///
    /// # Errors
    /// When a count is zero (which ends some plugins' process) or not to be had, or the ids are not as many.
    pub(crate) fn devices(&self, available: usize) -> Result<usize> {
        let counts = [("replicas", self.replicas), ("partitions", self.partitions)];
        for (what, count) in counts {
            if count == 0 {
                return Err(PjrtError::invalid(what, "found 0, expected at least 1"));
            }
        }
        match self.replicas.checked_mul(self.partitions) {
            Some(devices) if !self.device_ids.is_empty() && self.device_ids.len() != devices => {
                let reason = format!("found {:?}, expected {devices}", self.device_ids);
                Err(PjrtError::invalid("device ids", reason))
            }
            Some(devices) if devices <= available => Ok(devices),
            _ => Err(PjrtError::invalid(
                "devices",
                format!(
                    "{} replicas of {} partitions need more than the {available} there are",
                    self.replicas, self.partitions
                ),
            )),
        }
    }

    fn assignment(&self) -> Option<DeviceAssignmentProto> {
        if self.device_ids.is_empty() {
            return None;
        }
        let of_partition = |partition: usize| ComputationDeviceProto {
            replica_device_ids: self
                .device_ids
                .iter()
                .skip(partition)
                .step_by(self.partitions.max(1))
                .copied()
                .collect(),
        };
        Some(DeviceAssignmentProto {
            replica_count: self.replicas as i32,
            computation_count: self.partitions as i32,
            computation_devices: (0..self.partitions).map(of_partition).collect(),
        })
    }

    /// The serialized message. Both counts are always in it: without them some plugins end the process.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let build = ExecutableBuildOptionsProto {
            num_replicas: self.replicas as i64,
            num_partitions: self.partitions as i64,
            use_spmd_partitioning: self.partitions > 1,
            device_assignment: self.assignment(),
        };
        let overrides = self.xla.iter().map(|(name, value)| {
            let value = match value {
                XlaOption::Bool(yes) => override_value::Value::Bool(*yes),
                XlaOption::Int(number) => override_value::Value::Int(*number),
                XlaOption::Text(text) => override_value::Value::Text(text.clone()),
            };
            (name.clone(), OptionOverrideProto { value: Some(value) })
        });
        let message =
            CompileOptionsProto { build: Some(build), overrides: overrides.collect::<BTreeMap<_, _>>() };
        message.encode_to_vec()
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct CompileOptionsProto {
    #[prost(message, optional, tag = "3")]
    build: Option<ExecutableBuildOptionsProto>,
    #[prost(btree_map = "string, message", tag = "7")]
    overrides: BTreeMap<String, OptionOverrideProto>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ExecutableBuildOptionsProto {
    #[prost(int64, tag = "4")]
    num_replicas: i64,
    #[prost(int64, tag = "5")]
    num_partitions: i64,
    #[prost(bool, tag = "6")]
    use_spmd_partitioning: bool,
    #[prost(message, optional, tag = "9")]
    device_assignment: Option<DeviceAssignmentProto>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct DeviceAssignmentProto {
    #[prost(int32, tag = "1")]
    replica_count: i32,
    #[prost(int32, tag = "2")]
    computation_count: i32,
    #[prost(message, repeated, tag = "3")]
    computation_devices: Vec<ComputationDeviceProto>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ComputationDeviceProto {
    #[prost(int32, repeated, tag = "1")]
    replica_device_ids: Vec<i32>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct OptionOverrideProto {
    #[prost(oneof = "override_value::Value", tags = "1, 2, 3")]
    value: Option<override_value::Value>,
}

mod override_value {
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Value {
        #[prost(string, tag = "1")]
        Text(String),
        #[prost(bool, tag = "2")]
        Bool(bool),
        #[prost(int64, tag = "3")]
        Int(i64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_device_is_the_least_that_a_plugin_takes() {
        assert_eq!(CompileOptions::default().encode(), [0x1a, 0x04, 0x20, 0x01, 0x28, 0x01]);
    }

    #[test]
    fn counts_that_would_end_the_process_are_refused() {
        let rows =
            [(1, 1, true), (2, 2, true), (0, 1, false), (1, 0, false), (3, 2, false), (usize::MAX, 2, false)];
        for (replicas, partitions, right) in rows {
            let options = CompileOptions { replicas, partitions, ..CompileOptions::default() };
            assert_eq!(options.devices(4).is_ok(), right, "{options:?}");
        }
    }
}
