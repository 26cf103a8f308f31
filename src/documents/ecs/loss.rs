//! The document of a loss: when and why data was lost. It explains why other documents may be missing or incomplete.

use serde::Serialize;

use super::{Context, ECS_VERSION, Ecs, NoticeFields, Service};
use crate::host::Host;
use crate::host::agent::Agent;
use crate::model::clock::Millis;
use crate::model::feature::Feature;
use crate::model::loss::{Loss, LossCause};

/// A loss as an ECS document, to be serialized.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LossDocument<'a> {
    /// When the last part of the loss was noticed.
    #[serde(rename = "@timestamp")]
    pub timestamp: Millis,
    /// `event.*`.
    pub event: NoticeFields,
    /// The loss in a sentence, with the remedy if there is one.
    pub message: String,
    /// `socktrail.*`.
    pub socktrail: SocktrailFields,
    /// The type of service that the data is about.
    pub service: Service,
    /// The host that was monitored.
    pub host: &'a Host,
    /// The program that made the document.
    pub agent: &'a Agent,
    /// The version of the schema.
    pub ecs: Ecs,
}

/// `socktrail.*` of a loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct SocktrailFields {
    /// `socktrail.loss.*`.
    pub loss: LossFields,
}

/// `socktrail.loss.*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct LossFields {
    /// `ring`, `probes` or `results`.
    pub cause: LossCause,
    /// The number of lost samples (`ring`), missed probe hits (`probes`) or dropped results (`results`).
    pub count: u64,
    /// For `ring`: the CPU whose ring was full.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<u32>,
    /// For `probes`: the feature whose probe missed hits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub feature: Option<Feature>,
}

impl<'a> LossDocument<'a> {
    pub(super) fn new(loss: &Loss, context: &Context<'a>) -> Self {
        let (start, end) = (context.clock.wall(loss.first), context.clock.wall(loss.last));
        let (cpu, feature) = match loss.cause {
            LossCause::Ring { cpu } => (Some(cpu), None),
            LossCause::Probes { feature } => (None, Some(feature)),
            LossCause::Results => (None, None),
        };
        Self {
            timestamp: end.millis(),
            event: NoticeFields {
                start: Some(start),
                end: Some(end),
                ..NoticeFields::new("pipeline_error", "loss", "error")
            },
            message: loss.to_string(),
            socktrail: SocktrailFields { loss: LossFields { cause: loss.cause, count: loss.count, cpu, feature } },
            service: Service { kind: "system" },
            host: context.host,
            agent: context.agent,
            ecs: Ecs { version: ECS_VERSION },
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{json, to_value};

    use super::*;
    use crate::documents::ecs::{self, Directions};
    use crate::model::clock::{Clock, Readings, Timestamp};
    use crate::model::testing::{monotonic, since_boot};

    #[test]
    fn a_loss_has_its_cause_count_and_interval() {
        let (host, directions) = (Host::default(), Directions::Ingress);
        let agent = Agent::of(&host);
        let clock =
            Clock::from_readings(Readings { kernel: monotonic(0), boot: since_boot(0), wall: Timestamp::default() });
        let context = Context { host: &host, agent: &agent, clock, names: &(), directions };
        let document = |cause| {
            let loss = Loss { cause, count: 7, first: monotonic(1_000_000_000), last: monotonic(2_500_000_000) };
            to_value(ecs::loss(&loss, &context)).unwrap()
        };
        let ring = document(LossCause::Ring { cpu: 3 });
        assert_eq!(ring["@timestamp"], "1970-01-01T00:00:02.500Z");
        assert_eq!(ring["event"]["kind"], "pipeline_error");
        assert_eq!(ring["event"]["start"], "1970-01-01T00:00:01.000000000Z");
        assert_eq!(ring["socktrail"]["loss"], json!({"cause": "ring", "count": 7, "cpu": 3}));
        let message =
            "7 samples found no room in the ring of CPU 3: a larger ring_size_exponent gives each ring more room";
        assert_eq!(ring["message"], message);
        let probes = document(LossCause::Probes { feature: Feature::TcpIpv4In });
        assert_eq!(probes["socktrail"]["loss"], json!({"cause": "probes", "count": 7, "feature": "tcp_ipv4_in"}));
    }
}
